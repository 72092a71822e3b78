"""jobsvcd's side of a run, against supervisors of this release and of the one before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobsvc import cgroup, control, ending, kinds, launch, model, rundir, spec, systemd
from jobsvc.config import Config
from jobsvc.errors import InvalidSpec, WrongState
from jobsvc.live import Live
from jobsvc.model import Finished, Job, Queued, Result, Run, Running, Starting, Stopping, User
from jobsvc.runner import Runner


class Wire:
    """A connection on which everything is kept that goes down it."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        self.sent.append(json.loads(data))


class Owner:
    """A manager that keeps what it is told, beside a PID 1 that does what it is asked."""

    def __init__(self) -> None:
        self.systemd = self.launcher = self.allowance = self.commits = self.store = self.leftovers = self
        self.remembers_memory_peak = True
        self.config = Config()
        self.held_off: list[float] = []
        self.did: list[str] = []

    def change(self, job: Job, transition: Callable[[Job], Job]) -> Job:
        self.live.job = transition(job)
        return self.live.job

    def then(self, action: Callable[[], None]) -> None:
        action()

    def hold_off(self, seconds: float) -> None:
        self.held_off.append(seconds)

    def note(self, uid: int, processes: Any) -> None:
        self.noted = uid, processes

    def left(self, owner: int) -> int:
        return spec.INFINITY

    def events_of_run(self, job: Job) -> bool:
        return True

    async def launch(self, key: str) -> int:
        raise launch.LauncherGone("it hangs")

    async def usage(self, unit: str) -> dict[str, Any]:
        self.did.append("usage")
        return {}

    async def thaw(self, unit: str) -> None:
        self.did.append("thaw")

    async def stop(self, unit: str, seconds: float | None) -> None:
        self.did.append("stop")

    def release(self, unit: str) -> None:
        self.did.append("release")

    async def limits(self, unit: str, names: Any) -> dict[str, Any]:
        return {}

    async def set_limits(self, unit: str, limits: dict[str, Any]) -> None:
        raise systemd.ScopeError("no")

    async def start_scope(self, unit: str, pid: int, properties: Any) -> None:
        self.did.append("start_scope")

    async def sync(self) -> None:
        self.did.append("sync")

    live: Live


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((ending, "REPORTS"), (rundir, "RUNS")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, name, tmp_path / name)


def owned(phase: model.Phase) -> tuple[Runner, Owner]:
    owner = Owner()
    one, _ = runner()
    job = one.job
    owner.live = one.live
    one._owner = owner  # type: ignore[assignment]
    owner.live.job = replace(job, run=replace(job.run, phase=phase))
    return one, owner


def runner(*can: str) -> tuple[Runner, Wire]:
    alice = User(1000, "alice")
    wanted = {"Command": ["true"], "TimeoutStopUSec": 1}
    job = Job(
        id="0" * 16, owner=alice, user=alice, gid=1000, spec=wanted, created_at=1, request="", run=Run(1, Running())
    )
    one, wire = Runner(None, Live(job)), Wire()  # type: ignore[arg-type]
    one._link._packets, one._link.can, one._go = wire, frozenset(can), True  # type: ignore[assignment]
    return one, wire


def test_a_supervisor_of_the_release_before_is_not_asked_what_it_does_not_know() -> None:
    one, wire = runner()
    with pytest.raises(WrongState, match="older release"):
        asyncio.run(one.ask("pause"))
    one.thaw()
    assert wire.sent == []


def test_an_answer_goes_to_who_asked() -> None:
    one, wire = runner("ask")

    async def converse() -> list[Any]:
        asked = [asyncio.create_task(one.ask(what)) for what in ("pause", "resolve", "dance")]
        while len(wire.sent) < 3:
            await asyncio.sleep(0)
        numbers = [packet["ask"] for packet in wire.sent]
        await one._take({"type": "answer", "ask": 0, "error": "nobody asked"})
        await one._take({"type": "answer", "ask": numbers[2], "error": "cannot"})
        await one._take({"type": "answer", "ask": numbers[1], "error": "", "io_devices": {}})
        await one._take({"type": "answer", "ask": numbers[0], "error": ""})
        return await asyncio.gather(*asked, return_exceptions=True)

    pause, resolve, dance = asyncio.run(converse())
    assert (pause["error"], resolve["io_devices"]) == ("", {})
    assert isinstance(dance, WrongState)
    assert "cannot" in str(dance)


