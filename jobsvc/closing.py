"""After the report: wait until journald has processed the output, within bounds.

Only then may the main process be reaped: journald looks it up in /proc to record whose it was.
"""

from __future__ import annotations

from jobsvc import loop, native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

SLOW: Final = 5.0  # seconds for a journald that is there
GONE: Final = 2.0  # and for one that is not; at shutdown it does not come back
FIRST_LOOK: Final = 0.1
LAST_LOOK: Final = 1.0


class Closing:
    """Calls `over` once: when all is processed, or when there is no point in waiting longer."""

    def __init__(self, events: loop.Loop, sender: native.Sender, over: Callable[[], None]) -> None:
        self.events = events
        self.sender = sender
        self.over = over
        self.done = False
        self.begun = loop.now()
        self.limit = self.begun + SLOW
        self.pause = FIRST_LOOK

    def check(self, _events: int = 0) -> None:
        """Look; journald taking something, or losing it, is a reason to."""
        if self.done:
            return
        present = loop.now()
        limit = self.limit
        if self.sender.gone_since is not None:
            limit = min(limit, max(self.sender.gone_since, self.begun) + GONE)
        if self.sender.processed() or present >= limit:
            self.done = True
            self.events.cancel("closing")
            self.over()
            return
        self.sender.watch_taking(self.check)
        self.events.at("closing", min(limit, present + self.pause), self.check)
        self.pause = min(self.pause * 2, LAST_LOOK)

    def hurry(self, limit: float) -> None:
        """Be over by then."""
        self.limit = min(self.limit, limit)
        self.check()
