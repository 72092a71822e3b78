"""Sends entries to the journal in its native protocol, exactly, and keeps what it cannot send.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL: a field is NAME=value, or, for any bytes at all, NAME,
newline, the length as 64 bits little-endian, the value; each ends in a newline.
"""

from __future__ import annotations

import _socket
import array
import collections
import errno
import fcntl
import os
import struct

from jobsvc import linux, loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    Range = tuple[str, int, int]  # stream, first byte, byte after the last

SO_SNDBUFFORCE: Final = 32
# Enough to keep journald busy. What waits in a slow journald's queue is memory, too.
BUFFER: Final = 1024 * 1024
TOO_BIG: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
# The kernel counts one byte more until it has told us that it freed a datagram (sock_wfree), and
# hundreds for the smallest datagram.
NOTHING: Final = 64
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 2.0
# Bytes of the journal that an entry takes besides its output. Measured: 520, and 850 for an event.
ENTRY_COST: Final = 512

F_ADD_SEALS: Final = 1033
ALL_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8

_ucred = struct.Struct("iII").pack


def field(name: str, value: str) -> bytes:
    """One field of ours. No text, not even one with newlines, can become another field."""
    data = value.encode("utf-8", "surrogateescape")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


class Entry:
    """One datagram: its parts, whose credentials it carries, which output it is."""

    __slots__ = ("credentials", "output", "parts")

    def __init__(self, parts: list[bytes], credentials: bytes | None = None, output: Range | None = None) -> None:
        self.parts = parts
        self.credentials = credentials
        self.output = output


def credentials(pid: int, uid: int, gid: int) -> bytes:
    """What journald will believe about the sender: another process than us, as root may say."""
    return _ucred(pid, uid, gid)


class Sender:
    """The connection to a journald that may be slow, restarting or not there.

    The socket is connected, for only then poll() knows that journald's queue is full, and
    non-blocking. `on_room` is called when the last of a backlog is gone, `on_sent` for each range
    of output that journald has been handed.
    """

    def __init__(
        self,
        events: loop.Loop,
        path: str,
        on_room: Callable[[], None],
        on_sent: Callable[[Range], None],
    ) -> None:
        self.events = events
        self.path = path
        self.on_room = on_room
        self.on_sent = on_sent
        self.backlog: collections.deque[Entry] = collections.deque()
        self.socket: _socket.socket | None = None
        self.pause = 0.0
        self.gone_since: float | None = None
        self.waiting = False

    @property
    def busy(self) -> bool:
        """Whether something could not be sent yet: do not bring more."""
        return bool(self.backlog)

    def send(self, entry: Entry) -> None:
        """Send, or keep and send when it can be; the order stays."""
        self.backlog.append(entry)
        if len(self.backlog) == 1:
            self._flush()

    def flush(self, _events: int = 0) -> None:
        """Go on with a backlog."""
        self._flush()
        if not self.backlog:
            self.on_room()

    def _flush(self) -> None:
        """Send what can be sent now, and arrange to be called again for the rest."""
        if not self._connected():
            return
        while self.backlog:
            entry = self.backlog[0]
            try:
                self._transmit(entry)
            except BlockingIOError:
                self._wait()
                return
            except OSError:
                self._lost()
                return
            self.backlog.popleft()
            if entry.output is not None:
                self.on_sent(entry.output)
        self._stop_waiting()

    def _connected(self) -> bool:
        if self.socket is not None:
            return True
        fresh = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        fresh.setblocking(False)
        try:
            fresh.setsockopt(_socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
            fresh.connect(self.path)
        except OSError:
            fresh.close()
            self._lost()
            return False
        self.socket = fresh
        return True

    def _transmit(self, entry: Entry) -> None:
        assert self.socket is not None
        ancillary: list[tuple[int, int, bytes | array.array[int]]] = []
        if entry.credentials is not None:
            ancillary.append((_socket.SOL_SOCKET, _socket.SCM_CREDENTIALS, entry.credentials))
        try:
            self.socket.sendmsg(entry.parts, ancillary)
        except OSError as error:
            if error.errno not in TOO_BIG:
                raise
            self._transmit_file(entry, ancillary)
        self.gone_since = None
        self.pause = 0.0

    def _transmit_file(self, entry: Entry, ancillary: list[tuple[int, int, bytes | array.array[int]]]) -> None:
        """What does not fit a datagram goes as a sealed file in memory, as sd_journal_send does."""
        assert self.socket is not None
        fd = os.memfd_create("jobsvc-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(b"".join(entry.parts))
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, F_ADD_SEALS, ALL_SEALS)
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [fd]))
            self.socket.sendmsg([], [*ancillary, rights])
        finally:
            os.close(fd)

    def _wait(self) -> None:
        """journald is slow: come back when it took something."""
        if not self.waiting and self.socket is not None:
            self.waiting = True
            self.events.watch(self.socket.fileno(), loop.WRITE, self.flush)

    def _stop_waiting(self) -> None:
        if self.waiting and self.socket is not None:
            self.events.forget(self.socket.fileno())
        self.waiting = False

    def _lost(self) -> None:
        """journald is not there, or the kernel refuses for now: connect again, ever more slowly.

        The first time at once: a restart may have left a new socket at the same path already.
        """
        self.disconnect()
        if self.gone_since is None:
            self.gone_since = loop.now()
        self.events.at("journal", loop.now() + self.pause, self.flush)
        self.pause = min(max(self.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)

    def disconnect(self) -> None:
        """Close the socket; what journald took of it stays taken."""
        if self.socket is not None:
            self._stop_waiting()
            self.events.forget(self.socket.fileno())
            self.socket.close()
            self.socket = None

    def processed(self) -> bool:
        """Whether journald took everything; the datagrams before the last one it has processed."""
        if self.backlog:
            return False
        return self.socket is None or linux.untaken(self.socket.fileno()) < NOTHING

    def watch_taking(self, callback: Callable[[int], None]) -> None:
        """Call back each time journald takes a datagram."""
        if self.socket is not None and self.socket.fileno() not in self.events.handlers:
            # Edge-triggered: room in the send buffer is there all the time, but each freed
            # datagram is a new event.
            self.events.watch(self.socket.fileno(), loop.WRITE | loop.EDGE, callback)

    def unsent(self) -> list[Range]:
        """Output that journald never got."""
        return [entry.output for entry in self.backlog if entry.output is not None]
