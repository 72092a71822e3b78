"""Where the kernel holds limits: they hold and are measured."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from story import inside, jobctl, start, status, until_on

from machine.vm import VM

MB = 1_000_000


def run_all(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run these jobs one after the other; the status and the output of each."""
    bus = Bus()  # noqa: F821
    told = []
    for spec in specs:
        typed = {"ay": bytes, "a(st)": lambda pairs: [tuple(pair) for pair in pairs]}
        keys = {name: (kind, typed.get(kind, lambda same: same)(value)) for name, (kind, value) in spec.items()}
        job, _ = bus.call("Start", "a{sv}", keys)
        end = bus.until_ended(job, timeout=100)[job]
        facts = {
            name: end.get(name) for name in ("State", "Result", "ExitCode", "Signal", "Reason", "LimitsNotInForce")
        }
        usage = {name: value for name, (_, value) in end["Usage"].items()}
        seconds = (end["FinishedTimestamp"] - end.get("StartedTimestamp", end["FinishedTimestamp"])) / 1e6
        told.append({**facts, **usage, "Seconds": seconds, "Text": bus.logs(job).decode()})
    return told


def spec(*command: str, **keys: list[Any]) -> dict[str, Any]:
    return {"Command": ["as", list(command)], **keys}


def measured(vm: VM, one: dict[str, Any], holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """A run of this job within the bounds, of three: time that the host takes from the emulator is not told from it."""
    told: list[dict[str, Any]] = []
    while not (told and holds(told[-1])):
        assert len(told) < 3, told
        told += inside(vm, run_all, [one], timeout=100)
    return told[-1]


def test_limits_hold_and_what_was_used_is_known(vm: VM) -> None:
    vm.run("sh", "-c", "head -c 12M /dev/urandom > /var/tmp/big && sync", timeout=60)
    spin = spec("sh", "-c", "while :; do :; done", CPUQuotaPerSecUSec=["t", 200_000], RuntimeMaxUSec=["t", 8 * MB])
    read = ["dd", "if=/var/tmp/big", "of=/dev/null", "bs=1M", "iflag=direct"]
    slow = spec(*read, IOReadBandwidthMax=["a(st)", [["/", 2 * MB]]])
    fork = "i=0; while sleep 60 & do i=$((i+1)); echo $i; done"
    hold = spec("sh", "-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 2.5", MemoryMax=["t", 256 * MB])
    cpu = measured(vm, spin, lambda one: abs(one["CPUUsageNSec"] / 1e9 / one["Seconds"] - 0.20) <= 0.04)
    assert cpu["Result"] == "timeout"
    io = measured(vm, slow, lambda one: abs((12 << 20) / MB / one["Seconds"] - 2) <= 0.4)
    assert io["Result"] == "success", io
    assert io["IOReadBytes"] >= 12 << 20

    tasks, peak = inside(vm, run_all, [spec("sh", "-c", fork, TasksMax=["t", 10]), hold], timeout=200)
    assert all(one["LimitsNotInForce"] == [] for one in (cpu, io, tasks, peak))

    assert tasks["Text"].split()[:9] == [str(i) for i in range(1, 10)]
    assert "fork" in tasks["Text"]
    assert "\n10\n" not in tasks["Text"]

    assert peak["Result"] == "success"
    assert 20 * MB <= peak["MemoryPeak"] <= 256 * MB
    assert peak["CPUUsageNSec"] > 0


def test_a_job_out_of_memory_says_so(vm: VM) -> None:
    done = jobctl(vm, "run", "--memory", "64M", "--", "tail", "/dev/zero", timeout=100)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (137, b"", 1), done
    assert b"out of memory" in done.stderr
    told = status(vm)
    assert (told["state"], told["result"], told["signal"]) == ("failed", "oom-kill", 9)
    assert "memory" in told["reason"]
    assert told["limits"]["memory_max"] == 64 << 20


@pytest.mark.one_suite
def test_a_sandbox_is_around_a_job_and_its_limits_around_both(vm: VM) -> None:
    sandbox = ("--private-tmp", "--private-network", "--read-only-root", "--no-new-privileges")
    script = """touch ~/no 2>&-; touch /tmp/yes; ls ~/no /tmp 2>&-; tail -n +3 /proc/net/dev | cut -d: -f1
        grep NoNewPrivs: /proc/self/status; exec tail /dev/zero"""
    done = jobctl(vm, "run", *sandbox, "--memory", "64M", "--", "sh", "-c", script, timeout=100)
    assert (done.returncode, done.stdout.split()) == (137, [b"/tmp:", b"yes", b"lo", b"NoNewPrivs:", b"1"]), done
    assert status(vm)["result"] == "oom-kill"


@pytest.mark.one_suite
def test_a_limit_that_cannot_be_set_keeps_the_job_from_starting(vm: VM) -> None:
    cpus = spec("touch", "/var/tmp/began", AllowedCPUs=["ay", [0] * 7 + [128]])
    disk = spec("touch", "/var/tmp/began", IOReadBandwidthMax=["a(st)", [["/proc", MB]]])
    told = inside(vm, run_all, [cpus, disk], timeout=100)
    assert [(one["State"], one["Result"]) for one in told] == [("failed", "start-failed")] * 2
    assert "AllowedCPUs" in told[0]["Reason"]
    assert "/proc" in told[1]["Reason"]
    assert not vm.exists("/var/tmp/began")


BOMB = """\
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


@pytest.mark.one_suite
def test_a_fork_bomb_is_bounded_and_ended_and_hurts_nobody(vm: VM) -> None:
    job = start(vm, "--tasks", "60", "--stop-timeout", "2s", "--", "python3", "-c", BOMB)
    inside(vm, until_on, [job])
    vm.wait_until(lambda: status(vm, job)["usage"]["tasks_current"] == 60, timeout=60)
    other = jobctl(vm, "run", "--", "echo", "mine", user="bob")
    assert (other.returncode, other.stdout) == (0, b"mine\n")
    asked = time.monotonic()
    assert jobctl(vm, "stop", job).returncode == 0
    assert time.monotonic() - asked < 60  # of two seconds, in a machine that has much to do
    told = status(vm, job)
    assert (told["result"], told["signal"], told["exit_code"]) == ("stopped", 9, None)
    assert told["usage"]["cpu_usage_nsec"] > 0
    vm.wait_until(
        lambda: vm.run("pgrep", "-u", "alice", "python3", check=False).stdout == b"", what="the zombies to go"
    )
