"""How long to wait for output that was handed to the journal and is not in it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from jobsvc.feed import Feed

_PAUSE: Final = 0.25  # seconds between looks
_STALLED: Final = 10.0  # seconds without a new entry from anybody: the journal is taking nothing in
_LONGEST: Final = 120.0  # seconds after the end of the run, or of the wait


class Patience:
    """Asked after each look that found nothing. The last entry of a run says that all others are in.

    Until it is there the journal is behind with its work, or has lost that one as well; the first
    as long as it takes in entries of whomever.
    """

    def __init__(self, feed: Feed) -> None:
        self.complete = False  # what is not there now never will be
        self._feed = feed
        self._begun = self._moved = asyncio.get_running_loop().time()
        self._newest: str | None = None

    async def pause(self) -> float | None:
        """Seconds until the next look; None: it is no use."""
        finished = self._feed.progress.end().finished_usec
        over = finished is not None and finished / 1e6 + _LONGEST < time.time()
        if self.complete or over:
            self.complete = True
            return None
        self.complete, newest = await self._feed.taken_in()
        if self.complete:
            return 0.0  # a last look, for what came before that entry
        now = asyncio.get_running_loop().time()
        if newest != self._newest:
            self._newest, self._moved = newest, now
        if now - self._moved > _STALLED or now - self._begun > _LONGEST:
            return None
        return _PAUSE
