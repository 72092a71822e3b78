"""Where in the journal a reading begins: a time, a byte, or some lines back. Blocking."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from jobsvc.chunks import STREAMS, Stream
from jobsvc.journal import HEAD, Mark, Reader, Source
from jobsvc.tail import Tail

_STEPS: Final = 64  # of a binary search; enough for any clock


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the journal, and the byte of each stream that is the first one wanted."""

    mark: Mark = HEAD
    offsets: dict[Stream, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))


def end(reader: Reader, source: Source) -> Place:
    """The last entry there is, and how far each stream has come."""
    return Place(_end(reader, source), {stream: _last(reader, source, stream) for stream in STREAMS})


def since(reader: Reader, source: Source, usec: int) -> Place:
    """The first entry of that time or later."""
    offsets: dict[Stream, int] = {}
    for stream in STREAMS:
        reader.match(source, stream)
        reader.seek_time(usec)
        head = reader.first()
        offsets[stream] = _last(reader, source, stream) if head is None else head.offset
    reader.match(source)
    reader.seek_time(usec)
    if reader.next():
        return Place(Mark(reader.cursor(), at_it=True), offsets)
    return Place(_end(reader, source), offsets)


def lines(
    reader: Reader,
    source: Source,
    count: int,
    streams: Collection[Stream] = STREAMS,
    since_usec: int | None = None,
    until_usec: int | None = None,
) -> Place:
    """Where the last `count` lines begin. Walks backwards from the end, no further than it must."""
    tail = Tail(count)
    mark = _end(reader, source)
    for chunk in reader.backward(source, streams, until_usec):
        if tail.enough or (since_usec is not None and chunk.time_usec < since_usec):
            break
        tail.put(chunk)
        mark = Mark(reader.cursor(), at_it=True)
    starts = tail.starts()
    for stream in STREAMS:
        if stream not in starts:
            starts[stream] = _last(reader, source, stream)
    return Place(mark, starts)


def offsets(reader: Reader, source: Source, wanted: dict[Stream, int]) -> Place:
    """Near the bytes wanted, and with none of them before it."""
    cursors = [_search(reader, source, stream, offset) for stream, offset in wanted.items()]
    first = {stream: wanted.get(stream, 0) for stream in STREAMS}
    for cursor in cursors:
        if cursor and all(_early(reader, source, cursor, stream, offset) for stream, offset in wanted.items()):
            return Place(Mark(cursor, at_it=True), first)
    return Place(HEAD, first)


def _end(reader: Reader, source: Source) -> Mark:
    reader.match(source)
    reader.entries.seek_tail()
    return Mark(reader.cursor() if reader.previous() else None)


def _last(reader: Reader, source: Source, stream: Stream) -> int:
    return next((chunk.end for chunk in reader.backward(source, (stream,))), 0)


def _search(reader: Reader, source: Source, stream: Stream, offset: int) -> str | None:
    """The cursor of a late entry of the stream that begins at or before `offset`, else its first.

    By time, which usually rises with the offset. If the clock was set back it finds an earlier
    entry than need be, never one too late.
    """
    entries = reader.entries
    reader.match(source, stream)
    entries.seek_head()
    first = reader.first()
    if first is None:
        return None
    best = reader.cursor()
    entries.seek_tail()
    low, high = first.time_usec, reader.time_usec() if reader.previous() else 0
    for _ in range(_STEPS):
        middle = (low + high + 1) // 2
        if middle <= low:
            break
        entries.seek_realtime(middle)
        chunk = reader.first()
        if chunk and chunk.offset <= offset:
            low = max(middle, chunk.time_usec)
            best = reader.cursor()
        else:
            high = middle - 1
    return best


def _early(reader: Reader, source: Source, cursor: str, stream: Stream, offset: int) -> bool:
    """Does all of the stream that stands before the cursor end at or before `offset`?"""
    entries = reader.entries
    reader.match(source, stream)
    entries.seek_cursor(cursor)
    found = reader.previous()
    if found and entries.test_cursor(cursor):
        found = reader.previous()
    while found:
        if chunk := reader.chunk():
            return chunk.end <= offset
        found = reader.previous()
    return True
