"""The disk under /var/lib/jobsvc full, read-only or damaged: nothing new is taken, what runs is recorded later."""

import contextlib
import json
from collections.abc import Iterator

import pytest
from story import ended, in_state, inside, jobctl, service, start, status, systemctl

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

STATE = "/var/lib/jobsvc"
CONFIG = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"
SOAK = pytest.mark.soak
GATED = "exec 3<>{gate}; echo in; read x <&3; echo out; exit {code}"


@pytest.fixture
def disk(machine: Machine) -> Iterator[Machine]:
    """A disk of its own for the state, small enough to fill."""
    service(machine, "stop")
    machine.run("mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "jobsvc-story", STATE)
    try:
        service(machine, "start")
        yield machine
        machine.run("rm", "-f", f"{STATE}/fill", CONFIG)
        service(machine, "stop")
    finally:
        machine.run("umount", "--lazy", STATE)
    service(machine, "start")


@pytest.mark.parametrize("meanwhile", [pytest.param("", marks=SOAK), "kill", pytest.param("restart", marks=SOAK)])
def test_on_a_full_disk_nothing_new_is_taken_and_what_runs_is_recorded_later(disk: Machine, meanwhile: str) -> None:
    disk.write(CONFIG, "[Manager]\nMaxRunning=4\n")
    service(disk, "restart")
    disk.run("sh", "-c", "rm -f g?; mkfifo g1 g2 g3 g4", user="alice")
    jobs = [start(disk, "--", "sh", "-c", GATED.format(gate=f"g{i}", code=i)) for i in (1, 2, 3, 4)]
    waiting = start(disk, "--", "sh", "-c", "echo waited; exit 9")
    for job in jobs:
        in_state(disk, job, "running")
    disk.run("sh", "-c", f"cat /dev/zero > {STATE}/fill", check=False)
    refused = jobctl(disk, "start", "--", "true")
    assert (refused.returncode, refused.stdout, refused.stderr.count(b"\n")) == (1, b"", 1), refused
    assert b"record" in refused.stderr
    disk.run("sh", "-c", "echo >g1; echo >g2", user="alice")
    for job, code in zip(jobs[:2], (1, 2), strict=True):
        told = ended(disk, job)
        assert (told["result"], told["exit_code"]) == ("exit-code", code)
    in_state(disk, waiting, "queued")  # it is tried now and again
    if meanwhile:
        service(disk, meanwhile)
    disk.run("sh", "-c", "echo >g3; echo >g4", user="alice")
    disk.run("rm", f"{STATE}/fill")
    told = [ended(disk, job) for job in jobs]
    assert [(one["result"], one["exit_code"]) for one in told] == [("exit-code", i) for i in (1, 2, 3, 4)]
    assert ended(disk, waiting)["exit_code"] == 9
    for job in jobs:
        assert jobctl(disk, "logs", job).stdout == b"in\nout\n"
    assert jobctl(disk, "run", "--", "true").returncode == 0
    service(disk, "restart")
    assert [status(disk, job) for job in jobs] == told
    listed = json.loads(jobctl(disk, "-o", "json", "list").stdout)
    assert len(listed) == 6
    assert disk.run("ls", f"{STATE}/reports").stdout == b""


def test_a_state_that_cannot_be_written_is_said_and_waited_for(disk: Machine) -> None:
    job = start(disk, "--", "sh", "-c", "echo kept; exit 5")
    ended(disk, job)
    service(disk, "stop")
    disk.run("mount", "-o", "remount,ro", STATE)
    try:
        disk.run("systemctl", "start", "--no-block", "jobsvc.service")
        asked = ("journalctl", "-q", "-n", "20", "-o", "cat", "-u", "jobsvc.service")
        disk.wait_until(lambda: b"ead-only file system" in disk.run(*asked).stdout)
    finally:
        disk.run("mount", "-o", "remount,rw", STATE)
    # It tries again by itself.
    asked = ("systemctl", "is-active", "jobsvc.service")
    disk.wait_until(lambda: disk.run(*asked, check=False).stdout == b"active\n")
    assert ended(disk, job)["exit_code"] == 5
    assert jobctl(disk, "run", "--", "true").returncode == 0


@contextlib.contextmanager
def turned_read_only(disk: Machine) -> Iterator[None]:
    """As the kernel does it after an error of the disk; mount refuses to while a file is open for writing."""
    pid = systemctl(disk, "show", "-P", "MainPID", "jobsvc.service")
    files = [word for name in ("jobs.db", "jobs.db-wal", "jobs.db-journal") for word in ("-P", f"{STATE}/{name}")]
    inject = "inject=pwrite64,write,ftruncate,fdatasync,fsync:error=EROFS"
    argv = ("strace", "-f", "-p", pid, *files, "-e", inject, "-e", "signal=none", "-o", "/dev/null")
    with disk.popen(*argv, bufsize=0) as strace:
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        disk.run("mount", "-o", "remount,ro,bind", STATE)
        try:
            yield
        finally:
            disk.run("mount", "-o", "remount,rw,bind", STATE)
            disk.run("pkill", "-x", "strace")


def test_on_a_disk_that_turns_read_only_nothing_new_is_taken_and_what_runs_is_recorded_later(disk: Machine) -> None:
    disk.run("sh", "-c", "rm -f g?; mkfifo g1 g2", user="alice")
    jobs = [start(disk, "--", "sh", "-c", GATED.format(gate=f"g{i}", code=i)) for i in (1, 2)]
    for job in jobs:
        in_state(disk, job, "running")
    with turned_read_only(disk):
        refused = jobctl(disk, "start", "--", "true")
        assert (refused.returncode, refused.stdout, refused.stderr.count(b"\n")) == (1, b"", 1), refused
        assert b"cannot be recorded, so it was not accepted: " in refused.stderr
        disk.run("sh", "-c", "echo >g1", user="alice")
        told = ended(disk, jobs[0])
        assert (told["result"], told["exit_code"]) == ("exit-code", 1)
        assert jobctl(disk, "logs", jobs[0]).stdout == b"in\nout\n"
        assert disk.run("ls", f"{STATE}/reports").stdout == b""
        assert disk.exists(f"/run/jobsvc/runs/{jobs[0]}-1/report")
    disk.run("sh", "-c", "echo >g2", user="alice")
    told_all = [ended(disk, job) for job in jobs]
    assert [(one["result"], one["exit_code"]) for one in told_all] == [("exit-code", 1), ("exit-code", 2)]
    assert jobctl(disk, "run", "--", "true").returncode == 0
    service(disk, "kill")
    assert [status(disk, job) for job in jobs] == told_all
    assert [jobctl(disk, "logs", job).stdout for job in jobs] == [b"in\nout\n"] * 2
    assert disk.run("ls", f"{STATE}/reports").stdout == b""


def two_hundred() -> list[str]:
    bus = Bus()  # noqa: F821
    jobs = many(bus, [{"Command": ("as", ["sh", "-c", f"exit {code}"])} for code in range(200)])  # noqa: F821
    return list(bus.until_ended(*jobs))


@pytest.mark.one_suite
@pytest.mark.scaled
@pytest.mark.parametrize("harm", ["pages", "words", "nothing", "removal"])
def test_a_damaged_database_is_set_aside_and_running_jobs_go_on(disk: Machine, harm: str) -> None:
    disk.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    inside(disk, two_hundred)
    service(disk, "restart")
    running = start(disk, "--name", "goes-on", "--", "sh", "-c", GATED.format(gate="gate", code=3))
    in_state(disk, running, "running")
    size = int(disk.run("stat", "-c", "%s", f"{STATE}/jobs.db").stdout)
    ways = {
        "pages": f"dd if=/dev/urandom of={STATE}/jobs.db bs=1 seek={size // 2} count={size // 10} conv=notrunc",
        "words": f"yes nonsense | head -c {size} > {STATE}/jobs.db",
        "nothing": f"truncate -s 0 {STATE}/jobs.db",
        "removal": f"rm {STATE}/jobs.db",
    }
    before = disk.run("sh", "-c", "journalctl -q -n 0 --show-cursor | sed 's/-- cursor: //'").stdout.decode().strip()
    disk.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "jobsvc.service")
    disk.run("sh", "-c", f"rm -f {STATE}/jobs.db-wal; touch {STATE}/jobs.db.suspect; {ways[harm]}")
    disk.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "jobsvc.service")

    unit = ("-q", "-o", "cat", f"--after-cursor={before}", "-u", "jobsvc.service")
    says = {"nothing": "is empty", "removal": "is not there any more"}.get(harm, "is damaged")

    def log() -> str:
        return disk.run("journalctl", *unit).stdout.decode()

    disk.wait_until(lambda: f"{STATE}/jobs.db {says}" in log(), what="a word of it")
    if says == "is damaged":
        disk.wait_until(lambda: f"it is now {STATE}/jobs.db.damaged-" in log(), what="the damaged file to be set aside")
    told = in_state(disk, running, "running")
    assert (told["owner"], told["name"]) == ("alice", "goes-on")
    disk.run("sh", "-c", "echo > gate", user="alice")
    assert ended(disk, running)["exit_code"] == 3
    assert jobctl(disk, "logs", running).stdout == b"in\nout\n"
    assert jobctl(disk, "run", "--", "sh", "-c", "exit 7").returncode == 7
    if harm == "pages":
        kept = json.loads(jobctl(disk, "-o", "json", "list").stdout)
        assert len(kept) > 2
        assert all(job["exit_code"] == int(job["command"][2].split()[-1]) for job in kept if job["name"] == "sh")
