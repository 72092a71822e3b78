"""MaxOutputPerUser=: how much a user's jobs may still write today, also across lives of the service."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobsvc import spec
from jobsvc.clock import realtime_usec
from jobsvc.config import Config
from jobsvc.model import Job
from jobsvc.quantity import DAY, HOUR
from jobsvc.share import Budget
from jobsvc.store import Store


class Allowance:
    """Counts bytes of output by owner; root's are not counted. `used_up` is told of an owner who has no more left."""

    def __init__(self, config: Callable[[], Config], used_up: Callable[[int], None]) -> None:
        self._config = config
        self._used_up = used_up
        self._had = Budget()

    def left(self, owner: int) -> int:
        """How many bytes the jobs of this owner may still write."""
        if not owner:
            return spec.INFINITY
        return max(0, self._config().max_output_per_user - self._had.had(owner, time.monotonic()))

    def wrote(self, job: Job, count: int, *, by_then: bool = False) -> None:
        """A run's output has come so far; `by_then` if it had when we took it up.

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
        cut = sum(end - begin for _, begin, end, why in job.run.missing if why == "cut")  # the journal has not got it
        wrote = (job.run.stdout_bytes or 0) + (job.run.stderr_bytes or 0)
        self._had.count(job.key, job.owner.uid, wrote - cut, time.monotonic())
        self._had.close(job.key)

    async def recall(self, store: Store) -> None:
        """What was written in the last day, in earlier lives of the service."""
        present, uptime = realtime_usec(), time.monotonic()
        for owner, hour, count in await store.wrote_since(present - DAY):
            age = max(0, present // HOUR - hour) * HOUR
            self._had.add(owner, count, uptime - age / 1_000_000)
