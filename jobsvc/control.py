"""Packets between jobsvcd, launcher and supervisors: one JSON object per SEQPACKET datagram.

The first packet each way, every request file and every report carry a protocol version; a reader
speaks the present one, the previous one, and a later one that says it can be read by the present.
Unknown types and unknown keys are ignored, so that either side can be newer.
"""

from __future__ import annotations

import _socket
import array
import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs a megabyte, which every supervisor would carry
    from typing import Any, Final

VERSION: Final = 1
NEWER: Final = 2  # a request with something in it that must not be passed over
SPOKEN: Final = frozenset({VERSION, NEWER})
READABLE_BY: Final = 1  # whose readers understand our packets and reports: after a downgrade they meet them

# Well below the default socket buffer (208 KiB), well above any report.
MAX_PACKET: Final = 128 * 1024
MAX_FDS: Final = 4

_CREDENTIALS = struct.Struct("3i")
# The C scanner and encoder themselves: json.loads() looks for white space with a regular expression
# first, JSONEncoder.encode() makes a new encoder each time, and both cost a supervisor more memory
# than the packets do.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_parts = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, None, json.encoder.encode_basestring, None, ":", ",", False, False, False
)


class ProtocolError(Exception):
    """What came is no packet of ours: not an object, too long, or of an unknown version."""


def pack(kind: str, /, **facts: Any) -> bytes:
    """One packet of that type."""
    return _encode({"type": kind, **facts})


def pack_first(kind: str, /, **facts: Any) -> bytes:
    """The first packet on a connection, which says what we speak."""
    return _encode({"version": VERSION, "readable_by": READABLE_BY, "type": kind, **facts})


def _encode(facts: dict[str, Any]) -> bytes:
    return "".join(_parts(facts, 0)).encode("utf-8", "surrogateescape")


def unpack(data: bytes) -> dict[str, Any]:
    """A packet's keys. "type" is always there and a string."""
    packet = _object(data)
    if not isinstance(packet.get("type"), str):
        raise ProtocolError("not an object with a type")
    return packet


def unpack_first(data: bytes) -> dict[str, Any]:
    """A first packet's keys; refuses a version that is not spoken here."""
    return _spoken(unpack(data))


def dump(facts: dict[str, Any]) -> bytes:
    """A request, an intent or a report, as a file. The version is added here."""
    return _encode({"version": VERSION, "readable_by": READABLE_BY, **facts})


def parse(data: bytes) -> dict[str, Any]:
    """What dump() made; refuses a version that is not spoken here."""
    return _spoken(_object(data))


def _object(data: bytes) -> dict[str, Any]:
    try:
        value, _ = _scan(data.decode("utf-8", "surrogateescape"), 0)
    except (ValueError, RecursionError, StopIteration) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("not an object")
    return value


def spoken(facts: dict[str, Any]) -> bool:
    """Whether this can be understood here."""
    version, readable_by = facts.get("version"), facts.get("readable_by")
    if version in SPOKEN:
        return True
    return isinstance(version, int) and isinstance(readable_by, int) and readable_by <= VERSION <= version


def _spoken(facts: dict[str, Any]) -> dict[str, Any]:
    if not spoken(facts):
        raise ProtocolError(f"version {facts.get('version')!r} is not spoken here")
    return facts


def receive(connection: _socket.socket, longest: int = MAX_PACKET) -> tuple[bytes, list[int]]:
    """One datagram and the descriptors that came with it (close-on-exec, now the caller's).

    Empty data is end-of-file. Raises ProtocolError for a datagram that was cut.
    """
    data, ancillary, flags, _ = connection.recvmsg(
        longest, _socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize), _socket.MSG_CMSG_CLOEXEC
    )
    fds = descriptors(ancillary)
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise ProtocolError(f"a packet longer than {longest} bytes or {MAX_FDS} descriptors")
    return data, fds


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Those that came with what recvmsg() has read."""
    fds = array.array("i")
    for level, kind, value in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    return fds.tolist()


def send_fds(connection: _socket.socket, data: bytes, fds: list[int]) -> None:
    """One datagram with descriptors."""
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))
    connection.sendmsg([data], [rights] if fds else [])


def peer(connection: _socket.socket) -> tuple[int, int]:
    """The process at the other end, or that listens there, as the kernel knows it: pid and uid."""
    data = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return pid, uid


def peer_uid(connection: _socket.socket) -> int:
    """Who is at the other end, as the kernel knows it."""
    return peer(connection)[1]


def run_key(job_id: str, run: int) -> str:
    """The name of one run: of its directory, its report and in the launcher's packets."""
    return f"{job_id}-{run}"


def is_run_key(text: object) -> bool:
    """Whether this may be used as a file name: 16 lowercase hex digits, a dash, a number from 1."""
    if not isinstance(text, str) or len(text) > 27:
        return False
    job_id, dash, run = text.partition("-")
    return (
        len(job_id) == 16
        and set(job_id) <= set("0123456789abcdef")
        and dash == "-"
        and run.isascii()
        and run.isdecimal()
        and run[0] != "0"
    )
