"""Who may know of, read and manage whose jobs."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from story import code, ended, inside, jobctl, start, status

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

SECRET = "s3cr3t-w0rd"


@pytest.fixture
def secret(machine: Machine) -> Iterator[str]:
    """A running job of alice's whose name, command line and output are nobody else's business."""
    script = f"echo {SECRET}; exec sleep 600"
    job = start(machine, "--name", SECRET, "-E", f"WORD={SECRET}", "--", "sh", "-c", script)
    machine.wait_until(lambda: SECRET.encode() in jobctl(machine, "logs", job).stdout)
    yield job
    machine.run("jobctl", "kill", "-s", "KILL", job)
    ended(machine, job)


def test_another_user_sees_nothing_with_jobctl(machine: Machine, secret: str) -> None:
    for argv in (["list"], ["-o", "json", "list", "--limit", "0"], ["status"], ["list", "--user", "alice"]):
        done = jobctl(machine, *argv, user="bob")
        assert done.returncode == 0
        assert secret.encode() not in done.stdout
        assert SECRET.encode() not in done.stdout
    missing = "0123456789abcdef"
    for command in (["status"], ["logs"], ["stop"], ["restart"], ["remove"], ["kill"], ["wait"], ["logs", "-f"]):
        done, none = (jobctl(machine, *command, job, user="bob") for job in (secret, missing))
        assert (done.returncode, done.stdout) == (4, b"")
        assert done.stderr.replace(secret.encode(), missing.encode()) == none.stderr  # no oracle
    for word in (SECRET, secret[:12]):
        assert jobctl(machine, "status", word, user="bob").returncode == 4
    assert jobctl(machine, "stop", "--all", user="bob").returncode == 0
    assert status(machine, secret)["state"] == "running"


def test_another_user_sees_nothing_on_the_bus(machine: Machine, secret: str) -> None:
    def look(job: str) -> list[Any]:
        bus = Bus()  # noqa: F821
        place, properties = f"/org/jobsvc1/job/{job}", "org.freedesktop.DBus.Properties"
        told = [
            bus.refused("Status", "sa{sv}", job, {}),
            bus.refused("Logs", "sa{sv}", job, {}),
            bus.refused("ReadLogs", "sa{sv}", job, {}),
            bus.refused("Stop", "sa{sv}", job, {}),
            bus.refused("Restart", "sa{sv}", job, {}),
            bus.refused("Remove", "sa{sv}", job, {}),
            bus.refused("Kill", "ssia{sv}", job, "all", 9, {}),
            bus.refused("GetAll", "s", "org.jobsvc1.Job", path=place, of=properties),
            bus.refused("GetAll", "s", "", path=place, of=properties),
            bus.refused("Get", "ss", "org.jobsvc1.Job", "Command", path=place, of=properties),
            bus.refused("Introspect", path=place, of="org.freedesktop.DBus.Introspectable"),
        ]
        many = [bus.call(f"{member}Many", "asa{sv}", [job], {})[0] for member in ("Stop", "Restart", "Remove")]
        told += [[name.rpartition(".")[2], text] for _, name, text in many]
        jobs, _ = bus.call("List", "a{sv}", {"Limit": ("u", 500)})
        tree = bus.call("Introspect", path="/org/jobsvc1/job", of="org.freedesktop.DBus.Introspectable")
        return [told, repr(jobs) + tree + repr(bus.call("Count", "a{sv}", {"Name": ("s", "s3cr3t*")}))]

    told, seen = inside(machine, look, secret, user="bob")
    assert {name for name, _ in told} == {"NoSuchJob"}
    assert secret not in seen
    assert SECRET not in seen
    assert seen.endswith("{}")


def test_signals_reach_the_owner_and_nobody_else(machine: Machine) -> None:
    def listen() -> list[str]:
        bus = Bus()  # noqa: F821
        bus.watch()
        bus.watch(sender="org.jobsvc1")
        bus.call("Subscribe")
        print("ready", file=sys.stderr, flush=True)  # noqa: F821
        own = bus.start("true")
        sys.stdin.read()  # noqa: F821
        bus.call("Ping", of="org.freedesktop.DBus.Peer")
        theirs = bus.owner()  # systemd tells everybody of every unit, and so of its name
        members = [str(signal.header.fields.get(3)) for signal in bus.signals]
        bodies = [signal.body for signal in bus.signals if signal.header.fields.get(7) == theirs]
        return [own, " ".join(members), repr(bodies), repr([signal.body for signal in bus.signals])]

    told = _listening(machine, listen, "bob", "alice")
    own, members, bodies, everything = told
    assert own in bodies
    assert {"JobAdded", "JobChanged", "PropertiesChanged"} <= set(members.split())
    assert status(machine)["id"] not in bodies
    assert SECRET not in everything


def _listening(machine: Machine, function: Callable[[], Any], listener: str, actor: str) -> Any:
    """Run the function as one user; when it is ready, another one runs a job; then its input ends."""
    argv = ("timeout", "60", "python3", "-B", "-c", code(function))
    with machine.popen(*argv, user=listener, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        assert jobctl(machine, "run", "--name", SECRET, "--", "echo", SECRET, user=actor).returncode == 0
        out, err = process.communicate()
    assert err == b""
    return json.loads(out)


def test_a_viewer_sees_and_reads_everything_and_changes_nothing(machine: Machine, secret: str) -> None:
    assert SECRET.encode() in jobctl(machine, "list", user="carol").stdout
    assert status(machine, secret, user="carol")["command"][2].startswith(f"echo {SECRET}")
    assert jobctl(machine, "logs", secret, user="carol").stdout == f"{SECRET}\n".encode()
    for command in (["stop"], ["restart"], ["kill"], ["remove"]):
        done = jobctl(machine, *command, secret, user="carol")
        assert (done.returncode, done.stderr.count(b"\n")) == (5, 1), done
    told = _listening(machine, overheard, "carol", "alice")
    assert status(machine)["id"] in told
    assert status(machine, secret)["state"] == "running"
    assert status(machine, secret)["run"] == 1


def overheard() -> str:
    bus = Bus()  # noqa: F821
    bus.call("Subscribe")
    print("ready", file=sys.stderr, flush=True)  # noqa: F821
    sys.stdin.read()  # noqa: F821
    bus.call("Ping", of="org.freedesktop.DBus.Peer")
    return repr([signal.body for signal in bus.signals])
