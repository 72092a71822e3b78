"""The supervisor's event loop: epoll and named deadlines. No wake-up without a reason."""

from __future__ import annotations

import collections
import os
import select
import time

from jobsvc import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
CHANGED = select.EPOLLPRI  # a kernfs file says something new
HUNG_UP = select.EPOLLRDHUP
EDGE = select.EPOLLET

LONGEST = 86400.0  # seconds; epoll_wait(2) counts milliseconds in an int

now = time.monotonic


class Posts:
    """Callbacks from one thread to the loop of another. The descriptor is in the tables of both."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.waiting: collections.deque[Callable[[], None]] = collections.deque()

    def post(self, callback: Callable[[], None]) -> None:
        """Have it called by the other thread's loop, after everything posted before."""
        self.waiting.append(callback)
        os.eventfd_write(self.fd, 1)

    def run(self, _events: int = 0) -> None:
        """Call what was posted."""
        os.eventfd_read(self.fd)
        while self.waiting:
            self.waiting.popleft()()


class Loop:
    """Calls back when a descriptor is ready, a deadline passes, or another thread has posted something."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.deadlines: dict[str, tuple[float, Callable[[], None]]] = {}

    def receive(self, posts: Posts) -> None:
        """Run what is posted there, in turn with everything else."""
        self.watch(posts.fd, READ, posts.run)

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call handler(events) when fd has any of these; errors and hang-ups always count."""
        if fd in self.handlers:
            self.epoll.modify(fd, events)
        else:
            self.epoll.register(fd, events)
        self.handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching. Before the descriptor is closed: a forked child may share it."""
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def at(self, name: str, when: float, callback: Callable[[], None]) -> None:
        """Call once when the monotonic clock reaches that; the same name replaces."""
        self.deadlines[name] = (when, callback)

    def cancel(self, name: str) -> None:
        self.deadlines.pop(name, None)

    def on_term(self, callback: Callable[[], None]) -> None:
        """Call back for SIGTERM, in turn with everything else."""
        woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        linux.wake_on_term(waker)

        def handle(_events: int) -> None:
            os.read(woken, 64)
            callback()

        self.watch(woken, READ, handle)

    def turn(self, until: float | None = None) -> None:
        """Wait for something to happen, at most until then, and handle all that has."""
        nearest = [when for when, _ in self.deadlines.values()]
        if until is not None:
            nearest.append(until)
        timeout = min(max(0.0, min(nearest) - now()), LONGEST) if nearest else -1
        for fd, events in self.epoll.poll(timeout):
            # Looked up anew each time: a handler before this one may have forgotten the descriptor.
            if handler := self.handlers.get(fd):
                handler(events)
        if self.deadlines:
            self._overdue()

    def _overdue(self) -> None:
        present = now()
        for name, (when, callback) in sorted(self.deadlines.items(), key=lambda item: item[1][0]):
            if when > present:
                break
            if self.deadlines.get(name) == (when, callback):
                del self.deadlines[name]
                callback()
