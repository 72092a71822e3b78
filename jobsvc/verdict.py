"""Why a run ended: facts in, result out."""

from __future__ import annotations

import os
import signal


class StartError(Exception):
    """The job cannot be started: at which step, what a person should know, and errno if any."""

    def __init__(self, step: str, reason: str, number: int | None = None) -> None:
        super().__init__(reason)
        self.step = step
        self.reason = reason
        self.number = number


class Status:
    """How the main process really ended: by exiting or by a signal, with or without a core dump."""

    __slots__ = ("core", "exit_code", "signal")

    def __init__(self, exit_code: int | None = None, signal: int | None = None, core: bool = False) -> None:
        self.exit_code = exit_code
        self.signal = signal
        self.core = core

    @classmethod
    def of(cls, ended: os.waitid_result) -> Status:
        if ended.si_code == os.CLD_EXITED:
            return cls(ended.si_status, None)
        return cls(None, ended.si_status, ended.si_code == os.CLD_DUMPED)


class Facts:
    """What the supervisor knows about the end; all unknown at first."""

    def __init__(self) -> None:
        self.failure: StartError | None = None
        self.status: Status | None = None
        self.stop: str | None = None  # why it was asked to stop; "" if no reason was given
        self.timeout = False
        self.oom_killed = False  # oom_kill of the scope rose
        self.oom_acted = False  # and OOMPolicy= made us end the rest
        self.left_scope = False
        self.shutdown = False  # the machine was going down when it ended
        self.stuck = False  # processes of the scope survived SIGKILL, in the kernel


def decide(facts: Facts) -> tuple[str, str]:
    """The result, first that holds, and a text for people ("" for success)."""
    result, reason = _decide(facts)
    if facts.stuck:
        reason = (reason or "ended") + "; some of its processes hang in the kernel and outlive it"
    return result, reason


def _decide(facts: Facts) -> tuple[str, str]:
    status = facts.status or Status()
    if facts.stop is not None:
        return "stopped", facts.stop or "stopped"
    if facts.failure is not None:
        return "start-failed", facts.failure.reason
    if facts.timeout:
        return "timeout", f"ran longer than allowed; {_ending(status)}"
    if facts.oom_acted or (facts.oom_killed and status.signal == signal.SIGKILL):
        return "oom-kill", f"out of memory; {_ending(status)}"
    if facts.left_scope:
        return "signal", "left its scope"
    if facts.shutdown:
        return "stopped", "the machine was shut down"
    if status.signal is not None:
        return "core-dump" if status.core else "signal", _ending(status)
    if status.exit_code is None:
        return "lost", _ending(status)
    if status.exit_code:
        return "exit-code", _ending(status)
    return "success", ""


def _ending(status: Status) -> str:
    if status.signal is not None:
        return f"killed by {signal_name(status.signal)}" + (" (core dumped)" * status.core)
    if status.exit_code is None:
        return "its main process does not end"
    return f"exited with status {status.exit_code}"


def signal_name(number: int) -> str:
    """SIGTERM, or "signal 35" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
