"""The service as its clients see it: org.jobsvc1 over D-Bus, in plain Python values and our errors.

It needs no rights, no event loop and no descriptor passing, takes any connected socket, and lives
through a restart of the service.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jeepney.wrappers import DBusAddress

from jobsvc.client_bus import DRIVER, BusError, Connection, Reply, system_bus
from jobsvc.errors import (
    SYSTEMD,
    InteractiveAuthorizationRequired,
    InvalidSpec,
    JobsvcError,
    NoSuchJob,
    ServiceUnavailable,
    from_bus,
)

NAME = "org.jobsvc1"
MANAGER = DBusAddress("/org/jobsvc1", NAME, "org.jobsvc1.Manager")
PROPERTIES = DBusAddress("/org/jobsvc1", NAME, "org.freedesktop.DBus.Properties")
FINISHED = frozenset({"completed", "failed", "stopped"})
ANSWER_SECONDS = 60.0  # a busy machine may take long to start the service; then it answers at once
MANY_SECONDS = 600.0  # thousands of jobs in one call
PACE_SECONDS = 1.0  # how often it is asked at most why a job waits
RETURN_SECONDS = 30.0  # how long a restart of the service may take
ATTEMPTS = 5
PAGE = 500  # the most jobs one List call gives
IN_FLIGHT = 32  # the service takes 64 calls at once, from everybody

Options = Mapping[str, tuple[str, Any]]  # a{sv}: name → signature and value
Status = dict[str, Any]  # status keys as on the bus, plain values, unknown ones absent

_GONE = ("NoReply", "Disconnected", "NameHasNoOwner", "ServiceUnknown")


class Agent(Protocol):
    """Whatever can put polkit's question to the user."""

    def open(self) -> None: ...


class Outcome(NamedTuple):
    """What became of one of several jobs."""

    job: str
    id: str
    error: JobsvcError | None = None
    body: tuple[Any, ...] = ()


