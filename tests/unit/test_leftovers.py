"""What hangs and outlives its job counts against whose job it was, until it is gone."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobsvc import cgroup, leftovers, rundir
from jobsvc.errors import Quota
from jobsvc.leftovers import Leftovers


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rundir, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(leftovers, "LOOK_EVERY", 0.01)
    return tmp_path / "left"


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(leftovers.MOST)]
    yield started
    for one in started:
        one.kill()
        one.wait()


def test_they_are_counted_until_they_are_gone(place: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    told: list[tuple[int, int]] = []

    async def scenario() -> None:
        left = Leftovers(lambda uid, count: told.append((uid, count)))
        left.recall()
        left.note(1000, [[one.pid, cgroup.of_process(one.pid)] for one in sleepers] + [[1, "/x"], [2**22 - 1, "/"]])
        with pytest.raises(Quota, match=f"{sleepers[0].pid}"):
            left.check(1000)
        left.check(1001)
        left.check(0)
        left.close()
        again = Leftovers(lambda uid, count: told.append((uid, count)))  # the next life of the service
        again.recall()
        with pytest.raises(Quota):
            again.check(1000)
        sleepers[0].kill()
        sleepers[0].wait()
        async with asyncio.timeout(30):
            while told[-1] != (1000, 3):
                await asyncio.sleep(0.01)
        again.check(1000)
        again.close()
        assert len(list(place.iterdir())) == 3

    asyncio.run(scenario())


def test_nowhere_to_note_them(place: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    """The end of a run is taken in all the same, and they are counted."""
    told: list[tuple[int, int]] = []

    async def scenario() -> None:
        left = Leftovers(lambda uid, count: told.append((uid, count)))
        left.recall()
        place.rmdir()
        left.note(1000, [[sleepers[0].pid, cgroup.of_process(sleepers[0].pid)]])
        left.close()

    asyncio.run(scenario())
    assert told == [(1000, 1)]


def test_nonsense_is_not_recalled(place: Path) -> None:
    place.mkdir()
    (place / "nonsense").write_text("/")
    (place / "1000-1").write_text("")  # the disk was full

    async def scenario() -> None:
        left = Leftovers(lambda uid, count: None)
        left.recall()
        left.check(1000)
        left.close()

    asyncio.run(scenario())
    assert list(place.iterdir()) == []
