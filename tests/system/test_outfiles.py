"""Output to files as well: live, as the user, exactly what the journal has, and only into what is the user's."""

from collections.abc import Iterator

import pytest
from story import assert_nothing_left, ended, jobctl, service, start, status

from machine.nspawn import Machine


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    yield
    assert_nothing_left(machine)
    machine.run("rm", "-rf", "/home/alice/out", "/home/alice/err")


def to(kind: str, path: str, stream: str = "StandardOutput") -> tuple[str, str]:
    return ("-p", f"{stream}={kind}:{path}")


def test_each_line_is_in_the_file_at_once(machine: Machine) -> None:
    machine.write("/home/alice/out", "before\n")
    machine.run("chown", "alice:", "/home/alice/out")
    files = (*to("append", "/home/alice/out"), *to("truncate", "/home/alice/err", "StandardError"))
    job = start(
        machine, *files, "--", "sh", "-c", "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two; echo bad >&2"
    )
    machine.wait_until(lambda: machine.read("/home/alice/out") == b"before\none\n")
    service(machine, "restart")
    machine.run("touch", "/home/alice/go")
    ended(machine, job)
    machine.run("rm", "/home/alice/go")
    assert machine.read("/home/alice/out") == b"before\none\ntwo\n"
    assert machine.read("/home/alice/err") == b"bad\n"
    owner, mode = machine.run("stat", "-c", "%U %a", "/home/alice/err").stdout.split()
    assert (owner, mode in {b"644", b"664"}) == (b"alice", True)  # as PAM's umask has it here
    assert jobctl(machine, "logs", job, "--stream", "stdout").stdout == b"one\ntwo\n"


def test_only_regular_files_that_are_the_users_to_write(machine: Machine) -> None:
    machine.run("ln", "-sfn", "/home/alice/victim", "/home/alice/link")
    machine.run("sh", "-c", "rm -f /home/alice/fifo; mkfifo /home/alice/fifo")
    machine.run("chown", "-h", "alice:", "/home/alice/link", "/home/alice/fifo")
    machine.run("install", "-m", "600", "/dev/null", "/home/alice/roots")
    try:
        for path in ("link", "fifo", "roots", "."):
            done = jobctl(machine, "run", *to("truncate", f"/home/alice/{path}".rstrip("/.")), "--", "echo", "x")
            told = status(machine)
            assert (done.returncode, told["result"], told["exit_code"]) == (126, "start-failed", 126), done
            assert "/home/alice" in told["reason"]
        for path in ("/dev/full", "/dev/tty0", "/root/x", "/etc/shadow"):
            assert jobctl(machine, "run", *to("append", path), "--", "echo", "x").returncode == 126, path
        assert not machine.exists("/home/alice/victim")
    finally:
        machine.run("rm", "-f", "/home/alice/link", "/home/alice/fifo", "/home/alice/roots")
    for bad in ("append:relative", "truncate:/a/../b", "file:/x", "append:"):
        done = jobctl(machine, "run", "-p", f"StandardOutput={bad}", "--", "echo")
        assert done.returncode in (2, 125), bad
        assert b"StandardOutput" in done.stderr


def test_a_file_that_cannot_be_written_any_more_is_told_and_the_journal_has_all(machine: Machine) -> None:
    machine.run("sh", "-c", "mkdir -p /mnt/small && mount -t tmpfs -o size=64k,mode=1777 tmpfs /mnt/small")
    try:
        done = jobctl(machine, "run", *to("append", "/mnt/small/out"), "--", "head", "-c", "100000", "/dev/zero")
        assert (done.returncode, len(done.stdout)) == (0, 100_000)
        told = status(machine)
        assert told["result"] == "success"
        assert "/mnt/small/out: No space left on device after" in told["reason"]
    finally:
        machine.run("umount", "/mnt/small")


def test_both_streams_in_one_file_lose_nothing(machine: Machine) -> None:
    script = "for i in 1 2 3 4 5 6; do echo a line of output $i; sleep 0.02; echo error $i >&2; sleep 0.02; done"
    done = jobctl(machine, "run", "--output", "/home/alice/out", "--error", "/home/alice/out", "--", "sh", "-c", script)
    assert done.returncode == 0, done
    lines = machine.read("/home/alice/out").splitlines()
    assert sorted(lines) == sorted(done.stdout.splitlines() + done.stderr.splitlines())
    assert len(lines) == 12
