"""OOM policy, guard and way down, with a scope that says what the kernel would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage import Stage

from jobsvc import loop
from jobsvc.record import Phase, Record
from jobsvc.request import Request
from jobsvc.verdict import Status
from jobsvc.warden import Warden


class Scope:
    """As much of a scope as a warden asks for."""

    events_fd = memory_fd = -1

    def __init__(self) -> None:
        self.inside: bool | None = True
        self.main_inside = True
        self.ooms = 0
        self.did: list[Any] = []

    def populated(self) -> bool | None:
        return self.inside

    def oom_kills(self) -> int:
        return self.ooms

    def oom_count(self) -> int:
        return self.ooms

    def memory_peak(self) -> int:
        return 4096

    def usage(self) -> dict[str, int]:
        return {}

    def holds(self, _pid: int) -> bool:
        return self.main_inside

    def signal(self, number: int) -> None:
        self.did.append(number)

    def kill(self) -> None:
        self.did.append("kill")


class Main:
    pid = 1

    def signal(self, number: int) -> None: ...

    def ended(self) -> Status | None:
        return None


def warden(tmp_path: Path, **facts: Any) -> tuple[Warden, Scope, Record]:
    request = Request(Stage.request(_Numbers(), "true", **facts))  # type: ignore[arg-type]
    record = Record(request, 1)
    scope = Scope()
    one = Warden(
        loop.Loop(),
        record,
        str(tmp_path),
        Main(),
        scope,
        lambda: scope.did.append("over"),  # type: ignore[arg-type]
        lambda on: None,
    )
    return one, scope, record


class _Numbers:
    numbers = iter(range(1, 99))


@pytest.mark.parametrize(
    ("policy", "did", "acted"),
    [("stop", [15, 18], True), ("kill", ["kill"], True), ("continue", [], False)],
)
def test_an_oom_kill_is_acted_on_once(tmp_path: Path, policy: str, did: list[Any], acted: bool) -> None:
    one, scope, record = warden(tmp_path, oom_policy=policy)
    one._memory_changed(0)
    assert scope.did == []
    scope.ooms = 1
    one._memory_changed(0)
    scope.ooms = 2
    one._memory_changed(0)
    assert scope.did == did
    assert record.facts.oom_killed
    assert record.facts.oom_acted == acted
    assert record.usage == {"memory_peak": 4096}
    if acted:
        assert json.loads((tmp_path / "intent").read_text())["intent"] == "oom"
        assert record.phase is Phase.STOPPING


def test_an_oom_kill_that_is_seen_after_the_end_is_counted_not_acted_on(tmp_path: Path) -> None:
    one, scope, record = warden(tmp_path, oom_policy="stop")
    record.facts.status = Status(None, 9)
    scope.ooms, scope.inside = 1, None
    one.main_ended()
    assert scope.did == ["over"]
    assert record.facts.oom_killed
    assert not record.facts.oom_acted


def test_a_descent_without_an_end_is_given_up(tmp_path: Path, monkeypatch: Any) -> None:
    one, scope, record = warden(tmp_path)
    one.stop("enough")
    record.facts.status = Status(None, 9)
    one.descent.kill()
    one.settle()
    assert "over" not in scope.did
    later = loop.now() + 60
    monkeypatch.setattr(loop, "now", lambda: later)
    one.settle()
    assert scope.did[-1] == "over"
    assert record.facts.stuck


def test_a_run_time_of_ages_does_not_overflow(tmp_path: Path) -> None:
    one, _, record = warden(tmp_path, runtime_max_usec=2**63)
    record.clock.begin(loop.now())
    one.set_deadline()
    one.events.turn(loop.now())


def test_a_stop_timeout_that_is_told_again_begins_no_new_one(tmp_path: Path) -> None:
    one, _, _ = warden(tmp_path, timeout_stop_usec=90_000_000)
    one.stop("enough")
    due = one.events.deadlines["kill"]
    one.set_stop_timeout(90_000_000)
    assert one.events.deadlines["kill"] == due
    one.stop("in a hurry", 0.5)
    due = one.events.deadlines["kill"]
    one.set_stop_timeout(90_000_000)
    assert one.events.deadlines["kill"] == due
    one.set_stop_timeout(None)
    assert one.events.deadlines["kill"][0] > due[0]


def test_it_wakes_up_to_look_only_while_nobody_does_so_for_it(tmp_path: Path) -> None:
    one, scope, record = warden(tmp_path)
    one.guard(False)
    assert one.events.deadlines == {}
    one.guard(True)
    assert list(one.events.deadlines) == ["inside"]
    one.guard(False)
    assert one.events.deadlines == {}
    assert not record.facts.left_scope
    scope.main_inside = False
    one.guard(True)
    assert record.facts.left_scope
    assert scope.did == ["kill"]
    assert "inside" not in one.events.deadlines
