"""Takes what a job writes: a thread of the supervisor's that may hang alone.

A job, and whoever else has one of its pipes or terminals open, can make every access to it wait in the
kernel for ever: who writes a page that never comes holds the pipe's lock, and O_NONBLOCK does not help
against that. So the thread that keeps the run's time and decides its end has none of them open. This
one has a table of descriptors of its own, and nobody waits for it longer than a bounded time.

The two share memory and tell each other things by posts. Methods named on_… run in this thread.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.pthread_sigmask makes enums of what it returns
import _socket
import _thread
import os
import sys

from jobsvc import control, linux, loop, native
from jobsvc.closing import Closing
from jobsvc.pump import Pump
from jobsvc.story import Story
from jobsvc.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from jobsvc.outfile import OutFiles
    from jobsvc.pump import Stream
    from jobsvc.request import Request

    class Listener(Protocol):
        """What the supervisor is told, in its own thread."""

        def moved(self) -> None: ...  # more output has been handed to the journal
        def silent(self) -> None: ...  # the job has closed its output
        def drained(self) -> None: ...  # all of its output is read, and its files are written
        def closed(self) -> None: ...  # the journal has processed all, or is not going to


STACK: Final = 256 * 1024


class Source:
    """What the job writes to: two pipes, or a terminal. Descriptors of this thread's table."""

    def __init__(self, stdout: int, stderr: int, main: tuple[int, int, int], terminal: tuple[int, int] | None) -> None:
        self.stdout = stdout if terminal is None else terminal[0]
        self.stderr = stderr
        self.main = main  # pid, uid and gid of the main process
        self.terminal = terminal  # master and slave
        self.fds = [stdout, stderr, *(terminal or ())]


class Capture:
    """The thread, as the rest of the supervisor knows it."""

    def __init__(self, events: loop.Loop, request: Request, namespace: str, listener: Listener) -> None:
        self.request = request
        self.namespace = namespace
        self.listener = listener
        self.ours = loop.Posts()  # to the thread that keeps the time
        self.theirs = loop.Posts()  # to this one
        events.receive(self.ours)
        self.runs = False
        self.done = False
        self.fails = False  # it ended by a fault of ours, or cannot begin
        self.hangs = False  # so long that the run ended without it
        self.told_of_move = False
        self.pump: Pump | None = None
        self.terminal: Terminal | None = None
        self.files: OutFiles | None = None
        self.closing: Closing | None = None

    # What is known of it, for every thread

    @property
    def streams(self) -> tuple[Stream, Stream] | None:
        return self.pump.streams if self.pump is not None else None

    # The other thread's

    def start(self, source: Source | None, files: OutFiles | None) -> list[int]:
        """Begin. What it needs of descriptors it has when this returns: its caller is to close its own.

        Those of the files are returned. RuntimeError if there is no thread to be had.
        """
        self.gifts, ear = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.gifts.setblocking(False)
        inbox, of_files = ear.detach(), [] if files is None else files.hand_over()
        ready = _thread.allocate_lock()
        ready.acquire()
        # Signals are the other thread's: SIGTERM, and the alarm that ends a hung look-up.
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        _thread.stack_size(STACK)
        try:
            _thread.start_new_thread(self._live, (source, files, [inbox, *of_files], ready))
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        ready.acquire()
        self.runs = True
        os.close(inbox)
        return of_files

    def post(self, callback: Callable[[], None]) -> None:
        self.theirs.post(callback)

    def attach(self, fd: int, answer: Callable[[str], None]) -> None:
        """Let somebody type into the terminal; `answer` is posted back. The descriptor stays the caller's."""
        try:
            control.send_fds(self.gifts, b"-", [fd])
        except BlockingIOError:
            answer("its terminal hangs")
            return
        self.post(lambda: self.on_attach(answer))

    def moves(self) -> None:
        """What has moved until now is known."""
        self.told_of_move = False

    # This thread's

    def _live(self, source: Source | None, files: OutFiles | None, fds: list[int], ready: _thread.LockType) -> None:
        """From beginning to end. Objects that close a descriptor are made and closed here: its number is of this table.

        What is not closed goes with the table.
        """
        try:
            try:
                linux.unshare_files()
                linux.close_all_but(sorted({*fds, self.theirs.fd, self.ours.fd, *(source.fds if source else ())}))
                self.inbox = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fds[0])
                self.events = loop.Loop()
                self.events.receive(self.theirs)
                self.sender = native.Sender(self.events, self.namespace, self.on_room, self.on_sent)
                self.story = Story(self.request, self.sender)
                if files is not None:
                    files.take_over(self.events)
                    self.files = files
                if source is not None:
                    self._open(source)
            finally:
                ready.release()
            while not self.done:
                self.events.turn()
            self.sender.disconnect()
            self.inbox.close()
            self.events.epoll.close()
        except BaseException:  # noqa: BLE001 (the run has an end all the same)
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            self.fails = True
            self.ours.post(self.listener.drained)

    def _open(self, source: Source) -> None:
        if source.terminal is not None:
            self.terminal = Terminal(self.events, *source.terminal)
        self.pump = Pump(self.events, self.request, source.stdout, source.stderr, self.terminal is not None)
        if self.files is not None:
            self.pump.tee(self.files)
        self.source = source

    def on_started(self) -> None:
        """exec succeeded: from here on there is output."""
        assert self.pump is not None
        self.story.started(self.source.main[0])
        self.pump.begin(self.sender, self.source.main, lambda: self.ours.post(self.listener.silent))

    def on_bound(self, left: int) -> None:
        assert self.pump is not None
        self.pump.bound(left)

    def on_attach(self, answer: Callable[[str], None]) -> None:
        _, fds = control.receive(self.inbox)
        taken = self.terminal is not None and self.terminal.attach(fds[0])
        self.ours.post(lambda: answer("" if taken else "too many are attached to it already"))

    def on_finish(self, started: bool, end_by: float | None) -> None:
        """Everything of the run has ended: take what is in the pipes; files are waited for, though not long."""
        if self.pump is not None and started:
            self.pump.finish()
        if self.terminal is not None:
            self.terminal.close()

        def over() -> None:
            self.ours.post(self.listener.drained)

        if self.files is None or not started:
            if self.files is not None:
                self.files.discard()
                self.files.hangs = self.files.outlives_sigkill()
            over()
            return
        self.files.finish(over)
        self.on_hurry(end_by)

    def on_end(self, facts: dict[str, Any], told: bool, end_by: float | None) -> None:
        """The verdict is there."""
        if told:
            self.story.finished(facts)
            self.story.end_of_output(facts)
        self.closing = Closing(self.events, self.sender, self.on_closed)
        self.on_hurry(end_by)
        self.closing.check()

    def on_closed(self) -> None:
        """That was all."""
        self.done = True
        self.ours.post(self.listener.closed)

    def on_hurry(self, end_by: float | None) -> None:
        """Be over by then."""
        if end_by is None:
            return
        if self.closing is not None:
            self.closing.hurry(end_by)
        elif self.files is not None:
            self.files.hurry(end_by)

    def on_room(self) -> None:
        """journald has room for more."""
        if self.closing is not None:
            self.closing.check()
        elif self.pump is not None and self.pump.begun:
            self.pump.resume()

    def on_sent(self, output: native.Range) -> None:
        """journald was handed this. Said once until the other thread has heard of it."""
        assert self.pump is not None
        self.pump.sent(output)
        if not self.told_of_move:
            self.told_of_move = True
            self.ours.post(self.listener.moved)
