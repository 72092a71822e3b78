"""Pausing a run: the cgroup freezer, and the run's clock with it.

The supervisor writes cgroup.freeze itself. PID 1's FreezeUnit would have two parties know half of it
each, and systemd 257 refuses to stop a unit that it has frozen.
"""

from __future__ import annotations

from jobsvc import loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from jobsvc.cgroup import Scope
    from jobsvc.record import Record

PATIENCE: Final = 5.0  # seconds for all processes to come to a halt; one that waits in the kernel cannot
HANGS: Final = "some of its processes hang in the kernel and cannot be paused"


class Freezer:
    """`told` is called when the run has been paused (True), or goes on (False)."""

    def __init__(self, events: loop.Loop, record: Record, scope: Scope | None, told: Callable[[bool], None]) -> None:
        self.events = events
        self.record = record
        self.scope = scope
        self.told = told
        self.wanted = False
        self.waiting: list[Callable[[str], None]] = []

    def pause(self, answer: Callable[[str], None]) -> None:
        """Halt every process; the answer, "" or why it could not be done, comes when all have."""
        if self.record.paused:
            answer("")
            return
        self.waiting.append(answer)
        if self.wanted or not self._write(True):
            return
        self.wanted = True
        self.record.clock.pause(loop.now())
        self.events.at("freeze", loop.now() + PATIENCE, self._give_up)
        self.look()

    def thaw(self, answer: Callable[[str], None] | None = None) -> None:
        """Let them go on. Harmless if they do."""
        if self.wanted and self._write(False):
            self._goes_on("it was resumed")
        if answer is not None:
            answer("")

    def look(self) -> None:
        """cgroup.events has changed; somebody else may thaw it, too (systemctl thaw of a slice above it)."""
        if not self.wanted or self.scope is None:
            return
        frozen = self.scope.frozen()
        if frozen and not self.record.paused:
            self.events.cancel("freeze")
            self.record.paused = True
            self.told(True)
            self._answer("")
        elif frozen is False and self.record.paused:
            self._goes_on("it was resumed")

    def _write(self, on: bool) -> bool:
        try:
            if self.scope is None:
                raise FileNotFoundError
            self.scope.freeze(on)
        except OSError as error:
            self._answer(f"its cgroup cannot be {'frozen' if on else 'thawed'}: {error.strerror or 'it has none'}")
            return False
        return True

    def _give_up(self) -> None:
        if self._write(False):
            self._goes_on(HANGS)

    def _goes_on(self, why: str) -> None:
        self.record.paused = self.wanted = False
        self.events.cancel("freeze")
        self.record.clock.resume(loop.now())
        self._answer(why)
        self.told(False)

    def _answer(self, text: str) -> None:
        waiting, self.waiting = self.waiting, []
        for answer in waiting:
            answer(text)
