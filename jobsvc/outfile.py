"""StandardOutput=append:PATH or truncate:PATH: files of the user's beside the journal.

They may lie where a write hangs (NFS, FUSE, a frozen file system) and nothing can interrupt it. So a
process of its own writes them, and the supervisor never has them open: to close one may hang, too.
"""

from __future__ import annotations

import _socket
import collections
import errno
import os
import signal
import stat
import sys

from jobsvc import linux, loop
from jobsvc.gate import Gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

PATIENCE: Final = 3.0  # seconds at the end for what is not written yet
LONGEST: Final = 64 * 1024
COUNT: Final = 8  # bytes of a count of what is written


def open_as_caller(wanted: str) -> int:
    """Open what "append:PATH" or "truncate:PATH" says, with the rights of the calling process.

    Only a regular file, never through a symbolic link at the end of the path, and without waiting
    for a reader as a FIFO would. Truncates only after that has been checked. Always appends: both
    streams may go to one file, and neither is to write over the other.
    """
    mode, _, path = wanted.partition(":")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    if mode == "truncate":
        os.ftruncate(fd, 0)
    return fd


class OutFiles:
    """The supervisor's end of them. The first failure of each ends its writing and is kept for the report."""

    def __init__(self, events: loop.Loop, wanted: dict[str, str], uid: int, gid: int) -> None:
        self.events = events
        self.streams = list(wanted)
        self.paths = [where.partition(":")[2] for where in wanted.values()]
        self.failures: list[str] = []
        self.pending: collections.deque[tuple[int, bytes]] = collections.deque()
        self.on_room: Callable[[], None] = lambda: None
        self.over: Callable[[], None] | None = None
        self.ended: dict[int, int] = {}  # which of them are written, and the errno of their failure, or 0
        self.counts = os.memfd_create("jobsvc-written", os.MFD_CLOEXEC)
        self.socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.door, inside = Gate.pair()  # by which the main process hands over what it has opened
        self.pid = os.fork()
        if self.pid == 0:
            write_all(theirs, inside, self.counts, uid, gid)
        theirs.close()
        inside.close()
        self.socket.setblocking(False)

    @property
    def busy(self) -> bool:
        """Whether something could not be handed over yet: do not bring more."""
        return bool(self.pending)

    def write(self, place: int, data: bytes) -> None:
        """To the file at that place of `streams`: now, or when there is room; the order stays."""
        self.pending.append((place, data))
        if len(self.pending) == 1:
            self._flush()

    def finish(self, over: Callable[[], None]) -> None:
        """There is no more. `over` is called when all is written, or will not be."""
        self.over = over
        self.events.at("files", loop.now() + PATIENCE, self._overdue)
        self._flush()

    def hurry(self, limit: float) -> None:
        """Be over by then."""
        if self.over is not None and "files" in self.events.deadlines:
            self.events.at("files", min(limit, self.events.deadlines["files"][0]), self._overdue)

    def discard(self) -> None:
        """Nothing more will be written. It is not reaped: its number is nobody else's."""
        os.kill(self.pid, signal.SIGKILL)

    def _flush(self, _events: int = 0) -> None:
        try:
            while self.pending:
                place, data = self.pending[0]
                self.socket.sendmsg([bytes((place,)), data])
                self.pending.popleft()
        except BlockingIOError:
            self.events.watch(self.socket.fileno(), loop.WRITE, self._flush)
            return
        except OSError:
            self.pending.clear()  # nobody is there any more; how far it came is known
        self.events.forget(self.socket.fileno())
        if self.over is None:
            self.on_room()
            return
        try:
            self.socket.shutdown(_socket.SHUT_WR)
        except OSError:
            pass
        self.events.watch(self.socket.fileno(), loop.READ, self._hear)

    def _hear(self, _events: int) -> None:
        """How each of them ended."""
        try:
            while said := self.socket.recv(LONGEST):
                self.ended[said[0]] = int.from_bytes(said[1:], sys.byteorder)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._conclude("not written any more")

    def _overdue(self) -> None:
        self.discard()
        self._conclude("not written in time")

    def _conclude(self, otherwise: str) -> None:
        self.events.cancel("files")
        self.events.forget(self.socket.fileno())
        self.pending.clear()
        for place, path in enumerate(self.paths):
            number = self.ended.get(place)
            if number != 0:
                count = int.from_bytes(os.pread(self.counts, COUNT, place * COUNT), sys.byteorder)
                self.failures.append(f"{path}: {os.strerror(number) if number else otherwise} after {count} bytes")
        assert self.over is not None
        self.over()


def write_all(data: _socket.socket, door: Gate, counts: int, uid: int, gid: int) -> NoReturn:
    """The writing process, from its fork to its end: when there is no more, or no supervisor."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        linux.close_all_but(sorted((data.fileno(), door.fileno(), counts)))
        _, fds = door.receive()
        door.close()
        linux.use_files_of(uid, gid)
        files = [OutFile(fd, counts, place) for place, fd in enumerate(fds)]
        while packet := data.recv(1 + LONGEST):
            files[packet[0]].write(memoryview(packet)[1:])
        for place, file in enumerate(files):
            file.close()
            data.send(bytes((place,)) + file.failure.to_bytes(2, sys.byteorder))
    except BaseException:  # noqa: BLE001 (nothing may return into the supervisor)
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(0)


class OutFile:
    """One file in the process that writes it; how much is written is noted where the supervisor can read it."""

    def __init__(self, fd: int, counts: int, place: int) -> None:
        self.fd = fd
        self.counts = counts
        self.place = place
        self.written = 0
        self.failure = 0  # errno

    def write(self, data: memoryview) -> None:
        try:
            while data and not self.failure:
                count = os.write(self.fd, data)
                data = data[count:]
                self.written += count
                os.pwrite(self.counts, self.written.to_bytes(COUNT, sys.byteorder), self.place * COUNT)
        except OSError as error:
            self.failure = error.errno or errno.EIO

    def close(self) -> None:
        """Some file systems say only now that there was no room."""
        try:
            os.close(self.fd)
        except OSError as error:
            self.failure = self.failure or error.errno or errno.EIO
