"""What callers can bring about as often as they like is said so often, and no oftener, in the service's journal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

# Where others decide how much happens. What happens to jobs and to the machine is always said.
DOORS: Final = ("jobsvc.service", "jobsvc.methods.", "jobsvc.polkit", "jobsvc.bus", "jobsvc.subscribers")
MOST: Final = 20
WITHIN: Final = 60.0  # seconds


class Repeats(logging.Filter):
    """Passes the first lines that one place in the program has to say within a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(DOORS):
            return True
        present, place = self._clock(), (record.name, record.lineno)
        since, count = self._said.get(place, (present, 0))
        if present - since >= WITHIN:
            since, count = present, 0
        self._said[place] = since, count + 1
        if count + 1 == MOST:
            record.msg = f"{record.msg} (more of this is left out for a minute)"
        return count < MOST
