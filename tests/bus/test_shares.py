"""Nobody's flood is somebody else's drought: quotas, turns, and questions asked anew."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message
from dbus_next.signature import Variant
from house import House, Scenario, another, pretend

from jobsvc import model, service
from jobsvc.allowance import EVENT_COST
from jobsvc.bus import BusError
from jobsvc.callers import Caller
from jobsvc.clock import realtime_usec
from jobsvc.config import Config
from jobsvc.errors import AccessDenied, InteractiveAuthorizationRequired, Quota
from jobsvc.live import Live
from jobsvc.model import Finished, Result, Running, User
from jobsvc.polkit import SHOWN, Action, Polkit, showable
from jobsvc.runner import Runner
from jobsvc.share import Budget, Turns

Run = Callable[[Scenario], None]
TRUE = {"Command": Variant("as", ["true"])}


def bound(house: House, **values: int) -> None:
    for name, value in values.items():
        object.__setattr__(house.manager.config, name, value)


@pytest.mark.parametrize(
    ("bounds", "spec", "key"),
    [
        ({"max_queued_per_user": 2}, TRUE, "MaxQueuedPerUser=2"),
        ({"max_queued_bytes_per_user": 3000}, {"Command": Variant("as", ["x" * 1000])}, "MaxQueuedBytesPerUser=3000"),
    ],
)
def test_what_waits_is_bounded_by_user(house: Run, bounds: dict[str, int], spec: dict[str, Any], key: str) -> None:
    async def scenario(house: House) -> None:
        bound(house, **bounds)
        pretend(house)
        first, _ = await house.call("Start", "a{sv}", spec)
        await house.call("Start", "a{sv}", spec)
        for _ in range(2):
            with pytest.raises(BusError, match=key) as error:
                await house.call("Start", "a{sv}", spec)
            assert error.value.name == "org.jobsvc1.Error.Quota"
        pretend(house, "bob", 4243)
        await house.call("Start", "a{sv}", spec)  # somebody else's share
        pretend(house)
        await house.call("Stop", "sa{sv}", first, {})
        await house.call("Start", "a{sv}", spec)

    house(scenario)


def test_what_a_user_writes_in_a_day_is_bounded(house: Run) -> None:
    async def scenario(house: House) -> None:
        bound(house, max_output_per_user=1000)
        house.manager.allowance._had.add(4242, 400, time.monotonic())
        assert house.manager.allowance.left(4242) == 600
        house.manager.allowance._had.add(4242, 4000, time.monotonic())
        assert house.manager.allowance.left(4242) == 0
        assert house.manager.allowance.left(4243) == 1000
        assert house.manager.allowance.left(0) > 2**60

    house(scenario)


def test_what_happens_to_jobs_takes_no_more_than_half_of_what_their_owner_may_write(
    house: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(house: House) -> None:
        bound(house, max_output_per_user=20 * EVENT_COST)
        sent: list[str] = []
        house.manager.events._note = lambda event, *_, **__: sent.append(event)  # type: ignore[method-assign]
        pretend(house)
        for _ in range(20):
            job_id, _ = await house.call("Start", "a{sv}", TRUE)
            await house.call("Stop", "sa{sv}", job_id, {})
        assert sent == ["queued", "stop-requested"] * 5
        allowance, job = house.manager.allowance, house.manager.get(job_id)
        assert allowance.left(4242) == 10 * EVENT_COST
        assert caplog.text.count("half of MaxOutputPerUser=") == 1
        assert not allowance.event(job)
        assert not allowance.events_of_run(job)
        root = User(0, "root")
        for told in (replace(job, user=root), replace(job, owner=root)):  # what root does is told of
            assert allowance.event(told)
            assert allowance.events_of_run(told)
        allowance._had = Budget()
        for _ in range(20):
            assert allowance.events_of_run(job)  # tried again and again, it is still one run
        assert allowance.left(4242) == 17 * EVENT_COST

    house(scenario)


def test_who_has_written_enough_is_cut_while_it_runs(house: Run) -> None:
    async def scenario(house: House) -> None:
        bound(house, max_output_per_user=100_000)
        runners = []
        for uid in (4242, 4242, 4243):
            pretend(house, f"user{uid}", uid)
            job_id, _ = await house.call("Start", "a{sv}", TRUE)
            runner = Runner(house.manager, Live(house.manager.jobs[job_id]))
            runner._go, runner._link._packets = True, Wire()  # type: ignore[assignment]
            house.manager.runners[runner.key] = runner
            runners.append(runner)
        house.manager.allowance._had = Budget()
        first, second, other = runners
        for number in (60_000, 30_000, 60_000):  # newest wins
            await first._take({"type": "offsets", "stdout": 1, "stderr": 0, "journal_bytes": number})
        await other._take({"type": "offsets", "stdout": 90_000, "stderr": 0})  # of an earlier release
        assert house.manager.allowance.left(4242) == 40_000
        assert house.manager.allowance.left(4243) == 10_000
        assert [runner._link._packets.sent for runner in runners] == [[], [], []]  # type: ignore[union-attr]
        await second._take({"type": "offsets", "stdout": 0, "stderr": 2, "journal_bytes": 40_000})
        await second._take({"type": "offsets", "stdout": 0, "stderr": 3, "journal_bytes": 50_000})
        cut = [{"type": "ask", "what": "bounds", "output_left": 0}]
        assert [runner._link._packets.sent for runner in runners] == [cut, cut, []]  # type: ignore[union-attr]
        house.manager.runners.clear()

    house(scenario)


class Wire:
    """A connection on which everything is kept that goes down it."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        self.sent.append(json.loads(data))


