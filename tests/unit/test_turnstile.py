"""The turnstile: what begins on a busy machine, and what the others are told."""

import asyncio
from dataclasses import replace

import pytest

from jobsvc import load, model
from jobsvc.config import Config, Queue
from jobsvc.load import Load
from jobsvc.model import Job, Queued, Run, User
from jobsvc.roster import Roster
from jobsvc.turnstile import Turnstile

BATCH = replace(Config(), queues={"default": Queue(), "batch": Queue(start_when_load_below=1.5)})


def job(number: int, queue: str) -> Job:
    user = User(1000, "alice")
    spec = {"Command": ["true"], "Queue": queue}
    return model.line_up(
        Job(f"{number:016x}", user, user, 1000, spec, 1, "", Run(1, Queued(""))), 1, at=1, place=number
    )


def test_a_busy_machine_holds_up_only_the_queues_that_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [Load(0.5, 1, None), Load(7, 1, None)]  # the last first
    monkeypatch.setattr(load, "look", lambda: looks.pop())
    settings = BATCH
    roster, begun = Roster(), []

    def begin(job: Job) -> None:
        begun.append(int(job.id, 16))
        roster.put(model.begin(job, "b" * 32), 1)

    async def story() -> None:
        nonlocal settings
        turnstile = Turnstile(roster, lambda: 1, lambda: settings, begin, lambda: None)
        turnstile.open = True
        waiting = [job(1, "batch"), job(2, "batch"), job(3, "default"), job(4, "default")]
        for one in waiting:
            roster.put(one, 1)
        turnstile.admit()
        assert begun == [3, 4]
        assert turnstile.reason(waiting[0]) == "the load is 7.00; StartWhenLoadBelow=1.5"
        turnstile.admit()  # not looked at again so soon
        assert begun == [3, 4]
        turnstile._look_over()
        assert begun == [3, 4, 1]  # one at a time
        assert turnstile.reason(waiting[1]) == "waiting for its turn"
        settings = Config(queues={"default": Queue(), "batch": Queue()})
        turnstile.admit()
        assert begun == [3, 4, 1, 2]

    asyncio.run(story())
