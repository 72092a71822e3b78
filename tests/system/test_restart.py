"""The service may be killed, stopped, restarted and replaced at any moment: no job and no byte suffers."""

import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from story import (
    ended,
    follow,
    in_state,
    inside,
    jobctl,
    line,
    service,
    start,
    status,
    systemctl,
)

from machine import scale
from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

SLOW_COUNT = 'i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo "$i"; sleep 0.1; done; exit 17'
COUNTED = b"".join(b"%d\n" % i for i in range(1, 41))
GATED = "exec 3<>{gate}; read x <&3; {end}"


@pytest.fixture
def gates(machine: Machine) -> Iterator[list[str]]:
    """Two jobs' gates: writing into one lets its job go on."""
    names = ["gate-of-exit", "gate-of-signal"]
    machine.run("sh", "-c", f"rm -f {' '.join(names)}; mkfifo {' '.join(names)}", user="alice")
    yield names
    machine.run("rm", *names, user="alice")


def test_standard_input_of_what_waits_outlives_service_and_launcher(machine: Machine) -> None:
    """Only the process that keeps it must not be killed; nobody else has it open."""
    machine.run("sh", "-c", "echo first > one; echo second > two; echo third > three", user="alice")
    jobs = {
        name: machine.run("sh", "-c", f"jobctl start -q --hold -i -- cat < {name}", user="alice")
        .stdout.decode()
        .strip()
        for name in ("one", "two", "three")
    }
    keepers = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -cE ' /home/alice/(one|two|three)$'; true"
    for how in ("restart", "kill"):
        service(machine, how)
        assert [status(machine, job)["state"] for job in jobs.values()] == ["queued"] * 3
    systemctl(machine, "restart", "jobsvc-launcher.service")
    assert machine.run("sh", "-c", keepers).stdout.strip() == b"3"
    count = ("pgrep", "-c", "jobsvc-porter")
    machine.wait_until(lambda: machine.run(*count).stdout.strip() == b"4", what="those and a spare one")
    holds = (
        "for pid in $(pgrep jobsvc-porter); do readlink /proc/$pid/fd/* | grep -qx /home/alice/two && echo $pid; done"
    )
    machine.run("sh", "-c", f"kill -KILL $({holds})")
    service(machine, "restart")
    told = ended(machine, jobs["two"])
    assert (told["result"], told["reason"]) == (
        "canceled",
        "its standard input is gone: the process that kept it has ended",
    )
    assert jobctl(machine, "stop", jobs["three"]).returncode == 0
    assert jobctl(machine, "release", jobs["one"]).returncode == 0
    assert ended(machine, jobs["one"])["result"] == "success"
    assert jobctl(machine, "logs", jobs["one"]).stdout == b"first\n"
    machine.wait_until(lambda: machine.run("sh", "-c", keepers).stdout.strip() == b"0", what="the end of the keepers")
    machine.run("rm", "one", "two", "three", user="alice")


def let_go(machine: Machine, gates: list[str]) -> None:
    for gate in gates:
        machine.run("sh", "-c", f"echo > {gate}", user="alice")


@pytest.mark.parametrize("how", ["killed", "restarted", "stopped"])
def test_the_end_is_known_when_the_service_meanwhile_was(machine: Machine, how: str, gates: list[str]) -> None:
    scripts = [GATED.format(gate=gate, end=end) for gate, end in zip(gates, ("exit 42", "kill -KILL $$"), strict=True)]
    jobs = [start(machine, "--", "sh", "-c", script) for script in scripts]
    for job in jobs:
        in_state(machine, job, "running")
    if how == "stopped":
        service(machine, "stop")
        let_go(machine, gates)
        gone = "! systemctl is-active --quiet 'jobsvc-*.scope'"
        machine.wait_until(lambda: machine.run("sh", "-c", gone, check=False).returncode == 0)
        service(machine, "start")
    else:
        service(machine, "kill" if how == "killed" else "restart")
        assert [status(machine, job)["state"] for job in jobs] == ["running"] * 2
        let_go(machine, gates)
    told = [ended(machine, job) for job in jobs]
    assert [(one["result"], one["exit_code"], one["signal"]) for one in told] == [
        ("exit-code", 42, None),
        ("signal", None, 9),
    ]
    assert all(one["started_at"] and one["finished_at"] and one["usage"]["cpu_usage_nsec"] is not None for one in told)


