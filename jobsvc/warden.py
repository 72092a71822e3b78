"""Looks after a running scope: run time, memory, whether the job is in it, and its way down."""

from __future__ import annotations

import signal

from jobsvc import loop, report
from jobsvc.clock import realtime_usec
from jobsvc.descent import Descent
from jobsvc.freezer import Freezer
from jobsvc.record import Phase
from jobsvc.request import FOREVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from jobsvc.cgroup import Scope
    from jobsvc.process import MainProcess
    from jobsvc.record import Record

SAMPLE: Final = 1.0  # seconds
# Seconds between looks whether the main process is still in its scope: the kernel tells only when a
# scope is empty, not when one process has left it and another is there.
LOOK: Final = 5.0


class Warden:
    """Decides when the run must come down, and calls `over` when nothing of it lives any more."""

    def __init__(
        self,
        events: loop.Loop,
        record: Record,
        directory: str,
        main: MainProcess,
        scope: Scope | None,
        over: Callable[[], None],
        paused: Callable[[bool], None],
    ) -> None:
        self.events = events
        self.record = record
        self.request = record.request
        self.facts = record.facts
        self.directory = directory
        self.main = main
        self.scope = scope
        self.over = over
        self.descent = Descent(events, scope, main, self.settle)
        self.freezer = Freezer(events, record, scope, self._paused)
        self.tell_paused = paused

    def begin(self) -> None:
        """The barrier is open."""
        self.set_deadline()
        if self.scope is None:
            return
        self.scope.populated()  # read once: the kernel tells of changes since the last read
        self.events.watch(self.scope.events_fd, loop.CHANGED, self._scope_changed)
        if self.scope.memory_fd is not None:
            self.events.watch(self.scope.memory_fd, loop.CHANGED, self._memory_changed)
        if self.request.sample_memory:
            self._sample()

    def set_deadline(self) -> None:
        """The run time may be changed, and stands still while the job is paused."""
        deadline = self.record.clock.deadline()
        if deadline is None or self.facts.timeout or not self._going_on():
            self.events.cancel("runtime")
        else:
            self.events.at("runtime", deadline, self._timeout)

    def _going_on(self) -> bool:
        """Whether the job's work is not done yet, as ExitType= says."""
        return self.facts.status is None or self.request.exit_type == "cgroup"

    def _timeout(self) -> None:
        self.facts.timeout = True
        self._bring_down("timeout", "")

    def stop(self, reason: str, grace: float | None = None) -> None:
        """Somebody asked for the end, perhaps in a hurry."""
        if self.facts.stop is None:
            self.facts.stop = reason
            self._bring_down("stop", reason)
        if grace is not None:
            self.descent.hasten(grace)

    def _bring_down(self, intent: str, reason: str, *, at_once: bool = False) -> None:
        """Say it, then do it."""
        try:
            report.write_intent(self.directory, intent, reason, realtime_usec())
        except OSError:
            pass  # no room for a note is no reason not to act
        self._descend(at_once=at_once)

    def _descend(self, *, at_once: bool = False) -> None:
        self.record.phase = Phase.STOPPING
        self.events.cancel("runtime")
        if at_once:
            self.descent.kill()
        elif not self.descent.begun:
            grace = self.request.timeout_stop_usec / 1_000_000
            self.descent.begin(self.request.kill_signal, grace, self.request.terminal is not None)
        self.freezer.thaw()  # the signal is there already: it is the first thing they see

    def _paused(self, on: bool) -> None:
        self.set_deadline()
        self.tell_paused(on)

    def set_stop_timeout(self, usec: int | None) -> None:
        """Also for a way down that has begun: it is counted from now on. Hearing the same again changes nothing."""
        usec = FOREVER if usec is None else usec
        if usec == self.request.timeout_stop_usec:
            return
        self.request.timeout_stop_usec = usec
        if self.descent.begun and self.descent.killed_at is None:
            self.descent.hasten(self.request.timeout_stop_usec / 1_000_000)

    def main_ended(self) -> None:
        """facts.status says how."""
        if self.request.sample_memory:
            self.record.use(self.main.disk_usage())
        self.set_deadline()
        if self.scope is not None:
            self._look_at_memory()
        self.settle()

    def settle(self) -> None:
        """When the main process has ended, wait for the rest, or see to its end. What SIGKILL does not end is left."""
        stuck = self.descent.stuck()
        if self.facts.status is None and not stuck:
            return
        inside = self.facts.status is None or (self.scope is not None and self.scope.populated())
        self.facts.stuck = bool(inside) and stuck
        if not inside or self.facts.stuck:
            self.stand_down()
            self.over()
            return
        self.note_usage()  # it may be gone when we look again
        if not self.descent.begun and self.request.exit_type != "cgroup":
            self._descend()

    def note_usage(self) -> None:
        """What can be read now; the last time it could is what is reported."""
        if self.scope is not None:
            self.record.use(self.scope.usage())

    def stand_down(self) -> None:
        """Nothing more to look after."""
        self.descent.stop()
        self.events.cancel("runtime")
        self.events.cancel("sample")
        self.events.cancel("inside")
        self.events.cancel("freeze")
        self.note_usage()
        if self.scope is None:
            return
        self.events.forget(self.scope.events_fd)
        if self.scope.memory_fd is not None:
            self.events.forget(self.scope.memory_fd)

    def _scope_changed(self, _events: int) -> None:
        """Empty with the main process alive: it has left, and its limits with it."""
        assert self.scope is not None
        inside = self.scope.populated()
        if inside is None:
            # The cgroup is gone; its file would report that for ever.
            self.events.forget(self.scope.events_fd)
        if inside:
            self.freezer.look()
            return
        if self.facts.status is not None:
            self.settle()
        elif not self.scope.holds(self.main.pid) and self.main.ended() is None:
            self.facts.left_scope = True
            self.record.phase = Phase.STOPPING
            self.main.signal(signal.SIGKILL)

    def guard(self, on: bool) -> None:
        """Look now and again whether the job is in its scope; off while a peer does so for all runs at once."""
        self.events.cancel("inside")
        if on and self.look_inside():
            self.events.at("inside", loop.now() + LOOK, lambda: self.guard(True))

    def look_inside(self) -> bool:
        """Whoever leaves a child behind keeps the scope from being empty. False: there is no need to look again."""
        if self.scope is None or self.facts.status is not None:
            return False
        if self.scope.holds(self.main.pid) or self.main.ended() is not None:
            return True
        self.facts.left_scope = True
        self._descend(at_once=True)
        return False

    def _memory_changed(self, _events: int) -> None:
        assert self.scope is not None
        if self.scope.memory_fd is not None and self.scope.oom_count() is None:
            self.events.forget(self.scope.memory_fd)
        self._look_at_memory()

    def _look_at_memory(self) -> None:
        """Count OOM kills and act on the first as OOMPolicy= says."""
        assert self.scope is not None
        self._note_peak()
        if self.facts.oom_killed or self.scope.oom_kills() <= 0:
            return
        self.facts.oom_killed = True
        if self.request.oom_policy != "continue" and self._going_on():
            self.facts.oom_acted = True
            self._bring_down("oom", "", at_once=self.request.oom_policy == "kill")

    def _note_peak(self) -> None:
        assert self.scope is not None
        if (peak := self.scope.memory_peak()) is not None:
            self.record.use({"memory_peak": peak})

    def _sample(self) -> None:
        """Where nobody keeps peak and I/O when the cgroup is gone (systemd 252), keep the last ones seen."""
        self.note_usage()
        self.events.at("sample", loop.now() + SAMPLE, self._sample)
