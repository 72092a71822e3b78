"""What time it is, and how long a run has run: monotonic time less the time it was paused."""

from __future__ import annotations

import time


def realtime_usec() -> int:
    """µs since the epoch."""
    return time.time_ns() // 1000


class RunClock:
    """Times are seconds of CLOCK_MONOTONIC, passed in; the limit is microseconds, None is none."""

    def __init__(self, limit_usec: int | None) -> None:
        self.limit_usec = limit_usec
        self.begun: float | None = None
        self.paused_at: float | None = None
        self.paused_for = 0.0

    def begin(self, at: float) -> None:
        self.begun = at

    def pause(self, at: float) -> None:
        """Asking twice changes nothing."""
        if self.paused_at is None:
            self.paused_at = at

    def resume(self, at: float) -> None:
        if self.paused_at is not None:
            if self.begun is not None:
                self.paused_for += at - max(self.paused_at, self.begun)
            self.paused_at = None

    def elapsed_usec(self, at: float) -> int | None:
        """None as long as nothing has begun."""
        if self.begun is None:
            return None
        until = at if self.paused_at is None else max(self.paused_at, self.begun)
        return round((until - self.begun - self.paused_for) * 1_000_000)

    def deadline(self) -> float | None:
        """When the limit will be reached if nothing is paused; None while it cannot be."""
        if self.limit_usec is None or self.begun is None or self.paused_at is not None:
            return None
        return self.begun + self.paused_for + self.limit_usec / 1_000_000
