"""The database: what goes in comes out, after a crash too, and searching finds what it should."""

import asyncio
import contextlib
import errno
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from jobsvc import model
from jobsvc.errors import Internal
from jobsvc.model import Finished, Job, Queued, Result, Run, Running, Stopping, User
from jobsvc.salvage import open_store
from jobsvc.selection import Filter
from jobsvc.store import CREATE, READABLE_BY, SCHEMA, Damaged, NotRecorded, Store

ALICE, BOB = User(1000, "alice"), User(1001, "bob")


def search(store: Store, filter: Filter, limit: int = 10) -> list[Job]:
    return page(store, filter, limit)[0]


def page(store: Store, filter: Filter, limit: int, most_bytes: int = 2**40) -> tuple[list[Job], str]:
    return asyncio.run(store.queries.page(0, filter, limit, most_bytes))


def count(store: Store, filter: Filter) -> dict[str, int]:
    return asyncio.run(store.queries.count(0, filter))


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


def test_a_job_comes_back_as_it_was(path: Path) -> None:
    first = job(1, AllowedCPUs=b"\x03", IOReadBandwidthMax=[["/", 5]], Labels={"a": "b"})
    end = Finished(Result.SIGNAL, at=9, reason="killed by SIGKILL", signal=9)
    run = Run(
        2,
        end,
        boot_id="b" * 32,
        main_pid=7,
        started_at=5,
        stdout_bytes=0,
        stderr_bytes=3,
        missing=(("stdout", 0, 3, "lost"),),
        usage={"CPUUsageNSec": 5},
        limits_not_in_force=("MemoryMax",),
    )
    store = Store(path)
    (noted,) = store.accept([replace(first, run=run)], [])
    store.close()
    assert Store(path).get(first.id) == noted


@pytest.mark.parametrize(
    "phase", [Queued("q"), Running(), model.Paused(), Stopping("s", again="r"), Finished(Result.LOST, 1)]
)
def test_every_phase_comes_back(path: Path, phase: model.Phase) -> None:
    store = Store(path)
    one = job(1)
    (noted,) = store.accept([replace(one, run=replace(one.run, phase=phase))], [])
    assert store.get(noted.id) == noted


def test_a_job_of_a_release_in_which_a_priority_took_a_right_has_it(path: Path) -> None:
    store = Store(path)
    ours, older = store.accept([job(1), job(2)], [])
    store._db.execute("UPDATE jobs SET body = json_remove(body, '$.priority_allowed') WHERE id = ?", (older.id,))
    assert [one.priority_allowed for one in store.unfinished()] == [False, True]


def test_group_of_a_job_of_an_older_release_is_granted(path: Path) -> None:
    """There it was not looked up again at the start."""
    store = Store(path)
    ours, older = store.accept([replace(job(1), group_granted=False), job(2)], [])
    store._db.execute("UPDATE jobs SET body = json_remove(body, '$.group_granted') WHERE id = ?", (older.id,))
    assert [one.group_granted for one in store.unfinished()] == [False, True]


def test_of_a_job_that_is_run_again_for_ever_the_last_thousand_runs_stay(path: Path) -> None:
    store = Store(path)
    (one,) = store.accept([job(1)], [])
    for number in range(2, 1502):
        store.put(replace(one, run=replace(one.run, number=number)))
        if number % 7 == 0:
            store.flush()
    store.flush()
    found = [number for number in range(1, 1503) if store.run(one.id, number)]
    assert found == list(range(502, 1502))
    assert store._one("SELECT count(*) FROM runs") == 1000


def test_what_cannot_be_written_is_told_all_the_same(path: Path) -> None:
    store = Store(path)
    first, second = store.accept([job(1), job(2)], [])
    store._db.execute("PRAGMA query_only=ON")
    done = store.put(replace(first, run=replace(first.run, phase=Finished(Result.SUCCESS, at=5))))
    assert store.get(first.id) == done
    assert store.run(first.id, 1) == done.run
    assert search(store, Filter()) == [second, done]
    assert search(store, Filter(states=frozenset({"queued"}))) == [second]
    assert search(store, Filter(states=frozenset({"completed"}))) == [done]
    assert count(store, Filter()) == {"queued": 1, "completed": 1}
    with pytest.raises(sqlite3.Error):
        store.flush()
    store._db.execute("PRAGMA query_only=OFF")
    store.close()
    assert Store(path).get(first.id) == done


def test_what_was_flushed_is_there_without_a_close(path: Path) -> None:
    store = Store(path)
    store.accept([job(1)], [])
    store.put(replace(job(1), run=Run(1, Running())))
    store.flush()
    again = Store(path).get(job(1).id)
    assert again is not None
    assert again.state == "running"


def test_all_or_none_are_accepted(path: Path) -> None:
    store = Store(path)
    store.accept([job(1)], [(ALICE, "key", job(1).id, "digest")])
    with pytest.raises(sqlite3.IntegrityError):
        store.accept([job(2), job(3)], [(ALICE, "key", job(3).id, "other")])
    store.flush()
    assert store.get(job(2).id) is None
    assert [found.id for found in store.unfinished()] == [job(1).id]


