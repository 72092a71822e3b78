"""MaxOutputPerUser=: how much of the journal a user's jobs may still take today, also across lives of the service."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from jobsvc import spec
from jobsvc.clock import realtime_usec
from jobsvc.config import Config
from jobsvc.model import Job, User
from jobsvc.native import ENTRY_COST
from jobsvc.quantity import DAY, HOUR
from jobsvc.share import Budget
from jobsvc.store import Store

log = logging.getLogger(__name__)

EVENTS = 4  # of a run, usually


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

    def events(self, owner: User, count: int = 1) -> bool:
        """Whether so many life events of this owner's jobs may be written; they are counted.

        Output comes first: its half of what there is for a day is not theirs to take.
        """
        if not owner.uid:
            return True
        present = time.monotonic()
        if self._had.had(owner.uid, present) < self._config().max_output_per_user // 2:
            self._had.add(owner.uid, count * ENTRY_COST, present)
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

    async def recall(self, store: Store) -> None:
        """What was written in the last day, in earlier lives of the service."""
        present, uptime = realtime_usec(), time.monotonic()
        for owner, hour, count in await store.figures.wrote_since(present - DAY, EVENTS * ENTRY_COST):
            age = max(0, present // HOUR - hour) * HOUR
            self._had.add(owner, count, uptime - age / 1_000_000)
