"""The open journal readers: used by a few threads, each reader by one of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from jobsvc.journal import Entries, Reader, open_namespace

T = TypeVar("T")

_THREADS: Final = 4
_IDLE: Final = 10.0  # seconds after which unused readers are closed: they map files, also deleted ones


class Shelf:
    """Asks readers questions without blocking the loop. Close it."""

    def __init__(self, opener: Callable[[], Entries] = open_namespace) -> None:
        self._opener = opener
        self._free: list[Reader] = []
        self._threads = ThreadPoolExecutor(_THREADS, "journal")
        self._catching_up = asyncio.Semaphore(_THREADS - 1)  # one thread is always there for what is live
        self._of_user: dict[int, asyncio.Semaphore] = {}
        self._asked = 0
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, question: Callable[[Reader], T]) -> T:
        """The answer to `question`, from a reader in a thread. OSError: the journal is unreadable."""
        loop = asyncio.get_running_loop()
        self._asked += 1
        try:
            return await loop.run_in_executor(self._threads, self._ask, question)
        finally:
            self._asked -= 1
            if self._idle:
                self._idle.cancel()
            self._idle = loop.call_later(_IDLE, self._tidy)

    async def catch_up(self, uid: int, question: Callable[[Reader], T]) -> T:
        """The same for those who are behind: one question of a user at a time, and never in every thread."""
        async with self._of_user.setdefault(uid, asyncio.Semaphore()), self._catching_up:
            return await self.ask(question)

    def close(self) -> None:
        if self._idle:
            self._idle.cancel()
        self._threads.shutdown(cancel_futures=True)
        self._tidy()

    def _ask(self, question: Callable[[Reader], T]) -> T:
        try:
            return self._try(question, fresh=False)
        except OSError:  # a file went away under it, perhaps: once more with everything opened anew
            return self._try(question, fresh=True)

    def _try(self, question: Callable[[Reader], T], fresh: bool) -> T:
        reader = self._take(fresh)
        done = False
        try:
            answer = question(reader)
            done = reader.reusable
            return answer
        finally:
            if done:
                self._free.append(reader)
            else:
                reader.close()

    def _take(self, fresh: bool) -> Reader:
        if not fresh:
            try:
                return self._free.pop()
            except IndexError:
                pass
        return Reader.open(self._opener)

    def _tidy(self) -> None:
        while self._free:
            self._free.pop().close()
