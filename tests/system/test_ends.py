"""How a job ended is told exactly: its exit status, its signal, and who brought it about."""

import json
from typing import Any

import pytest
from story import ended, in_state, inside, jobctl, service, start, status

from machine import scale
from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

CONFIG = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"
# A check tries those that a shell or we ourselves give a meaning to.
CODES = scale.times([0, 1, 2, 100, *range(124, 130), 254, 255], [*range(256)])
HARMLESS = {17, 18, 19, 20, 21, 22, 23, 28}  # CHLD CONT STOP TSTP TTIN TTOU URG WINCH
DEADLY = [number for number in [*range(1, 32), *range(34, 65)] if number not in HARMLESS]


def ends(commands: list[list[str]]) -> list[list[Any]]:
    """Start all of these at once; state, result, exit code and signal of each."""
    bus = Bus()  # noqa: F821
    jobs = many(bus, [{"Command": ("as", command)} for command in commands])  # noqa: F821
    told = bus.until_ended(*jobs, timeout=150)
    return [[told[job].get(key) for key in ("State", "Result", "ExitCode", "Signal")] for job in jobs]


@pytest.mark.scaled
def test_every_exit_status_comes_back_exactly(machine: Machine) -> None:
    told = inside(machine, ends, [["sh", "-c", f"exit {code}"] for code in CODES], timeout=160)
    assert told[0] == ["completed", "success", 0, None]
    assert told[1:] == [["failed", "exit-code", code, None] for code in CODES[1:]]


def test_every_deadly_signal_comes_back_exactly(machine: Machine) -> None:
    commands = [["sh", "-c", f"ulimit -c 0; kill -{number} $$"] for number in DEADLY]
    assert inside(machine, ends, commands, timeout=160) == [["failed", "signal", None, number] for number in DEADLY]


def test_a_core_is_bounded_by_the_users_own_limit_not_by_the_services(machine: Machine) -> None:
    """Whether one is written depends on the machine's core_pattern."""
    limit = ("-p", "LimitCORE=infinity")
    done = jobctl(machine, "run", *limit, "--", "bash", "-c", "ulimit -Hc; ulimit -Sc")
    assert done.stdout == b"unlimited\n" * 2, done
    done = jobctl(machine, "run", *limit, "-d", "/tmp", "--", "sh", "-c", "kill -SEGV $$")
    told = status(machine)
    assert (done.returncode, told["signal"], told["result"] in ("signal", "core-dump")) == (139, 11, True), told
    machine.run("sh", "-c", "rm -f /tmp/core*")


def behind_a_gate(scripts: list[str]) -> list[str]:
    """Start all of these, each to wait for the one gate, and wait until they run."""
    bus = Bus()  # noqa: F821
    jobs = many(bus, [{"Command": ("as", ["sh", "-c", f": <gate; {script}"])} for script in scripts])  # noqa: F821
    bus.call("Subscribe")
    for job in jobs:
        while bus.status(job)["State"] != "running":
            bus.signal("JobChanged", id=job)
    return jobs


def break_while_they_end(how: str, jobs: list[str]) -> int:
    """Open the gate, and until all have ended kill the service, or restart it, again and again; how often."""
    place, unit = "/sys/fs/cgroup/jobsvc.slice/jobsvc-u1000.slice", "jobsvc.service"
    left, times, dead = set(jobs), 0, None
    if how == "stopped":
        systemctl("stop", unit)  # noqa: F821
    gate = os.open("/home/alice/gate", os.O_RDWR)  # noqa: F821
    while left:
        if how == "killed" and (pid := main_pid(unit)) not in (None, dead):  # noqa: F821
            dead, times = pid, times + killed(pid)  # noqa: F821
        elif how == "restarted":
            systemctl("restart", unit)  # noqa: F821
            times += 1
        left = {job for job in left if os.path.exists(f"{place}/jobsvc-{job}-1.scope")}  # noqa: F821
    os.close(gate)  # noqa: F821
    systemctl("start", unit)  # noqa: F821
    return times


def how_they_ended(jobs: list[str]) -> list[list[Any]]:
    told = Bus().until_ended(*jobs, timeout=100)  # noqa: F821
    return [[told[job].get(key) for key in ("State", "Result", "ExitCode", "Signal", "Run")] for job in jobs]


