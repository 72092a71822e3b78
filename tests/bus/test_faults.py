"""What goes wrong in one call is that call's: the next one, and everybody else's, are answered."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant
from house import House, Scenario, another, pretend, until

from jobsvc import config, guard, service, turnstile
from jobsvc.authority import Authority
from jobsvc.bus import Bus, BusError, Call
from jobsvc.callers import Callers
from jobsvc.logs import Logs
from jobsvc.manager import Manager
from jobsvc.methods.desk import Desk
from jobsvc.model import State
from jobsvc.queries import Queries
from jobsvc.store import Store
from jobsvc.subscribers import Subscribers

Run = Callable[[Scenario], None]
TRUE = {"Command": Variant("as", ["true"])}
AWAITED = [
    (kind, name)
    for kind in (Callers, Authority, Desk, Store, Queries, Logs, Subscribers, Manager)
    for name, value in vars(kind).items()
    if inspect.iscoroutinefunction(value) and name not in ("close", "drain", "reconcile")
]
PLAIN = [
    *((Manager, name) for name in ("accept", "stop", "restart", "hold", "release", "remove", "get", "change", "place")),
    *((Manager, name) for name in ("set_maintenance", "configure", "live", "queue_reason", "admit")),
    *((Store, name) for name in ("accept", "put", "flush", "get", "run", "request", "remove", "note_fact")),
    *((Subscribers, name) for name in ("tell", "announce", "drop")),
    (Bus, "send_error"),
]


async def every_call(house: House) -> tuple[int, int]:
    """One of each; how many were answered, and with what fault."""
    answered = faults = 0

    async def ask(member: str, signature: str = "", *body: Any, path: str = service.ROOT) -> list[Any]:
        nonlocal answered, faults
        try:
            return await house.call(member, signature, *body, path=path)
        except BusError as error:
            assert "Traceback" not in str(error)
            faults += error.name.endswith("Internal")
            return [""] * 2
        finally:
            answered += 1

    await ask("Subscribe")
    first, path = await ask("Start", "a{sv}", TRUE)
    await ask("StartMany", "aa{sv}a{sv}", [{**TRUE, "RequestId": Variant("s", os.urandom(4).hex())}] * 1, {})
    for member in ("Hold", "Release", "Stop", "Restart"):
        await ask(member, "sa{sv}", first, {})
    await ask("SetProperties", "sa{sv}a{sv}", first, {"Priority": Variant("i", -1)}, {})
    await ask("Duplicate", "sa{sv}", first, {})
    for member in ("Status", "ReadLogs"):
        await ask(member, "sa{sv}", first, {})
    for member in ("List", "Count", "Stats"):
        await ask(member, "a{sv}", {"Labels": Variant("a{ss}", {"a": "b"})})
    await ask("org.freedesktop.DBus.Introspectable.Introspect", path=service.ROOT + "/job")
    await ask("org.freedesktop.DBus.Properties.GetAll", "s", "", path=path or "/")
    for member in ("StopMany", "RestartMany", "HoldMany", "StopMany", "RemoveMany"):
        await ask(member, "asa{sv}", [], {"State": Variant("as", list(map(str, State)))})
    await ask("SetMaintenance", "ba{sv}", True, {})
    await ask("SetMaintenance", "ba{sv}", False, {})
    await ask("Reload")
    await ask("Unsubscribe")
    return answered, faults


@pytest.mark.parametrize(("kind", "name"), AWAITED + PLAIN, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_ends_one_call(
    house: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type, name: str
) -> None:
    monkeypatch.setattr(config, "load", config.Config)
    method, armed = getattr(kind, name), [False]

    def failing(*arguments: Any, **named: Any) -> Any:
        if armed[0]:
            armed[0] = False
            raise RuntimeError("injected")
        return method(*arguments, **named)

    monkeypatch.setattr(kind, name, failing)

    async def scenario(house: House) -> None:
        armed[0] = True
        count, faults = await every_call(house)
        assert faults <= 1
        armed[0] = False
        assert await every_call(house) == (count, 0)
        async with another(house) as call:
            pretend(house, "bob", 4243)
            assert (await call("Count", "a{sv}", {}))[0] == {}
        await until(lambda: not house.door._senders)
        assert not [task for task in asyncio.all_tasks() if "from :" in task.get_name()]
        assert not house.door._calls._have

    house(scenario)


def test_an_error_that_cannot_be_sent_is_answered_all_the_same(house: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: House) -> None:
        async def look(*_: Any) -> None:
            raise guard_error

        monkeypatch.setattr(Desk, "lookup", look)
        with pytest.raises(BusError, match="a fault of jobsvc"):
            await house.call("Status", "sa{sv}", "0" * 16, {})
        monkeypatch.undo()
        assert await house.call("Count", "a{sv}", {}) == [{}]

    guard_error = service.NoSuchJob("\udcff")  # no UTF-8
    house(scenario)


@pytest.mark.filterwarnings("error:coroutine:RuntimeWarning")
def test_a_call_whose_caller_leaves_before_it_has_begun_lets_go_of_what_came(house: Run) -> None:
    async def scenario(house: House) -> None:
        gone: list[bool] = []
        call = Call(path=service.ROOT, interface=service.MANAGER, member="Start", sender=":9.9")
        call.dispose = lambda: gone.append(True)  # type: ignore[method-assign]
        house.door._arrived(call)
        (task,) = house.door._senders[":9.9"]
        task.cancel()
        await until(lambda: ":9.9" not in house.door._senders)
        assert gone == [True]

    house(scenario)


def test_a_loop_goes_on_after_a_fault(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(guard, "PAUSE", 0.0)
    times: list[BaseException] = []

    async def loop() -> None:
        if len(times) < 3:
            raise RuntimeError("injected")

    asyncio.run(guard.for_ever(loop, "a loop", times.append))
    assert len(times) == 3
    assert caplog.text.count("a loop, which goes on") == 3


def test_a_job_that_cannot_begin_leaves_the_others_to_begin(house: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes back to the queue, and is tried again."""
    monkeypatch.setattr(turnstile, "AGAIN", 0.01)
    begun: list[str] = []

    async def scenario(house: House) -> None:
        (jobs,) = await house.call("StartMany", "aa{sv}a{sv}", [TRUE] * 3, {})
        gate = house.manager._turnstile
        failures = [jobs[0][0]]

        def begin(job: Any) -> None:
            if job.id in failures:
                failures.remove(job.id)
                raise RuntimeError("injected")
            begun.append(job.id)

        gate._begin, gate.open = begin, True
        gate.admit()
        assert begun == [job_id for job_id, _ in jobs[1:]]
        await until(lambda: len(begun) == 3)
        gate.open = False

    house(scenario)


def test_a_request_id_of_a_former_user_of_the_number_is_free(house: Run) -> None:
    """Neither the job nor its id is told of, also after the job was removed."""

    async def scenario(house: House) -> None:
        named = {**TRUE, "RequestId": Variant("s", "one")}
        pretend(house, "mallory", 4242)
        first, _ = await house.call("Start", "a{sv}", named)
        pretend(house, "bob", 4242)
        second, _ = await house.call("Start", "a{sv}", named)
        assert second != first
        assert (await house.call("Start", "a{sv}", named))[0] == second
        with pytest.raises(BusError, match=second):
            await house.call("Start", "a{sv}", {**named, "Name": Variant("s", "other")})
        await house.call("Stop", "sa{sv}", second, {})
        await house.call("Remove", "sa{sv}", second, {})
        assert (await house.call("Start", "a{sv}", named))[0] == second  # it was, and is not run twice
        pretend(house, "carol", 4242)
        third, _ = await house.call("Start", "a{sv}", {**named, "Name": Variant("s", "hers")})
        assert third not in (first, second)

    house(scenario)