def test_what_was_written_before_a_restart_counts(house: Run) -> None:
    hour = 3_600_000_000

    async def scenario(house: House) -> None:
        bound(house, max_output_per_user=100_000)
        pretend(house)
        for age, took in ((1, 200), (23, 300), (30, 400)):
            job_id, _ = await house.call("Start", "a{sv}", TRUE)
            end = Finished(Result.SUCCESS, at=realtime_usec() - age * hour)
            facts = {"stdout_bytes": 10_000, "stderr_bytes": 10, "journal_bytes": took}
            job = house.manager.change(
                house.manager.jobs[job_id], lambda job, end=end, facts=facts: model.finish(job, end, **facts)
            )
        house.manager.allowance._had = Budget()
        bound(house, max_output_per_user=10_000)
        await house.manager.allowance.recall(house.manager.store)
        assert house.manager.allowance.left(4242) == 5000  # events are not taken to have had more than half
        house.manager.allowance._had = Budget()
        bound(house, max_output_per_user=100_000)
        await house.manager.reconcile()
        assert house.manager.allowance.left(4242) == 100_000 - 200 - 300 - 2 * 4 * EVENT_COST
        old, young = (
            replace(job.run, number=n, phase=Running(), started_at=realtime_usec() - n * hour) for n in (30, 2)
        )
        house.manager.allowance.wrote(replace(job, run=old), 5000, by_then=True)
        house.manager.allowance.wrote(replace(job, run=old), 5100)
        house.manager.allowance.wrote(replace(job, run=young), 40, by_then=True)
        assert house.manager.allowance.left(4242) == 100_000 - 200 - 300 - 2 * 4 * EVENT_COST - 100 - 40

    house(scenario)


def test_a_budget_is_for_one_day() -> None:
    budget, hour = Budget(), 3600
    budget.add(1, 5, 0)
    budget.add(1, 7, 23 * hour)
    assert [budget.had(1, at * hour) for at in (0, 23, 24, 46, 47)] == [12, 12, 7, 7, 0]
    assert budget.had(2, 0) == 0


def test_clients_that_listen_are_bounded_by_user(house: Run) -> None:
    async def scenario(house: House) -> None:
        bound(house, max_subscribers_per_user=1)
        pretend(house)
        await house.call("Subscribe")
        await house.call("Subscribe")  # the same client again
        async with another(house) as second:
            with pytest.raises(BusError, match="MaxSubscribersPerUser=1"):
                await second("Subscribe")
            await house.call("Unsubscribe")
            await second("Subscribe")

    house(scenario)