def test_seq_rises_with_every_change_also_after_a_removal_and_a_restart(path: Path) -> None:
    store = Store(path)
    (one,) = store.accept([job(1)], [])
    two = store.put(one)
    assert two.seq > one.seq
    store.remove([one.id], at=5)
    store.close()
    assert Store(path).put(job(2)).seq > two.seq


def test_earlier_runs_are_kept(path: Path) -> None:
    store = Store(path)
    (one,) = store.accept([job(1)], [])
    ended = store.put(model.finish(model.begin(one, "b"), Finished(Result.SUCCESS, 3)))
    store.put(model.restart(ended, "r", "waiting"))
    first, second = store.run(one.id, 1), store.run(one.id, 2)
    assert first is not None
    assert first.finished
    assert second is not None
    assert not second.finished
    assert store.run(one.id, 3) is None


def test_a_page_ends_where_it_becomes_large(path: Path) -> None:
    store = Store(path)
    store.accept([job(n, Environment=["X=" + "x" * 1000]) for n in range(1, 8)], [])
    pages, after = [], None
    while after != "":
        found, after = page(store, Filter(after=after), 5, 4500)
        pages.append([int(one.id, 16) for one in found])
    assert pages == [[7, 6, 5], [4, 3, 2], [1]]
    assert [len(page(store, Filter(), limit, 1)[0]) for limit in (1, 5)] == [1, 1]
    found, after = page(store, Filter(), 7, 2**40)
    assert (len(found), after) == (7, "")


def test_a_script_of_any_bytes_takes_little_more_room_than_it_has(path: Path) -> None:
    script = b"#!/bin/sh\n" + bytes(range(256)) * 100
    store = Store(path)
    (noted,) = store.accept([job(1, Script=script, Arguments=[])], [])
    assert noted.spec["Script"] == script
    store.close()
    again = Store(path).get(noted.id)
    assert again is not None
    assert again.spec["Script"] == script
    assert store._path
    assert path.stat().st_size < 2 * len(script) + 80_000


def test_searching(path: Path) -> None:
    store = Store(path)
    store.accept(
        [job(1), job(2, BOB, Name="build"), job(3, Labels={"ci": "7"}), job(4, Name="build-2", ArrayId="a1")], []
    )

    def found(**terms: object) -> list[int]:
        jobs = [one.id for one in search(store, Filter(**terms))]  # type: ignore[arg-type]
        assert asyncio.run(store.queries.ids(0, Filter(**terms))) == jobs  # type: ignore[arg-type]
        return [int(one, 16) for one in jobs]

    assert found() == [4, 3, 2, 1]
    assert found(reverse=True) == [1, 2, 3, 4]
    assert found(visible_to=BOB) == [2]
    assert found(visible_to=User(1001, "someone-new")) == []
    assert found(name="build*") == [4, 2]
    assert found(user="bob") == [2]
    assert found(labels={"ci": "7"}) == [3]
    assert found(labels={"ci": "8"}) == []
    assert found(states=frozenset({"running"})) == []
    assert found(after=f"{3:016x}") == [2, 1]
    assert found(after=f"{3:016x}", reverse=True) == [4]
    assert found(since=3) == [4, 3]
    assert found(until=3) == [2, 1]
    assert found(owner_uid=BOB.uid) == [2]
    assert found(id_prefix="000000000000000") == [4, 3, 2, 1]
    assert found(id_prefix=f"{3:016x}") == [3]
    assert found(id_prefix="1") == []
    assert found(array="a1") == [4]
    assert found(finished_before=9) == []
    assert found(changed_since=2) == [4, 3]
    assert count(store, Filter()) == {"queued": 4}


def test_removed_jobs_leave_their_request_ids_for_a_while(path: Path) -> None:
    store = Store(path)
    store.accept([job(1)], [(ALICE, "key", job(1).id, "digest")])
    store.remove([job(1).id], at=50)
    assert store.get(job(1).id) is None
    store.forget_requests(before=50)
    assert store.request(ALICE, "key") == (job(1).id, "digest")
    assert store.request(BOB, "key") is None
    store.forget_requests(before=51)
    assert store.request(ALICE, "key") is None


def test_retention_counts_finished_jobs_only(path: Path) -> None:
    store = Store(path)
    noted = store.accept([job(number) for number in range(1, 6)], [])
    for one in noted[:4]:
        store.put(model.finish(one, Finished(Result.CANCELED, at=int(one.id, 16))))

    async def scenario() -> None:
        figures = store.figures
        assert [int(one, 16) for one in await figures.expired(3, 100)] == [1, 2]
        assert [int(one, 16) for one in await figures.oldest_of(1000, 3)] == [1, 2, 3]
        assert await figures.oldest_of(1001, 3) == []
        assert (await figures.finished(), await figures.by_owner()) == (4, {1000: 5})

    asyncio.run(scenario())
    assert store.finished(job(4).id)
    assert store.finished(job(5).id) is None


