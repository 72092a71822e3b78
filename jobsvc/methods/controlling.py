"""What is done to jobs that are there, to one or to many: stop, restart, pause, hold, change, remove."""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from dbus_next.signature import Variant

from jobsvc import changes, hooks, model, spec, wire
from jobsvc.authority import complete
from jobsvc.errors import AccessDenied, InvalidArgs, InvalidSpec, JobsvcError, WrongState
from jobsvc.interface import FILTER, Fd, Handler, Request, method
from jobsvc.methods.desk import MIB, Desk
from jobsvc.methods.preparing import Preparing
from jobsvc.model import FINISHED, Job, State
from jobsvc.retention import AtOnce

log = logging.getLogger(__name__)

# Which jobs a call with a filter is about: those to which it can be done.
QUEUED: Final[frozenset[State]] = frozenset({State.QUEUED})
RUNNING: Final[frozenset[State]] = frozenset({State.RUNNING})
PAUSED: Final[frozenset[State]] = frozenset({State.PAUSED})
THERE: Final[frozenset[State]] = frozenset({State.RUNNING, State.PAUSED, State.STOPPING})
UNFINISHED: Final[frozenset[State]] = frozenset(state for state in State if state not in FINISHED)
EVERY: Final[frozenset[State]] = frozenset(State)

NO_TERM: Final[tuple[Any, ...]] = ("", [], {})  # fits every job, as an option that is left out
Act = Callable[["Controlling", Request, str], Awaitable[Any]]


def verb(name: str, act: Act, able: frozenset[State], gives: str = "") -> tuple[Handler, Handler]:
    """The methods NAME and NAMEMany, which do `act` to one job or to many."""

    async def many(self: Controlling, request: Request, ids: list[str], options: dict[str, Any]) -> tuple[Any, ...]:
        return (await self.each(request, ids, options, act, able),)

    many.__name__ = f"{name}Many"
    return single(name, act, gives), method("as ids, a{sv} options", "a(sss) outcomes", FILTER)(many)


def single(name: str, act: Act, gives: str = "") -> Handler:
    """The method NAME, which does `act` to one job."""

    async def one(self: Controlling, request: Request, job_id: str, _: dict[str, Any]) -> tuple[Any, ...]:
        result = await act(self, request, job_id)
        await self.desk.manager.store.sync()
        return (result,) if gives else ()

    one.__name__ = name
    return method("s id, a{sv} options", gives, {})(one)


async def _stop(self: Controlling, request: Request, job_id: str) -> None:
    job = await self.desk.managed(request, job_id)
    self.desk.manager.stop(job, f"stopped by {request.caller.user.name}", request.id)


async def _restart(self: Controlling, request: Request, job_id: str) -> int:
    """What a job executes is authorized like a start, of its spec as it is, by the present caller."""
    job = await self.desk.managed(request, job_id)
    if job.spec.get("StandardInput"):
        raise InvalidSpec(f"job {job.id} reads a standard input that is used up; start a new job instead")
    grant = await self.desk.executes(request, model.again(job), hooks.wanted(job.spec))
    return self.desk.manager.restart(grant.to(self.desk.unchanged(job)), request.id)


async def _pause(self: Controlling, request: Request, job_id: str) -> None:
    job = await self.desk.managed(request, job_id)
    await self.desk.manager.pause(job)
    self.note(request, job, "paused", job.state is not State.PAUSED)


async def _resume(self: Controlling, request: Request, job_id: str) -> None:
    job = await self.desk.managed(request, job_id)
    await self.desk.manager.resume(job)
    self.note(request, job, "resumed", job.state is State.PAUSED)


async def _hold(self: Controlling, request: Request, job_id: str) -> None:
    job = await self.desk.managed(request, job_id)
    self.desk.manager.hold(job)
    self.note(request, job, "held", not job.run.held)


async def _release(self: Controlling, request: Request, job_id: str) -> None:
    """Authorize like a start: rights that the job was accepted with may have been withdrawn since."""
    job = await self.desk.managed(request, job_id)
    held = job.run.held
    if held:
        grant = await self.desk.executes(request, job, job.spec)
        job = grant.to(self.desk.unchanged(job))
    self.desk.manager.release(job)
    self.note(request, job, "released", held)