@pytest.mark.parametrize(
    ("file", "text", "limits", "wrong"),
    [
        ("memory.max", "max", {"MemoryMax": systemd.UNSET}, []),
        ("memory.max", "4096", {"MemoryMax": systemd.UNSET}, ["MemoryMax"]),
        ("cpu.max", "max 100000", {"CPUQuotaPerSecUSec": systemd.UNSET}, []),
        ("nothing", "", {"TasksMax": systemd.UNSET}, []),
        ("nothing", "", {"TasksMax": 5}, ["TasksMax"]),
        ("nothing", "", {"IOReadBandwidthMax": []}, []),
        ("io.max", "8:0 rbps=5 wbps=max", {"IOReadBandwidthMax": [["/dev/block/8:0", 5]]}, []),
        ("io.max", "", {"IOReadBandwidthMax": [["/dev/block/8:0", 5]]}, ["IOReadBandwidthMax"]),
    ],
)
def test_what_is_lifted_has_to_be_lifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, limits: dict[str, Any], wrong: list[str]
) -> None:
    monkeypatch.setattr(systemd, "CGROUPS", tmp_path)
    (tmp_path / file).write_text(text)
    assert [name for name, _ in systemd.not_in_force("/", limits)] == wrong


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        ({"Command": ["true"]}, 1),
        ({"Command": ["true"], "PrivateTmp": False}, 1),
        ({"Script": b"true"}, 2),
        ({"Command": ["true"], "Pty": True}, 2),
        ({"Command": ["true"], "ReadOnlyRoot": True}, 2),
        ({"Command": ["true"], "NoNewPrivileges": True}, 2),
    ],
)
def test_a_supervisor_of_the_release_before_refuses_what_it_would_leave_out(spec: dict[str, Any], version: int) -> None:
    alice = User(1000, "alice")
    whole = {"TimeoutStopUSec": 1, **spec}
    job = Job(id="0" * 16, owner=alice, user=alice, gid=1, spec=whole, created_at=1, request="", run=Run(1, Running()))
    request = rundir.build(job, Config(), sample_memory=False)
    assert request["version"] == version
    assert control.parse(json.dumps(request).encode())["id"] == job.id


def test_the_name_of_an_output_file_is_filled_in_for_the_run() -> None:
    alice = User(1000, "alice")
    whole: dict[str, Any] = {"TimeoutStopUSec": 1, "Command": ["true"], "Name": "a/..%j", "ArrayId": "x1"}
    whole |= {"StandardOutput": "append:/o/%x-%j-%r-%u-%A-%a-100%%a", "ArrayIndex": 7}
    job = Job(id="0" * 16, owner=alice, user=alice, gid=1, spec=whole, created_at=1, request="", run=Run(3, Running()))
    request = rundir.build(job, Config(), sample_memory=False)
    assert request["standard_output"] == f"append:/o/a_..%j-{'0' * 16}-3-alice-x1-7-100%a"
    assert request["standard_error"] is None
    before = replace(job, spec={"TimeoutStopUSec": 1, "Command": ["true"], "StandardError": "append:/o/%q%"})
    assert rundir.build(before, Config(), sample_memory=False)["standard_error"] == "append:/o/%q%"


