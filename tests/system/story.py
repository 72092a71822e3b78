"""What the stories in here are told with: jobctl as somebody, a job's status, our own code in the machine."""

import inspect
import json
import subprocess
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine.host import SLOW
from machine.nspawn import Failed, Guest, Machine

Done = subprocess.CompletedProcess[bytes]

_PROBE = (Path(__file__).parent / "probe.py").read_text()


def jobctl(machine: Guest, *argv: str, user: str = "alice", **options: Any) -> Done:
    """Run jobctl as this user; its exit code is for the caller to judge."""
    return machine.run("jobctl", *argv, user=user, check=False, **options)


def start(machine: Guest, *argv: str, user: str = "alice", **options: Any) -> str:
    """Submit a job and return its id."""
    done = machine.run("jobctl", "start", "-q", *argv, user=user, **options)
    return done.stdout.decode().strip()


def status(machine: Guest, job: str = "@", *argv: str, user: str = "alice") -> dict[str, Any]:
    """All there is to know of a job, as JSON tells it."""
    done = jobctl(machine, "-o", "json", "status", *argv, job, user=user)
    assert done.returncode in {0, 3}, done
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def ended(machine: Guest, job: str = "@", user: str = "alice", **options: Any) -> dict[str, Any]:
    """Wait until a job has ended and return its status."""
    done = jobctl(machine, "wait", job, user=user, **options)
    assert done.returncode in {0, 1}, done
    return status(machine, job, user=user)


def in_state(machine: Guest, job: str, *states: str, user: str = "alice") -> dict[str, Any]:
    """Wait until a job is in one of these states and return its status."""
    told: dict[str, Any] = {}

    def there() -> bool:
        told.update(status(machine, job, user=user))
        return told["state"] in states

    machine.wait_until(there, what=f"{job} to be {' or '.join(states)}, last {told.get('state')}")
    return told


def code(function: Callable[..., Any], *arguments: Any) -> str:
    """A program: probe.py, a function of ours, and its call with these arguments; it prints the result as JSON."""
    source = textwrap.dedent(inspect.getsource(function))
    call = f"json.dump({function.__name__}(*json.loads({json.dumps(arguments)!r})), sys.stdout)"
    return f"{_PROBE}\n{source}\n{call}\n"


def inside(
    machine: Guest,
    function: Callable[..., Any],
    *arguments: Any,
    user: str = "alice",
    timeout: float = 60,
    login: bool = False,
) -> Any:
    """Run a function of ours in the machine as this user, with a session if it is to have logged in."""
    bounded = ("timeout", str(timeout * SLOW), "python3", "-B", "-")  # it ends there too, when late
    sent = code(function, *arguments).encode()
    done = machine.run(*bounded, user=user, timeout=timeout + 10, input=sent, login=login)
    return json.loads(done.stdout)


def until_on(jobs: list[str]) -> None:
    """For inside(): the first thing each of these says is that it is on."""
    bus = Bus()  # noqa: F821
    for job in jobs:
        while not bus.logs(job).startswith(b"on\n"):
            pass


def follow(machine: Machine, job: str, *argv: str, user: str = "alice") -> "subprocess.Popen[bytes]":
    """jobctl logs -f, its standard output unbuffered on our side: readline and communicate may be mixed."""
    return machine.popen("jobctl", "logs", "-f", *argv, job, user=user, bufsize=0)


def line(process: "subprocess.Popen[bytes]") -> bytes:
    """The next line of its standard output."""
    assert process.stdout is not None
    return process.stdout.readline()


def systemctl(machine: Guest, *argv: str) -> str:
    """systemctl as root, and what it says."""
    return machine.run("systemctl", *argv, timeout=120).stdout.decode().strip()


def service_log(machine: Guest) -> str:
    """What our services have said since the last time."""
    asked = ("journalctl", "--cursor-file=/var/tmp/story.seen", "-q", "-o", "cat", "-u", "jobsvc*.service")
    return machine.run(*asked).stdout.decode(errors="replace")


def assert_nothing_left(machine: Guest) -> None:
    """No job, no scope, no run directory, no supervisor; and the service had nothing to be surprised at."""
    look = "ls /run/jobsvc/runs; ls /run/jobsvc/inputs; systemctl list-units --plain --no-legend 'jobsvc-*.scope'"
    # Of the launcher nothing but itself and a spare porter: a supervisor without a run directory is there for nobody.
    look += "; main=$(systemctl show -P MainPID jobsvc-launcher.service)"
    look += "; test $main = 0 || pgrep -P $main -l | sed '0,/jobsvc-porter/ { /jobsvc-porter/d }'"

    def empty() -> bool:
        return machine.run("sh", "-c", look).stdout == b""

    try:
        machine.wait_until(empty, timeout=15, what="the end of all jobs")
    except TimeoutError:
        left = machine.run("sh", "-c", look).stdout.decode()
        _sweep(machine)
        raise AssertionError(f"this was left behind:\n{left}") from None
    log = service_log(machine)
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


def _sweep(machine: Guest) -> None:
    """What one test left must not fail the next."""
    for job in _unfinished(machine):
        machine.run("jobctl", "kill", "-s", "KILL", job, check=False)
        machine.run("jobctl", "stop", job, check=False)


def _unfinished(machine: Guest) -> Sequence[str]:
    done = machine.run("jobctl", "-o", "json", "list", "--state", "queued,starting,running,stopping")
    return [job["id"] for job in json.loads(done.stdout)]


def service(machine: Machine, verb: str) -> None:
    """restart, start, stop; or kill: SIGKILL as in a crash, after which systemd starts it again."""
    # More restarts in ten seconds than systemd allows are our doing, not a fault of the service.
    systemctl(machine, "reset-failed", "jobsvc.service")
    if verb != "kill":
        try:
            systemctl(machine, verb, "jobsvc.service")
        except Failed as error:
            raise AssertionError(f"{error}\n{service_log(machine)[-4000:]}") from None
        return
    before = systemctl(machine, "show", "-P", "MainPID", "jobsvc.service")
    systemctl(machine, "kill", "--kill-whom=main", "--signal=KILL", "jobsvc.service")
    asked = ("show", "-P", "MainPID", "-P", "ActiveState", "jobsvc.service")

    def back() -> bool:
        pid, state = systemctl(machine, *asked).split()
        return state == "active" and pid != before

    machine.wait_until(back, what="jobsvc.service to be back")