def test_a_client_that_leaves_listens_no_more(house: Run) -> None:
    async def scenario(house: House) -> None:
        bound(house, max_subscribers_per_user=1)
        pretend(house)
        for _ in range(3):
            async with another(house) as client:
                await client("Subscribe")
            while len(house.door.subscribers):
                await asyncio.sleep(0.01)

    house(scenario)


def test_who_sees_all_is_asked_about_anew(house: Run) -> None:
    """What polkit allowed once, by a kept password or a group, does not hold for as long as a connection."""

    async def scenario(house: House) -> None:
        heard: list[str] = []
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        pretend(house)
        house.client.on_signal = lambda call: heard.append(call.member)
        await house.call("Subscribe")
        house.manager._tell(house.manager.jobs[job_id], house.manager.jobs[job_id])
        await house.call("org.freedesktop.DBus.Peer.Ping")
        assert heard.count("PropertiesChanged") == 1
        house.polkit.says = False
        house.door.subscribers.ask_anew()
        await house.call("org.freedesktop.DBus.Peer.Ping")
        house.manager._tell(house.manager.jobs[job_id], house.manager.jobs[job_id])
        await house.call("org.freedesktop.DBus.Peer.Ping")
        assert heard.count("PropertiesChanged") == 1

    house(scenario)


def test_calls_under_way_are_bounded_by_user_not_by_connection(house: Run) -> None:
    async def scenario(house: House) -> None:
        bound(house, max_calls_per_user=3)
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        pretend(house)
        wait = {"WaitUSec": Variant("t", 20_000_000)}
        asked = [asyncio.ensure_future(house.call("ReadLogs", "sa{sv}", job_id, wait)) for _ in range(3)]
        while len(house.manager._lives) < 1:
            await asyncio.sleep(0.01)
        async with another(house) as second:
            with pytest.raises(BusError, match="MaxCallsPerUser=3") as error:
                await second("Count", "a{sv}", {})
            assert error.value.name == "org.jobsvc1.Error.Quota"
        house.manager.stop(house.manager.jobs[job_id], "enough", "")
        await asyncio.gather(*asked)
        await house.call("Count", "a{sv}", {})

    house(scenario)


def test_a_page_that_goes_on_after_anothers_job_tells_nothing_of_it(house: Run) -> None:
    async def scenario(house: House) -> None:
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        pretend(house)
        house.polkit.says = False
        told = []
        for after in (job_id, "0" * 16):
            with pytest.raises(BusError) as error:
                await house.call("List", "a{sv}", {"After": Variant("s", after)})
            told.append((error.value.name, str(error.value).replace(after, "")))
        assert told[0] == told[1]

    house(scenario)


def test_a_large_body_does_not_stop_the_loop(house: Run) -> None:
    """Four MiB take the library seconds to parse; it is somebody else's call that must not wait for it."""

    async def scenario(house: House) -> None:
        spec = {"Command": Variant("as", ["x"] * 400)}
        slow = asyncio.ensure_future(house.call("StartMany", "aa{sv}a{sv}", [spec] * 1001, {}))
        while not house.door._large._busy:
            await asyncio.sleep(0)
        turns = 0
        while not slow.done():
            await asyncio.sleep(0.001)
            turns += 1
        with pytest.raises(BusError, match="at most 1000 jobs"):
            await slow
        assert turns > 10

    house(scenario)


def test_a_large_body_that_is_not_one_is_an_error(house: Run) -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(BusError, match="takes 'a{sv}', not 's'"):
            await house.call("Start", "s", "x" * 200_000)

    house(scenario)


def test_users_take_turns_however_many_of_one_wait() -> None:
    async def scenario() -> None:
        turns, order = Turns(), []

        async def call(uid: int, number: int) -> None:
            await turns.begin(uid)
            order.append((uid, number))

        await asyncio.gather(*(call(1, n) for n in range(50)), call(2, 0), call(2, 1), call(3, 0))
        assert len(order) == 53
        assert max(order.index(one) for one in ((2, 0), (2, 1), (3, 0))) < 7
        assert [n for uid, n in order if uid == 1] == list(range(50))
        assert not turns._busy

    asyncio.run(scenario())


