"""The index of jobs.db by labels, arrays and hooks: a row for each, so that few among many are found at once.

Jobs are entered after they were committed, a slice at a time, up to the number in the fact "indexed": those after it
are few, and a query looks at each. Triggers see to changes and removals, also those of a release that knows no index.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable

SLICE = 0.005  # seconds of one transaction
MOST = 1000  # jobs of one
PAUSE = 2.0  # seconds before the next try where nothing can be written

_BODY = "{row}.body"
# Most jobs have none of it, and of a long script the look costs less than the parsing.
_HAS = " OR ".join(f"instr({{row}}.body, '\"{key}\":')" for key in ("Labels", "ArrayId", "HookOf"))
_ARRAY = "json_extract({row}.body, '$.spec.ArrayId')"
_HOOK = "json_extract({row}.body, '$.spec.HookOf')"
# What the job in `new` is entered under.
_OF = f"""
SELECT 'label ' || key AS name, value FROM json_each({_BODY}, '$.spec.Labels')
UNION ALL SELECT 'array', {_ARRAY} WHERE {_ARRAY} IS NOT NULL
UNION ALL SELECT 'hook', '' WHERE {_HOOK} IS NOT NULL
"""
# One by one: of a compound SELECT in IN, or of all four columns, SQLite makes no use of the key.
REMOVE = [
    f"DELETE FROM marks WHERE uid = old.{uid} AND number = old.number AND {which};"
    for uid in ("owner_uid", "uid")
    for which in (
        f"(name, value) IN (SELECT 'label ' || key, value FROM json_each({_BODY.format(row='old')}, '$.spec.Labels'))",
        f"name = 'array' AND value = {_ARRAY.format(row='old')}",
        "name = 'hook' AND value = ''",
    )
]
_REMOVE = "\n".join(REMOVE)
# Not OR IGNORE, for which SQLite takes that of the statement that fires the trigger (CREATE TRIGGER, 2.1).
_ENTER = f"INSERT INTO marks SELECT name, value, new.{{uid}}, new.number FROM ({_OF.format(row='new')})"

_DIFFER = " OR ".join(
    f"json_extract(new.body, '$.spec.{key}') IS NOT json_extract(old.body, '$.spec.{key}')"
    for key in ("Labels", "ArrayId", "HookOf")
)

CREATE = f"""
CREATE TABLE marks (
    name TEXT NOT NULL, value TEXT NOT NULL, uid INTEGER NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (name, value, uid, number)) WITHOUT ROWID;
CREATE TRIGGER marks_removed AFTER DELETE ON jobs WHEN ({_HAS.format(row="old")}) AND json_valid(old.body)
BEGIN {_REMOVE} END;
CREATE TRIGGER marks_changed AFTER UPDATE OF body ON jobs WHEN new.body IS NOT old.body AND ({_DIFFER})
BEGIN
    {_REMOVE}
    {_ENTER.format(uid="owner_uid")};
    {_ENTER.format(uid="uid")} WHERE new.uid <> new.owner_uid;
END;
INSERT OR REPLACE INTO facts VALUES ('indexed', '0');
"""
INDEXED = "SELECT CAST(value AS INTEGER) FROM facts WHERE name = 'indexed'"
_NEXT = "SELECT max(number) FROM (SELECT number FROM jobs WHERE number > ? ORDER BY number LIMIT ?)"
_FILL = [
    f"""INSERT OR IGNORE INTO marks SELECT {name}, {value}, jobs.{uid}, jobs.number FROM jobs{further}
    WHERE jobs.number > ? AND jobs.number <= ? AND ({_HAS.format(row="jobs")}) AND json_valid(jobs.body) AND {given}"""
    for uid in ("owner_uid", "uid")
    for name, value, further, given in (
        ("'label ' || label.key", "label.value", ", json_each(jobs.body, '$.spec.Labels') AS label", "1"),
        ("'array'", _ARRAY.format(row="jobs"), "", f"{_ARRAY.format(row='jobs')} IS NOT NULL"),
        ("'hook'", "''", "", f"{_HOOK.format(row='jobs')} IS NOT NULL"),
    )
]


class Marks:
    """Enters new jobs on the connection that writes."""

    def __init__(self, db: sqlite3.Connection, committed: Callable[[], None]) -> None:
        self._db = db
        self._committed = committed
        self._new = asyncio.Event()
        self._at_once = 10

    def wake(self) -> None:
        """There may be new jobs."""
        self._new.set()

    async def keep(self) -> None:
        """Enter what is new, for ever, and leave at least half of the time to others."""
        while True:
            self._new.clear()
            begin = time.monotonic()
            try:
                more = self.enter()
            except sqlite3.OperationalError:  # a full disk: the next commit says so; damage is no such error
                await asyncio.sleep(PAUSE)
                continue
            if more:
                self._committed()
                await asyncio.sleep(time.monotonic() - begin)
            else:
                await self._new.wait()

    def enter(self) -> bool:
        """Enter the next jobs; whether there may be more."""
        begin = time.monotonic()
        row = self._db.execute(INDEXED).fetchone()
        if row is None:  # there was no room for an index
            return False
        (last,) = self._db.execute(_NEXT, (row[0], self._at_once)).fetchone()
        if last is None:
            return False
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for fill in _FILL:
                self._db.execute(fill, (row[0], last))
            self._db.execute("UPDATE facts SET value = ? WHERE name = 'indexed'", (str(last),))
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
        took = max(time.monotonic() - begin, 0.0001)
        self._at_once = max(1, min(MOST, int(self._at_once * min(4.0, SLICE / took))))
        return True
