"""Runs in the machine, before a test's own function: the bus by jeepney, byte for byte what a client sends.

Its text is put before the function's (story.inside), so both share one namespace there.
"""

import base64
import contextlib
import json
import os
import random  # noqa: F401 - for the functions
import select
import signal
import socket
import subprocess
import sys  # noqa: F401
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from jeepney import DBusAddress, MatchRule, Message, MessageType, message_bus, new_method_call, new_method_return
from jeepney.io.blocking import Proxy, open_dbus_connection

SLOW = 6  # as that of machine.host, which is not there where this runs
NAME, ROOT = "org.jobsvc1", "/org/jobsvc1"
MANAGER = NAME + ".Manager"


class Refused(Exception):
    """The service answered with an error: its name without the first part, and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Bus:
    """A connection to the system bus, and org.jobsvc1 on it."""

    def __init__(self, fds: bool = True) -> None:
        self.connection = open_dbus_connection("SYSTEM", enable_fds=fds)
        self.signals: deque[Message] = deque()

    def send(
        self, member: str, signature: str = "", *body: Any, path: str = ROOT, of: str = MANAGER, flags: int = 0
    ) -> int:
        """Send a call and return its serial."""
        call = new_method_call(DBusAddress(path, NAME, of), member, signature or None, body)
        call.header.flags = flags
        serial = next(self.connection.outgoing_serial)
        self.connection.send(call, serial=serial)
        return int(serial)

    def reply(self, serial: int, timeout: float = 30 * SLOW) -> Any:
        """The answer to a call; Refused if it is an error. Signals that come before it are kept."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.connection.receive(timeout=max(0.0, deadline - time.monotonic()))
            kind = message.header.message_type
            if kind is MessageType.signal:
                self.signals.append(message)
            elif message.header.fields.get(5) == serial:
                if kind is MessageType.error:
                    name = message.header.fields[4].rpartition(".")[2]
                    raise Refused(name, str(message.body[0]) if message.body else "")
                return message.body[0] if len(message.body) == 1 else message.body

    def call(self, member: str, signature: str = "", *body: Any, **options: Any) -> Any:
        return self.reply(self.send(member, signature, *body, **options))

    def refused(self, member: str, signature: str = "", *body: Any, **options: Any) -> list[str]:
        """The error a call is answered with: its name and text. ["", reply] if it is none."""
        try:
            return ["", repr(self.call(member, signature, *body, **options))]
        except Refused as error:
            return [error.name, error.text]

    def get_all(self, path: str = ROOT, interface: str = "") -> Any:
        return self.call("GetAll", "s", interface, path=path, of="org.freedesktop.DBus.Properties")

    def start(self, *command: str, **keys: Any) -> str:
        """Submit a job; keys are given as (signature, value)."""
        job, _ = self.call("Start", "a{sv}", {"Command": ("as", list(command)), **keys})
        return str(job)

    def status(self, job: str, **options: Any) -> dict[str, Any]:
        return {name: value for name, (_, value) in self.call("Status", "sa{sv}", job, options).items()}

    def watch(self, **rule: str) -> None:
        """Have signals delivered that are not for us alone."""
        Proxy(message_bus, self.connection, timeout=10 * SLOW).AddMatch(MatchRule(type="signal", **rule))

    def owner(self) -> str:
        """The unique name of the service's connection."""
        return str(Proxy(message_bus, self.connection, timeout=10 * SLOW).GetNameOwner(NAME)[0])

    def owned(self, timeout: float) -> bool:
        """Wait until the service has its name, without calling it into being."""
        deadline = time.monotonic() + timeout
        while not (there := Proxy(message_bus, self.connection, timeout=10 * SLOW).NameHasOwner(NAME)[0]):
            if time.monotonic() > deadline:
                break
            time.sleep(0.003)
        return bool(there)

    def signal(self, member: str, timeout: float = 30 * SLOW, **wanted: Any) -> Any:
        """The next signal of this name (its first argument being `id`, if given); others are dropped."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.signals.popleft() if self.signals else None
            if message is None:
                message = self.connection.receive(timeout=max(0.0, deadline - time.monotonic()))
            fields = message.header.fields
            if message.header.message_type is not MessageType.signal or fields.get(3) != member:
                continue
            if "id" not in wanted or message.body[0] == wanted["id"]:
                return message.body

    def until_ended(self, *jobs: str, timeout: float = 60) -> dict[str, dict[str, Any]]:
        """Wait for all of these jobs to end, and what their status is then."""
        self.call("Subscribe")
        done: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + timeout * SLOW
        for job in jobs:
            while (now := self.status(job))["State"] not in ("completed", "failed", "stopped"):
                self.signal("JobChanged", timeout=max(0.0, deadline - time.monotonic()), id=job)
            done[job] = now
        return done

    def logs(self, job: str, **options: Any) -> bytes:
        """All that the descriptor of Logs gives."""
        with self.logs_fd(job, **options) as fd:
            return b"".join(iter(lambda: os.read(fd.fileno(), 1 << 20), b""))

    def logs_fd(self, job: str, **options: Any) -> Any:
        return self.call("Logs", "sa{sv}", job, options).to_file("rb", buffering=0)

    def read_logs(self, job: str, **options: Any) -> bytes:
        """All that ReadLogs gives, piece by piece as `next` says."""
        whole, more = self.call("ReadLogs", "sa{sv}", job, options)
        while more:
            data, following = self.call("ReadLogs", "sa{sv}", job, more)
            assert data or following != more, f"next is {following} again and again"
            whole, more = whole + data, following
        return bytes(whole)


def json_output(text: bytes) -> tuple[dict[str, bytes], Any]:
    """Format=json taken apart: the bytes of each stream, put where they say they belong, and the trailer."""
    *chunks, trailer = [json.loads(line) for line in text.splitlines()]
    streams = {"stdout": b"", "stderr": b""}
    for chunk in chunks:
        data = chunk["data"].encode() if chunk["encoding"] == "utf-8" else base64.b64decode(chunk["data"])
        assert len(data) == chunk["length"]
        assert len(streams[chunk["stream"]]) == chunk["offset"]
        streams[chunk["stream"]] += data
    assert trailer["end"] is True
    return streams, trailer


def export_output(text: bytes) -> tuple[dict[str, bytes], dict[str, str]]:
    """The same of Format=export (https://systemd.io/JOURNAL_EXPORT_FORMATS)."""
    entries: list[dict[str, bytes]] = [{}]
    at = 0
    while at < len(text):
        line, at = text[at : text.index(b"\n", at)], text.index(b"\n", at) + 1
        name, equals, value = line.partition(b"=")
        if not line:
            entries.append({})
            continue
        if not equals:
            size = int.from_bytes(text[at : at + 8], "little")
            value = text[at + 8 : at + 8 + size]
            at += size + 9
        entries[-1][name.decode()] = value
    *chunks, trailer, nothing = entries
    assert nothing == {}
    assert trailer["JOBSVC_END"] == b"1"
    streams = {"stdout": b"", "stderr": b""}
    for chunk in chunks:
        stream = chunk["JOBSVC_STREAM"].decode()
        assert len(streams[stream]) == int(chunk["JOBSVC_OFFSET"])
        streams[stream] += chunk["MESSAGE"]
    return streams, {name: value.decode() for name, value in trailer.items()}


def many(bus: Bus, specs: list[dict[str, Any]]) -> list[str]:
    """StartMany, and the ids."""
    return [job for job, _ in bus.call("StartMany", "aa{sv}a{sv}", specs, {})]


def namespace_socket(uid: int) -> socket.socket:
    """A connection to the journal of the jobs, which only root can make, in the hands of this user from now on."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    connection.connect("/run/systemd/journal.jobsvc/socket")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    return connection


@contextlib.contextmanager
def seen_as(uid: int) -> Iterator[None]:
    """Connections that root makes in here are this user's."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class Agent:
    """The polkit agent of this process, which is root's: it says what the helper says that has seen a password."""

    def __init__(self) -> None:
        self.bus = Bus(fds=False)
        with open("/proc/self/stat") as file:
            start = int(file.read().rpartition(")")[2].split()[19])
        subject = ("unix-process", {"pid": ("u", os.getpid()), "start-time": ("t", start)})
        self._polkit("RegisterAuthenticationAgent", "(sa{sv})ss", subject, "C", "/agent")

    def _polkit(self, member: str, signature: str, *body: Any) -> None:
        name = "org.freedesktop.PolicyKit1"
        authority = DBusAddress("/org/freedesktop/PolicyKit1/Authority", name, name + ".Authority")
        serial = next(self.bus.connection.outgoing_serial)
        self.bus.connection.send(new_method_call(authority, member, signature, body), serial=serial)
        self.bus.reply(serial)

    def told(self, member: str = "BeginAuthentication", timeout: float = 30 * SLOW) -> Message:
        """The next thing polkit wants."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.bus.connection.receive(timeout=max(0.0, deadline - time.monotonic()))
            if message.header.fields.get(3) == member:
                return message

    def answer(self, question: Message, yes: bool) -> None:
        if yes:
            *_, cookie, identities = question.body
            self._polkit("AuthenticationAgentResponse2", "us(sa{sv})", 0, cookie, identities[0])
        self.bus.connection.send(new_method_return(question))


def main_pid(unit: str) -> int | None:
    """The process of a service that has but one, for root: its control group says sooner than systemctl."""
    try:
        with open(f"/sys/fs/cgroup/system.slice/{unit}/cgroup.procs") as procs:
            return next(map(int, procs), None)
    except OSError:  # there is no such file, or none any more
        return None


def killed(pid: int, timeout: float = 10 * SLOW) -> bool:
    """SIGKILL, and wait for its end; False if it had ended before."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    with os.fdopen(fd):
        if select.select([fd], [], [], 0)[0]:
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        assert select.select([fd], [], [], timeout)[0]
    return True


def systemctl(*argv: str) -> str:
    """As root, however often: the limit of starts is for faults of a service, not for ours."""
    subprocess.run(["systemctl", "reset-failed"], check=True)
    return subprocess.run(["systemctl", *argv], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