def test_run_and_logs_go_on_across_restarts_and_lose_no_byte(machine: Machine) -> None:
    with machine.popen("jobctl", "run", "--", "sh", "-c", SLOW_COUNT, user="alice", bufsize=0) as run:
        first = line(run)
        with follow(machine, "@") as follower, follow(machine, "@", "-o", "json") as other:
            head = line(follower)
            service(machine, "restart")
            service(machine, "kill")
            service(machine, "restart")
            read, followed = first + run.communicate(timeout=360)[0], head + follower.communicate(timeout=360)[0]
            objects = other.communicate(timeout=360)[0]
    assert (read, run.returncode) == (COUNTED, 17)
    assert (followed, follower.returncode) == (COUNTED, 0)
    assert other.returncode == 0
    assert objects.count(b'"end": true') == 1
    assert jobctl(machine, "logs", "@").stdout == COUNTED


def test_a_job_can_be_stopped_by_the_next_life_of_the_service(machine: Machine) -> None:
    job = start(machine, "--", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo on; while :; do sleep 0.1; done")
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"on\n")
    service(machine, "kill")
    assert jobctl(machine, "stop", job).returncode == 0
    told = status(machine, job)
    assert (told["result"], told["exit_code"]) == ("stopped", 3)
    assert jobctl(machine, "logs", job).stdout == b"on\nbye\n"


def test_time_limits_hold_while_the_service_is_away(machine: Machine) -> None:
    job = start(machine, "--timeout", "6s", "--", "sleep", "60")
    in_state(machine, job, "running")
    service(machine, "stop")
    gone = ("pgrep", "-fx", "sleep 60")
    machine.wait_until(lambda: machine.run(*gone, check=False).returncode == 1)
    told = ended(machine, job)
    assert (told["result"], told["signal"]) == ("timeout", 15)


def submit(first: int, count: int) -> list[str]:
    """Short jobs one by one, across crashes: who gets no answer asks again with the same key."""
    jobs = []
    bus = Bus()  # noqa: F821
    for number in range(first, first + count):
        script = f"echo {number} >> ran; sleep 0.0{number % 7}; exit {number % 200}"
        keys = {"Command": ("as", ["sh", "-c", script]), "RequestId": ("s", f"{first}-{number}-{os.getpid()}")}  # noqa: F821
        for _ in range(100):
            try:
                jobs.append(bus.call("Start", "a{sv}", keys)[0])
                break
            except (Refused, TimeoutError) as error:  # noqa: F821
                if getattr(error, "name", "NoReply") not in ("NoReply", "ServiceUnknown", "Disconnected", "TimedOut"):
                    raise
    return jobs


def exit_codes(jobs: list[str]) -> list[Any]:
    bus = Bus()  # noqa: F821
    told = bus.until_ended(*jobs, timeout=100)
    return [[told[job]["Result"], told[job].get("ExitCode"), told[job]["Run"]] for job in jobs]