@pytest.mark.parametrize(
    ("name", "path", "opened"),
    [
        (".profile", "/home/bob/%x", "/home/bob/_profile"),
        ("..", "/home/bob/%x", "/home/bob/__"),
        (".", "/home/bob/%x/log", "/home/bob/_/log"),
        (".", "/home/bob/.%x/log", "/home/bob/._/log"),
        ("..", "/home/bob/%x%x", "/home/bob/____"),
        ("../x", "/home/bob/%x", "/home/bob/___x"),
        ("/", "/home/bob/%x", "/home/bob/_"),
        (".a.b", "/home/bob/log.%x", "/home/bob/log._a.b"),
        ("a..b.", "/home/bob/%x", "/home/bob/a..b."),
    ],
)
def test_fact_in_a_path_leads_nowhere_else(name: str, path: str, opened: str) -> None:
    """A fact is one part of a path, is not hidden, and is neither the directory nor the one above it."""
    alice = User(1000, "alice")
    whole = {"TimeoutStopUSec": 1, "Command": ["true"], "Name": name, "StandardOutput": f"append:{path}"}
    job = Job(id="0" * 16, owner=alice, user=alice, gid=1, spec=whole, created_at=1, request="", run=Run(1, Running()))
    assert rundir.build(job, Config(), sample_memory=False)["standard_output"] == f"append:{opened}"


def test_empty_fact_is_no_empty_part_of_a_path() -> None:
    assert kinds.filled("append:/o/%x/%u", {"x": "", "u": "bob"}) == "append:/o/_/bob"
    assert kinds.filled("append:/o/%r%%", {"x": ""}) == "append:/o/%r%"


def test_a_run_that_jobs_db_does_not_know_is_what_its_request_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "RUNS", tmp_path)
    alice = User(1000, "alice")
    spec = {"Script": b"#!/bin/cat\n\xff", "Arguments": ["a"], "PrivateTmp": True, "Pty": True, "TimeoutStopUSec": 1}
    job = Job(id="0" * 16, owner=alice, user=alice, gid=1, spec=spec, created_at=1, request="", run=Run(1, Running()))
    rundir.write(job.key, rundir.build(job, Config(), sample_memory=False))
    found = rundir.recover(job.key)
    assert found is not None
    assert found.spec.items() >= spec.items()


@pytest.mark.parametrize(("adopted", "held_off"), [(False, 1), (True, 0)])
def test_what_goes_back_to_the_queue_does_not_go_in_circles(files: None, adopted: bool, held_off: int) -> None:
    one, owner = owned(Starting())
    one._again, one._adopted = True, adopted
    asyncio.run(one._settle())
    assert isinstance(one.job.run.phase, Queued)
    assert len(owner.held_off) == held_off


def test_what_is_stopped_while_the_launcher_hangs_was_stopped(files: None) -> None:
    one, owner = owned(Stopping("enough"))
    asyncio.run(one.begin())
    end = one.job.run.phase
    assert isinstance(end, Finished)
    assert (end.result, end.reason) == (Result.STOPPED, "stopped before it began")


def test_a_stop_before_the_beginning_is_known_as_one_to_the_next_life(files: None) -> None:
    one, _ = owned(Starting())
    one._link._packets = wire = Wire()  # type: ignore[assignment]

    async def stop() -> None:
        one.stop("enough")  # that it is stopping is not yet noted when we are killed

    asyncio.run(stop())
    assert wire.sent == [{"type": "stop", "reason": "enough"}]
    report = {"begun": False, "result": "stopped", "reason": "enough", "finished_usec": 1}
    next_life, _ = owned(Starting())
    asyncio.run(next_life._ended(report))
    end = next_life.job.run.phase
    assert isinstance(end, Finished)
    assert (end.result, end.reason) == (Result.STOPPED, "enough")


def test_what_was_stopped_before_its_supervisor_listened_is_told_so_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, owner = owned(Stopping("enough"))
    one._link._packets = wire = Wire()  # type: ignore[assignment]
    monkeypatch.setattr(cgroup, "of_process", lambda pid: f"/jobsvc.slice/{one.job.unit}")
    monkeypatch.setattr(systemd, "not_in_force", lambda group, limits: [])
    asyncio.run(one._admit({"main_pid": 4321}))
    assert sorted(owner.did) == ["start_scope", "sync"]
    assert wire.sent == [{"type": "stop", "reason": "enough"}]


