"""The gate between a supervisor and its main process: a socket pair that opens the barrier.

It takes small Python values both ways. The two are forks of one program, so they may speak marshal,
which touches less memory than JSON; a page touched in a forked process is a page copied.
"""

from __future__ import annotations

import _socket
import array
import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

LONGEST: Final = 64 * 1024
MAX_FDS: Final = 2


class Gate:
    """One end. A value, or None at the end of the other side's life."""

    __slots__ = ("socket",)

    def __init__(self, end: _socket.socket) -> None:
        self.socket = end

    @classmethod
    def pair(cls) -> tuple[Gate, Gate]:
        here, there = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        return cls(here), cls(there)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, value: Any, fds: list[int] | None = None) -> None:
        """A command line and an environment may be long: then they go as a file in memory."""
        data = marshal.dumps(value)
        if len(data) <= LONGEST:
            self._send(b"-" + data, fds or [])
            return
        fd = os.memfd_create("jobsvc-gate", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            self._send(b"+", [fd, *(fds or [])])
        finally:
            os.close(fd)

    def _send(self, data: bytes, fds: list[int]) -> None:
        if fds:
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))
            self.socket.sendmsg([data], [rights])
        else:
            self.socket.send(data)

    def receive(self) -> tuple[Any, list[int]]:
        """The next value and what descriptors came with it."""
        space = _socket.CMSG_SPACE(4 * (MAX_FDS + 1))
        data, ancillary, _, _ = self.socket.recvmsg(LONGEST + 1, space, _socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _level, _kind, value in ancillary:
            fds.frombytes(value)
        found = fds.tolist()
        if data[:1] == b"+":
            with open(found.pop(0), "rb") as file:
                file.seek(0)
                data = b"-" + file.read()
        return (marshal.loads(data[1:]) if data else None), found  # noqa: S302 (from our own fork)
