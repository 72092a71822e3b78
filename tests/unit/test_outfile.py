"""Files of the user's beside the journal: nothing that is in one is written over."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from jobsvc.outfile import COUNT, OutFile, open_as_caller


def opened(wanted: str, place: int = 0, counts: int = -1) -> OutFile:
    if counts < 0:
        counts = os.memfd_create("counts")
    return OutFile(open_as_caller(wanted), counts, place)


@pytest.mark.parametrize(("mode", "before"), [("truncate", b""), ("append", b"before\n")])
def test_both_streams_may_go_to_one_file(tmp_path: Path, mode: str, before: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    stdout, stderr = opened(f"{mode}:{path}"), opened(f"{mode}:{path}")
    for file, data in ((stdout, b"a long line of output\n"), (stderr, b"error\n"), (stdout, b"more\n")):
        file.write(memoryview(data))
    assert path.read_bytes() == before + b"a long line of output\nerror\nmore\n"
    stdout.close()
    stderr.close()


def test_what_somebody_else_appends_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    ours = opened(f"truncate:{path}")
    with path.open("ab", buffering=0) as other:
        ours.write(memoryview(b"ours\n"))
        other.write(b"theirs\n")
        ours.write(memoryview(b"ours\n"))
    assert path.read_bytes() == b"ours\ntheirs\nours\n"
    ours.close()


def test_how_far_each_came_and_why_no_further_is_noted(tmp_path: Path) -> None:
    counts = os.memfd_create("counts")
    whole, full = opened(f"append:{tmp_path}/log", 0, counts), OutFile(os.open("/dev/full", os.O_WRONLY), counts, 1)
    for file in (whole, full):
        file.write(memoryview(b"12345"))
        file.write(memoryview(b"678"))
        file.close()
    assert (whole.failure, full.failure) == (0, errno.ENOSPC)
    assert os.pread(counts, 2 * COUNT, 0) == (8).to_bytes(COUNT, sys.byteorder)