@pytest.mark.scaled
@pytest.mark.parametrize("how", ["killed", "restarted", "stopped"])
def test_every_end_is_known_exactly_when_the_service_meanwhile_was(machine: Machine, how: str) -> None:
    machine.write(CONFIG, "[Manager]\nMaxRunning=400\n")
    service(machine, "restart")
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    codes, signals = CODES, scale.times(DEADLY[::4], DEADLY)
    scripts = [f"exit {code}" for code in codes]
    scripts += [f"ulimit -c 0; kill -{number} $$" for number in signals]
    try:
        jobs = inside(machine, behind_a_gate, scripts, timeout=150)
        times = inside(machine, break_while_they_end, how, jobs, user="root", timeout=150)
        assert (times > 0) == (how != "stopped")
        told = inside(machine, how_they_ended, jobs, timeout=110)
    finally:
        machine.run("rm", CONFIG)
        service(machine, "restart")
    assert told[0] == ["completed", "success", 0, None, 1]
    assert told[1 : len(codes)] == [["failed", "exit-code", code, None, 1] for code in codes[1:]]
    assert told[len(codes) :] == [["failed", "signal", None, number, 1] for number in signals]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 1", 1), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -64 $$", 192)],
)
def test_run_exits_as_the_job_did(machine: Machine, script: str, code: int) -> None:
    assert jobctl(machine, "run", "--", "sh", "-c", script).returncode == code


def test_a_job_beyond_its_time_is_stopped(machine: Machine) -> None:
    done = jobctl(machine, "run", "--timeout", "300ms", "--", "sleep", "60")
    told = status(machine)
    assert (done.returncode, told["result"], told["signal"]) == (124, "timeout", 15)
    assert done.stderr.count(b"\n") == 1
    assert b"timeout" in done.stderr


def test_a_job_that_ends_well_when_its_time_is_over_has_still_timed_out(machine: Machine) -> None:
    script = "trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done"
    done = jobctl(machine, "run", "--timeout", "5s", "--", "sh", "-c", script)
    told = status(machine)
    assert (done.returncode, done.stdout) == (124, b"bye\n")
    assert (told["result"], told["exit_code"], told["signal"]) == ("timeout", 0, None)


def test_a_stopped_job_is_stopped_and_its_real_end_is_told(machine: Machine) -> None:
    job = start(machine, "--", "sh", "-c", "trap 'exit 7' TERM; echo on; while :; do sleep 0.1; done")
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"on\n")
    assert jobctl(machine, "stop", job).returncode == 0
    told = status(machine, job)
    assert (told["state"], told["result"], told["exit_code"]) == ("stopped", "stopped", 7)
    assert "alice" in told["reason"]
    again = jobctl(machine, "stop", job)
    assert (again.returncode, again.stderr.count(b"\n")) == (1, 1)


def test_a_job_deaf_to_term_is_killed_after_the_stop_timeout(machine: Machine) -> None:
    script = "trap '' TERM; echo on; while :; do sleep 0.1; done"
    job = start(machine, "--stop-timeout", "700ms", "--", "sh", "-c", script)
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"on\n")
    assert jobctl(machine, "stop", job).returncode == 0
    told = status(machine, job)
    assert (told["result"], told["exit_code"], told["signal"]) == ("stopped", None, 9)


def test_children_left_behind_are_ended_with_the_job(machine: Machine) -> None:
    script = "setsid sleep 1234 & (trap '' TERM; exec sleep 1234) & echo $!; exit 4"
    done = jobctl(machine, "run", "--stop-timeout", "500ms", "--", "sh", "-c", script)
    assert done.returncode == 4
    assert machine.run("pgrep", "-fx", "sleep 1234", check=False).stdout == b""
    told = status(machine)
    assert (told["result"], told["exit_code"]) == ("exit-code", 4)


