"""What Logs and ReadLogs do: give out a run's output, to many readers, each at its own speed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from jobsvc.chunks import Chunk, Missing
from jobsvc.feed import Feed, Progress
from jobsvc.formats import End
from jobsvc.journal import Entries, Mark, Source, open_namespace
from jobsvc.pipe import Pipe
from jobsvc.reading import PORTION, Reading, Selection
from jobsvc.shelf import Shelf

__all__ = ["PAGE", "End", "Logs", "Progress", "Selection", "Source"]

PAGE: Final = 256 * 1024  # bytes one ReadLogs gives at most
LONGEST_WAIT: Final = 30_000_000  # µs
_PIECE: Final = 128 * 1024  # bytes of one chunk: they fit a page in any format
_PATIENCE: Final = 1.0  # seconds a pipe may be full before its reader is parked


@dataclass
class _Use:
    feed: Feed
    readers: int = 0
    followers: int = 0


class Logs:
    """Serves readers: any number of `stream` and `read` at once. `close` when all have ended."""

    def __init__(self, opener: Callable[[], Entries] = open_namespace) -> None:
        self.on_missing: Callable[[Any, tuple[Missing, ...]], None] = lambda run, gaps: None  # told at the end
        self._shelf = Shelf(opener)
        self._uses: dict[tuple[str, int], _Use] = {}

    def close(self) -> None:
        self._shelf.close()

    async def stream(self, progress: Progress, selection: Selection, fd: int) -> tuple[Missing, ...]:
        """Write the output to the pipe `fd` until all is written or nobody reads it any more.

        The descriptor is ours from now on. Returns what was found missing. OSError if the journal
        cannot be read; the reader sees an end without a trailer.
        """
        with Pipe(fd) as pipe:
            async with self._reading(progress, selection) as reading:
                writing = asyncio.create_task(_Writer(reading, pipe).run(), name="log")
                leaving = asyncio.create_task(pipe.hung_up(), name="log-reader-gone")
                try:
                    await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                    if writing.done():
                        with contextlib.suppress(BrokenPipeError):
                            writing.result()
                finally:
                    writing.cancel()
                    leaving.cancel()
                    await asyncio.wait({writing, leaving})
                missing = reading.missing()
                if missing:
                    self.on_missing(progress, missing)
                return missing

    async def read(self, progress: Progress, selection: Selection, wait_usec: int = 0) -> tuple[bytes, dict[str, Any]]:
        """At most PAGE bytes, and the options to go on with: none of them when this was all.

        With `follow` or `wait_usec` "all" is until the end of the run, else what there is now; of a
        run that goes on only a page without bytes says so, for who got some may want to follow it.
        Without bytes to give it waits for some, at most that long.
        """
        loop = asyncio.get_running_loop()
        wait_usec = min(wait_usec, LONGEST_WAIT)
        deadline = loop.time() + wait_usec / 1e6
        selection = replace(selection, follow=selection.follow or wait_usec > 0)
        page = bytearray()
        async with self._reading(progress, selection) as reading:

            def note_missing() -> None:
                if found := reading.found_missing():
                    self.on_missing(progress, found)

            def rest() -> tuple[bytes, dict[str, Any]]:
                note_missing()
                return bytes(page), {
                    **reading.options(),
                    **({"WaitUSec": wait_usec} if wait_usec else {}),
                }

            await reading.begin()
            while True:
                for _, item in await reading.portion(PAGE):
                    if not _fill(page, reading, reading.take(item)):
                        return rest()
                if not reading.drained:
                    continue
                if not _fill(page, reading, reading.settle()):
                    return rest()
                left = deadline - loop.time()
                if reading.live and (page or left <= 0):
                    return rest()
                if await reading.over(left):
                    break
            if page and reading.unfinished:
                return rest()
            reading.close()
            trailer = reading.trailer()
            if page and len(page) + len(trailer) > PAGE:
                return rest()
            note_missing()
            return bytes(page) + trailer, {}

    @contextlib.asynccontextmanager
    async def _reading(self, progress: Progress, selection: Selection) -> AsyncIterator[Reading]:
        source = progress.source()
        key = (source.id, source.run)
        use = self._uses.get(key) or self._uses.setdefault(key, _Use(Feed(progress, self._shelf)))
        use.readers += 1
        use.followers += selection.follow
        if selection.follow and use.followers == 1:
            use.feed.progress.watch(True)
        try:
            yield Reading(use.feed, selection)
        finally:
            use.readers -= 1
            use.followers -= selection.follow
            if selection.follow and not use.followers:
                use.feed.progress.watch(False)
            if not use.readers:
                del self._uses[key]
                await use.feed.close()


class _Writer:
    """Writes a reading to a pipe at the pipe's speed.

    While nobody reads it nothing is kept but the place, be it for days: a chunk of which only a
    part went into the pipe is fetched once more.
    """

    def __init__(self, reading: Reading, pipe: Pipe) -> None:
        self._reading = reading
        self._pipe = pipe
        self._begun: tuple[str, int, int] | None = None  # the chunk that is in the pipe in part
        self._written = 0  # how many bytes of it, encoded

    async def run(self) -> None:
        reading, pipe = self._reading, self._pipe
        await reading.begin()
        limit = _PIECE
        while True:
            if not await self._portion(limit):
                await pipe.writable()
                limit = _PIECE
                continue
            limit = min(2 * limit, PORTION)  # many who never read must not have much in memory
            if reading.drained:
                for chunk in reading.settle():
                    await self._put(chunk, None)
                if await reading.over():
                    break
        reading.close()
        self._same(None)
        await pipe.write(reading.trailer())

    async def _portion(self, limit: int) -> bool:
        """Write the next portion; False if nobody reads for a while."""
        for mark, item in await self._reading.portion(limit):
            chunks = self._reading.take(item)
            for chunk in chunks:
                if not await self._put(chunk, mark if len(chunks) == 1 else None):
                    return False
        return True

    async def _put(self, chunk: Chunk, mark: Mark | None) -> bool:
        """Write it all; or part of it, and go back to `mark`, from where it will come again."""
        data = self._reading.encode(chunk)
        done = self._same(chunk)
        done += await self._pipe.write(data[done:], _PATIENCE)
        if done == len(data):
            return True
        if mark is None or not self._reading.back(mark, chunk):
            await self._pipe.write(data[done:])
            return True
        if data is chunk.data:  # nothing around it: any other chunk may go on from there
            self._reading.untake([chunk.since(chunk.offset + done)])
        else:
            self._begun = (chunk.stream, chunk.offset, chunk.end)
            self._written = done
        return False

    def _same(self, chunk: Chunk | None) -> int:
        """How much of this chunk is in the pipe already.

        If part of another one is, which the journal has dropped since, then the stream cannot go
        on: it ends without a trailer, and its reader begins another one, after what it has whole.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            return 0
        if chunk is None or (chunk.stream, chunk.offset, chunk.end) != begun:
            raise OSError(errno.ESTALE, f"{begun[0]} {begun[1]} is not in the journal any more")
        return self._written


def _fill(page: bytearray, reading: Reading, chunks: list[Chunk]) -> bool:
    """Put chunks on the page; False when it is full, and what did not fit has been given back."""
    for count, chunk in enumerate(chunks):
        piece = chunk.first(_PIECE)
        data = reading.encode(piece)
        if page and len(page) + len(data) > PAGE:
            reading.untake(chunks[count:])
            return False
        page += data
        if piece is not chunk:
            reading.untake([chunk.since(piece.end), *chunks[count + 1 :]])
            return False
    return True
