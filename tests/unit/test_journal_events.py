"""The service's own entries about jobs: none is lost to a journal that is slow, or not there for a while."""

import asyncio
import socket
from pathlib import Path

import pytest
from stage import parse

from jobsvc import journal_events
from jobsvc.journal_events import Events
from jobsvc.model import Job, Queued, Run, User

ALICE = User(1000, "alice")
COUNT = 2000  # more than any socket keeps


def job(number: int) -> Job:
    spec = {"Command": ["true"]}
    return Job(f"{number:016x}", ALICE, ALICE, 1000, spec, created_at=1, request="", run=Run(1, Queued("")))


def journal(path: Path) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    end.bind(str(path))
    return end


def heard(end: socket.socket) -> list[int]:
    """Of which jobs there are entries by now."""
    found = []
    while True:
        try:
            found.append(int(parse(end.recv(65536))["JOBSVC_ID"], 16))
        except BlockingIOError:
            return found


def test_what_the_journal_could_not_take_is_sent_when_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_events, "AGAIN", 0.01)
    path = tmp_path / "journal"

    async def scenario() -> None:
        events, found = Events(str(path)), list[int]()
        events.queued(job(0))  # nobody is there
        with journal(path) as end:
            for number in range(1, COUNT):
                events.queued(job(number))
            async with asyncio.timeout(180):
                while len(found) < COUNT:
                    found += heard(end)
                    await asyncio.sleep(0.001)
        assert found == list(range(COUNT))
        events.close()

    asyncio.run(scenario())


def test_what_is_unsent_has_a_chance_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    async def scenario() -> None:
        events = Events(str(path))
        events.queued(job(7))
        with journal(path) as end:
            events.close()
            assert heard(end) == [7]

    asyncio.run(scenario())


def test_what_there_is_no_room_for_is_not_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        events = Events(str(tmp_path / "journal"))
        events.room = lambda job: int(job.id, 16) % 2 == 0
        with journal(tmp_path / "journal") as end:
            for number in range(4):
                events.queued(job(number))
            assert heard(end) == [0, 2]

    asyncio.run(scenario())
