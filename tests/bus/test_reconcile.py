"""What one life of the service leaves behind is taken up by the next, once, and nothing more than that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from dbus_next.signature import Variant
from house import House, Scenario

from jobsvc import control, ending, model, rundir
from jobsvc.config import Config
from jobsvc.model import Finished, Job, Result

Run = Callable[[Scenario], None]
TRUE = {"Command": Variant("as", ["true"])}


async def finished(house: House) -> Job:
    """A job whose end is noted."""
    job_id, _ = await house.call("Start", "a{sv}", TRUE)
    job = house.manager.jobs[job_id]
    end = Finished(Result.SUCCESS, at=1, exit_code=0)
    return house.manager.change(job, lambda job: model.finish(job, end, stdout_bytes=100, stderr_bytes=0))


def leave_report(job: Job, **facts: Any) -> None:
    whole = {"begun": True, "result": "success", "finished_usec": 1, "stdout_bytes": 100, **facts}
    (ending.REPORTS / job.key).write_bytes(control.dump(whole))


async def settled(house: House) -> None:
    """Until all that was taken up has been seen through."""
    await house.manager.reconcile()
    await asyncio.gather(*house.manager._tasks)
    house.manager.commits.flush()


def test_what_a_supervisor_said_after_our_end_is_taken_in_once(house: Run) -> None:
    async def scenario(house: House) -> None:
        job = await finished(house)
        for _ in range(2):
            leave_report(job, undelivered=[["stdout", 40, 100]])
            await settled(house)
            run = house.manager.store.run(job.id, 1)
            assert run is not None
            assert run.missing == (("stdout", 40, 100, "lost"),)
            assert not list(ending.keys())

    house(scenario)


def test_a_removed_job_does_not_come_back_while_its_supervisor_is_closing(house: Run) -> None:
    async def scenario(house: House) -> None:
        job = await finished(house)
        rundir.write(job.key, rundir.build(job, Config(), sample_memory=False))
        assert json.loads((rundir.path(job.key) / "request").read_bytes())["id"] == job.id
        leave_report(job)
        await house.call("Remove", "sa{sv}", job.id, {})
        await settled(house)
        assert not house.manager.knows(job.id)
        assert not list(rundir.keys())

    house(scenario)


def test_the_last_words_of_a_removed_job_are_not_kept(house: Run) -> None:
    async def scenario(house: House) -> None:
        job = await finished(house)
        await house.call("Remove", "sa{sv}", job.id, {})
        house.manager.change(job, lambda job: ending.undelivered(job, [["stdout", 0, 5]]))
        house.manager.commits.flush()
        assert house.manager.store.run(job.id, 1) is None

    house(scenario)
