"""No call keeps the loop for longer than it may: the service's own callbacks are timed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dbus_next.signature import Variant
from house import House, Scenario, until

from jobsvc import model, watcher
from jobsvc.clock import realtime_usec
from jobsvc.model import Finished, Job, Queued, Result, Run, User
from machine.host import slowness

Fixture = Callable[[Scenario], None]
GOAL = 0.05  # seconds on a quick machine that has nothing else to do; twice that is a fault
MANY = 1500
LABELS = {f"label{n}": "a value that many jobs have" for n in range(32)}


@pytest.fixture
def slow() -> Iterator[list[tuple[Any, float]]]:
    """Callbacks that took too long of the loop's thread."""
    found: list[tuple[Any, float]] = []
    limit = 2 * GOAL * slowness()

    def told(callback: Any, _: float, used: float) -> None:
        if used > limit:
            found.append((callback, used))

    end = watcher.watch(limit, told)
    yield found
    end()


def ours(house: House, slow: list[tuple[Any, float]]) -> list[str]:
    """Those of the service: its client here is on the same loop, and reads long answers."""
    return [
        f"{watcher.name(callback)} {used * 1000:.0f} ms"
        for callback, used in slow
        if getattr(callback, "__self__", None) is not house.client and "main" not in watcher.name(callback)
    ]


def remember(house: House, count: int) -> None:
    """So many canceled jobs of root with 32 labels, without a call."""
    root, store = User(0, "root"), house.manager.store
    for begin in range(0, count, 500):
        jobs = [
            Job(f"{n:016x}", root, root, 0, {"Command": ["true"], "Labels": LABELS}, realtime_usec(), "r",
                run=Run(1, Queued("")))
            for n in range(begin, begin + 500)
        ]  # fmt: skip
        end = Finished(Result.CANCELED, realtime_usec())
        store.accept([model.finish(job, end) for job in jobs], [])


def test_calls_about_many_jobs_never_stall_the_loop(house: Fixture, slow: list[tuple[Any, float]]) -> None:
    async def scenario(house: House) -> None:
        remember(house, MANY)
        slow.clear()
        index = asyncio.create_task(house.manager.store.marks.keep())
        mine = {"Labels": Variant("a{ss}", LABELS)}
        for member in ("Count", "Stats"):
            for terms in ({}, mine, {"Name": Variant("s", "*a*b*")}):
                await house.call(member, "a{sv}", terms)
        for terms in ({}, mine):
            page, _ = await house.call("List", "a{sv}", {"Limit": Variant("u", 500), **terms})
            assert len(page) == 500
        await until(lambda: not house.manager.store.marks.enter())
        assert await house.call("Count", "a{sv}", mine) == [{"stopped": MANY}]
        stopped = {"State": Variant("as", ["stopped"])}
        (again,) = await house.call("RestartMany", "asa{sv}", [], stopped)
        (ended,) = await house.call("StopMany", "asa{sv}", [], {"State": Variant("as", ["queued"])})
        (removed,) = await house.call("RemoveMany", "asa{sv}", [], stopped)
        assert (len(again), len(ended), len(removed)) == (MANY, MANY, MANY)
        assert not [name for *_, name, _ in again + ended + removed if name]
        index.cancel()
        assert not ours(house, slow)

    house(scenario)


def test_who_waits_for_one_job_is_let_go_in_slices(house: Fixture, slow: list[tuple[Any, float]]) -> None:
    async def scenario(house: House) -> None:
        first, _ = await house.call("Start", "a{sv}", {"Command": Variant("as", ["true"])})
        waits = {"Command": Variant("as", ["true"]), "Dependencies": Variant("a(ss)", [[first, "success"]])}
        for _ in range(10):
            await house.call("StartMany", "aa{sv}a{sv}", [waits] * 200, {})
        slow.clear()
        await house.call("Stop", "sa{sv}", first, {})
        await until(lambda: not house.manager.jobs)
        assert (await house.call("Count", "a{sv}", {}))[0] == {"stopped": 2001}
        assert not ours(house, slow)

    house(scenario)


def test_the_watcher_tells_of_a_slow_callback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(watcher.VARIABLE, "20")
    monkeypatch.setattr(asyncio.Handle, "_run", asyncio.Handle._run)  # type: ignore[attr-defined]

    async def idle() -> None:
        end = time.thread_time() + 0.04
        while time.thread_time() < end:
            pass

    async def main() -> None:
        await asyncio.create_task(idle(), name="an idle one")

    with caplog.at_level(logging.WARNING):
        watcher.begin()
        asyncio.run(main())
    assert "slow callback an idle one" in caplog.text
