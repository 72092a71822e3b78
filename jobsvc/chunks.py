"""Pieces of a job's output: put in order, each byte once, and what is missing named. Pure.

A chunk knows where its first byte stands in its stream. The journal gives chunks back in
the order they were written, so order matters only at its edges: files that were rotated, a sender
that repeated itself, a job that forged its own output.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

Stream = Literal["stdout", "stderr"]
Why = Literal["lost", "late", "cut", "clash"]
Range = tuple[str, int, int]  # stream, first byte, byte after the last

STREAMS: Final[tuple[Stream, ...]] = ("stdout", "stderr")

_HELD = 4  # chunks of one stream that may wait for an earlier one; then the hole is a hole
_REMEMBERED = 32  # delivered chunks of one stream that a repetition is compared with
_RANGES = 500  # missing ranges kept apart; a job that forges more gets them run together


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of one stream as one journal entry held them."""

    stream: Stream
    offset: int
    data: bytes
    time_usec: int  # CLOCK_REALTIME when the journal took it

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def since(self, offset: int) -> Chunk:
        """What of it stands at `offset` or later."""
        if offset <= self.offset:
            return self
        return replace(self, offset=offset, data=self.data[offset - self.offset :])

    def first(self, length: int) -> Chunk:
        return self if length >= len(self.data) else replace(self, data=self.data[:length])


@dataclass(frozen=True, slots=True, order=True)
class Missing:
    """Bytes start..end of a stream that cannot be had, or not yet, or of which there were two versions."""

    stream: Stream
    start: int
    end: int
    why: Why


class Lane:
    """One stream as one reader gets it: how far it is, what is held, what was missing."""

    __slots__ = ("at", "held", "missing", "recent", "start", "stream")

    def __init__(self, stream: Stream, start: int) -> None:
        self.stream = stream
        self.start = start
        self.at = start
        self.held: list[Chunk] = []
        self.missing: list[Missing] = []
        self.recent: deque[tuple[int, int, int]] = deque(maxlen=_REMEMBERED)

    def take(self, chunk: Chunk) -> list[Chunk]:
        if not chunk.data:
            return []
        if chunk.offset > self.at:
            insort(self.held, chunk, key=lambda held: held.offset)
            return self.settle() if len(self.held) > _HELD else []
        return [*self._deliver(chunk), *self._follow_on()]

    def settle(self) -> list[Chunk]:
        """Nothing earlier is coming: give out what was held, naming the holes."""
        ready: list[Chunk] = []
        while self.held:
            self.miss(self.held[0].offset, "lost")
            ready += self._follow_on()
        return ready

    def miss(self, end: int, why: Why) -> None:
        if end > self.at:
            self._note(self.at, end, why)
            self.at = end

    def back(self, offset: int) -> None:
        """Its last delivered chunk from `offset` on was not taken after all; it will come again."""
        self.at = offset

    def _follow_on(self) -> list[Chunk]:
        ready: list[Chunk] = []
        while self.held and self.held[0].offset <= self.at:
            ready += self._deliver(self.held.pop(0))
        return ready

    def _deliver(self, chunk: Chunk) -> list[Chunk]:
        mark = (chunk.offset, chunk.end, hash(chunk.data))
        if chunk.offset < self.at and mark not in self.recent:
            self._overlap(max(chunk.offset, self.start), min(chunk.end, self.at))
        if chunk.end <= self.at:
            return []
        self.recent.append(mark)
        fresh = chunk.since(self.at)
        self.at = chunk.end
        return [fresh]

    def _overlap(self, start: int, end: int) -> None:
        late = any(gap.start <= start and end <= gap.end and gap.why == "lost" for gap in self.missing)
        if start < end and not late:
            self._note(start, end, "clash")

    def _note(self, start: int, end: int, why: Why) -> None:
        last = self.missing[-1] if self.missing else None
        touches = last is not None and last.why == why and last.start <= start <= last.end
        if last and (touches or len(self.missing) >= _RANGES):
            low, high = min(last.start, start), max(last.end, end)
            self.missing[-1] = replace(last, start=low, end=high)
        else:
            self.missing.append(Missing(self.stream, start, end, why))


class Ledger:
    """What one reader has been given of a run: each byte once and in order, or named as missing."""

    __slots__ = ("carried", "lanes")

    def __init__(
        self,
        stdout: int = 0,
        stderr: int = 0,
        streams: Iterable[Stream] = STREAMS,
        carried: Iterable[Missing] = (),
    ) -> None:
        starts: dict[Stream, int] = {"stdout": stdout, "stderr": stderr}
        self.lanes: dict[Stream, Lane] = {stream: Lane(stream, starts[stream]) for stream in streams}
        self.carried = tuple(carried)  # found missing by an earlier part of the same reading

    def at(self, stream: Stream) -> int:
        lane = self.lanes.get(stream)
        return lane.at if lane else 0

    def take(self, chunk: Chunk) -> list[Chunk]:
        """What can be given out now: what of the chunk is new, and what waited for it."""
        lane = self.lanes.get(chunk.stream)
        return lane.take(chunk) if lane else []

    def settle(self) -> list[Chunk]:
        """The journal holds nothing more for now: whatever waits has waited enough."""
        return [chunk for lane in self.lanes.values() for chunk in lane.settle()]

    def holds(self) -> bool:
        return any(lane.held for lane in self.lanes.values())

    def behind(self, written: dict[Stream, int], known: Sequence[Range] = ()) -> bool:
        """Are there bytes still to come, apart from ranges known to be unavailable?"""
        return any(not _covered(lane.at, written[stream], stream, known) for stream, lane in self.lanes.items())

    def close(self, written: dict[Stream, int], why: Why = "lost") -> None:
        """Nothing more is waited for: what was written and is not here is missing."""
        for stream, lane in self.lanes.items():
            lane.miss(written.get(stream, 0), why)

    def missing(self, cut: Sequence[Range] = ()) -> tuple[Missing, ...]:
        """Every range that is missing so far; of the lost ones, those cut on purpose say so."""
        return (*self.carried, *self.found(cut))

    def found(self, cut: Sequence[Range] = ()) -> tuple[Missing, ...]:
        """Those of them that were found here, and not said to have been found before."""
        gaps = [gap for lane in self.lanes.values() for gap in lane.missing]
        return tuple(sorted(part for gap in gaps for part in _name(gap, cut)))


def _covered(start: int, end: int, stream: Stream, ranges: Sequence[Range]) -> bool:
    for _, low, high in sorted(known for known in ranges if known[0] == stream):
        if low <= start < high:
            start = high
    return start >= end


def _name(gap: Missing, cut: Sequence[Range]) -> list[Missing]:
    if gap.why not in ("lost", "late"):
        return [gap]
    parts: list[Missing] = []
    at = gap.start
    for stream, start, end in sorted(cut):
        low, high = max(start, at), min(end, gap.end)
        if stream == gap.stream and low < high:
            if at < low:
                parts.append(replace(gap, start=at, end=low))
            parts.append(replace(gap, start=low, end=high, why="cut"))
            at = high
    if at < gap.end:
        parts.append(replace(gap, start=at))
    return parts
