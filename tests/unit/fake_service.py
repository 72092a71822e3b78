"""org.jobsvc1 played by a script, on a private bus: what clients are tested against, on the real wire."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from jeepney import HeaderFields, MessageFlag, MessageType, new_error, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, Proxy, open_dbus_connection
from jeepney.wrappers import DBusAddress

from jobsvc.chunks import Chunk, Missing
from jobsvc.formats import End, Origin, Trailer, encode, encode_trailer

NAME = "org.jobsvc1"
EMITTER = DBusAddress("/org/jobsvc1", NAME, "org.jobsvc1.Manager")
BOOT = "b" * 32
NOW = 1_767_261_600_000_000  # 2026-01-01 10:00 UTC

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow own="*"/></policy></busconfig>
"""

Handler = Callable[..., tuple[str, tuple[Any, ...]]]


class Refusal(Exception):
    """Answer with this error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = name if "." in name else f"org.jobsvc1.Error.{name}"
        self.text = text


class GoAway(Exception):
    """Leave the bus without an answer, as a service that was killed."""


class Handed:
    """A descriptor that is ours until it is sent."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


@contextmanager
def private_bus(directory: Path) -> Iterator[str]:
    """A dbus-daemon of our own; its address."""
    path = directory / "bus"
    config = directory / "bus.conf"
    config.write_text(CONFIG.format(path=path))
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"],
        stdout=subprocess.PIPE,
    )
    assert daemon.stdout
    daemon.stdout.readline()
    try:
        yield f"unix:path={path}"
    finally:
        daemon.terminate()
        daemon.wait()
        daemon.stdout.close()


