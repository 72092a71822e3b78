"""jobsvcd's end of the launcher's socket and of the supervisors' control sockets."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from jobsvc import control
from jobsvc.errors import Internal

log = logging.getLogger(__name__)

SOCKET = "/run/jobsvc/launcher.sock"
LAUNCH_WITHIN = 30.0  # seconds; the launcher answers in a few milliseconds


class LauncherGone(Internal):
    """The launcher cannot be asked now; systemd brings it back."""


class Packets:
    """A non-blocking SEQPACKET connection in the event loop: packets in order, then end-of-file."""

    def __init__(self, path: str | socket.socket) -> None:
        """Connect there; or take a connection over."""
        if isinstance(path, str):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        else:
            self._socket = path
            path.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._arrived: collections.deque[dict[str, Any]] = collections.deque()
        self._unsent: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self._wake: asyncio.Future[None] | None = None
        self.closed = False
        if isinstance(path, str):
            try:
                self._socket.connect(path)
            except OSError:
                self._socket.close()
                raise
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        try:
            data, fds = control.receive(self._socket)
            assert not fds, "nobody sends us descriptors"
            if data:
                self._arrived.append(control.unpack(data))
            else:
                self._end()
        except (BlockingIOError, ConnectionResetError):
            return  # a reset says that it did not read our last words; its own are still to be read
        except (OSError, control.ProtocolError) as error:
            log.warning("a connection ended: %s", error)
            self._end()
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    def _end(self) -> None:
        self.closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            if self.closed:
                return
            self._wake = self._loop.create_future()
            await self._wake

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        """Send now or, when the other end is behind, as soon as it has room."""
        if self.closed:
            return
        try:
            if self._unsent:
                raise BlockingIOError
            control.send_fds(self._socket, data, fds or [])
        except BlockingIOError:
            self._unsent.append((data, [os.dup(fd) for fd in fds or []]))  # the caller may close its own
            self._loop.add_writer(self._socket, self._writable)
        except OSError:
            pass  # the reader sees the end of the connection, after what was still said

    def _writable(self) -> None:
        with contextlib.suppress(OSError):
            while self._unsent:
                control.send_fds(self._socket, *self._unsent[0])
                self._drop_first()
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _drop_first(self) -> None:
        _, fds = self._unsent.popleft()
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        if not self.closed:
            self._end()
        while self._unsent:
            self._drop_first()
        self._socket.close()


class Launcher:
    """Asks the launcher for supervisors and porters, over one connection that is made anew when it restarts."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._packets: Packets | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._numbers = itertools.count(1)

    async def launch(self, run: str) -> int:
        """The pid of the run's supervisor, whose control socket now listens."""
        return await self._ask("launch", run, [])

    async def porter(self, channel: int) -> int:
        """The pid of a new porter, which is told over that channel what to do."""
        return await self._ask("porter", f"porter {next(self._numbers)}", [channel])

    async def _ask(self, kind: str, run: str, fds: list[int]) -> int:
        if self._packets is None or self._packets.closed:
            try:
                self._packets = Packets(self._path)
            except OSError as error:
                raise LauncherGone(f"the launcher does not answer: {error.strerror}") from None
            self._reader = asyncio.create_task(self._read(self._packets))
        waiting = self._waiting[run] = asyncio.get_running_loop().create_future()
        try:
            self._packets.send(control.pack_first(kind, run=run), fds)
            return await asyncio.wait_for(waiting, LAUNCH_WITHIN)
        except TimeoutError:
            raise LauncherGone("the launcher did not answer in time") from None
        finally:
            self._waiting.pop(run, None)

    async def _read(self, packets: Packets) -> None:
        async for packet in packets:
            waiting = self._waiting.get(str(packet.get("run")))
            if waiting is None or waiting.done():
                log.warning("the launcher says %s", packet.get("text", packet["type"]))
            elif packet["type"] == "launched":
                waiting.set_result(packet["pid"])
            else:
                waiting.set_exception(Internal(str(packet.get("text"))))
        packets.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(LauncherGone("the launcher went away"))

    def close(self) -> None:
        if self._packets:
            self._packets.close()
        if self._reader:
            self._reader.cancel()
