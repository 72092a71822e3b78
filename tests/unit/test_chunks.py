"""Each byte once and in order, or named as missing."""

from __future__ import annotations

import itertools
import random

import pytest

from jobsvc.chunks import Chunk, Ledger, Missing, Stream
from jobsvc.tail import Tail


def chunk(offset: int, data: bytes, stream: Stream = "stdout") -> Chunk:
    return Chunk(stream, offset, data, 0)


def given(ledger: Ledger, *chunks: Chunk) -> bytes:
    """What comes out, settled."""
    ready = [piece for each in chunks for piece in ledger.take(each)] + ledger.settle()
    return b"".join(piece.data for piece in ready)


def test_chunks_in_order_are_given_out_at_once() -> None:
    ledger = Ledger()
    assert ledger.take(chunk(0, b"one")) == [chunk(0, b"one")]
    assert ledger.take(chunk(3, b"two")) == [chunk(3, b"two")]
    assert ledger.missing() == ()


def test_the_two_streams_do_not_disturb_each_other() -> None:
    ledger = Ledger()
    assert given(ledger, chunk(0, b"out"), chunk(0, b"err", "stderr"), chunk(3, b"put")) == b"outerrput"
    assert (ledger.at("stdout"), ledger.at("stderr")) == (6, 3)


def test_a_stream_not_asked_for_is_passed_over() -> None:
    ledger = Ledger(streams=["stderr"])
    assert given(ledger, chunk(0, b"out"), chunk(0, b"err", "stderr")) == b"err"


def test_chunks_out_of_order_wait_for_the_earlier_one() -> None:
    ledger = Ledger()
    assert given(ledger, chunk(6, b"gh"), chunk(3, b"def"), chunk(0, b"abc")) == b"abcdefgh"
    assert ledger.missing() == ()


def test_a_hole_is_named_when_nothing_earlier_comes() -> None:
    ledger = Ledger()
    assert ledger.take(chunk(5, b"late")) == []
    assert ledger.holds()
    assert ledger.settle() == [chunk(5, b"late")]
    assert ledger.missing() == (Missing("stdout", 0, 5, "lost"),)


def test_not_much_waits_for_a_hole() -> None:
    ledger = Ledger()
    waiting = [ledger.take(chunk(10 + number, b"x")) for number in range(5)]
    assert [len(ready) for ready in waiting] == [0, 0, 0, 0, 5]


def test_a_repetition_is_harmless() -> None:
    ledger = Ledger()
    assert given(ledger, chunk(0, b"abc"), chunk(0, b"abc"), chunk(3, b"def"), chunk(0, b"abc")) == b"abcdef"
    assert ledger.missing() == ()


def test_of_two_versions_the_first_holds_and_the_clash_is_reported() -> None:
    ledger = Ledger()
    assert given(ledger, chunk(0, b"true"), chunk(0, b"lies"), chunk(2, b"lies")) == b"truees"
    assert ledger.missing() == (Missing("stdout", 0, 4, "clash"),)


def test_a_hole_filled_too_late_stays_lost_and_is_no_clash() -> None:
    ledger = Ledger()
    assert given(ledger, chunk(5, b"b")) == b"b"
    assert given(ledger, chunk(1, b"aaa")) == b""
    assert ledger.missing() == (Missing("stdout", 0, 5, "lost"),)


def test_reading_from_a_byte_on_trims_and_reports_nothing_before_it() -> None:
    ledger = Ledger(stdout=4)
    assert given(ledger, chunk(0, b"ab"), chunk(2, b"cdef"), chunk(6, b"g")) == b"efg"
    assert ledger.missing() == ()


def test_bytes_cut_on_purpose_are_told_from_lost_ones() -> None:
    ledger = Ledger()
    given(ledger, chunk(0, b"ab"), chunk(10, b"k"))
    assert ledger.missing(cut=[("stdout", 4, 8), ("stderr", 0, 99)]) == (
        Missing("stdout", 2, 4, "lost"),
        Missing("stdout", 4, 8, "cut"),
        Missing("stdout", 8, 10, "lost"),
    )


def test_at_the_end_what_was_written_and_is_not_here_is_lost() -> None:
    ledger = Ledger()
    given(ledger, chunk(0, b"abc"))
    ledger.close({"stdout": 5})
    assert ledger.missing() == (Missing("stdout", 3, 5, "lost"),)


