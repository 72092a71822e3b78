"""A machine of its own that is powered off, cut from power, and whose clock is set."""

import gzip
import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from story import ended, in_state, inside, jobctl, start, status, until_on

from machine import scale
from machine.host import quietly
from machine.vm import VM

ON = "echo on; while :; do sleep 0.2; done"
CONFIG = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"
DAY = 86400
SYNCED_WITHIN = 10  # seconds: SyncIntervalSec= of the namespace, and some


def until_more(job: str) -> None:
    bus = Bus()  # noqa: F821
    while bus.logs(job).count(b"\n") < 10:
        pass


@pytest.mark.one_suite
@pytest.mark.scaled
def test_run_times_and_lists_do_not_mind_a_clock_that_is_set(vm: VM) -> None:
    def jumped(days: int) -> dict[str, Any]:
        job = start(vm, "--timeout", "10s", "--", "sh", "-c", "echo on; sleep 2; echo still; exec sleep 60")
        inside(vm, until_on, [job])
        vm.run("date", "-s", f"@{int(vm.run('date', '+%s').stdout) + days * DAY}")
        told = ended(vm, job, timeout=100)
        assert jobctl(vm, "logs", job).stdout == b"on\nstill\n"
        assert told["result"] == "timeout"
        return told

    jobs = [jumped(days)["id"] for days in scale.times([1, -1], [1, -2, 1])]
    listed = jobctl(vm, "list", "--limit", str(len(jobs))).stdout.decode().splitlines()[1:]
    assert [line.split()[0] for line in listed] == jobs[::-1]


@pytest.mark.one_suite
def test_a_file_on_a_disk_that_hangs_delays_no_stop(vm: VM, tmp_path: Path) -> None:
    quietly("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", tmp_path / "disk", "8M")
    # It is almost empty; an emulated processor takes a minute to take in eight megabytes.
    vm.run("sh", "-c", "gzip -dc > /var/tmp/disk", input=gzip.compress((tmp_path / "disk").read_bytes()))
    vm.run("sh", "-c", "mkdir -p /mnt/disk && mount -o loop /var/tmp/disk /mnt/disk && chmod 1777 /mnt/disk")
    flood = "yes | head -c 3000000"
    job = start(
        vm,
        "--output",
        "/mnt/disk/out",
        "--",
        "sh",
        "-c",
        f"echo on; until [ -e go ]; do sleep 0.1; done; {flood}; exec sleep 1000",
    )
    vm.wait_until(lambda: vm.exists("/mnt/disk/out") and vm.read("/mnt/disk/out") == b"on\n")
    vm.run("fsfreeze", "-f", "/mnt/disk")
    try:
        vm.run("touch", "go", user="alice")
        vm.wait_until(lambda: len(jobctl(vm, "logs", job).stdout) > 65536)
        assert jobctl(vm, "stop", job).returncode == 0
        told = status(vm, job)
        assert (told["result"], told["signal"]) == ("stopped", 15)
        assert "/mnt/disk/out: not written in time after 3 bytes" in told["reason"]
        vm.wait_until(lambda: not vm.exists(f"/run/jobsvc/runs/{job}-1"))
    finally:
        vm.run("fsfreeze", "-u", "/mnt/disk")
    vm.wait_until(lambda: vm.run("umount", "/mnt/disk", check=False).returncode == 0)
    vm.run("rm", "-f", "/var/tmp/disk", "/home/alice/go")


def clocks() -> list[float]:
    return [time.clock_gettime(clock) for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)]


@pytest.mark.one_suite
def test_time_asleep_is_no_run_time_and_lists_stay_in_order(vm: VM) -> None:
    asleep = 12
    limited = start(vm, "--timeout", "45s", "--", "sh", "-c", "echo on; exec sleep 1000")
    inside(vm, until_on, [limited])
    began, due = inside(vm, clocks), int(vm.run("date", "+%s").stdout) + 20
    timed = start(vm, "--at", f"@{due}", "--", "sh", "-c", "date +%s; echo on")
    # Only of this kind of sleep the emulator wakes up again.
    vm.run("rtcwake", "-m", "mem", "-s", str(asleep), timeout=200)
    awake = inside(vm, clocks)
    slept = (awake[1] - began[1]) - (awake[0] - began[0])
    assert slept > asleep / 2
    # By the wall clock its time is over, by its own it is not.
    told = ended(vm, limited, timeout=200)
    assert told["result"] == "timeout"
    run = ended(vm, timed, timeout=100)
    assert run["result"] == "success"
    assert int(jobctl(vm, "logs", timed).stdout.split()[0]) >= due
    took = [datetime.fromisoformat(told[name]) for name in ("started_at", "finished_at")]
    assert (took[1] - took[0]).total_seconds() > 45 + slept / 2
    listed = [line.split()[0] for line in jobctl(vm, "list", "--limit", "2").stdout.decode().splitlines()[1:]]
    assert listed == [timed, limited]
    assert jobctl(vm, "run", "--", "echo", "fine").stdout == b"fine\n"


def submit(count: int) -> list[str]:
    bus = Bus()  # noqa: F821
    return many(bus, [{"Command": ("as", ["sh", "-c", f"echo {i} >> order"])} for i in range(count)])  # noqa: F821