class Client:
    """A connection to the job service. What it raises are JobsvcErrors; their text is untrusted."""

    def __init__(self, sock: socket.socket | None = None, *, fds: bool = False, agent: Agent | None = None) -> None:
        self.bus = Connection(sock or system_bus(), fds)
        self.agent = agent
        self.on_wait: Callable[[], None] | None = None  # told when the service is gone for a while
        self.on_return: Callable[[], None] | None = None  # told when it is there again
        self.owner = ""  # the service's unique name, once it has answered
        self._watching = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.bus.close()

    # One call

    def call(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        again: bool = False,
        timeout: float | None = ANSWER_SECONDS,
    ) -> tuple[Any, ...]:
        """Call a Manager method. `again`: calling twice does no harm, should an answer be lost."""
        for _ in range(ATTEMPTS):
            try:
                return self._ask(member, signature, body, timeout)
            except ServiceUnavailable:
                if not (again and self.owner):
                    raise
            self.await_service()
        raise ServiceUnavailable("the job service goes away whenever it is asked")

    def _ask(self, member: str, signature: str, body: tuple[Any, ...], timeout: float | None) -> tuple[Any, ...]:
        try:
            return self._call(MANAGER, member, signature, body, timeout).body
        except (InteractiveAuthorizationRequired, NoSuchJob) as error:
            if not self._may_help(error, body):
                raise
        assert self.agent
        self.agent.open()
        return self._call(MANAGER, member, signature, body, None, interactive=True).body

    def _may_help(self, error: JobsvcError, body: tuple[Any, ...]) -> bool:
        """Whether a password may: also where there seems to be no job, as it is until somebody may see it.

        Then only for a whole id: nobody comes by another's by chance.
        """
        if not self.agent or isinstance(error, InteractiveAuthorizationRequired):
            return bool(self.agent)
        job_id = body[0] if body and isinstance(error, NoSuchJob) else None
        return isinstance(job_id, str) and len(job_id) == 16 and not job_id.strip("0123456789abcdef")

    def _call(
        self,
        address: DBusAddress,
        member: str,
        signature: str,
        body: tuple[Any, ...],
        timeout: float | None,
        interactive: bool = False,
    ) -> Reply:
        try:
            reply = self.bus.call(address, member, signature, body, interactive=interactive, timeout=timeout)
        except BusError as error:
            raise self.error(error) from None
        except TimeoutError:
            raise ServiceUnavailable(f"the job service did not answer in {timeout:.0f} s") from None
        except UnicodeEncodeError:
            raise InvalidSpec("D-Bus only takes UTF-8, and there are other bytes in this") from None
        self.owner = reply.sender
        return reply

    def error(self, error: BusError) -> JobsvcError:
        """An answer of the bus or the service as the error that it is."""
        name = error.name.rpartition(".")[2]
        if name == "NoReply":
            self.owner = self.owner or NAME  # it was there a moment ago
            return ServiceUnavailable("the job service went away before it answered")
        if name in _GONE or ".Spawn." in error.name or error.name.startswith(SYSTEMD):
            return ServiceUnavailable(f"the job service is not available ({error.text}); try 'systemctl status jobsvc'")
        return from_bus(error.name, error.text or f"the job service answered {error.name}")

    def pipelined(
        self, member: str, signature: str, calls: Sequence[tuple[str, str, tuple[Any, ...]]]
    ) -> Iterator[Outcome]:
        """Make one call for each (name given, id, body), several at a time; an outcome each."""
        waiting: list[tuple[str, str, tuple[Any, ...], int]] = []
        todo = list(reversed(calls))
        while todo or waiting:
            while todo and len(waiting) < IN_FLIGHT:
                job, job_id, body = todo.pop()
                waiting.append((job, job_id, body, self.bus.send(MANAGER, member, signature, body)))
            job, job_id, body, serial = waiting.pop(0)
            try:
                yield Outcome(job, job_id, None, self._settle(member, signature, body, serial))
            except JobsvcError as error:
                yield Outcome(job, job_id, error)

    def _settle(self, member: str, signature: str, body: tuple[Any, ...], serial: int) -> tuple[Any, ...]:
        try:
            reply = self.bus.answer(serial)
        except BusError as error:
            failed = self.error(error)
            if not self._may_help(failed, body):
                raise failed from None
            return self._ask(member, signature, body, None)
        self.owner = reply.sender
        return reply.body

    # The service's methods

    def start(self, spec: Options, dry_run: bool = False) -> str:
        """Submit a job and return its id. With a RequestId the loss of an answer is no harm."""
        options = {**spec, "DryRun": ("b", True)} if dry_run else dict(spec)
        body = self.call("Start", "a{sv}", options, again="RequestId" in spec)
        return str(body[0])

    def start_many(self, specs: Sequence[Options], dry_run: bool = False) -> Sequence[str]:
        """Submit jobs, all or none, and return their ids in order."""
        options = {"DryRun": ("b", True)} if dry_run else {}
        again = all("RequestId" in spec for spec in specs)
        (made,) = self.call("StartMany", "aa{sv}a{sv}", [dict(spec) for spec in specs], options, again=again)
        return [job_id for job_id, _ in made]

    def many(self, member: str, filter: Options, signature: str = "", *body: Any) -> Sequence[Outcome]:
        """Do it to every job of a filter, in one call; an outcome each."""
        (answers,) = self.call(member, f"as{signature}a{{sv}}", [], *body, dict(filter), timeout=MANY_SECONDS)
        return [Outcome(job_id, job_id, from_bus(name, text) if name else None) for job_id, name, text in answers]

    def status(self, job_id: str, options: Options | None = None) -> Status:
        return unpack(self.call("Status", "sa{sv}", job_id, dict(options or {}), again=True)[0])

    def list(self, options: Options, limit: int | None = None) -> Iterator[Status]:
        """Jobs, newest first unless Reverse, page by page; all of them without `limit`."""
        options = dict(options)
        while limit is None or limit > 0:
            options["Limit"] = ("u", min(limit or PAGE, PAGE))
            jobs, after = self.call("List", "a{sv}", options, again=True)
            yield from (unpack(job) for job in jobs)
            if not after or not jobs:
                return
            limit = None if limit is None else limit - len(jobs)
            options["After"] = ("s", after)

    def properties(self) -> dict[str, Any]:
        """Version, Running, Queued, MaxRunning, Maintenance of the service."""
        body = self._call(PROPERTIES, "GetAll", "s", (MANAGER.interface,), ANSWER_SECONDS).body
        return unpack(body[0])

    # Living through a restart, and waiting for what happens

    def await_service(self, seconds: float = RETURN_SECONDS) -> None:
        """Return once somebody owns the name; ServiceUnavailable if nobody does for so long.

        At first nothing asks for its start: during an upgrade that would be too early.
        """
        self._watch()
        until = time.monotonic() + seconds
        patience = time.monotonic() + 2
        while not self._driver("NameHasOwner", "s", (NAME,)):
            now = time.monotonic()
            if now >= until:
                self._driver("StartServiceByName", "su", (NAME, 0))
                break
            if self.on_wait and now >= patience:
                self.on_wait()
                patience = until
            self._next_signal(min(until, patience if self.on_wait else until) - now)
        if self.on_return:
            self.on_return()

    def await_change(self, seconds: float) -> None:
        """Return when the service goes or comes, at the latest after `seconds`."""
        self._watch()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            signal = self._next_signal(left)
            if signal and signal[0] == "NameOwnerChanged":
                return

    def _driver(self, member: str, signature: str, body: tuple[Any, ...]) -> Any:
        try:
            return self.bus.call(DRIVER, member, signature, body, timeout=ANSWER_SECONDS).body[0]
        except BusError as error:
            raise ServiceUnavailable(f"the job service did not come back: {error.text}") from None
        except TimeoutError:
            raise ServiceUnavailable("the job service did not come back") from None

    def _watch(self) -> None:
        if self._watching:
            return
        self.bus.listening = self._watching = True
        rule = (
            "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',"
            f"member='NameOwnerChanged',arg0='{NAME}'"
        )
        self.bus.call(DRIVER, "AddMatch", "s", (rule,), timeout=ANSWER_SECONDS)

    def while_queued(self, job_id: str, tell: Callable[[str], None], patience: float = 0.3) -> None:
        """Return when a job has left the queue; if that takes longer `tell` is told why, and each new reason.

        Nothing tells of a new reason: it is asked for when something else has changed.
        """
        self._watch()
        self.call("Subscribe", again=True)
        until, said = time.monotonic() + patience, ""
        while (status := self.status(job_id)).get("State") == "queued":
            late = time.monotonic() >= until
            reason = str(status.get("QueueReason", ""))
            if late and reason != said:
                tell(reason)
                said = reason
            self._await_news(job_id, None if late else until)
        self._unsubscribe()

    def _await_news(self, job_id: str, until: float | None) -> None:
        """Return when the job has changed, and a moment after anything else has: much may change at once."""
        soon = time.monotonic() + PACE_SECONDS
        while until is None or until > time.monotonic():
            signal = self._next_signal(None if until is None else until - time.monotonic())
            if self._concerns(job_id, signal):
                return
            if signal and signal[0] == "PropertiesChanged":
                until = min(until or soon, soon)

    def until_idle(self, seconds: float = 10.0) -> None:
        """Return when no job of anybody's runs.

        We may not be told of others' jobs: so it is asked again now and then.
        """
        self._watch()
        self.call("Subscribe", again=True)
        while self.properties().get("Running"):
            self._concerns("", self._next_signal(seconds))

    def _concerns(self, job_id: str, signal: tuple[str, tuple[Any, ...]] | None) -> bool:
        """Is it about this job, or about the service, which is waited for and asked to go on telling us?"""
        match signal:
            case ("JobChanged" | "JobRemoved", (str(changed), *_)):
                return changed == job_id
            case ("NameOwnerChanged", (_, str(old), _)) if old:
                self.await_service()
                self.call("Subscribe", again=True)
                return True
        return False

    def _unsubscribe(self) -> None:
        """Nobody listens now: what came and comes would only pile up. It is not waited for, and no reason to fail."""
        self.bus.send(MANAGER, "Unsubscribe", start=False, then=lambda _: self.bus.signals.clear())

    def _next_signal(self, seconds: float | None) -> tuple[str, tuple[Any, ...]] | None:
        """The next signal of the bus or the service, if one came in time; forgeries are dropped."""
        if not self.bus.signals:
            self.bus.wait(seconds)
        while self.bus.signals:
            signal = self.bus.signals.popleft()
            if signal.sender in (DRIVER.bus_name, self.owner):
                return signal.member, signal.body
        return None

    def ended(self, jobs: Sequence[str]) -> Iterator[tuple[str, Status | None]]:
        """Each job's id and status as it ends, None if it was removed."""
        return self.until(dict.fromkeys(jobs, lambda status: status.get("State") in FINISHED))

    def until(self, wanted: Mapping[str, Callable[[Status], bool]]) -> Iterator[tuple[str, Status | None]]:
        """Each job's id and status once it is as wanted, None if it was removed. Nothing polls."""
        pending = dict(wanted)
        self._watch()
        while pending:
            self.call("Subscribe", again=True)
            for job_id in tuple(pending):
                yield from self._reached(job_id, pending)
            here = True
            while pending and here:
                match self._next_signal(None):
                    case ("JobChanged" | "JobRemoved", (str(job_id), *_)) if job_id in pending:
                        yield from self._reached(job_id, pending)
                    case ("NameOwnerChanged", (_, old, _)) if old:
                        self.await_service()
                        here = False
        self._unsubscribe()

    def _reached(
        self, job_id: str, pending: dict[str, Callable[[Status], bool]]
    ) -> Iterator[tuple[str, Status | None]]:
        try:
            status = self.status(job_id)
        except NoSuchJob:
            del pending[job_id]
            yield job_id, None
            return
        if pending[job_id](status):
            del pending[job_id]
            yield job_id, status


def unpack(variants: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """`a{sv}` as plain values."""
    return {name: _plain(*variant) for name, variant in variants.items()}


def _plain(signature: str, value: Any) -> Any:
    if signature == "a{sv}":
        return unpack(value)
    if signature == "v":
        return _plain(*value)
    return value
