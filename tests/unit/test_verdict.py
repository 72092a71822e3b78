"""Why a run ended: the first that holds."""

from __future__ import annotations

import signal

import pytest

from jobsvc.verdict import Facts, StartError, Status, decide

EXITED = Status(3, None)
KILLED = Status(None, signal.SIGKILL)
TERMED = Status(None, signal.SIGTERM)
FINE = Status(0, None)


def facts(status: Status | None, **known: object) -> Facts:
    found = Facts()
    found.status = status
    for name, value in known.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("known", "result", "reason"),
    [
        (facts(FINE), "success", ""),
        (facts(EXITED), "exit-code", "exited with status 3"),
        (facts(TERMED), "signal", "killed by SIGTERM"),
        (facts(Status(None, 35)), "signal", "killed by signal 35"),
        (facts(Status(None, 11, True)), "core-dump", "killed by SIGSEGV (core dumped)"),
        (facts(TERMED, timeout=True), "timeout", "ran longer than allowed; killed by SIGTERM"),
        (facts(FINE, timeout=True), "timeout", "ran longer than allowed; exited with status 0"),
        (facts(KILLED, oom_killed=True), "oom-kill", "out of memory; killed by SIGKILL"),
        (facts(EXITED, oom_killed=True), "exit-code", "exited with status 3"),
        (facts(FINE, oom_killed=True, oom_acted=True), "oom-kill", "out of memory; exited with status 0"),
        (facts(KILLED, left_scope=True), "signal", "left its scope"),
        (facts(FINE, stop="enough"), "stopped", "enough"),
        (facts(KILLED, stop="", timeout=True, oom_killed=True), "stopped", "stopped"),
        (facts(KILLED, timeout=True, oom_acted=True), "timeout", "ran longer than allowed; killed by SIGKILL"),
        (facts(Status(127, None), failure=StartError("exec", "no such program", 2)), "start-failed", "no such program"),
        (facts(None, failure=StartError("pam", "account expired")), "start-failed", "account expired"),
        (facts(KILLED, stop="x", stuck=True), "stopped", "x; some of its processes hang in the kernel and outlive it"),
    ],
)
def test_decide(known: Facts, result: str, reason: str) -> None:
    assert decide(known) == (result, reason)