@pytest.mark.one_suite
@pytest.mark.scaled
def test_the_machine_goes_down_in_good_order(vm: VM) -> None:
    vm.write(CONFIG, "[Manager]\nMaxRunning=4\n")
    vm.run("systemctl", "reload", "jobsvc.service")
    vm.run("rm", "-f", "order", user="alice")
    ways = {
        "plain": "echo on; exec sleep 1000",
        # By the shell itself: PID 1 looks for new processes until there are none, so that one begun here may get TERM.
        "words": f"trap 'i=0; while [ $i -lt 3000 ]; do echo $((i += 1)); done; exit 7' TERM; {ON}",
        "deaf": f"trap '' TERM; {ON}",
        "paused": f"trap 'echo awake; exit 8' TERM; {ON}",
    }
    patience = {"words": "60s"}
    jobs = {
        name: start(vm, "--stop-timeout", patience.get(name, "5s"), "--", "sh", "-c", way) for name, way in ways.items()
    }
    inside(vm, until_on, list(jobs.values()))
    waiting = inside(vm, submit, 8)
    assert jobctl(vm, "pause", jobs["paused"]).returncode == 0
    in_state(vm, jobs["paused"], "paused")
    vm.write(CONFIG, "[Manager]\nMaxRunning=1\n")
    began = time.monotonic()
    vm.poweroff()
    assert time.monotonic() - began < 80  # what is frozen would hold it up for 90 s
    vm.boot()
    told = {name: status(vm, job) for name, job in jobs.items()}
    ends = {(one["state"], one["result"], one["reason"], one["output"]["missing_bytes"]) for one in told.values()}
    assert ends == {("stopped", "stopped", "the machine was shut down", 0)}
    facts = {"plain": (None, 15), "words": (7, None), "deaf": (None, 9), "paused": (8, None)}
    assert {name: (one["exit_code"], one["signal"]) for name, one in told.items()} == facts
    texts = {"words": b"".join(b"%d\n" % i for i in range(1, 3001)), "paused": b"awake\n"}
    for name, job in jobs.items():
        logs = jobctl(vm, "logs", job)
        assert (logs.returncode, logs.stdout) == (0, b"on\n" + texts.get(name, b"")), name
    assert [ended(vm, job)["result"] for job in waiting] == ["success"] * 8
    assert vm.run("cat", "order", user="alice").stdout.split() == [b"%d" % i for i in range(8)]

    assert_no_complaint(vm)
    vm.run("rm", CONFIG)
    vm.run("systemctl", "reload", "jobsvc.service")


@pytest.mark.one_suite
@pytest.mark.scaled
def test_a_power_cut_takes_of_the_output_what_was_not_yet_synced_and_of_the_jobs_none(vm: VM) -> None:
    """While one job writes and others wait."""
    vm.write(CONFIG, "[Manager]\nMaxRunning=1\n")
    vm.run("systemctl", "reload", "jobsvc.service")
    vm.run("rm", "-f", "order", user="alice")
    over = start(vm, "--", "sh", "-c", "echo last words; exit 5")
    assert ended(vm, over)["exit_code"] == 5
    writer = start(vm, "--", "sh", "-c", "i=0; while i=$((i+1)); do echo $i; sleep 0.1; done")
    inside(vm, until_more, writer)
    seen = jobctl(vm, "logs", writer).stdout
    synced = time.monotonic()
    vm.wait_until(lambda: time.monotonic() - synced > SYNCED_WITHIN, timeout=60)
    waiting = inside(vm, submit, 3)
    cut(vm)
    told = status(vm, writer)
    assert (told["state"], told["result"]) == ("failed", "lost")
    assert told["reason"] == "the machine went down without a shutdown; how it ended is not known"
    kept = jobctl(vm, "logs", writer)
    assert kept.stdout.startswith(seen[: seen.rindex(b"\n")])
    assert kept.stdout.split() == [b"%d" % i for i in range(1, len(kept.stdout.split()) + 1)]
    assert (kept.returncode != 0) == (b"missing" in kept.stderr), kept
    assert [ended(vm, job)["result"] for job in waiting] == ["success"] * 3
    assert vm.run("cat", "order", user="alice").stdout.split() == [b"0", b"1", b"2"]

    assert (status(vm, over)["result"], status(vm, over)["exit_code"]) == ("exit-code", 5)
    kept = jobctl(vm, "logs", over)
    assert (kept.returncode, kept.stdout) == (0, b"last words\n"), kept
    assert_no_complaint(vm)
    vm.run("rm", CONFIG)
    vm.run("systemctl", "reload", "jobsvc.service")


@pytest.mark.one_suite
@pytest.mark.soak
def test_a_power_cut_in_the_middle_of_starts_runs_no_job_twice(vm: VM) -> None:
    begin = "echo $JOBSVC_ID >> begun; sync begun"
    vm.run("sh", "-c", "rm -f begun; touch begun; sync", user="alice")
    vm.start("sh", "-c", f"while jobctl start -q -- sh -c '{begin}'; do :; done", user="alice")
    vm.wait_until(lambda: vm.run("test", "-s", "begun", user="alice", check=False).returncode == 0, timeout=100)
    cut(vm)
    jobs = json.loads(jobctl(vm, "-o", "json", "list", "--limit", "100").stdout)
    ends = [ended(vm, job["id"])["result"] for job in jobs if job["command"][-1] == begin]
    assert set(ends) <= {"success", "lost"}, ends
    begun = vm.run("cat", "begun", user="alice").stdout.split()
    assert len(begun) == len(set(begun))
    assert_no_complaint(vm)


def assert_no_complaint(vm: VM) -> None:
    log = vm.run("journalctl", "-q", "-o", "cat", "-u", "jobsvc*.service").stdout.decode()
    assert not re.search("Traceback|CRITICAL", log), log


def cut(vm: VM) -> None:
    """No sync, no shutdown: what the kernel had not yet written is gone, too."""
    vm.kill()
    vm.boot()
