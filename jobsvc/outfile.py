"""StandardOutput=append:PATH or truncate:PATH: files of the user's beside the journal.

They may lie where any access hangs (NFS, FUSE, a frozen file system) and nothing can interrupt it. So a
process of its own opens, writes and closes them, with the user's rights and none besides: what the user
may not write, what is beyond the disk's quota or reserve or LimitFSIZE=, it cannot write either.
"""

from __future__ import annotations

import _socket
import collections
import errno
import os
import resource
import select
import signal
import stat
import sys

from jobsvc import linux, loop
from jobsvc.gate import Gate
from jobsvc.verdict import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

PATIENCE: Final = 3.0  # seconds at the end for what is not written yet
DEATH_WITHIN: Final = 0.5  # seconds; a process that SIGKILL has not ended by then hangs in the kernel
LONGEST: Final = 64 * 1024
COUNT: Final = 8  # bytes of a count of what is written

# What may say that it has no blocks and is a place for files all the same (statfs(2)).
TMPFS: Final = 0x01021994
FUSE: Final = 0x65735546
# What says that it has blocks and is no such place.
EFIVARFS: Final = 0xDE5E81E4
HUGETLBFS: Final = 0x958458F6


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
    if not stores(fd):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is on a file system of the kernel's own, which stores no files", path)
    if mode == "truncate":
        os.ftruncate(fd, 0)
    return fd


def stores(fd: int) -> bool:
    """Whether the file system keeps what is written; to one of the kernel's own (proc, sysfs, cgroup) it is a command.

    Those have no blocks.
    """
    kind = linux.file_system(fd)
    if kind in (EFIVARFS, HUGETLBFS):
        return False
    return kind in (TMPFS, FUSE) or os.fstatvfs(fd).f_blocks > 0


class OutFiles:
    """The supervisor's end of them. The first failure of each ends its writing and is kept for the report.

    `wanted` is stream → where it goes, `user` has the ids and limits of the job.
    """

    events: loop.Loop  # of the thread that writes

    def __init__(self, wanted: dict[str, str], user: dict[str, Any]) -> None:
        self.streams = list(wanted)
        self.paths = [where.partition(":")[2] for where in wanted.values()]
        self.failures: list[str] = []
        self.pending: collections.deque[tuple[int, bytes]] = collections.deque()
        self.on_room: Callable[[], None] = lambda: None
        self.over: Callable[[], None] | None = None
        self.hangs = False  # its process, and SIGKILL does not end it
        self.ended: dict[int, int] = {}  # which of them are written, and the errno of their failure, or 0
        self.counts = os.memfd_create("jobsvc-written", os.MFD_CLOEXEC)
        self.socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.door, inside = Gate.pair()  # by which it says how opening them went
        self.pid = os.fork()
        if self.pid == 0:
            write_all(theirs, inside, self.counts, wanted, user)
        theirs.close()
        inside.close()
        os.set_blocking(self.socket.fileno(), False)

    def hand_over(self) -> list[int]:
        """The descriptors that the thread which writes needs; `take_over` is called there."""
        self.number = self.socket.detach()
        return [self.number, self.counts]

    def take_over(self, events: loop.Loop) -> None:
        self.events = events
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, self.number)

    def opened(self) -> StartError | None:
        """How opening them went, when the door says so."""
        try:
            said, _ = self.door.receive()
        except OSError:
            said = None
        if said is None:
            return StartError(self.streams[0], "the process that writes its output files ended")
        return StartError(*said["failed"]) if "failed" in said else None

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

    def outlives_sigkill(self) -> bool:
        """Whether its process hangs in the kernel."""
        fd = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = poll.poll(DEATH_WITHIN * 1000)
        os.close(fd)
        return not ended

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
        self.hangs = self.outlives_sigkill()
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


def write_all(data: _socket.socket, door: Gate, counts: int, wanted: dict[str, str], user: dict[str, Any]) -> NoReturn:
    """The writing process, from its fork to its end: when there is no more, or no supervisor."""
    try:
        for number in (signal.SIGTERM, signal.SIGXFSZ):  # LimitFSIZE= is an error like any other
            signal.signal(number, signal.SIG_IGN)
        linux.close_all_but(sorted((data.fileno(), door.fileno(), counts)))
        become_writer(user)
        files = []
        for place, (stream, where) in enumerate(wanted.items()):
            try:
                files.append(OutFile(open_as_caller(where), counts, place))
            except OSError as error:
                why = f"cannot open {where.partition(':')[2]}: {error.strerror or error}"
                door.send({"failed": (stream, why, error.errno)})
                os._exit(0)
        door.send({})
        door.close()
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


def become_writer(user: dict[str, Any]) -> None:
    """Take the user's rights and limits for files, and nothing else.

    The effective user is the job's and there are no capabilities. The real and saved user stay root,
    so that the user can neither signal it nor look into it. The OOM killer takes it as it takes a job.
    """
    try:
        linux.write_file("/proc/self/oom_score_adj", b"0")
    except OSError:
        pass  # some containers do not let go of it
    if limit := user["limits"].get(resource.RLIMIT_FSIZE):
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    os.umask(user["umask"])
    linux.act_only_as(user["uid"], user["gid"], user["groups"])


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
