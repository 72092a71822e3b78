"""How long finished jobs are remembered: KeepFinished=, KeepFinishedSec= and KeepFinishedBytesPerUser=."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from jobsvc import retention
from jobsvc.config import Config
from jobsvc.model import Job
from jobsvc.retention import AtOnce, Reckoning
from jobsvc.store import NotRecorded, Store
from jobsvc.waiting import weight

log = logging.getLogger(__name__)

EVERY = 600.0  # seconds
AT_ONCE = 100
FEW = 10  # of those that may be large
SHARE = 8  # of KeepFinishedBytesPerUser= one user may come by such a part before the next look
NOBODY = "retention"  # who asked for a removal that nobody asked for
Sizes = Callable[[Iterable[str]], Awaitable[dict[str, int]]]


class Owner(Protocol):
    """What history needs of the manager."""

    config: Config
    store: Store
    boot_id: str

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Those that are not finished."""

    def remove(self, jobs: Iterable[Job], why: str, request_id: str) -> None: ...


class History:
    """Forgets what is beyond the bounds; a jump of the clock removes nothing at once."""

    def __init__(self, owner: Owner, now: Callable[[], int]) -> None:
        self._owner = owner
        self._now = now
        self._again = asyncio.Event()
        self._fresh: Counter[int] = Counter()  # bytes by owner since the last look

    def look_again(self) -> None:
        """The bounds are others now."""
        self._again.set()

    def ended(self, job: Job) -> None:
        """What one user piles up does not wait for the next look to be due."""
        if owner := job.owner.uid:
            self._fresh[owner] += weight(job)
            if self._fresh[owner] > self._owner.config.keep_finished_bytes_per_user // SHARE:
                self._again.set()

    async def keep(self) -> None:
        """For ever."""
        while True:
            try:
                await self.retire()
            except (sqlite3.Error, NotRecorded) as error:
                log.error("nothing can be removed from jobs.db: %s", error)
                self._owner.store.examine(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._again.wait()
            self._again.clear()

    async def retire(self) -> None:
        """What has been kept too long goes, then the oldest of whoever has the most of what is too many."""
        store, config = self._owner.store, self._owner.config
        present = self._now()
        reckoning = self._reckon(present)
        before = reckoning.before(config.keep_finished_usec, present)
        while await self._remove(await store.figures.expired(before, AT_ONCE), "KeepFinishedSec= is over"):
            pass
        if (excess := await store.figures.finished() - config.keep_finished) > 0:
            counts = await store.figures.by_owner()
            unfinished = Counter(job.owner.uid for job in self._owner.jobs.values())
            finished = {owner: max(0, count - unfinished[owner]) for owner, count in counts.items()}
            for owner, count in retention.shares(finished, min(excess, sum(finished.values()))).items():
                why = f"KeepFinished={config.keep_finished} is reached"
                await self._retire_of(owner, count, _one_each, AT_ONCE, why)
        self._fresh.clear()
        limit = config.keep_finished_bytes_per_user
        for owner, used in (await store.figures.finished_bytes()).items():
            if owner and used > limit:
                why = f"KeepFinishedBytesPerUser={limit} is reached"
                await self._retire_of(owner, used - limit, store.figures.sizes, FEW, why)
        store.forget_requests(reckoning.before(config.keep_request_id_usec, present))

    async def _retire_of(self, owner: int, excess: int, sizes: Sizes, at_once: int, why: str) -> None:
        """The oldest jobs of an owner, until what they come to, as `sizes` counts it, is no less than the excess."""
        store = self._owner.store
        while excess > 0:
            size = await sizes(oldest := await store.figures.oldest_of(owner, at_once))
            expired = []
            for job_id in oldest:
                if excess > 0:
                    expired.append(job_id)
                    excess -= size.get(job_id, 0)
            if not await self._remove(expired, why):
                return

    async def _remove(self, job_ids: Iterable[str], why: str) -> int:
        """Remove those that are finished, still; how many that are."""
        waiting, count = deque(job_ids), 0
        while waiting:
            at_once = AtOnce()
            while waiting and not at_once.full:
                if job := self._owner.store.finished(waiting.popleft()):
                    at_once.add(job)
            self._owner.remove(at_once.jobs, why, NOBODY)
            count += len(at_once.jobs)
            await asyncio.sleep(0)
        return count

    def _reckon(self, present: int) -> Reckoning:
        """The clock of retention, kept from one life of the service to the next."""
        store, boot_id = self._owner.store, self._owner.boot_id
        uptime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        if text := store.fact("reckoning"):
            reckoning = Reckoning.unpack(text).advance(present, uptime, boot_id)
        else:
            reckoning = Reckoning(store.newest_end() or present, uptime, boot_id)
        store.note_fact("reckoning", reckoning.pack())
        return reckoning


async def _one_each(job_ids: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(job_ids, 1)
