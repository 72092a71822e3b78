"""What is asked of PID 1, and what is never left to it: a reference to a scope that did not come about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from jobsvc import systemd
from jobsvc.bus import BusError
from jobsvc.systemd import GONE, MANAGER, ScopeError, ShuttingDownError, Systemd

UNIT = "jobsvc-0000000000000000-1.scope"
JOB = "/org/freedesktop/systemd1/job/7"
Answer = Callable[[], None]


class Bus:
    """Answers StartTransientUnit or StopUnit in turn: with an error, or with a job of which the result is then told."""

    def __init__(self, *answers: str | BusError) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.in_the_way: list[Exception] = []
        self.told: list[tuple[str, Any]] = []
        self.on_signal: Callable[[Any], None]

    async def ask(self, _destination: str, _path: str, member: str, _signature: str, body: Any, **_: Any) -> list[Any]:
        name = member.removeprefix(f"{MANAGER}.")
        self.asked.append(name)
        if name in ("UnrefUnit", "RefUnit"):
            return self.refer(name, body)
        assert name in ("StartTransientUnit", "StopUnit")
        answer = self.answers.pop(0)
        if isinstance(answer, BusError):
            raise answer
        asyncio.get_running_loop().call_soon(self.on_signal, Signal(answer))
        return [JOB]

    def refer(self, name: str, body: tuple[Any, ...]) -> list[Any]:
        """A reference taken or given back, after what is in the way."""
        if self.in_the_way:
            raise self.in_the_way.pop(0)
        self.told.append((name, *body))
        return []


class Signal:
    """JobRemoved as PID 1 sends it; GONE stands for another PID 1."""

    signature = "uoss"

    def __init__(self, result: str, job: str = JOB, unit: str = UNIT) -> None:
        self.sender, self.member, self.body = "", "JobRemoved", [7, job, unit, result]
        if result == GONE:
            self.sender, self.member = systemd.DBUS, "NameOwnerChanged"
            self.body = [systemd.NAME, "", ""]


async def started(bus: Bus) -> None:
    """Ask for the scope of a pid that nobody has, and let what follows from that come to its end."""
    pid_1 = Systemd(bus)  # type: ignore[arg-type]
    try:
        await pid_1.start_scope(UNIT, 2**22 + 1, {})
    finally:
        await asyncio.gather(*pid_1._releasing)


def start(*answers: str | BusError) -> Bus:
    bus = Bus(*answers)
    asyncio.run(started(bus))
    return bus


def failed(kind: type[ScopeError], match: str, *answers: str | BusError) -> list[tuple[str, Any]]:
    bus = Bus(*answers)
    with pytest.raises(kind, match=match):
        asyncio.run(started(bus))
    return bus.told


def test_a_scope_that_is_there_is_kept_referenced() -> None:
    assert start("done").told == []


@pytest.mark.parametrize("result", ["failed", "canceled", "timeout"])
def test_a_scope_whose_start_ends_otherwise_is_let_go(result: str) -> None:
    """Its process was gone already: without this the unit stays loaded, failed, for as long as we are on the bus."""
    assert failed(ScopeError, f"ended as '{result}'", result) == [("UnrefUnit", UNIT)]


def test_a_scope_that_is_refused_is_let_go() -> None:
    refused = BusError("org.freedesktop.DBus.Error.InvalidArgs", "no such property")
    assert failed(ScopeError, "no such property", refused) == [("UnrefUnit", UNIT)]
    going_down = BusError("org.freedesktop.systemd1.TransactionIsDestructive", "going down")
    assert failed(ShuttingDownError, "going down", going_down) == [("UnrefUnit", UNIT)]


def test_what_a_daemon_reexec_swallowed_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "PAUSES", (0, 0))
    away = BusError("org.freedesktop.DBus.Error.NoReply", "away")
    assert start(away, "done").told == []
    assert start(GONE, "done").told == []


def test_a_scope_of_that_name_that_does_not_leave_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "PAUSES", (0, 0))
    exists = BusError("org.freedesktop.systemd1.UnitExists", "exists")
    assert failed(ScopeError, "is there already", exists, exists) == [("UnrefUnit", UNIT)]


class BusyBus(Bus):
    """A machine on which others start units, too; results come before the answer that names the job."""

    async def ask(self, *_: Any, **__: Any) -> list[Any]:
        for number in range(5000):
            self.on_signal(Signal("done", f"{JOB}{number}", "somebody-elses.service"))
        self.on_signal(Signal(self.answers.pop(0)))
        return [JOB]


def test_what_else_the_machine_does_crowds_out_no_result_of_ours() -> None:
    async def scenario() -> None:
        pid_1 = Systemd(BusyBus("done"))  # type: ignore[arg-type]
        async with asyncio.timeout(5):
            await pid_1.start_scope(UNIT, 2**22 + 1, {})
        assert not pid_1._early
        assert not pid_1._expected

    asyncio.run(scenario())


def stopped(bus: Bus, seconds: float | None = 5) -> None:
    asyncio.run(Systemd(bus).stop(UNIT, seconds))  # type: ignore[arg-type]
    assert not bus.answers


def test_a_stop_is_over_when_nothing_lives_any_more() -> None:
    async def scenario() -> None:
        bus, told = Bus("done"), list[Any]()
        pid_1 = Systemd(bus)  # type: ignore[arg-type]
        listen, bus.on_signal = bus.on_signal, told.append
        stopping = asyncio.create_task(pid_1.stop(UNIT, 5))
        while not told:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not stopping.done()
        listen(told[0])
        await stopping

    asyncio.run(scenario())


def test_a_stop_that_a_daemon_reexec_swallowed_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "PAUSES", (0,))
    away = BusError("org.freedesktop.DBus.Error.NoReply", "away")
    stopped(bus := Bus(away, GONE, "done"))
    assert bus.asked == ["StopUnit"] * 3


def test_a_stop_of_what_is_gone_or_hangs_comes_to_an_end() -> None:
    stopped(Bus(BusError("org.freedesktop.systemd1.NoSuchUnit", "not loaded")))
    bus = Bus("done")
    hanging = Systemd(bus)  # type: ignore[arg-type]
    bus.on_signal = lambda _: None  # it is never over
    asyncio.run(hanging.stop(UNIT, 0.01))


AWAY = BusError("org.freedesktop.DBus.Error.NoReply", "away")


def test_a_reference_is_given_back_however_often_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "PAUSES", (0,) * 6)

    async def scenario(bus: Bus) -> None:
        pid_1 = Systemd(bus)  # type: ignore[arg-type]
        pid_1.release(UNIT)
        await asyncio.gather(*pid_1._releasing)

    bus = Bus()
    bus.in_the_way = [AWAY, TimeoutError(), AWAY]
    asyncio.run(scenario(bus))
    assert bus.told == [("UnrefUnit", UNIT)]


@pytest.mark.parametrize(
    ("in_the_way", "held"),
    [([], True), ([AWAY, TimeoutError()], True), ([TimeoutError()] * 6, True), ([BusError("a.NoSuchUnit", "")], False)],
)
def test_a_reference_that_may_have_been_taken_is_taken(
    monkeypatch: pytest.MonkeyPatch, in_the_way: list[Exception], held: bool
) -> None:
    """The answer may have got lost: then it has to be given back."""
    monkeypatch.setattr(systemd, "PAUSES", (0,) * 6)
    bus = Bus()
    bus.in_the_way = list(in_the_way)
    assert asyncio.run(Systemd(bus).hold(UNIT)) == held  # type: ignore[arg-type]
