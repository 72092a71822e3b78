"""Ctrl-C and SIGTERM as something to wait for, so that no byte is lost where they strike."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Interrupts:
    """Signals collected in a pipe while the `with` block lasts."""

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._signals:
            self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        """The signals that came since the last time, in order."""
        try:
            return [number for number in os.read(self._read, 64) if number in self._signals]
        except BlockingIOError:
            return []


def _noted(_signal: int, _frame: FrameType | None) -> None:
    """The wakeup descriptor has it already."""
