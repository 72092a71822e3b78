"""The door: what it looks like, what it refuses, what it gives, with polkit played."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant
from house import House, Scenario, pretend

from jobsvc import config, interface, model, rundir, service
from jobsvc.authority import Subject
from jobsvc.bus import BusError
from jobsvc.callers import Caller
from jobsvc.config import Config
from jobsvc.errors import AccessDenied, InteractiveAuthorizationRequired
from jobsvc.model import Finished, Result, User
from jobsvc.quantity import INFINITY
from jobsvc.userdb import Account

GOLDEN = Path(__file__).parent / "golden"
Run = Callable[[Scenario], None]
TRUE = {"Command": Variant("as", ["true"])}
SAMPLES: dict[str, Any] = {"s": "0" * 16, "as": ["0" * 16], "i": 15, "b": True, "a{sv}": {}, "aa{sv}": [TRUE]}


def test_options_may_be_left_out_and_may_be_given_where_there_are_none(house: Run) -> None:
    async def scenario(house: House) -> None:
        ((job,),) = await house.call("StartMany", "aa{sv}", [{"Command": Variant("as", ["true"])}])
        (told,) = await house.call("Status", "s", job[0])
        assert told["State"].value == "queued"
        for member in ("Subscribe", "Unsubscribe"):
            assert await house.call(member, "a{sv}", {}) == []
        with pytest.raises(BusError, match="has no option 'Interval'"):
            await house.call("Subscribe", "a{sv}", {"Interval": Variant("u", 1)})
        with pytest.raises(BusError, match="takes 'sa{sv}', not 'u'"):
            await house.call("Status", "u", 1)

    house(scenario)


@pytest.mark.parametrize(("name", "path"), [("manager", "/org/jobsvc1"), ("job", None)])
def test_introspection_is_as_it_was(house: Run, name: str, path: str | None) -> None:
    """A change of the interface shows here; to accept it, write what came into the golden file."""

    async def scenario(house: House) -> None:
        at = path
        if at is None:
            at = (await house.call("Start", "a{sv}", TRUE))[1]
        (xml,) = await house.call("org.freedesktop.DBus.Introspectable.Introspect", path=at)
        ET.fromstring(xml)
        assert xml == (GOLDEN / f"{name}.xml").read_text()

    house(scenario)


def test_every_method_answers_no_when_polkit_says_no(house: Run) -> None:
    async def scenario(house: House) -> None:
        job_id, path = await house.call("Start", "a{sv}", TRUE)
        pretend(house)
        house.polkit.says = False
        for method in service.METHODS.values():
            body = [job_id if kind == "s" else SAMPLES[kind] for _, kind in method.takes]
            if method.name == "Start":
                body = [TRUE]
            if method.name in ("Kill", "KillMany"):
                body[1] = "main"
            if "Many" in method.name and method.name != "StartMany":
                body[0] = [job_id]
            try:
                answer = await house.call(method.name, method.signature, *body)
            except BusError as error:
                assert error.name in (
                    "org.freedesktop.DBus.Error.AccessDenied",
                    "org.jobsvc1.Error.NoSuchJob",
                ), (method.name, error.name)
            else:
                # Lists are empty, subscriptions silent, and of many each is refused.
                shown = {"List": [[], ""], "Count": [{}], "Stats": [[]], "Subscribe": [], "Unsubscribe": []}
                if "Many" in method.name:
                    assert answer[0][0][1] == "org.jobsvc1.Error.NoSuchJob", method.name
                else:
                    assert answer == shown[method.name]
        for member, body in (("Get", [interface.JOB, "Command"]), ("GetAll", [interface.JOB])):
            with pytest.raises(BusError, match="no job"):
                await house.call(f"{service.PROPERTIES}.{member}", "s" * len(body), *body, path=path)
        with pytest.raises(BusError, match="no job"):
            await house.call("org.freedesktop.DBus.Introspectable.Introspect", path=path)
        (xml,) = await house.call("org.freedesktop.DBus.Introspectable.Introspect", path="/org/jobsvc1/job")
        assert job_id not in xml

    house(scenario)


@pytest.mark.parametrize("member", ["Status", "Logs", "ReadLogs"])
@pytest.mark.parametrize("run", [0, 2])
def test_a_run_that_never_was_is_no_run(house: Run, member: str, run: int) -> None:
    async def scenario(house: House) -> None:
        (job_id, _) = await house.call("Start", "a{sv}", TRUE)
        with pytest.raises(BusError, match=f"no run {run}; its runs are 1 to 1"):
            await house.call(member, "sa{sv}", job_id, {"Run": Variant("u", run)})

    house(scenario)


def test_the_spec_is_told_to_who_manages_the_job_and_without_its_secrets(house: Run) -> None:
    async def scenario(house: House) -> None:
        wanted = {"Script": Variant("ay", b"#!/bin/sh\n\xff"), "Nice": Variant("i", 5), "UMask": Variant("u", 0o27),
                  "Environment": Variant("as", ["TOKEN=abc"]), "StandardOutput": Variant("s", "append:/var/tmp/%j"),
                  "IOReadBandwidthMax": Variant("a(st)", [["/", 1000]])}  # fmt: skip
        (job_id, _) = await house.call("Start", "a{sv}", wanted)
        (told,) = await house.call("Status", "sa{sv}", job_id, {"Spec": Variant("b", True)})
        assert told["Spec"].value.items() >= {name: wanted[name] for name in wanted if name != "Environment"}.items()
        assert "Environment" not in told["Spec"].value
        (told,) = await house.call("Status", "sa{sv}", job_id, {"Spec": Variant("b", False)})
        assert "Spec" not in told
        pretend(house)
        house.polkit.asked.clear()
        await house.call("Status", "sa{sv}", job_id, {"Spec": Variant("b", True)})
        assert "org.jobsvc1.manage" in [action for action, _ in house.polkit.asked]
        house.polkit.says = False
        with pytest.raises(BusError, match="no job"):
            await house.call("Status", "sa{sv}", job_id, {"Spec": Variant("b", True)})

    house(scenario)


def test_a_few_of_many_are_found_by_the_beginning_of_an_id_and_by_owner(house: Run) -> None:
    async def scenario(house: House) -> None:
        ids = [(await house.call("Start", "a{sv}", TRUE))[0] for _ in range(5)]

        async def found(**terms: Variant) -> list[str]:
            jobs, _ = await house.call("List", "a{sv}", terms | {"Live": Variant("b", True)})
            return [job["Id"].value for job in jobs]

        assert await found(IdPrefix=Variant("s", ids[2][:12])) == [ids[2]]
        assert await found(OwnerUID=Variant("u", 0)) == ids[::-1]
        assert await found(OwnerUID=Variant("u", 7)) == []
        assert await found(UntilUSec=Variant("t", 1)) == []
        assert await found(FinishedBeforeUSec=Variant("t", 2**62)) == []

    house(scenario)


def test_start_asks_with_what_it_would_run(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house)
        await house.call("Start", "a{sv}", {"Command": Variant("as", ["echo", "two words"]), "Nice": Variant("i", -5)})
        actions = [action for action, _ in house.polkit.asked]
        assert actions == ["org.jobsvc1.start", "org.jobsvc1.exceed-limits"]
        details = house.polkit.asked[0][1]
        (job_id,) = house.manager.jobs
        assert (details["job.id"], details["job.unit"]) == (job_id, f"jobsvc-{job_id}-1.scope")
        assert (details["job.input"], details["job.umask"]) == ("", "")
        assert details["job.command"] == "echo 'two words'"
        assert (details["job.owner"], details["job.user"]) == ("mallory", "mallory")

    house(scenario)


@pytest.mark.parametrize("uid", [33, 999, 61184, 65534])
def test_system_users_start_nothing_unless_they_are_named(house: Run, uid: int) -> None:
    async def scenario(house: House) -> None:
        pretend(house, "www-data", uid)
        with pytest.raises(BusError, match="AllowedSystemUsers="):
            await house.call("Start", "a{sv}", TRUE)

    house(scenario)


@pytest.mark.parametrize(
    ("member", "signature", "body", "name"),
    [
        ("Start", "a{sv}", [{"Comand": Variant("as", ["x"])}], "org.jobsvc1.Error.InvalidSpec"),
        ("Start", "a{sv}", [{"Command": Variant("s", "x")}], "org.jobsvc1.Error.InvalidSpec"),
        ("Start", "a{sv}", [{**TRUE, "User": Variant("s", "#0")}], "org.jobsvc1.Error.InvalidSpec"),
        ("Start", "a{sv}", [{**TRUE, "User": Variant("s", "4294967295")}], "org.jobsvc1.Error.InvalidSpec"),
        ("Start", "a{sv}", [{**TRUE, "User": Variant("s", " 0")}], "org.jobsvc1.Error.InvalidSpec"),
        ("Start", "a{sv}", [{**TRUE, "User": Variant("s", "00")}], "org.jobsvc1.Error.InvalidSpec"),
        ("Start", "s", ["x"], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Stop", "sa{sv}", ["nothing", {}], "org.jobsvc1.Error.NoSuchJob"),
        ("Stop", "sa{sv}", ["nothing", {"Now": Variant("b", True)}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("List", "a{sv}", [{"Limit": Variant("u", 501)}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("List", "a{sv}", [{"State": Variant("as", ["dancing"])}], "org.jobsvc1.Error.InvalidSpec"),
        ("List", "a{sv}", [{"State": Variant("as", [])}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("StopMany", "asa{sv}", [[], {"State": Variant("as", [])}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("StopMany", "asa{sv}", [[], {}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("RemoveMany", "asa{sv}", [[], {"Labels": Variant("a{ss}", {})}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("HoldMany", "asa{sv}", [[], {"IdPrefix": Variant("s", "")}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("KillMany", "assia{sv}", [[], "all", 9, {}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("List", "a{sv}", [{"IdPrefix": Variant("s", "%")}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Kill", "ssia{sv}", ["0" * 16, "some", 15, {}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Kill", "ssia{sv}", ["0" * 16, "main", 99, {}], "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Logs", "sa{sv}", ["0" * 16, {}], "org.jobsvc1.Error.NoSuchJob"),
        ("Dance", "", [], "org.freedesktop.DBus.Error.UnknownMethod"),
        (
            "Start",
            "a{sv}",
            [{"Command": Variant("as", ["x" * 2_000_000])}],
            "org.freedesktop.DBus.Error.LimitsExceeded",
        ),
        ("Stop", "sa{sv}", ["x" * 100_000, {}], "org.freedesktop.DBus.Error.LimitsExceeded"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(
    house: Run, member: str, signature: str, body: list[Any], name: str
) -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(BusError) as error:
            await house.call(member, signature, *body)
        assert error.value.name == name
        assert "\n" not in str(error.value)
        assert not house.manager.jobs

    house(scenario)


def test_many_without_ids_or_filter_is_nothing(house: Run) -> None:
    """A list that came out empty, as of a script's variable, does not mean everybody's jobs."""

    async def scenario(house: House) -> None:
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        for method in service.METHODS.values():
            if method.name.endswith("Many") and method.name != "StartMany":
                body = [[] if kind == "as" else SAMPLES[kind] for _, kind in method.takes]
                if method.name == "KillMany":
                    body[1] = "main"
                with pytest.raises(BusError, match="needs ids or a filter; for all jobs name states"):
                    await house.call(method.name, method.signature, *body)
        assert str(house.manager.get(job_id).state) == "queued"
        (outcomes,) = await house.call("StopMany", "asa{sv}", [], {"State": Variant("as", ["queued"])})
        assert outcomes == [[job_id, "", ""]]

    house(scenario)


def test_the_same_request_id_is_the_same_job(house: Run) -> None:
    async def scenario(house: House) -> None:
        spec = {**TRUE, "RequestId": Variant("s", "build-7")}
        first = await house.call("Start", "a{sv}", spec)
        assert await house.call("Start", "a{sv}", spec) == first
        with pytest.raises(BusError, match="another job"):
            await house.call("Start", "a{sv}", {**spec, "Command": Variant("as", ["false"])})
        house.manager.stop(house.manager.get(first[0]), "", "")
        assert await house.call("Start", "a{sv}", spec) == first
        house.manager.remove([house.manager.get(first[0])], "", "")
        assert await house.call("Start", "a{sv}", spec) == first

    house(scenario)


def test_start_many_is_all_or_none(house: Run) -> None:
    async def scenario(house: House) -> None:
        bad = {**TRUE, "Nice": Variant("i", 99)}
        with pytest.raises(BusError, match="job 1: Nice"):
            await house.call("StartMany", "aa{sv}a{sv}", [TRUE, bad], {})
        assert not house.manager.jobs
        (jobs,) = await house.call("StartMany", "aa{sv}a{sv}", [TRUE] * 3, {})
        assert len({job_id for job_id, _ in jobs}) == 3

    house(scenario)


def test_a_dry_run_stores_nothing(house: Run) -> None:
    async def scenario(house: House) -> None:
        assert await house.call("Start", "a{sv}", {**TRUE, "DryRun": Variant("b", True)}) == ["", "/"]
        assert not house.manager.jobs

    house(scenario)


def test_the_queue_has_an_end(house: Run) -> None:
    async def scenario(house: House) -> None:
        object.__setattr__(house.manager.config, "max_queued", 2)
        await house.call("StartMany", "aa{sv}a{sv}", [TRUE] * 2, {})
        with pytest.raises(BusError, match="MaxQueued=2"):
            await house.call("Start", "a{sv}", TRUE)

    house(scenario)


def test_subscribers_hear_of_their_jobs_and_of_nobody_elses(house: Run) -> None:
    async def scenario(house: House) -> None:
        heard: list[tuple[str, list[Any]]] = []
        house.client.on_signal = lambda call: heard.append((call.member, call.body))
        await house.call("Subscribe")
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        await house.call("Stop", "sa{sv}", job_id, {})
        await house.call("Remove", "sa{sv}", job_id, {})
        mine = [(name, body[:3]) for name, body in heard if name.startswith("Job")]
        assert [name for name, _ in mine] == ["JobAdded", "JobChanged", "JobRemoved"]
        assert mine[1][1] == [job_id, "stopped", "canceled"]
        changed = next(body for name, body in heard if name == "PropertiesChanged")
        assert changed[1]["State"].value == "stopped"
        assert "QueueReason" in changed[2]
        await house.call("Unsubscribe")
        house.polkit.says = False
        heard.clear()
        job = house.manager.jobs.get((await house.call("Start", "a{sv}", TRUE))[0])
        pretend(house)
        await house.call("Subscribe")
        assert job is not None
        house.manager.stop(job, "", "")
        await house.call("Unsubscribe")
        assert not [name for name, _ in heard if name.startswith("Job")]

    house(scenario)


def test_pages_of_a_list_follow_each_other(house: Run) -> None:
    async def scenario(house: House) -> None:
        (jobs,) = await house.call("StartMany", "aa{sv}a{sv}", [TRUE] * 5, {})
        ids = [job_id for job_id, _ in reversed(jobs)]
        seen: list[str] = []
        after = ""
        while True:
            options = {"Limit": Variant("u", 2), "Fields": Variant("as", ["Id"])}
            page, after = await house.call("List", "a{sv}", options | ({"After": Variant("s", after)} if after else {}))
            assert all(set(job) == {"Id"} for job in page)
            seen += [job["Id"].value for job in page]
            if not after:
                break
        assert seen == ids

    house(scenario)


def test_a_rule_sees_what_a_job_is_typed_into_and_what_others_may_do_with_its_files(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house)
        await house.call("Start", "a{sv}", TRUE | {"Pty": Variant("b", True), "UMask": Variant("u", 0o002)})
        details = house.polkit.asked[0][1]
        assert (details["job.input"], details["job.umask"]) == ("terminal", "0002")

    house(scenario)


def outputs(house: House) -> list[str]:
    """Which files polkit was told of, for each start it was asked about."""
    return [details["job.output"] for action, details in house.polkit.asked if action == "org.jobsvc1.start"]


def test_polkit_is_told_of_the_files_that_are_opened(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house)
        files = {"StandardOutput": Variant("s", "append:/o/%x-%r-%u-%j")}
        files["StandardError"] = Variant("s", "append:/o/a b")
        job, _ = await house.call("Start", "a{sv}", {**TRUE, "Name": Variant("s", ".profile"), **files})
        assert outputs(house) == [f"append:/o/_profile-1-mallory-{job} 'append:/o/a b'"]
        house.manager.change(house.manager.get(job), lambda job: model.finish(job, Finished(Result.SUCCESS, at=1)))
        house.polkit.asked.clear()
        await house.call("Restart", "sa{sv}", job, {})
        assert outputs(house) == [f"append:/o/_profile-2-mallory-{job} 'append:/o/a b'"]
        house.polkit.asked.clear()
        await house.call("SetProperties", "sa{sv}a{sv}", job, {"Retries": Variant("u", 2)}, {})
        # Which run it is has yet to be seen.
        assert outputs(house) == [f"append:/o/_profile-%r-mallory-{job} 'append:/o/a b'"]

    house(scenario)


def test_another_name_is_another_start(house: Run) -> None:
    """It fills the paths of output files, and it is in the environment of the job."""

    async def scenario(house: House) -> None:
        pretend(house)
        path = Variant("s", "append:/home/bob/%x")
        job, _ = await house.call("Start", "a{sv}", {**TRUE, "StandardOutput": path, "Hold": Variant("b", True)})
        house.polkit.asked.clear()
        house.polkit.denied = {"org.jobsvc1.start"}
        with pytest.raises(BusError, match="does not allow org.jobsvc1.start"):
            await house.call("SetProperties", "sa{sv}a{sv}", job, {"Name": Variant("s", ".profile")}, {})
        assert outputs(house) == ["append:/home/bob/_profile"]
        assert house.manager.get(job).name == "true"
        house.polkit.denied = set()
        await house.call("SetProperties", "sa{sv}a{sv}", job, {"Name": Variant("s", "x")}, {})
        assert house.manager.get(job).name == "x"

    house(scenario)


def test_each_file_of_an_array_is_asked_about(house: Run) -> None:
    """Of equal tasks a person is asked once; a rule sees the file of each."""

    async def scenario(house: House) -> None:
        pretend(house)

        def task(index: int, path: str) -> dict[str, Variant]:
            array = {"ArrayId": Variant("s", "x"), "ArrayIndex": Variant("u", index)}
            return {**TRUE, **array, "StandardOutput": Variant("s", path)}

        await house.call("StartMany", "aa{sv}a{sv}", [task(n, "append:/o/%a") for n in (1, 2)], {})
        assert outputs(house) == ["append:/o/1", "append:/o/2"]
        house.polkit.asked.clear()
        await house.call("StartMany", "aa{sv}a{sv}", [task(n, "append:/o/%j") for n in (1, 2)], {})
        assert len(outputs(house)) == 1

        ask, people = house.polkit.check, []

        async def by_password(caller: Caller, action: str, details: dict[str, str], interactive: bool) -> bool:
            await ask(caller, action, details, interactive)
            if not interactive:
                raise InteractiveAuthorizationRequired("a password, please")
            people.append(details["job.output"])
            return True

        house.polkit.check = by_password  # type: ignore[method-assign]
        caller = Caller("", User(4242, "mallory"), interactive=True)
        jobs = list(house.manager.jobs.values())[:2]
        account = Account(jobs[0].user, 4242, "/", frozenset({4242}))
        subject = Subject(account, 4242, group_override=False, foreign=False)
        house.polkit.asked.clear()
        for job in jobs:
            await house.authority.start(caller, job, job.spec, subject)
        assert people == ["append:/o/1"]
        assert outputs(house) == ["append:/o/1", "append:/o/2"]

        async def by_rule(caller: Caller, action: str, details: dict[str, str], interactive: bool) -> bool:
            if details["job.output"] == "append:/o/2":
                raise AccessDenied("not this one")
            return await by_password(caller, action, details, interactive)

        house.polkit.check = by_rule  # type: ignore[method-assign]
        caller = Caller("", User(4242, "mallory"), interactive=True)
        await house.authority.start(caller, jobs[0], jobs[0].spec, subject)
        with pytest.raises(AccessDenied, match="not this one"):
            await house.authority.start(caller, jobs[1], jobs[1].spec, subject)

    house(scenario)


def actions(house: House) -> list[str]:
    """What polkit was asked since the last time, in short."""
    asked = [action.rpartition(".")[2] for action, _ in house.polkit.asked]
    house.polkit.asked.clear()
    return asked


@pytest.mark.parametrize("member", ["Release", "ReleaseMany"])
def test_release_is_asked_like_a_start(house: Run, member: str) -> None:
    """What was allowed when the job was accepted may not be any more."""

    async def scenario(house: House) -> None:
        pretend(house)

        async def release() -> str:
            """The name of the error, if any."""
            try:
                if member == "Release":
                    await house.call("Release", "sa{sv}", job, {})
                    return ""
                ((_, name, _),) = (await house.call("ReleaseMany", "asa{sv}", [job], {}))[0]
                return str(name).rpartition(".")[2]
            except BusError as error:
                return error.name.rpartition(".")[2]

        held = {"Hold": Variant("b", True)}
        for more, asked in (
            ({}, ["start"]),
            ({"User": Variant("s", "daemon")}, ["start", "start-as-user"]),
            ({"Group": Variant("s", "games")}, ["start", "start-as-user"]),
            ({"Nice": Variant("i", -1)}, ["start", "exceed-limits"]),
        ):
            (job, _) = await house.call("Start", "a{sv}", TRUE | held | more)
            assert actions(house) == asked
            house.polkit.denied = {f"org.jobsvc1.{asked[-1]}"}
            assert await release() == "AccessDenied"
            assert actions(house) == ["manage-own", *asked]
            assert house.manager.get(job).run.held
            house.polkit.denied = set()
            assert await release() == ""
            assert actions(house) == ["manage-own", *asked]
            assert not house.manager.get(job).run.held
            house.polkit.denied = {"org.jobsvc1.start"}
            assert await release() == ""  # it is let go on already, and nothing begins by this
            house.polkit.denied = set()
            house.polkit.asked.clear()

    house(scenario)


def test_release_asks_for_the_groups_of_a_queue(house: Run) -> None:
    async def scenario(house: House) -> None:
        settings = house.manager.config
        pretend(house)
        job, _ = await house.call("Start", "a{sv}", TRUE | {"Hold": Variant("b", True)})
        queues = {**settings.queues, "default": config.Queue(allowed_groups=("games",))}
        house.authority.use(replace(settings, queues=queues))
        with pytest.raises(BusError, match="queue 'default' is for the groups games"):
            await house.call("Release", "sa{sv}", job, {})
        assert house.manager.get(job).run.held

    house(scenario)


def test_group_is_granted_by_polkit_or_by_membership(house: Run) -> None:
    """What polkit was not asked about, the supervisor looks up again at the start."""

    async def scenario(house: House) -> None:
        async def granted(**more: Variant) -> tuple[bool, bool]:
            job, _ = await house.call("Start", "a{sv}", {**TRUE, "Hold": Variant("b", True), **more})
            found = house.manager.get(job)
            request = rundir.build(found, Config(), sample_memory=False)
            assert request["group_granted"] == found.group_granted
            return found.group_override, found.group_granted

        games = Variant("s", "games")
        assert await granted(Group=games) == (True, True)  # root's word
        pretend(house)
        assert await granted() == (False, False)
        assert await granted(Group=games) == (True, True)

        async def account(uid: int) -> Account:
            return Account(User(4242, "mallory"), 4242, "/", frozenset({4242, grp.getgrnam("games").gr_gid}))

        outside, house.callers.account = house.callers.account, account  # type: ignore[method-assign]
        assert await granted(Group=games) == (True, False)
        job = next(reversed(house.manager.jobs))
        house.callers.account = outside  # type: ignore[method-assign]
        house.polkit.asked.clear()
        await house.call("Release", "sa{sv}", job, {})
        assert actions(house) == ["manage-own", "start", "start-as-user"]
        assert house.manager.get(job).group_granted

    house(scenario)


def test_who_may_know_of_a_job_is_told_why_not_to_read_its_output(house: Run) -> None:
    async def scenario(house: House) -> None:
        (job_id, _) = await house.call("Start", "a{sv}", TRUE)
        pretend(house)
        house.polkit.denied = {"org.jobsvc1.logs"}
        with pytest.raises(BusError, match="polkit does not allow org.jobsvc1.logs"):
            await house.call("ReadLogs", "sa{sv}", job_id, {})
        house.polkit.denied |= {"org.jobsvc1.view"}
        with pytest.raises(BusError, match="no job"):
            await house.call("ReadLogs", "sa{sv}", job_id, {})

    house(scenario)


def test_so_much_is_looked_for_and_no_more(house: Run) -> None:
    async def scenario(house: House) -> None:
        many = {f"label{n}": "x" for n in range(33)}
        for terms in ({"Labels": Variant("a{ss}", many)}, {"Name": Variant("s", "*" * 257)}):
            with pytest.raises(BusError, match="at most 32 labels and 256 characters"):
                await house.call("List", "a{sv}", terms)

    house(scenario)


def test_a_duplicate_does_not_run_as_who_was_given_the_number_of_its_user(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house, "alice", 1000)
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        pretend(house, "newcomer", 1000)
        with pytest.raises(BusError, match="no job"):
            await house.call("Duplicate", "sa{sv}", job_id, {})
        assert len(house.manager.jobs) == 1

    house(scenario)


def test_a_name_given_to_somebody_else_owns_nothing(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house, "alice", 1000)
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        assert (await house.call("List", "a{sv}", {}))[0]
        pretend(house, "newcomer", 1000)
        house.polkit.says = False
        assert await house.call("List", "a{sv}", {}) == [[], ""]
        with pytest.raises(BusError, match="no job"):
            await house.call("Status", "sa{sv}", job_id, {})

    house(scenario)


def test_what_a_restart_executes_is_authorized_like_a_start(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house, "alice", 1000)
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        job = house.manager.jobs[job_id]
        end = Finished(Result.SUCCESS, at=1, exit_code=0)
        house.manager.change(job, lambda job: model.finish(job, end))
        house.polkit.asked.clear()
        assert await house.call("Restart", "sa{sv}", job_id, {}) == [2]
        assert [action for action, _ in house.polkit.asked] == ["org.jobsvc1.manage-own", "org.jobsvc1.start"]

    house(scenario)


def test_a_job_is_stopped_to_run_again_only_when_it_is_recorded_that_it_shall(house: Run, tmp_path: Path) -> None:
    """Else a crash in between would leave it stopped."""

    class Watched:
        def stop(self, reason: str) -> None:
            with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
                seen.append((reason, *db.execute("SELECT state FROM jobs").fetchone()))
            stopped.set()

    seen: list[tuple[str, str]] = []
    stopped = asyncio.Event()

    async def scenario(house: House) -> None:
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        job = house.manager.change(house.manager.jobs[job_id], lambda job: model.started(job, 4711, 1))
        house.manager.runners[job.key] = Watched()  # type: ignore[assignment]
        assert await house.call("Restart", "sa{sv}", job_id, {}) == [2]
        await asyncio.wait_for(stopped.wait(), 20)
        del house.manager.runners[job.key]
        assert seen == [("restart", "stopping")]

    house(scenario)


def test_a_reload_takes_the_new_configuration_whole_or_not_at_all(
    house: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jobsvc.conf"
    monkeypatch.setattr(config, "files", lambda: [file])

    async def scenario(house: House) -> None:
        heard: list[Any] = []
        house.client.on_signal = lambda call: heard.append((call.path, call.member, call.body))
        await house.call("Subscribe")
        file.write_text("[Manager]\nMaxRunning=7\nMaxQueuedPerUser=0\n")
        await house.call("Reload")
        assert heard[0][:2] == (service.ROOT, "PropertiesChanged")
        assert heard[0][2][1]["MaxRunning"].value == 7
        pretend(house)
        with pytest.raises(BusError, match="MaxQueuedPerUser=0"):
            await house.call("Start", "a{sv}", TRUE)
        file.write_text("[Manager]\nMaxRunning=9\nMaxQueuedPerUser=many\n")
        with pytest.raises(
            BusError, match=r"jobsvc.conf: \[Manager\] MaxQueuedPerUser=many: must be a number"
        ) as error:
            await house.call("Reload")
        assert error.value.name == "org.jobsvc1.Error.InvalidConfig"
        assert f"the configuration stays as it was: {error.value}" in caplog.messages
        assert house.manager.config.max_running == 7

    house(scenario)


def test_job_changed_is_sent_once_for_each_state_and_properties_for_all_else(house: Run) -> None:
    async def scenario(house: House) -> None:
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        heard: list[tuple[str, list[Any]]] = []
        house.client.on_signal = lambda call: heard.append((call.member, call.body))
        await house.call("Subscribe")
        job = house.manager.jobs[job_id]
        job = house.manager.change(job, lambda job: model.begin(job, "b"))
        job = house.manager.change(job, lambda job: replace(job, run=replace(job.run, main_pid=7)))
        job = house.manager.change(job, lambda job: model.started(job, 7, 5))
        house.manager.change(job, lambda job: model.finish(job, Finished(Result.SUCCESS, at=9, exit_code=0)))
        await house.call("Unsubscribe")
        assert [body[1] for name, body in heard if name == "JobChanged"] == ["starting", "running", "completed"]
        assert sum(name == "PropertiesChanged" for name, _ in heard) == 4

    house(scenario)


def test_what_else_a_job_is_to_run_is_bound_by_ceilings_that_are_newer_than_the_job(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house)
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        settings = replace(Config(), ceilings={"TimeoutStopUSec": 90_000_000, "MemoryMax": 4096})
        house.manager.configure(settings)
        house.authority.use(settings)
        house.polkit.denied = {"org.jobsvc1.exceed-limits"}
        other = {"Command": Variant("as", ["false"])}
        await house.call("SetProperties", "sa{sv}a{sv}", job_id, other, {})
        assert house.manager.get(job_id).spec == {
            "Command": ["false"], "TimeoutStopUSec": 90_000_000, "MemoryMax": 4096,
        }  # fmt: skip
        await house.call("SetProperties", "sa{sv}a{sv}", job_id, {"Name": Variant("s", "x")}, {})
        assert house.manager.get(job_id).name == "x"

    house(scenario)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"MemoryMax": Variant("t", 2**31)}, "MemoryMax=2G is beyond the ceiling, MemoryMax=1G"),
        ({"MemoryMax": Variant("t", INFINITY)}, "MemoryMax=infinity is beyond the ceiling, MemoryMax=1G"),
        ({"TimeoutStopUSec": Variant("t", 10**10)}, "TimeoutStopSec=2h 46min 40s is beyond the ceiling, "),
        ({"AllowedCPUs": Variant("ay", b"\7")}, "AllowedCPUs=0,1,2 is beyond the ceiling, AllowedCPUs=0,1"),
        (
            {"IOReadBandwidthMax": Variant("a(st)", [["/", 2000]])},
            "IOReadBandwidthMax=/ 2K is beyond the ceiling, IOReadBandwidthMax=/ 1K",
        ),
        ({"CPUQuotaPerSecUSec": Variant("t", 2_000_000)}, "CPUQuota=200% is beyond the ceiling, CPUQuota=100%"),
        ({"Nice": Variant("i", -5)}, "Nice=-5 is beyond what everybody may have, Nice=0"),
        ({"CPUWeight": Variant("t", 101)}, "CPUWeight=101 is beyond what everybody may have, CPUWeight=100"),
        ({"LimitRTPRIO": Variant("t", 99)}, "LimitRTPRIO=99 is beyond what everybody may have, LimitRTPRIO=0"),
    ],
)
def test_refusal_beyond_a_ceiling_names_it_first(house: Run, wanted: dict[str, Variant], says: str) -> None:
    async def scenario(house: House) -> None:
        ceilings = {"TimeoutStopUSec": 5, "MemoryMax": 2**30, "AllowedCPUs": b"\3", "CPUQuotaPerSecUSec": 1_000_000}
        ceilings["IOReadBandwidthMax"] = [("/", 1000)]
        house.authority.use(replace(Config(), ceilings=ceilings))
        pretend(house)
        house.polkit.denied = {"org.jobsvc1.exceed-limits"}
        with pytest.raises(BusError, match=f"job mine: {says}.*; polkit does not allow org.jobsvc1.exceed-limits"):
            await house.call("Start", "a{sv}", TRUE | {"Name": Variant("s", "mine")} | wanted)

    house(scenario)


def test_refusal_names_the_job(house: Run) -> None:
    async def scenario(house: House) -> None:
        job, _ = await house.call("Start", "a{sv}", {"Command": Variant("as", ["x\ny\x1b"])})
        pretend(house)
        house.polkit.denied = {"org.jobsvc1.manage", "org.jobsvc1.logs", "org.jobsvc1.administer"}
        about = f"job {job} \\(x\ufffdy\ufffd\\): polkit does not allow org.jobsvc1"
        with pytest.raises(BusError, match=f"^{about}.manage"):
            await house.call("Stop", "sa{sv}", job, {})
        with pytest.raises(BusError, match=f"^{about}.logs"):
            await house.call("ReadLogs", "sa{sv}", job, {})
        with pytest.raises(BusError, match="^polkit does not allow org.jobsvc1.administer"):
            await house.call("Reload", "")
        house.polkit.denied = {"org.jobsvc1.view"}
        with pytest.raises(BusError, match=f"^no job '{job}'"):
            await house.call("Stop", "sa{sv}", job, {})

    house(scenario)


def test_a_group_has_ceilings_of_its_own(house: Run) -> None:
    async def scenario(house: House) -> None:
        bounds = Config(
            ceilings={"TimeoutStopUSec": 5, "MemoryMax": 4096},
            group_ceilings={"crew": {"MemoryMax": 8192}, "no-such-group": {"MemoryMax": 2**40}},
        )
        house.authority.config = bounds
        ask = house.callers.group

        async def group(name: str, asker: int) -> int:
            return 4242 if name == "crew" else await ask(name, asker)

        house.callers.group = group  # type: ignore[method-assign]
        pretend(house)
        job_id, _ = await house.call("Start", "a{sv}", TRUE)
        assert house.manager.jobs[job_id].spec["MemoryMax"] == 8192
        for size, actions in ((8192, 1), (8193, 2)):
            house.polkit.asked.clear()
            await house.call("Start", "a{sv}", {**TRUE, "MemoryMax": Variant("t", size)})
            assert len(house.polkit.asked) == actions

    house(scenario)


def test_a_queued_job_is_changed_as_a_start_would_allow(house: Run) -> None:
    async def scenario(house: House) -> None:
        async def change(**keys: Variant) -> None:
            await house.call("SetProperties", "sa{sv}a{sv}", job, keys, {})

        pretend(house)
        (job, _) = await house.call("Start", "a{sv}", TRUE)
        house.polkit.asked.clear()
        await change(MemoryMax=Variant("t", 2**30), Priority=Variant("i", -1), RuntimeMaxUSec=Variant("t", 5))
        assert [action for action, _ in house.polkit.asked] == ["org.jobsvc1.manage-own"]
        for key, value in (
            ("Name", Variant("s", "other")),
            ("Queue", Variant("s", "serial")),
            ("NotBeforeUSec", Variant("t", 5)),
            ("Dependencies", Variant("a(ss)", [])),
            ("Retries", Variant("u", 5)),
        ):
            house.polkit.asked.clear()
            await change(**{key: value})
            assert [action for action, _ in house.polkit.asked] == ["org.jobsvc1.manage-own", "org.jobsvc1.start"]
        house.polkit.asked.clear()
        await change(Command=Variant("as", ["id", "-u"]))
        asked = dict(house.polkit.asked)
        assert asked["org.jobsvc1.start"]["job.command"] == "id -u"
        await change(TimeoutStopUSec=Variant("t", 2**62))
        assert house.polkit.asked[-1][0] == "org.jobsvc1.exceed-limits"
        (told,) = await house.call("Status", "sa{sv}", job, {})
        assert (told["Name"].value, told["Command"].value) == ("other", ["id", "-u"])
        assert told["Limits"].value["MemoryMax"].value == 2**30
        for key, value, complaint in (
            ("User", Variant("s", "root"), "User of a job cannot be changed"),
            ("Queue", Variant("s", "nowhere"), "there is no queue 'nowhere'"),
            ("Dependencies", Variant("a(ss)", [["0" * 16, "any"]]), "there is no job 0000"),
            ("MemoryMax", Variant("t", 0), "MemoryMax=0: must be from 1"),
            ("Hold", Variant("b", True), f"jobctl hold {job}"),
            ("MemoryMax", Variant("s", "1G"), "MemoryMax must be of type 't'"),
            ("Shell", Variant("s", "/bin/sh"), "Shell means nothing without Script"),
            ("CPUQuota", Variant("t", 1), "on the bus it is CPUQuotaPerSecUSec"),
        ):
            with pytest.raises(BusError, match=complaint):
                await change(**{key: value, "Name": Variant("s", "half")})
        (told,) = await house.call("Status", "sa{sv}", job, {})
        assert told["Name"].value == "other"
        house.polkit.says = False
        with pytest.raises(BusError, match="does not allow"):
            await change(Name=Variant("s", "mine"))

    house(scenario)


@pytest.mark.parametrize("member", ["Restart", "SetProperties", "Attach", "Duplicate", "Release"])
def test_what_was_asked_about_is_what_is_executed(house: Run, member: str) -> None:
    """While polkit thinks, or a person types a password, somebody else changes the job."""
    bodies: dict[str, list[Any]] = {"SetProperties": [{"Arguments": Variant("as", ["x"])}, {}]}
    signatures = {"SetProperties": "sa{sv}a{sv}"}

    async def scenario(house: House) -> None:
        pretend(house)
        wanted = {"Script": Variant("ay", b"true"), "Pty": Variant("b", True), "Hold": Variant("b", True)}
        job, _ = await house.call("Start", "a{sv}", wanted)
        house.door.desk.starters.clear()
        ask = house.polkit.check

        async def slowly(caller: Caller, action: str, details: dict[str, str], interactive: bool) -> None:
            if str(action) == "org.jobsvc1.start":
                there = house.manager.get(job)
                house.manager.change(there, lambda job: replace(job, spec=job.spec | {"Script": b"evil"}))
            await ask(caller, action, details, interactive)

        house.polkit.check = slowly  # type: ignore[method-assign]
        call = house.call(member, signatures.get(member, "sa{sv}"), job, *bodies.get(member, [{}]))
        if member == "Duplicate":
            assert house.manager.get((await call)[0]).spec["Script"] == b"true"
        else:
            with pytest.raises(BusError, match="was changed by somebody else meanwhile"):
                await call
        assert house.polkit.asked[-1][1]["job.script"] == "true"

    house(scenario)


def test_typing_into_a_terminal_is_asked_like_a_start(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house)
        spec = {**TRUE, "Pty": Variant("b", True)}
        (job, _) = await house.call("Start", "a{sv}", spec)
        for wanted in (["manage-own"], ["manage-own", "start"]):
            house.polkit.asked.clear()
            with pytest.raises(BusError, match="only a running job can be attached to"):
                await house.call("Attach", "sa{sv}", job, {})
            assert [action.rpartition(".")[2] for action, _ in house.polkit.asked] == wanted
            house.door.desk.starters.clear()  # as a restart does: then it is any client
        (plain, _) = await house.call("Start", "a{sv}", TRUE)
        with pytest.raises(BusError, match="has no terminal"):
            await house.call("Attach", "sa{sv}", plain, {})

    house(scenario)
