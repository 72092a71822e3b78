"""Of a connection is read what brings no descriptor, and nothing else."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from jobsvc import inflow
from jobsvc.inflow import START, Inflow


def message(body: bytes, fields: bytes = b"", fds: int = 0, order: str = "<") -> bytes:
    if fds:
        fields += bytes(-len(fields) & 7) + inflow.UNIX_FDS + struct.pack(f"{order}I", fds)
    mark = b"l" if order == "<" else b"B"
    head = mark + b"\1\0\1" + struct.pack(f"{order}III", len(body), 1, len(fields))
    return head + fields + bytes(-len(fields) & 7) + body


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Inflow, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        yield there, Inflow(here), here


Ends = tuple[socket.socket, Inflow, socket.socket]


def everything(stream: Inflow) -> bytes:
    """All that may be read just now."""
    data = b""
    while piece := stream.read(7):
        data += piece
    assert piece is None
    return data


@pytest.mark.parametrize("order", ["<", ">"])
def test_all_is_read_up_to_a_message_with_descriptors(ends: Ends, order: str) -> None:
    bus, stream, sock = ends
    before = [message(b"x" * size, b"\1\1s\0text", order=order) for size in (0, 1, 8, 1000)]
    for data in before:
        bus.send(data)
    last = message(b"body", b"\1\1s\0more", fds=2, order=order)
    socket.send_fds(bus, [last], [0, 1])
    bus.send(before[0])
    open_before = len(os.listdir("/proc/self/fd"))
    assert everything(stream) == b"".join(before)
    assert stream.ahead == last[:-4]
    assert stream.read(1) is None
    assert stream.unread()
    start, fds, _, _ = socket.recv_fds(sock, START, 9)
    assert (start, len(fds)) == (last[:START], 2)
    assert not stream.unread()
    for fd in fds:
        os.close(fd)
    stream.resume(start)
    assert everything(stream) == last + before[0]
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_text_like_the_field_stops_only_while_descriptors_are_coming(ends: Ends) -> None:
    bus, stream, sock = ends
    alike = message(b"", b"\1\1s\0" + inflow.UNIX_FDS)
    bus.send(alike)
    assert everything(stream) == alike
    bus.send(alike)
    socket.send_fds(bus, [message(b"", fds=1)], [0])
    assert everything(stream) == b""
    assert stream.ahead == alike
    stream.resume(sock.recv(START))
    assert everything(stream) == alike
    assert stream.ahead == message(b"", fds=1)


def test_a_message_that_comes_in_parts_is_read_in_parts(ends: Ends) -> None:
    bus, stream, _ = ends
    data = message(b"z" * 300_000)
    got = b""
    for start in range(0, len(data), 50_000):
        bus.send(data[start : start + 50_000])
        got += everything(stream)
    assert got == data
    bus.send(data[:20])
    assert everything(stream) == data[:20]
    bus.close()
    assert stream.read(1) == b""


def test_a_header_that_is_cut_off_is_left_to_others_while_descriptors_are_coming(ends: Ends) -> None:
    bus, stream, sock = ends
    longer = message(b"", b"\1\1s\0" + bytes(inflow.AT_ONCE))
    bus.send(longer)
    socket.send_fds(bus, [message(b"", fds=1)], [0])
    assert stream.read(1) is None
    assert stream.ahead == longer[: inflow.AT_ONCE]
    stream.resume(sock.recv(START))
    assert everything(stream) == longer


def test_what_is_no_message_is_an_error(ends: Ends) -> None:
    bus, stream, _ = ends
    bus.send(b"x" * 100)
    with pytest.raises(ValueError, match="no message"):
        stream.read(1)
