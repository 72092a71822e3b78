"""The journal of the jobs killed, full, or limited: every byte that can be had, and a name for the rest."""

import base64
import contextlib
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from story import ended, in_state, inside, jobctl, service, start, status, systemctl

from machine import scale
from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

JOURNALD = "systemd-journald@jobsvc.service"
DROP_IN = "/etc/systemd/journald@jobsvc.conf.d/90-story.conf"


def lines(count: int) -> bytes:
    return b"".join(b"%d\n" % i for i in range(1, count + 1))


def read(machine: Machine, job: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The chunks and what is missing, once nothing of that is only late: a journal in trouble takes its time."""

    def settled() -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
        done = jobctl(machine, "logs", "-o", "json", job)
        *chunks, trailer = [json.loads(line) for line in done.stdout.splitlines()]
        return (chunks, trailer["missing"]) if all(gap["why"] == "lost" for gap in trailer["missing"]) else None

    found: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    found = machine.wait_until(settled, timeout=120, what="the journal to take in all it ever will")
    return found


def had_or_named(machine: Machine, job: str, stdout: bytes, stderr: bytes = b"") -> int:
    """What is had is right, what is not is named, told by the exit code and counted; how many bytes that are."""
    chunks, missing = read(machine, job)
    lost = {}
    for stream, wanted in (("stdout", stdout), ("stderr", stderr)):
        seen = [(0, 0)]
        for chunk in (one for one in chunks if one["stream"] == stream):
            data = chunk["data"].encode() if chunk["encoding"] == "utf-8" else base64.b64decode(chunk["data"])
            at = chunk["offset"]
            assert data == wanted[at : at + len(data)]
            seen.append((at, at + len(data)))
        gaps = [(gap["from"], gap["to"]) for gap in missing if gap["stream"] == stream]
        seen = sorted(seen + gaps)
        assert [b for _, b in seen[:-1]] == [a for a, _ in seen[1:]], missing
        assert seen[-1][1] == len(wanted)
        lost[stream] = sum(end - begin for begin, end in gaps)
    plain = jobctl(machine, "logs", job)
    whole = sum(lost.values())
    assert len(plain.stdout) == len(stdout) - lost["stdout"]
    assert plain.returncode == (1 if whole else 0)
    assert whole or plain.stderr == stderr
    assert (b"missing" in plain.stderr) == bool(whole)
    told = status(machine, job)["output"]
    assert (told["stdout_bytes"], told["stderr_bytes"], told["missing_bytes"]) == (len(stdout), len(stderr), whole)
    return whole


# In the order of time on both streams, a line at once, until the file is gone.
WRITER = """\
import os, sys, time
count = 0
while os.path.exists("going") or count % 10:
    count += 1
    os.write(1, b"out %d\\n" % count)
    os.write(2, b"err %d\\n" % count)
    time.sleep(float(sys.argv[1]))
sys.exit(7)
"""


def wrote(told: dict[str, Any]) -> tuple[bytes, bytes]:
    """What a writer has written: whole lines, as many as make up what its status tells."""
    count, size = 0, 0
    while size < told["output"]["stdout_bytes"]:
        count += 1
        size += len(b"out %d\n" % count)
    assert size == told["output"]["stdout_bytes"] == told["output"]["stderr_bytes"]
    return tuple(b"".join(b"%b %d\n" % (word, i) for i in range(1, count + 1)) for word in (b"out", b"err"))  # type: ignore[return-value]


def break_while_they_write(verb: str, times: int, jobs: list[str]) -> int:
    """Kill or restart the journal, each time after every job has written more; how often that was."""
    bus, unit, count = Bus(), "systemd-journald@jobsvc.service", 0  # noqa: F821

    def size(job: str) -> int:
        return bus.status(job)["Output"]["StdoutBytes"][1]

    for _ in range(times):
        before = {job: size(job) for job in jobs}
        deadline = time.monotonic() + 180  # noqa: F821
        while any(size(job) <= before[job] for job in jobs):
            assert time.monotonic() < deadline, "they write no more"  # noqa: F821
        if verb == "kill":
            count += killed(int(systemctl("show", "-P", "MainPID", unit)))  # noqa: F821
            systemctl("start", unit)
        else:
            systemctl(verb, unit)
            count += 1
    return count


@pytest.mark.scaled
@pytest.mark.parametrize(("verb", "often"), [("kill", scale.times(5, 40)), ("restart", scale.times(3, 20))])
def test_a_journal_that_goes_while_jobs_write_loses_nothing_unnamed(
    machine: Machine, tmp_path: Path, verb: str, often: int
) -> None:
    machine.run("touch", "going", user="alice")
    argv = ("python3", "-c", WRITER, "0.001")
    with contextlib.ExitStack() as stack:

        def client(name: str, *words: str) -> "subprocess.Popen[bytes]":
            out, err = (stack.enter_context((tmp_path / f"{name}.{end}").open("wb")) for end in ("out", "err"))
            return stack.enter_context(machine.popen("jobctl", *words, user="alice", stdout=out, stderr=err))

        jobs = [start(machine, "--", *argv) for _ in range(2)]
        run = client("run", "run", "--name", "watched", "--", *argv)
        machine.wait_until(lambda: jobctl(machine, "status", "watched").returncode == 0)
        jobs.append(status(machine, "watched")["id"])
        follower = client("follower", "logs", "-f", jobs[0])
        for job in jobs:
            in_state(machine, job, "running")
        try:
            assert inside(machine, break_while_they_write, verb, often, jobs, user="root", timeout=300) == often
        finally:
            machine.run("rm", "going", user="alice")
        told = [ended(machine, job) for job in jobs]
        lost = [had_or_named(machine, one["id"], *wrote(one)) for one in told]
        assert [one["exit_code"] for one in told] == [7, 7, 7]
        assert run.wait(360) == 7
        assert follower.wait(360) == (1 if lost[0] else 0)
        for name, one, missing in (("run", told[2], lost[2]), ("follower", told[0], lost[0])):
            had = [(tmp_path / f"{name}.{end}").read_bytes() for end in ("out", "err")]
            assert (b"missing" in had[1]) == bool(missing)
            assert missing or had == list(wrote(one)), had[1][-500:]
    assert jobctl(machine, "run", "--", "echo", "fine").stdout == b"fine\n"


@pytest.mark.parametrize("size", [6, 3_000_000])
def test_a_run_whose_output_is_still_being_delivered_is_seen_through_by_the_next_life(
    machine: Machine, size: int
) -> None:
    """Its end is noted; its supervisor is there until the journal has the output, or for five seconds."""
    journald = systemctl(machine, "show", "-P", "MainPID", JOURNALD)
    machine.run("kill", "-STOP", journald)
    try:
        script = f"head -c {size} /dev/zero | tr '\\0' x"
        job = start(machine, "--timeout", "2s", "--", "sh", "-c", script)  # with more than fits it waits to write
        machine.wait_until(lambda: status(machine, job)["finished_at"], what="the end to be noted")
        service(machine, "kill")
        directory = f"/run/jobsvc/runs/{job}-1"
        if size > 6:
            machine.wait_until(lambda: not machine.exists(directory), what="its supervisor to give up")
    finally:
        machine.run("kill", "-CONT", journald)
    machine.wait_until(lambda: not machine.exists(directory), what="its supervisor to be done")
    machine.wait_until(lambda: not machine.exists(f"/var/lib/jobsvc/reports/{job}-1"), what="its report to go")
    wrote, lost = (status(machine, job)["output"][name] for name in ("stdout_bytes", "missing_bytes"))
    assert (wrote, lost) == (6, 0) if size == 6 else 0 < lost < wrote <= size, (wrote, lost)
    assert had_or_named(machine, job, b"x" * wrote) == lost


def test_output_that_was_vacuumed_is_named_and_counted(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    going_on = start(machine, "--", "sh", "-c", "exec 3<>gate; seq 1000; read x <&3; echo after")
    machine.wait_until(lambda: jobctl(machine, "logs", going_on).stdout == lines(1000))
    over = start(machine, "--", "sh", "-c", "seq 1000; seq 500 >&2")
    assert ended(machine, over)["output"]["missing_bytes"] == 0
    machine.run("journalctl", "--namespace=jobsvc", "--sync")
    machine.run("journalctl", "--namespace=jobsvc", "--rotate", "--vacuum-size=1K")
    gone = jobctl(machine, "logs", over)  # its end is gone as well: for two minutes it might be late
    assert (gone.returncode, gone.stdout) == (1, b"")
    assert b"bytes 0 to %d of stdout are missing" % len(lines(1000)) in gone.stderr
    machine.run("sh", "-c", "echo > gate", user="alice")
    assert ended(machine, going_on)["result"] == "success"
    assert had_or_named(machine, going_on, lines(1000) + b"after\n") == len(lines(1000))
    assert jobctl(machine, "logs", going_on).stdout == b"after\n"


def test_what_an_administrators_rate_limit_drops_is_named(machine: Machine) -> None:
    machine.write(DROP_IN, "[Journal]\nRateLimitIntervalSec=30s\nRateLimitBurst=10\n")
    systemctl(machine, "restart", JOURNALD)
    try:
        job = start(machine, "--", "sh", "-c", "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo $i; sleep 0.002; done")
        assert ended(machine, job)["result"] == "success"
        assert 0 < had_or_named(machine, job, lines(1000)) < len(lines(1000))
    finally:
        machine.run("rm", DROP_IN)
        systemctl(machine, "restart", JOURNALD)


@pytest.mark.one_suite
def test_a_full_journal_directory_loses_nothing_unnamed(machine: Machine) -> None:
    place = machine.run("sh", "-c", "echo /var/log/journal/$(cat /etc/machine-id).jobsvc").stdout.decode().strip()
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    machine.run("mount", "-t", "tmpfs", "-o", "size=24m", "jobsvc-story", place)
    systemctl(machine, "restart", JOURNALD)
    service(machine, "restart")  # its watches are on what is below the mount
    noise = "import random, sys; sys.stdout.buffer.write(random.Random(7).randbytes(30_000_000))"
    try:
        job = start(machine, "--", "sh", "-c", f"exec 3<>gate; seq 1000; read x <&3; exec python3 -c '{noise}'")
        machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == lines(1000))
        machine.run("sh", "-c", f"cat /dev/zero > {place}/fill", check=False)
        machine.run("sh", "-c", "echo > gate", user="alice")
        assert ended(machine, job)["result"] == "success"
        lost = had_or_named(machine, job, lines(1000) + random.Random(7).randbytes(30_000_000))
        elsewhere = machine.run(
            "sh", "-c", f"find /run/log/journal/*.jobsvc -newer {place}/fill -name '*.journal'", check=False
        ).stdout
        assert lost or elsewhere, "30 MB went into what had no room for them"
        machine.run("rm", f"{place}/fill")
        done = jobctl(machine, "run", "--", "echo", "fine")  # journald has its own time to notice that there is room
        assert done.stdout == b"fine\n" or (done.returncode == 125 and b"missing" in done.stderr), done
    finally:
        systemctl(machine, "stop", JOURNALD)
        systemctl(machine, "stop", "jobsvc.service")
        machine.run("umount", place)
        systemctl(machine, "start", JOURNALD, "jobsvc.service")
    assert jobctl(machine, "run", "--", "echo", "fine").stdout == b"fine\n"
