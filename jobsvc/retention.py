"""Which finished jobs go: by which clock they grow old, and whose go first where there are too many.

The clock is the wall clock, followed so slowly that a jump of it removes nothing at once; the machine's uptime says
how much time has really passed. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from jobsvc.model import KEPT_RUNS, Job
from jobsvc.waiting import weight

PACE = 2  # so much faster than time we follow: also a machine that was off for a month has caught up after one


@dataclass(frozen=True, slots=True)
class Reckoning:
    """The time as believed (µs since the epoch), when that was (µs of uptime) and in which boot."""

    believed: int
    uptime: int
    boot_id: str

    def pack(self) -> str:
        return f"{self.believed} {self.uptime} {self.boot_id}"

    @classmethod
    def unpack(cls, text: str) -> Self:
        believed, uptime, boot_id = text.split()
        return cls(int(believed), int(uptime), boot_id)

    def advance(self, now: int, uptime: int, boot_id: str) -> Reckoning:
        """The same later, when the wall clock says `now`."""
        passed = max(0, uptime - self.uptime) if boot_id == self.boot_id else 0
        step = PACE * passed
        return Reckoning(min(max(now, self.believed - step), self.believed + step), uptime, boot_id)

    def before(self, keep_usec: int, now: int) -> int:
        """What ended before this has been kept for so long, by either clock."""
        return max(0, min(now, self.believed) - keep_usec)


class AtOnce:
    """Jobs to be removed in one transaction: about as many as take a hundredth of a second."""

    MANY = 100
    LARGE = 256 * 1024
    RUN = 256  # bytes of a job take as long as one run of it

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._size = 0

    def add(self, job: Job) -> None:
        self.jobs.append(job)
        self._size += weight(job) + self.RUN * min(job.run.number, KEPT_RUNS)

    @property
    def full(self) -> bool:
        return len(self.jobs) >= self.MANY or self._size >= self.LARGE


def shares(have: Mapping[int, int], excess: int) -> dict[int, int]:
    """How many of each owner's jobs go if so many have to: those of whoever has the most, so that what one user
    piles up pushes out nobody else's history."""

    def left(level: int) -> int:
        return sum(min(count, level) for count in have.values())

    total = sum(have.values())
    level = bisect_left(range(max(have.values(), default=0)), total - excess, key=left)  # the least that leaves enough
    spare = left(level) - (total - excess)
    gone = {}
    for owner, count in have.items():
        more = count >= level and spare > 0
        spare -= more
        gone[owner] = max(0, count - level) + more
    return {owner: count for owner, count in gone.items() if count}
