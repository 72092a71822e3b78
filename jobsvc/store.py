"""jobs.db: what was accepted and how it went, in SQLite; the only module that knows SQL.

A row a job and a row a run. Columns are what is searched by; the rest is one JSON text, so that a
new fact needs no migration. Writes are gathered and committed together: `flush` makes them safe from
a crash of the service, `sync` from a power cut.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jobsvc import model
from jobsvc.errors import Internal
from jobsvc.model import Job, Run, User

SCHEMA = 1  # what this release writes
READABLE_BY = 1  # the oldest schema whose release still reads what we write

CREATE = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL,
    owner_uid INTEGER NOT NULL, owner_name TEXT NOT NULL, uid INTEGER NOT NULL, user_name TEXT NOT NULL,
    name TEXT NOT NULL, state TEXT NOT NULL, queue TEXT NOT NULL DEFAULT 'default',
    created_at INTEGER NOT NULL, finished_at INTEGER, run INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX jobs_seq ON jobs (seq);
CREATE INDEX jobs_state ON jobs (state, number);
CREATE INDEX jobs_owner ON jobs (owner_uid, number);
CREATE INDEX jobs_user ON jobs (uid, number);
CREATE INDEX jobs_name ON jobs (name, number);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE runs (
    id TEXT NOT NULL, number INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (id, number)) WITHOUT ROWID;
CREATE TABLE requests (
    owner_uid INTEGER NOT NULL, request_id TEXT NOT NULL, id TEXT NOT NULL, digest TEXT NOT NULL,
    removed_at INTEGER, PRIMARY KEY (owner_uid, request_id)) WITHOUT ROWID;
CREATE INDEX requests_id ON requests (id);
CREATE INDEX requests_removed ON requests (removed_at) WHERE removed_at IS NOT NULL;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

UPSERT = """
INSERT INTO jobs
    (id, seq, owner_uid, owner_name, uid, user_name, name, state, queue, created_at, finished_at, run, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET seq=excluded.seq, name=excluded.name, state=excluded.state, queue=excluded.queue,
    finished_at=excluded.finished_at, run=excluded.run, body=excluded.body
"""

_encode = json.JSONEncoder(separators=(",", ":")).encode
RUN_FACTS = tuple(field.name for field in fields(Run) if field.name not in ("number", "phase"))
JOB_FACTS = frozenset(field.name for field in fields(Job))
UNSAID = Run(0, model.Starting())  # what need not be written
PHASES = {
    kind.__name__: kind
    for kind in (model.Queued, model.Starting, model.Running, model.Paused, model.Stopping, model.Finished)
}


def pack_run(run: Run) -> str:
    facts = {name: value for name in RUN_FACTS if (value := getattr(run, name)) != getattr(UNSAID, name)}
    phase = {name: getattr(run.phase, name) for name in run.phase.__slots__}
    name = type(run.phase).__name__
    if isinstance(run.phase, model.Paused):  # a release that knows no pause sees a running job
        name, facts["paused"] = "Running", True
    return _encode({"number": run.number, **facts, "phase": [name, phase]})


def unpack_run(text: str) -> Run:
    facts = json.loads(text)
    name, phase = facts["phase"]
    if facts.get("paused"):
        name = "Paused"
    if name == "Finished":
        phase["result"] = model.Result(phase["result"])
    facts["phase"] = PHASES[name](**phase)
    facts["missing"] = tuple(tuple(hole) for hole in facts.get("missing", ()))
    facts["limits_not_in_force"] = tuple(facts.get("limits_not_in_force", ()))
    facts["waiting_for"] = tuple(tuple(one) for one in facts.get("waiting_for", ()))
    # A newer release may know more of a run than we do.
    return Run(facts["number"], facts["phase"], **{known: facts[known] for known in RUN_FACTS if known in facts})


ENCODED = "ScriptBase64"  # instead of Script, for what is not UTF-8


def pack_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec as JSON can hold it: of the values of bytes the CPU mask as hex, a script as text."""
    packed = dict(spec)
    if "AllowedCPUs" in spec:
        packed["AllowedCPUs"] = spec["AllowedCPUs"].hex()
    if "Script" in spec:
        try:
            packed["Script"] = spec["Script"].decode()
        except UnicodeDecodeError:  # JSON would take six characters for each such byte
            packed[ENCODED] = base64.b64encode(packed.pop("Script")).decode()
        packed["Command"] = ["false"]  # a release that knows no scripts fails the job, not itself
    return packed


def unpack_spec(spec: dict[str, Any]) -> dict[str, Any]:
    if "AllowedCPUs" in spec:
        spec["AllowedCPUs"] = bytes.fromhex(spec["AllowedCPUs"])
    if ENCODED in spec:
        spec["Script"] = base64.b64decode(spec.pop(ENCODED))
        del spec["Command"]
    elif "Script" in spec:
        spec["Script"] = spec["Script"].encode("utf-8", "surrogateescape")
        del spec["Command"]
    return spec


def _job(row: tuple[Any, ...]) -> Job:
    job_id, seq, owner_uid, owner_name, uid, user_name, created_at, body, run = row
    facts = {known: value for known, value in json.loads(body).items() if known in JOB_FACTS}  # a newer one has more
    facts["spec"] = unpack_spec(facts["spec"])
    facts.setdefault("priority_allowed", True)  # with the releases that do not say it, one above 0 took a right
    return Job(
        id=job_id,
        seq=seq,
        owner=User(owner_uid, owner_name),
        user=User(uid, user_name),
        created_at=created_at,
        run=unpack_run(run),
        **facts,
    )


ROW = (
    "SELECT jobs.id, seq, owner_uid, owner_name, uid, user_name, created_at, jobs.body, runs.body"
    " FROM jobs JOIN runs ON runs.id = jobs.id AND runs.number = jobs.run"
)
BODIES = slice(-2, None)


STATS_KEYS = (
    "User",
    "Queue",
    "Day",
    "Jobs",
    "Completed",
    "Failed",
    "Stopped",
    "CPUUsageNSec",
    "MemoryPeak",
    "WaitUSec",
)
# A run that does not say when it came to the queue is of an earlier release; the first one came with its job.
STATS = """
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


_SIZE = "length(body) + (SELECT coalesce(sum(length(runs.body)), 0) FROM runs WHERE runs.id = jobs.id)"
SIZES = f"SELECT id, {_SIZE} FROM jobs WHERE id IN (SELECT value FROM json_each(?))"
FINISHED_BYTES = f"SELECT owner_uid, sum({_SIZE}) FROM jobs WHERE finished_at IS NOT NULL GROUP BY owner_uid"

# Of a job that goes on after its runs before have ended those count, too. Of a run that does not say what its output
# took (of an earlier release, or lost) only the bytes themselves are known.
WROTE = """
SELECT owner_uid, ended / 3600000000, sum(wrote + ?)
FROM (
    SELECT owner_uid, json_extract(runs.body, '$.phase[1].at') AS ended,
        coalesce(json_extract(runs.body, '$.journal_bytes'),
            coalesce(json_extract(runs.body, '$.stdout_bytes'), 0)
            + coalesce(json_extract(runs.body, '$.stderr_bytes'), 0)) AS wrote
    FROM jobs JOIN runs ON runs.id = jobs.id
    WHERE (finished_at IS NULL OR finished_at >= ?) AND json_extract(runs.body, '$.phase[0]') = 'Finished')
WHERE ended >= ? GROUP BY 1, 2 ORDER BY 2
"""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs: every given term must hold."""

    visible_to: User | None = None  # owned by or running as; None: all
    id_prefix: str | None = None  # hexadecimal digits
    states: frozenset[str] | None = None
    user: str | None = None  # name of owner or user
    owner_uid: int | None = None
    name: str | None = None  # a glob
    queue: str | None = None
    array: str | None = None  # the id of an array that it is a task of
    since: int | None = None  # created then or later, µs
    until: int | None = None  # created before
    finished_before: int | None = None
    changed_since: int | None = None  # a seq
    labels: dict[str, str] = field(default_factory=dict)
    hooks: bool | None = None  # what follows from the end of another; None: either
    after: str | None = None  # the id the last page ended with
    reverse: bool = False


class NotRecorded(Internal):
    """What was asked for cannot be written to the disk."""


class Damaged(Internal):
    """The file is no database of ours any more."""


class Store:
    """The database, open for one writer. Damaged if that can be seen, sqlite3.Error if it cannot be opened."""

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        self._suspect = Path(f"{path}.suspect")
        self.on_damage: Callable[[Damaged], None] = lambda error: None
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except BaseException as error:
            self._db.close()
            if damaged(error):
                raise Damaged(f"{path} is damaged ({error})") from None
            raise
        self._dirty: dict[str, Job] = {}
        self._dirty_runs: dict[tuple[str, int], Run] = {}
        self._current_sync: asyncio.Future[None] | None = None
        self._next_sync: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "sync")  # of its own: user look-ups may hang in the common one
        self._reader = ThreadPoolExecutor(1, "stats")

    def _open(self) -> None:
        wal = Path(self._path + "-wal")
        doubtful = self._suspect.exists() or (wal.exists() and wal.stat().st_size > 0)  # not closed in good order
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA temp_store=MEMORY")
        if doubtful and (found := self._one("PRAGMA quick_check(1)")) != "ok":  # 0.4 s for 100,000 jobs
            raise Damaged(f"{self._path} is damaged ({found})")
        self._suspect.unlink(missing_ok=True)
        self._migrate()
        self.seq: int = self._one("SELECT coalesce(max(seq), 0) FROM jobs")
        self.seq = max(self.seq, int(self.fact("seq") or 0))

    def examine(self, error: BaseException) -> None:
        """If this error means damage, the next start has to look at the whole file; `on_damage` brings it about."""
        if damaged(error):
            with contextlib.suppress(OSError):
                self._suspect.touch(0o600)
            self.on_damage(Damaged(f"{self._path} is damaged ({error})"))

    def _one(self, query: str, *arguments: Any) -> Any:
        row = self._db.execute(query, arguments).fetchone()
        return row[0] if row else None

    def _migrate(self) -> None:
        version = self._one("PRAGMA user_version")
        if not version:
            if self._one("SELECT count(*) FROM sqlite_master"):
                raise Internal(f"{self._path} is not a database of jobsvc; move it away")
            self._db.executescript(f"BEGIN;{CREATE}PRAGMA user_version={SCHEMA};COMMIT")
            self._db.execute("INSERT INTO facts VALUES ('readable_by', ?)", (READABLE_BY,))
        elif version > SCHEMA and int(self.fact("readable_by") or version) > SCHEMA:
            raise Internal(f"{self._path} was written by a newer jobsvc that this one cannot read")
        if self.fact("schema") is None:
            with contextlib.suppress(sqlite3.Error):  # for people; where the disk is full it can wait
                self._db.execute("INSERT INTO facts VALUES ('schema', ?)", (version or SCHEMA,))

    def fact(self, name: str) -> str | None:
        value: str | None = self._one("SELECT value FROM facts WHERE name = ?", name)
        return value

    def note_fact(self, name: str, value: str) -> None:
        """Note one of the service's own facts at once."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def put(self, job: Job) -> Job:
        """Note a changed job; returns it with its new seq. Committed by the next flush."""
        self.seq += 1
        job = replace(job, seq=self.seq)
        if isinstance(job.run.phase, model.Queued) and not job.run.place:
            job = replace(job, run=replace(job.run, place=self.seq))
        self._dirty[job.id] = job
        self._dirty_runs[job.id, job.run.number] = job.run
        return job

    def put_run(self, job: Job) -> None:
        """Note a changed fact of an earlier run of a job."""
        self._dirty_runs[job.id, job.run.number] = job.run

    def flush(self) -> None:
        """Commit what was noted, in one transaction."""
        if not self._dirty and not self._dirty_runs:
            return
        with self._transaction():  # what cannot be written is still owed: the next flush tries again
            self._db.executemany(UPSERT, (self._row(job) for job in self._dirty.values()))
            self._db.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?)",
                ((*key, pack_run(run)) for key, run in self._dirty_runs.items()),
            )
        self._dirty.clear()
        self._dirty_runs.clear()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    @staticmethod
    def _row(job: Job) -> tuple[Any, ...]:
        body = {
            "gid": job.gid,
            "spec": pack_spec(job.spec),
            "request": job.request,
            "root_allowed": job.root_allowed,
            "limits_allowed": job.limits_allowed,
            "group_override": job.group_override,
            "priority_allowed": job.priority_allowed,
        }
        phase = job.run.phase
        finished_at = phase.at if isinstance(phase, model.Finished) else None
        return (
            *(job.id, job.seq, job.owner.uid, job.owner.name, job.user.uid, job.user.name),
            *(job.name, str(job.state), job.queue, job.created_at, finished_at, job.run.number),
            _encode(body),
        )

    async def sync(self) -> None:
        """Flush, and wait until a power cut could not take it back.

        One fdatasync that has not begun yet serves all who come until it does.
        """
        try:
            self.flush()
        except sqlite3.Error as error:
            self.examine(error)
            raise NotRecorded(f"it cannot be recorded, and would be forgotten if the service ended: {error}") from None
        if self._next_sync is None:
            self._next_sync = asyncio.ensure_future(self._sync_after(self._current_sync))
        await asyncio.shield(self._next_sync)

    async def _sync_after(self, current: asyncio.Future[None] | None) -> None:
        if current:
            await asyncio.wait({current})
        self._current_sync, self._next_sync = self._next_sync, None
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._fdatasync)
        except OSError as error:
            raise NotRecorded(f"it cannot be recorded safely from a power cut: {error}") from None

    def _fdatasync(self) -> None:
        fd = os.open(self._path + "-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def accept(self, jobs: list[Job], requests: list[tuple[int, str, str, str]]) -> list[Job]:
        """Take new jobs, all or none, with their idempotency keys (owner uid, key, id, digest)."""
        self.flush()
        noted = [self.put(job) for job in jobs]
        try:
            with self._transaction():
                self._db.executemany("INSERT INTO requests VALUES (?, ?, ?, ?, NULL)", requests)
                self.flush()
        except Exception:  # also a value that SQLite cannot hold: it must not be in the way of what follows
            self._dirty.clear()
            self._dirty_runs.clear()
            raise
        return noted

    def request(self, owner_uid: int, request_id: str) -> tuple[str, str] | None:
        """The job id and spec digest an idempotency key of this owner stands for."""
        row = self._db.execute(
            "SELECT id, digest FROM requests WHERE owner_uid = ? AND request_id = ?", (owner_uid, request_id)
        ).fetchone()
        return (row[0], row[1]) if row else None

    def _try_flush(self) -> None:
        """Before reading. Where nothing can be written (a full disk) what was written can still be read."""
        with contextlib.suppress(sqlite3.Error):
            self.flush()

    def get(self, job_id: str) -> Job | None:
        self._try_flush()
        if job_id in self._dirty:
            return self._dirty[job_id]
        row = self._db.execute(f"{ROW} WHERE jobs.id = ?", (job_id,)).fetchone()
        return _job(row) if row else None

    def run(self, job_id: str, number: int) -> Run | None:
        """The facts of one run of a job, also of an earlier one."""
        self._try_flush()
        if (job_id, number) in self._dirty_runs:
            return self._dirty_runs[job_id, number]
        text = self._one("SELECT body FROM runs WHERE id = ? AND number = ?", job_id, number)
        return unpack_run(text) if text else None

    def unfinished(self) -> Iterator[Job]:
        """Every job that is not finished, oldest first."""
        self._try_flush()
        states = ",".join(f"'{state}'" for state in sorted(model.FINISHED))
        for row in self._db.execute(f"{ROW} WHERE state NOT IN ({states}) ORDER BY jobs.number"):
            yield _job(row)

    def search(self, filter: Filter, limit: int) -> list[Job]:
        """The jobs of a filter, newest first unless it says otherwise."""
        return self.page(filter, limit, 2**62)[0]

    def page(self, filter: Filter, limit: int, most_bytes: int) -> tuple[list[Job], str]:
        """So many of them, or less if they are large; and after which there are more, if there are."""
        self._try_flush()
        where, arguments = self._where(filter)
        order = "ASC" if filter.reverse else "DESC"
        query = f"{ROW} WHERE {where} ORDER BY jobs.number {order} LIMIT {limit + 1 if limit >= 0 else -1}"
        found: list[Job] = []
        size, after = 0, ""
        for row in self._db.execute(query, arguments):
            size += sum(len(text) for text in row[BODIES])
            if found and (len(found) == limit or size > most_bytes):
                after = found[-1].id
                break
            found.append(_job(row))
        if not self._dirty:
            return found, after
        newest = (self._dirty.get(job.id, job) for job in found)
        return [job for job in newest if filter.states is None or job.state in filter.states], after

    def ids(self, filter: Filter) -> list[str]:
        """The ids of all jobs of a filter, in the order of `search`."""
        self._try_flush()
        if self._dirty:
            return [job.id for job in self.search(filter, limit=1_000_000)]
        where, arguments = self._where(filter)
        order = "ASC" if filter.reverse else "DESC"
        query = f"SELECT id FROM jobs WHERE {where} ORDER BY jobs.number {order}"
        return [row[0] for row in self._db.execute(query, arguments)]

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those of these jobs that are there, in the order they came."""
        query = "SELECT id, number FROM jobs WHERE id IN (SELECT value FROM json_each(?)) ORDER BY number"
        return dict(self._db.execute(query, (_encode(list(ids)),)).fetchall())

    def count(self, filter: Filter) -> dict[str, int]:
        """How many jobs of a filter are in each state."""
        self._try_flush()
        if self._dirty:
            return dict(Counter(str(job.state) for job in self.search(filter, limit=-1)))
        where, arguments = self._where(filter)
        query = f"SELECT state, count(*) FROM jobs WHERE {where} GROUP BY state"
        return dict(self._db.execute(query, arguments).fetchall())

    async def stats(self, filter: Filter) -> list[dict[str, Any]]:
        """The finished jobs of a filter by day (of their end, UTC), user and queue; the newest days first.

        It reads every one of their runs, so it has a thread and a connection of its own.
        """
        self._try_flush()
        where, arguments = self._where(filter)
        query = STATS.format(where=where)
        rows = await asyncio.get_running_loop().run_in_executor(self._reader, self._read, query, arguments)
        return [dict(zip(STATS_KEYS, row, strict=True)) for row in rows]

    async def finished_bytes(self) -> dict[int, int]:
        """How much the finished jobs of each owner take, with all their runs."""
        self._try_flush()
        rows = await asyncio.get_running_loop().run_in_executor(self._reader, self._read, FINISHED_BYTES, [])
        return dict(rows)

    def sizes(self, job_ids: Iterable[str]) -> dict[str, int]:
        """How many bytes each of these jobs takes, with all its runs."""
        return dict(self._db.execute(SIZES, (_encode(list(job_ids)),)).fetchall())

    async def wrote_since(self, begin: int, each: int) -> list[tuple[int, int, int]]:
        """What runs that ended since then take of the journal: owner's uid, hour since 1970, bytes.

        `each` is what a run takes beside its output.
        """
        self._try_flush()
        arguments = [each, begin, begin]
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read, WROTE, arguments)

    def _read(self, query: str, arguments: list[Any]) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{quote(self._path)}?mode=ro", uri=True)) as db:
            return db.execute(query, arguments).fetchall()

    def _where(self, filter: Filter) -> tuple[str, list[Any]]:
        terms: list[tuple[str, list[Any]]] = [("1", [])]
        if filter.visible_to is not None:
            who = filter.visible_to
            plus = "+" if filter.id_prefix else ""  # no index for these then: that of ids is the narrowest
            terms.append(
                (
                    f"({plus}owner_uid = ? AND owner_name = ? OR {plus}uid = ? AND user_name = ?)",
                    [who.uid, who.name, who.uid, who.name],
                )
            )
        if filter.states is not None:
            marks = ",".join("?" * len(filter.states))
            # Of those whose last change cannot be written the columns are out of date: they are looked at one by one.
            unsure = "".join(f" OR jobs.id = '{job_id}'" for job_id in self._dirty)
            terms.append((f"(state IN ({marks}){unsure})", sorted(filter.states)))
        if filter.after is not None:
            number = self._one("SELECT number FROM jobs WHERE id = ?", filter.after)
            terms.append((f"jobs.number {'>' if filter.reverse else '<'} ?", [number or 0]))
        if filter.id_prefix is not None:  # a range, so that the index of ids finds it
            terms.append(("jobs.id >= ? AND jobs.id < ?", [filter.id_prefix, filter.id_prefix + "g"]))
        for name, value in filter.labels.items():
            term = "EXISTS (SELECT 1 FROM json_each(jobs.body, '$.spec.Labels') WHERE key = ? AND value = ?)"
            terms.append((term, [name, value]))
        if filter.hooks is not None:
            terms.append((f"json_extract(jobs.body, '$.spec.HookOf') IS {'NOT ' * filter.hooks}NULL", []))
        plain: tuple[tuple[str, Any], ...] = (
            ("(owner_name = ? OR user_name = ?)", filter.user),
            ("jobs.name GLOB ?", filter.name),
            ("queue = ?", filter.queue),
            ("owner_uid = ?", filter.owner_uid),
            ("json_extract(jobs.body, '$.spec.ArrayId') = ?", filter.array),
            ("created_at >= ?", filter.since),
            ("created_at < ?", filter.until),
            ("finished_at < ?", filter.finished_before),
            ("seq > ?", filter.changed_since),
        )
        terms += [(term, [value] * term.count("?")) for term, value in plain if value is not None]
        return " AND ".join(term for term, _ in terms), [value for _, values in terms for value in values]

    def remove(self, job_ids: Iterable[str], at: int) -> None:
        """Forget finished jobs; their idempotency keys stay until `forget_requests`."""
        ids = [(job_id,) for job_id in job_ids]
        try:
            self.flush()
            with self._transaction():
                self._db.executemany("DELETE FROM jobs WHERE id = ?", ids)
                self._db.executemany("DELETE FROM runs WHERE id = ?", ids)
                self._db.executemany("UPDATE requests SET removed_at = ? WHERE id = ?", [(at, *one) for one in ids])
                self._db.execute("INSERT OR REPLACE INTO facts VALUES ('seq', ?)", (str(self.seq),))
        except sqlite3.Error as error:
            self.examine(error)
            raise NotRecorded(f"jobs cannot be removed just now: {error}") from None

    def forget_requests(self, before: int) -> None:
        """Drop the idempotency keys of jobs removed before this time."""
        self._db.execute("DELETE FROM requests WHERE removed_at < ?", (before,))

    def expired(self, before: int) -> list[Job]:
        """Jobs that finished before this time; the oldest 100 of them."""
        return self._oldest("finished_at < ?", before, 100)

    def by_owner(self) -> dict[int, int]:
        """How many jobs there are of each owner, finished or not: that much the index knows by itself."""
        self._try_flush()
        query = "SELECT owner_uid, count(*) FROM jobs GROUP BY owner_uid"
        return dict(self._db.execute(query).fetchall())

    def oldest_of(self, owner_uid: int, count: int) -> list[Job]:
        """So many finished jobs of an owner, those that finished first."""
        return self._oldest("+owner_uid = ?", owner_uid, count)  # +: in the order of the index of ends

    def _oldest(self, which: str, value: int, count: int) -> list[Job]:
        self._try_flush()
        query = f"{ROW} WHERE finished_at IS NOT NULL AND {which} ORDER BY finished_at LIMIT {count}"
        jobs = [_job(row) for row in self._db.execute(query, (value,))]
        return [job for job in jobs if job.id not in self._dirty]  # a change that cannot be written comes first

    def finished(self) -> int:
        """How many finished jobs there are."""
        self._try_flush()
        count: int = self._one("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")
        return count

    def newest_end(self) -> int | None:
        """When the job that finished last did so."""
        self._try_flush()
        newest: int | None = self._one("SELECT max(finished_at) FROM jobs WHERE finished_at IS NOT NULL")
        return newest

    def close(self) -> None:
        self._thread.shutdown()
        self._reader.shutdown(cancel_futures=True)
        self._try_flush()
        self._db.close()


def damaged(error: BaseException) -> bool:
    """Whether SQLite found the file itself to be wrong."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what extends it
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _Transaction:
    """BEGIN … COMMIT, or ROLLBACK; inside another one it is part of that."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._inner = db.in_transaction

    def __enter__(self) -> None:
        if not self._inner:
            self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if self._inner:
            return
        try:
            if not kind:
                self._db.execute("COMMIT")
        finally:
            # Also after a COMMIT that failed, as on a full disk: what comes next must not be taken for a part of this.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