async def _remove(self: Controlling, request: Request, job_id: str) -> None:
    job = await self.desk.managed(request, job_id)
    self.desk.manager.remove([job], f"removed by {request.caller.user.name}", request.id)


async def _may_remove(self: Controlling, request: Request, job_id: str) -> None:
    self.desk.manager.removable(await self.desk.managed(request, job_id))


class Controlling:
    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    Stop = single("Stop", _stop)

    @method("as ids, a{sv} options", "a(sss) outcomes", FILTER)
    async def StopMany(self, request: Request, ids: list[str], options: dict[str, Any]) -> tuple[list[Any]]:
        """Who waits for one that is stopped may be canceled by that: then it is as it was to be."""
        unfinished = frozenset(self.desk.manager.jobs)

        async def stop(self: Controlling, request: Request, job_id: str) -> None:
            job = await self.desk.managed(request, job_id)
            if not (job.state is State.STOPPED and job_id in unfinished):
                await _stop(self, request, job_id)

        return (await self.each(request, ids, options, stop, UNFINISHED),)

    Restart = single("Restart", _restart, "u run")

    @method("as ids, a{sv} options", "a(sss) outcomes", FILTER)
    async def RestartMany(self, request: Request, ids: list[str], options: dict[str, Any]) -> tuple[list[Any]]:
        """The oldest first: what depends on another of them finds that one waiting, not failed."""
        able = EVERY if options.get("State") else UNFINISHED
        return (await self.each(request, ids, options, _restart, able, oldest_first=True),)

    Pause, PauseMany = verb("Pause", _pause, RUNNING)
    Resume, ResumeMany = verb("Resume", _resume, PAUSED)
    Hold, HoldMany = verb("Hold", _hold, QUEUED)
    Release, ReleaseMany = verb("Release", _release, QUEUED)
    Remove = single("Remove", _remove)

    @method("as ids, a{sv} options", "a(sss) outcomes", FILTER)
    async def RemoveMany(self, request: Request, ids: list[str], options: dict[str, Any]) -> tuple[list[Any]]:
        """By the hundred: thousands of transactions would take their time, and so would one of thousands."""
        outcomes = await self.each(request, ids, options, _may_remove, FINISHED)
        left = deque(one for one in outcomes if not one[1])
        while left:
            await self.desk.turns.begin(request.caller.user.uid)
            self._remove_some(request, left)
        await self.desk.manager.store.sync()
        return (outcomes,)

    def _remove_some(self, request: Request, left: deque[list[str]]) -> None:
        """Remove the first jobs of these outcomes, or write into each why not."""
        manager, able, at_once = self.desk.manager, dict[str, Job](), AtOnce()
        outcomes = []
        while left and not at_once.full:
            outcomes.append(one := left.popleft())
            try:
                job = manager.get(one[0])
                manager.removable(job)  # since it was asked about it may have been started again
                able[job.id] = job
                at_once.add(job)
            except JobsvcError as error:
                one[1:] = error.bus_name, str(error)
        try:
            manager.remove(able.values(), f"removed by {request.caller.user.name}", request.id)
        except JobsvcError as error:
            for one in outcomes:
                one[1:] = (one[1], one[2]) if one[1] else (error.bus_name, str(error))

    @method("s id, s whom, i signal, a{sv} options", options={})
    async def Kill(self, request: Request, job_id: str, whom: str, number: int, _: dict[str, Any]) -> tuple[()]:
        _check_signal(whom, number)
        await self._kill(request, job_id, whom, number)
        return ()

    @method("as ids, s whom, i signal, a{sv} options", "a(sss) outcomes", FILTER)
    async def KillMany(
        self, request: Request, ids: list[str], whom: str, number: int, options: dict[str, Any]
    ) -> tuple[list[Any]]:
        _check_signal(whom, number)

        async def kill(self: Controlling, request: Request, job_id: str) -> None:
            await self._kill(request, job_id, whom, number)

        return (await self.each(request, ids, options, kill, THERE),)

    async def _kill(self, request: Request, job_id: str, whom: str, number: int) -> None:
        await self.desk.manager.kill(await self.desk.managed(request, job_id), whom, number)

    @method("s id, a{sv} properties, a{sv} options", options={}, cap=MIB)
    async def SetProperties(
        self, request: Request, job_id: str, properties: dict[str, Variant], _: dict[str, Any]
    ) -> tuple[()]:
        """Bounds are changed under the manager's eye; anything else is authorized like a start of what it becomes."""
        desk, preparing = self.desk, Preparing(self.desk, request)
        wanted = spec.check_some(wire.unpack(properties))
        job = await desk.managed(request, job_id)
        changes.check(job, wanted)
        if "OnBehalfOf" in wanted and not (request.caller.is_root or request.caller.user == job.owner):
            raise AccessDenied(f"OnBehalfOf is the word of {job.owner.name}, who owns job {job_id}")
        await preparing.may_depend(wanted)
        whole = complete(changes.applied(job.spec, wanted), await desk.authority.bounds(request.caller))
        spec.check_together(whole)
        preparing.check_fits(whole)
        new = {name: whole[name] for name in wanted}  # with the ceilings of paths that were not named
        if wanted.keys() <= changes.BOUNDS:
            first = await desk.authority.change(request.caller, job, new)
            allowed = replace(job, priority_allowed=first) if "Priority" in new else job
        else:
            allowed = (await desk.executes(request, job, whole)).to(job)
            new = {name: value for name, value in whole.items() if job.spec.get(name) != value}  # as it was asked about
        await desk.manager.set(allowed, new, request.id)
        await desk.manager.store.sync()
        return ()

    @method("s id, a{sv} options", "h fd", {})
    async def Attach(self, request: Request, job_id: str, _: dict[str, Any]) -> tuple[Fd]:
        """What is typed into a terminal is executed: it is authorized like a start, which its starter has been."""
        job = await self.desk.managed(request, job_id)
        if not job.spec.get("Pty"):
            raise WrongState(f"job {job_id} has no terminal; start it with one ('jobctl run -t')")
        if self.desk.starters.get(job_id) != (request.caller.sender, job.spec):
            await self.desk.executes(request, job, job.spec)
        fd = await self.desk.manager.attach(self.desk.unchanged(job))
        log.info("%s is attached to job %s", request.caller.user.name, job_id)
        return (Fd(fd),)

    # One, or many

    async def each(
        self,
        request: Request,
        ids: list[str],
        options: dict[str, Any],
        act: Act,
        able: frozenset[State],
        oldest_first: bool = False,
    ) -> list[Any]:
        """Do it to each of the named jobs or, with none named, to those of the filter; an answer per job."""
        if ids and options:
            raise InvalidArgs(f"{request.call.member} takes ids or a filter, not both")
        if not ids:
            if not any(value not in NO_TERM for value in options.values()):
                raise InvalidArgs(f"{request.call.member} needs ids or a filter; for all jobs name states with State")
            wanted = await self.desk.filter(request, options)
            names = frozenset(map(str, able))
            states = names if wanted.states is None else wanted.states & names
            wanted = replace(wanted, states=states)
            ids = await self.desk.manager.store.queries.ids(request.caller.user.uid, wanted)
        outcomes = [[job_id, "", ""] for job_id in ids]
        pace = self.desk.pace(request)
        for outcome in await self._oldest_first(request, outcomes) if oldest_first else outcomes:
            await pace.step()
            try:
                await act(self, request, outcome[0])
            except JobsvcError as error:
                outcome[1:] = error.bus_name, str(error)
        await self.desk.manager.store.sync()
        return outcomes

    async def _oldest_first(self, request: Request, outcomes: list[list[str]]) -> list[list[str]]:
        asker, job_ids = request.caller.user.uid, [outcome[0] for outcome in outcomes]
        numbers = await self.desk.manager.store.queries.numbers(asker, job_ids)
        return sorted(outcomes, key=lambda outcome: numbers.get(outcome[0], 0))

    def note(self, request: Request, job: Job, what: str, new: bool) -> None:
        """Leave word in the journal of who did it, if it was not so before."""
        if new:
            self.desk.manager.events.changed(job, f"{what} by {request.caller.user.name}", request.id)


def _check_signal(whom: str, number: int) -> None:
    if whom not in ("main", "all"):
        raise InvalidArgs(f"whom must be main or all, not {whom!r}")
    if number not in signal.valid_signals():
        raise InvalidArgs(f"{number} is not a signal")
