"""What is known of one run: gathered as it happens, shown to peers, and in the end the report."""

from __future__ import annotations

import enum
import os

from jobsvc import control, verdict
from jobsvc.clock import RunClock, realtime_usec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from jobsvc.capture import Capture
    from jobsvc.request import Request


# What this release's supervisors can do beyond those of 0.1.0, which said nothing about it.
ABLE: Final = ["ask", "begun"]


class Phase(enum.StrEnum):
    """Where a run is. PREPARING and HELD end without a trace if nobody says go."""

    PREPARING = "preparing"
    HELD = "held"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"
    CLOSED = "closed"


class Record:
    """The facts. Unknown is None or absent, never 0."""

    def __init__(self, request: Request, main_pid: int) -> None:
        self.request = request
        self.main_pid = main_pid
        self.phase = Phase.PREPARING
        self.facts = verdict.Facts()
        self.clock = RunClock(request.runtime_max_usec)
        self.begun = False
        self.paused = False
        self.io_devices: dict[str, str] = {}
        self.started_usec: int | None = None
        self.capture: Capture | None = None
        self.usage: dict[str, int] = {}
        self.rusage: dict[str, int] = {}
        self.report: dict[str, Any] | None = None
        self.undelivered: list[list[str | int]] = []
        self.ended: tuple[float, int] | None = None  # when, by the monotonic clock and as µs since the epoch

    @property
    def over(self) -> bool:
        """Whether it has ended; the report may still have to wait for files."""
        return self.ended is not None

    def hello(self) -> bytes:
        """Everything a peer must know that has just come."""
        stdout, stderr = self.sent()
        return control.pack_first(
            "hello",
            supervisor_pid=os.getpid(),
            phase=self.phase,
            can=ABLE,
            paused=self.paused,
            main_pid=self.main_pid,
            started_usec=self.started_usec,
            stdout=stdout,
            stderr=stderr,
            journal_bytes=self.journal_bytes,
            io_devices=self.io_devices,
            report=self.report,
            undelivered=self.undelivered,
        )

    def sent(self) -> tuple[int, int]:
        """How far journald has been handed each stream."""
        if self.capture is None or self.capture.streams is None:
            return 0, 0
        stdout, stderr = self.capture.streams
        return stdout.sent, stderr.sent

    @property
    def journal_bytes(self) -> int:
        """How much of the journal its output takes."""
        pump = None if self.capture is None else self.capture.pump
        return 0 if pump is None else pump.taken

    def use(self, usage: dict[str, int]) -> None:
        """More figures. All of them only ever rise: of two samples the higher knew more."""
        for name, value in usage.items():
            self.usage[name] = max(value, self.usage.get(name, 0))

    def note_end(self, monotonic: float) -> None:
        self.ended = monotonic, realtime_usec()

    def end(self, left: list[list[int | str]]) -> dict[str, Any]:
        """Decide, and write the report. `left` are processes that nothing can end: number and control group."""
        facts, request = self.facts, self.request
        assert self.ended is not None
        monotonic, usec = self.ended
        status = facts.status or verdict.Status()
        result, reason = verdict.decide(facts)
        notes: list[str] = []
        cut: list[list[str | int]] = []
        read = (0, 0)
        if self.capture is not None and (pump := self.capture.pump) is not None:
            stdout, stderr = pump.streams
            read, cut = (stdout.read, stderr.read), pump.ranges()
            notes = pump.notes()
            if self.capture.hangs:
                notes.append("its output could not be read to the end: a pipe or terminal of its hangs in the kernel")
        self.report = {
            "boot_id": request.boot_id,
            "id": request.id,
            "run": request.run,
            "result": result,
            "exit_code": status.exit_code,
            "signal": status.signal,
            "reason": reason,
            "begun": self.begun,
            "main_pid": self.main_pid,
            "started_usec": self.started_usec,
            "finished_usec": max(usec, self.started_usec or 0),
            "runtime_usec": self.clock.elapsed_usec(monotonic),
            "stdout_bytes": read[0],
            "stderr_bytes": read[1],
            "journal_bytes": self.journal_bytes,
            "cut": cut,
            "undelivered": self.undelivered,
            "usage": self.usage,
            "rusage": self.rusage,
            "step": facts.failure.step if facts.failure else None,
            "errno": facts.failure.number if facts.failure else None,
            "notes": notes,
            "left": left,
        }
        return self.report
