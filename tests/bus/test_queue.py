"""The queue through the door: what waits, for what, and what becomes of it. Its turn never comes here."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant
from house import House, Scenario, pretend

from jobsvc import config, model
from jobsvc.bus import BusError
from jobsvc.launch import LauncherGone
from jobsvc.manager import Manager
from jobsvc.model import Finished, Job, Result
from jobsvc.store import Store

Run = Callable[[Scenario], None]
SIGNATURES = {
    "Command": "as",
    "Dependencies": "a(ss)",
    "Priority": "i",
    "Retries": "u",
    "RetryDelayUSec": "t",
    "NotBeforeUSec": "t",
    "Hold": "b",
    "Environment": "as",
    "ArrayIndex": "u",
    "MemoryMax": "t",
    "Labels": "a{ss}",
    "IOReadBandwidthMax": "a(st)",
    "Unset": "as",
}


def spec(**keys: Any) -> dict[str, Variant]:
    keys = {"Command": ["true"]} | keys
    return {name: Variant(SIGNATURES.get(name, "s"), value) for name, value in keys.items()}


def _only(**keys: Any) -> dict[str, Variant]:
    return {name: variant for name, variant in spec(**keys).items() if name in keys}


async def start(house: House, **keys: Any) -> str:
    job_id: str = (await house.call("Start", "a{sv}", spec(**keys)))[0]
    return job_id


async def status(house: House, job_id: str, **options: Variant) -> dict[str, Any]:
    (facts,) = await house.call("Status", "sa{sv}", job_id, options)
    return {name: variant.value for name, variant in facts.items()}


def job(house: House, job_id: str) -> Job:
    return house.manager.get(job_id)


def begin(house: House, job_id: str) -> None:
    """Have it its turn."""
    house.manager.change(job(house, job_id), lambda job: model.started(model.begin(job, "b" * 32), 7, 5))


def end(house: House, job_id: str, result: Result = Result.SUCCESS) -> None:
    begin(house, job_id)
    house.manager.change(job(house, job_id), lambda job: model.finish(job, Finished(result, at=9)))


async def fails(house: House, name: str, says: str, member: str, signature: str, *body: Any) -> None:
    with pytest.raises(BusError, match=says) as error:
        await house.call(member, signature, *body)
    assert error.value.name.rpartition(".")[2] == name
    assert "\n" not in str(error.value)


def test_a_held_job_says_so_until_it_is_released(house: Run) -> None:
    async def scenario(house: House) -> None:
        job_id = await start(house, Hold=True)
        assert (await status(house, job_id))["QueueReason"].startswith("held")
        await house.call("Release", "sa{sv}", job_id, {})
        assert (await status(house, job_id))["QueueReason"] == "waiting for its turn"
        (outcomes,) = await house.call("HoldMany", "asa{sv}", [], {"Queue": Variant("s", "default")})
        assert outcomes == [[job_id, "", ""]]
        assert (await status(house, job_id))["QueueReason"].startswith("held")
        await house.call("Stop", "sa{sv}", job_id, {})
        await fails(house, "WrongState", "stopped; it cannot be held", "Hold", "sa{sv}", job_id, {})
        assert "QueueReason" not in await status(house, job_id)

    house(scenario)


@pytest.mark.parametrize(
    ("condition", "result", "state"),
    [
        ("success", Result.SUCCESS, "queued"),
        ("success", Result.EXIT_CODE, "stopped"),
        ("success", Result.STOPPED, "stopped"),
        ("failure", Result.OOM_KILL, "queued"),
        ("failure", Result.SUCCESS, "stopped"),
        ("failure", Result.CANCELED, "stopped"),
        ("any", Result.LOST, "queued"),
        ("any", Result.CANCELED, "queued"),
    ],
)
def test_a_dependency_holds_or_cancels(house: Run, condition: str, result: Result, state: str) -> None:
    async def scenario(house: House) -> None:
        first = await start(house)
        second = await start(house, Dependencies=[[first, condition]])
        last = await start(house, Dependencies=[[second, "success"]])
        assert (await status(house, second))["QueueReason"].startswith(f"waiting for job {first} to")
        assert (await status(house, second))["Dependencies"] == [[first, condition]]
        end(house, first, result)
        late = await start(house, Dependencies=[[first, condition]])  # the same after the fact
        for one in (second, late):
            facts = await status(house, one)
            assert facts["State"] == state
            if state == "stopped":
                assert facts["Result"] == "canceled"
                assert first in facts["Reason"]
            else:
                assert facts["QueueReason"] == "waiting for its turn"
        assert (await status(house, last))["State"] == state

    house(scenario)


def test_a_long_chain_falls_at_once(house: Run) -> None:
    async def scenario(house: House) -> None:
        chain = [spec(Dependencies=[[f"@{index - 1}", "success"]] if index else []) for index in range(1000)]
        (jobs,) = await house.call("StartMany", "aa{sv}a{sv}", chain, {})
        await house.call("Stop", "sa{sv}", jobs[0][0], {})
        assert (await house.call("Count", "a{sv}", {})) == [{"stopped": 1000}]
        assert not house.manager.roster._dependents

    house(scenario)


def test_several_dependencies_are_all_waited_for(house: Run) -> None:
    async def scenario(house: House) -> None:
        first, second = await start(house), await start(house)
        last = await start(house, Dependencies=[[first, "success"], [second, "any"]])
        assert (await status(house, last))["QueueReason"].endswith("and 1 more")
        end(house, first)
        assert (await status(house, last))["QueueReason"] == f"waiting for job {second} to end"
        await house.call("Remove", "sa{sv}", first, {})
        end(house, second, Result.SIGNAL)
        assert (await status(house, last))["QueueReason"] == "waiting for its turn"

    house(scenario)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (spec(Dependencies=[["f" * 16, "success"]]), "there is no job f"),
        (spec(Dependencies=[["@0", "success"]]), "before it in the same StartMany"),
        (spec(Dependencies=[["build", "success"]]), "by their ids, not 'build'"),
        (spec(Dependencies=[["f" * 16, "ok"]]), "success, failure, any"),
        (spec(Queue="gpu"), "there is no queue 'gpu'; jobsvc.conf has default, serial"),
        (spec(Queue="a b"), "Queue='a b': must be"),
        (spec(Priority=1001), "-1000 to 1000"),
        (spec(Retries=101), "0 to 100"),
        (spec(UniquePolicy="return"), "UniquePolicy means nothing without Unique"),
        (spec(Unique="k", UniquePolicy="wait"), "refuse, replace, return"),
        (spec(ArrayIndex=1), "means nothing without ArrayId"),
    ],
)
def test_what_cannot_be_queued_is_refused_by_key(house: Run, wanted: dict[str, Variant], says: str) -> None:
    async def scenario(house: House) -> None:
        await fails(house, "InvalidSpec", says, "Start", "a{sv}", wanted)
        assert not house.manager.jobs

    house(scenario)


def test_a_graph_is_taken_whole_or_not_at_all(house: Run) -> None:
    async def scenario(house: House) -> None:
        ahead = [spec(), spec(Dependencies=[["@1", "any"]])]
        await fails(house, "InvalidSpec", "job 1: Dependencies: @1", "StartMany", "aa{sv}a{sv}", ahead, {})
        twice = [spec(Unique="k"), spec(Unique="k")]
        await fails(house, "InvalidSpec", "used twice in one call", "StartMany", "aa{sv}a{sv}", twice, {})
        assert not house.manager.jobs
        graph = [spec(), spec(Dependencies=[["@0", "any"]]), spec(Dependencies=[["@0", "success"], ["@1", "failure"]])]
        (jobs,) = await house.call("StartMany", "aa{sv}a{sv}", graph, {})
        ids = [job_id for job_id, _ in jobs]
        assert (await status(house, ids[2]))["Dependencies"] == [[ids[0], "success"], [ids[1], "failure"]]

    house(scenario)


def test_nobody_waits_for_a_job_that_they_may_not_see(house: Run) -> None:
    async def scenario(house: House) -> None:
        roots = await start(house)
        pretend(house)
        house.polkit.says = False
        await fails(house, "InvalidSpec", "there is no job", "Start", "a{sv}", spec(Dependencies=[[roots, "any"]]))

    house(scenario)


def test_a_failed_run_is_tried_again_later_and_later(house: Run) -> None:
    async def scenario(house: House) -> None:
        heard: list[tuple[Any, ...]] = []
        house.client.on_signal = lambda call: heard.append(tuple(call.body)) if call.member == "JobChanged" else None
        await house.call("Subscribe")
        job_id = await start(house, Retries=2, RetryDelayUSec=3_600_000_000)
        after = await start(house, Dependencies=[[job_id, "failure"]])
        pauses = []
        for run, result in ((1, Result.EXIT_CODE), (2, Result.OOM_KILL)):
            at = job(house, job_id).run.queued_at
            end(house, job_id, result)
            facts = await status(house, job_id)
            assert (facts["State"], facts["Run"]) == ("queued", run + 1)
            assert facts["QueueReason"].startswith(f"retry {run} of 2 at 20")
            assert facts["QueueReason"].endswith(f"; run {run} ended: {result}")
            assert (await status(house, job_id, Run=Variant("u", run)))["Result"] == result
            due = job(house, job_id).run.due
            assert due is not None and at is not None
            pauses.append((due - at) // 1_000_000)
        assert pauses[0] in range(3600, 3660)
        assert pauses[1] in range(3600, 3660)  # an hour is the longest pause
        assert (await status(house, after))["State"] == "queued"
        end(house, job_id, Result.CORE_DUMP)
        assert (await status(house, job_id))["State"] == "failed"
        assert (await status(house, after))["QueueReason"] == "waiting for its turn"
        await house.call("Count", "a{sv}", {})  # what was told before has arrived
        assert [state for one, state, _ in heard if one == job_id] == ["running", "queued"] * 2 + ["running", "failed"]
        await house.call("Restart", "sa{sv}", job_id, {})
        end(house, job_id, Result.EXIT_CODE)
        assert (await status(house, job_id))["QueueReason"].startswith("retry 1 of 2")

    house(scenario)


@pytest.mark.parametrize("result", [Result.SUCCESS, Result.TIMEOUT, Result.STOPPED])
def test_what_took_too_long_or_was_stopped_is_not_tried_again(house: Run, result: Result) -> None:
    async def scenario(house: House) -> None:
        job_id = await start(house, Retries=2)
        end(house, job_id, result)
        assert (await status(house, job_id))["Run"] == 1
        assert (await status(house, job_id))["Result"] == result

    house(scenario)


def test_a_job_asked_to_stop_is_not_tried_again_whatever_it_made_of_it(house: Run) -> None:
    async def scenario(house: House) -> None:
        job_id = await start(house, Retries=2)
        begin(house, job_id)
        await house.call("Stop", "sa{sv}", job_id, {})
        house.manager.change(job(house, job_id), lambda job: model.finish(job, Finished(Result.EXIT_CODE, at=9)))
        assert (await status(house, job_id))["State"] == "failed"

    house(scenario)


def test_a_hook_follows_what_was_canceled_after_a_run(house: Run) -> None:
    async def scenario(house: House) -> None:
        house.manager.configure(replace(house.manager.config, on_finish=("/bin/true",)))

        def hooked(job_id: str) -> list[str]:
            hooks = [one for one in house.manager.jobs.values() if one.spec.get("HookOf") == job_id]
            return [f"{one.request.rpartition('-')[2]} {one.name}" for one in hooks]

        failed = await start(house, Retries=2, RetryDelayUSec=3_600_000_000)
        end(house, failed, Result.EXIT_CODE)
        assert hooked(failed) == []
        await house.call("Stop", "sa{sv}", failed, {})
        assert hooked(failed) == ["2 on-finish"]
        never = await start(house)
        for runs in (1, 2):
            await house.call("Stop", "sa{sv}", never, {})
            assert hooked(never) == []
            if runs == 1:
                await house.call("Restart", "sa{sv}", never, {})
        done = await start(house)
        end(house, done)
        await house.call("Restart", "sa{sv}", done, {})
        await house.call("Stop", "sa{sv}", done, {})
        assert hooked(done) == ["1 on-finish", "2 on-finish"]
        ((row,),) = await house.call("Stats", "a{sv}", {})
        assert row["Jobs"].value == 3
        end(house, next(one.id for one in house.manager.jobs.values()))
        ((row,),) = await house.call("Stats", "a{sv}", {})
        assert row["Jobs"].value == 3
        ((row,),) = await house.call("Stats", "a{sv}", {"Hooks": Variant("b", True)})
        assert row["Jobs"].value == 1

    house(scenario)


def test_a_unique_key_is_refused_replaced_or_returned(house: Run) -> None:
    async def scenario(house: House) -> None:
        first = await start(house, Unique="backup")
        await fails(house, "WrongState", f"job {first} has the Unique key", "Start", "a{sv}", spec(Unique="backup"))
        assert await start(house, Unique="backup", UniquePolicy="return") == first
        begin(house, first)
        second = await start(house, Unique="backup", UniquePolicy="replace")
        assert (await status(house, first))["State"] == "stopping"
        assert (await status(house, first))["Reason"] == f"replaced by job {second}"
        assert (await status(house, second))["QueueReason"] == f"waiting for job {first} to end"
        third = await start(house, Unique="backup", UniquePolicy="replace")
        assert (await status(house, second))["Result"] == "canceled"
        house.manager.change(job(house, first), lambda job: model.finish(job, Finished(Result.STOPPED, at=9)))
        assert (await status(house, third))["QueueReason"] == "waiting for its turn"
        await fails(house, "WrongState", f"job {third}", "Restart", "sa{sv}", first, {})
        end(house, third)
        assert await start(house, Unique="backup") not in (first, second, third)

    house(scenario)


@pytest.mark.parametrize("turned", [False, True])
def test_a_chain_of_unique_jobs_is_replaced_whole(house: Run, turned: bool) -> None:
    """Canceling one of the old ones cancels those after it, which are to be replaced themselves."""
    names = ["fetch", "sim", "report"]

    def chain(names: list[str]) -> list[dict[str, Variant]]:
        unique: list[dict[str, Any]] = [{"Unique": name, "UniquePolicy": "replace"} for name in names]
        for index, one in enumerate(unique[1:]):
            one["Dependencies"] = [[f"@{index}", "success"]]
        return [spec(**one) for one in unique]

    async def scenario(house: House) -> None:
        (old,) = await house.call("StartMany", "aa{sv}a{sv}", chain(names), {})
        (new,) = await house.call("StartMany", "aa{sv}a{sv}", chain(names[::-1] if turned else names), {})
        for job_id, _ in old:
            assert (await status(house, job_id))["Result"] == "canceled"
        ids = [job_id for job_id, _ in new]
        assert (await status(house, ids[0]))["QueueReason"] == "waiting for its turn"
        assert (await status(house, ids[2]))["QueueReason"] == f"waiting for job {ids[1]} to succeed"
        if not turned:
            assert (await status(house, old[2][0]))["Reason"] == f"replaced by job {ids[2]}"

    house(scenario)


def test_a_unique_key_is_one_users_and_a_request_id_remembers_what_was_returned(house: Run) -> None:
    async def scenario(house: House) -> None:
        first = await start(house, Unique="k")
        pretend(house)
        mine = await start(house, Unique="k")
        again = spec(Unique="k", UniquePolicy="return", RequestId="r1")
        assert (await house.call("Start", "a{sv}", again))[0] == mine != first
        end(house, mine)
        assert (await house.call("Start", "a{sv}", again))[0] == mine

    house(scenario)


def test_a_duplicate_is_the_callers_and_carries_no_secrets_of_others(house: Run) -> None:
    async def scenario(house: House) -> None:
        secret = ["TOKEN=abc"]
        old = await start(house, Environment=secret, Name="build", RequestId="r", Priority=3)
        new, _ = await house.call("Duplicate", "sa{sv}", old, {"Priority": Variant("i", -1)})
        copy = job(house, new)
        assert (copy.spec["Environment"], copy.priority, copy.name) == (secret, -1, "build")
        assert "RequestId" not in copy.spec
        script, _ = await house.call("Duplicate", "sa{sv}", old, {"Command": Variant("as", ["ls"])})
        assert job(house, script).command == ["ls"]
        pretend(house)
        house.polkit.asked.clear()
        stdin = {"StandardInput": Variant("h", 0)}
        await fails(house, "InvalidSpec", "takes no StandardInput", "Duplicate", "sa{sv}", old, stdin)
        denied = ("AccessDenied", "environment of job", "Duplicate", "sa{sv}", old)
        await fails(house, *denied, {})
        await fails(house, *denied, {"Command": Variant("as", ["env"])})
        house.polkit.asked.clear()
        house.callers.user = _root  # type: ignore[method-assign]
        mine, _ = await house.call("Duplicate", "sa{sv}", old, {"Environment": Variant("as", [])})
        copy = job(house, mine)
        assert (copy.owner.name, copy.user.name) == ("mallory", "root")
        asked = [action.rpartition(".")[2] for action, _ in house.polkit.asked]
        assert asked == ["view", "manage", "start", "start-as-user", "exceed-limits"]
        await fails(house, "InvalidSpec", "unknown key", "Duplicate", "sa{sv}", mine, {"Nmae": Variant("s", "x")})

    house(scenario)


def test_a_duplicate_adds_to_the_old_job_and_does_without_what_is_named(house: Run) -> None:
    async def scenario(house: House) -> None:
        io = [["/", 1000], ["/srv", 2000]]
        old = await start(house, Hold=True, Unique="k", MemoryMax=2**30, Environment=["A=1", "B=2"],
                          Labels={"a": "1", "b": "2"}, IOReadBandwidthMax=io)  # fmt: skip
        await fails(house, "WrongState", "has the Unique key", "Duplicate", "sa{sv}", old, {})
        await fails(house, "InvalidSpec", "'Uniqe'; did you mean Unique?", "Duplicate", "sa{sv}", old,
                    {"Unset": Variant("as", ["Uniqe"])})  # fmt: skip
        await fails(house, "InvalidSpec", "Unset must be", "Duplicate", "sa{sv}", old, {"Unset": Variant("s", "x")})
        overrides = _only(Unset=["Unique", "MemoryMax"], Environment=["B=3", "C=4"], Labels={"b": "3"}, RequestId="r",
                          IOReadBandwidthMax=[["/", 3000]])  # fmt: skip
        assert await house.call("Duplicate", "sa{sv}", old, overrides | {"DryRun": Variant("b", True)}) == ["", "/"]
        new, _ = await house.call("Duplicate", "sa{sv}", old, overrides)
        copy = job(house, new)
        assert not copy.run.held
        assert not copy.spec.keys() & {"Hold", "Unique", "MemoryMax", "Unset"}
        assert (copy.spec["Environment"], copy.spec["Labels"]) == (["A=1", "B=3", "C=4"], {"a": "1", "b": "3"})
        assert dict(copy.spec["IOReadBandwidthMax"]) == {"/": 3000, "/srv": 2000}
        assert (await house.call("Duplicate", "sa{sv}", old, overrides))[0] == new
        pretend(house)
        house.callers.user = _root  # type: ignore[method-assign]
        theirs, _ = await house.call("Duplicate", "sa{sv}", old, overrides)
        assert job(house, theirs).spec["Environment"] == ["B=3", "C=4"]

    house(scenario)


async def _root(text: str, asker: int) -> Any:
    from jobsvc.userdb import _account

    assert text == "0"
    return _account(0)


def test_maintenance_takes_nothing_new_and_outlives_the_service(house: Run, tmp_path: Any) -> None:
    async def scenario(house: House) -> None:
        heard: list[Any] = []
        house.client.on_signal = lambda call: heard.append(call.body) if call.member == "PropertiesChanged" else None
        await house.call("Subscribe")
        known = spec(RequestId="r")
        job_id = (await house.call("Start", "a{sv}", known))[0]
        ended = await start(house)
        end(house, ended)
        heard.clear()
        await house.call("SetMaintenance", "ba{sv}", True, {})
        assert [body[1]["Maintenance"].value for body in heard if "Maintenance" in body[1]] == [True]
        for member, signature, body in (
            ("Start", "a{sv}", [spec()]),
            ("StartMany", "aa{sv}a{sv}", [[spec()], {}]),
            ("Restart", "sa{sv}", [ended, {}]),
            ("Duplicate", "sa{sv}", [ended, {}]),
        ):
            await fails(house, "Maintenance", "takes nothing new", member, signature, *body)
        assert (await house.call("Start", "a{sv}", known))[0] == job_id
        assert (await status(house, job_id))["QueueReason"].startswith("maintenance")
        again = Store(tmp_path / "jobs.db")
        assert again.fact("maintenance") == "on"
        again.close()
        await house.call("SetMaintenance", "ba{sv}", False, {})
        await start(house)

    house(scenario)


def test_a_queue_may_be_for_some_groups(house: Run) -> None:
    async def scenario(house: House) -> None:
        settings = house.manager.config
        queues = {**settings.queues, "gpu": config.Queue(allowed_groups=("root", "nosuchgroup"))}
        settings = replace(settings, queues=queues)
        house.manager.configure(settings)
        house.authority.use(settings)
        assert (await status(house, await start(house, Queue="gpu")))["Queue"] == "gpu"
        pretend(house)
        await fails(house, "AccessDenied", "queue 'gpu' is for the groups root", "Start", "a{sv}", spec(Queue="gpu"))
        (jobs, _) = await house.call("List", "a{sv}", {"Queue": Variant("s", "gpu")})
        assert len(jobs) == 1

    house(scenario)


def test_anybody_may_give_a_priority_and_to_push_past_others_takes_a_right(house: Run) -> None:
    async def scenario(house: House) -> None:
        assert job(house, await start(house, Priority=5)).priority_allowed  # root's
        pretend(house)
        await start(house, Priority=-5)
        assert [action for action, _ in house.polkit.asked] == ["org.jobsvc1.start"]
        house.polkit.asked.clear()
        assert job(house, await start(house, Priority=1)).priority_allowed
        assert [action for action, _ in house.polkit.asked] == ["org.jobsvc1.start", "org.jobsvc1.exceed-limits"]
        house.polkit.denied = {"org.jobsvc1.exceed-limits"}
        mine = await start(house, Priority=1)
        assert not job(house, mine).priority_allowed
        urgent = _only(Priority=1000)
        await house.call("SetProperties", "sa{sv}a{sv}", mine, urgent, {})
        assert (job(house, mine).priority, job(house, mine).priority_allowed) == (1000, False)
        house.polkit.denied = set()
        await house.call("SetProperties", "sa{sv}a{sv}", mine, _only(Unique="mine"), {})
        assert not job(house, mine).priority_allowed
        await house.call("SetProperties", "sa{sv}a{sv}", mine, urgent, {})
        assert job(house, mine).priority_allowed
        house.polkit.denied = {"org.jobsvc1.exceed-limits"}
        end(house, mine)
        await house.call("Restart", "sa{sv}", mine, {})
        assert not job(house, mine).priority_allowed

    house(scenario)


def test_a_restart_waits_for_what_it_depends_on(house: Run) -> None:
    async def scenario(house: House) -> None:
        first = await start(house)
        second = await start(house, Dependencies=[[first, "success"]])
        end(house, first, Result.EXIT_CODE)
        await fails(
            house, "WrongState", f"job {first}, on which it depends, is failed", "Restart", "sa{sv}", second, {}
        )
        await house.call("Restart", "sa{sv}", first, {})
        assert await house.call("Restart", "sa{sv}", second, {}) == [2]
        assert (await status(house, second))["QueueReason"] == f"waiting for job {first} to succeed"
        end(house, first)
        end(house, second)
        await house.call("Remove", "sa{sv}", first, {})
        await house.call("Restart", "sa{sv}", second, {})
        assert (await status(house, second))["QueueReason"] == "waiting for its turn"

    house(scenario)


async def _chain(house: House, *names: str) -> list[str]:
    specs = [spec(Name=name, Dependencies=[[f"@{at - 1}", "success"]] if at else []) for at, name in enumerate(names)]
    return [job_id for job_id, _ in (await house.call("StartMany", "aa{sv}a{sv}", specs, {}))[0]]


def test_a_chain_that_failed_is_restarted_whole_in_whatever_order_it_is_named(house: Run) -> None:
    async def scenario(house: House) -> None:
        first, second, third = await _chain(house, "fetch", "sim", "report")
        end(house, first, Result.EXIT_CODE)
        assert await house.call("Count", "a{sv}", {}) == [{"failed": 1, "stopped": 2}]
        nobody = "0" * 16
        (outcomes,) = await house.call("RestartMany", "asa{sv}", [third, nobody, first, second], {})
        assert [(job_id, bool(error)) for job_id, error, _ in outcomes] == [
            (third, False), (nobody, True), (first, False), (second, False),
        ]  # fmt: skip
        assert (await status(house, first))["QueueReason"] == "waiting for its turn"
        assert (await status(house, second))["QueueReason"] == f"waiting for job {first} to succeed"
        assert (await status(house, third))["QueueReason"] == f"waiting for job {second} to succeed"

    house(scenario)


def test_what_has_ended_is_restarted_by_a_filter_only_if_its_state_is_named(house: Run) -> None:
    async def scenario(house: House) -> None:
        first, second = await _chain(house, "sim", "sim")
        end(house, first, Result.EXIT_CODE)
        sims = {"Name": Variant("s", "sim")}
        assert await house.call("RestartMany", "asa{sv}", [], sims) == [[]]
        failed = sims | {"State": Variant("as", ["failed", "stopped"])}
        (outcomes,) = await house.call("RestartMany", "asa{sv}", [], failed)
        assert sorted(outcomes) == sorted([[first, "", ""], [second, "", ""]])
        assert (await status(house, second))["Run"] == 2

    house(scenario)


def test_of_several_that_are_stopped_one_that_another_has_canceled_is_no_failure(house: Run) -> None:
    async def scenario(house: House) -> None:
        first, second, third = await _chain(house, "fetch", "sim", "report")
        (outcomes,) = await house.call("StopMany", "asa{sv}", [first, second, third], {})
        assert outcomes == [[first, "", ""], [second, "", ""], [third, "", ""]]
        (outcomes,) = await house.call("StopMany", "asa{sv}", [first], {})
        assert "stopped already" in outcomes[0][2]  # before the call

    house(scenario)


def test_another_spec_keeps_its_place_and_cannot_wait_for_itself(house: Run) -> None:
    async def scenario(house: House) -> None:
        first = await start(house)
        second = await start(house, Dependencies=[[first, "any"]])
        place = job(house, first).run.place
        itself = _only(Dependencies=[[second, "any"]])
        says = f"job {second} waits for job {first} itself"
        await fails(house, "InvalidSpec", says, "SetProperties", "sa{sv}a{sv}", first, itself, {})
        gpu = _only(Queue="gpu")
        await fails(house, "InvalidSpec", "no queue 'gpu'", "SetProperties", "sa{sv}a{sv}", first, gpu, {})
        later = _only(Priority=-3, NotBeforeUSec=2**60)
        await house.call("SetProperties", "sa{sv}a{sv}", first, later, {})
        assert (job(house, first).run.place, job(house, first).run.due) == (place, 2**60)
        await house.call("SetProperties", "sa{sv}a{sv}", second, _only(Dependencies=[]), {})
        assert (await status(house, second))["QueueReason"] == "waiting for its turn"

    house(scenario)


def test_the_key_by_which_a_job_is_the_only_one_can_change_while_it_waits(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house)
        first, second = await start(house, Unique="backup"), await start(house)

        async def change(job_id: str, **keys: Any) -> None:
            await house.call("SetProperties", "sa{sv}a{sv}", job_id, _only(**keys), {})

        with pytest.raises(BusError, match=f"job {first} has the Unique key 'backup'"):
            await change(second, Unique="backup")
        await change(first, Unique="other", UniquePolicy="return", OnBehalfOf="ticket 4711")
        await change(second, Unique="backup")
        assert await start(house, Unique="backup", UniquePolicy="return") == second
        assert (await status(house, first))["OnBehalfOf"] == "ticket 4711"
        pretend(house, "eve", 4343)
        with pytest.raises(BusError, match="is the word of mallory"):
            await change(first, OnBehalfOf="nobody")

    house(scenario)


def test_what_waits_is_taken_up_by_the_next_life_of_the_service(house: Run, tmp_path: Any) -> None:
    async def scenario(house: House) -> None:
        first = await start(house)
        waits = {
            "held": await start(house, Hold=True),
            "not before 2033-05-18T03:33:20Z": await start(house, NotBeforeUSec=2_000_000_000_000_000),
            f"waiting for job {first} to succeed": await start(house, Dependencies=[[first, "success"]]),
            "retry 1 of 3 at": await start(house, Retries=3, RetryDelayUSec=86_400_000_000),
        }
        end(house, waits["retry 1 of 3 at"], Result.SIGNAL)
        places = {one.id: one.run.place for one in house.manager.jobs.values()}
        house.manager.commits.flush()
        store = Store(tmp_path / "jobs.db")
        old = house.manager
        new = Manager(old.config, store, old.systemd, old.launcher, old.events, old.inputs)
        new.maintenance = True  # nothing is to begin
        await new.reconcile()
        for reason, job_id in waits.items():
            assert (new.queue_reason(new.get(job_id)) or "").startswith(reason)
        assert {one.id: one.run.place for one in new.jobs.values()} == places
        gone = new.get(first)
        new.change(gone, lambda job: model.finish(job, Finished(Result.EXIT_CODE, at=1)))
        assert new.get(waits[f"waiting for job {first} to succeed"]).state == "stopped"
        await new.close()
        store.close()
        await asyncio.sleep(0)

    house(scenario)


def test_many_are_removed_together_and_each_has_its_answer(house: Run) -> None:
    async def scenario(house: House) -> None:
        (jobs,) = await house.call("StartMany", "aa{sv}a{sv}", [spec()] * 250, {})
        ids = [job_id for job_id, _ in jobs]
        await house.call("StopMany", "asa{sv}", ids[1:], {})
        (outcomes,) = await house.call("RemoveMany", "asa{sv}", [*ids, "0" * 16], {})
        told = {job_id: name.rpartition(".")[2] for job_id, name, _ in outcomes}
        assert (told.pop(ids[0]), told.pop("0" * 16)) == ("WrongState", "NoSuchJob")
        assert set(told.values()) == {""}
        assert await house.call("Count", "a{sv}", {}) == [{"queued": 1}]

    house(scenario)


def test_a_further_run_is_committed_before_it_is_launched(house: Run, tmp_path: Path) -> None:
    """Else the next life of the service takes the files of a run it does not know from under its supervisor."""
    launched: list[tuple[str, int]] = []

    class Launcher:
        async def launch(self, key: str) -> int:
            with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
                launched.append((key, db.execute("SELECT count(*) FROM runs WHERE number = 2").fetchone()[0]))
            raise LauncherGone("it is busy")

    async def scenario(house: House) -> None:
        job_id = await start(house)
        end = Finished(Result.SUCCESS, at=1, exit_code=0)
        done = house.manager.change(job(house, job_id), lambda job: model.finish(job, end))
        house.manager.launcher = Launcher()  # type: ignore[assignment]
        house.manager._turnstile.open = True
        assert house.manager.restart(done, "again") == 2
        async with asyncio.timeout(60):
            while not launched:
                await asyncio.sleep(0)
        assert launched == [(f"{job_id}-2", 1)]

    house(scenario)
