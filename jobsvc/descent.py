"""How a run is brought down: the kill signal to everybody, and after the stop timeout SIGKILL."""

from __future__ import annotations

import signal

from jobsvc import loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from jobsvc.cgroup import Scope
    from jobsvc.process import MainProcess

AGAIN: Final = 0.5  # seconds between SIGKILLs where cgroup.kill is missing
GIVE_UP: Final = 10.0  # seconds after the first SIGKILL: what lives on hangs in the kernel
FIRST_LOOK: Final = 0.05
LAST_LOOK: Final = 1.0


class Descent:
    """One way down, begun at most once; `look` is called whenever there may be news.

    The kernel's notice that the scope is empty is what ends it; looking now and then as well costs
    little in a phase that is short.
    """

    def __init__(self, events: loop.Loop, scope: Scope | None, main: MainProcess, look: Callable[[], None]) -> None:
        self.events = events
        self.scope = scope
        self.main = main
        self.look = look
        self.begun = False
        self.killed_at: float | None = None

    def begin(self, number: int, grace: float, hang_up: bool) -> None:
        """Ask everybody to end, and see to it after that many seconds."""
        self.begun = True
        self._send(number)
        if number not in (signal.SIGKILL, signal.SIGCONT):
            self._send(signal.SIGCONT)  # a stopped process would not get it, as systemd knows
        if hang_up:
            self._send(signal.SIGHUP)  # a shell at its terminal ignores SIGTERM: SendSIGHUP= of systemd.kill(5)
        self.hasten(grace)
        self._look_again(FIRST_LOOK)

    def hasten(self, grace: float) -> None:
        """SIGKILL after that many seconds from now."""
        self.events.at("kill", loop.now() + grace, self.kill)

    def kill(self) -> None:
        """End everybody now."""
        self.begun = True
        if self.killed_at is None:
            self.killed_at = loop.now()
            self._look_again(FIRST_LOOK)
        if self.scope is not None:
            self.scope.kill()
        self.main.signal(signal.SIGKILL)
        self.events.at("kill", loop.now() + AGAIN, self.kill)

    def stuck(self) -> bool:
        """Whether SIGKILL has had its time."""
        return self.killed_at is not None and loop.now() > self.killed_at + GIVE_UP

    def stop(self) -> None:
        """It is down."""
        self.events.cancel("kill")
        self.events.cancel("look")

    def _send(self, number: int) -> None:
        if self.scope is not None:
            self.scope.signal(number)
        if self.scope is None or not self.scope.holds(self.main.pid):
            self.main.signal(number)

    def _look_again(self, pause: float) -> None:
        def look() -> None:
            self._look_again(min(pause * 2, LAST_LOOK))
            self.look()

        self.events.at("look", loop.now() + pause, look)
