"""What all methods work with, and the questions that many of them ask first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from jobsvc import spec
from jobsvc.aside import Aside
from jobsvc.authority import Authority, Grant
from jobsvc.callers import Callers
from jobsvc.errors import InvalidArgs, InvalidSpec, NoSuchJob, WrongState
from jobsvc.interface import JOBS, KIB, Request
from jobsvc.logs import Logs
from jobsvc.manager import Manager
from jobsvc.model import Job, State
from jobsvc.selection import Filter
from jobsvc.share import Pace, Turns
from jobsvc.subscribers import Subscribers

MIB: Final = 1024 * KIB

MAX_LABELS: Final = 32  # what a job can have; each costs the same again
LONGEST_GLOB: Final = 256

_HEX = re.compile(r"[0-9a-f]{0,16}")


@dataclass(frozen=True, slots=True)
class Desk:
    """One for the whole service."""

    manager: Manager
    authority: Authority
    callers: Callers
    logs: Logs
    subscribers: Subscribers
    tasks: asyncio.TaskGroup
    turns: Turns = field(default_factory=Turns)  # of the loop
    aside: Aside = field(default_factory=lambda: Aside("packing", 1))  # one: it is Python that works, not SQLite
    # Of unfinished jobs with a terminal: who started them, and as what.
    starters: dict[str, tuple[str, spec.Values]] = field(default_factory=dict)

    def pace(self, request: Request) -> Pace:
        return Pace(self.turns, request.caller.user.uid)

    async def lookup(self, request: Request, job_id: str) -> Job:
        """A job that the caller may know of."""
        await self.authority.view(request.caller, self.manager.get(job_id))
        return self.manager.get(job_id)

    async def managed(self, request: Request, job_id: str) -> Job:
        """A job that the caller may manage, as it is after the question."""
        await self.authority.manage(request.caller, self.manager.get(job_id))
        return self.manager.get(job_id)

    def unchanged(self, job: Job) -> Job:
        """A job as it is now. What was asked about may not be what would be executed any more: then it is refused."""
        current = self.manager.get(job.id)
        if current.spec != job.spec or current.run.number != job.run.number:
            raise WrongState(f"job {job.id} was changed by somebody else meanwhile; try again")
        return current

    async def executes(self, request: Request, job: Job, values: spec.Values) -> Grant:
        """May the caller have this executed as the user the job runs as? And what more does that allow?"""
        named = {**values, "User": str(job.user.uid)}
        if job.group_override:
            named["Group"] = str(job.gid)
        subject = await self.authority.subject(request.caller, named)
        if subject.account.user != job.user:
            raise NoSuchJob.of(job.id)
        return await self.authority.start(request.caller, job, values, subject)

    async def filter(self, request: Request, values: dict[str, Any]) -> Filter:
        """The terms of a list, of what the caller may see."""
        caller = request.caller
        for name, value in values.items():
            if isinstance(value, int) and value >= 2**63:
                raise InvalidArgs(f"{name} must be less than 2^63")
        if len(values.get("Labels", {})) > MAX_LABELS or len(values.get("Name", "")) > LONGEST_GLOB:
            raise InvalidArgs(f"at most {MAX_LABELS} labels and {LONGEST_GLOB} characters of a name are looked for")
        if values.get("State") == []:
            raise InvalidArgs("State names no state; leave it out for jobs in any")
        if not _HEX.fullmatch(values.get("IdPrefix", "")):
            raise InvalidArgs(f"IdPrefix {values['IdPrefix']!r} must be the beginning of an id: 1 to 16 of 0-9a-f")
        visible_to = None if await self.authority.sees_all(caller) else caller.user
        if values.get("After"):
            last = self.manager.store.get(values["After"])
            if last is None or (visible_to and not caller.owns(last)):
                raise NoSuchJob(f"no job {values['After']!r} to go on after; begin again without After")
        return Filter(
            visible_to=visible_to,
            states=_states(values["State"]) if "State" in values else None,
            id_prefix=values.get("IdPrefix"),
            user=values.get("User"),
            owner_uid=values.get("OwnerUID"),
            name=values.get("Name"),
            queue=values.get("Queue"),
            array=values.get("ArrayId"),
            since=values.get("SinceUSec"),
            until=values.get("UntilUSec"),
            finished_before=values.get("FinishedBeforeUSec"),
            changed_since=values.get("ChangedSince"),
            labels=values.get("Labels", {}),
            hooks=values.get("Hooks"),
            after=values.get("After"),
            reverse=values.get("Reverse", False),
        )


def _states(names: Iterable[str]) -> frozenset[str]:
    """State names as given, checked."""
    known = {str(state) for state in State}
    for name in names:
        if name not in known:
            raise InvalidSpec(f"unknown state {name!r}; there are {', '.join(sorted(known))}")
    return frozenset(names)


def path_of(job_id: str) -> str:
    return f"{JOBS}/{job_id}"
