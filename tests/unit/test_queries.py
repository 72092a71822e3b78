"""Queries: exact, by an index, ended in time, and in turns by the time they take."""

import asyncio
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobsvc import marks, model, queries
from jobsvc import store as stores
from jobsvc.aside import Aside
from jobsvc.errors import LimitsExceeded
from jobsvc.model import Finished, Job, Queued, Result, Run, User
from jobsvc.packing import UPSERT, pack_job, pack_run
from jobsvc.queries import Queries, Reading
from jobsvc.selection import Filter
from jobsvc.share import Shares
from jobsvc.store import Store

ALICE, BOB = User(1000, "alice"), User(1001, "bob")


def job(number: int, owner: User = ALICE, **spec: object) -> Job:
    return Job(
        id=f"{number:016x}",
        owner=owner,
        user=owner,
        gid=owner.uid,
        spec={"Command": ["true"], **spec},
        created_at=number,
        request=f":1.{number}:2",
        run=Run(1, Queued("waiting")),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def found(store: Store, **terms: Any) -> list[int]:
    ids = asyncio.run(store.queries.ids(0, Filter(**terms)))
    assert asyncio.run(store.queries.count(0, Filter(**terms))) == ({"queued": len(ids)} if ids else {})
    page, _ = asyncio.run(store.queries.page(0, Filter(**terms), 100, 2**30))
    assert [one.id for one in page] == ids
    return [int(one, 16) for one in ids]


def entered(store: Store) -> list[tuple[str, str, int, int]]:
    while store.marks.enter():
        pass
    return store._db.execute("SELECT * FROM marks ORDER BY number, name, uid").fetchall()


@pytest.mark.parametrize("upto", [0, 3, 9])
def test_marks_find_the_same_before_and_after_entry(path: Path, upto: int) -> None:
    """A query looks at each job that is not in the index yet."""
    store = Store(path)
    store.accept(
        [
            job(1, Labels={"ci": "7", "a": "b"}),
            job(2, BOB, Labels={"ci": "7"}, ArrayId="x"),
            job(3, ArrayId="x"),
            job(4, Labels={"ci": "8", 'né"w': "lé"}, HookOf="1"),
            replace(job(5, BOB, Labels={"ci": "7"}), user=ALICE),
            job(6),
        ],
        [],
    )
    store.marks._at_once = max(1, upto)
    for _ in range(upto and 1):
        store.marks.enter()
    assert found(store, labels={"ci": "7"}) == [5, 2, 1]
    assert found(store, labels={"ci": "7"}, visible_to=ALICE) == [5, 1]
    assert found(store, labels={"ci": "7"}, visible_to=BOB) == [5, 2]
    assert found(store, labels={"ci": "7"}, visible_to=User(1000, "new")) == []
    assert found(store, labels={"ci": "7", "a": "b"}, reverse=True) == [1]
    assert found(store, labels={"ci": "7"}, owner_uid=1001) == [5, 2]
    assert found(store, labels={"ci": "7"}, after=f"{5:016x}") == [2, 1]
    assert found(store, labels={'né"w': "lé"}) == [4]
    assert found(store, labels={"ci": "7"}, id_prefix=f"{2:016x}") == [2]
    assert found(store, array="x") == [3, 2]
    assert found(store, array="x", visible_to=BOB) == [2]
    assert found(store, hooks=True) == [4]
    assert found(store, hooks=False, visible_to=ALICE, reverse=True) == [1, 3, 5, 6]
    assert asyncio.run(store.queries.stats(0, Filter(hooks=False))) == []
    store.close()


def test_the_index_follows_a_changed_and_a_removed_job(path: Path) -> None:
    store = Store(path)
    one, _ = store.accept([job(1, Labels={"a": "1"}, ArrayId="x"), job(2, Labels={"a": "1"})], [])
    assert entered(store) == [("array", "x", 1000, 1), ("label a", "1", 1000, 1), ("label a", "1", 1000, 2)]
    store.put(replace(one, spec=one.spec | {"Labels": {"b": "2"}}))
    assert found(store, labels={"a": "1"}) == [2]
    assert found(store, labels={"b": "2"}) == [1]
    store.remove([one.id], at=5)
    assert entered(store) == [("label a", "1", 1000, 2)]
    store.close()


def test_the_release_before_keeps_the_index_up(path: Path) -> None:
    """Its statements, on a file of ours; and a file of its own is taken over."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{stores.CREATE} PRAGMA journal_mode=WAL; PRAGMA user_version=1;")
        old.execute("INSERT INTO facts VALUES ('readable_by', 1)")
        old.execute("INSERT INTO facts VALUES ('schema', 1)")
        for one in (job(1, Labels={"a": "1"}), job(2, Labels={"a": "1"}), job(3)):
            old.execute(UPSERT, pack_job(one))
            old.execute("INSERT INTO runs VALUES (?, 1, ?)", (one.id, pack_run(one.run)))
        old.commit()
    store = Store(path)
    assert found(store, labels={"a": "1"}) == [2, 1]
    assert len(entered(store)) == 2
    store.close()
    with closing(sqlite3.connect(path)) as old:
        assert old.execute("PRAGMA user_version").fetchone()[0] > 1
        assert old.execute("SELECT value FROM facts WHERE name = 'readable_by'").fetchone() == ("1",)
        old.execute(UPSERT, pack_job(job(1, Labels={"a": "2"})))
        old.execute("DELETE FROM jobs WHERE id = ?", (job(2).id,))
        new = job(4, Labels={"a": "2"})
        old.execute(UPSERT, pack_job(new))
        old.execute("INSERT INTO runs VALUES (?, 1, ?)", (new.id, pack_run(new.run)))
        old.commit()
    store = Store(path)
    assert found(store, labels={"a": "2"}) == [4, 1]
    assert found(store, labels={"a": "1"}) == []
    assert len({number for *_, number in entered(store)}) == 2
    store.close()


def test_a_full_disk_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path)
    store.accept([job(1, Labels={"a": "1"})], [])
    store._db.executescript(
        "DROP TABLE marks; DROP TABLE requesters; DROP TRIGGER requests_forgotten; DROP TRIGGER marks_removed;"
        "DROP TRIGGER marks_changed;"
        "DELETE FROM facts WHERE name = 'indexed'; PRAGMA user_version=1"
    )
    store.close()
    monkeypatch.setattr(stores, "ADDED", "INSERT INTO nowhere VALUES (1);")
    store = Store(path)
    assert not store.marks.enter()
    assert found(store, labels={"a": "1"}) == [1]
    assert found(store, hooks=False) == [1]
    store.close()
    monkeypatch.undo()
    store = Store(path)
    assert len(entered(store)) == 1
    store.close()


INDEXED: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": {"a": "1", "b": "2"}}, "marks USING PRIMARY KEY (name=? AND value=?"),
    "labels of mine": (
        {"labels": {"a": "1"}, "visible_to": ALICE},
        "marks USING PRIMARY KEY (name=? AND value=? AND uid=? AND number<?",
    ),
    "labels of one owner": ({"labels": {"a": "1"}, "owner_uid": 7}, "(name=? AND value=? AND uid=? AND number<?"),
    "array": ({"array": "x"}, "marks USING PRIMARY KEY (name=? AND value=?"),
    "array of mine": ({"array": "x", "visible_to": ALICE}, "(name=? AND value=? AND uid=? AND number<?"),
    "hooks": ({"hooks": True}, "marks USING PRIMARY KEY (name=? AND value=?"),
    "hooks of mine": ({"hooks": True, "visible_to": ALICE}, "(name=? AND value=? AND uid=? AND number<?"),
    "page of labels": ({"labels": {"a": "1"}, "visible_to": ALICE, "after": "0"}, "uid=? AND number<?"),
    "id": ({"id_prefix": "ab", "visible_to": ALICE, "hooks": False}, "(id>? AND id<?)"),
    "mine": ({"visible_to": ALICE}, "jobs_owner (owner_uid=?)"),
    "no hooks of mine": ({"visible_to": ALICE, "hooks": False}, "jobs_user (uid=?)"),
    "page of mine": ({"visible_to": ALICE, "after": "0"}, "jobs_owner (owner_uid=? AND number<?)"),
    "ended of mine": ({"visible_to": ALICE, "states": frozenset({"failed"})}, "jobs_owner (owner_uid=?)"),
    "mine by name": ({"visible_to": ALICE, "name": "b*", "user": "x", "queue": "y", "since": 1}, "jobs_owner"),
    "unfinished of mine": ({"visible_to": ALICE, "states": frozenset({"queued", "running"})}, "jobs_state (state=?)"),
    "state": ({"states": frozenset({"failed", "stopped"}), "hooks": False}, "jobs_state (state=?)"),
    "owner": ({"owner_uid": 7}, "jobs_owner (owner_uid=?)"),
    "changed": ({"changed_since": 7}, "jobs_seq (seq>?)"),
    "changed of mine": ({"changed_since": 7, "visible_to": ALICE}, "jobs_seq (seq>?)"),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", INDEXED)
def test_a_filter_is_answered_by_an_index(path: Path, name: str, reverse: bool) -> None:
    """No term that has an index reads all jobs, and pages of one's own are not sorted."""
    terms, index = INDEXED[name]
    store = Store(path)
    store.accept([job(1)], [])
    entered(store)
    with closing(sqlite3.connect(path)) as db:
        reading = Reading(str(path), {})
        reading.db, reading.indexed = db, 1
        wanted = Filter(**terms, reverse=reverse)
        query, values = reading.select(wanted)
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query} {wanted.order} LIMIT 101", values)]
    assert not any(step.startswith(("SCAN jobs", "SCAN marks", "SCAN runs")) for step in plan), plan
    marked, paged = "marks" in query, "after" in terms
    bounds = "number<?" if not (paged and reverse) else "number>? AND number<?" if marked else "number>?"
    expected = index.replace("number<?", bounds)
    assert any(expected in step for step in plan), plan
    if "visible_to" in terms and "USE TEMP B-TREE FOR ORDER BY" in plan:
        assert name in ("id", "unfinished of mine", "changed of mine"), plan
    store.close()