@pytest.mark.scaled
def test_no_job_is_lost_or_run_twice_under_random_crashes_of_the_launcher(machine: Machine) -> None:
    (count, crashes), victim = scale.times((40, 4), (400, 40)), "jobsvc-launcher.service"
    chance = random.Random(scale.seed(20261122))
    machine.run("rm", "-f", "ran", user="alice")
    jobs: list[list[str]] = []
    submitters = [
        threading.Thread(target=lambda at=at: jobs.append(inside(machine, submit, at, count // 2, timeout=200)))
        for at in (0, count // 2)
    ]
    for submitter in submitters:
        submitter.start()
    for _ in range(crashes):
        _crash(machine, victim, chance.uniform(0.0, 0.3))
    for submitter in submitters:
        submitter.join()
    ids = [job for some in sorted(jobs, key=lambda some: _number(machine, some[0])) for job in some]
    told = inside(machine, exit_codes, ids, timeout=110)
    wanted = [["success" if number % 200 == 0 else "exit-code", number % 200] for number in range(count)]
    assert [one[:2] for one in told] == wanted
    ran = machine.run("cat", "ran", user="alice").stdout.split()
    assert sorted(map(int, ran)) == list(range(count))


def _number(machine: Machine, job: str) -> int:
    return int(status(machine, job)["command"][2].split()[1])


def _crash(machine: Machine, unit: str, after: float) -> None:
    """SIGKILL after a random while; what follows is up to systemd and to the next call."""
    script = 'sleep "$1"; systemctl kill --kill-whom=main --signal=KILL "$2"'
    machine.run("sh", "-c", script, "sh", f"{after:.3f}", unit, check=False)


def test_restarting_the_launcher_leaves_the_running_jobs_alone(machine: Machine) -> None:
    script = "until [ -e go ]; do sleep 0.1; done; echo done; exit 6"
    jobs = [start(machine, "--", "sh", "-c", script) for _ in range(3)]
    for job in jobs:
        in_state(machine, job, "running")
    systemctl(machine, "restart", "jobsvc-launcher.service")
    assert jobctl(machine, "run", "--", "touch", "go").returncode == 0
    assert [ended(machine, job)["exit_code"] for job in jobs] == [6, 6, 6]
    assert [jobctl(machine, "logs", job).stdout for job in jobs] == [b"done\n"] * 3
    machine.run("rm", "go", user="alice")


def test_a_job_whose_supervisor_was_killed_is_lost_and_nothing_of_it_lives(machine: Machine) -> None:
    job = start(machine, "--", "sh", "-c", "sleep 4321 & exec sleep 4321")
    told = in_state(machine, job, "running")
    parent = machine.run("ps", "-o", "ppid=", "-p", str(told["main_pid"])).stdout.decode().strip()
    machine.run("kill", f"-{signal.SIGKILL.value}", parent)
    told = ended(machine, job)
    assert (told["state"], told["result"], told["exit_code"], told["signal"]) == ("failed", "lost", None, None)
    assert told["reason"]
    assert machine.run("pgrep", "-fx", "sleep 4321", check=False).stdout == b""
    assert jobctl(machine, "run", "--", "sh", "-c", "exit 5").returncode == 5


@pytest.mark.parametrize("paused", [False, True])
def test_a_supervisor_that_hangs_keeps_nothing_alive_that_was_stopped(machine: Machine, paused: bool) -> None:
    job = start(machine, "--stop-timeout", "1s", "--", "sh", "-c", "echo on; exec sleep 4321")
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"on\n")
    if paused:
        assert jobctl(machine, "pause", job).returncode == 0
        in_state(machine, job, "paused")
    parent = machine.run("ps", "-o", "ppid=", "-p", str(status(machine, job)["main_pid"])).stdout.decode().strip()
    machine.run("kill", "-STOP", parent)
    try:
        with machine.popen("jobctl", "stop", job, user="alice") as stopping:
            procs = ("systemctl", "is-active", f"jobsvc-{job}-1.scope")
            machine.wait_until(lambda: machine.run(*procs, check=False).returncode != 0, what="its scope to be empty")
            machine.run("kill", "-CONT", parent)
            assert stopping.wait(timeout=360) == 0
    finally:
        machine.run("kill", "-CONT", parent, check=False)
    told = status(machine, job)
    assert (told["result"], told["signal"]) == ("stopped", signal.SIGTERM.value)
    assert jobctl(machine, "logs", job).stdout == b"on\n"


def test_what_follows_a_lost_run_does_not_meet_it(machine: Machine) -> None:
    """Also where it is deaf: the next run begins when nothing of the last one lives any more."""
    look = "systemctl is-active jobsvc-$JOBSVC_ID-1.scope"
    script = (
        f"trap '' TERM; echo run $JOBSVC_RUN; [ $JOBSVC_RUN = 1 ] || {{ {look}; exit 0; }}; while :; do sleep 1; done"
    )
    retry = ("-p", "Retries=1", "-p", "RetryDelayUSec=0")
    job = start(machine, *retry, "--stop-timeout", "3s", "--", "sh", "-c", script)
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"run 1\n")
    parent = machine.run("ps", "-o", "ppid=", "-p", str(status(machine, job)["main_pid"])).stdout.decode().strip()
    machine.run("kill", f"-{signal.SIGKILL.value}", parent)
    assert ended(machine, job)["run"] == 2
    assert jobctl(machine, "logs", job).stdout == b"run 2\ninactive\n"
    assert status(machine, job, "--run", "1")["result"] == "lost"


def test_installing_the_package_again_touches_no_running_job(machine: Machine, deb: Path) -> None:
    with machine.popen("jobctl", "run", "--", "sh", "-c", SLOW_COUNT, user="alice", bufsize=0) as run:
        first = line(run)
        pid = status(machine)["main_pid"]
        machine.write("/var/tmp/again.deb", deb.read_bytes())
        machine.run("dpkg", "-i", "/var/tmp/again.deb", timeout=120)
        out, _ = run.communicate(timeout=360)
    assert (first + out, run.returncode) == (COUNTED, 17)
    assert pid
    assert jobctl(machine, "logs", "@").stdout == COUNTED


def test_what_one_user_writes_in_a_day_is_bounded_while_it_is_written(machine: Machine) -> None:
    """Also of many jobs at once, also across a restart; nobody else's output is touched."""
    config = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"
    for user in ("erin", "frank"):  # who have written nothing yet
        machine.run("useradd", "--create-home", user)
    machine.write(config, "[Manager]\nMaxOutputPerUser=20M\n")
    systemctl(machine, "reload", "jobsvc.service")
    try:
        # Not so fast that much is on its way while the service is kept from reading of it.
        flood = "for i in $(seq 20); do yes | head -c 1M; sleep 0.2; done"
        script = f"until [ -e go ]; do sleep 0.05; done; {flood}"
        jobs = [start(machine, "--", "sh", "-c", script, user="erin") for _ in range(8)]
        for job in jobs:
            machine.wait_until(lambda job=job: status(machine, job, user="erin")["state"] == "running")
        machine.run("touch", "go", user="erin")
        told = [ended(machine, job, user="erin", timeout=120) for job in jobs]
        wrote, missing = (sum(one["output"][name] for one in told) for name in ("stdout_bytes", "missing_bytes"))
        assert wrote == 8 * 20 * 2**20
        assert 20 * 2**20 <= wrote - missing <= 20 * 2**20 + 8 * 5 * 2**20  # what is on its way meanwhile
        cut = [one for one in told if one["output"]["missing_bytes"]]
        assert len(cut) >= 4
        assert all("MaxOutputPerUser= is reached" in one["reason"] for one in cut)
        done = jobctl(machine, "run", "--", "seq", "200000", user="frank")
        assert (done.returncode, len(done.stdout)) == (0, 1288895), done.stderr
        service(machine, "restart")
        done = jobctl(machine, "run", "--", "echo", "more", user="erin")
        assert done.stdout == b""
        assert status(machine, user="erin")["output"]["missing_bytes"] == 5
    finally:
        machine.run("rm", config)
        systemctl(machine, "reload", "jobsvc.service")
        for user in ("erin", "frank"):
            machine.run("userdel", "--remove", "--force", user)
