"""The thread that takes a job's output may hang: the run does not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import Run, Stage, eventually, needs_root

from jobsvc import linux

pytestmark = needs_root


def threads(run: Run) -> dict[int, list[str]]:
    """What each thread of the supervisor has open, but for the standard descriptors."""
    found = {}
    for task in Path(f"/proc/{run.supervisor}/task").iterdir():
        links = {int(fd.name): os.readlink(fd) for fd in (task / "fd").iterdir()}
        found[int(task.name)] = [link for fd, link in links.items() if fd > 2]
    return found


def hanging(stage: Stage, script: str = "echo one; sleep 1000", **facts: Any) -> Run:
    run = stage.start("sh", "-c", script, name="hangs", **facts)
    run.go()
    run.hear("started")
    eventually(lambda: any("nanosleep" in wchan.read_text() for wchan in tasks(run, "wchan")))
    return run


def tasks(run: Run, file: str) -> Iterator[Path]:
    return Path(f"/proc/{run.supervisor}/task").glob(f"*/{file}")


def test_run_time_holds_while_the_output_hangs(stage: Stage) -> None:
    report = hanging(stage, runtime_max_usec=300_000).end()
    assert report["result"] == "timeout"
    assert report["runtime_usec"] < 60_000_000  # the output hangs for longer
    assert report["notes"] == ["its output could not be read to the end: a pipe or terminal of its hangs in the kernel"]
    assert [pid for pid, _ in report["left"]] == [report["left"][0][0]]


@pytest.mark.parametrize("way", ["stop", "term", "exit"])
def test_end_is_known_while_the_output_hangs(stage: Stage, way: str) -> None:
    run = hanging(stage, "echo one; exit 7" if way == "exit" else "echo one; sleep 1000")
    match way:
        case "stop":
            run.tell("stop", reason="enough")
        case "term":
            os.kill(run.supervisor, signal.SIGTERM)
    report = run.end()
    wanted = {"stop": ("stopped", None), "term": ("stopped", None), "exit": ("exit-code", 7)}
    assert (report["result"], report["exit_code"]) == wanted[way]
    assert report["left"][0][0] == run.supervisor
    eventually(lambda: stage.journal.events()[-2:] == ["finished", "end-of-output"])


def test_pause_and_questions_are_answered_while_the_output_hangs(stage: Stage) -> None:
    run = hanging(stage)
    assert run.ask("pause")["error"] == ""
    assert run.ask("resume")["error"] == ""
    run.tell("stat")
    assert run.hear("offsets")["stdout"] == 0
    run.tell("stop", reason="enough")
    run.end()


def test_lock_is_free_when_a_supervisor_is_killed_whose_output_hangs(stage: Stage) -> None:
    run = hanging(stage)
    os.kill(run.supervisor, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{run.supervisor}").exists())


@pytest.mark.parametrize("terminal", [None, [24, 80]])
def test_only_one_thread_has_the_job_s_pipes_open(stage: Stage, terminal: list[int] | None) -> None:
    run = stage.start("sleep", "1000", terminal=terminal)
    pid = run.go()
    run.hear("started")
    theirs = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} - {"/dev/null"}
    tables = threads(run)
    keeper, capture = tables.pop(run.supervisor), tables.popitem()[1]
    assert not tables
    foreign = theirs | {"/dev/ptmx", "/dev/pts/ptmx"}
    assert not foreign & set(keeper)
    assert foreign & set(capture)
    assert not [link for link in capture if link.startswith(("/proc", "/sys", stage.runs))]
    run.tell("stop", reason="enough")
    run.end()


def test_the_process_that_writes_files_has_the_user_s_rights_only(stage: Stage) -> None:
    place = Path(stage.directory) / "files"
    place.mkdir()
    os.chown(place, 65534, 65534)
    run = stage.start("sleep", "1000", standard_output=f"append:{place}/log")
    run.go()
    run.hear("started")
    (writer,) = [
        status
        for status in map(Path.read_text, Path("/proc").glob("[0-9]*/status"))
        if f"\nPPid:\t{run.supervisor}\n" in status and "\nUid:\t0\t65534\t0\t65534\n" in status
    ]
    facts = dict(line.split(":\t") for line in writer.splitlines() if ":\t" in line)
    assert {facts[name].strip("0") for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {""}
    assert facts["Groups"].split() == [str(gid) for gid in os.getgrouplist("nobody", 65534)]
    assert Path(f"/proc/{facts['Pid']}/oom_score_adj").read_text() == "0\n"
    with pytest.raises(PermissionError):
        as_nobody(lambda: os.kill(int(facts["Pid"]), signal.SIGTERM))
    run.tell("stop", reason="enough")
    run.end()


def as_nobody(action: Any) -> None:
    """Raises what the action raises for that user."""
    os.setresuid(-1, 65534, -1)
    try:
        os.setresuid(65534, -1, -1)
        action()
    finally:
        os.setresuid(-1, 0, -1)
        os.setresuid(0, -1, -1)


@pytest.mark.parametrize("path", ["/proc/{pid}/oom_score_adj", "/proc/{pid}/comm", "/sys/power/state"])
def test_files_of_the_kernel_s_own_are_no_place_for_output(stage: Stage, path: str) -> None:
    report = stage.run(
        "echo",
        "x",
        standard_output=f"append:{path.format(pid=os.getpid())}",
        uid=0,
        user="root",
        gid=0,
        root_allowed=True,
    )
    assert (report["result"], report["step"]) == ("start-failed", "stdout")
    assert "of the kernel's own" in report["reason"] or "Read-only" in report["reason"]


def test_limit_of_a_file_s_size_holds_for_output_files(stage: Stage) -> None:
    place = Path(stage.directory) / "sizes"
    place.mkdir()
    os.chown(place, 65534, 65534)
    path = place / "log"
    report = stage.run("head", "-c", "50000", "/dev/zero", standard_output=f"append:{path}", rlimits={"FSIZE": 1000})
    assert path.stat().st_size == 1000
    assert report["notes"] == [f"{path}: File too large after 1000 bytes"]
    assert len(stage.journal.output()) == 50_000


def test_file_systems_that_store_files(tmp_path: Path) -> None:
    from jobsvc import outfile

    with (tmp_path / "file").open("wb") as file, open("/proc/self/comm", "rb") as pseudo:
        assert outfile.stores(file.fileno())
        assert not outfile.stores(pseudo.fileno())
    shared = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    assert linux.file_system(shared) == outfile.TMPFS
    assert outfile.stores(shared)
    os.close(shared)


def test_run_has_its_end_where_no_thread_can_be_started(stage: Stage) -> None:
    run = stage.start("true", name="no-thread")
    run.go()
    report = run.end()
    assert report["result"] == "start-failed"
    assert report["reason"] == "no thread for its output: can't start new thread"
    eventually(lambda: stage.journal.events()[-1:] == ["end-of-output"])


def test_start_timeout_is_in_the_journal(stage: Stage) -> None:
    """The supervisor ends in the midst of a look-up: nothing is left to another thread."""
    run = stage.start("true", name="no-answer", start_timeout_usec=300_000)
    eventually(lambda: stage.journal.events()[-2:] == ["finished", "end-of-output"], 10)
    assert stage.stored(run.key)["result"] == "start-failed"
