"""Who hears of changes: clients that asked for it, each of the jobs it may see, by unicast.

A broadcast would show everybody's names. What polkit said once does not hold for ever: who sees
all jobs is asked about anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobsvc import interface, status, wire
from jobsvc.authority import Authority
from jobsvc.bus import Bus, BusError, Call
from jobsvc.callers import Caller
from jobsvc.model import Job, Queued
from jobsvc.share import Count

log = logging.getLogger(__name__)

PROPERTIES = "org.freedesktop.DBus.Properties"
ASK_AGAIN = 60.0  # seconds; polkit's kept permissions end after five minutes, groups change at any time


@dataclass(slots=True)
class Subscriber:
    caller: Caller
    sees_all: bool


class Subscribers:
    """Everybody who called Subscribe(), and what is sent to them."""

    def __init__(self, bus: Bus, authority: Authority) -> None:
        self._bus = bus
        self._authority = authority
        self._by_sender: dict[str, Subscriber] = {}
        self._count = Count("MaxSubscribersPerUser", "clients that listen to changes")
        self._asking: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._by_sender)

    async def add(self, caller: Caller) -> None:
        """Tell this client from now on; Quota if its user has too many."""
        if caller.sender not in self._by_sender:
            self._count.take(caller.user.uid, self._authority.config.max_subscribers_per_user)
            self._by_sender[caller.sender] = Subscriber(caller, sees_all=False)
        sees_all = await self._authority.sees_all(caller)
        if subscriber := self._by_sender.get(caller.sender):  # it may have left meanwhile
            subscriber.sees_all = sees_all
            self._look_again()

    def drop(self, sender: str) -> None:
        if subscriber := self._by_sender.pop(sender, None):
            self._count.give_back(subscriber.caller.user.uid)

    def close(self) -> None:
        if self._again:
            self._again.cancel()
        if self._asking:
            self._asking.cancel()

    # Who sees all

    def ask_anew(self) -> None:
        """polkit's answers may be others now."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="who sees all")

    def _look_again(self) -> None:
        if self._again is None and any(one.sees_all and not one.caller.is_root for one in self._by_sender.values()):
            self._again = asyncio.get_running_loop().call_later(ASK_AGAIN, self._due)

    def _due(self) -> None:
        self._again = None
        self.ask_anew()

    async def _ask(self) -> None:
        for subscriber in list(self._by_sender.values()):
            if subscriber.sees_all and not subscriber.caller.is_root:
                try:
                    subscriber.sees_all = await self._authority.sees_all(subscriber.caller)
                except Exception:  # whatever it was, it was not a yes
                    log.exception("asking polkit about %s", subscriber.caller.sender)
                    subscriber.sees_all = False
        self._look_again()

    # What is sent

    def tell(self, old: Job | None, new: Job | None) -> None:
        """A job was added (no old), has changed, or was removed (no new)."""
        job = new or old
        if job is None or not (told := [*self._who(job)]):
            return
        for signal in signals(old, new):
            for sender in told:
                self._bus.emit(sender, *signal)

    def _who(self, job: Job) -> Iterable[str]:
        for sender, subscriber in self._by_sender.items():
            if subscriber.sees_all or subscriber.caller.owns(job):
                yield sender

    def announce(self, facts: dict[str, Any]) -> None:
        """Tell everybody of properties of the manager that have other values now."""
        body = [interface.MANAGER, wire.pack(facts, interface.PROPERTIES), []]
        for sender in self._by_sender:
            self._bus.emit(sender, interface.ROOT, f"{PROPERTIES}.PropertiesChanged", "sa{sv}as", body)


def signals(old: Job | None, new: Job | None) -> list[tuple[str, str, str, list[Any]]]:
    """What is told of a change: path, name, signature and body of each signal."""
    job = new or old
    assert job is not None
    place = f"{interface.JOBS}/{job.id}"
    if old is None or new is None:
        name = "JobRemoved" if old else "JobAdded"
        return [(interface.ROOT, f"{interface.MANAGER}.{name}", "so", [job.id, place])]
    told = [(place, f"{PROPERTIES}.PropertiesChanged", "sa{sv}as", difference(old, new))]
    before, after = standing(old), standing(new)
    if after != before:
        told.insert(0, (interface.ROOT, f"{interface.MANAGER}.JobChanged", "sss", [job.id, *after[:2]]))
    return told


def standing(job: Job) -> tuple[str, str, int]:
    """State, result and run: what JobChanged is about."""
    return str(job.state), str(getattr(job.run.phase, "result", "")), job.run.number


def difference(old: Job, new: Job) -> list[Any]:
    """PropertiesChanged: what is different, and what is no longer known."""
    before, after = status.describe(old), status.describe(new)
    changed = {n: v for n, v in after.items() if v != before[n] and n not in ("Usage", "Output")}
    gone = [name for name, value in changed.items() if value is None]
    if isinstance(old.run.phase, Queued) and not isinstance(new.run.phase, Queued):
        gone.append("QueueReason")
    return [interface.JOB, wire.pack(changed, status.ALL), gone]


async def hear_polkit(bus: Bus, subscribers: Subscribers) -> None:
    """Have polkit's "Changed" (rules, sessions, permissions that have ended) make us ask anew."""

    def arrived(signal: Call) -> None:
        if signal.member == "Changed":
            subscribers.ask_anew()

    bus.on_signal = arrived
    try:
        await bus.match("type='signal',sender='org.freedesktop.PolicyKit1',member='Changed'")
    except BusError as error:
        log.warning("polkit's changes are looked for every %.0f s only: %s", ASK_AGAIN, error)
