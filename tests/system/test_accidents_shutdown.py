"""A machine that is shut down: every running job has its true end and its last words, every waiting one its turn."""

import pytest
from story import ended, in_state, inside, jobctl, start, status, until_on

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

ON = "echo on; while :; do sleep 0.1; done"


def test_a_reboot_stops_running_jobs_says_so_and_runs_the_waiting_ones_in_order(machine: Machine) -> None:
    machine.write("/etc/jobsvc/jobsvc.conf.d/60-story.conf", "[Manager]\nMaxRunning=7\n")
    machine.run("systemctl", "reload", "jobsvc.service")
    machine.run("rm", "-f", "order", user="alice")
    ways = {
        "plain": "echo on; exec sleep 1000",
        "words": f"trap 'echo last words; exit 7' TERM; {ON}",
        # By the shell itself: PID 1 looks for new processes until there are none, so that one begun here may get TERM.
        "good": f"trap 'i=0; while [ $i -lt 5000 ]; do echo $((i += 1)); done; exit 0' TERM; {ON}",
        "deaf": f"trap '' TERM; {ON}",
        "parent": "sleep 1000 & setsid sleep 1000 & echo on; wait",
    }
    try:
        patience = {"deaf": "2s"}
        jobs = {
            name: start(machine, "--stop-timeout", patience.get(name, "60s"), "--", "sh", "-c", way)
            for name, way in ways.items()
        }
        jobs["timed"] = start(machine, "--timeout", "1h", "--", "sh", "-c", ways["plain"])
        jobs["asked"] = start(machine, "--stop-timeout", "5s", "--", "sh", "-c", ways["deaf"])
        inside(machine, until_on, list(jobs.values()))
        waiting = [start(machine, "--", "sh", "-c", f"echo {i} >> order; sleep 0.05") for i in range(20)]
        in_state(machine, waiting[0], "queued")
        assert jobctl(machine, "stop", "--no-block", jobs["asked"]).returncode == 0
        machine.write("/etc/jobsvc/jobsvc.conf.d/60-story.conf", "[Manager]\nMaxRunning=1\n")
        machine.reboot()
        told = {name: status(machine, job) for name, job in jobs.items()}
        assert {told[name]["reason"] for name in told if name != "asked"} == {"the machine was shut down"}
        assert "alice" in told["asked"]["reason"]
        assert {(one["state"], one["result"]) for one in told.values()} == {("stopped", "stopped")}
        assert {name: (one["exit_code"], one["signal"]) for name, one in told.items()} == {
            **dict.fromkeys(("plain", "timed", "parent"), (None, 15)),
            **dict.fromkeys(("deaf", "asked"), (None, 9)),
            "words": (7, None),
            "good": (0, None),
        }
        assert all(one["output"]["missing_bytes"] == 0 for one in told.values())
        counted = b"".join(b"%d\n" % i for i in range(1, 5001))
        for name, job in jobs.items():
            text = {"words": b"on\nlast words\n", "good": b"on\n" + counted}.get(name, b"on\n")
            logs = jobctl(machine, "logs", job)
            assert (logs.returncode, logs.stdout) == (0, text), name
        assert [ended(machine, job)["result"] for job in waiting] == ["success"] * 20
        assert machine.run("cat", "order", user="alice").stdout.split() == [b"%d" % i for i in range(20)]
    finally:
        machine.run("rm", "-f", "/etc/jobsvc/jobsvc.conf.d/60-story.conf")
        machine.run("systemctl", "restart", "jobsvc.service")


def test_maintenance_lasts_across_a_reboot(machine: Machine) -> None:
    machine.run("rm", "-f", "began", user="alice")
    machine.write("/etc/jobsvc/jobsvc.conf.d/60-story.conf", "[Manager]\nMaxRunning=1\n")
    machine.run("systemctl", "reload", "jobsvc.service")
    try:
        running = start(machine, "--", "sh", "-c", ON)
        waiting = start(machine, "--", "sh", "-c", "echo began > began")
        inside(machine, until_on, [running])
        assert jobctl(machine, "maintenance", "on", user="root").returncode == 0
        machine.reboot()
        assert status(machine, running)["reason"] == "the machine was shut down"
        told = status(machine, waiting)
        assert (told["state"], "maintenance" in told["queue_reason"]) == ("queued", True)
        assert not machine.exists("/home/alice/began")
        refused = jobctl(machine, "start", "--", "true")
        assert (refused.returncode, b"maintenance" in refused.stderr) == (1, True)
        assert jobctl(machine, "maintenance", "off", user="root").returncode == 0
        assert ended(machine, waiting)["result"] == "success"
        assert machine.read("/home/alice/began") == b"began\n"
    finally:
        machine.run("rm", "-f", "/etc/jobsvc/jobsvc.conf.d/60-story.conf")
        machine.run("jobctl", "maintenance", "off")
        machine.run("systemctl", "reload", "jobsvc.service")


def test_a_stop_of_the_notice_by_hand_is_no_shutdown(machine: Machine) -> None:
    machine.run("systemctl", "stop", "jobsvc-shutdown.service")
    assert not machine.exists("/run/jobsvc/shutdown")
    assert jobctl(machine, "run", "--", "false").returncode == 1
    assert status(machine)["result"] == "exit-code"
    machine.run("systemctl", "start", "jobsvc-shutdown.service")
