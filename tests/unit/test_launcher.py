"""The launcher launches what it is asked to, survives whatever it is sent, and inherits nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import NOBODY, REPOSITORY, Stage, eventually, lives, needs_root, staged

from jobsvc import control

pytestmark = needs_root


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


def tell(stage: Stage, data: bytes) -> dict[str, object]:
    stage.connection.send(data)
    answer: dict[str, object] = json.loads(stage.connection.recv(4096))
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        b"[]",
        b'{"version":2,"type":"launch","run":"0123456789abcdef-1"}',
        b'{"type":"launch","run":"0123456789abcdef-1"}',
        b'{"version":1,"type":"launch"}',
        b'{"version":1,"type":"launch","run":"../../etc"}',
        b'{"version":1,"type":"launch","run":"0123456789abcdef-999999"}',  # no such directory
        b'{"version":1,"type":"other","run":"0123456789abcdef-1"}',
        b'{"version":1,"type":"launch","run":"0123456789abcdef-1"' + b" " * 150_000,
    ],
)
def test_what_is_no_launch_is_answered_with_an_error(stage: Stage, data: bytes) -> None:
    answer = tell(stage, data)
    assert (answer["type"], answer["version"]) == ("error", 1)
    assert answer["text"]
    assert stage.run("true")["result"] == "success"


def test_descriptors_that_were_not_asked_for_are_closed(stage: Stage) -> None:
    stage.run("true")
    fds = f"/proc/{stage.launcher.pid}/fd"
    before = len(os.listdir(fds))
    key = stage.prepare(stage.request("true"))
    assert stage.ask(key, (0, 0))["type"] == "error"
    control.send_fds(stage.connection, b"nonsense", [0, 0])
    stage.connection.recv(4096)
    eventually(lambda: len(os.listdir(fds)) == before)


def test_others_than_root_are_not_served(stage: Stage) -> None:
    path = f"{stage.directory}/launcher.sock"
    os.chmod(path, 0o666)
    code = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET);"
        "s.connect(sys.argv[1]); s.settimeout(30); print(s.recv(10))"
    )
    shown = subprocess.run(["/usr/bin/python3", "-c", code, path], user=NOBODY.pw_uid, capture_output=True, check=False)
    assert shown.stdout == b"b''\n"
    os.chmod(path, 0o600)


def test_several_connections_and_one_that_comes_and_goes(stage: Stage) -> None:
    for _ in range(40):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(f"{stage.directory}/launcher.sock")
        connection.close()
    assert stage.run("true")["result"] == "success"


def test_the_control_socket_listens_before_the_answer_and_is_roots(stage: Stage) -> None:
    run = stage.start("true")
    assert os.stat(f"{run.directory}/control").st_mode & 0o777 == 0o600
    run.go()
    run.end()


def test_ended_supervisors_leave_no_zombies(stage: Stage) -> None:
    pids = []
    for _ in range(5):
        run = stage.start("true")
        run.go()
        run.end()
        pids.append(run.supervisor)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_the_launcher_cannot_be_dumped_or_traced_and_has_no_capabilities_to_pass_on(
    stage: Stage,
) -> None:
    run = stage.start("sleep", "100")
    run.go()
    for pid in (stage.launcher.pid, run.supervisor):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        fields = {k: v.strip() for k, _, v in (x.partition(":") for x in status.splitlines())}
        assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="utf-8")
        core = next(line for line in limits.splitlines() if "core" in line)
        assert core.split()[4] == "0"
    run.tell("stop")
    run.end()


def test_a_run_is_launched_once_however_often_it_is_asked_for(stage: Stage) -> None:
    stage.fresh()
    run = stage.gated("read x; echo once")
    run.go()
    run.hear("started")
    assert stage.ask(run.key)["type"] == "error"
    run.on()
    assert run.end()["result"] == "success"
    assert stage.journal.output() == b"once\n"


def test_even_a_second_supervisor_does_not_disturb_the_first(stage: Stage) -> None:
    run = stage.gated("read x; echo done")
    run.go()
    run.hear("started")
    (Path(run.directory) / "ticket").touch()  # what a confused service might do
    os.unlink(f"{run.directory}/control")
    answer = stage.ask(run.key)
    assert answer["type"] == "launched"
    second = int(str(answer["pid"]))
    eventually(lambda: not os.path.exists(f"/proc/{second}"))
    run.on()
    assert run.end()["result"] == "success"


def test_the_lock_is_held_for_life_and_by_nobody_else(stage: Stage) -> None:
    run = stage.start("sleep", "100")
    pid = run.go()
    run.hear("started")
    held = f"{run.directory}/lock"
    code = "import fcntl,sys; fcntl.lockf(open(sys.argv[1],'w'), fcntl.LOCK_EX|fcntl.LOCK_NB)"
    probe = [sys.executable, "-c", code, held]
    assert subprocess.run(probe, capture_output=True, check=False).returncode == 1
    os.kill(run.supervisor, signal.SIGKILL)
    eventually(lambda: not os.path.exists(f"/proc/{run.supervisor}"))
    assert subprocess.run(probe, capture_output=True, check=False).returncode == 0
    assert os.path.exists(f"/proc/{pid}")  # the job lives on: jobsvcd stops its scope
    os.kill(pid, signal.SIGKILL)


def test_a_supervisor_that_is_killed_before_go_takes_the_held_process_along(stage: Stage) -> None:
    run = stage.start("touch", f"{stage.directory}/never")
    pid = run.hold()
    os.kill(run.supervisor, signal.SIGKILL)
    eventually(lambda: not lives(pid))
    assert not os.path.exists(f"{stage.directory}/never")


def test_supervisors_outlive_the_launcher(stage: Stage) -> None:
    stage.fresh()
    run = stage.start("sh", "-c", "sleep 0.5; echo still here")
    run.go()
    run.hear("started")
    stage.launcher.terminate()
    assert stage.launcher.wait() == -signal.SIGTERM
    assert run.end()["result"] == "success"
    assert stage.journal.output().endswith(b"still here\n")
    stage.connection.close()
    stage.launcher, stage.connection = stage.launch()
    assert stage.run("true")["result"] == "success"


def test_the_package_may_be_replaced_under_a_running_job(tmp_path: Path) -> None:
    """Every stage checks that nothing is imported late; this one really takes the files away."""
    import shutil

    import stage as module

    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "jobsvc", copy / "jobsvc")
    real = module.REPOSITORY
    module.REPOSITORY = copy
    try:
        with staged() as stage:
            eventually(lambda: stage.run("true")["result"] == "success")
            run = stage.start("sh", "-c", "echo one; sleep 0.2; echo two")
            run.go()
            shutil.rmtree(copy)
            assert run.end()["result"] == "success"
            assert stage.run("sh", "-c", "exit 3")["exit_code"] == 3
    finally:
        module.REPOSITORY = real


def test_it_wants_to_be_socket_activated() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "jobsvc.launcher"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        text=True,
    )
    assert shown.returncode == 1
    assert "jobsvc-launcher.socket" in shown.stderr


def test_what_is_there_before_the_fork_is_not_counted_any_more_where_python_can_do_without() -> None:
    """Else looking at an object would write to its page, and copy it."""
    code = """
