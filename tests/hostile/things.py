"""Descriptors of every kind that can be handed over, and what else a user can put in somebody's way."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from typing import Protocol

_libc = ctypes.CDLL(None, use_errno=True)
_libc.write.argtypes = _libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.write.restype = _libc.read.restype = ctypes.c_ssize_t
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p


class Closable(Protocol):
    def close(self) -> None: ...


_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_kept: list[Closable] = []  # other ends that are to stay open as long as this process


def release() -> None:
    """Close the other ends: before this process ends, which would linger, too."""
    while _kept:
        _kept.pop().close()


def lingering() -> int:
    """A TCP socket whose close() takes an hour: what it still has to send nobody takes."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen(1)
        ours = socket.create_connection(door.getsockname())
        theirs, _ = door.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    ours.setblocking(True)  # else close() does not wait
    _kept.append(theirs)
    return ours.detach()


def sealed(*, future: bool = False) -> int:
    """Memory that cannot be changed; with `future` only by who has it mapped already."""
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"sealed\n")
    os.lseek(fd, 0, os.SEEK_SET)
    seals = 0x10 if future else fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def loaded(depth: int = 8) -> int:
    """A socket with sockets in its queue that have sockets in theirs, the last of them with itself."""
    first, kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    fd = os.dup(kept.fileno())
    for _ in range(depth):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        _pass(ours, [fd, theirs.fileno()])
        os.close(fd)
        fd = theirs.detach()
        ours.close()
    first.close()
    kept.close()
    return fd


def _pass(by: socket.socket, fds: list[int]) -> None:
    by.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def _pipe(end: int, *, closed: bool = False, full: bool = False) -> int:
    ends = os.pipe()
    if full:
        os.set_blocking(ends[1], False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(ends[1], bytes(65536))
        os.set_blocking(ends[1], True)
    if closed:
        os.close(ends[1 - end])
    else:
        _kept.append(os.fdopen(ends[1 - end], "rb" if end else "wb", buffering=0))
    return ends[end]


def _socket(kind: int = socket.SOCK_STREAM, *, closed: bool = False, reset: bool = False) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    if reset:
        ours.send(b"never read")  # ECONNRESET for who reads
    if closed or reset:
        theirs.close()
    else:
        _kept.append(theirs)
    return ours.detach()


def _listening() -> int:
    door = socket.socket(socket.AF_UNIX)
    door.bind("\0" + os.urandom(8).hex())
    door.listen()
    return door.detach()


def _epoll() -> int:
    """That watches one that watches one, and a pipe."""
    fd = _pipe(0)
    for _ in range(3):
        poll = select.epoll()
        poll.register(fd, select.EPOLLIN)
        fd = os.dup(poll.fileno())
        _kept.append(poll)
    return fd


def _unlinked(flags: int) -> int:
    fd, path = tempfile.mkstemp()
    os.write(fd, b"gone\n")
    os.close(fd)
    fd = os.open(path, flags)
    os.unlink(path)
    return fd


def _terminal() -> int:
    master, slave = os.openpty()
    _kept.append(os.fdopen(master, "rb", buffering=0))
    return slave


def _stopped() -> int:
    """A FIFO nobody writes, opened for both so that it never ends."""
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/fifo")
        return os.open(f"{folder}/fifo", os.O_RDWR)


def _leased() -> int:
    """A file somebody holds a lock on and is to be asked before it is opened."""
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


THINGS: dict[str, Callable[[], int]] = {
    "lingering socket": lingering,
    "sealed memory": sealed,
    "memory sealed from now on": lambda: sealed(future=True),
    "empty memory": lambda: os.memfd_create("empty"),
    "process": lambda: os.pidfd_open(os.getpid()),
    "epoll of epolls": _epoll,
    "event": lambda: os.eventfd(0, os.EFD_NONBLOCK),
    "event that blocks": lambda: os.eventfd(0),
    "path": lambda: os.open("/etc/shadow", os.O_PATH),
    "path of a link": lambda: os.open("/proc/self/exe", os.O_PATH | os.O_NOFOLLOW),
    "path of a magic link": lambda: os.open("/proc/self/fd/1", os.O_PATH | os.O_NOFOLLOW),
    "directory": lambda: os.open("/", os.O_DIRECTORY),
    "directory of processes": lambda: os.open("/proc/self/fd", os.O_DIRECTORY),
    "memory of a process": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "namespace": lambda: os.open("/proc/self/ns/user", os.O_RDONLY),
    "pseudo file": lambda: os.open("/proc/self/oom_score_adj", os.O_RDWR),
    "socket with sockets in it": loaded,
    "socket": _socket,
    "packets": lambda: _socket(socket.SOCK_SEQPACKET),
    "socket closed there": lambda: _socket(closed=True),
    "socket reset there": lambda: _socket(reset=True),
    "listening socket": _listening,
    "pipe to read": lambda: _pipe(0),
    "pipe at its end": lambda: _pipe(0, closed=True),
    "full pipe": lambda: _pipe(0, full=True),
    "pipe to write": lambda: _pipe(1),
    "broken pipe": lambda: _pipe(1, closed=True),
    "fifo that never ends": _stopped,
    "deleted file": lambda: _unlinked(os.O_RDONLY),
    "deleted file to write": lambda: _unlinked(os.O_WRONLY),
    "locked file": _leased,
    "terminal": _terminal,
    "master of terminals": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "null": lambda: os.open("/dev/null", os.O_RDWR),
    "zeros": lambda: os.open("/dev/zero", os.O_RDONLY),
    "full": lambda: os.open("/dev/full", os.O_RDWR),
}


class Page:
    """A page of a file that is read when it is touched: of ours, by the kernel, in the middle of a system call."""

    def __init__(self, fd: int, writable: bool = False) -> None:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = _libc.mmap(None, mmap.PAGESIZE, access, mmap.MAP_PRIVATE, fd, 0)
        assert address not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
        # Without reading ahead the one who touches it sends the request, and not even SIGKILL ends its wait.
        _libc.madvise(ctypes.c_void_p(address), mmap.PAGESIZE, mmap.MADV_RANDOM)
        self.address = address

    def write(self, fd: int) -> int:
        """write(fd, page): into a pipe this holds its mutex until the page is there."""
        return int(_libc.write(fd, self.address, mmap.PAGESIZE))

    def read(self, fd: int) -> int:
        """read(fd, page), the same from the other end."""
        return int(_libc.read(fd, self.address, mmap.PAGESIZE))


def exchange(one: str, other: str, seconds: float) -> int:
    """Let two names change places again and again, in one step each; how often."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        if _libc.renameat2(_AT_FDCWD, one.encode(), _AT_FDCWD, other.encode(), _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), one)
        count += 1
    return count
