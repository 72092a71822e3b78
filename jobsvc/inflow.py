"""What may be read of a bus connection that takes descriptors: no byte with which one would come.

recvmsg(2) without a control buffer installs no descriptor, it drops them; but dropping the last
reference of a socket that lingers waits for its peer. So a message that carries descriptors is left
where it is, for a process that may hang. Of Linux it is known that

- a peek (MSG_PEEK) without a control buffer says by MSG_CTRUNC that descriptors are on their way: those
  of the bytes peeked at, or of some further behind; without it there are none among the bytes peeked at;
- descriptors come with the first byte of the message that carries them, and go when that is read.

Which message it is, its header says; the bus daemon has compared that with what it was sent.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

START: Final = 16  # bytes of a header of which the rest of the message can be told
AT_ONCE: Final = 64 * 1024
UNIX_FDS: Final = b"\x09\x01u\x00"  # the header field's code and type; other fields may have the like in their text

_SIZES = {mark: struct.Struct(f"{order}4xI4xI") for mark, order in ((ord("l"), "<"), (ord("B"), ">"))}


class Inflow:
    """A stream as io has them, not blocking: None is nothing for now, empty is the end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._have = memoryview(b"")
        self._left = 0  # bytes of the message whose beginning has been read, yet to be read
        self.ahead = b""  # of the next message, which carries descriptors: its header, as far as it is there

    def read(self, size: int) -> bytes | None:
        """At most that many bytes."""
        if not self._have:
            try:
                data = self._sock.recv(min(self._left, AT_ONCE)) if self._left else self._next()
            except BlockingIOError:
                return None
            if not data:
                return data
            self._left = self._left - len(data) if self._left else self._open(data)
            self._have = memoryview(data)
        data, self._have = bytes(self._have[:size]), self._have[size:]
        return data

    def resume(self, start: bytes) -> None:
        """Go on after the message's first bytes have been read elsewhere."""
        assert not self._have
        self.ahead, self._have = b"", memoryview(start)
        self._left = _size(start, 0) - len(start)

    def unread(self) -> bool:
        """Whether the message `ahead` is still there, from its first byte; after the other reader has ended."""
        try:
            return self._sock.recv(len(self.ahead), socket.MSG_PEEK) == self.ahead
        except BlockingIOError:
            return False

    def _next(self) -> bytes | None:
        """Whole messages and the beginning of one, up to one that carries descriptors."""
        if self.ahead:
            return None
        data, _, flags, _ = self._sock.recvmsg(AT_ONCE, 0, socket.MSG_PEEK)
        if not data:
            return b""
        coming = bool(flags & socket.MSG_CTRUNC)
        place = 0
        while place + START <= len(data):
            end = place + START + _fields(data, place)
            if coming and (end > len(data) or UNIX_FDS in data[place:end]):
                # Cut off, or only like it: a reader that takes care of descriptors finds none, and that is all.
                if not place:
                    self.ahead = data[:end]
                break
            place += _size(data, place)
        size = min(place, len(data))
        return self._sock.recv(size) if size else None

    def _open(self, data: bytes) -> int:
        """How much of the last message that begins in these bytes is still to come."""
        place = 0
        while place < len(data):
            place += _size(data, place)
        return place - len(data)


def _fields(data: bytes, place: int) -> int:
    """The size of a header's fields."""
    return int(_sizes(data, place)[1])


def _size(data: bytes, place: int) -> int:
    """The size of a message. All of its start is there."""
    body, fields = _sizes(data, place)
    return START + fields + (-fields & 7) + body


def _sizes(data: bytes, place: int) -> tuple[int, int]:
    if (sizes := _SIZES.get(data[place])) is None:
        raise ValueError("what comes from the bus is no message")
    body, fields = sizes.unpack_from(data, place)
    return body, fields
