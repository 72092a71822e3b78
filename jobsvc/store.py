"""jobs.db: what was accepted and how it went, in SQLite. What is in a row is in `packing`; `selection`, `queries` and
`figures` are questions, `marks` is an index. No other module knows SQL.

Writes are gathered and committed together: `flush` makes them safe from a crash of the service, `sync` from a power
cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobsvc import marks, model
from jobsvc.errors import Internal
from jobsvc.figures import Figures
from jobsvc.marks import Marks
from jobsvc.model import Job, Run, User
from jobsvc.packing import SELECT, UPSERT, pack_job, pack_run, unpack_job, unpack_run
from jobsvc.queries import Queries

SCHEMA = 2  # what this release writes
LARGE = 4 * 1024**2  # bytes of a write-ahead log that are worth a checkpoint
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
# With schema 2. The release before does not fill requesters: what has no row there is its.
ADDED = f"""{marks.CREATE}
CREATE TABLE requesters (
    uid INTEGER NOT NULL, request_id TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (uid, request_id)) WITHOUT ROWID;
CREATE TRIGGER requests_forgotten AFTER DELETE ON requests
BEGIN DELETE FROM requesters WHERE uid = old.owner_uid AND request_id = old.request_id; END;
"""


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
        self._copying = ThreadPoolExecutor(1, "checkpoint")
        self._copied: asyncio.Future[BaseException | None] | None = None
        self._figures = Figures(self._path)
        self._queries = Queries(self._path, self._noted)
        self.marks = Marks(self._db, self.checkpoint)

    def _open(self) -> None:
        wal = Path(self._path + "-wal")
        doubtful = self._suspect.exists() or (wal.exists() and wal.stat().st_size > 0)  # not closed in good order
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        # A checkpoint is a matter of a thread; in a commit, and so on the loop, only if that does not keep up.
        self._db.execute(f"PRAGMA wal_autocheckpoint={16 * LARGE // 4096}")
        self._db.execute("PRAGMA temp_store=MEMORY")
        if doubtful and (found := self._one("PRAGMA quick_check(1)")) != "ok":  # 0.4 s for 100,000 jobs
            raise Damaged(f"{self._path} is damaged ({found})")
        self._suspect.unlink(missing_ok=True)
        self._migrate()
        self._named = self._one("PRAGMA user_version") >= 2
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
            self._db.executescript(f"BEGIN;{CREATE}{ADDED}PRAGMA user_version={SCHEMA};COMMIT")
            self._db.execute("INSERT INTO facts VALUES ('readable_by', ?)", (READABLE_BY,))
        elif version > SCHEMA and int(self.fact("readable_by") or version) > SCHEMA:
            raise Internal(f"{self._path} was written by a newer jobsvc that this one cannot read")
        elif version == 1:
            with self._where_there_is_room():
                self._db.executescript(f"BEGIN IMMEDIATE;{ADDED}PRAGMA user_version={SCHEMA};COMMIT")
                self._db.execute("UPDATE facts SET value = ? WHERE name = 'schema'", (SCHEMA,))
        if self.fact("schema") is None:
            with self._where_there_is_room():  # for people
                self._db.execute("INSERT INTO facts VALUES ('schema', ?)", (self._one("PRAGMA user_version"),))

    @contextlib.contextmanager
    def _where_there_is_room(self) -> Iterator[None]:
        """A full disk is no reason not to start: the next start tries again."""
        try:
            yield
        except sqlite3.Error as error:
            if damaged(error):
                raise
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

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
            self._db.executemany(UPSERT, (pack_job(job) for job in self._dirty.values()))
            self._db.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?)",
                ((*key, pack_run(run)) for key, run in self._dirty_runs.items()),
            )
            self._db.executemany(
                "DELETE FROM runs WHERE id = ? AND number < ?",
                ((job_id, oldest) for job_id, number in self._dirty_runs if (oldest := model.oldest_run(number)) > 1),
            )
        self._dirty.clear()
        self._dirty_runs.clear()
        self.marks.wake()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

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
        self.checkpoint()

    def checkpoint(self) -> None:
        """Have a large log copied into the file, in a thread; what cannot be copied now is copied another time."""
        if self._copied is None or self._copied.done():
            self._copied = asyncio.get_running_loop().run_in_executor(self._copying, self._copy)
            self._copied.add_done_callback(lambda done: self.examine(error) if (error := done.result()) else None)

    def _copy(self) -> BaseException | None:
        try:
            if os.stat(self._path + "-wal").st_size > LARGE:
                with contextlib.closing(sqlite3.connect(self._path)) as db:
                    db.execute("PRAGMA synchronous=NORMAL")
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (sqlite3.Error, OSError) as error:
            return error
        return None

    def _fdatasync(self) -> None:
        fd = os.open(self._path + "-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def accept(self, jobs: list[Job], requests: list[tuple[User, str, str, str]]) -> list[Job]:
        """Take new jobs, all or none, with their idempotency keys (owner, key, id, digest)."""
        self.flush()
        noted = [self.put(job) for job in jobs]
        try:
            with self._transaction():
                for owner, key, *what in requests:
                    if self.request(owner, key) is None:  # it may be of a former user with that number
                        self._db.execute(
                            "DELETE FROM requests WHERE owner_uid = ? AND request_id = ?", (owner.uid, key)
                        )
                    self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, NULL)", (owner.uid, key, *what))
                    if self._named:
                        self._db.execute("INSERT INTO requesters VALUES (?, ?, ?)", (owner.uid, key, owner.name))
                self.flush()
        except Exception:  # also a value that SQLite cannot hold: it must not be in the way of what follows
            self._dirty.clear()
            self._dirty_runs.clear()
            raise
        return noted

    def request(self, owner: User, request_id: str) -> tuple[str, str] | None:
        """The job id and spec digest an idempotency key of this owner stands for; a former one's is not found."""
        which = (owner.uid, request_id)
        row = self._db.execute(
            "SELECT requests.id, digest, owner_name FROM requests LEFT JOIN jobs ON jobs.id = requests.id"
            " WHERE requests.owner_uid = ? AND request_id = ?",
            which,
        ).fetchone()
        if row is None:
            return None
        name = row[2]
        if self._named and (found := self._one("SELECT name FROM requesters WHERE uid = ? AND request_id = ?", *which)):
            name = found
        return (row[0], row[1]) if name in (owner.name, None) else None

    def _try_flush(self) -> None:
        """Before reading. Where nothing can be written (a full disk) what was written can still be read."""
        with contextlib.suppress(sqlite3.Error):
            self.flush()

    def _noted(self) -> Mapping[str, Job]:
        """Flush; what is noted and could not be written."""
        self._try_flush()
        return dict(self._dirty)

    def get(self, job_id: str) -> Job | None:
        """What is noted needs no commit to be found."""
        if job_id in self._dirty:
            return self._dirty[job_id]
        row = self._db.execute(f"{SELECT} WHERE jobs.id = ?", (job_id,)).fetchone()
        return unpack_job(row) if row else None

    def run(self, job_id: str, number: int) -> Run | None:
        """The facts of one run of a job, also of an earlier one."""
        if (job_id, number) in self._dirty_runs:
            return self._dirty_runs[job_id, number]
        text = self._one("SELECT body FROM runs WHERE id = ? AND number = ?", job_id, number)
        return unpack_run(text) if text else None

    def unfinished(self) -> Iterator[Job]:
        """Every job that is not finished, oldest first."""
        self._try_flush()
        states = ",".join(f"'{state}'" for state in sorted(model.FINISHED))
        for row in self._db.execute(f"{SELECT} WHERE state NOT IN ({states}) ORDER BY jobs.number"):
            yield unpack_job(row)

    @property
    def queries(self) -> Queries:
        """What callers ask about many jobs."""
        return self._queries

    @property
    def figures(self) -> Figures:
        """What the service wants to know about all jobs."""
        self._try_flush()
        return self._figures

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

    def finished(self, job_id: str) -> Job | None:
        """This job, if it is there and finished, and was so before what cannot be written."""
        job = self.get(job_id)
        return job if job and job.run.finished and job_id not in self._dirty else None

    def newest_end(self) -> int | None:
        """When the job that finished last did so."""
        self._try_flush()
        newest: int | None = self._one("SELECT max(finished_at) FROM jobs WHERE finished_at IS NOT NULL")
        return newest

    def close(self) -> None:
        self._thread.shutdown()
        self._copying.shutdown()
        self._figures.close()
        self._queries.close()
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
