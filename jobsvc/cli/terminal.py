"""run -t and attach: our terminal joined to the one that a job has.

Keys go to the job as they are, Ctrl-C too; the window's size follows ours. Its output comes as any job's does.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable
from typing import Any

import click

from jobsvc.cli.attach import LEFT, Attached, Left
from jobsvc.cli.command import command, job_argument
from jobsvc.cli.interrupts import Interrupts
from jobsvc.cli.jobs import resolve
from jobsvc.cli.options import Spec
from jobsvc.cli.session import Session
from jobsvc.client import FINISHED, Client, Options
from jobsvc.errors import ServiceUnavailable, WrongState
from jobsvc.formats import Trailer

ESCAPE = 0x1D  # Ctrl-], as systemd-run and machinectl have it
ESCAPES, WITHIN = 3, 1.0
PIECE = 4096


@command("attach")
@job_argument
@click.option(
    "-n", "--lines", metavar="N", type=click.IntRange(min=0, max=2**32 - 1), default=10, show_default=True,
    help="Begin with so many of the last lines.",
)  # fmt: skip
def attach_(session: Session, job: str, lines: int) -> int:
    """Join this terminal to the one of JOB, which was begun with -t; exit as it exits.

    Ctrl-] three times within a second leaves the job to itself.
    """
    with session.client(fds=True) as client:
        job_id = resolve(client, job)
        status = client.status(job_id)
        if status.get("State") in FINISHED:
            raise WrongState(f"job {job_id} has ended ({status['State']}); 'jobctl logs {job_id}' shows its output")
        terminal = Terminal(session, client)
        return terminal.join(job_id, int(status.get("Run", 1)), {"Lines": ("u", lines)})


class Terminal(Attached):
    """One job whose terminal is ours for a while."""

    def __init__(self, session: Session, client: Client) -> None:
        super().__init__(session, client)
        self._keys = 0 if sys.stdin else -1
        self._used_up = False  # another run finds the end of our input
        self._tty = self._keys == 0 and os.isatty(0)
        self._plain = False  # it is a file, which is always ready
        self._before: list[Any] | None = None
        self._socket: socket.socket | None = None
        self._unsent = b""
        self._escapes: list[float] = []
        self._poll = select.epoll()
        self._visiting = False
        # In raw mode Ctrl-C is a key. What is none, as while the job is queued, stops the job as without a terminal.
        self.interrupts = Interrupts(signal.SIGINT, signal.SIGTERM, signal.SIGWINCH)

    def spec(self) -> Spec:
        """What the job is to be told of our terminal."""
        rows, columns = self._size() or (24, 80)
        made: Spec = {"Pty": ("b", True), "TTYRows": ("u", rows), "TTYColumns": ("u", columns)}
        if term := os.environ.get("TERM"):
            made["Environment"] = ("as", [f"TERM={term}"])
        return made

    def run(self, submit: Callable[[], str], renewed: bool, retries: bool) -> int:
        """Submit a job and be its terminal until it has ended; with `retries` of each try."""
        with self:
            return self.follow(submit, renewed, retries)

    def join(self, job_id: str, run: int, also: Options) -> int:
        """Be the terminal of a job that is there, from these lines of its output on."""
        self.job = job_id
        self._visiting = self._tty
        with self:
            try:
                return self._end(self.read(run, also))
            except Left:
                self._leave()
                self.session.say(f"left job {job_id} to itself")
                return LEFT

    def read(self, run: int, also: Options | None = None) -> Trailer:
        """Open the door to the job's terminal, and bring its output here."""
        began = dict.fromkeys((self.job,), lambda status: status.get("State") not in ("queued", "starting"))
        if sys.stderr and sys.stderr.isatty():
            self.client.while_queued(self.job, lambda why: self.session.say(f"job {self.job} waits: {why}"))
        for _, status in self.client.until(began):
            if status and status.get("State") not in FINISHED:
                self._open()
        try:
            return super().read(run, also)
        finally:
            self._leave()

    def _open(self) -> None:
        if not self.client.bus.fds:
            raise ServiceUnavailable("this connection cannot pass a terminal on; leave out -t")
        try:
            (handle,) = self.client.call("Attach", "sa{sv}", self.job, {})
        except WrongState:
            if self.client.status(self.job).get("State") in FINISHED:
                return  # it was quicker than we
            raise
        self._socket = socket.socket(fileno=handle.to_raw_fd())
        self._socket.setblocking(False)
        self._raw()
        self._send_size()
        if self._keys >= 0:
            self._listen(True)
        elif self._used_up:
            self._send(b"i")

    # The terminal here

    def _raw(self) -> None:
        if self._tty and self._before is None:
            self._before = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)

    def _leave(self) -> None:
        """Our terminal is as it was."""
        if self._before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)
            self._before = None
        self._listen(False)
        if self._socket:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Terminal:
        super().__enter__()
        self._poll.register(self.interrupts.fileno(), select.EPOLLIN)
        return self

    def __exit__(self, *what: object) -> None:
        self._leave()
        super().__exit__(*what)
        self._poll.close()

    def _size(self) -> tuple[int, int] | None:
        """Rows and columns of the first of our descriptors that is a terminal."""
        for fd in (1, 0, 2):
            try:
                rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
            except OSError:
                continue
            if rows and columns:
                return rows, columns
        return None

    # What happens here, at any moment of any wait

    def fileno(self) -> int:
        return self._poll.fileno()

    def handle(self) -> None:
        for fd, _ in self._poll.poll(0):
            if fd == self.interrupts.fileno():
                super().handle()
            elif self._unsent:
                self._flush()
            else:
                self._typed()

    def struck(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._send_size()
        elif number == signal.SIGINT and self._visiting:
            raise Left  # the job was there before us, and waits for more than us
        else:
            super().struck(number)

    def _typed(self) -> None:
        try:
            data = os.read(self._keys, PIECE)
        except BlockingIOError:
            return
        except OSError:  # the terminal has gone
            data = b""
        if self._tty and self._escaped(data):
            raise Left
        self._unsent = b"i" + data
        self._flush()
        if not data:
            self._listen(False)
            self._keys, self._used_up = -1, True

    def _escaped(self, data: bytes) -> bool:
        now = time.monotonic()
        for byte in data:
            self._escapes = [*self._escapes, now] if byte == ESCAPE else []
        self._escapes = [at for at in self._escapes if now - at <= WITHIN]
        return len(self._escapes) >= ESCAPES

    # To the job

    def _send_size(self) -> None:
        if size := self._size():
            self._send(b"w" + struct.pack("HH", *size))

    def _flush(self) -> None:
        """Send what was typed; while the job takes none, nothing more is read."""
        if self._send(self._unsent):
            self._unsent = b""
        self._listen(self._keys >= 0 and not self._unsent)

    def _send(self, packet: bytes) -> bool:
        if not self._socket:
            return True
        try:
            self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError:  # it has ended, and its output will say so
            self._socket.close()
            self._socket = None
        return True

    def _listen(self, keys: bool) -> None:
        """Either the next keys are waited for, or room for the ones that are there."""
        waiting = [fd for fd in (0, self._socket.fileno() if self._socket else -1) if fd >= 0]
        for fd in waiting:
            try:
                self._poll.unregister(fd)
            except (OSError, ValueError):
                pass  # it was not waited for
        if not self._socket:
            return
        if keys and not self._plain:
            try:
                self._poll.register(self._keys, select.EPOLLIN)
                return
            except PermissionError:  # a plain file is always ready, and epoll takes none
                self._plain = True
        if keys or self._unsent:
            self._poll.register(self._socket, select.EPOLLOUT)
