"""Whatever an ordinary user sends: each call is answered, nothing is remembered of it, the service stays up."""

import json
import os
import subprocess
import sys
import time

import pytest
from foreign import assert_no_more, census, mains, nothing_changes_for_bob
from story import assert_nothing_left, in_state, inside, start, status

from machine import scale
from machine.host import TREE
from machine.nspawn import USERS, Machine

SECONDS = float(os.environ.get("JOBSVC_FUZZ_SECONDS", scale.times("6", "120")))
GROWTH = 12_000 if SECONDS < 60 else 30_000  # KiB, most of it of bodies of a megabyte and their threads


def fuzz(machine: Machine, seconds: float, seed: int, *others: str) -> dict[str, object]:
    """As bob, from this machine's Python, in that machine's namespaces: polkit wants to see who asks."""
    uid, _ = USERS["bob"]
    bus = f"/proc/{machine.leader}/root/run/dbus"
    argv = ["/usr/bin/nsenter", "-t", str(machine.leader), "-p", "-n", "-i", "-u", "--"]
    argv += [sys.executable, "-B", "-m", "fuzz", bus, str(uid), str(seconds), str(seed), *others]
    env = {**os.environ, "PYTHONPATH": f"{TREE}/tests:{TREE}", "HYPOTHESIS_STORAGE_DIRECTORY": "/nonexistent"}
    done = subprocess.run(argv, capture_output=True, env=env, cwd="/", timeout=seconds + 300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-6000:] + f"\nseed {seed}"
    told: dict[str, object] = json.loads(done.stdout)
    return told


def stop_all() -> int:
    bus = Bus()  # noqa: F821
    unfinished = ["queued", "starting", "running", "paused", "stopping"]
    stopped = bus.reply(bus.send("StopMany", "asa{sv}", [], {"State": ("as", unfinished)}), 60)
    return len(stopped)


@pytest.mark.scaled
def test_whatever_is_sent_is_answered(machine: Machine) -> None:
    seed = int(os.environ.get("JOBSVC_FUZZ_SEED", str(time.time_ns() % 10**9)))
    print(f"JOBSVC_FUZZ_SEED={seed}")
    fuzz(machine, max(3.0, SECONDS / 4), seed + 500_000)  # what is imported, cached and pooled is there from here on
    inside(machine, stop_all, user="root", timeout=90)
    assert_nothing_left(machine)
    others = [start(machine, "--", "sleep", "600", user=user) for user in ("alice", "root")]
    before = [in_state(machine, job, "running", user="root") for job in others]
    counted = census(machine)
    with nothing_changes_for_bob(machine, "alice"):  # bob is who does it
        told = fuzz(machine, SECONDS, seed, *others)
    print(told)
    assert told["missed"] == []
    for job, was in zip(others, before, strict=True):
        now = status(machine, job, user="root")
        assert {key: now[key] for key in was if key != "usage"} == {key: was[key] for key in was if key != "usage"}
    inside(machine, stop_all, user="root", timeout=90)
    assert_nothing_left(machine)  # no job, and no traceback in the journal
    assert_no_more(machine, counted, growth=GROWTH)
    assert mains(census(machine)) == mains(counted)
