"""Live output of one run: one reader at its end feeds all followers that have caught up.

One that has not (new, slow, or parked) reads the journal at its own place until it meets the feed.
So a slow one costs nothing but its place, and a thousand that keep up cost one read for each piece
of output.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from jobsvc import places
from jobsvc.chunks import STREAMS, Stream
from jobsvc.formats import End
from jobsvc.journal import HEAD, Item, Mark, Reader, Source
from jobsvc.places import Place
from jobsvc.shelf import Shelf

_FIRST: Final = 0.0005  # seconds; journald usually has an entry 0.9 ms after it was sent
_SLOWEST: Final = 0.25
_PATIENCE: Final = 5.0  # seconds of looking so for bytes said to be written; then they are looked for
_RARELY: Final = 10.0  # seconds apart: the journal may be in trouble, or have lost them
_WINDOW: Final = 1024 * 1024  # bytes kept for followers that are a little behind,
_KEPT: Final = 1.0  # and for how many seconds
_ENTRY: Final = 512  # bytes that an entry takes besides its output


def _size(item: Item) -> int:
    return _ENTRY + (len(item.chunk.data) if item.chunk else 0)


class Progress(Protocol):
    """What following needs to know of one run; the manager has it."""

    def source(self) -> Source: ...

    def offsets(self) -> tuple[int, int]:
        """Bytes of stdout and stderr known to have been handed to the journal."""

    def ended(self) -> bool:
        """Nothing more will come: the journal has all it will get."""

    def end(self) -> End:
        """The facts of the run as they are now."""

    async def changed(self) -> None:
        """Return when any of this has changed since the call."""

    def watch(self, on: bool, /) -> None:
        """Ask for offsets as they happen, or no longer."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a follower is: its place in the journal and, where it has met the feed, its number."""

    mark: Mark = HEAD
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Portion:
    """Some entries, the spot after them, and whether nothing newer is known (drained)."""

    items: list[Item]
    spot: Spot
    drained: bool


