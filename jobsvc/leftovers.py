"""Processes that outlive their run because they hang in the kernel, counted against whose job it was.

Nothing can end them, SIGKILL neither: they wait for a file system that does not answer. Their run has its
end and its slot is free; but each of them counts as a running job of the user's, and beyond a few no more
files are written for that user. Noted as files, for the next life of the service.

What tells one from a later process of the same number is the control group it is in. When it began cannot
be asked: /proc/PID/stat of a process that hangs in exec hangs as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jobsvc import cgroup, rundir
from jobsvc.errors import Quota

log = logging.getLogger(__name__)

MOST = 4  # of one user; with so many no more output files are opened
LOOK_EVERY = 5.0  # seconds, while there are any

Process = tuple[int, str]  # its number and its control group


def directory() -> Path:
    return rundir.RUNS.parent / "left"


class Leftovers:
    """`changed` is called with a user and how many there are, when that is another number."""

    def __init__(self, changed: Callable[[int, int], None]) -> None:
        self._changed = changed
        self._by_user: dict[int, set[Process]] = {}
        self._look_at: asyncio.TimerHandle | None = None

    def recall(self) -> None:
        """Those of an earlier life of the service."""
        directory().mkdir(mode=0o700, exist_ok=True)
        for path in directory().iterdir():
            try:
                uid, pid = map(int, path.name.split("-"))
                group = path.read_text(encoding="utf-8", errors="surrogateescape")
            except (ValueError, OSError):
                group = ""
            if not group:  # not ours, or cut short by a full disk
                log.warning("%s tells of no process", path)
                path.unlink(missing_ok=True)
                continue
            self._by_user.setdefault(uid, set()).add((pid, group))
        for uid, processes in self._by_user.items():
            self._changed(uid, len(processes))
        self._look()

    def note(self, uid: int, processes: Iterable[Any]) -> None:
        """A run of this user's has ended and left these, as its report has them."""
        for pid, group in processes:
            if not _lives(pid, group):
                continue
            log.warning("process %d of a job of uid %d hangs in the kernel", pid, uid)
            self._by_user.setdefault(uid, set()).add((pid, group))
            try:
                (directory() / f"{uid}-{pid}").write_text(group, encoding="utf-8", errors="surrogateescape")
            except OSError as error:  # no reason for its run not to have ended
                log.warning("process %d is not counted after a restart of the service: %s", pid, error)
            self._changed(uid, len(self._by_user[uid]))
        self._look()

    def check(self, uid: int) -> None:
        """Quota if no more files are to be written for this user. Root has no limit."""
        left = self._by_user.get(uid, ())
        if uid and len(left) >= MOST:
            pids = ", ".join(str(pid) for pid, _ in sorted(left)[:MOST])
            raise Quota(
                f"no output files for you now: {len(left)} processes of your ended jobs hang in the kernel"
                f" ({pids}), on a file system that does not answer; try again when they are gone"
            )

    def close(self) -> None:
        if self._look_at is not None:
            self._look_at.cancel()

    def _look(self) -> None:
        """Forget those that could end after all; look again later while there are others."""
        for uid, processes in list(self._by_user.items()):
            gone = {one for one in processes if not _lives(*one)}
            if not gone:
                continue
            for pid, _ in gone:
                (directory() / f"{uid}-{pid}").unlink(missing_ok=True)
            processes.difference_update(gone)
            if not processes:
                del self._by_user[uid]
            self._changed(uid, len(processes))
        self.close()
        self._look_at = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look) if self._by_user else None


def _lives(pid: int, group: str) -> bool:
    """Whether that process is still there."""
    found = cgroup.of_process(pid)
    return found is not None and cgroup.within(found, group.removesuffix(" (deleted)"))
