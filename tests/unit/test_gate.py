"""The gate passes values and descriptors, long ones too, and tells of the other side's end."""

from __future__ import annotations

import os

from jobsvc.gate import Gate


def test_values_pass() -> None:
    here, there = Gate.pair()
    for value in ({"a": [1, None, "\udcff"]}, {}, {"long": "x" * 1_000_000}):
        here.send(value)
        assert there.receive() == (value, [])
    here.close()
    assert there.receive() == (None, [])
    there.close()


def test_descriptors_pass() -> None:
    here, there = Gate.pair()
    fd = os.open("/dev/null", os.O_RDONLY)
    for value in ({"short": 1}, {"long": "x" * 1_000_000}):
        here.send(value, [fd])
        received, fds = there.receive()
        assert received == value
        assert os.path.sameopenfile(fd, fds[0])
        os.close(fds[0])
    os.close(fd)
    here.close()
    there.close()
