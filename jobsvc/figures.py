"""Sums over the finished jobs in jobs.db.

Each of them reads all runs of these, so they have a thread and connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from jobsvc.selection import Filter

SIZE = "length(body) + (SELECT coalesce(sum(length(runs.body)), 0) FROM runs WHERE runs.id = jobs.id)"

_KEYS = ("User", "Queue", "Day", "Jobs", "Completed", "Failed", "Stopped", "CPUUsageNSec", "MemoryPeak", "WaitUSec")
# A run that does not say when it came to the queue is of an earlier release; the first one came with its job.
_STATS = """
SELECT user_name, queue, day, count(*), sum(state = 'completed'), sum(state = 'failed'), sum(state = 'stopped'),
    sum(cpu), max(peak), sum(wait)
FROM (
    SELECT user_name, queue, state, date(finished_at / 1000000, 'unixepoch') AS day,
        sum(json_extract(runs.body, '$.usage.CPUUsageNSec')) AS cpu,
        max(json_extract(runs.body, '$.usage.MemoryPeak')) AS peak,
        sum(max(0, coalesce(json_extract(runs.body, '$.started_at'), json_extract(runs.body, '$.phase[1].at'))
            - coalesce(json_extract(runs.body, '$.queued_at'), iif(runs.number = 1, created_at, NULL)))) AS wait
    FROM jobs JOIN runs ON runs.id = jobs.id
    WHERE {where} AND finished_at IS NOT NULL GROUP BY jobs.number)
GROUP BY day, user_name, queue ORDER BY day DESC, user_name, queue LIMIT 10000
"""

_FINISHED_BYTES = f"SELECT owner_uid, sum({SIZE}) FROM jobs WHERE finished_at IS NOT NULL GROUP BY owner_uid"

# Of a job that goes on after its runs before have ended those count, too.
_WROTE = """
SELECT owner_uid, ended / 3600000000, count(*), sum(wrote)
FROM (
    SELECT owner_uid, json_extract(runs.body, '$.phase[1].at') AS ended,
        coalesce(json_extract(runs.body, '$.journal_bytes'), 0) AS wrote
    FROM jobs JOIN runs ON runs.id = jobs.id
    WHERE (finished_at IS NULL OR finished_at >= ?) AND json_extract(runs.body, '$.phase[0]') = 'Finished')
WHERE ended >= ? GROUP BY 1, 2 ORDER BY 2
"""


class Figures:
    """What is committed, and no more, is in the sums."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "figures")

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def stats(self, filter: Filter) -> list[dict[str, Any]]:
        """The finished jobs of a filter by day (of their end, UTC), user and queue; the newest days first."""
        where, values = filter.where()
        return [dict(zip(_KEYS, row, strict=True)) for row in await self._ask(_STATS.format(where=where), *values)]

    async def finished_bytes(self) -> dict[int, int]:
        """How much the finished jobs of each owner take, with all their runs."""
        return dict(await self._ask(_FINISHED_BYTES))

    async def wrote_since(self, begin: int) -> list[tuple[int, int, int, int]]:
        """Runs that ended since then: owner's uid, hour since 1970, how many, bytes that their output takes."""
        return await self._ask(_WROTE, begin, begin)

    async def _ask(self, query: str, *values: Any) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, query, values)

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{quote(self._path)}?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()