def test_a_removal_finds_its_marks_by_the_key(path: Path) -> None:
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE old AS SELECT * FROM jobs")
        for statement in marks.REMOVE:
            query = re.sub(r"old\.(\w+)", r"(SELECT \1 FROM old)", statement)
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}")]
            assert "SEARCH marks USING PRIMARY KEY (name=? AND value=? AND uid=? AND number=?)" in plan, plan


def test_the_rarest_mark_leads(path: Path) -> None:
    store = Store(path)
    store.accept([job(n, Labels={"common": "1", "rare": str(n)}) for n in range(1, 50)], [])
    entered(store)
    with closing(sqlite3.connect(path)) as db:
        reading = Reading(str(path), {})
        reading.db, reading.indexed = db, 49
        wanted = Filter(labels={"common": "1", "rare": "7"}, visible_to=ALICE)
        assert reading._rarest(wanted) == ("label rare", "7")
    assert found(store, labels={"common": "1", "rare": "7"}) == [7]
    store.close()


def test_a_query_is_ended_and_says_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "LONGEST", 0.2)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    asked = Queries(str(path), dict)
    Store(path).close()
    begin = time.monotonic()
    with pytest.raises(LimitsExceeded, match="narrow the filter"):
        asyncio.run(asked.ask(1000, lambda reading: reading.db.execute(endless).fetchall()))
    assert time.monotonic() - begin < 5

    async def leave() -> None:
        monkeypatch.setattr(queries, "LONGEST", 60)
        asking = asyncio.create_task(asked.ask(1000, lambda reading: reading.db.execute(endless).fetchall()))
        while not asked._aside._turns._busy:
            await asyncio.sleep(0.01)
        asking.cancel()
        assert await asked.ask(1000, lambda reading: 5) == 5  # in the same user's turn, which is over now

    asyncio.run(leave())
    asked.close()


