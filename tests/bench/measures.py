"""The measurements. Each returns rows: what, our figure, the other's, the ratio, the goal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from machine_facts import (
    Bus,
    configured,
    daemon_pid,
    median,
    memory,
    percentile,
    process,
    spec,
    supervisors,
    timed,
    wake_ups,
)

MANY = 300
TRUE = spec("true")


@dataclass(frozen=True)
class Row:
    what: str
    ours: float
    unit: str
    other: str = ""
    theirs: float | None = None
    ratio: float | None = None
    goal: str = ""


def raw_scopes() -> float:
    """Scopes a second that PID 1 makes, asked by a C client, one after the other."""
    from pystemd.systemd1 import Manager
    from pystemd.systemd1.unit_signatures import KNOWN_UNIT_SIGNATURES

    KNOWN_UNIT_SIGNATURES.update({b"PIDs": b"au"})
    children = [subprocess.Popen(["sleep", "600"]) for _ in range(MANY)]
    try:
        with Manager() as manager:
            begin = time.perf_counter()
            for index, child in enumerate(children):
                name = f"bench-{os.getpid()}-{index}.scope".encode()
                manager.Manager.StartTransientUnit(name, b"fail", {b"PIDs": [child.pid]}, [])
            while any(f"bench-{os.getpid()}" not in _cgroup(child.pid) for child in children):
                time.sleep(0.001)
            return MANY / (time.perf_counter() - begin)
    finally:
        for child in children:
            child.kill()
            child.wait()


def _cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def start_many(bus: Bus) -> float:
    """Jobs a second: StartMany of MANY × true, to the last finished signal; everything recorded."""
    begin = time.perf_counter()
    (jobs,) = bus.call("StartMany", "aa{sv}a{sv}", [TRUE] * MANY, {})
    bus.finish({job_id for job_id, _ in jobs})
    return MANY / (time.perf_counter() - begin)


def one_job(bus: Bus) -> None:
    job_id, _ = bus.call("Start", "a{sv}", TRUE)
    bus.finish({job_id})


def jobs() -> Iterator[Row]:
    run = median(process("systemd-run", "--quiet", "--wait", "true"), 40)
    scope = median(process("systemd-run", "--quiet", "--scope", "true"), 40)
    for pam in ("no", "session"):
        with configured(f"PAM={pam}"):
            bus = Bus()
            bus.subscribe()
            one_job(bus)
            raw = raw_scopes()
            rate = start_many(bus)
            goals = ("≥ 0.45", "≤ 0.8") if pam == "no" else ("", "")
            yield Row(f"StartMany {MANY} × true, PAM={pam}", rate, "jobs/s", "raw scopes", raw, rate / raw, goals[0])
            waits = 1 / run
            yield Row(f"the same, PAM={pam}", rate, "jobs/s", "systemd-run --wait", waits, rate / waits, "≥ 1")
            alone = median(partial(one_job, bus), 60)
            yield Row(
                f"one job alone, PAM={pam}", alone * 1e3, "ms", "systemd-run --wait", run * 1e3, alone / run, goals[1]
            )
            yield Row(f"one job alone, PAM={pam}", alone * 1e3, "ms", "systemd-run --scope", scope * 1e3, alone / scope)
    for rival in ("tsp", "nq"):
        if shutil.which(rival):
            other = median(process(rival, "true"), 40)
            yield Row("one job accepted (Start)", _accept() * 1e3, "ms", f"{rival} true", other * 1e3)


def _accept() -> float:
    bus = Bus()
    return median(lambda: bus.call("Start", "a{sv}", TRUE), 40)


def clients() -> Iterator[Row]:
    click = median(process(sys.executable, "-c", "import click"), 15)
    start = median(process("jobctl", "start", "true"), 15)
    goal = 1.3 * click + 0.030
    yield Row("jobctl start true", start * 1e3, "ms", "1.3 × import click + 30 ms", goal * 1e3, start / goal, "≤ 1")
    run = median(process("jobctl", "run", "true"), 15)
    wait = median(process("systemd-run", "--quiet", "--wait", "--pipe", "true"), 15)
    yield Row("jobctl run true", run * 1e3, "ms", "systemd-run --wait --pipe", wait * 1e3, run / wait)


def logs() -> Iterator[Row]:
    lines = 2_000_000
    with tempfile.NamedTemporaryFile("w", dir="/var/tmp", suffix=".txt") as file:
        for number in range(lines):
            file.write(f"{number:079d}\n")
        file.flush()
        Path(file.name).chmod(0o644)
        ours = lines / timed(lambda: _read_back(file.name, lines * 80))
        few = lines // 10
        command = f"head -n {few} {file.name} | systemd-cat"
        theirs = few / timed(process("sh", "-c", command))
    yield Row("80-byte lines, job → journal → reader", ours, "lines/s", "systemd-cat", theirs, ours / theirs, "≥ 15")


def _read_back(path: str, size: int) -> None:
    with subprocess.Popen(["jobctl", "run", "--", "cat", path], stdout=subprocess.PIPE) as reader:
        assert reader.stdout
        got = 0
        while data := reader.stdout.read(1 << 20):
            got += len(data)
    if got != size:
        raise RuntimeError(f"{got} of {size} bytes came back")


TICKS = """
import os, time
for _ in range(300):
    time.sleep(0.02)
    os.write(1, b"%d\\n" % time.monotonic_ns())