import sys
from jobsvc import heap
kept = [["list"], {"dict": 1.5}, "text" * 2, lambda: "constant"]
heap.settle()
things = [*kept, *kept[1].values(), *kept[3].__code__.co_consts]
assert all(sys.getrefcount(thing) == sys.getrefcount(None) for thing in things)
kept.append(["new"])
assert sys.getrefcount(kept[-1]) < 10
"""
    known = (3, 12) <= sys.version_info < (3, 14)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 if known else "AssertionError" in done.stderr


@needs_root
def test_the_rehearsal_runs_true_and_leaves_nothing() -> None:
    code = """
import os, signal, sys
from jobsvc import linux, rehearsal, report, supervisor
linux.harden()
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM)]
    paths = supervisor.NAMESPACE, supervisor.REPORTS, supervisor.CGROUPS
    return sorted(os.listdir("/proc/self/fd")), handlers, paths, os.umask(0o177), os.listdir(sys.argv[1])
os.umask(0o177)
before = state()
rehearsal.PATIENCE = 60
results = []
write = report.write
def note(*arguments):
    results.append(arguments[-1]["result"])
    return write(*arguments)
report.write = note
rehearsal.look = lambda path: None
rehearsal.rehearse(sys.argv[1] + "/rehearsal")
assert state() == before, (state(), before)
assert results == ["success"] * rehearsal.TIMES, results
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    pass
else:
    raise AssertionError("a child is left")
os.mkdir(sys.argv[1] + "/rehearsal")
rehearsal.rehearse(sys.argv[1] + "/rehearsal")
rehearsal.REQUEST["command"] = []
rehearsal.rehearse(sys.argv[1] + "/rehearsal")
assert state() == before, (state(), before)
"""
    with tempfile.TemporaryDirectory() as place:  # short, for the sockets
        done = subprocess.run([sys.executable, "-c", code, place], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has no command" in done.stderr
