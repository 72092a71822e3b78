"""One look for all runs, and none while nothing runs."""

import asyncio

import pytest

from jobsvc import rounds
from jobsvc.rounds import Rounds


class Run:
    looks = 0

    def look_inside(self) -> None:
        self.looks += 1


def test_everything_that_runs_is_looked_at_and_nothing_wakes_up_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "EVERY", 0)
    monkeypatch.setattr(rounds, "AT_ONCE", 2)
    runs = {str(number): Run() for number in range(5)}
    there = runs.copy()

    async def scenario() -> None:
        one = Rounds(there)
        keeping = asyncio.create_task(one.keep())
        await asyncio.sleep(0.01)
        assert [run.looks for run in runs.values()] == [0] * 5  # nobody has said that something runs
        one.begin()
        async with asyncio.timeout(60):
            while min(run.looks for run in runs.values()) < 3:
                await asyncio.sleep(0)
        there.clear()
        async with asyncio.timeout(60):
            while one._begun.is_set():
                await asyncio.sleep(0.001)
        asleep = asyncio.create_task(one._begun.wait())
        await asyncio.sleep(0.01)
        assert not asleep.done()
        asleep.cancel()
        keeping.cancel()

    asyncio.run(scenario())
