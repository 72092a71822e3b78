"""How busy the machine is: StartWhenLoadBelow= and StartWhenMemoryAvailable=.

A load average lags a minute behind, so that all who wait would find the machine idle at once. Therefore
the tasks that can run right now count as well, and at most one job begins per look, of all queues for which it counts.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from jobsvc import quantity
from jobsvc.config import Config

LOOK_EVERY = 2.0  # seconds, while something waits for it
STALLED = 10.0  # percent of the last ten seconds in which some task waited for memory (PSI)
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Load:
    """One look. `stalled` is None where the kernel does not tell."""

    average: float
    available: int  # bytes
    stalled: float | None


def look() -> Load:
    import psutil  # 40 ms that only those pay for who configured it

    runnable = _runnable()
    average = max(os.getloadavg()[0], float(runnable))
    return Load(average, psutil.virtual_memory().available, _stalled())


def watched(config: Config) -> frozenset[str]:
    """The queues for which it counts how busy the machine is."""
    return frozenset(name for name in config.queues if bounds(name, config) != (math.inf, 0))


def bounds(queue: str, config: Config) -> tuple[float, int]:
    """The load below which, and the bytes of memory with which, jobs of a queue begin."""
    own = config.queues[queue]
    most, least = own.start_when_load_below, own.start_when_memory_available
    return (
        config.start_when_load_below if most is None else most,
        config.start_when_memory_available if least is None else least,
    )


def hindrance(load: Load, most: float, least: int) -> str | None:
    """Why nothing is to begin on a machine as busy as this."""
    if load.average >= most:
        return f"the load is {load.average:.2f}; StartWhenLoadBelow={most:g}"
    if not least:
        return None
    if load.available < least:
        have = quantity.format_size(load.available)
        return f"{have} of memory are available; StartWhenMemoryAvailable={quantity.format_size(least)}"
    if load.stalled is not None and load.stalled >= STALLED:
        return f"memory is short: tasks waited for it {load.stalled:.0f}% of the last 10 s (StartWhenMemoryAvailable=)"
    return None


def _runnable() -> int:
    """Tasks that run or could, without ourselves (proc_loadavg(5))."""
    try:
        return int((PROC / "loadavg").read_text().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return 0


def _stalled() -> float | None:
    """The kernel's Documentation/accounting/psi.rst: `some avg10=1.23 …`."""
    try:
        some = (PROC / "pressure/memory").read_text().split()
        return float(some[1].removeprefix("avg10="))
    except (OSError, ValueError, IndexError):
        return None
