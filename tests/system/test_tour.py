"""What somebody does first with jobctl, without any rights, right after apt install."""

import re

import pytest
from story import ended, follow, in_state, jobctl, line, start, status

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

ARCH = "tar cf - /usr/share | xz -T1 > arch.tar.xz; read _ <gate; ls -l arch.tar.xz"
SLOW = 'exec 3<>gate; for word in one two three; do echo "$word"; read -r _ <&3; done'


def test_run_keeps_the_streams_apart_and_exits_as_the_job(machine: Machine) -> None:
    done = jobctl(machine, "run", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_a_job_is_started_followed_twice_stopped_restarted_and_shown(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    job = start(machine, "--name", "arch", "-E", "XZ_OPT=-0", "--", "sh", "-c", ARCH)
    assert re.fullmatch("[0-9a-f]{16}", job)
    in_state(machine, "arch", "running")
    followers = [follow(machine, "arch") for _ in range(2)]

    for follower in followers:
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith(b"tar: Removing leading `/'")

    assert jobctl(machine, "stop", "arch").returncode == 0
    first, second = (follower.communicate(timeout=180) for follower in followers)
    assert first == second  # what it wrote until it was stopped
    assert first[0] == b""
    assert [follower.returncode for follower in followers] == [0, 0]
    stopped = status(machine, "arch")
    assert (stopped["state"], stopped["result"], stopped["run"]) == ("stopped", "stopped", 1)
    assert jobctl(machine, "status", "arch").returncode == 3

    assert jobctl(machine, "restart", "arch").returncode == 0
    running = in_state(machine, "arch", "running")
    assert (running["run"], running["id"], running["unit"]) == (2, job, f"jobsvc-{job}-2.scope")
    assert (running["user"], running["owner"], running["name"]) == ("alice", "alice", "arch")
    shown = jobctl(machine, "status", "arch")
    assert shown.returncode == 0
    assert b"running" in shown.stdout
    assert running["unit"].encode() in shown.stdout

    machine.run("sh", "-c", "echo >gate", user="alice", timeout=300)
    assert ended(machine, "arch")["result"] == "success"
    written = jobctl(machine, "logs", "arch")
    assert re.fullmatch(rb"-rw-\S+ 1 alice alice +\d{5,} .* arch\.tar\.xz\n", written.stdout)
    kept = _journal(machine, running["unit"]).splitlines()
    assert [text for text in kept if text] == (written.stderr + written.stdout).splitlines()
    machine.run("xz", "--test", "arch.tar.xz", user="alice")
    assert b"arch" in jobctl(machine, "list").stdout


def test_two_followers_see_each_line_while_the_job_still_runs(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    job = start(machine, "--", "sh", "-c", SLOW)
    followers = [follow(machine, job) for _ in range(2)]
    for word in (b"one\n", b"two\n", b"three\n"):
        assert [line(follower) for follower in followers] == [word, word]
        assert status(machine, job)["state"] == "running"
        machine.run("sh", "-c", "echo > gate", user="alice")
    assert [follower.communicate(timeout=180) for follower in followers] == [(b"", b"")] * 2
    assert ended(machine, job)["result"] == "success"
    machine.run("rm", "gate", user="alice")


def test_the_owner_reads_the_output_with_plain_journalctl(machine: Machine) -> None:
    assert jobctl(machine, "run", "--", "sh", "-c", "echo out; echo err >&2").returncode == 0
    assert set(_journal(machine, status(machine)["unit"]).split()) == {b"out", b"err"}


def test_the_last_job_can_be_named_in_every_way(machine: Machine) -> None:
    job = start(machine, "--name", "a-name-of-its-own", "--", "true")
    for word in (job, job[:12], "a-name-of-its-own", "@"):
        assert ended(machine, word)["id"] == job
    start(machine, "--", "true")
    assert ended(machine, "@~1")["id"] == job


def test_a_job_finds_itself_where_and_as_who_its_owner_was(machine: Machine) -> None:
    script = 'pwd; id -un; echo "$HOME $LOGNAME $WORD"; ls /proc/self/fd | wc -w; cat'
    argv = ("-d", "/usr/share", "-E", "WORD=a b", "--", "sh", "-c", script)
    done = jobctl(machine, "run", *argv, input=b"not for the job")
    told = done.stdout.decode().splitlines()
    assert told[:3] == ["/usr/share", "alice", "/home/alice alice a b"]
    assert told[3:] == ["4"]  # three descriptors of the job's, one of ls


def test_standard_input_is_passed_on_when_asked_for(machine: Machine) -> None:
    data = bytes(range(256)) * 1000
    done = jobctl(machine, "run", "-i", "--", "cat", input=data)
    assert (done.returncode, done.stdout == data) == (0, True)


def _journal(machine: Machine, unit: str) -> bytes:
    asked = ("journalctl", "--namespace=jobsvc", "-q", "-o", "cat", "-u", unit)
    return machine.run(*asked, user="alice").stdout