def test_a_job_ends_with_its_last_process_if_it_wishes(machine: Machine) -> None:
    script = "(sleep 0.5; echo late) & exit 5"
    done = jobctl(machine, "run", "-p", "ExitType=cgroup", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (5, b"late\n")


def test_kill_reaches_the_main_process_or_all(machine: Machine) -> None:
    script = "trap 'echo usr1' USR1; echo on; while :; do sleep 0.1; done"
    job = start(machine, "--", "sh", "-c", script)
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"on\n")
    assert jobctl(machine, "kill", "-s", "USR1", "--whom", "main", job).returncode == 0
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"on\nusr1\n")
    assert jobctl(machine, "kill", "-s", "KILL", job).returncode == 0
    told = ended(machine, job)
    assert (told["result"], told["signal"]) == ("signal", 9)
    assert jobctl(machine, "kill", job).returncode == 1


def test_interrupting_run_stops_the_job_and_again_kills_it(machine: Machine) -> None:
    polite = "trap 'echo bye; exit 9' TERM; echo on; while :; do sleep 0.1; done"
    deaf = "trap '' TERM; echo on; while :; do sleep 0.1; done"
    for script, times, signal, code in ((polite, 1, None, 9), (deaf, 2, 9, 137)):
        with machine.popen("jobctl", "run", "--", "sh", "-c", script, user="alice", bufsize=0) as run:
            assert run.stdout is not None
            assert run.stderr is not None
            assert run.stdout.readline() == b"on\n"
            for said in (b"stopping", b"killing")[:times]:
                machine.run("pkill", "-INT", "-f", "bin/jobctl run")
                assert said in run.stderr.readline()
            run.wait(180)
        assert (run.returncode, status(machine)["result"]) == (code, "stopped")
        assert status(machine)["signal"] == signal


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["no-such-program"], 127, ["no-such-program", "o such file"]),
        (["/no/such/program"], 127, ["/no/such/program", "o such file"]),
        (["/etc/passwd"], 126, ["/etc/passwd", "ermission"]),
        (["/usr"], 126, ["/usr", "ermission"]),
        (["/var/tmp/story.text"], 126, ["story.text", "ormat"]),
        (["-d", "/no/such/place", "true"], 126, ["/no/such/place", "o such file"]),
        (["-d", "/root", "true"], 126, ["/root", "ermission"]),
        (["-d", "/etc/passwd", "true"], 126, ["/etc/passwd", "ot a directory"]),
        (["--output", "/root/x", "true"], 126, ["/root/x", "ermission"]),
        (["--output", "/dev/null", "true"], 126, ["/dev/null", "regular"]),
    ],
)
def test_a_start_that_fails_says_why_and_exits_as_a_shell(
    machine: Machine, argv: list[str], code: int, words: list[str]
) -> None:
    machine.write("/var/tmp/story.text", "this is no program\n", mode=0o755)
    done = jobctl(machine, "run", *argv)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (code, b"", 1), done.stderr
    told = status(machine)
    assert (told["state"], told["result"], told["exit_code"]) == ("failed", "start-failed", code)
    for word in words:
        assert word.encode() in done.stderr
        assert word in told["reason"]


def test_a_queued_job_can_be_canceled(machine: Machine) -> None:
    machine.write(CONFIG, "[Manager]\nMaxRunning=1\n")
    service(machine, "restart")
    try:
        first = start(machine, "--", "sleep", "60")
        second, third = (start(machine, "--", "true") for _ in range(2))
        in_state(machine, first, "running")
        told = status(machine, second)
        assert (told["state"], bool(told["queue_reason"])) == ("queued", True)
        assert jobctl(machine, "stop", second).returncode == 0
        told = status(machine, second)
        assert (told["state"], told["result"], told["exit_code"]) == ("stopped", "canceled", None)
        assert status(machine, third)["state"] == "queued"
        assert jobctl(machine, "stop", first).returncode == 0
        assert ended(machine, third)["result"] == "success"
    finally:
        machine.run("rm", CONFIG)
        service(machine, "restart")


def test_list_and_wait_tell_the_same_ends(machine: Machine) -> None:
    good, bad = start(machine, "--", "true"), start(machine, "--", "false")
    assert jobctl(machine, "wait", good, bad).returncode == 1
    assert jobctl(machine, "wait", good).returncode == 0
    listed = json.loads(jobctl(machine, "-o", "json", "list", "--limit", "2").stdout)
    assert {job["id"]: job["exit_code"] for job in listed} == {good: 0, bad: 1}
