"""Every byte a job wrote is read back, by every way there is to read it."""

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from story import ended, follow, inside, jobctl, line, start, status

from machine import scale
from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

PLACE = "/var/tmp/story"
# What two files are copied from, to standard output and to standard error.
TEXTS: dict[str, tuple[bytes, bytes]] = {
    "no-newline-3MB": (bytes(32 + i % 95 for i in range(3_000_000)), b""),
    "nul": (b"\0\0a\0b\n\0", b"\0"),
    "empty-lines": (b"\n\n\na\n\n", b"\n"),
    "blanks": (b"  a  \n\t \n b\t", b" "),
    "carriage-returns": (b"a\r\nb\r c\r", b"\r\n\r"),
    "no-final-newline": (b"a\nb", b"c"),
    "every-byte": (bytes(range(256)) * 300, bytes(range(255, -1, -1)) * 300),
    "like-the-journal": (b"MESSAGE=a\n\nJOBSVC_END=1\n\n", b"__CURSOR=x\nMESSAGE\n\2\0\0\0\0\0\0\0"),
    "only-stderr": (b"", b"e\n"),
    "nothing": (b"", b""),
    "big-on-both": (b"o" * 200_000 + b"\n", b"e" * 70_000),
}
LINES = b"".join(b"%d\n" % i for i in range(1, 300_001))
SLOW_JOURNALD = "strace -qq -f -p {pid} -o /dev/null -e inject=recvmsg:delay_exit=300000"


def digest(data: bytes) -> list[Any]:
    return [len(data), hashlib.sha256(data).hexdigest()]


def every_way(job: str) -> dict[str, list[Any]]:
    """What each way over the bus gives of a job: per stream, as length and digest."""
    import hashlib

    def told(out: bytes, err: bytes) -> list[Any]:
        return [[len(data), hashlib.sha256(data).hexdigest()] for data in (out, err)]

    bus = Bus()  # noqa: F821
    ways = {}
    for way, read in (("Logs", bus.logs), ("ReadLogs", bus.read_logs)):
        whole = read(job)
        raw = [read(job, Stream=("s", stream)) for stream in ("stdout", "stderr")]
        assert len(whole) == len(raw[0]) + len(raw[1])
        ways[f"{way} raw"] = told(*raw)
        for form, parse in (("json", json_output), ("export", export_output)):  # noqa: F821
            streams, trailer = parse(read(job, Format=("s", form)))
            ways[f"{way} {form}"] = told(streams["stdout"], streams["stderr"])
            assert not trailer.get("missing")
            assert "JOBSVC_MISSING" not in trailer
    return ways


@pytest.mark.parametrize("text", TEXTS)
def test_is_read_back_identical_by_every_way(machine: Machine, text: str) -> None:
    out, err = TEXTS[text]
    machine.write(f"{PLACE}/out", out)
    machine.write(f"{PLACE}/err", err)
    run = jobctl(machine, "run", "--", "sh", "-c", f"cat {PLACE}/out; cat {PLACE}/err >&2")
    assert run.returncode == 0
    assert_is(run.stdout, run.stderr, out, err)
    logs = jobctl(machine, "logs", "@")
    assert logs.returncode == 0
    assert_is(logs.stdout, logs.stderr, out, err)
    assert_every_way(machine, status(machine), out, err)


def test_300000_lines_written_one_by_one_are_read_back_identical(machine: Machine) -> None:
    run = jobctl(machine, "run", "--", "sh", "-c", "stdbuf -oL seq 300000; stdbuf -oL seq 300000 >&2", timeout=120)
    assert run.returncode == 0
    assert_is(run.stdout, run.stderr, LINES, LINES)
    assert_every_way(machine, status(machine), LINES, LINES)
    told = status(machine)
    assert told["output"] == {"stdout_bytes": len(LINES), "stderr_bytes": len(LINES), "missing_bytes": 0}


def test_streams_written_in_turn_are_whole_and_apart(machine: Machine) -> None:
    script = "for i in $(seq 2000); do echo o$i; echo e$i >&2; done"
    run = jobctl(machine, "run", "--", "sh", "-c", script)
    out, err = (b"".join(b"%c%d\n" % (word, i) for i in range(1, 2001)) for word in b"oe")
    assert_is(run.stdout, run.stderr, out, err)
    assert_every_way(machine, status(machine), out, err)


def test_raw_output_keeps_the_order_in_which_streams_were_written(machine: Machine) -> None:
    def both(job: str) -> str:
        return Bus().logs(job).decode()  # noqa: F821

    # Each line is seen by a follower before the next one is written.
    words = "for i in 1 2 3 4 5; do echo o$i; read x <&3; echo e$i >&2; read x <&3; done"
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    job = start(machine, "--", "sh", "-c", f"exec 3<>gate; {words}")
    merged = ("sh", "-c", f"exec jobctl logs -f {job} 2>&1")
    with machine.popen(*merged, user="alice", bufsize=0) as follower:
        assert follower.stdout is not None
        for i in range(1, 6):
            for word in "oe":
                assert line(follower) == f"{word}{i}\n".encode()
                machine.run("sh", "-c", "echo > gate", user="alice")
        assert follower.stdout.read() == b""
    assert inside(machine, both, job) == "".join(f"o{i}\ne{i}\n" for i in range(1, 6))
    machine.run("rm", "gate", user="alice")


@pytest.mark.scaled
def test_forty_jobs_in_a_row_lose_nothing_and_their_owner_reads_them(machine: Machine) -> None:
    assert_each_is_readable(machine, scale.times(20, 200))


