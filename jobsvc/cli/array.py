"""--array: one job a task, told apart by JOBSVC_ARRAY_INDEX."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from jobsvc.cli.options import Spec

MOST_TASKS = 1000  # what one StartMany takes
MOST_INDEX = 2**32 - 1
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10})(?::([0-9]{1,10}))?)?", re.ASCII)
_MARKS = frozenset("aj")  # what makes the name of an output file each task's own


class Array(NamedTuple):
    indexes: tuple[int, ...]
    at_once: int | None  # how many tasks may run at one time


def parse_array(text: str) -> Array:
    """Tasks of "1-100%4", "1,3,7-9" or "0-20:5", as sbatch spells them."""
    ranges, percent, most = text.partition("%")
    if percent and (not most.isdecimal() or not 1 <= int(most) <= MOST_INDEX):
        raise ValueError(f"'{text}': after % comes how many tasks may run at once, 1 or more")
    indexes: dict[int, None] = {}
    for part in ranges.split(","):
        found = _RANGE.fullmatch(part.strip())
        if not found:
            raise ValueError(f"'{text}' is not an array; write 1-100, 1-100%4, 1,3,5 or 0-20:5")
        first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
        if last < first or last > MOST_INDEX or step < 1:
            raise ValueError(f"'{part.strip()}' is not a range; write FIRST-LAST or FIRST-LAST:STEP")
        if len(indexes) + (last - first) // step >= MOST_TASKS:
            raise ValueError(f"'{text}' is too many tasks; {MOST_TASKS} is the most of one array")
        indexes |= dict.fromkeys(range(first, last + 1, step))
    return Array(tuple(indexes), int(most) if percent else None)


def tasks(made: Spec, array: Array) -> list[Spec]:
    """The jobs of an array.

    The same RequestId makes the same array: a repeated submission is told apart by nothing.
    """
    import hashlib

    shared = dict(made)
    request = f"{os.getuid()} {made['RequestId'][1]}"
    shared["ArrayId"] = ("s", hashlib.sha256(request.encode(errors="surrogateescape")).hexdigest()[:16])
    if array.at_once:
        shared["ArrayMaxRunning"] = ("u", array.at_once)
    return [_task(shared, index) for index in array.indexes]


def _task(shared: Spec, index: int) -> Spec:
    task = {**shared, "ArrayIndex": ("u", index)}
    for key in ("RequestId", "Unique"):  # each of them is one job's
        if key in task:
            task[key] = ("s", f"{task[key][1]}-{index}")
    return task


def overwritten(made: Spec) -> str | None:
    """A file that every task would write anew."""
    from jobsvc.kinds import MARK

    for key in ("StandardOutput", "StandardError"):
        path = str(made[key][1]) if key in made else ""
        if path.startswith("truncate:") and not _MARKS.intersection(MARK.findall(path)):
            return path.partition(":")[2]
    return None
