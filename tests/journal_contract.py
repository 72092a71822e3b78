"""What both the real journal and the one on paper must do: reading, beginning anywhere, disbelief.

`CHECKS` are run against each; a desk is where entries are written and read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from jobsvc import places
from jobsvc.chunks import Chunk, Ledger, Stream
from jobsvc.journal import HEAD, Mark, Reader, Source
from jobsvc.places import Place


class Desk(Protocol):
    """Somewhere to write entries, and to read them once they are there."""

    def source(self) -> Source:
        """A new run, with nothing written yet."""

    def put(self, source: Source, data: bytes, stream: Stream, offset: int) -> int:
        """Write an entry; its time, which no other entry has."""

    def reader(self) -> Reader: ...


def read(desk: Desk, source: Source, mark: Mark = HEAD, size: int = 1000) -> list[Chunk]:
    """All chunks from there on, in small portions."""
    chunks: list[Chunk] = []
    with desk.reader() as reader:
        while True:
            batch = reader.forward(source, mark, max_bytes=size)
            chunks += [item.chunk for item in batch.items if item.chunk]
            mark = batch.mark
            if batch.drained:
                return chunks


def write(desk: Desk, source: Source, count: int) -> tuple[bytes, bytes, list[int]]:
    """Lines on both streams, stderr less often: all that was written, and when."""
    out, err, times = b"", b"", []
    for number in range(count):
        if number % 7 == 3:
            times.append(desk.put(source, b"err %d\n" % number, "stderr", len(err)))
            err += b"err %d\n" % number
        else:
            times.append(desk.put(source, b"out %d\n" % number, "stdout", len(out)))
            out += b"out %d\n" % number
    return out, err, times


def given_out(desk: Desk, source: Source, place: Place) -> dict[Stream, bytes]:
    """What somebody who begins there gets of each stream; nothing may be missing."""
    ledger = Ledger(place.offsets["stdout"], place.offsets["stderr"])
    got: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    for chunk in read(desk, source, place.mark):
        for ready in ledger.take(chunk):
            got[ready.stream] += ready.data
    assert ledger.missing() == ()
    return got


def bytes_come_back_exactly(desk: Desk) -> None:
    source = desk.source()
    odd = [b"\0", b"\n\n", b"  blanks  ", b"\xff\xfe", bytes(range(256)), b"x" * 65536, b"=\n"]
    at = 0
    for piece in odd:
        desk.put(source, piece, "stdout", at)
        at += len(piece)
    assert [chunk.data for chunk in read(desk, source)] == odd


def others_are_not_believed(desk: Desk) -> None:
    source = desk.source()
    desk.put(source, b"true", "stdout", 0)
    desk.put(replace(source, uid=source.uid + 1), b"lies", "stdout", 0)
    desk.put(replace(source, main_pid=1), b"lies", "stdout", 0)
    desk.put(replace(source, run=2), b"others", "stdout", 0)
    assert [chunk.data for chunk in read(desk, source)] == [b"true"]


def reading_goes_on_where_it_stopped(desk: Desk) -> None:
    source = desk.source()
    with desk.reader() as reader:
        assert reader.forward(source, HEAD).drained
        desk.put(source, b"one", "stdout", 0)
        first = reader.forward(source, HEAD)
        assert [item.chunk and item.chunk.data for item in first.items] == [b"one"]
        assert reader.forward(source, first.mark).items == []
        desk.put(source, b"two", "stdout", 3)
        second = reader.forward(source, first.mark)
        assert [item.chunk and item.chunk.data for item in second.items] == [b"two"]
        here = Mark(first.mark.cursor, at_it=True)
        assert len(reader.forward(source, here).items) == 2


def any_byte_can_be_the_first(desk: Desk) -> None:
    source = desk.source()
    out, err, _ = write(desk, source, 60)
    for stdout in (0, 1, 5, 6, 100, len(out) - 1, len(out), len(out) + 10):
        for stderr in (0, 7, len(err)):
            with desk.reader() as reader:
                place = places.offsets(reader, source, {"stdout": stdout, "stderr": stderr})
            expected = {"stdout": out[stdout:], "stderr": err[stderr:]}
            assert given_out(desk, source, place) == expected, (stdout, stderr)


def a_late_byte_is_found_near_its_place(desk: Desk) -> None:
    source = desk.source()
    out, err, _ = write(desk, source, 60)
    with desk.reader() as reader:
        place = places.offsets(reader, source, {"stdout": len(out) - 1, "stderr": len(err)})
    assert len(read(desk, source, place.mark)) < 15


def any_time_can_be_the_first(desk: Desk) -> None:
    source = desk.source()
    out, err, times = write(desk, source, 20)
    for number in (0, 1, 3, 4, 19):
        with desk.reader() as reader:
            place = places.since(reader, source, times[number])
        chunks = read(desk, source, place.mark)
        assert len(chunks) == 20 - number
        assert all(chunk.offset >= place.offsets[chunk.stream] for chunk in chunks)
    with desk.reader() as reader:
        place = places.since(reader, source, times[-1] + 1)
    assert read(desk, source, place.mark) == []
    assert place.offsets == {"stdout": len(out), "stderr": len(err)}
    for never in (2**63, 2**64 - 1):
        with desk.reader() as reader:
            assert read(desk, source, places.since(reader, source, never).mark) == []
            assert places.lines(reader, source, 99, until_usec=never).offsets["stdout"] == 0


def the_last_lines_are_found_from_the_end(desk: Desk) -> None:
    source = desk.source()
    out, err, times = write(desk, source, 20)
    with desk.reader() as reader:
        all_of_it = places.lines(reader, source, 100)
        four = places.lines(reader, source, 4)
        none = places.lines(reader, source, 0)
        earlier = places.lines(reader, source, 2, until_usec=times[9])
        later = places.lines(reader, source, 100, since_usec=times[15])
        errors = places.lines(reader, source, 2, ["stderr"])
    assert given_out(desk, source, all_of_it) == {"stdout": out, "stderr": err}
    assert given_out(desk, source, four) == {
        "stdout": b"out 16\nout 18\nout 19\n",
        "stderr": b"err 17\n",
    }
    assert given_out(desk, source, none) == {"stdout": b"", "stderr": b""}
    assert given_out(desk, source, earlier)["stdout"].startswith(b"out 8\nout 9\n")
    assert len(read(desk, source, later.mark)) == 5
    assert err[errors.offsets["stderr"] :] == b"err 10\nerr 17\n"


CHECKS: list[Callable[[Desk], None]] = [
    bytes_come_back_exactly,
    others_are_not_believed,
    reading_goes_on_where_it_stopped,
    any_byte_can_be_the_first,
    a_late_byte_is_found_near_its_place,
    any_time_can_be_the_first,
    the_last_lines_are_found_from_the_end,
]