def test_what_cannot_be_synced_is_not_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def scenario() -> None:
        store = Store(path)
        store.put(job(1))
        monkeypatch.setattr(os, "fdatasync", fails)
        with pytest.raises(NotRecorded, match="Input/output error"):
            await store.sync()
        monkeypatch.undo()
        await store.sync()
        store.close()

    asyncio.run(scenario())


def test_sync_is_for_all_who_wait(path: Path) -> None:
    async def scenario() -> None:
        store = Store(path)
        store.accept([job(1)], [])
        await asyncio.gather(*(store.sync() for _ in range(20)))

    asyncio.run(scenario())


def test_a_database_of_a_newer_release_is_refused_unless_it_says_it_can_be_read(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=7")
        db.execute("UPDATE facts SET value = 7 WHERE name = 'readable_by'")
    with pytest.raises(Internal, match="newer"):
        Store(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE facts SET value = 1 WHERE name = 'readable_by'")
    Store(path).close()


def test_the_file_says_its_schema_also_one_of_an_earlier_release(path: Path) -> None:
    for _ in range(2):
        store = Store(path)
        facts = dict(store._db.execute("SELECT name, value FROM facts WHERE name NOT IN ('seq', 'indexed')").fetchall())
        assert facts == {"schema": str(SCHEMA), "readable_by": str(READABLE_BY)}
        store._db.execute("DELETE FROM facts WHERE name = 'schema'")
        store.close()


def test_schema_1_with_a_fact_of_schema_2_is_migrated(path: Path) -> None:
    """The release before carries all facts over when it salvages a damaged file, and makes no index."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"{CREATE}INSERT INTO facts VALUES ('indexed', '5');PRAGMA user_version=1")
    store = Store(path)
    assert store._one("PRAGMA user_version") == SCHEMA
    assert store.fact("indexed") == "0"
    store.close()


def test_another_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(Internal, match="not a database of jobsvc"):
        Store(path)


def test_a_damaged_file_is_told_from_one_that_cannot_be_written(path: Path) -> None:
    store = Store(path)
    store.accept([job(number) for number in range(200)], [])
    seen: list[Exception] = []
    store.on_damage = seen.append
    store._db.execute("PRAGMA query_only=ON")
    with pytest.raises(NotRecorded):
        store.remove([job(1).id], at=5)
    assert not seen
    store.close()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 8192] = os.urandom(8192)
    path.write_bytes(whole)
    store = Store(path)  # closed in good order: not every page is looked at
    store.on_damage = seen.append
    try:
        for number in range(200):
            store.get(job(number).id)
    except sqlite3.Error as error:
        store.examine(error)
    assert isinstance(seen[0], Damaged)
    store.close()
    with pytest.raises(Damaged):
        Store(path)


def test_what_can_be_read_of_a_damaged_file_is_carried_over(path: Path) -> None:
    store = Store(path)
    kept = {one.id: one for one in store.accept([job(number) for number in range(1, 500)], [(ALICE, "key", "1", "d")])}
    store.close()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 8192] = os.urandom(8192)
    for at, garbled in ((whole.index(b'"root_allowed"'), b"\xff\xfe"), (whole.rindex(b'"root_allowed"'), b'""')):
        whole[at + 4 : at + 6] = garbled
    path.write_bytes(whole)
    Path(f"{path}.suspect").touch()
    again = open_store(path)
    found = search(again, Filter(), limit=1000)
    assert 100 < len(found) < 500
    assert all(one == kept[one.id] for one in found)
    assert again.accept([job(1000)], [])
    (aside,) = path.parent.glob("jobs.db.damaged-*Z")
    assert aside.read_bytes() == whole


@pytest.mark.parametrize(
    ("there", "used", "says"),
    [
        (("",), True, "jobs.db is empty"),
        ((), True, "jobs.db is not there any more"),
        (("-wal",), False, "jobs.db is not there any more"),
        (("",), False, None),  # the very first start was cut off
        ((), False, None),
    ],
)
def test_a_database_that_is_lost_is_not_passed_over_in_silence(
    path: Path, caplog: pytest.LogCaptureFixture, there: tuple[str, ...], used: bool, says: str | None
) -> None:
    for ending in there:
        Path(f"{path}{ending}").touch()
    assert count(open_store(path, used), Filter()) == {}
    assert bool(caplog.records) == bool(says)
    assert (says or "") in caplog.text
    assert len(list(path.parent.glob("jobs.db.damaged-*"))) == (len(there) if says else 0)
    caplog.clear()
    open_store(path, used=True)
    assert not caplog.records


def test_a_file_that_is_no_database_is_set_aside(path: Path) -> None:
    path.write_text("nonsense " * 1000)
    assert count(open_store(path), Filter()) == {}
    assert len(list(path.parent.glob("jobs.db.damaged-*Z"))) == 1
