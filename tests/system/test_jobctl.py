"""jobctl where only a machine can tell: terminals, times as systemd reads them, top, maintenance, all of mine."""

import json
import os
import pty
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest
from story import assert_nothing_left, ended, in_state, inside, jobctl, start, status

from machine.nspawn import Machine

TIMES = (
    "now", "today", "yesterday", "tomorrow", "00:00", "18:00", "23:59:59", "2026-12-01", "2026-12-01 08:00",
    "2031-02-28 23:59:59", "26-12-01 08:00", "Tue 2026-12-01", "Tuesday 2026-12-01 08:00:00 UTC",
    "2026-12-01 08:00 UTC", "@0",
    "@1800000000", "@1800000000.5", "+1h", "+1h 30min", "-5min", "5min ago", "2weeks ago", "1h left", "+90",
    "2026-12-01 08:00 Europe/Berlin", "2026-07-01 08:00 America/New_York",
)  # fmt: skip
REFUSED = (
    "",
    "noon",
    "25:00",
    "10:60",
    "2026-13-01",
    "Mon 2026-12-01",
    "@x",
    "+",
    "+1parsec",
    "tomorrow 8",
)


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    yield
    jobctl(machine, "stop", "--all")
    assert_nothing_left(machine)


def compare(texts: list[str], zone: str) -> list[Any]:
    """What systemd makes of each text, and we before and after it: seconds since 1970, None for nonsense."""
    import os
    import subprocess
    import time

    from jobsvc.moment import parse_time

    os.environ["TZ"] = zone
    time.tzset()

    def ours(text: str) -> float | None:
        try:
            return parse_time(text, time.time_ns() // 1000) / 1e6
        except ValueError:
            return None

    found = []
    for text in texts:
        before = ours(text)
        done = subprocess.run(["systemd-analyze", "timestamp", "--", text], capture_output=True, text=True)
        stamps = [line.split("@")[1] for line in done.stdout.splitlines() if "UNIX seconds: @" in line]
        found.append([text, before, float(stamps[0]) if stamps else None, ours(text)])
    return found


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
def test_times_are_those_of_systemd(machine: Machine, zone: str) -> None:
    for text, before, theirs, after in inside(machine, compare, [*TIMES, *REFUSED], zone):
        if text in REFUSED:
            assert (text, before, theirs) == (text, None, None)
        elif theirs is not None:  # an older systemd, or one without zones, knows fewer
            assert before - 0.001 <= theirs <= after + 0.001, text


class Screen:
    """A terminal of ours with jobctl on it."""

    def __init__(self, machine: Machine, *argv: str) -> None:
        self.fd, theirs = pty.openpty()
        self.process = machine.popen(
            "jobctl", *argv, user="alice", stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "xterm"},
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def until(self, wanted: bytes, seconds: float = 120) -> bytes:
        seen, deadline = b"", time.monotonic() + seconds
        while wanted not in seen:
            assert select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))[0], seen
            seen += os.read(self.fd, 65536)
        return seen

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def close(self) -> int:
        code = self.process.wait(180)
        os.close(self.fd)
        return code


def test_a_shell_in_a_terminal(machine: Machine) -> None:
    screen = Screen(machine, "run", "-t", "--name", "shell", "--", "sh")
    screen.until(b"$ ")
    screen.type(b"tty; stty size; echo $TERM; trap 'echo caught' INT\r")
    assert b"xterm" in screen.until(b"xterm\r\n")
    screen.type(b"sh -c 'echo be\"\"gun; exec sleep 100'\r")
    screen.until(b"begun\r\n")
    screen.type(b"\x03")
    assert b"caught" in screen.until(b"caught\r\n")
    screen.type(b"exit 7\r")
    screen.until(b"exit 7")
    assert screen.close() == 7
    assert ended(machine, "shell")["exit_code"] == 7


def test_a_terminal_is_left_and_found_again(machine: Machine) -> None:
    screen = Screen(
        machine, "run", "-t", "--name", "again", "--", "sh", "-c", "echo begun; read a; echo got $a; exit 3"
    )
    screen.until(b"begun")
    screen.type(b"\x1d\x1d\x1d")
    screen.until(b"to itself")
    assert screen.close() == 130
    assert status(machine, "again")["state"] == "running"
    screen = Screen(machine, "attach", "again")
    screen.until(b"begun")
    screen.type(b"word\r")
    assert b"got word" in screen.until(b"got word\r\n")
    assert screen.close() == 3


def test_a_retry_is_typed_into_as_well(machine: Machine) -> None:
    script = "echo word please; read a; test $a = right"
    screen = Screen(machine, "run", "-t", "--retries", "1", "--retry-delay", "0", "--", "sh", "-c", script)
    screen.until(b"please")
    screen.type(b"wrong\r")
    if b"please" not in screen.until(b"follows").partition(b"follows")[2]:
        screen.until(b"please")
    screen.type(b"right\r")
    assert screen.close() == 0


