"""History: what is removed and what stays, and what the statistics say of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from dbus_next.signature import Variant
from house import House, Scenario, pretend, until

from jobsvc import manager, model, queries
from jobsvc.bus import BusError
from jobsvc.model import Finished, Result
from jobsvc.selection import Filter
from jobsvc.store import Store

Run = Callable[[Scenario], None]
TRUE = {"Command": Variant("as", ["true"])}
DAY = 24 * 3600 * 1_000_000
NOW = 20_000 * DAY


async def known(house: House, filter: Filter) -> list[str]:
    return await house.manager.store.queries.ids(0, filter)


async def finished(house: House, count: int, at: Callable[[int], int], spec: Any = TRUE) -> list[str]:
    """So many jobs that ended at these times."""
    ids = []
    for first in range(0, count, 1000):
        (jobs,) = await house.call("StartMany", "aa{sv}a{sv}", [spec] * min(1000, count - first), {})
        ids += [job_id for job_id, _ in jobs]
    for number, job_id in enumerate(ids):
        end = Finished(Result.SUCCESS, at=at(number), exit_code=0)
        house.manager.change(house.manager.jobs[job_id], lambda job, end=end: model.finish(job, end))
    return ids


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The wall clock and the uptime of the manager, in µs."""
    times = {"now": NOW, "uptime": 0}
    monkeypatch.setattr(manager, "realtime_usec", lambda: times["now"])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda which: times["uptime"] * 1000)
    return times


def test_thousands_go_by_number_and_age_while_others_are_answered(house: Run, clock: dict[str, int]) -> None:
    async def scenario(house: House) -> None:
        ids = await finished(house, 2000, lambda number: NOW - 2000 + number)
        house.manager.configure(replace(house.manager.config, keep_finished=500))
        turns, going = 0, True

        async def count() -> None:
            nonlocal turns
            while going:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await house.manager.history.retire()
        going = False
        await counting
        assert turns >= 1500 / 100  # others have had theirs after each hundred
        left = await known(house, Filter(reverse=True))
        assert left == ids[1500:]
        for days in (29, 31):
            clock["now"] += days * DAY
            clock["uptime"] += days * DAY
            await house.manager.history.retire()
            assert len(await known(house, Filter())) == (500 if days == 29 else 0)

    house(scenario)


def test_what_one_user_piles_up_pushes_out_nobody_elses_history(house: Run, clock: dict[str, int]) -> None:
    async def scenario(house: House) -> None:
        mine = await finished(house, 10, lambda number: NOW - 1000 + number)
        pretend(house)
        theirs = await finished(house, 300, lambda number: NOW - 500 + number)
        await house.call("StartMany", "aa{sv}a{sv}", [TRUE] * 20, {})  # those that wait are none of it
        house.manager.configure(replace(house.manager.config, keep_finished=50))
        await house.manager.history.retire()
        ended = Filter(reverse=True, states=frozenset({"completed"}))
        assert await known(house, ended) == [*mine, *theirs[-40:]]

    house(scenario)


def test_what_one_user_piles_up_takes_only_so_much(house: Run, clock: dict[str, int]) -> None:
    async def scenario(house: House) -> None:
        history, store = house.manager.history, house.manager.store
        large = {"Command": Variant("as", ["true", "x" * 100_000])}
        roots = await finished(house, 20, lambda number: NOW - 2000 + number, large)
        pretend(house)
        small = await finished(house, 5, lambda number: NOW - 1000 + number)
        theirs = await finished(house, 20, lambda number: NOW - 500 + number, large)
        assert not history._again.is_set()
        house.manager.configure(replace(house.manager.config, keep_finished_bytes_per_user=1_000_000))
        await history.retire()
        kept = await known(house, Filter(reverse=True))
        assert kept == [*roots, *theirs[-9:]]  # the oldest went, small ones too; of root's none
        assert len(small) == 5 and not {*small} & {*kept}
        used = await store.figures.finished_bytes()
        assert 900_000 < used[4242] < 1_000_000 < used[0]
        history._again.clear()
        await finished(house, 1, lambda number: NOW)
        assert not history._again.is_set()
        await finished(house, 2, lambda number: NOW, large)
        assert history._again.is_set()  # an eighth is reached: it looks at once

    house(scenario)


def test_a_clock_that_jumps_removes_nothing_at_once(house: Run, clock: dict[str, int]) -> None:
    async def scenario(house: House) -> None:
        await finished(house, 5, lambda number: NOW + number)
        await house.manager.history.retire()
        for minutes in range(10, 60, 10):
            clock["uptime"] = minutes * 60_000_000
            clock["now"] = NOW + 4000 * DAY
            await house.manager.history.retire()
        assert await house.manager.store.queries.count(0, Filter()) == {"completed": 5}
        clock["uptime"] += 40 * DAY
        clock["now"] += 40 * DAY
        await house.manager.history.retire()
        assert await house.manager.store.queries.count(0, Filter()) == {}

    house(scenario)


