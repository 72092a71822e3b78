"""Looks now and again at everything that runs, so that no supervisor has to wake up for its own job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

EVERY = 5.0  # seconds
AT_ONCE = 50  # of 25 us each; then others have their turn


class Runs(Protocol):
    def look_inside(self) -> None: ...


class Rounds:
    """Whether each job is in its scope. While nothing runs, nothing wakes up."""

    def __init__(self, runners: Mapping[str, Runs]) -> None:
        self._runners = runners
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """Something runs."""
        self._begun.set()

    async def keep(self) -> None:
        """For ever."""
        while True:
            await self._begun.wait()
            await asyncio.sleep(EVERY)
            for count, runner in enumerate(list(self._runners.values()), 1):
                runner.look_inside()
                if count % AT_ONCE == 0:
                    await asyncio.sleep(0)
            if not self._runners:
                self._begun.clear()
