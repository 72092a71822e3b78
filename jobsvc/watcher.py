"""Tells what keeps the loop for too long: JOBSVC_WATCH= milliseconds, for tests. asyncio's debug mode costs too much.

What counts is the time of the loop's own thread: on a busy machine everything takes longer by the clock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

VARIABLE = "JOBSVC_WATCH"
Told = Callable[[Any, float, float], None]


def watch(limit: float, told: Told) -> Callable[[], None]:
    """Call `told` with each callback that takes longer: it, its time by the clock and of the thread.

    Returns what ends it.
    """
    run: Callable[[asyncio.Handle], None] = asyncio.Handle._run  # noqa: SLF001

    def timed(handle: Any) -> None:
        callback = handle._callback  # noqa: SLF001  # the handle forgets it when it is cancelled
        begin, used = time.perf_counter(), time.thread_time()
        run(handle)
        if (took := time.perf_counter() - begin) > limit:
            told(callback, took, time.thread_time() - used)

    setattr(asyncio.Handle, "_run", timed)  # noqa: B010  # it is not to be assigned to, says the type checker
    return lambda: setattr(asyncio.Handle, "_run", run)


def name(callback: Any) -> str:
    """The name of a callback, or of the task that it is a step of."""
    of = getattr(callback, "__self__", None)
    if isinstance(of, asyncio.Task):
        return f"{of.get_name()} ({getattr(of.get_coro(), '__qualname__', '')})"
    return str(getattr(callback, "__qualname__", callback))


def begin() -> None:
    """Log slow callbacks if the environment asks for it."""
    if milliseconds := os.environ.get(VARIABLE):
        limit = int(milliseconds) / 1000

        def told(callback: Any, took: float, used: float) -> None:
            if used > limit:
                log.warning("slow callback %s: %.0f ms, %.0f by the clock", name(callback), used * 1000, took * 1000)

        watch(limit, told)
