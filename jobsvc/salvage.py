"""A jobs.db that is damaged: set aside, never thrown away, and what of it can still be read carried over."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from pathlib import Path

from jobsvc.store import Damaged, Store

log = logging.getLogger(__name__)

GARBLED = "NOT json_valid(body) OR body GLOB '*[^ -~]*'"  # what the store writes is ASCII
MOST = 10_000_000  # numbers that are looked for; a damaged count is no reason to look for ever


def open_store(path: Path, used: bool = False) -> Store:
    """The database; `used` if there has been one. If it is damaged the journal says where it is now, and how many
    jobs are in the new one."""
    if lost := _lost(path, used):
        log.error("%s: what jobs there were is not known any more; a new one is begun", lost)
        set_aside(path)
    try:
        return Store(path)
    except Damaged as error:
        aside = set_aside(path)
        log.error("%s; it is now %s", error, aside)
        store = Store(path)
        try:
            saved = carry_over(aside, path)
        finally:
            store.close()
        log.error("%d jobs could be read from it and are kept; others are lost", saved)
        return Store(path)


def _lost(path: Path, used: bool) -> str | None:
    """Whether there was a database, and nothing is left of it."""
    if not path.exists():
        return f"{path} is not there any more" if used or Path(f"{path}-wal").exists() else None
    return f"{path} is empty" if used and not path.stat().st_size else None


def set_aside(path: Path) -> Path:
    """Give the file and what belongs to it another name."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    for ending in ("", "-wal", "-shm", ".suspect"):
        part = Path(f"{path}{ending}")
        if part.exists():
            part.rename(f"{aside}{ending}")
    return aside


def carry_over(aside: Path, path: Path) -> int:
    """Copy what can be read, around the damaged pages; how many jobs that are."""
    with contextlib.closing(sqlite3.connect(aside)) as old, contextlib.closing(sqlite3.connect(path)) as new:
        old.text_factory = new.text_factory = bytes
        for table in ("facts", "requests", "requesters"):
            for order in ("ASC", "DESC"):
                _copy(old, new, table, f"ORDER BY 1 {order}")
        for number in range(1, _newest(old) + 1):
            _copy(old, new, "jobs", "WHERE number = ?", number)
        for (job_id,) in new.execute("SELECT id FROM jobs").fetchall():
            _copy(old, new, "runs", "WHERE id = ?", job_id.decode())
        for table in ("runs", "jobs"):
            new.execute(f"DELETE FROM {table} WHERE {GARBLED}")
        new.execute("DELETE FROM jobs WHERE NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = jobs.id AND number = run)")
        (saved,) = new.execute("SELECT count(*) FROM jobs").fetchone()
        new.commit()
    return int(saved)


def _newest(old: sqlite3.Connection) -> int:
    """The highest number a job had, as far as that can be read."""
    for query in ("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'", "SELECT max(number) FROM jobs"):
        with contextlib.suppress(sqlite3.Error):
            if (row := old.execute(query).fetchone()) and isinstance(row[0], int):
                return min(row[0], MOST)
    return 0


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, table: str, which: str, *values: object) -> None:
    """Copy those rows of a table, of which some may be nonsense, until one cannot be read."""
    known = {row[1].decode() for row in new.execute(f"PRAGMA table_info({table})")}
    with contextlib.suppress(sqlite3.Error):
        rows = old.execute(f"SELECT * FROM {table} {which}", values)
        names = [column[0] for column in rows.description]
        wanted = [index for index, name in enumerate(names) if name in known]
        columns = ", ".join(names[index] for index in wanted)
        marks = ", ".join("?" * len(wanted))
        for row in rows:
            with contextlib.suppress(sqlite3.Error):
                kept = [_text(row[index]) for index in wanted]
                new.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", kept)


def _text(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
