"""Lets queued jobs begin when it is their turn, and says of the others why it is not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from jobsvc import admission, load
from jobsvc.config import Config
from jobsvc.model import Job, Queued
from jobsvc.roster import Roster

log = logging.getLogger(__name__)

AGAIN = 2.0  # seconds
CLOCK_SET_WITHIN = 60.0  # seconds in which a clock that was set is noticed by those who wait for a time


class Turnstile:
    """`begin` is called with each job whose turn it is; `shut` says why nothing at all may begin, if so."""

    def __init__(
        self,
        roster: Roster,
        now: Callable[[], int],
        config: Callable[[], Config],
        begin: Callable[[Job], None],
        shut: Callable[[], str | None],
    ) -> None:
        self.open = False  # not before everything is taken up, and not any more at our end
        self._roster = roster
        self._now = now
        self._config = config
        self._begin = begin
        self._shut = shut
        self._wake: asyncio.TimerHandle | None = None
        self._look_again: asyncio.TimerHandle | None = None
        self._held_off: asyncio.TimerHandle | None = None
        self._busy: dict[str, str] = {}  # why nothing of a queue begins, as of the last look at the machine

    def admit(self) -> None:
        """Begin the runs whose turn it is."""
        if not self.open or self._held_off or self._shut():
            return
        at, config, queue = self._now(), self._config(), self._roster.queue
        room = admission.MAX_STARTING - len(queue.slots.starting)
        watched = load.watched(config)
        self._busy = {name: why for name, why in self._busy.items() if name in watched}
        begun = queue.admit(room, config, at, shut=watched)
        if watched and room > len(begun):
            begun += self._admit_one(config, at, watched)
        for job in begun:
            try:
                self._begin(job)
            except Exception:  # the others have left the queue, too
                log.exception("job %s, which goes back to the queue", job.id)
                self._put_back(job, at)
        self._wake_at(queue.next_due, at)

    def _put_back(self, job: Job, at: int) -> None:
        if (current := self._roster.jobs.get(job.id)) and isinstance(current.run.phase, Queued):
            self._roster.queue.end(job.id)
            self._roster.queue.add(current, at)
            self.hold_off(AGAIN)

    def hold_off(self, seconds: float) -> None:
        """Nothing can begin just now: let the queue wait a little."""
        if self._held_off is None:
            self._held_off = asyncio.get_running_loop().call_later(seconds, self._go_on)

    def reason(self, job: Job) -> str | None:
        """Why a queued job waits; None for any other."""
        if not isinstance(job.run.phase, Queued):
            return None
        why = admission.waits(job, self._now()) or self._shut()
        if not why and self._held_off:
            why = job.run.phase.reason or "nothing can begin just now; it is tried again"
        why = why or admission.limit(job, self._roster.queue.slots, self._config())
        return why or self._busy.get(job.queue) or job.run.phase.reason or admission.TURN

    def _go_on(self) -> None:
        self._held_off = None
        self.admit()

    def _admit_one(self, config: Config, at: int, watched: frozenset[str]) -> list[Job]:
        """Of the queues that wait for a machine that is not busy. It is looked at only when somebody wants to begin."""
        queue, others = self._roster.queue, config.queues.keys() - watched
        if self._look_again or not queue.wants(config, at, shut=others):
            return []
        seen = load.look()
        reasons = {name: load.hindrance(seen, *load.bounds(name, config)) for name in watched}
        self._busy = {name: reason for name, reason in reasons.items() if reason}
        self._look_again = asyncio.get_running_loop().call_later(load.LOOK_EVERY, self._look_over)
        return queue.admit(1, config, at, shut=others | self._busy.keys())

    def _look_over(self) -> None:
        self._look_again = None
        self.admit()

    def _wake_at(self, due: int | None, at: int) -> None:
        """Look again when the next is due; by then the clock may have been set, so not much later than soon."""
        if self._wake:
            self._wake.cancel()
            self._wake = None
        if due is not None:
            delay = min(max(due - at, 0) / 1_000_000, CLOCK_SET_WITHIN)
            self._wake = asyncio.get_running_loop().call_later(delay, self.admit)
