"""What those who follow a run's output see of it, from the queue to the last byte in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from jobsvc.formats import End
from jobsvc.journal import Source
from jobsvc.model import Finished, Job, Result


class Live:
    """One run as it is now. `changed` returns when any of it has become different."""

    def __init__(self, job: Job, closed: bool = False) -> None:
        self.job = job
        self.stdout = job.run.stdout_bytes or 0
        self.stderr = job.run.stderr_bytes or 0
        self.closed = closed  # the journal has all output there will be
        self.watchers = 0
        self.on_watch: Callable[[bool], None] = lambda on: None
        self._changed = asyncio.Event()

    def source(self) -> Source:
        run = self.job.run
        written = None
        if isinstance(run.phase, Finished) and run.phase.result is not Result.LOST:  # else the last count is not all
            written = run.stdout_bytes or 0, run.stderr_bytes or 0
        return Source(self.job.id, run.number, self.job.user.uid, run.main_pid, run.boot_id, written)

    def offsets(self) -> tuple[int, int]:
        return self.stdout, self.stderr

    def ended(self) -> bool:
        return self.closed

    def end(self) -> End:
        run = self.job.run
        end = run.phase if isinstance(run.phase, Finished) else None
        return End(
            run=run.number,
            state=str(run.state),
            result=str(end.result) if end else None,
            exit_code=end.exit_code if end else None,
            signal=end.signal if end else None,
            stdout_bytes=run.stdout_bytes if end else self.stdout,
            stderr_bytes=run.stderr_bytes if end else self.stderr,
            cut=tuple((s, a, b) for s, a, b, why in run.missing if why == "cut"),
            undelivered=tuple((s, a, b) for s, a, b, why in run.missing if why == "lost"),
            finished_usec=end.at if end else None,
        )

    async def changed(self) -> None:
        await self._changed.wait()

    def watch(self, on: bool) -> None:
        """Ask the supervisor to tell of every byte while anybody follows."""
        self.watchers += 1 if on else -1
        if self.watchers == (1 if on else 0):
            self.on_watch(on)

    def count(self, stdout: int, stderr: int) -> None:
        """So many bytes have been handed to the journal."""
        self.stdout, self.stderr = max(self.stdout, stdout), max(self.stderr, stderr)

    def notify(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()