def test_what_is_known_to_be_unavailable_is_not_waited_for() -> None:
    ledger = Ledger()
    given(ledger, chunk(0, b"abc"))
    assert not ledger.behind({"stdout": 3, "stderr": 0})
    assert ledger.behind({"stdout": 9, "stderr": 0})
    assert ledger.behind({"stdout": 9, "stderr": 0}, [("stdout", 5, 9)])
    assert not ledger.behind({"stdout": 9, "stderr": 0}, [("stdout", 5, 9), ("stdout", 3, 5)])


def test_what_an_earlier_part_of_the_reading_missed_is_carried_on() -> None:
    gap = Missing("stderr", 0, 7, "lost")
    assert Ledger(stderr=9, carried=[gap]).missing() == (gap,)


def test_a_chunk_not_taken_after_all_comes_again() -> None:
    ledger = Ledger()
    (ready,) = ledger.take(chunk(0, b"abcdef"))
    ledger.lanes["stdout"].back(ready.offset + 2)
    assert ledger.take(chunk(0, b"abcdef")) == [chunk(2, b"cdef")]
    assert ledger.missing() == ()


def test_ranges_do_not_grow_without_bound() -> None:
    ledger = Ledger()
    for number in range(2000):
        given(ledger, chunk(10 * number + 5, b"x"))
    missing = ledger.missing()
    assert len(missing) <= 500
    assert missing[-1].end == 10 * 1999 + 5


@pytest.mark.parametrize("seed", range(30))
def test_any_cutting_any_small_disorder_any_beginning(seed: int) -> None:
    dice = random.Random(seed)
    text = dice.randbytes(500)
    cuts = sorted({0, len(text), *(dice.randrange(len(text)) for _ in range(40))})
    chunks = [chunk(a, text[a:b]) for a, b in itertools.pairwise(cuts)]
    chunks = sorted(chunks, key=lambda each: cuts.index(each.offset) + dice.random() * 3)
    chunks += dice.sample(chunks[-5:], 2)
    start = dice.randrange(len(text) + 1)
    ledger = Ledger(stdout=start)
    assert given(ledger, *chunks) == text[start:]
    assert ledger.missing() == ()


def starts(lines: int, *chunks: Chunk) -> dict[Stream, int]:
    """Where the last lines begin, fed backwards."""
    tail = Tail(lines)
    for each in reversed(chunks):
        if tail.enough:
            break
        tail.put(each)
    return tail.starts()


def test_the_last_lines_of_one_chunk() -> None:
    assert starts(2, chunk(0, b"a\nbb\nccc\n")) == {"stdout": 2}
    assert starts(2, chunk(0, b"a\nbb\nccc")) == {"stdout": 2}
    assert starts(1, chunk(0, b"a\n\n")) == {"stdout": 2}
    assert starts(9, chunk(0, b"a\nbb\n")) == {"stdout": 0}
    assert starts(0, chunk(0, b"a\nbb\n")) == {}


def test_a_line_in_several_chunks_is_one_line() -> None:
    pieces = [chunk(0, b"first\nsec"), chunk(9, b"on"), chunk(11, b"d\nthi"), chunk(16, b"rd")]
    assert starts(1, *pieces) == {"stdout": 13}
    assert starts(2, *pieces) == {"stdout": 6}
    assert starts(3, *pieces) == {"stdout": 0}


def test_lines_count_by_when_they_were_finished_whichever_stream() -> None:
    pieces = [
        chunk(0, b"out one\n"),
        chunk(0, b"err one\n", "stderr"),
        chunk(8, b"out two\n"),
        chunk(8, b"err", "stderr"),
    ]
    assert starts(1, *pieces) == {"stderr": 8, "stdout": 16}
    assert starts(2, *pieces) == {"stderr": 8, "stdout": 8}
    assert starts(3, *pieces) == {"stderr": 0, "stdout": 8}


def test_a_line_that_began_in_a_hole_begins_after_it() -> None:
    assert starts(2, chunk(0, b"a\n"), chunk(10, b"b\n")) == {"stdout": 0}
    assert starts(1, chunk(0, b"a"), chunk(10, b"b\n")) == {"stdout": 10}


def test_chunks_seen_twice_do_not_count_twice() -> None:
    assert starts(2, chunk(0, b"a\n"), chunk(2, b"b\n"), chunk(2, b"b\n")) == {"stdout": 0}
