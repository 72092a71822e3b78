"""Runs on this machine, in the namespaces of the one under test: `python3 -m fuzz DIRECTORY UID SECONDS SEED [JOB…]`.

DIRECTORY is its /run/dbus, with the socket of the system bus; to the jobs, which are other users', nothing may happen.
Prints how many calls were answered, and with what.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import faulthandler
import json
import os
import reprlib
import sys
import time
import traceback
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jeepney import DBusAddress, HeaderFields, MessageFlag, MessageType, new_method_call, new_signal
from jeepney.io.blocking import DBusConnection, prep_socket
from jeepney.low_level import SizeLimitError
from jeepney.wrappers import DBusErrorResponse, unwrap_msg

from fuzz import words
from hostile import fuse, things

NAME = "org.jobsvc1"
ANSWER_WITHIN = 60.0  # ReadLogs may be asked to wait for 30
RULES = ("FLUSH=never,-dbus-daemon", "READ=never")  # the bus daemon closes what it passed on: that is its affair
LOCKED = 8  # pipes of Logs that are read into pages which never come
FLAGS = (0, 0, 0, 0, 1, 2, 4, 5)
# Whatever is asked, it is one of these that says no; a fault of the service is none of them.
ERRORS = frozenset(
    "AccessDenied InteractiveAuthorizationRequired InvalidArgs InvalidSpec LimitsExceeded Maintenance NoSuchJob"
    " QueueFull Quota UnknownMethod WrongState".split()
)

SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink],
    "print_blob": False,
}


class TimeUp(KeyboardInterrupt):
    """Enough. Anything else Hypothesis would take for a finding."""


class Target:
    """The service, seen from one connection."""

    def __init__(self) -> None:
        self.connect()
        self.told: collections.Counter[str] = collections.Counter()
        self._bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
        self.start()  # should nobody have asked for the service yet
        self.owner = self._ask(new_method_call(self._bus, "GetNameOwner", "s", (NAME,)))[0]

    def connect(self) -> None:
        self.connection = DBusConnection(prep_socket("system_bus_socket", enable_fds=True), enable_fds=True)

    def _ask(self, message: Any) -> Any:
        return unwrap_msg(self.connection.send_and_get_reply(message, timeout=ANSWER_WITHIN))

    def introspect(self, path: str) -> str:
        at = DBusAddress(path, NAME, "org.freedesktop.DBus.Introspectable")
        return str(self._ask(new_method_call(at, "Introspect"))[0])

    def start(self) -> str:
        at = DBusAddress(words.ROOT, NAME, f"{NAME}.Manager")
        return str(self._ask(new_method_call(at, "Start", "a{sv}", ({"Command": ("as", ["true"])},)))[0])

    def call(self, path: str, of: str, member: str, signature: str, body: tuple[Any, ...], flags: int) -> None:
        """One call; AssertionError if it is not answered as it should be."""
        message = new_method_call(DBusAddress(path, NAME, of), member, signature or None, body)
        message.header.flags = MessageFlag(flags)
        try:
            if flags & 1:
                self.connection.send(message)
                return
            reply = self.connection.send_and_get_reply(message, timeout=ANSWER_WITHIN)
        except SizeLimitError:  # it did not even leave
            return
        except ConnectionError:  # the bus daemon would not have it, and nobody of us saw it
            self.told["not a message"] += 1
            self.connect()
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ETOOMANYREFS):  # more descriptors than a message may have
                raise
            return
        if reply.header.message_type is MessageType.error:
            name, text = reply.header.fields[4].rpartition(".")[2], str(reply.body[0]) if reply.body else ""
            self.told[name] += 1
            assert name in ERRORS, f"{name}: {text}"
            assert "\n" not in text, text
            assert "Traceback" not in text, text
            return
        self.told["answered"] += 1
        for value in reply.body:
            if hasattr(value, "to_raw_fd"):
                os.close(value.to_raw_fd())

    def names(self) -> list[str]:
        """All that the service is called on the bus, on whichever of its connections."""
        ours = self._ask(new_method_call(self._bus, "GetConnectionUnixProcessID", "s", (NAME,)))
        names = [name for name in self._ask(new_method_call(self._bus, "ListNames"))[0] if name.startswith(":")]
        found = []
        for name in names:
            with contextlib.suppress(DBusErrorResponse):  # it has just gone
                if self._ask(new_method_call(self._bus, "GetConnectionUnixProcessID", "s", (name,))) == ours:
                    found.append(name)
        return found

    def hand(self, one: words.Handed, name: str) -> None:
        """Descriptors that nobody has asked for."""
        body = (list(one.fds),)
        if one.how != "signal":
            self.call(one.path, one.of, one.member, "ah", body, int(one.how != "call"))
            return
        message = new_signal(DBusAddress(one.path, interface=one.of), one.member, "ah", body)
        message.header.fields[HeaderFields.destination] = name
        with contextlib.suppress(OSError):  # more descriptors than may be under way
            self.connection.send(message)
        self.told["signal"] += 1

    def lock(self, own: int) -> int:
        """A child that reads a job's output into a page that never comes, and so holds the pipe."""
        at = DBusAddress(words.ROOT, NAME, f"{NAME}.Manager")
        spec = {
            "Command": ("as", ["sh", "-c", "while sleep 0.1; do echo on; done"]),
            "RuntimeMaxUSec": ("t", 60_000_000),
        }
        job, _ = self._ask(new_method_call(at, "Start", "a{sv}", (spec,)))
        pipe = self._ask(new_method_call(at, "Logs", "sa{sv}", (job, {"Follow": ("b", True)})))[0].to_raw_fd()
        pid = os.fork()
        if not pid:
            things.Page(own, writable=True).read(pipe)
            os._exit(0)
        os.close(pipe)
        return pid

    def still_there(self) -> None:
        """It never left the bus."""
        self.connect()
        owner = self._ask(new_method_call(self._bus, "GetNameOwner", "s", (NAME,)))[0]
        assert owner == self.owner, "the service has fallen over"


