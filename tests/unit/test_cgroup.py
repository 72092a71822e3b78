"""What a scope's cgroup says, also when it is half gone; files stand in for the kernel's."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from stage import cgroup_mount, needs_root

from jobsvc.cgroup import Scope, of_process


@pytest.fixture
def scope(tmp_path: Path) -> Path:
    path = tmp_path / "slice" / "run.scope"
    path.mkdir(parents=True)
    (path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (path / "cgroup.procs").write_text("10\n11\n")
    (path / "memory.events").write_text("low 0\noom 0\noom_kill 0\noom_group_kill 0\n")
    (path.parent / "memory.events").write_text("oom_kill 5\n")
    (path / "memory.peak").write_text("1048576\n")
    (path / "cpu.stat").write_text("usage_usec 2500\nuser_usec 2000\nsystem_usec 500\n")
    (path / "io.stat").write_text("254:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=0 dios=0\n8:0 rbytes=4 wbytes=1\n")
    return path


def opened(scope: Path) -> Scope:
    return Scope(str(scope.parents[1]), "/slice/run.scope")


def test_usage(scope: Path) -> None:
    assert opened(scope).usage() == {
        "cpu_usage_nsec": 2_500_000,
        "memory_peak": 1048576,
        "io_read_bytes": 4100,
        "io_write_bytes": 101,
    }


def test_usage_without_controllers_is_unknown_not_zero(scope: Path) -> None:
    (scope / "memory.peak").unlink()
    (scope / "io.stat").unlink()
    (scope / "memory.events").unlink()
    one = opened(scope)
    assert one.usage() == {"cpu_usage_nsec": 2_500_000}
    assert one.oom_kills() == 0
    assert one.memory_fd is None


def test_processes_below_count_too(scope: Path) -> None:
    below = scope / "child" / "grandchild"
    below.mkdir(parents=True)
    (scope / "child" / "cgroup.procs").write_text("")
    (below / "cgroup.procs").write_text("12\n")
    assert sorted(opened(scope).pids()) == [10, 11, 12]


def test_oom_kills_are_those_since_the_beginning(scope: Path) -> None:
    (scope / "memory.events").write_text("oom_kill 2\n")
    one = opened(scope)
    assert one.oom_kills() == 0
    (scope / "memory.events").write_text("oom_kill 3\n")
    assert one.oom_kills() == 1


def test_a_scope_that_is_gone_says_so(scope: Path) -> None:
    one = opened(scope)
    assert one.populated() is True
    (scope / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert one.populated() is False
    (scope / "cgroup.events").write_text("")  # the kernel says ENODEV
    assert one.populated() is None
    shutil.rmtree(scope)
    assert one.usage() == {}
    assert one.pids() == []
    one.kill()


def test_the_slice_remembers_an_oom_kill_when_the_scope_is_gone(scope: Path) -> None:
    one = opened(scope)
    (scope / "memory.events").write_text("")
    assert one.oom_kills() == 0
    (scope.parent / "memory.events").write_text("oom_kill 6\n")
    assert one.oom_kills() == 1


def test_cgroup_of_a_process() -> None:
    assert (of_process(1) or "").startswith("/")
    assert of_process(4_194_305) is None


@needs_root
def test_a_user_may_name_a_cgroup_anything_but_two_lines() -> None:
    mount = os.fsencode(cgroup_mount())  # both suites' tests use it at once, each as a PID 1: no name from a pid
    place = tempfile.mkdtemp(prefix=b"jobsvc-", suffix=b"\xff\r0::", dir=mount) + b"/run"
    os.mkdir(place)
    child = subprocess.Popen(["sleep", "60"])
    try:
        with open(place + b"/cgroup.procs", "w") as procs:
            procs.write(str(child.pid))
        assert os.fsencode(of_process(child.pid) or "").endswith(place.removeprefix(mount))
    finally:
        child.kill()
        child.wait()
        os.removedirs(place)
