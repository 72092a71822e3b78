"""Reading the journal: the contract, on paper, and what only paper can show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from paper import SOURCE, Paper

from jobsvc import places
from jobsvc.chunks import Stream
from jobsvc.journal import HEAD, Reader, Source
from journal_contract import CHECKS, Desk, read, write


class OnPaper:
    def __init__(self) -> None:
        self.paper = Paper()

    def source(self) -> Source:
        return SOURCE

    def put(self, source: Source, data: bytes, stream: Stream, offset: int) -> int:
        return self.paper.put(data, stream, offset, source).time_usec

    def reader(self) -> Reader:
        return Reader(self.paper.reader())


@pytest.fixture
def desk() -> OnPaper:
    return OnPaper()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_journal_on_paper_is_like_the_real_one(desk: OnPaper, check: Callable[[Desk], None]) -> None:
    check(desk)


def test_entries_that_make_no_sense_are_passed_over(desk: OnPaper) -> None:
    paper = desk.paper
    paper.put(b"good", offset=0)
    paper.put(b"x", JOBSVC_OFFSET=b"-1")
    paper.put(b"x", JOBSVC_OFFSET=b"1" * 30)
    paper.put(b"x", JOBSVC_OFFSET=b"\xd9\xa1")
    paper.put(b"x", JOBSVC_OFFSET=None)
    paper.put(b"x", JOBSVC_STREAM=b"stdin")
    paper.put(b"x", JOBSVC_STREAM=b"\xff")
    paper.put(b"x", MESSAGE=None)
    paper.put(b"x" * 2_000_000)
    paper.put(b"x").damaged = True
    paper.put(b"more", offset=4)
    assert [chunk.data for chunk in read(desk, SOURCE)] == [b"good", b"more"]


def test_nothing_is_believed_beyond_what_the_run_is_known_to_have_written(desk: OnPaper) -> None:
    desk.put(SOURCE, b"true", "stdout", 0)
    desk.put(SOURCE, b"true and more", "stdout", 4)
    desk.put(SOURCE, b"another process of the same number", "stdout", 8)
    desk.put(SOURCE, b"lies", "stderr", 0)
    ended = replace(SOURCE, written=(8, 0))
    assert b"".join(chunk.data for chunk in read(desk, ended)) == b"truetrue"
    with desk.reader() as reader:
        assert places.lines(reader, ended, 1).offsets == {"stdout": 0, "stderr": 0}
        assert places.end(reader, ended).offsets == {"stdout": 8, "stderr": 0}


def test_a_run_without_a_main_process_has_no_output(desk: OnPaper) -> None:
    nobody = replace(SOURCE, main_pid=None)
    desk.put(nobody, b"forged", "stdout", 0)
    batch = desk.reader().forward(nobody, HEAD)
    assert (batch.items, batch.drained) == ([], True)


def test_a_stream_not_asked_for_is_passed_over_but_counted_as_read(desk: OnPaper) -> None:
    write(desk, SOURCE, 10)
    batch = desk.reader().forward(SOURCE, HEAD, ["stderr"])
    assert len(batch.items) == 10
    assert [item.chunk.data for item in batch.items if item.chunk] == [b"err 3\n"]


def test_portions_are_bounded(desk: OnPaper) -> None:
    for number in range(10):
        desk.put(SOURCE, b"x" * 100, "stdout", 100 * number)
    batch = desk.reader().forward(SOURCE, HEAD, max_bytes=250)
    assert (len(batch.items), batch.drained) == (3, False)
    batch = desk.reader().forward(SOURCE, batch.mark, max_entries=2)
    assert (len(batch.items), batch.drained) == (2, False)


def test_when_the_entry_to_go_on_from_is_vacuumed_reading_goes_on_after_it(desk: OnPaper) -> None:
    write(desk, SOURCE, 6)
    reader = desk.reader()
    mark = reader.forward(SOURCE, HEAD, max_entries=2).mark
    desk.paper.vacuum(3)
    batch = reader.forward(SOURCE, mark)
    assert [item.cursor for item in batch.items] == ["4", "5", "6"]


def test_a_clock_set_back_does_not_hide_a_byte(desk: OnPaper) -> None:
    for number in range(40):
        time = number * 1000 if number < 20 else (number - 15) * 1000 + 500
        desk.paper.put(b"x" * 10, time_usec=time)
    for offset in range(0, 400, 7):
        place = places.offsets(desk.reader(), SOURCE, {"stdout": offset})
        chunks = read(desk, SOURCE, place.mark)
        assert chunks[0].offset <= offset


def test_the_last_lines_of_a_big_log_are_found_without_reading_it_all(desk: OnPaper) -> None:
    for number in range(2000):
        desk.paper.put(b"line %d\n" % number)
    reader = desk.reader()
    desk.paper.searched = 0
    places.lines(reader, SOURCE, 10)
    assert desk.paper.searched < 40
