"""Paused runs: every process is halted, the clock stands still, and there is always a way on or out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stage import Run, Stage, eventually, lives, needs_root

pytestmark = needs_root

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"


def counting(stage: Stage, script: str = COUNT, **facts: object) -> Run:
    """A job that writes on and on, and has begun to."""
    run = stage.start("sh", "-c", script, **facts)
    run.go()
    run.hear("started")
    eventually(stage.journal.output)
    return run


def paused(run: Run) -> None:
    assert run.ask("pause")["error"] == ""
    assert [packet["type"] for packet in run.heard[-2:]] == ["paused", "answer"]
    assert "frozen 1" in run.cgroup("cgroup.events")


def test_a_paused_run_does_nothing_until_it_is_resumed(stage: Stage) -> None:
    run = counting(stage)
    paused(run)

    def still() -> bool:
        before = stage.journal.output()
        time.sleep(0.2)
        return stage.journal.output() == before

    assert eventually(still)  # when what was on its way has come
    written = stage.journal.output()
    assert run.ask("resume")["error"] == ""
    eventually(lambda: len(stage.journal.output()) > len(written) + 20)
    run.tell("stop")
    assert run.end()["result"] == "stopped"


def test_who_connects_hears_that_it_is_paused(stage: Stage) -> None:
    run = counting(stage)
    paused(run)
    run.connection.close()  # jobsvcd is restarted
    run.connection = run.connect()
    hello = run.hear("hello")
    assert (hello["phase"], hello["paused"]) == ("running", True)
    assert run.ask("pause")["error"] == ""  # again
    run.tell("stop")
    assert run.end()["signal"] == 15


def test_the_clock_of_a_paused_run_stands_still(stage: Stage) -> None:
    begun = time.monotonic()
    run = counting(stage, runtime_max_usec=5_000_000)
    paused(run)
    assert run.ask("bounds", runtime_max_usec=600_000)["error"] == ""
    time.sleep(0.8)
    assert lives(run.heard[0].get("main_pid") or 0) or run.cgroup("cgroup.procs")
    run.ask("resume")
    report = run.end()
    assert report["result"] == "timeout"
    assert 600_000 <= report["runtime_usec"] < (time.monotonic() - begun - 0.7) * 1e6


@pytest.mark.parametrize("number", [1, 15, 9])
def test_a_signal_to_a_paused_run_is_the_first_thing_it_sees(stage: Stage, number: int) -> None:
    run = counting(stage)
    paused(run)
    run.tell("signal", signal=number)
    report = run.end()
    assert (report["result"], report["signal"]) == ("signal", number)


def test_a_paused_run_that_ignores_term_is_killed_after_the_stop_timeout(stage: Stage) -> None:
    run = counting(stage, "trap '' TERM; " + COUNT, timeout_stop_usec=500_000)
    paused(run)
    begun = time.monotonic()
    run.tell("stop")
    assert run.end()["signal"] == 9
    assert time.monotonic() - begun > 0.4


def test_somebody_else_may_thaw_it(stage: Stage) -> None:
    run = counting(stage, runtime_max_usec=60_000_000)
    paused(run)
    assert run.ask("bounds", runtime_max_usec=300_000)["error"] == ""
    Path(f"{stage.mount}{run.scope}/cgroup.freeze").write_text("0")
    run.hear("resumed")
    assert run.end()["result"] == "timeout"


def test_what_is_being_stopped_is_not_paused(stage: Stage) -> None:
    run = counting(stage, "trap '' TERM; " + COUNT, timeout_stop_usec=60_000_000)
    run.tell("stop")
    assert "stopped" in run.ask("pause")["error"]
    run.ask("bounds", timeout_stop_usec=1)
    run.end()


def test_the_run_time_and_the_stop_timeout_can_be_changed(stage: Stage) -> None:
    run = counting(stage, "trap '' TERM; " + COUNT, timeout_stop_usec=60_000_000)
    assert run.ask("bounds", timeout_stop_usec=100_000, runtime_max_usec=1)["error"] == ""
    report = run.end()
    assert (report["result"], report["signal"]) == ("timeout", 9)


def test_what_is_not_known_is_answered(stage: Stage) -> None:
    run = counting(stage)
    assert "dance" in run.ask("dance")["error"]
    run.tell("stop")
    run.end()


def test_disks_are_found_as_the_user(stage: Stage) -> None:
    run = counting(stage)
    assert "Permission denied" in run.ask("resolve", paths=["/root/secret"])["error"]
    assert "/proc" in run.ask("resolve", paths=["/proc"])["error"]
    run.tell("stop")
    run.end()
