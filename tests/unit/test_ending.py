"""How runs end, and that their true end is known."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from stage import Stage, eventually, lives, needs_root

from jobsvc import control, ending, model
from jobsvc.chunks import Missing

pytestmark = needs_root


def test_every_exit_code_is_told(stage: Stage) -> None:
    for code in range(256):
        report = stage.run("sh", "-c", f"exit {code}")
        assert report["exit_code"] == code
        assert report["signal"] is None
        assert report["result"] == ("success" if code == 0 else "exit-code")


@pytest.mark.parametrize(
    "number", [n for n in signal.valid_signals() if n not in (17, 18, 19, 20, 21, 22, 23, 28, 32, 33)]
)
def test_every_deadly_signal_is_told(stage: Stage, number: int) -> None:
    report = stage.run("sh", "-c", f"ulimit -c 0; kill -{number} $$; exit 1")
    assert (report["signal"], report["exit_code"]) == (number, None)
    assert report["result"] in ("signal", "core-dump")
    assert report["begun"]


def test_stop_ends_a_job_that_listens(stage: Stage) -> None:
    run = stage.start("sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")
    run.go()
    eventually(stage.journal.chunks)
    run.tell("stop", reason="enough")
    report = run.end()
    assert (report["result"], report["reason"], report["exit_code"]) == ("stopped", "enough", 3)
    assert stage.journal.output() == b"up\nbye\n"


def test_stop_ends_a_job_that_ignores_it_with_its_children(stage: Stage) -> None:
    code = "trap '' TERM; for i in 1 2 3; do (trap '' TERM; setsid sh -c 'echo $$; exec sleep 100') & done; wait"
    run = stage.start("sh", "-c", code, timeout_stop_usec=3_000_000)
    run.go()
    pids = eventually(lambda: len(words := stage.journal.output().split()) == 3 and words)
    begun = time.monotonic()
    run.tell("stop", reason=None)
    intent = eventually(
        lambda: os.path.exists(f"{run.directory}/intent") and json.loads(Path(f"{run.directory}/intent").read_text())
    )
    assert intent["intent"] == "stop"
    report = run.end()
    assert time.monotonic() - begun > 2.9
    assert (report["result"], report["signal"]) == ("stopped", 9)
    assert not any(lives(int(pid)) for pid in pids)


def test_stop_reaches_processes_that_were_stopped(stage: Stage) -> None:
    run = stage.start("sh", "-c", "echo up; kill -STOP $$", timeout_stop_usec=20_000_000)
    run.go()
    eventually(stage.journal.chunks)
    run.tell("stop")
    assert run.end()["signal"] == signal.SIGTERM


def test_another_kill_signal_is_used(stage: Stage) -> None:
    run = stage.start("sh", "-c", "trap 'exit 5' INT; echo up; while :; do sleep 0.05; done", kill_signal=2)
    run.go()
    eventually(stage.journal.chunks)
    run.tell("stop")
    assert run.end()["exit_code"] == 5


def test_the_run_time_is_limited(stage: Stage) -> None:
    report = stage.run("sleep", "100", runtime_max_usec=300_000)
    assert (report["result"], report["signal"]) == ("timeout", signal.SIGTERM)
    assert 300_000 <= report["runtime_usec"] < 90_000_000


def test_a_signal_goes_to_the_main_process_alone(stage: Stage) -> None:
    code = "trap 'echo usr; exit 0' USR1; sh -c 'trap \"echo child\" USR1; sleep 100' & echo up; wait"
    run = stage.start("sh", "-c", code)
    run.go()
    eventually(stage.journal.chunks)
    run.tell("signal", signal=10)
    assert run.end()["exit_code"] == 0
    assert stage.journal.output() == b"up\nusr\n"


def test_leftovers_are_ended_after_the_main_process(stage: Stage) -> None:
    run = stage.gated("(trap 'echo child ends; exit' TERM; echo set; while :; do sleep 0.05; done) & read x")
    run.go()
    eventually(lambda: stage.journal.output() == b"set\n")
    run.on()
    assert run.end()["result"] == "success"
    assert stage.journal.output() == b"set\nchild ends\n"


def test_exit_type_cgroup_waits_for_the_last_process(stage: Stage) -> None:
    report = stage.run("sh", "-c", "(sleep 0.4; echo child done) & exit 4", exit_type="cgroup")
    assert report["exit_code"] == 4
    assert report["runtime_usec"] > 400_000
    assert stage.journal.output() == b"child done\n"


def test_stop_while_waiting_for_the_last_process(stage: Stage) -> None:
    run = stage.start("sh", "-c", "sleep 100 & echo up", exit_type="cgroup")
    pid = run.go()
    eventually(stage.journal.chunks)
    eventually(lambda: not lives(pid))
    run.tell("stop", reason="why")
    report = run.end()
    assert (report["result"], report["reason"], report["exit_code"]) == ("stopped", "why", 0)


def test_a_job_that_leaves_its_scope_is_killed(stage: Stage) -> None:
    run = stage.start("sleep", "100")
    pid = run.go()
    run.hear("started")
    Path(f"{stage.mount}{stage.slice}/cgroup.procs").write_text(str(pid))
    report = run.end()
    assert (report["result"], report["signal"]) == ("signal", 9)
    assert report["reason"] == "left its scope"


@pytest.mark.parametrize("how", ["told", "deserted"])
def test_a_job_that_leaves_a_child_behind_is_found_by_who_looks(stage: Stage, how: str) -> None:
    run = stage.start("sh", "-c", "sleep 100 & exec sleep 100")
    pid = run.go()
    run.hear("started")
    run.tell("hello", looks=True)
    scope = Path(f"{stage.mount}{run.scope}/cgroup.procs")
    eventually(lambda: len(scope.read_text().split()) == 2)
    Path(f"{stage.mount}{stage.slice}/cgroup.procs").write_text(str(pid))
    if how == "told":
        run.tell("look")
    else:
        run.connection.close()
    report = eventually(lambda: os.path.exists(f"{stage.reports}/{run.key}") and stage.stored(run.key))
    assert (report["result"], report["signal"], report["reason"]) == ("signal", 9, "left its scope")
    eventually(lambda: not lives(run.supervisor))


def test_the_scope_may_vanish_at_the_end(stage: Stage) -> None:
    run = stage.start("sh", "-c", "sleep 0.1; echo x")
    run.go()
    events = Path(f"{stage.mount}{run.scope}/cgroup.events")
    eventually(lambda: "populated 0" in events.read_text())
    os.rmdir(f"{stage.mount}{run.scope}")
    assert run.end()["result"] == "success"


def test_end_of_file_before_go_starts_nothing(stage: Stage) -> None:
    marker = f"{stage.directory}/marker"
    run = stage.start("touch", marker)
    pid = run.hold()
    other = run.connect()
    run.connection.close()
    time.sleep(0.1)
    assert os.path.exists(f"/proc/{pid}")  # the other one may still say go
    other.close()
    report = eventually(lambda: os.path.exists(f"{stage.reports}/{run.key}") and stage.stored(run.key))
    assert (report["result"], report["begun"], report["reason"]) == ("start-failed", False, "never begun")
    eventually(lambda: not os.path.exists(f"/proc/{run.supervisor}"))
    assert not os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(marker)
    assert not os.path.exists(run.directory)
    assert stage.journal.entries == []


def test_abort_starts_nothing_and_says_why(stage: Stage) -> None:
    run = stage.start("true")
    run.hold()
    run.tell("abort", text="MemoryMax is not in force")
    report = run.end()
    assert (report["result"], report["begun"]) == ("start-failed", False)
    assert report["reason"] == "MemoryMax is not in force"
    assert stage.journal.events() == ["finished", "end-of-output"]


def test_stop_before_go_starts_nothing(stage: Stage) -> None:
    run = stage.start("true")
    run.hold()
    run.tell("stop", reason="changed my mind")
    report = run.end()
    assert (report["result"], report["begun"]) == ("stopped", False)


def test_a_held_process_that_is_killed_is_a_start_failed(stage: Stage) -> None:
    run = stage.start("true")
    os.kill(run.hold(), signal.SIGKILL)
    report = run.end()
    assert (report["result"], report["signal"], report["begun"]) == ("start-failed", 9, False)


def test_a_look_up_that_hangs_is_ended_with_its_run(stage: Stage) -> None:
    run = stage.start("true", io_paths=["/server/hangs"])
    pid = run.hear("hello")["main_pid"]
    run.tell("stop", reason="enough")
    assert run.end()["result"] == "stopped"
    assert not lives(pid)


def test_a_process_in_another_scope_is_not_begun(stage: Stage) -> None:
    run = stage.start("true")
    run.hold()
    run.tell("go", control_group=stage.slice + "/no-such.scope")
    report = run.end()
    assert (report["result"], report["begun"], report["step"]) == ("start-failed", False, "scope")
    run = stage.start("true")
    run.hold()
    os.mkdir(f"{stage.mount}{stage.slice}/other.scope")
    run.tell("go", control_group=stage.slice + "/other.scope")
    report = run.end()
    assert report["step"] == "scope"


def test_a_report_that_cannot_be_stored_stays_in_the_run_directory(stage: Stage) -> None:
    os.rename(stage.reports, stage.reports + ".away")
    try:
        run = stage.start("sh", "-c", "exit 9")
        run.go()
        assert run.end()["exit_code"] == 9
    finally:
        os.rename(stage.reports + ".away", stage.reports)
    assert sorted(os.listdir(run.directory)) == ["begun", "lock", "report", "request"]
    assert control.parse(Path(f"{run.directory}/report").read_bytes())["exit_code"] == 9


def test_the_run_directory_is_removed_and_the_report_complete(stage: Stage) -> None:
    run = stage.start("sh", "-c", "echo hello")
    pid = run.go()
    report = run.end()
    assert not os.path.exists(run.directory)
    stored = stage.stored(run.key)
    assert {**report, "version": control.VERSION, "readable_by": 1} == stored
    assert stored["main_pid"] == pid
    assert stored["started_usec"] <= stored["finished_usec"]
    assert stored["usage"]["cpu_usage_nsec"] > 0
    assert stored["rusage"]["cpu_usage_nsec"] > 0
    assert os.stat(f"{stage.reports}/{run.key}").st_mode & 0o777 == 0o600


def test_term_ends_the_job_and_the_supervisor_soon(stage: Stage) -> None:
    run = stage.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done", timeout_stop_usec=90_000_000)
    run.go()
    eventually(stage.journal.chunks)
    stage.journal.gone()
    begun = time.monotonic()
    os.kill(run.supervisor, signal.SIGTERM)
    report = run.end()
    assert time.monotonic() - begun < 30  # it has 90 for a stop
    assert (report["result"], report["signal"]) == ("stopped", 9)
    stage.journal.open()


def test_term_after_the_end_just_ends(stage: Stage) -> None:
    stage.journal.taking.clear()
    run = stage.start("echo", "hello")
    run.go()
    run.report()
    begun = time.monotonic()
    os.kill(run.supervisor, signal.SIGTERM)
    run.hear("closed")
    eventually(lambda: not os.path.exists(f"/proc/{run.supervisor}"))
    assert time.monotonic() - begun < 4  # by itself it takes five
    stage.journal.taking.set()


def test_hup_and_int_are_ignored_by_the_supervisor_not_by_the_job(stage: Stage) -> None:
    run = stage.start("sh", "-c", "echo up; kill -HUP $PPID 2>/dev/null; kill -INT $$; sleep 1")
    run.hold()
    os.kill(run.supervisor, signal.SIGHUP)
    os.kill(run.supervisor, signal.SIGINT)
    run.tell("go", control_group=run.scope)
    assert run.end()["signal"] == signal.SIGINT


def test_an_idle_supervisor_never_wakes(stage: Stage) -> None:
    run = stage.gated("echo up; read x")
    run.go()
    eventually(stage.journal.chunks)
    run.tell("hello", looks=True)

    def switches() -> list[str]:
        status = Path(f"/proc/{run.supervisor}/status").read_text().splitlines()
        return [line for line in status if "ctxt_switches" in line]

    def idle(seconds: float) -> bool:
        before = switches()
        time.sleep(seconds)
        return switches() == before

    eventually(lambda: idle(0.2))
    assert idle(1)
    run.tell("stop")
    run.end()


def test_a_new_peer_hears_how_things_are(stage: Stage) -> None:
    run = stage.gated("echo hello; read x")
    pid = run.go()
    run.hear("started")
    eventually(stage.journal.chunks)

    def heard() -> dict[str, Any]:
        run.connection.close()
        run.connection = run.connect()
        return run.hear("hello")

    eventually(lambda: heard()["stdout"])  # what journald has been handed is noted a moment later
    hello = heard()
    assert (hello["version"], hello["phase"], hello["main_pid"]) == (1, "running", pid)
    assert (hello["stdout"], hello["stderr"], hello["report"]) == (6, 0, None)
    assert hello["started_usec"] > 0
    run.on()
    assert run.end()["result"] == "success"


def test_what_readers_miss_is_counted_once() -> None:
    known = (("stdout", 0, 10, "cut"), ("stdout", 20, 30, "lost"))
    gaps = [Missing("stdout", 25, 40, "lost"), Missing("stdout", 60, 70, "lost"), Missing("stderr", 0, 5, "lost")]
    found = ending.with_lost(known, gaps)
    assert set(found) == {
        ("stdout", 0, 10, "cut"),
        ("stdout", 20, 40, "lost"),
        ("stdout", 60, 70, "lost"),
        ("stderr", 0, 5, "lost"),
    }
    assert ending.with_lost(found, gaps) == found


def starting() -> model.Job:
    alice = model.User(1000, "alice")
    spec = {"Command": ["true"], "TimeoutStopUSec": 1}
    run = model.Run(1, model.Starting())
    return model.Job(id="a" * 16, owner=alice, user=alice, gid=1000, spec=spec, created_at=1, request="", run=run)


def test_a_request_that_cannot_be_understood_is_an_end_that_can_be_taken_in(stage: Stage) -> None:
    key = stage.prepare(stage.request("true"))
    Path(f"{stage.runs}/{key}/request").write_bytes(b"{")
    assert stage.ask(key)["type"] == "launched"
    report = eventually(lambda: os.path.exists(f"{stage.reports}/{key}") and stage.stored(key))
    end = ending.take(starting(), report, {}, 7).run.phase
    assert isinstance(end, model.Finished)
    assert (end.result, end.at) == (model.Result.START_FAILED, report["finished_usec"])
    assert "the request cannot be read" in end.reason


def test_a_report_that_does_not_say_when_or_how_is_an_end_all_the_same() -> None:
    """Supervisors of releases before wrote such ones."""
    facts = {"begun": False, "result": "start-failed", "reason": "the request cannot be read"}
    end = ending.take(starting(), facts, {}, 7).run.phase
    assert end == model.Finished(model.Result.START_FAILED, 7, "the request cannot be read")
    end = ending.take(starting(), {"reason": "odd"}, {}, 7).run.phase
    assert end == model.Finished(model.Result.LOST, 7, "no result: odd")