def test_a_pipe_is_typed_into_a_terminal(machine: Machine) -> None:
    done = jobctl(machine, "run", "-t", "--", "sh", "-c", "read a; echo got $a; test -t 0", input=b"word\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"got word" in done.stdout


def test_top_shows_what_runs(machine: Machine) -> None:
    start(machine, "--name", "busy", "--", "sh", "-c", "while :; do :; done")
    in_state(machine, "busy", "running")
    shown = jobctl(machine, "top", "-n", "2", "-d", "0.5").stdout.decode()
    assert shown.count("busy") == 2
    screen = Screen(machine, "top")
    screen.until(b"busy")
    screen.type(b"q")
    assert screen.close() == 0


def test_a_list_tells_what_a_job_uses_and_has_written_while_it_runs(machine: Machine) -> None:
    job = start(machine, "--name", "writer", "--", "sh", "-c", "printf 12345; printf 12 >&2; exec sleep 600")

    def listed() -> Any:
        (told,) = json.loads(jobctl(machine, "list", "-o", "json", "--name", "writer", "--state", "running").stdout)
        return told

    in_state(machine, job, "running")
    wanted = {"stdout_bytes": 5, "stderr_bytes": 2, "missing_bytes": 0}
    machine.wait_until(lambda: listed()["output"] == wanted, what="its output to be counted")
    assert listed()["usage"]["source"] == "cgroup"
    jobctl(machine, "stop", job)


def test_all_means_mine_and_gives_an_answer_each(machine: Machine) -> None:
    mine = [start(machine, "--name", "mine", "--", "sleep", "600") for _ in range(3)]
    theirs = start(machine, "--name", "theirs", "--", "sleep", "600", user="bob")
    for job in (*mine, theirs):
        in_state(machine, job, "running", user="root")
    done = jobctl(machine, "pause", "--all")
    assert sorted(done.stdout.decode().split()[::2]) == sorted(mine)
    assert [status(machine, job)["state"] for job in mine] == ["paused"] * 3
    assert status(machine, theirs, user="bob")["state"] == "running"
    assert jobctl(machine, "resume", "--name", "mine").stdout.count(b"resumed") == 3
    done = jobctl(machine, "--no-ask-password", "stop", "--name", "theirs", "--user", "bob")
    assert (done.returncode, done.stdout) == (0, b"")  # nothing alice could see
    done = jobctl(machine, "kill", "-s", "KILL", *mine, theirs)
    assert (done.returncode, done.stdout.count(b"signalled")) == (1, 3)
    done = jobctl(machine, "wait", *mine)
    assert done.returncode == 1
    assert jobctl(machine, "stop", "--user", "bob", "--all", user="root").stdout.decode() == f"{theirs} stopped\n"
    assert jobctl(machine, "remove", "--name", "mine", "--older-than", "1h").stdout == b""
    assert jobctl(machine, "remove", "--name", "mine", "--finished").stdout.count(b"removed") == 3


def test_maintenance_is_seen_by_everybody(machine: Machine) -> None:
    assert jobctl(machine, "--no-ask-password", "maintenance", "on").returncode == 5
    job = start(machine, "--", "sleep", "600")
    in_state(machine, job, "running")
    draining = machine.popen("jobctl", "maintenance", "on", "--wait")
    machine.wait_until(lambda: b"is on" in jobctl(machine, "maintenance").stdout, what="maintenance")
    try:
        refused = jobctl(machine, "start", "true")
        assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)
        assert b"in maintenance" in jobctl(machine, "list").stderr
        assert b"in maintenance" in jobctl(machine, "status").stdout
        assert draining.poll() is None
        jobctl(machine, "stop", job)
        assert draining.communicate(timeout=180) == (b"", b"")
        assert draining.returncode == 0
    finally:
        jobctl(machine, "maintenance", "off", user="root")
    assert jobctl(machine, "run", "true").returncode == 0


def test_a_service_that_may_not_come_is_no_service(machine: Machine) -> None:
    machine.run("systemctl", "mask", "--runtime", "--now", "jobsvc.service")
    try:
        done = jobctl(machine, "list")
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (6, b"", 1), done
        assert b"the job service is not available" in done.stderr
        assert jobctl(machine, "run", "true").returncode == 125
    finally:
        machine.run("systemctl", "unmask", "--runtime", "jobsvc.service")
    assert jobctl(machine, "list").returncode == 0


def test_a_script_waits_without_its_file(machine: Machine) -> None:
    text = "#!/usr/bin/python3\n#JOBCTL --label from=file --hold\nimport sys\nprint(sys.argv[1:])\n"
    machine.run("sh", "-c", "cat >script.py", user="alice", input=text.encode())
    done = machine.run("jobctl", "script", "script.py", "a b", "--c", user="alice")
    job = done.stdout.decode().strip()
    machine.run("rm", "script.py", user="alice")
    told = status(machine, job)
    assert (told["name"], told["labels"], told["state"]) == ("script.py", {"from": "file"}, "queued")
    assert "held" in told["queue_reason"]
    jobctl(machine, "release", "--label", "from=file")
    assert ended(machine, job)["result"] == "success"
    assert jobctl(machine, "logs", job).stdout == b"['a b', '--c']\n"
    assert json.loads(jobctl(machine, "-o", "json", "list", "--label", "from=file").stdout)[0]["id"] == job