def test_a_query_sees_what_was_noted_and_not_written(path: Path) -> None:
    store = Store(path)
    one, two = store.accept([job(1), job(2)], [])
    store.put(model.finish(one, Finished(Result.CANCELED, at=3)))
    assert asyncio.run(store.queries.count(0, Filter())) == {"queued": 1, "stopped": 1}
    store._db.execute("PRAGMA query_only=ON")
    done = store.put(model.finish(two, Finished(Result.CANCELED, at=3)))
    ended = Filter(states=frozenset({"stopped"}))
    assert asyncio.run(store.queries.count(0, Filter())) == {"stopped": 2}
    assert asyncio.run(store.queries.ids(0, ended)) == [two.id, one.id]
    assert asyncio.run(store.queries.page(0, ended, 1, 2**20))[0] == [done]
    store._db.execute("PRAGMA query_only=OFF")
    store.close()


def test_time_used_decides_whose_turn_is_next() -> None:
    async def scenario() -> None:
        now = 0.0
        turns = Shares(2, lambda: now)
        order: list[int] = []

        async def wait(uid: int) -> None:
            await turns.take(uid)
            order.append(uid)

        await turns.take(1)
        now = 5.0
        turns.give_back(1)
        await turns.take(1)
        await turns.take(2)
        waiting = [asyncio.create_task(wait(uid)) for uid in (1, 1, 2, 3)]
        await asyncio.sleep(0)
        assert order == []
        now = 6.0
        turns.give_back(2)  # 1 has a turn: it waits, and 3 has used nothing
        await asyncio.sleep(0)
        assert order == [3]
        turns.give_back(1)
        await asyncio.sleep(0)
        assert order == [3, 2]  # one second, and not six
        turns.give_back(3)
        await asyncio.sleep(0)
        assert order == [3, 2, 1]
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        turns.give_back(1)
        turns.give_back(2)
        assert (turns._free, turns._busy, turns._waiting) == (2, {}, {})
        assert turns.used(1) > turns.used(2)
        now += 20 * Shares.HALF_LIFE
        assert turns.used(1) < 0.001

    asyncio.run(scenario())


def test_a_turn_that_nobody_waits_for_lasts_until_its_thread_is_free() -> None:
    async def scenario() -> None:
        aside, let_go, told = Aside("test", 1), threading.Event(), list[int]()
        work: Callable[[], bool] = lambda: let_go.wait(60)  # noqa: E731
        first = asyncio.create_task(aside.do(1, work, lambda: told.append(1)))
        while not aside._turns._busy:
            await asyncio.sleep(0)
        first.cancel()
        second = asyncio.create_task(aside.do(2, lambda: True))
        await asyncio.gather(first, return_exceptions=True)
        assert told == [1]
        assert not second.done()
        let_go.set()
        assert await second
        aside.close()

    asyncio.run(scenario())
