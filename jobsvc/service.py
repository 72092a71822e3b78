"""The door of org.jobsvc1: calls in, answers out. Whatever is unforeseen stays inside."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from dbus_next import Message
from dbus_next.constants import MessageFlag
from dbus_next.signature import Variant

from jobsvc import __version__, interface, wire
from jobsvc.authority import Authority
from jobsvc.bus import Bus, Call
from jobsvc.callers import Callers
from jobsvc.errors import Internal, InvalidArgs, JobsvcError, LimitsExceeded, NoSuchJob
from jobsvc.guard import guarded
from jobsvc.interface import JOB, JOBS, KIB, MANAGER, ROOT, Fd, Method, Request
from jobsvc.logs import Logs
from jobsvc.manager import Manager
from jobsvc.message import pack_body
from jobsvc.methods.administering import Administering
from jobsvc.methods.controlling import Controlling
from jobsvc.methods.desk import MIB, Desk
from jobsvc.methods.looking import PAGE_MAX, Looking
from jobsvc.methods.output import Output
from jobsvc.methods.starting import Starting
from jobsvc.share import Count, Turns
from jobsvc.subscribers import PROPERTIES, Subscribers

log = logging.getLogger(__name__)

MAX_CALLS = 128  # under way for one connection; the bus allows as many that want an answer
MAX_BYTES = 16 * MIB  # of the bodies of one user's calls under way
MANY = 200  # parts of an answer that the loop packs itself
FAULT = "this is a fault of jobsvc; its journal has the details: journalctl -u jobsvc"
FAMILIES = (Starting, Controlling, Looking, Output, Administering)
METHODS: dict[str, Method] = {name: entry for family in FAMILIES for name, entry in interface.methods(family).items()}


class Service:
    """Every call comes in by `arrived`, every change goes out by `changed`."""

    def __init__(
        self, bus: Bus, callers: Callers, authority: Authority, jobs: Manager, logs: Logs, tasks: asyncio.TaskGroup
    ) -> None:
        self._bus = bus
        self._callers = callers
        self._manager = jobs
        self._tasks = tasks
        self.subscribers = Subscribers(bus, authority)
        self.desk = desk = Desk(jobs, authority, callers, logs, self.subscribers, tasks)
        self._looking, self._administering = Looking(desk), Administering(desk)
        families = (Starting(desk), Controlling(desk), self._looking, Output(desk), self._administering)
        self._handlers = {
            name: partial(entry.handler, family)
            for family in families
            for name, entry in interface.methods(type(family)).items()
        }
        self._calls = Count("MaxCallsPerUser", "calls under way")
        self._bytes: Counter[int] = Counter()  # of their bodies, by user
        self._large = Turns()
        self._senders: dict[str, set[asyncio.Task[None]]] = {}
        bus.on_call = self._arrived
        bus.on_fds = self._whose_fds
        bus.on_signal = self._left
        jobs.changed = self.subscribers.tell

    # Calls in, replies out

    def close(self) -> None:
        """Take no more calls: whoever calls now is answered by the next life of the service, if at all."""
        self._bus.on_call = Call.dispose
        self.subscribers.close()

    def _arrived(self, call: Call) -> None:
        sender = call.sender or ""
        running = self._senders.setdefault(sender, set())
        if len(running) >= MAX_CALLS:  # whose they are is still to be asked
            call.dispose()
            error = LimitsExceeded(f"this connection has {MAX_CALLS} calls under way; wait for an answer")
            self._bus.send_error(call, error.bus_name, str(error))
            return
        what = f"{call.member} from {sender}"
        task = self._tasks.create_task(
            guarded(lambda: self._answer(call), what, self._manager.store.examine), name=what
        )
        running.add(task)
        task.add_done_callback(lambda done: self._answered(sender, call, done))

    async def _whose_fds(self, call: Call) -> tuple[int, JobsvcError | None]:
        """The user whose descriptors these are, and why they may not come, if so."""
        uid = await self._callers.uid(call)
        try:
            found = self._find(call)
            if not (isinstance(found, Method) and found.fds):
                raise InvalidArgs(f"{call.member} takes no file descriptors")
            self._manager.inputs.room(uid, self._manager.config.max_inputs_per_user)
        except JobsvcError as error:
            return uid, error
        return uid, None

    def _answered(self, sender: str, call: Call, task: asyncio.Task[None]) -> None:
        """Also one that was cancelled before it had begun."""
        call.dispose()
        running = self._senders[sender]
        running.discard(task)
        if not running:
            del self._senders[sender]

    async def _answer(self, call: Call) -> None:
        try:
            interactive = bool(call.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
            found = self._find(call)
            if call.refused:
                raise call.refused
            request = Request(await self._callers.identify(call, interactive), call)
            with self._calls.one(request.caller.user.uid, self._manager.config.max_calls_per_user):
                await self._read(call, request.caller.user.uid)
                await self.desk.turns.begin(request.caller.user.uid)
                if isinstance(found, Method):
                    signature, body = found.reply, await self._handlers[found.name](request, *found.read(call))
                else:
                    signature, body = await found(request)
            await self._reply(call, signature, await self._packed(request, signature, list(body)))
        except JobsvcError as error:
            self._refuse(call, error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("%s from %s", call.member, call.sender)
            self._manager.store.examine(error)
            self._refuse(call, Internal(FAULT))

    def _refuse(self, call: Call, error: JobsvcError) -> None:
        """Answer with an error, also if it is one that cannot be sent."""
        try:
            self._bus.send_error(call, error.bus_name, str(error))
        except Exception:
            log.exception("an error for %s from %s", call.member, call.sender)
            self._bus.send_error(call, Internal(FAULT).bus_name, FAULT)

    async def _read(self, call: Call, uid: int) -> None:
        """Have a large body parsed in a thread, one at a time: the loop goes on with everybody else's calls."""
        if call.unread:
            if uid and self._bytes[uid] + call.size > MAX_BYTES:
                raise LimitsExceeded(f"your calls under way have more than {MAX_BYTES // MIB} MiB; wait for an answer")
            self._bytes[uid] += call.size
            try:
                async with self._large.of(uid):
                    await asyncio.to_thread(call.read)
            finally:
                self._bytes[uid] -= call.size
        if call.broken:
            raise InvalidArgs("the message cannot be parsed")

    async def _packed(self, request: Request, signature: str, body: list[Any]) -> list[Any]:
        """An answer of many parts is packed in a thread."""
        if not (body and isinstance(body[0], list) and len(body[0]) > MANY):
            return body
        return [await self.desk.aside.do(request.caller.user.uid, lambda: pack_body(signature, body))]

    async def _reply(self, call: Call, signature: str, body: list[Any]) -> None:
        fds = [value.number for value in body if isinstance(value, Fd)]
        plain = [0 if isinstance(value, Fd) else value for value in body]
        if call.flags & MessageFlag.NO_REPLY_EXPECTED:
            _close(fds)
            return
        sent = self._bus.send(Message.new_method_return(call, signature, plain, fds))
        # The writer needs them until then, even if the caller leaves and we are cancelled.
        sent.add_done_callback(lambda _: _close(fds))
        await asyncio.shield(sent)

    def _find(self, call: Call) -> Method | Callable[[Request], Awaitable[tuple[str, tuple[Any, ...]]]]:
        if call.too_big:
            raise LimitsExceeded(f"{call.member} takes at most {cap(call.member or '') // KIB} KiB")
        of = call.interface or MANAGER
        if of == MANAGER and call.path == ROOT and call.member in METHODS:
            return METHODS[call.member]
        standard = {
            ("org.freedesktop.DBus.Introspectable", "Introspect", ""): self._introspect,
            ("org.freedesktop.DBus.Peer", "Ping", ""): self._ping,
            ("org.freedesktop.DBus.Peer", "GetMachineId", ""): self._machine_id,
            (PROPERTIES, "Get", "ss"): self._get,
            (PROPERTIES, "GetAll", "s"): self._get_all,
        }
        found = standard.get((of, call.member or "", call.signature))
        if found is None:
            raise UnknownMethod(f"{of}.{call.member} with signature {call.signature!r} is not there on {call.path}")
        return found

    async def reload(self, who: str, request_id: str) -> None:
        """The configuration anew, as the method Reload does it."""
        await self._administering.reload(who, request_id)

    def _left(self, call: Call) -> None:
        if sender := self._callers.left(call):
            self.subscribers.drop(sender)
            for task in self._senders.get(sender, ()):
                task.cancel()  # nobody waits for the answer: a password dialog would be left open

    # The standard interfaces

    async def _introspect(self, request: Request) -> tuple[str, tuple[Any, ...]]:
        path = request.call.path
        if path == ROOT:
            return "s", (interface.node(interface.manager_xml(METHODS), ["job"]),)
        if path == JOBS:
            own = [job.id for job in self._manager.jobs.values() if request.caller.owns(job)]
            return "s", (interface.node("", own[:PAGE_MAX]),)
        if (ROOT + "/").startswith(path.rstrip("/") + "/"):
            child = (ROOT[len(path.rstrip("/")) + 1 :]).partition("/")[0]
            return "s", (interface.node("", [child]),)
        await self.desk.lookup(request, _id_of(path))
        return "s", (interface.node(interface.job_xml()),)

    async def _ping(self, request: Request) -> tuple[str, tuple[Any, ...]]:
        return "", ()

    async def _machine_id(self, request: Request) -> tuple[str, tuple[Any, ...]]:
        return "s", (machine_id(),)

    async def _get(self, request: Request) -> tuple[str, tuple[Any, ...]]:
        of, name = request.call.body
        values = await self._properties(request, of)
        if name not in values:
            raise InvalidArgs(f"{repr(of) if of else 'this object'} has no property {name!r}, or it is not known yet")
        return "v", (values[name],)

    async def _get_all(self, request: Request) -> tuple[str, tuple[Any, ...]]:
        return "a{sv}", (await self._properties(request, request.call.body[0]),)

    async def _properties(self, request: Request, of: str) -> dict[str, Variant]:
        if request.call.path == ROOT and of in (MANAGER, ""):
            facts = {
                "Version": __version__,
                "Running": self._manager.running,
                "Queued": self._manager.queued,
                "MaxRunning": self._manager.config.max_running,
                "Maintenance": self._manager.maintenance,
            }
            return wire.pack(facts, interface.PROPERTIES)
        if of not in (JOB, ""):
            return {}
        job = await self.desk.lookup(request, _id_of(request.call.path))
        return await self._looking.describe(job, job.run.number)


class UnknownMethod(InvalidArgs):
    """There is no such method here."""

    code = "UnknownMethod"


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def cap(member: str) -> int:
    """The most bytes a call of this member may have."""
    return METHODS[member].cap if member in METHODS else 64 * KIB


def machine_id() -> str:
    return Path("/etc/machine-id").read_text(encoding="ascii").strip()


def _id_of(path: str) -> str:
    folder, _, job_id = path.rpartition("/")
    if folder != JOBS:
        raise NoSuchJob(f"there is no object {path}")
    return job_id
