"""What a user reads, or not, as they please: the end of it that is written.

It is a socket pair, not a pipe: whoever reads from a pipe into a page that never comes holds its mutex
meanwhile, and a write or the close of the other end waits for that, also a non-blocking one. Nothing
comes back by it, nor any descriptor: this end has been shut for reading before the other is given away.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import weakref
from types import TracebackType
from typing import Final, Self

ROOM: Final = 64 * 1024  # bytes, as of a pipe; the kernel makes it twice that, for its own part


def pair() -> tuple[int, int]:
    """An end to read, to be given away, and the one to write."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.shutdown(socket.SHUT_RD)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    return theirs.detach(), ours.detach()


class _HangUps:
    """Tells of ends that nobody reads any more. The loop's own watch would tell of a shut end all the time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, asyncio.Event] = {}
        loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, fd: int) -> asyncio.Event:
        """Set when nobody reads any more."""
        self._epoll.register(fd, 0)  # errors and hang-ups are always told of
        event = self._watched[fd] = asyncio.Event()
        return event

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        if self._watched.pop(fd, None):
            self._epoll.unregister(fd)
            if not self._watched:
                self._loop.remove_reader(self._epoll.fileno())
                self._epoll.close()
                del _hang_ups[self._loop]

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            event = self._watched[fd]
            self.forget(fd)
            event.set()


_hang_ups: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _HangUps] = weakref.WeakKeyDictionary()


class Pipe:
    """Non-blocking writes to a descriptor it owns from now on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._watch = _hang_ups.get(self._loop) or _hang_ups.setdefault(self._loop, _HangUps(self._loop))
        self._hung_up = self._watch.watch(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.forget(self._fd)
        self._loop.remove_writer(self._fd)
        os.close(self._fd)

    async def hung_up(self) -> None:
        """Return when nobody reads any more."""
        await self._hung_up.wait()

    async def write(self, data: bytes, patience: float | None = None) -> int:
        """Write it all, or stop when nothing could be written for `patience` seconds: how much.

        BrokenPipeError when nobody reads any more.
        """
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                done += os.write(self._fd, view[done:])
            except BlockingIOError:
                if not await self.writable(patience):
                    break
            except ConnectionResetError:  # with something unread
                raise BrokenPipeError from None
        return done

    async def writable(self, patience: float | None = None) -> bool:
        ready: asyncio.Event = asyncio.Event()
        self._loop.add_writer(self._fd, ready.set)
        try:
            async with asyncio.timeout(patience):
                await ready.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._loop.remove_writer(self._fd)