def main(directory: str, uid: int, duration: float, seed: int, others: list[str]) -> None:
    os.chdir(directory)
    machine = f"{directory}/../.."
    device, proc = (os.open(f"{machine}/{path}", os.O_PATH) for path in ("dev/fuse", "proc"))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    lifetime = int(duration + 2 * ANSWER_WITHIN)
    mount = fuse.private(*RULES, device=f"/proc/self/fd/{device}", proc=proc, lifetime=lifetime)  # before any thread
    try:
        fuzz(mount.open(), duration, seed, others)
    finally:  # or our own end would hang
        mount.abort()
        things.release()


def fuzz(own: int, duration: float, seed: int, others: list[str]) -> None:
    faulthandler.dump_traceback_later(duration + ANSWER_WITHIN, exit=True)
    target = Target()
    jobs = [target.start() for _ in range(3)]
    manager = words.methods(target.introspect(words.ROOT))
    entries = manager + words.methods(target.introspect(f"{words.ROOT}/job/{jobs[0]}"))
    ids = [*jobs, *others]
    places = st.one_of(st.just(words.ROOT), st.sampled_from([f"{words.ROOT}/job/{job}" for job in ids]), words.paths)
    deadline = time.monotonic() + duration
    found: list[Exception] = []
    used: collections.Counter[str] = collections.Counter()

    def calls(entry: words.Entry) -> st.SearchStrategy[Any]:
        where = st.one_of(st.just(words.ROOT), st.just(words.ROOT), places) if entry.of.startswith(NAME) else places
        return st.tuples(st.just(entry), where, words.bodies(entry, ids), st.sampled_from(FLAGS))

    def send(call: Any) -> None:
        entry, path, (signature, body), flags = call
        used[entry.name] += 1
        try:
            target.call(path, entry.of, entry.name, signature, body, flags)
        except Exception as error:  # also one that does not come again, or is found too late to look into
            print("this was sent:", path, entry, signature, reprlib.repr(body), flags, file=sys.stderr)
            traceback.print_exc()
            found.append(error)
            raise

    names = target.names()

    def hand(one: words.Handed, name: str) -> None:
        try:
            target.hand(one, name)
        except Exception as error:
            print("this was handed over:", one, name, file=sys.stderr)
            traceback.print_exc()
            found.append(error)
            raise

    for entry in entries:  # each once, however little time there is
        some = settings(**SETTINGS, max_examples=1)(given(calls(entry))(send))
        hypothesis.seed(seed)(some)()

    @settings(**SETTINGS, max_examples=150)
    @given(st.sampled_from(entries).flatmap(calls))
    def any_of_them(call: Any) -> None:
        if time.monotonic() > deadline:
            raise TimeUp
        send(call)

    @settings(**SETTINGS, max_examples=50)
    @given(words.handed(entries, own), st.sampled_from(names))
    def anything(one: words.Handed, name: str) -> None:
        if time.monotonic() > deadline:
            raise TimeUp
        hand(one, name)

    readers: list[int] = []

    with contextlib.suppress(TimeUp):
        while True:
            hypothesis.seed(seed)(any_of_them)()
            hypothesis.seed(seed)(anything)()
            if len(readers) < LOCKED:
                with contextlib.suppress(DBusErrorResponse):  # a quota, or it has been removed meanwhile
                    readers.append(target.lock(own))
            seed += 1
            target.still_there()
    target.still_there()
    if found:
        raise found[0]
    missed = sorted({entry.name for entry in entries} - set(used))
    json.dump({"told": target.told, "calls": sum(used.values()), "missed": missed}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
