"""What goes over the wire, byte for byte, and back."""

from __future__ import annotations

import json
import random

import pytest

from jobsvc.chunks import Chunk, Missing
from jobsvc.formats import (
    End,
    Export,
    Origin,
    Trailer,
    encode,
    encode_trailer,
    parse_missing,
    show,
)

ORIGIN = Origin("00000000000000aa", 2, "b" * 32)
TIME = 1_767_225_600_000_123  # 2026-01-01T00:00:00.000123Z
TEXT = Chunk("stdout", 7, "grüße\n".encode(), TIME)
BYTES = Chunk("stderr", 0, b"\xff\0", TIME)
END = End(2, "failed", "exit-code", 3, None, 100, 0)
TRAILER = Trailer(END, (Missing("stdout", 0, 7, "lost"), Missing("stdout", 50, 60, "cut")))


def test_raw_is_the_bytes_and_has_no_trailer() -> None:
    assert encode("raw", ORIGIN, BYTES) == b"\xff\0"
    assert encode_trailer("raw", TRAILER) == b""


def test_json_is_an_object_a_line() -> None:
    assert encode("json", ORIGIN, TEXT).decode() == (
        '{"stream": "stdout", "offset": 7, "length": 8, "time": "2026-01-01T00:00:00.000123Z", '
        '"encoding": "utf-8", "data": "grüße\\n"}\n'
    )
    assert encode("json", ORIGIN, BYTES) == (
        b'{"stream": "stderr", "offset": 0, "length": 2, "time": "2026-01-01T00:00:00.000123Z", '
        b'"encoding": "base64", "data": "/wA="}\n'
    )
    assert json.loads(encode_trailer("json", TRAILER)) == {
        "end": True,
        "run": 2,
        "state": "failed",
        "result": "exit-code",
        "exit_code": 3,
        "signal": None,
        "stdout_bytes": 100,
        "stderr_bytes": 0,
        "missing": [
            {"stream": "stdout", "from": 0, "to": 7, "why": "lost"},
            {"stream": "stdout", "from": 50, "to": 60, "why": "cut"},
        ],
    }


def test_json_never_grows_by_more_than_base64_does() -> None:
    data = b"\x01" * 65536
    line = encode("json", ORIGIN, Chunk("stdout", 0, data, TIME))
    assert len(line) < len(data) * 3 // 2
    assert json.loads(line)["encoding"] == "base64"


def test_export_is_the_journals_own_format() -> None:
    assert encode("export", ORIGIN, Chunk("stdout", 7, b"plain", TIME)) == (
        b"__REALTIME_TIMESTAMP=1767225600000123\n_BOOT_ID=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\n"
        b"JOBSVC_ID=00000000000000aa\nJOBSVC_RUN=2\nJOBSVC_STREAM=stdout\nJOBSVC_OFFSET=7\n"
        b"MESSAGE=plain\n\n"
    )
    assert encode("export", ORIGIN, BYTES).endswith(b"JOBSVC_OFFSET=0\nMESSAGE\n\x02\0\0\0\0\0\0\0\xff\0\n\n")
    assert encode_trailer("export", TRAILER) == (
        b"JOBSVC_END=1\nJOBSVC_RUN=2\nJOBSVC_STATE=failed\nJOBSVC_RESULT=exit-code\n"
        b"JOBSVC_EXIT_CODE=3\nJOBSVC_STDOUT_BYTES=100\nJOBSVC_STDERR_BYTES=0\n"
        b"JOBSVC_MISSING=stdout 0 7 lost\nJOBSVC_MISSING=stdout 50 60 cut\n\n"
    )


def test_no_output_can_pass_for_a_trailer_or_an_entry() -> None:
    forged = b"x\n\nJOBSVC_END=1\nJOBSVC_STATE=completed\n\n"
    chunk = Chunk("stdout", 0, forged, TIME)
    assert Export().feed(encode("export", ORIGIN, chunk)) == [chunk]


@pytest.mark.parametrize("seed", range(20))
def test_export_read_in_any_pieces_gives_back_what_was_written(seed: int) -> None:
    dice = random.Random(seed)
    things: list[Chunk | Trailer] = []
    for number in range(30):
        data = dice.choice([b"", b"text", b"\n\n=\n", dice.randbytes(dice.randrange(3000))])
        things.append(Chunk(dice.choice(["stdout", "stderr"]), number, data, TIME))
    things.append(TRAILER)
    stream = b"".join(
        encode("export", ORIGIN, thing) if isinstance(thing, Chunk) else encode_trailer("export", thing)
        for thing in things
    )
    export, got = Export(), []
    while stream:
        length = dice.choice([1, 2, 7, 100, 5000])
        got += export.feed(stream[:length])
        stream = stream[length:]
    assert got == things
    assert not export.pending


def test_a_stream_cut_off_in_an_entry_gives_all_whole_ones() -> None:
    export = Export()
    assert export.feed(encode("export", ORIGIN, TEXT) + encode("export", ORIGIN, BYTES)[:-4]) == [TEXT]
    assert export.pending


@pytest.mark.parametrize(
    "nonsense",
    [
        b"MESSAGE=x\n\n",
        b"JOBSVC_STREAM=stdin\nJOBSVC_OFFSET=0\nMESSAGE=x\n\n",
        b"JOBSVC_STREAM=stdout\nJOBSVC_OFFSET=zero\nMESSAGE=x\n\n",
        b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xff",
        b"JOBSVC_END=1\nJOBSVC_MISSING=stdout\n\n",
    ],
)
def test_what_is_not_a_log_stream_is_refused(nonsense: bytes) -> None:
    with pytest.raises(ValueError):
        Export().feed(nonsense)


def test_missing_ranges_travel_as_text() -> None:
    gap = Missing("stderr", 5, 9, "clash")
    assert show(gap) == "stderr 5 9 clash"
    assert parse_missing("stderr 5 9 clash") == gap
    for text in ("", "stderr 5 9", "stdin 5 9 lost", "stderr -5 9 lost", "stderr 5 9 eaten", "stderr 5  9 lost"):
        with pytest.raises(ValueError):
            parse_missing(text)
