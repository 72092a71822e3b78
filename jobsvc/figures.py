"""What the service itself wants to know of all jobs in jobs.db: how many, how large, which are the oldest.

Each of these reads far, so they have a thread and connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

SIZE = "length(body) + (SELECT coalesce(sum(length(runs.body)), 0) FROM runs WHERE runs.id = jobs.id)"

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


# +: in the order of the index of ends
_OLDEST = "SELECT id FROM jobs WHERE finished_at IS NOT NULL AND +owner_uid = ? ORDER BY finished_at LIMIT ?"
_EXPIRED = "SELECT id FROM jobs WHERE finished_at IS NOT NULL AND finished_at < ? ORDER BY finished_at LIMIT ?"


class Figures:
    """What is committed, and no more, is in the sums."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "figures")

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def finished_bytes(self) -> dict[int, int]:
        """How much the finished jobs of each owner take, with all their runs."""
        return dict(await self._ask(_FINISHED_BYTES))

    async def wrote_since(self, begin: int) -> list[tuple[int, int, int, int]]:
        """Runs that ended since then: owner's uid, hour since 1970, how many, bytes that their output takes."""
        return await self._ask(_WROTE, begin, begin)

    async def finished(self) -> int:
        """How many finished jobs there are."""
        ((count,),) = await self._ask("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")
        return int(count)

    async def by_owner(self) -> dict[int, int]:
        """How many jobs there are of each owner, finished or not: that much the index knows by itself."""
        return dict(await self._ask("SELECT owner_uid, count(*) FROM jobs GROUP BY owner_uid"))

    async def expired(self, before: int, count: int) -> list[str]:
        """Jobs that finished before this time: so many, those that finished first."""
        return [row[0] for row in await self._ask(_EXPIRED, before, count)]

    async def oldest_of(self, owner_uid: int, count: int) -> list[str]:
        """So many finished jobs of an owner, those that finished first."""
        return [row[0] for row in await self._ask(_OLDEST, owner_uid, count)]

    async def sizes(self, job_ids: Iterable[str]) -> dict[str, int]:
        """How many bytes each of these jobs takes, with all its runs."""
        query = f"SELECT id, {SIZE} FROM jobs WHERE id IN (SELECT value FROM json_each(?))"
        return dict(await self._ask(query, json.dumps(list(job_ids))))

    async def _ask(self, query: str, *values: Any) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, query, values)

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{quote(self._path)}?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()
