"""A sandbox is around the job that asked for it, and the job is still seen to the end as it is."""

import pytest
from story import ended, in_state, jobctl, start, status

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")


def run(machine: Machine, script: str, *keys: str, user: str = "alice") -> tuple[int, bytes, bytes]:
    options = [word for key in keys for word in ("-p", f"{key}=yes")]
    done = jobctl(machine, "run", *options, "-d", "/", "--", "sh", "-c", script, user=user)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("user", ["alice", "root"])
def test_a_tmp_of_its_own(machine: Machine, user: str) -> None:
    machine.run("touch", "/tmp/everybodys", "/var/tmp/everybodys")
    script = "ls /tmp /var/tmp; echo mine > /tmp/x && cat /tmp/x; id -un"
    assert run(machine, script, "PrivateTmp", user=user) == (0, b"/tmp:\n\n/var/tmp:\nmine\n%b\n" % user.encode(), b"")
    assert not machine.exists("/tmp/x")


@pytest.mark.parametrize("user", ["alice", "root"])
def test_no_network_but_its_own(machine: Machine, user: str) -> None:
    script = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; readlink /proc/self/ns/net"
    code, out, _ = run(machine, script, "PrivateNetwork", user=user)
    assert (code, out.split()[0], len(out.split())) == (0, b"lo", 2)
    assert out.split()[1] != machine.run("readlink", "/proc/self/ns/net").stdout.strip()


@pytest.mark.parametrize("user", ["alice", "root"])
def test_a_root_that_cannot_be_written_to(machine: Machine, user: str) -> None:
    script = "for d in ~ /tmp /var/tmp /run /etc; do touch $d/no 2>/dev/null && echo wrote $d; done"
    script += "; echo x >/dev/null; cat /etc/hostname"
    code, out, _ = run(machine, script, "ReadOnlyRoot", user=user)
    assert (code, out) == (0, machine.read("/etc/hostname"))
    code, out, _ = run(machine, "touch /tmp/yes && ls /tmp; touch ~/no", "ReadOnlyRoot", "PrivateTmp", user=user)
    assert (code, out) == (1, b"yes\n")


def test_no_new_privileges(machine: Machine) -> None:
    for keys in (["NoNewPrivileges"], ["PrivateTmp"]):
        code, out, _ = run(machine, "grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status", *keys)
        assert (code, out.split()) == (0, [b"NoNewPrivs:", b"1", b"CapEff:", b"0" * 16])
    assert run(machine, "grep NoNewPrivs /proc/self/status")[1].split() == [b"NoNewPrivs:", b"0"]


def test_its_end_and_its_signals_are_its_own(machine: Machine) -> None:
    keys = ("-p", "PrivateTmp=yes", "-p", "PrivateNetwork=yes", "-p", "ReadOnlyRoot=yes")
    assert run(machine, "kill -9 $$", "PrivateTmp")[0] == 137
    assert status(machine)["signal"] == 9
    assert run(machine, "exit 137", "PrivateTmp")[0] == 137
    assert (status(machine)["exit_code"], status(machine)["signal"]) == (137, None)
    job = start(machine, *keys, "--", "sh", "-c", "trap 'exit 6' USR1; echo on; while :; do sleep 0.05; done")
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout)
    told = in_state(machine, job, "running")
    processes = machine.run("cat", f"/sys/fs/cgroup{told['control_group']}/cgroup.procs").stdout.split()
    assert str(told["main_pid"]).encode() in processes
    assert len(processes) <= 2  # it and its sleep: nobody of bubblewrap's is left
    jobctl(machine, "kill", "-s", "USR1", job)
    assert ended(machine, job)["exit_code"] == 6


def test_what_cannot_be_is_told(machine: Machine) -> None:
    code, _, error = run(machine, "true", "PrivateTmp")
    assert code == 0, error
    done = jobctl(machine, "run", "-p", "PrivateTmp=yes", "-d", "/tmp/nowhere", "--", "true")
    assert b"/tmp/nowhere" in done.stderr
    machine.run("mv", "/usr/bin/bwrap", "/usr/bin/bwrap.away")
    try:
        code, _, error = run(machine, "true", "PrivateTmp")
        assert (code, error.count(b"\n")) == (125, 1)
        assert b"PrivateTmp needs bubblewrap" in error
        assert run(machine, "true", "NoNewPrivileges")[0] == 0
        machine.write("/usr/bin/bwrap", "#!/bin/sh\necho bwrap: no namespaces today >&2; exit 1\n", mode=0o755)
        code, _, error = run(machine, "true", "PrivateTmp")
        assert b"no namespaces today" in error
        assert status(machine)["result"] == "start-failed"
    finally:
        machine.run("mv", "/usr/bin/bwrap.away", "/usr/bin/bwrap")
