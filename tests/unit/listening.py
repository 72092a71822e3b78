"""A run that writes, and those who listen to it, for the tests of Logs."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from paper import SOURCE, Paper

from jobsvc import events, logs, pipe
from jobsvc.formats import End, Export, Trailer
from jobsvc.logs import Logs, Selection

FOLLOW = Selection(follow=True)


class Run:
    """One run as the manager would show it; `paper` is what the journal has of it."""

    def __init__(self, paper: Paper) -> None:
        self.paper = paper
        self.now = End(run=1, state="running")
        self.it = SOURCE
        self.written = (0, 0)
        self.over = False
        self.watched: list[bool] = []
        self._changed = asyncio.Event()

    def source(self) -> logs.Source:
        return self.it

    def offsets(self) -> tuple[int, int]:
        return self.written

    def ended(self) -> bool:
        return self.over

    def end(self) -> End:
        return self.now

    async def changed(self) -> None:
        await self._changed.wait()

    def watch(self, on: bool, /) -> None:
        self.watched.append(on)

    def tell(self, **facts: Any) -> None:
        for name, fact in facts.items():
            setattr(self, name, fact)
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def write(self, data: bytes, stream: str = "stdout") -> None:
        """The job writes, the journal has it, the supervisor says so."""
        self.paper.put(data, stream)
        self.tell(written=(self.paper.at["stdout"], self.paper.at["stderr"]))

    def finish(self, last: bool = True, **facts: Any) -> None:
        """The end, with the entry in the journal that is the last of the run."""
        if last:
            fields = {"MESSAGE_ID": events.END_OF_OUTPUT.encode(), "JOBSVC_STREAM": None, "_UID": b"0", "_PID": b"1"}
            self.paper.put(b"", offset=0, **fields)
        end = End(1, "completed", "success", 0, None, *self.written, finished_usec=now())
        self.tell(now=replace(end, **facts), over=True)


class Listener:
    """The other end of what is being written."""

    def __init__(self, service: Logs, run: Run, selection: Selection = FOLLOW) -> None:
        self.end, write = pipe.pair()
        self.task = asyncio.create_task(service.stream(run, selection, write))

    async def hear(self, length: int) -> bytes:
        """So many bytes, as soon as they are there."""
        data = b""
        while len(data) < length:
            await _readable(self.end)
            piece = os.read(self.end, length - len(data))
            assert piece, f"ended after {data!r}"
            data += piece
        return data

    async def rest(self) -> bytes:
        """All to the end."""
        data = b""
        while True:
            await _readable(self.end)
            piece = os.read(self.end, 1 << 20)
            if not piece:
                os.close(self.end)
                return data
            data += piece


async def _readable(fd: int) -> None:
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(fd, ready.set)
    try:
        async with asyncio.timeout(60):
            await ready.wait()
    finally:
        asyncio.get_running_loop().remove_reader(fd)


def now() -> int:
    return int(time.time() * 1e6)


@contextmanager
def serving(paper: Paper) -> Iterator[Logs]:
    service = Logs(paper.reader)
    try:
        yield service
    finally:
        service.close()


def told(story: Callable[[Logs, Run], Coroutine[Any, Any, None]]) -> None:
    """Run a story, and see that no task and no descriptor is left of it."""

    async def whole() -> None:
        paper = Paper()
        gc.collect()  # what an earlier test has left is not closed in the middle of this one
        before = len(os.listdir("/proc/self/fd"))
        with serving(paper) as service:
            await story(service, Run(paper))
            assert not service._uses
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(whole())


def parts(stream: bytes) -> tuple[dict[str, bytes], Trailer]:
    """What an export stream has of each stream, and its trailer."""
    export = Export()
    things = export.feed(stream)
    assert not export.pending
    got = {"stdout": b"", "stderr": b""}
    for thing in things[:-1]:
        assert not isinstance(thing, Trailer)
        got[thing.stream] += thing.data
    assert isinstance(things[-1], Trailer)
    return got, things[-1]
