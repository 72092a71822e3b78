"""When what was noted is committed: together with what the next moments bring; and when it is safe from a power cut."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable

from jobsvc.store import NotRecorded, Store

log = logging.getLogger(__name__)

WITHIN = 0.01  # seconds
AGAIN = 2.0
SYNC_WITHIN = 0.1


class Commits:
    """Commits for the manager. `refused` hears for how many seconds nothing new should begin, as it cannot be noted."""

    def __init__(self, store: Store, refused: Callable[[float], None]) -> None:
        self._store = store
        self._refused = refused
        self._flush: asyncio.TimerHandle | None = None
        self._then: list[Callable[[], None]] = []
        self._syncing: asyncio.TimerHandle | None = None
        self._syncs: set[asyncio.Task[None]] = set()

    def soon(self) -> None:
        """A crash before that finds files that say the same."""
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(WITHIN, self.flush)

    def then(self, action: Callable[[], None]) -> None:
        """Do this once everything noted so far is committed."""
        self._then.append(action)
        self.soon()

    def flush(self) -> None:
        """Commit what was noted, then let go of what it replaces (reports)."""
        if self._flush:
            self._flush.cancel()
            self._flush = None
        try:
            self._store.flush()
        except sqlite3.Error as error:  # it stays noted, the reports stay where they are
            log.error("nothing can be recorded in jobs.db: %s", error)
            self._store.examine(error)
            self._refused(2 * AGAIN)
            self._flush = asyncio.get_running_loop().call_later(AGAIN, self.flush)
            return
        if self._syncing is None:
            self._syncing = asyncio.get_running_loop().call_later(SYNC_WITHIN, self._sync_now)
        done, self._then = self._then, []
        for action in done:
            try:
                action()
            except OSError as error:
                log.error("a run's files stay: %s", error)
            except Exception:  # the others have nothing to do with it
                log.exception("what follows a commit")

    def _sync_now(self) -> None:
        """Also what nobody waits for, as the end of a run: the kernel would take half a minute."""
        self._syncing = None

        async def sync() -> None:
            with contextlib.suppress(NotRecorded):  # the next flush tries again, and says so
                await self._store.sync()

        task = asyncio.create_task(sync(), name="sync")
        self._syncs.add(task)  # a slow disk may have several
        task.add_done_callback(self._syncs.discard)

    async def close(self) -> None:
        """Commit what is left; the store syncs when it is closed."""
        for task in self._syncs:
            task.cancel()
        await asyncio.gather(*self._syncs, return_exceptions=True)
        self.flush()
        if self._syncing:
            self._syncing.cancel()
