"""Packets are small, typed and versioned; what is none is refused."""

from __future__ import annotations

import os
import socket

import pytest

from jobsvc import control


def test_a_later_version_is_understood_if_it_says_so() -> None:
    later = {"version": max(control.SPOKEN) + 1, "type": "hello"}
    assert not control.spoken(later)
    assert control.spoken({**later, "readable_by": control.VERSION})
    assert not control.spoken({**later, "readable_by": control.VERSION + 1})
    assert not control.spoken({**later, "readable_by": "1"})


def test_what_is_packed_is_unpacked() -> None:
    packet = control.unpack(control.pack("ended", report={"reason": "näh\n"}, path="\udcff"))
    assert packet == {"type": "ended", "report": {"reason": "näh\n"}, "path": "\udcff"}


def test_the_first_packet_carries_the_version() -> None:
    assert control.unpack_first(control.pack_first("hello"))["version"] == control.VERSION
    with pytest.raises(control.ProtocolError, match="version None"):
        control.unpack_first(control.pack("hello"))
    with pytest.raises(control.ProtocolError, match="version 99"):
        control.unpack_first(b'{"version":99,"type":"hello"}')


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b"{}", b'{"type":1}', b"\xff", b"[" * 9999])
def test_what_is_no_packet_is_refused(data: bytes) -> None:
    with pytest.raises(control.ProtocolError):
        control.unpack(data)


def test_files_carry_the_version_too() -> None:
    assert control.parse(control.dump({"id": "x"})) == {"version": control.VERSION, "readable_by": 1, "id": "x"}
    with pytest.raises(control.ProtocolError):
        control.parse(b'{"id":"x"}')


def test_descriptors_travel_with_a_packet() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    control.send_fds(here, b"{}", [write])
    os.close(write)
    data, fds = control.receive(there)
    assert data == b"{}"
    os.write(fds[0], b"x")
    assert not os.get_inheritable(fds[0])
    assert os.read(read, 2) == b"x"
    os.close(fds[0])
    os.close(read)
    here.close()
    assert control.receive(there) == (b"", [])
    there.close()


def test_a_packet_that_is_too_long_is_refused_and_its_descriptors_closed() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    control.send_fds(here, b"x" * 200, [0])
    with pytest.raises(control.ProtocolError):
        control.receive(there, 100)
    control.send_fds(here, b"x", [0] * (control.MAX_FDS + 3))
    with pytest.raises(control.ProtocolError):
        control.receive(there)
    assert len(os.listdir("/proc/self/fd")) == before
    here.close()
    there.close()


def test_the_peer_is_known() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert control.peer_uid(here) == os.geteuid()
    here.close()
    there.close()


@pytest.mark.parametrize("key", ["0123456789abcdef-1", "ffffffffffffffff-1000000"])
def test_run_keys(key: str) -> None:
    assert control.is_run_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "0123456789abcdef",
        "0123456789abcdef-",
        "0123456789abcdef-0",
        "0123456789abcdef-01",
        "0123456789ABCDEF-1",
        "0123456789abcde-1",
        "../../../../etc/x-1",
        "0123456789abcdef-1/..",
        "0123456789abcdef-\u0661",
        "0123456789abcdef--1",
        "0123456789abcdef-1\n",
        None,
        7,
        "0123456789abcdef-" + "1" * 50,
    ],
)
def test_what_is_no_run_key(key: object) -> None:
    assert not control.is_run_key(key)