def variants(values: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Plain values with the signatures that status keys have."""
    kinds = {"Command": "as", "Labels": "a{ss}", "LimitsNotInForce": "as", "Dependencies": "a(ss)"}
    kinds |= dict.fromkeys(("UID", "OwnerUID", "Run", "MainPID", "Running", "Queued", "Retries", "ArrayIndex"), "u")
    kinds |= dict.fromkeys(("ExitCode", "Signal", "Priority"), "i")
    kinds |= {"MaxRunning": "u", "Maintenance": "b", "Source": "s"}
    found: dict[str, tuple[str, Any]] = {}
    for name, value in list(values.items()):  # the test may add to them meanwhile
        if name in ("Limits", "Usage", "Output"):
            found[name] = ("a{sv}", variants(value))
        elif isinstance(value, bytes):
            found[name] = ("ay", value)
        elif isinstance(value, list) and value and isinstance(value[0], tuple) and name not in kinds:
            found[name] = ("a(st)", value)
        else:
            found[name] = (kinds.get(name) or ("t" if isinstance(value, int) else "s"), value)
    return found


def job(number: int = 1, **facts: Any) -> dict[str, Any]:
    """The status of a job, as the service keeps it."""
    plain = {
        "Id": f"{number:016x}",
        "Name": "arch",
        "Owner": "alice",
        "User": "alice",
        "UID": os.getuid(),
        "OwnerUID": os.getuid(),
        "Command": ["tar", "cf", "-", "/usr"],
        "WorkingDirectory": "/home/alice",
        "State": "running",
        "Run": 1,
        "Unit": f"jobsvc-{number:016x}-1.scope",
        "Slice": "jobsvc-u1000.slice",
        "MainPID": 4711,
        "CreatedTimestamp": NOW - 70_000_000,
        "StartedTimestamp": NOW - 65_000_000,
        "Seq": 7,
        "Labels": {},
        "Limits": {},
        "Usage": {},
        "Output": {},
    }
    plain.update(facts)
    return {name: value for name, value in plain.items() if value is not None}


class FakeService:
    """Owns org.jobsvc1 while it lives. `on` replaces a method; `calls` is what came in."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.jobs: dict[str, dict[str, Any]] = {}
        self.output: list[Chunk] = []
        self.trailer: Trailer | None = Trailer(End(1, "completed", "success", 0))
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.flags: list[int] = []
        self.subscribers: set[str] = set()
        self.on: dict[str, Handler] = {}
        self.spec: dict[str, tuple[str, Any]] = {"Command": ("as", ["tar"])}
        self.maintenance = False
        self.running = 1
        self.held = threading.Event()  # set: followers get their trailer
        self.held.set()
        self._thread: threading.Thread | None = None
        self.enter()

    # Being there

    def enter(self) -> None:
        self.subscribers.clear()
        if self._thread:
            self._thread.join()
        self._stop = os.pipe()
        self._gone = threading.Event()
        self._bus: DBusConnection = open_dbus_connection(self.address, enable_fds=True, auth_timeout=360)
        assert Proxy(message_bus, self._bus).RequestName(NAME) == (1,)
        self._thread = threading.Thread(target=self._serve, name="fake org.jobsvc1")
        self._thread.start()

    def leave(self) -> None:
        os.write(self._stop[1], b"x")
        if self._thread and threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        with self._bus as bus:
            poll = select.poll()
            for fd in (bus.sock.fileno(), self._stop[0]):
                poll.register(fd, select.POLLIN)
            while True:
                ready = [fd for fd, _ in poll.poll()]
                if self._stop[0] in ready:
                    break
                try:
                    self._answer(bus.receive(timeout=0))
                except TimeoutError:
                    continue
                except GoAway:
                    break
        self._gone.set()
        for fd in self._stop:
            os.close(fd)

    def _answer(self, message: Any) -> None:
        if message.header.message_type is not MessageType.method_call:
            return
        fields = message.header.fields
        member = fields[HeaderFields.member]
        self.calls.append((member, message.body))
        self.flags.append(int(message.header.flags))
        self.sender = fields[HeaderFields.sender]
        try:
            handler = self.on.get(member) or getattr(self, member)
            signature, body = handler(*message.body)
            reply = new_method_return(message, signature or None, body)
        except Refusal as refusal:
            reply = new_error(message, refusal.name, "s", (refusal.text,))
        if not message.header.flags & MessageFlag.no_reply_expected:
            self._bus.send(reply)
        for value in reply.body:
            if isinstance(value, Handed):
                os.close(value.fd)

    # The interface

    def Start(self, spec: dict[str, tuple[str, Any]]) -> tuple[str, tuple[Any, ...]]:
        asked = {key: value for key, (_, value) in spec.items()}
        if asked.pop("DryRun", False):
            return "so", ("", "/")
        for known in list(self.jobs.values()):
            if "RequestId" in asked and known.get("RequestId") == asked["RequestId"]:
                return "so", (known["Id"], "/")
        made = job(0xABC0 + len(self.jobs), RequestId=asked.get("RequestId"), Command=asked.get("Command", ["script"]))
        self.jobs[made["Id"]] = made
        return "so", (made["Id"], f"/org/jobsvc1/job/{made['Id']}")

    def find(self, job_id: str) -> dict[str, Any]:
        if job_id not in self.jobs:
            text = f"no job {job_id!r}; 'jobctl list' shows the jobs there are"
            raise Refusal("NoSuchJob", text)
        return self.jobs[job_id]

    def Status(self, job_id: str, options: Any) -> tuple[str, tuple[Any, ...]]:
        facts = variants(self.find(job_id))
        if "Spec" in options:
            facts["Spec"] = ("a{sv}", self.spec)
        return "a{sv}", (facts,)

    def List(self, options: Any) -> tuple[str, tuple[Any, ...]]:
        asked = {key: value for key, (_, value) in options.items()}
        found = list(self.jobs.values())
        found = [each for each in found if self.fits(each, asked)]
        at = 1 + [each["Id"] for each in found].index(asked["After"]) if "After" in asked else 0
        page = found[at : at + asked["Limit"]]
        after = page[-1]["Id"] if at + asked["Limit"] < len(found) else ""
        return "aa{sv}s", ([variants(each) for each in page], after)

    def fits(self, each: dict[str, Any], asked: dict[str, Any]) -> bool:
        """The terms of a filter that the tests need."""
        return (
            ("Name" not in asked or fnmatchcase(each["Name"], asked["Name"]))
            and ("State" not in asked or each["State"] in asked["State"])
            and ("OwnerUID" not in asked or each["OwnerUID"] == asked["OwnerUID"])
            and ("User" not in asked or asked["User"] in (each["Owner"], each["User"]))
            and ("ArrayId" not in asked or each.get("ArrayId") == asked["ArrayId"])
            and ("Hooks" not in asked or bool(each.get("HookOf")) == asked["Hooks"])
            and each["Id"].startswith(asked.get("IdPrefix", ""))
            and each.get("FinishedTimestamp", 0) < asked.get("FinishedBeforeUSec", 2**62)
        )

    def GetAll(self, interface: str) -> tuple[str, tuple[Any, ...]]:
        facts = {"Version": "0.1.0", "Queued": 2, "MaxRunning": 4}
        return "a{sv}", (variants(facts | {"Maintenance": self.maintenance, "Running": self.running}),)

    def Subscribe(self) -> tuple[str, tuple[Any, ...]]:
        self.subscribers.add(self.sender)
        return "", ()

    def Stop(self, job_id: str, options: Any) -> tuple[str, tuple[Any, ...]]:
        self.end(job_id, State="stopped", Result="stopped")
        return "", ()

    def Kill(self, job_id: str, whom: str, number: int, options: Any) -> tuple[str, Any]:
        self.find(job_id)
        return "", ()

    def Restart(self, job_id: str, options: Any) -> tuple[str, tuple[Any, ...]]:
        found = self.find(job_id)
        found["Run"] += 1
        return "u", (found["Run"],)

    def Remove(self, job_id: str, options: Any) -> tuple[str, tuple[Any, ...]]:
        if self.find(job_id)["State"] == "running":
            raise Refusal("WrongState", f"job {job_id} is running; stop it first")
        del self.jobs[job_id]
        return "", ()

    def plain(self, job_id: str, options: Any) -> tuple[str, tuple[Any, ...]]:
        self.find(job_id)
        return "", ()

    Pause = Resume = Hold = Release = plain

    def many(self, member: str, ids: list[str], *rest: Any) -> tuple[str, tuple[Any, ...]]:
        """To each job of the filter what is done to one."""
        asked = {key: value for key, (_, value) in rest[-1].items()}
        assert bool(ids) != bool(asked)
        found = ids or [each["Id"] for each in list(self.jobs.values()) if self.fits(each, asked)]
        outcomes = []
        for job_id in found:
            try:
                getattr(self, member)(job_id, *rest[:-1], {})
                outcomes.append((job_id, "", ""))
            except Refusal as refusal:
                outcomes.append((job_id, refusal.name, refusal.text))
        return "a(sss)", (outcomes,)

    def __getattr__(self, member: str) -> Handler:
        if not member.endswith("Many"):
            raise AttributeError(member)
        return lambda *body: self.many(member.removesuffix("Many"), *body)

    def StartMany(self, specs: list[Any], options: Any) -> tuple[str, tuple[Any, ...]]:
        if options:
            return "a(so)", ([],)
        return "a(so)", ([self.Start(spec)[1] for spec in specs],)

    def Duplicate(self, job_id: str, overrides: Any) -> tuple[str, tuple[Any, ...]]:
        self.find(job_id)
        return "so", (f"{0xD0B:016x}", "/org/jobsvc1/job/d0b")

    def SetProperties(self, job_id: str, properties: Any, options: Any) -> tuple[str, tuple[Any, ...]]:
        self.find(job_id)
        return "", ()

    def SetMaintenance(self, on: bool, options: Any) -> tuple[str, tuple[Any, ...]]:
        self.maintenance = on
        return "", ()

    def Unsubscribe(self) -> tuple[str, tuple[Any, ...]]:
        self.subscribers.discard(self.sender)
        return "", ()

    # Output

    def write(self, stream: Any, data: bytes, seconds: int = 0) -> None:
        """Let the job have written this."""
        at = sum(len(each.data) for each in self.output if each.stream == stream)
        self.output.append(Chunk(stream, at, data, NOW + seconds * 1_000_000))

    def entries(self, options: Any) -> list[bytes]:
        start = {"stdout": options.get("FromStdout"), "stderr": options.get("FromStderr")}
        wanted = [each for each in self.output if options.get("Stream") in (None, each.stream)]
        pieces = [each.since((start[each.stream] or ("", 0))[1]) for each in wanted]
        origin = Origin("0" * 16, 1, BOOT)
        return [encode("export", origin, each) for each in pieces if each.data]

    def Logs(self, job_id: str, options: Any) -> tuple[str, tuple[Any, ...]]:
        self.find(job_id)
        ours, theirs = os.pipe()
        threading.Thread(
            target=self._write, args=(theirs, options, self.trailer, not self.held.is_set(), self._gone), daemon=True
        ).start()
        return "h", (Handed(ours),)

    def _write(self, fd: int, options: Any, trailer: Trailer | None, later: bool, gone: threading.Event) -> None:
        with os.fdopen(fd, "wb", buffering=0) as pipe:
            try:
                for entry in self.entries(options):
                    pipe.write(entry)
                while "Follow" in options and not (gone.is_set() or self.held.is_set()):
                    gone.wait(0.005)
                if "Follow" in options and gone.is_set():
                    return  # the service has died, and its end of the pipe with it
                if later:
                    trailer = self.trailer
                if trailer:
                    pipe.write(encode_trailer("export", trailer))
            except BrokenPipeError:
                pass

    def ReadLogs(self, job_id: str, options: Any) -> tuple[str, tuple[Any, ...]]:
        self.find(job_id)
        entries = self.entries(options)
        if entries:
            at = {"stdout": 0, "stderr": 0}
            data = b"".join(entries)
            for each in self.output:
                at[each.stream] = each.end
            after = dict(options)
            after["FromStdout"] = ("t", at["stdout"])
            after["FromStderr"] = ("t", at["stderr"])
            return "aya{sv}", (data, after)
        trailer = encode_trailer("export", self.trailer) if self.trailer else b""
        return "aya{sv}", (trailer, {})

    # Events

    def end(self, job_id: str, **facts: Any) -> None:
        """Let a job end and tell those who asked to be told."""
        found = self.find(job_id)
        found.update(FinishedTimestamp=NOW, **facts)
        self.tell("JobChanged", "sss", (job_id, found["State"], found.get("Result", "")))

    def tell(self, member: str, signature: str, body: tuple[Any, ...]) -> None:
        for subscriber in list(self.subscribers):  # others come while we tell
            signal = new_signal(EMITTER, member, signature, body)
            signal.header.fields[HeaderFields.destination] = subscriber
            self._bus.send(signal)

    def saw(self, member: str, seconds: float = 180) -> tuple[Any, ...]:
        """Wait until such a call has come in; its arguments."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, body in list(self.calls):
                if name == member:
                    return body
            time.sleep(0.002)
        raise AssertionError(f"no {member} within {seconds} s; there were {self.calls}")


def unhurried(err: bytes) -> bytes:
    """What jobctl says, but for what it says only where the service takes more than two seconds to come back."""
    return err.replace(b"jobctl: the job service is gone; waiting for it to come back\n", b"")


class Done(NamedTuple):
    """What a jobctl process left behind."""

    code: int
    out: str
    err: str


class Jobctl:
    """Runs `jobctl` as its users do. Unless `tty` is given, everything is a pipe or /dev/null."""

    def __init__(self, address: str) -> None:
        root = Path(__file__).parents[2]
        self.command = ["-m", "jobsvc.cli"]
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
            "DBUS_SYSTEM_BUS_ADDRESS": address,
            "TZ": "UTC",
            "LANG": "C.UTF-8",
            "TERM": "xterm",
        }

    def as_uid(self, uid: int) -> None:
        """From now on it believes to be this user."""
        believed = f"import os; os.getuid = os.geteuid = lambda: {uid}"
        self.command = ["-c", f"{believed}; from jobsvc.cli import main; main()"]

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        settings |= {"stderr": subprocess.PIPE, "env": self.environment}
        command = [sys.executable, *self.command, *args]
        return subprocess.Popen(command, **(settings | options))

    def raw(self, *args: str, **options: Any) -> tuple[int, bytes, bytes]:
        """Exit code, standard output, standard error, to the byte."""
        with self.start(*args, **options) as process:
            out, err = process.communicate(timeout=180)
        return process.returncode, out or b"", err or b""

    def __call__(self, *args: str, **options: Any) -> Done:
        code, out, err = self.raw(*args, **options)
        return Done(code, out.decode(), err.decode())

    def on_terminal(self, *args: str, **options: Any) -> Done:
        """With a terminal of 80 columns for all three; what it was sent is `out`."""
        ours, theirs = pty.openpty()
        self.environment["COLUMNS"] = "80"
        with self.start(*args, **{"stdin": theirs, "stdout": theirs, "stderr": theirs, **options}) as process:
            os.close(theirs)
            sent = b""
            try:
                while data := os.read(ours, 65536):
                    sent += data
            except OSError:
                pass  # EIO: the last one has closed it
            except BaseException:
                process.kill()  # or the end of this block would wait for it
                raise
        os.close(ours)
        return Done(process.returncode, sent.decode(errors="surrogateescape"), "")


__all__ = ["BOOT", "NOW", "FakeService", "GoAway", "Jobctl", "Missing", "Refusal", "job", "private_bus", "unhurried"]