"""


def follow() -> Iterator[Row]:
    bus = Bus(fds=True)
    job_id, _ = bus.call("Start", "a{sv}", spec(sys.executable, "-c", TICKS))
    (fd,) = bus.call("Logs", "sa{sv}", job_id, {"Follow": ("b", True)})
    late = []
    with os.fdopen(fd.to_raw_fd(), "rb", buffering=0) as pipe:
        while data := pipe.read(65536):
            now = time.monotonic_ns()
            late += [(now - int(word)) / 1e6 for word in data.split()]
    yield Row("follow latency, median", percentile(late, 0.5), "ms", goal="≤ 5")
    yield Row("follow latency, 99 %", percentile(late, 0.99), "ms", goal="≤ 20")


def scale() -> Iterator[Row]:
    with configured("MaxRunning=500", "MaxQueued=20000", "PAM=no"):
        yield from _running()
    with configured("MaxRunning=1", "MaxQueued=20000", "PAM=no"):
        yield from _queued()


def _running() -> Iterator[Row]:
    bus = Bus()
    pid, before = daemon_pid(), memory(daemon_pid())
    (jobs,) = bus.call("StartMany", "aa{sv}a{sv}", [spec("sleep", "600")] * 500, {})
    _until(lambda: bus.call("Count", "a{sv}", {})[0].get("running", 0) == 500)
    each = sum(map(memory, supervisors())) / 500
    yield Row("memory per running job, PAM=no", each / 2**20, "MB", goal="≤ 1.5")
    yield Row("jobsvcd, 500 running jobs", memory(pid) / 2**20, "MB", "idle", before / 2**20)
    woken = wake_ups(supervisors()[0])
    time.sleep(5)
    yield Row("wake-ups of an idle supervisor in 5 s", wake_ups(supervisors()[0]) - woken, "", goal="0")
    stop = timed(lambda: bus.call("StopMany", "asa{sv}", [job_id for job_id, _ in jobs], {}))
    yield Row("StopMany of 500 running jobs", stop, "s")
    _until(lambda: not bus.call("Count", "a{sv}", {"State": ("as", ["running", "stopping"])})[0])
    yield from _followers()


def _followers() -> Iterator[Row]:
    bus = Bus(fds=True)
    job_id, _ = bus.call("Start", "a{sv}", spec("sh", "-c", "sleep 3; seq 1 1000"))
    pipes = []
    for _ in range(1000):
        (fd,) = bus.call("Logs", "sa{sv}", job_id, {"Follow": ("b", True)})
        pipes.append(os.fdopen(fd.to_raw_fd(), "rb"))
    wanted = b"".join(b"%d\n" % number for number in range(1, 1001))
    whole = 0
    for pipe in pipes:
        with pipe:
            whole += pipe.read() == wanted
    yield Row("followers of one job that got every byte", whole, "of 1000", goal="1000")


def _queued() -> Iterator[Row]:
    bus = Bus()
    blocker, _ = bus.call("Start", "a{sv}", spec("sleep", "600"))
    empty = median(lambda: bus.call("Start", "a{sv}", TRUE), 100)
    for _ in range(10):
        bus.call("StartMany", "aa{sv}a{sv}", [TRUE] * 1000, {})
    deep = median(lambda: bus.call("Start", "a{sv}", TRUE), 100)
    yield Row("Start at depth 10,000", deep * 1e3, "ms", "at depth 0", empty * 1e3, deep / empty, "≤ 1.2")
    yield Row("jobsvcd, 10,000 queued", memory(daemon_pid()) / 2**20, "MB", goal="≤ 60")
    page = timed(lambda: bus.call("List", "a{sv}", {"Limit": ("u", 500)}))
    yield Row("List of 500", page * 1e3, "ms")
    bus.call("StopMany", "asa{sv}", [], {"State": ("as", ["queued"])})
    bus.call("Stop", "sa{sv}", blocker, {})


def _until(condition: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError("the machine did not get there in time")
        time.sleep(0.05)


def show(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps([vars(row) for row in rows], ensure_ascii=False, indent=1))
        return
    for row in rows:
        theirs = f"{row.other} {row.theirs:,.1f}" if row.theirs is not None else row.other
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        print(f"{row.what:45} {row.ours:>12,.1f} {row.unit:8} {theirs:42} {ratio:>7} {row.goal}", flush=True)


signal.signal(signal.SIGPIPE, signal.SIG_DFL)