def test_statistics_are_by_day_user_and_queue(house: Run) -> None:
    async def scenario(house: House) -> None:
        first, second, third, fourth = await finished(house, 4, lambda number: NOW + number // 2 * DAY)
        del fourth
        for job_id, cpu, peak, waited in ((first, 5, 100, 7), (second, 6, 50, 1)):
            job = house.manager.get(job_id)
            queued = 1_000_000
            run = replace(
                job.run, queued_at=queued, started_at=queued + waited, usage={"CPUUsageNSec": cpu, "MemoryPeak": peak}
            )
            house.manager.change(job, lambda job, run=run: replace(job, run=run))
        house.manager.remove([house.manager.get(third)], "", "")
        ((later, earlier),) = await house.call("Stats", "a{sv}", {})
        assert {name: value.value for name, value in earlier.items()} == {
            "User": "root",
            "Queue": "default",
            "Day": "2024-10-04",
            "Jobs": 2,
            "Completed": 2,
            "Failed": 0,
            "Stopped": 0,
            "CPUUsageNSec": 11,
            "MemoryPeak": 100,
            "WaitUSec": 8,
        }
        assert (later["Day"].value, later["Jobs"].value, "MemoryPeak" in later) == ("2024-10-05", 1, False)
        assert await house.call("Stats", "a{sv}", {"User": Variant("s", "nobody")}) == [[]]

    house(scenario)


def test_statistics_stall_nobody_and_show_nobody_elses(house: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: House) -> None:
        await finished(house, 3, lambda number: NOW + number)
        let_go = threading.Event()
        slow = queries.stats

        def slowly(*question: Any) -> Any:
            assert let_go.wait(360)
            return slow(*question)

        monkeypatch.setattr(queries, "stats", slowly)
        asking = asyncio.create_task(house.call("Stats", "a{sv}", {}))
        await until(lambda: bool(house.manager.store.queries._aside._turns._busy))
        pretend(house, "alice", 4243)
        for _ in range(3):
            assert await house.call("Count", "a{sv}", {}) == [{"completed": 3}]
        assert not asking.done()
        let_go.set()
        assert (await asking)[0][0]["Jobs"].value == 3
        house.polkit.says = False
        house.callers._uids[house.client.unique_name] = 65534
        assert await house.call("Stats", "a{sv}", {}) == [[]]

    house(scenario)


def test_what_follows_a_job_is_noted_with_its_end_and_follows_it_once(
    house: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(house: House) -> None:
        house.manager.configure(replace(house.manager.config, on_finish=("/bin/true",)))
        ((job_id, _),) = (await house.call("StartMany", "aa{sv}a{sv}", [TRUE], {}))[0]
        with monkeypatch.context() as full:
            full.setattr(house.manager.store, "flush", lambda: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
            end = Finished(Result.SUCCESS, at=NOW, exit_code=0)
            house.manager.change(house.manager.jobs[job_id], lambda job: model.finish(job, end))
        with contextlib.closing(Store(house.manager.store._path)) as other:  # as the next life would find it
            assert await other.queries.count(0, Filter()) == {"queued": 1}
        assert not house.manager.jobs  # that life has the job followed, too: this one's hook is not launched yet
        house.manager.commits.flush()
        (hook,) = house.manager.jobs.values()
        with contextlib.closing(Store(house.manager.store._path)) as other:
            assert await other.queries.ids(0, Filter()) == [hook.id, job_id]
        (page, _) = await house.call("List", "a{sv}", {"Hooks": Variant("b", True)})
        assert [job["HookOf"].value for job in page] == [job_id]
        (page, _) = await house.call("List", "a{sv}", {"Hooks": Variant("b", False)})
        assert [job["Id"].value for job in page] == [job_id]
        house.manager.change(hook, lambda job: model.finish(job, Finished(Result.LOST, at=NOW)))
        assert not house.manager.jobs
        with pytest.raises(BusError, match="unknown key 'HookOf'"):
            await house.call("Start", "a{sv}", {**TRUE, "HookOf": Variant("s", job_id)})

    house(scenario)


def test_who_changed_what_is_told_in_the_journal_once(house: Run) -> None:
    async def scenario(house: House) -> None:
        house.manager.events._unsent.clear()
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        for member in ("Hold", "Hold", "Release", "Release"):
            await house.call(member, "sa{sv}", job_id, {})
        await house.call("SetProperties", "sa{sv}a{sv}", job_id, {"Priority": Variant("i", -3)}, {})
        await house.call("SetMaintenance", "ba{sv}", True, {})
        await house.call("SetMaintenance", "ba{sv}", True, {})
        told = b"".join(house.manager.events._unsent)
        for text in ("held by root", "released by root", f"{job_id} was changed: Priority", "switched on by root"):
            assert told.count(text.encode()) == 1, text

    house(scenario)


def test_an_end_that_nobody_waits_for_is_soon_on_the_disk(house: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: House) -> None:
        (job_id,) = await finished(house, 1, lambda number: NOW)
        synced = asyncio.Event()
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(os, "fdatasync", lambda fd: loop.call_soon_threadsafe(synced.set))
        job = house.manager.get(job_id)
        house.manager.change(job, lambda job: replace(job, run=replace(job.run, stdout_bytes=7)))
        async with asyncio.timeout(60):
            await synced.wait()

    house(scenario)
