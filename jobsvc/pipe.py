"""The write end of a pipe somebody else reads, or not, as they please."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self


class Pipe:
    """Non-blocking writes to a descriptor it owns from now on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._hung_up = asyncio.Event()
        os.set_blocking(fd, False)
        # A write end never gets readable: what is reported is EPOLLERR, nobody reads any more.
        self._loop.add_reader(fd, self._hang_up)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.remove_reader(self._fd)
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

    def _hang_up(self) -> None:
        self._loop.remove_reader(self._fd)
        self._hung_up.set()