@contextlib.contextmanager
def slow_journal(machine: Machine) -> Iterator[None]:
    """Each datagram takes the journal 0.3 s."""
    pid = machine.run("systemctl", "show", "-P", "MainPID", "systemd-journald@jobsvc.service").stdout.decode().strip()
    with machine.popen(*shlex.split(SLOW_JOURNALD.format(pid=pid))) as strace:
        traced = ("grep", "-q", "^TracerPid:.*[1-9]", f"/proc/{pid}/status")
        try:
            machine.wait_until(lambda: machine.run(*traced, check=False).returncode == 0)
            yield
        finally:
            machine.run("pkill", "-x", "strace")
            strace.wait()


@pytest.mark.scaled
def test_forty_jobs_in_a_row_lose_nothing_when_the_journal_is_slow(machine: Machine) -> None:
    with slow_journal(machine):
        assert_each_is_readable(machine, scale.times(8, 40))


def test_output_that_is_late_is_waited_for_not_called_lost(machine: Machine) -> None:
    """Twelve at once: the journal is behind for far longer than a supervisor waits for it."""
    script = "seq 12 | xargs -P 12 -I N jobctl run -- echo this is N"
    with slow_journal(machine):
        done = machine.run("sh", "-c", script, user="alice", timeout=180)
    assert sorted(done.stdout.splitlines()) == sorted(b"this is %d" % i for i in range(1, 13))
    assert done.stderr == b""


def test_a_restart_of_the_journal_under_a_writing_job_loses_no_byte(machine: Machine) -> None:
    script = 'i=0; while [ -e going ]; do i=$((i+1)); echo "line $i"; done; echo "end $i"'
    machine.run("touch", "going", user="alice")
    job = start(machine, "--", "sh", "-c", script)
    with follow(machine, job) as follower:
        first = line(follower)
        for _ in range(2):
            machine.run("systemctl", "restart", "systemd-journald@jobsvc.service")
            written = status(machine, job)["output"]["stdout_bytes"]
            machine.wait_until(lambda at=written: status(machine, job)["output"]["stdout_bytes"] > at)
        machine.run("rm", "going", user="alice")
        out, err = follower.communicate(timeout=360)
    told = ended(machine, job)
    *lines, last = (first + out).splitlines()
    count = int(last.removeprefix(b"end "))
    assert lines == [b"line %d" % i for i in range(1, count + 1)]
    assert (err, follower.returncode) == (b"", 0)
    assert told["output"]["missing_bytes"] == 0
    assert_every_way(machine, told, first + out, b"")


def test_the_last_lines_one_stream_and_a_span_of_time_can_be_picked(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    script = "exec 3<>gate; seq 5; echo e >&2; read x <&3; seq 6 10; printf 11"
    job = start(machine, "--", "sh", "-c", script)
    machine.wait_until(lambda: jobctl(machine, "logs", "--stream", "stderr", job).stderr == b"e\n")
    between = machine.run("sh", "-c", "date +%s.%N; echo > gate", user="alice").stdout.decode().strip()
    ended(machine, job)

    def logs(*argv: str) -> tuple[int, list[bytes], bytes]:
        done = jobctl(machine, "logs", *argv, job)
        return done.returncode, done.stdout.split(), done.stderr

    late = [b"%d" % i for i in range(6, 12)]
    early = [b"%d" % i for i in range(1, 6)]
    assert logs("-n", "3", "--stream", "stdout") == (0, [b"9", b"10", b"11"], b"")
    assert logs("-n", "0") == (0, [], b"")
    assert logs("--stream", "stderr") == (0, [], b"e\n")
    assert logs("--stream", "stdout") == (0, early + late, b"")
    assert logs("--since", f"@{between}") == (0, late, b"")
    assert logs("--until", f"@{between}") == (0, early, b"e\n")
    machine.run("rm", "gate", user="alice")


def test_each_run_keeps_its_own_output(machine: Machine) -> None:
    job = start(machine, "--", "sh", "-c", "echo run >> count; wc -l < count; rm -f none")
    machine.wait_until(lambda: status(machine, job)["state"] == "completed")
    assert jobctl(machine, "restart", job).returncode == 0
    machine.wait_until(lambda: (s := status(machine, job))["run"] == 2 and s["state"] == "completed")
    for argv, text in ((("--run", "1"), b"1\n"), (("--run", "2"), b"2\n"), ((), b"2\n")):
        assert jobctl(machine, "logs", *argv, job).stdout == text
    done = jobctl(machine, "logs", "--run", "3", job)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (4, b"", 1)
    machine.run("rm", "count", user="alice")


def assert_is(out: bytes, err: bytes, wanted_out: bytes, wanted_err: bytes) -> None:
    assert [digest(out), digest(err)] == [digest(wanted_out), digest(wanted_err)]


def assert_every_way(machine: Machine, told: dict[str, Any], out: bytes, err: bytes) -> None:
    wanted = [digest(out), digest(err)]
    ways = inside(machine, every_way, told["id"], timeout=120)
    assert ways == dict.fromkeys(ways, wanted)


def assert_each_is_readable(machine: Machine, count: int) -> None:
    """Jobs one after the other; what each wrote comes back at once, and is there for stock tools."""
    script = f"for i in $(seq {count}); do jobctl run -- echo this is $i || exit; done"
    wanted = [b"this is %d" % i for i in range(1, count + 1)]
    assert machine.run("sh", "-c", script, user="alice", timeout=180).stdout.splitlines() == wanted
    jobs = json.loads(jobctl(machine, "-o", "json", "list", "--limit", str(count)).stdout)
    for job, text in zip(reversed(jobs), wanted, strict=True):
        asked = ("journalctl", "--namespace=jobsvc", "-q", "-o", "cat", "-u", job["unit"])
        assert machine.run(*asked, user="alice").stdout.splitlines()[0] == text