@pytest.mark.parametrize(
    ("where", "sent"),
    [("/own.scope", []), ("/own.scope/below", []), (None, []), ("/own.scope2", ["look"]), ("/user.slice", ["look"])],
)
def test_only_a_supervisor_whose_job_is_not_where_it_was_put_is_told_to_look(
    monkeypatch: pytest.MonkeyPatch, where: str | None, sent: list[str]
) -> None:
    one, wire = runner()
    one.look_inside()  # it is not known yet where it is
    one.live.job = replace(one.job, run=replace(one.job.run, main_pid=4321, control_group="/own.scope"))
    monkeypatch.setattr(cgroup, "of_process", {4321: where}.get)
    one.look_inside()
    assert [packet["type"] for packet in wire.sent] == sent


def test_a_scope_is_let_go_as_soon_as_its_usage_is_known() -> None:
    one, owner = owned(Running())
    one._unit_is_ours = True
    report = {"begun": True, "result": "success", "finished_usec": 1}
    asyncio.run(one._ended(report))
    assert owner.did == ["usage", "release"]
    one.release()
    assert owner.did == ["usage", "release"]


def test_what_a_supervisor_does_not_stop_in_time_systemd_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobsvc.runner.STOP_GRACE", 0)
    one, owner = owned(Stopping("enough"))

    async def scenario() -> None:
        one.stop("enough")
        async with asyncio.timeout(60):
            while owner.did != ["thaw", "stop"]:
                await asyncio.sleep(0)

    asyncio.run(scenario())


@pytest.mark.parametrize("phase", [Running(), Stopping("enough")])
def test_supervisor_that_does_not_answer_is_ended_with_its_run(
    monkeypatch: pytest.MonkeyPatch, phase: model.Phase
) -> None:
    monkeypatch.setattr("jobsvc.runner.STOP_GRACE", 0)
    monkeypatch.setattr("jobsvc.runner.END_WITHIN", 0)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(rundir, "supervisor", lambda key: 4321)
    one, owner = owned(phase)
    one.live.job = replace(one.job, spec=one.job.spec | {"RuntimeMaxUSec": 1})

    async def scenario() -> None:
        if isinstance(phase, Running):
            one._bound_run()
        else:
            one.stop("enough")
        async with asyncio.timeout(30):
            while not killed:
                await asyncio.sleep(0)

    asyncio.run(scenario())
    assert (owner.did, killed) == (["thaw", "stop"], [(4321, 9)])
    assert one._lost()[0] == (Result.TIMEOUT if isinstance(phase, Running) else Result.STOPPED)


def test_run_that_is_paused_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = owned(Running())
    one.live.job = replace(one.job, spec=one.job.spec | {"RuntimeMaxUSec": 60_000_000})

    async def scenario() -> None:
        one._bound_run()
        assert one._end_by is not None
        await one._take({"type": "paused"})
        assert one._end_by is None
        await one._take({"type": "resumed"})
        assert one._end_by is not None
        one._unbind_run()

    asyncio.run(scenario())


def test_bounds_are_as_they_were_when_a_limit_cannot_be_put_in_force() -> None:
    one, owner = owned(Running())
    one.live.job = replace(one.job, run=replace(one.job.run, control_group="/none"))
    one._link.can = frozenset(["ask"])
    wire = one._link._packets
    assert isinstance(wire, Wire)

    async def scenario() -> None:
        task = asyncio.create_task(one.set({"RuntimeMaxUSec": 5, "TasksMax": 9}))
        while not wire.sent:
            await asyncio.sleep(0)
        await one._take({"type": "answer", "ask": wire.sent[0]["ask"], "error": ""})
        with pytest.raises(InvalidSpec, match="systemd refuses"):
            await task

    asyncio.run(scenario())
    assert [packet["runtime_max_usec"] for packet in wire.sent] == [5, None]


def test_a_limit_is_not_touched_when_bounds_cannot_be_changed() -> None:
    one, owner = owned(Running())
    with pytest.raises(WrongState, match="older release"):
        asyncio.run(one.set({"RuntimeMaxUSec": 5, "TasksMax": 9}))