def test_a_turn_that_is_called_off_is_passed_on() -> None:
    async def scenario() -> None:
        turns = Turns()
        async with turns.of(1):
            waiting = [asyncio.create_task(turns.take(uid)) for uid in (1, 2, 3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        waiting[1].cancel()  # it had its turn in the same moment
        await asyncio.wait_for(waiting[2], 5)
        turns.pass_on()
        assert not turns._busy

    asyncio.run(scenario())


class _PolkitBus:
    """Answers that a password is needed; whoever is asked for one does not answer."""

    def __init__(self) -> None:
        self.dialogs = 0
        self.canceled: list[str] = []
        self.details: dict[str, str] = {}

    async def ask(self, _to: str, _path: str, member: str, _signature: str, body: Any, timeout: float = 0) -> list[Any]:
        if member.endswith("CancelCheckAuthorization"):
            self.canceled.append(body[0])
            return []
        self.details = body[2]
        if not body[3]:
            return [[False, True, {}]]
        self.dialogs += 1
        await asyncio.sleep(min(timeout, 0.2))
        raise TimeoutError


def test_open_password_questions_are_counted_by_user() -> None:
    """Not by connection: with ever new ones a single user would have all there are."""

    async def scenario() -> None:
        bus = _PolkitBus()
        polkit = Polkit(bus, Config())  # type: ignore[arg-type]

        async def ask(sender: str, uid: int) -> type[BaseException]:
            with pytest.raises((Quota, AccessDenied)) as error:
                await polkit.check(Caller(sender, User(uid, "x"), True), Action.MANAGE, {}, interactive=True)
            return error.type

        asked = [ask(f":1.{n}", 1000) for n in range(40)] + [ask(":1.99", 1001)]
        told = await asyncio.gather(*asked)
        assert told.count(Quota) == 36
        assert told[-1] is AccessDenied  # nobody typed it, but the question was put
        assert bus.dialogs == 5
        assert len(bus.canceled) == 5  # no dialog is left behind
        with pytest.raises(InteractiveAuthorizationRequired):
            await polkit.check(Caller(":1.1", User(1000, "x"), False), Action.MANAGE, {}, interactive=False)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "bad", ["\n", "\r", "\x1b", "\x07", "\x7f", "\x9b", "\u202e", "\u2066", "\u200b", "\u2028", "\u2029"]
)
def test_nothing_that_is_not_a_character_reaches_a_dialog(bad: str) -> None:
    assert showable(f"a{bad}b") == "a�b"
    assert len(showable("x" * 10_000)) == 256


def test_a_rule_sees_a_long_command_and_a_dialog_no_long_name() -> None:
    async def scenario() -> None:
        bus = _PolkitBus()
        details = {"job.name": "n" * 1000, "job.command": "true " + "x" * 8000, "job.script": "s" * 10_000}
        with pytest.raises(InteractiveAuthorizationRequired):
            caller = Caller(":1.1", User(1000, "x"), False)
            await Polkit(bus, Config()).check(caller, Action.START, details, interactive=False)  # type: ignore[arg-type]
        assert [len(bus.details[name]) for name in details] == [256, 8005, 8192]
        assert bus.details["job.script"].endswith("…")

    asyncio.run(scenario())
    policy = (Path(__file__).parents[2] / "systemd/polkit/org.jobsvc1.policy").read_text()
    assert set(re.findall(r"\$\(([^)]*)\)", policy)) == SHOWN


def test_an_unclaimed_message_of_another_size_is_refused_by_its_header(house: Run) -> None:
    async def scenario(house: House) -> None:
        call = Message("org.jobsvc1", service.ROOT, service.MANAGER, "Nothing", signature="ay", body=[bytes(9_000_000)])
        before = time.monotonic()
        answer = await house.client.call(call)
        assert answer.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
        assert time.monotonic() - before < 5

    house(scenario)
