"""What would take the loop too long, in threads: of each user one thing at a time, in turns by the time they take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jobsvc.share import Shares

T = TypeVar("T")


class Aside:
    def __init__(self, name: str, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._turns = Shares(threads)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def do(self, uid: int, work: Callable[[], T], unwanted: Callable[[], object] = lambda: None) -> T:
        """Do it in this user's turn, which lasts until it is done; `unwanted` is called if nobody waits for it."""
        await self._turns.take(uid)
        try:
            done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except BaseException:
            self._turns.give_back(uid)
            raise

        def over(done: asyncio.Future[T]) -> None:
            if not done.cancelled():
                done.exception()  # whoever has left does not want to know
            self._turns.give_back(uid)

        done.add_done_callback(over)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            unwanted()
            raise
