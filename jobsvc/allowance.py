"""MaxOutputPerUser=: how much of the journal a user's jobs may still take today, also across lives of the service."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from jobsvc import spec
from jobsvc.clock import realtime_usec
from jobsvc.config import Config
from jobsvc.model import Job
from jobsvc.quantity import DAY, HOUR
from jobsvc.share import Budget
from jobsvc.store import Store

log = logging.getLogger(__name__)

EVENT_COST = 1024  # bytes of the journal; 850 measured, with a short name
OF_SUPERVISOR = 3  # of a run: started, finished, end of output
OF_SERVICE = 1  # queued


class Allowance:
    """Counts bytes of the journal by owner, root's are not; `used_up` is told of an owner who has no more left."""

    def __init__(self, config: Callable[[], Config], used_up: Callable[[int], None]) -> None:
        self._config = config
        self._used_up = used_up
        self._had = Budget()
        self._quiet: set[int] = set()

    def left(self, owner: int) -> int:
        """How many bytes of the journal the jobs of this owner may still take."""
        if not owner:
            return spec.INFINITY
        return max(0, self._config().max_output_per_user - self._had.had(owner, time.monotonic()))

    def event(self, job: Job) -> bool:
        """Whether there may be one more life event about this job; it is counted."""
        if not self._has_room_for_events(job):
            return False
        self._had.add(job.owner.uid, EVENT_COST, time.monotonic())
        return True

    def events_of_run(self, job: Job) -> bool:
        """Whether a supervisor may write those of the present run; they count once, however often it is launched."""
        if not self._has_room_for_events(job):
            return False
        self._had.count(_events(job), job.owner.uid, OF_SUPERVISOR * EVENT_COST, time.monotonic())
        return True

    def _has_room_for_events(self, job: Job) -> bool:
        """Output comes first: the second half is all its own. What root does is told in any case."""
        owner = job.owner
        if not owner.uid or not job.user.uid:
            return True
        if self._had.had(owner.uid, time.monotonic()) < self._half():
            self._quiet.discard(owner.uid)
            return True
        if owner.uid not in self._quiet:
            self._quiet.add(owner.uid)
            log.warning(
                "jobs of %s have taken half of MaxOutputPerUser= in the last 24 hours: until it is less, "
                "the journal has output of them but not what happens to them",
                owner.name,
            )
        return False

    def _half(self) -> int:
        return self._config().max_output_per_user // 2

    def wrote(self, job: Job, count: int, *, by_then: bool = False) -> None:
        """A run's output takes so much by now; `by_then` if it did when we took it up.

        What a run wrote that is older than a day is not to count as written now.
        """
        if not (owner := job.owner.uid):
            return
        if by_then and (job.run.started_at or 0) < realtime_usec() - DAY:
            self._had.pass_over(job.key, count)
        else:
            self._had.count(job.key, owner, count, time.monotonic())
        if not self.left(owner):
            self._used_up(owner)

    def ended(self, job: Job) -> None:
        """The run will write no more than it has."""
        self._had.count(job.key, job.owner.uid, job.run.journal_bytes or 0, time.monotonic())
        self._had.close(job.key)
        self._had.close(_events(job))

    async def recall(self, store: Store) -> None:
        """What was written in the last day, in earlier lives of the service."""
        present, uptime = realtime_usec(), time.monotonic()
        known = await store.figures.wrote_since(present - DAY)
        took = Counter[int]()
        for owner, _, _, count in known:
            took[owner] += count
        room = {owner: max(0, self._half() - count) for owner, count in took.items()}
        for owner, hour, runs, count in known:
            events = min(room[owner], runs * (OF_SUPERVISOR + OF_SERVICE) * EVENT_COST)
            room[owner] -= events
            self._had.add(owner, count + events, uptime - max(0, present // HOUR - hour) * HOUR / 1_000_000)


def _events(job: Job) -> str:
    return f"{job.key} events"
