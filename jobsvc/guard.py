"""Keeps what goes wrong in one task from ending all: in a TaskGroup one exception cancels everybody's tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

PAUSE = 5.0  # seconds before a loop that ended goes on
Examine = Callable[[BaseException], object]  # whether the service can go on at all


async def guarded(work: Callable[[], Awaitable[object]], what: str, examine: Examine) -> None:
    """See one call or one run through; its exception goes to the journal.

    A function: of a task that is cancelled before it has begun, nothing has.
    """
    try:
        await work()
    except Exception as error:
        log.exception("%s", what)
        examine(error)


async def for_ever(loop: Callable[[], Awaitable[object]], what: str, examine: Examine) -> None:
    """Run a long-lived loop, again after a pause if it ends by an exception. A loop that returns has no more to do."""
    while True:
        try:
            await loop()
        except Exception as error:
            log.exception("%s, which goes on in %.0f s", what, PAUSE)
            examine(error)
            await asyncio.sleep(PAUSE)
        else:
            return
