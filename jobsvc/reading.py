"""One reader's way through a run's output: where it begins, what it gets, when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from jobsvc import places
from jobsvc.chunks import STREAMS, Chunk, Ledger, Missing, Range, Stream
from jobsvc.feed import Feed, Spot
from jobsvc.formats import Origin, Trailer, encode, encode_trailer, show
from jobsvc.journal import Item, Mark, Source
from jobsvc.patience import Patience
from jobsvc.places import Place

PORTION: Final = 1024 * 1024  # bytes read at a time


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a run's output is wanted, from which bytes on, and how. None: no condition."""

    stream: Stream | None = None
    lines: int | None = None
    since_usec: int | None = None
    until_usec: int | None = None
    from_stdout: int = 0
    from_stderr: int = 0
    format: str = "raw"
    follow: bool = False
    missing: tuple[Missing, ...] = ()  # found by the part of this reading that is already done
    uid: int = 0  # who reads: users take turns

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (self.stream,) if self.stream else STREAMS


class Reading:
    """`begin`; then `portion` and `take`; when `drained`, `settle`, and ask if it is `over`."""

    def __init__(self, feed: Feed, selection: Selection) -> None:
        self.drained = False
        self._feed = feed
        self._progress = feed.progress
        self._selection = selection
        self._spot = Spot()
        self._ledger = Ledger()
        self._source = self._progress.source()
        self._target: dict[Stream, int] | None = None  # of a reading that does not follow an unfinished run
        self._patience: Patience | None = None
        self._past = False

    async def begin(self) -> None:
        """Find the first entry wanted."""
        selection = self._selection
        await self._feed.open()
        if not selection.follow and not self._progress.ended():
            await self._feed.look()
            have = self._feed.have
            self._target = {stream: max(have[stream], there) for stream, there in self._written().items()}
        place = await self._place()
        self._spot = Spot(place.mark)
        self._ledger = Ledger(
            max(place.offsets["stdout"], selection.from_stdout),
            max(place.offsets["stderr"], selection.from_stderr),
            selection.streams,
            selection.missing,
        )

    async def portion(self, max_bytes: int = PORTION) -> Iterator[tuple[Mark, Item]]:
        """The next entries, each with the place before it."""
        before = self._spot.mark
        portion = await self._feed.read(self._spot, self._selection.streams, max_bytes, self._selection.uid)
        self._spot = portion.spot
        self.drained = portion.drained
        marks = [before, *(Mark(item.cursor) for item in portion.items)]
        return zip(marks, portion.items, strict=False)

    def take(self, item: Item) -> list[Chunk]:
        """What this entry brings to be given out."""
        until = self._selection.until_usec
        if self._complete() or item.chunk is None:
            return []
        if until is not None and item.chunk.time_usec > until:
            self._past = True
            return []
        return self._ledger.take(item.chunk)

    def settle(self) -> list[Chunk]:
        return self._ledger.settle()

    def back(self, mark: Mark, chunk: Chunk) -> bool:
        """Return to `mark`, before the entry that brought `chunk`, if nothing else is held."""
        if self._ledger.holds():
            return False
        self.untake([chunk])
        self._spot = Spot(mark)
        self.drained = False
        return True

    def untake(self, chunks: list[Chunk]) -> None:
        """These were not given out after all."""
        for chunk in reversed(chunks):
            self._ledger.lanes[chunk.stream].back(chunk.offset)

    @property
    def live(self) -> bool:
        """Will the run write more, and is that wanted?"""
        return self._selection.follow and not self._progress.ended() and not self._past and self._until() > 0

    @property
    def unfinished(self) -> bool:
        """Will the run write more, wanted or not?"""
        return not self._progress.ended()

    async def over(self, wait: float | None = None) -> bool:
        """Nothing to read just now: is that all? If not, return when there may be more.

        While the run goes on, that is after `wait` seconds at the latest.
        """
        if self._past or self._complete():
            return True
        if self.live:
            await self._news(min(self._until(), float("inf") if wait is None else wait))
            return False
        if await self._feed.look():
            return False
        if not self._ledger.behind(self._target or self._written(), self._known()):
            return True
        if self._patience is None:
            self._patience = Patience(self._feed)
        pause = await self._patience.pause()
        if pause is None:
            return True
        await self._news(pause)
        return False

    def encode(self, chunk: Chunk) -> bytes:
        if self._selection.format == "raw":
            return chunk.data
        source = self._source
        return encode(self._selection.format, Origin(source.id, source.run, source.boot_id), chunk)

    def trailer(self) -> bytes:
        return encode_trailer(self._selection.format, Trailer(self._progress.end(), self.missing()))

    def close(self) -> None:
        """It is over: what should be there and is not, is lost, or late if more may come in."""
        if self._selection.until_usec is None:
            written = self._target or (self._written() if self._progress.ended() else {})
            late = self._patience is not None and not self._patience.complete
            self._ledger.close(written, "late" if late else "lost")

    def missing(self) -> tuple[Missing, ...]:
        return self._ledger.missing(self._progress.end().cut)

    def found_missing(self) -> tuple[Missing, ...]:
        """What of that was found by this part of the reading: the rest is what the reader says."""
        return self._ledger.found(self._progress.end().cut)

    def options(self) -> dict[str, Any]:
        """What to ask for to go on from here, by the names Logs knows."""
        wish = self._selection
        at = {stream: self._ledger.at(stream) if stream in wish.streams else self._from(stream) for stream in STREAMS}
        options = {
            "Run": self._source.run,
            "Stream": wish.stream,
            "UntilUSec": wish.until_usec,
            "FromStdout": at["stdout"],
            "FromStderr": at["stderr"],
            "Format": wish.format,
            "Follow": wish.follow,
            "Missing": [show(gap) for gap in self.missing() if gap in wish.missing or gap.start < at[gap.stream]],
        }
        return {name: value for name, value in options.items() if value not in (None, [])}

    async def _place(self) -> Place:
        wish, source = self._selection, self._progress.source()
        self._source = source
        if source.main_pid is None:
            return Place()
        if wish.lines is not None:
            return await self._ask_lines(source, wish.lines)
        if (since := wish.since_usec) is not None:
            return await self._feed.find(wish.uid, lambda reader: places.since(reader, source, since))
        wanted = {stream: self._from(stream) for stream in wish.streams}
        if any(wanted.values()):
            return await self._feed.find(wish.uid, lambda reader: places.offsets(reader, source, wanted))
        return Place()

    async def _ask_lines(self, source: Source, lines: int) -> Place:
        wish = self._selection
        return await self._feed.find(
            wish.uid,
            lambda reader: places.lines(reader, source, lines, wish.streams, wish.since_usec, wish.until_usec),
        )

    async def _news(self, wait: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wait == float("inf") else wait):
                await self._feed.news(self._spot)

    def _complete(self) -> bool:
        return self._target is not None and not self._ledger.behind(self._target)

    def _written(self) -> dict[Stream, int]:
        return dict(zip(STREAMS, self._progress.offsets(), strict=True))

    def _known(self) -> tuple[Range, ...]:
        end = self._progress.end()
        return (*end.cut, *end.undelivered)

    def _from(self, stream: Stream) -> int:
        return self._selection.from_stdout if stream == "stdout" else self._selection.from_stderr

    def _until(self) -> float:
        """Seconds until a follower with an end in time has seen enough."""
        until = self._selection.until_usec
        return float("inf") if until is None else until / 1e6 - time.time()
