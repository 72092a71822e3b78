"""A job's terminal: a pseudo-terminal whose output is the job's standard output, and who types into it.

A client that is attached sends packets: "i" and bytes to type ("i" alone: end of input, as Ctrl-D),
"w" and two 16-bit numbers: rows and columns. The terminal is the kernel's: Ctrl-C is a character to it.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
import termios

from jobsvc import loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

END_OF_INPUT: Final = b"\x04"
LONGEST: Final = 64 * 1024
MAX_ATTACHED: Final = 16

_size = struct.Struct("HHHH").pack
_wanted_size = struct.Struct("HH")


def open_terminal(uid: int, rows: int, columns: int) -> tuple[int, int]:
    """A new one of that user's: its master and its slave."""
    master, slave = os.openpty()
    # Before it is the user's: who asks for the size into a page that never comes keeps it locked (winsize_mutex).
    resize(master, rows, columns)
    os.fchown(slave, uid, -1)  # the group is tty already, so that others may write(1) if the user likes
    return master, slave


def resize(master: int, rows: int, columns: int) -> None:
    """The foreground processes get SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, _size(rows, columns, 0, 0))


class Terminal:
    """Both ends are held for as long as the run lasts: a job that closes its own hears no hang-up."""

    def __init__(self, events: loop.Loop, master: int, slave: int) -> None:
        self.events = events
        self.master, self.slave = master, slave
        os.set_blocking(master, False)
        self.input = os.dup(master)  # to be watched for room, while the pump watches the other for output
        self.unwritten = b""
        self.attached: dict[int, _socket.socket] = {}

    def attach(self, fd: int) -> bool:
        """Let somebody type; the descriptor is ours from now on. False if too many do."""
        client = _socket.socket(fileno=fd)
        if len(self.attached) >= MAX_ATTACHED:
            client.close()
            return False
        client.setblocking(False)
        self.attached[fd] = client
        self._listen()
        return True

    def close(self) -> None:
        """The run is over: who is attached sees the end of the file."""
        for fd in list(self.attached):
            self._detach(fd)
        self.events.forget(self.input)
        os.close(self.input)
        os.close(self.slave)

    def _listen(self) -> None:
        """Hear everybody, or, as long as the job does not read what was typed, nobody."""
        for fd in self.attached:
            if self.unwritten:
                self.events.forget(fd)
            elif fd not in self.events.handlers:
                self.events.watch(fd, loop.READ, lambda _events, fd=fd: self._hear(fd))  # type: ignore[misc]

    def _hear(self, fd: int) -> None:
        try:
            packet = self.attached[fd].recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        kind, data = packet[:1], packet[1:]
        if not packet:
            self._detach(fd)
        elif kind == b"i":
            self._type(data or END_OF_INPUT)
        elif kind == b"w" and len(data) == _wanted_size.size:
            resize(self.master, *_wanted_size.unpack(data))

    def _detach(self, fd: int) -> None:
        self.events.forget(fd)
        self.attached.pop(fd).close()

    def _type(self, data: bytes) -> None:
        self.unwritten += data
        self._write()

    def _write(self, _events: int = 0) -> None:
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[os.write(self.input, self.unwritten) :]
        except BlockingIOError:
            self.events.watch(self.input, loop.WRITE, self._write)
        except OSError:
            self.unwritten = b""  # nobody will read it
        if not self.unwritten:
            self.events.forget(self.input)
        self._listen()