class Feed:
    """The end of one run's output, shared. `open` it before use, `close` it after."""

    def __init__(self, progress: Progress, shelf: Shelf) -> None:
        self.progress = progress
        self.have: dict[Stream, int] = dict.fromkeys(STREAMS, 0)  # how far the journal is known to reach
        self._shelf = shelf
        self._lock = asyncio.Lock()
        self._opened = False
        self._head = HEAD
        self._number = 0  # of the entry at the head; numbers only rise
        self._window: deque[tuple[int, Item]] = deque()
        self._size = 0
        self._met: dict[str | None, int] = {None: 0}  # cursors at which a follower meets the feed
        self._final = False  # looked after the end, and there was nothing more
        self._told = False  # everybody was told of the end
        self._demand = asyncio.Event()
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._pump: asyncio.Task[None] | None = None
        self._tidying: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Find the end of what there is; for the first follower only."""
        async with self._lock:
            if not self._opened:
                await self._find_end()
                self._opened = True

    async def close(self) -> None:
        if self._tidying:
            self._tidying.cancel()
        if self._pump:
            self._pump.cancel()
            await asyncio.wait({self._pump})

    async def read(self, spot: Spot, streams: Collection[Stream], max_bytes: int, uid: int) -> Portion:
        """What comes after `spot`, at once: from the feed if possible, else from the journal. For this user."""
        number = self._joined(spot)
        if number is not None:
            fresh = itertools.islice(reversed(self._window), self._number - number)
            return Portion([item for _, item in fresh][::-1], Spot(self._head, self._number), True)
        before = self._number
        source = self.progress.source()
        batch = await self._shelf.catch_up(uid, lambda reader: reader.forward(source, spot.mark, streams, max_bytes))
        for count, item in enumerate(batch.items, 1):
            if item.cursor in self._met:
                return Portion(batch.items[:count], Spot(Mark(item.cursor), self._met[item.cursor]), False)
        if batch.drained and before == self._number:  # the head is nowhere ahead: it began empty, or was vacuumed
            async with self._lock:
                if before == self._number:
                    await self._find_end()
        return Portion(batch.items, Spot(batch.mark), False)

    async def find(self, uid: int, question: Callable[[Reader], Place]) -> Place:
        """Where a reader of this user's is to begin."""
        return await self._shelf.catch_up(uid, question)

    async def look(self) -> bool:
        """Read on at the head: was there anything? After the end, once is enough."""
        async with self._lock:
            source = self.progress.source()
            if self._final or source.main_pid is None:
                return False
            ended = self.progress.ended()
            head = self._head
            batch = await self._shelf.ask(lambda reader: reader.forward(source, head))
            self._final = ended and batch.drained and not self._behind()
            self._append(batch.items)
            return bool(batch.items)

    async def taken_in(self) -> tuple[bool, str | None]:
        """Whether the journal has the last entry of the run, and the newest entry of all it has."""
        source = self.progress.source()
        return await self._shelf.ask(lambda reader: (reader.has_last(source), reader.newest()))

    async def news(self, spot: Spot) -> None:
        """Return when there is something after `spot`, or the run has ended."""
        if self._error:
            raise self._error
        if spot.number != self._number:
            return
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name="feed")
        self._demand.set()
        await self._news.wait()
        if self._error:
            raise self._error

    def _joined(self, spot: Spot) -> int | None:
        oldest = self._window[0][0] if self._window else self._number + 1
        if spot.number is not None and oldest - 1 <= spot.number:
            return spot.number
        return None if spot.mark.at_it else self._met.get(spot.mark.cursor)

    async def _find_end(self) -> None:
        source = self.progress.source()
        self._clear()
        self._number += 1
        if source.main_pid is not None:
            place = await self._shelf.catch_up(source.uid, lambda reader: places.end(reader, source))
            self._head, self.have = place.mark, place.offsets
        self._met = {self._head.cursor: self._number}

    async def _run(self) -> None:
        try:
            await self._follow()
        except Exception as error:  # noqa: BLE001  # raised to everybody who waits
            self._error = error
            self._wake()

    async def _follow(self) -> None:
        """Look when there is news; look again, ever slower, for bytes that ought to be there."""
        changed = self.progress.changed
        pause, spent = _FIRST, 0.0
        await self.look()  # what came between opening and now
        while True:
            await self._demand.wait()
            if self.progress.ended() and not self._told:
                self._told = True
                self._wake()
                continue
            if self._behind():
                try:
                    async with asyncio.timeout(pause):
                        await changed()
                    pause, spent = _FIRST, 0.0
                except TimeoutError:
                    spent += pause
                    pause = min(2 * pause, _SLOWEST if spent < _PATIENCE else _RARELY)
            else:
                await changed()
                pause, spent = _FIRST, 0.0
            if await self.look():
                pause, spent = _FIRST, 0.0

    def _behind(self) -> bool:
        return any(self.have[stream] < there for stream, there in zip(STREAMS, self.progress.offsets(), strict=True))

    def _append(self, items: list[Item]) -> None:
        if not items:
            return
        if not self._window:
            self._met.clear()
        for item in items:
            self._number += 1
            self._window.append((self._number, item))
            self._met[item.cursor] = self._number
            self._size += _size(item)
            if chunk := item.chunk:
                self.have[chunk.stream] = max(self.have[chunk.stream], chunk.end)
        self._head = Mark(items[-1].cursor)
        while self._size > _WINDOW and len(self._window) > 1:
            _, item = self._window.popleft()
            del self._met[item.cursor]
            self._size -= _size(item)
        if self._tidying:
            self._tidying.cancel()
        self._tidying = asyncio.get_running_loop().call_later(_KEPT, self._clear)
        self._wake()

    def _clear(self) -> None:
        """Keep nothing; whoever is behind reads the journal."""
        self._window.clear()
        self._size = 0
        self._met = {self._head.cursor: self._number}

    def _wake(self) -> None:
        self._demand.clear()
        self._news.set()
        self._news = asyncio.Event()
