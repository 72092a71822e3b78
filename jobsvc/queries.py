"""What callers ask about many jobs: lists, counts, statistics. Their cost grows with what is remembered.

So they are answered in threads, each on a read-only connection of its own; one of each user at a time, in turns by the
time they take; and not for longer than LONGEST.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from jobsvc.aside import Aside
from jobsvc.errors import LimitsExceeded
from jobsvc.marks import INDEXED
from jobsvc.model import Job
from jobsvc.packing import BODIES, SELECT, unpack_job
from jobsvc.selection import Filter, Mark

LONGEST = 5.0  # seconds of a thread
PLACES = 4  # threads: a few users with costly questions do not keep the next one waiting
LOOK_EVERY = 10_000  # instructions of SQLite's machine, about a millisecond
MANY = 1000  # jobs with one mark; which of two such marks is the rarer one is not looked for

P = ParamSpec("P")
T = TypeVar("T")

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
    FROM ({found}) AS found CROSS JOIN runs ON runs.id = found.id
    WHERE finished_at IS NOT NULL GROUP BY found.number)
GROUP BY day, user_name, queue ORDER BY day DESC, user_name, queue LIMIT 10000
"""
_STATS_OF = ("jobs.id AS id", "user_name", "queue", "state", "finished_at", "created_at")


class Queries:
    """`noted` commits what can be committed, and returns the jobs that could not be: they are newer than the rows."""

    def __init__(self, path: str, noted: Callable[[], Mapping[str, Job]]) -> None:
        self._path = path
        self._noted = noted
        self._aside = Aside("query", PLACES)

    def close(self) -> None:
        self._aside.close()

    async def page(self, asker: int, filter: Filter, limit: int, most_bytes: int) -> tuple[list[Job], str]:
        """So many jobs of a filter, or less if they are large; and after which there are more, if there are.

        Newest first unless the filter says otherwise. LimitsExceeded if it takes too long, as of all of these.
        """
        return await self.ask(asker, page, filter, limit, most_bytes)

    async def ids(self, asker: int, filter: Filter) -> list[str]:
        """The ids of all jobs of a filter, in the order of `page`."""
        return await self.ask(asker, ids, filter)

    async def count(self, asker: int, filter: Filter) -> dict[str, int]:
        """How many jobs of a filter are in each state."""
        return await self.ask(asker, count, filter)

    async def stats(self, asker: int, filter: Filter) -> list[dict[str, Any]]:
        """The finished jobs of a filter by day (of their end, UTC), user and queue; the newest days first."""
        return await self.ask(asker, stats, filter)

    async def numbers(self, asker: int, job_ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those of these jobs that are there, in the order they came."""
        return await self.ask(asker, numbers, list(job_ids))

    async def ask(
        self, asker: int, question: Callable[Concatenate[Reading, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Have a question answered in this user's turn."""
        reading = Reading(self._path, self._noted())
        return await self._aside.do(
            asker, lambda: reading.answer(lambda: question(reading, *args, **kwargs)), reading.unwanted.set
        )


class Reading:
    """One question: a connection that sees the state of one moment, and when it has taken long enough."""

    def __init__(self, path: str, noted: Mapping[str, Job]) -> None:
        self._path = path
        self.noted = noted
        self.unwanted = threading.Event()
        self.db: sqlite3.Connection
        self.indexed: int | None = None

    def answer(self, question: Callable[[], T]) -> T:
        """In the thread."""
        end = time.thread_time() + LONGEST
        path = f"file:{quote(self._path)}?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True, isolation_level=None)) as self.db:
            self.db.execute("PRAGMA temp_store=MEMORY")
            self.db.set_progress_handler(lambda: self.unwanted.is_set() or time.thread_time() > end, LOOK_EVERY)
            try:
                self.db.execute("BEGIN")
                row = self.db.execute(INDEXED).fetchone()
                self.indexed = row[0] if row else None
                return question()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                raise LimitsExceeded(f"the answer takes more than {LONGEST:.0f} s to find; narrow the filter") from None

    def select(self, filter: Filter, *columns: str) -> tuple[str, list[Any]]:
        """Filter.select as things are here."""
        return filter.select(*columns, indexed=self.indexed, mark=self._rarest(filter), unsure=self.noted)

    def _rarest(self, filter: Filter) -> Mark | None:
        """The mark that the fewest jobs have, as far as it is worth the look."""
        marks = filter.marks
        if len(marks) < 2 or self.indexed is None or filter.id_prefix is not None:
            return marks[0] if marks else None
        query = "SELECT count(*) FROM (SELECT 1 FROM marks WHERE name = ? AND value = ?{} LIMIT ?)"
        who, whose = filter.visible_to, ""
        if who is not None:
            whose = f" AND uid = {who.uid:d}"
        return min(marks, key=lambda mark: self.db.execute(query.format(whose), (*mark, MANY)).fetchone()[0])


def page(reading: Reading, filter: Filter, limit: int, most_bytes: int) -> tuple[list[Job], str]:
    found, values = reading.select(filter)
    query = f"{found} {filter.order} LIMIT {limit + 1 if limit >= 0 else -1}"
    jobs: list[Job] = []
    size, after = 0, ""
    for number in reading.db.execute(query, values).fetchall():
        row = reading.db.execute(f"{SELECT} WHERE jobs.number = ?", number).fetchone()
        if row is None:
            continue
        size += sum(len(text) for text in row[BODIES])
        if jobs and (len(jobs) == limit or size > most_bytes):
            after = jobs[-1].id
            break
        jobs.append(unpack_job(row))
    if reading.noted:
        newest = (_newer(job, reading.noted.get(job.id)) for job in jobs)
        jobs = [job for job in newest if filter.states is None or job.state in filter.states]
    return jobs, after


def _newer(job: Job, noted: Job | None) -> Job:
    """What could not be committed at first may have been since."""
    return noted if noted is not None and noted.seq > job.seq else job


def ids(reading: Reading, filter: Filter) -> list[str]:
    return [job_id for job_id, _ in _states(reading, filter)]


def count(reading: Reading, filter: Filter) -> dict[str, int]:
    if reading.noted:
        return dict(Counter(state for _, state in _states(reading, filter)))
    found, values = reading.select(filter, "state")
    return dict(reading.db.execute(f"SELECT state, count(*) FROM ({found}) GROUP BY state", values).fetchall())


def _states(reading: Reading, filter: Filter) -> list[tuple[str, str]]:
    """Id and state of each job of a filter."""
    found, values = reading.select(filter, "jobs.id AS id", "state", "seq")
    rows = reading.db.execute(f"SELECT id, state, seq FROM ({found}) {filter.order}", values).fetchall()
    newest = ((job_id, _state(state, seq, reading.noted.get(job_id))) for job_id, state, seq in rows)
    if not reading.noted or filter.states is None:
        return list(newest)
    return [one for one in newest if one[1] in filter.states]


def _state(state: str, seq: int, noted: Job | None) -> str:
    return str(noted.state) if noted is not None and noted.seq > seq else state


def stats(reading: Reading, filter: Filter) -> list[dict[str, Any]]:
    found, values = reading.select(filter, *_STATS_OF)
    rows = reading.db.execute(_STATS.format(found=found), values)
    return [dict(zip(_KEYS, row, strict=True)) for row in rows]


def numbers(reading: Reading, job_ids: list[str]) -> dict[str, int]:
    query = "SELECT id, number FROM jobs WHERE id IN (SELECT value FROM json_each(?)) ORDER BY number"
    return dict(reading.db.execute(query, (json.dumps(job_ids),)).fetchall())
