"""What each owner has waiting: jobs that are queued are held in memory, and nobody may fill it alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jobsvc.config import Config
from jobsvc.errors import Quota
from jobsvc.model import Job, Queued

WORD = 49  # bytes that Python needs for a text besides its characters, and more than for anything else


def weight(job: Job) -> int:
    """About how many bytes the spec of a job takes in memory."""
    return _size(job.spec)


def _size(value: Any) -> int:
    match value:
        case str() | bytes():
            return len(value) + WORD
        case dict():
            return sum(_size(key) + _size(one) for key, one in value.items())
        case list() | tuple():
            return sum(map(_size, value))
        case _:
            return WORD


class Waiting:
    """How many jobs of each owner wait and what they weigh; `see` is told of every change."""

    def __init__(self) -> None:
        self._weights: dict[str, int] = {}
        self._jobs: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()

    def see(self, job: Job) -> None:
        """Count it if it waits, and no more if it does not."""
        owner = job.owner.uid
        if not isinstance(job.run.phase, Queued):
            if (size := self._weights.pop(job.id, None)) is not None:
                self._jobs[owner] -= 1
                self._bytes[owner] -= size
        elif job.id not in self._weights:
            self._weights[job.id] = size = weight(job)
            self._jobs[owner] += 1
            self._bytes[owner] += size

    def room(self, fresh: list[Job], config: Config) -> None:
        """Quota, if these jobs of one owner are more than may wait. Root is not counted."""
        owner = fresh[0].owner.uid
        if not owner:
            return
        if self._jobs[owner] + len(fresh) > config.max_queued_per_user:
            limit = config.max_queued_per_user
            raise Quota(f"you have {self._jobs[owner]} jobs queued; MaxQueuedPerUser={limit} is reached")
        limit = config.max_queued_bytes_per_user
        if self._bytes[owner] + sum(map(weight, fresh)) > limit:
            have = f"your queued jobs take {self._bytes[owner]} bytes"
            raise Quota(f"{have}, with these it would be more than MaxQueuedBytesPerUser={limit}")
