"""Jobs that do what they can to get away or to be in the way: ended, accounted for, their output as it was."""

import time
from collections.abc import Iterator

import pytest
from story import assert_nothing_left, ended, inside, jobctl, start, status, until_on

from machine import scale
from machine.nspawn import Machine

DEAF = "trap '' TERM HUP INT; "
WAYS = {
    "deaf": DEAF + "echo on; while :; do sleep 4321; done",
    "forks twice": "(setsid sh -c \"trap '' TERM; while :; do sleep 4321; done\" &) ; " + DEAF + "echo on; sleep 4321",
    "forks without end": DEAF + "f() { sleep 4321 & sleep 0.02; f; }; f & echo on; while :; do sleep 4321; done",
    "fills its pipe and sleeps": DEAF + "echo on; head -c 3000000 /dev/zero; while :; do sleep 4321; done",
    "closes its output": DEAF + "echo on; exec >&- 2>&-; while :; do sleep 4321; done",
    "stopped": "echo on; kill -STOP $$; sleep 4321",
}


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    yield
    assert_nothing_left(machine)
    assert machine.run("pgrep", "-f", "sleep 4321", check=False).stdout == b""


def test_every_way_to_ignore_an_end_ends_within_the_stop_timeout(machine: Machine) -> None:
    jobs = {name: start(machine, "--stop-timeout", "1s", "--", "sh", "-c", way) for name, way in WAYS.items()}
    inside(machine, until_on, list(jobs.values()))
    filler = jobs["fills its pipe and sleeps"]
    machine.wait_until(lambda: status(machine, filler)["output"]["stdout_bytes"] == len("on\n") + 3_000_000)
    asked = time.monotonic()
    assert jobctl(machine, "stop", *jobs.values()).returncode == 0
    assert time.monotonic() - asked < 60  # of a second each, all at once; the default of a stop is 90
    for name, job in jobs.items():
        told = status(machine, job)
        assert (told["state"], told["result"], told["signal"]) == ("stopped", "stopped", 15 if name == "stopped" else 9)
        assert told["usage"]["cpu_usage_nsec"] > 0
        text = b"on\n" + (bytes(3_000_000) if "pipe" in name else b"")
        logs = jobctl(machine, "logs", job)
        assert (logs.returncode, logs.stdout) == (0, text), name


@pytest.mark.one_suite
@pytest.mark.scaled
def test_a_gigabyte_without_a_newline_is_read_back_whole(machine: Machine) -> None:
    """Of dave's: others have their own use for what a user may write in a day."""
    size = scale.times(100_000_000, 1_000_000_000)
    made = f"head -c {size} /dev/zero | tr '\\0' x"
    job = start(machine, "--", "sh", "-c", made, user="dave")
    told = ended(machine, job, user="dave", timeout=300)
    assert (told["result"], told["output"]["stdout_bytes"]) == ("success", size)
    same = machine.run("bash", "-c", f"cmp <(jobctl logs {job}) <({made}) && echo same", user="dave", timeout=300)
    assert same.stdout == b"same\n"


def test_a_setuid_program_is_ended_as_well(machine: Machine) -> None:
    machine.run("sh", "-c", "cp /bin/sleep /usr/local/bin/setuid-sleep && chmod 4755 /usr/local/bin/setuid-sleep")
    job = start(machine, "--stop-timeout", "1s", "--", "setuid-sleep", "4321")
    machine.wait_until(lambda: machine.run("pgrep", "-u", "root", "-fx", "setuid-sleep 4321", check=False).stdout)
    assert jobctl(machine, "stop", job).returncode == 0
    assert (status(machine, job)["result"], status(machine, job)["signal"]) == ("stopped", 15)
    machine.run("rm", "/usr/local/bin/setuid-sleep")


@pytest.mark.parametrize("child", ["", "sleep 4321 & "])
def test_a_job_that_leaves_its_scope_is_ended(machine: Machine, child: str) -> None:
    machine.run("systemctl", "start", "user@1000.service")
    asked = ("env", "XDG_RUNTIME_DIR=/run/user/1000", "systemctl", "--user", "list-units", "--quiet")
    machine.wait_until(lambda: machine.run(*asked, user="alice", check=False).returncode == 0, timeout=60)
    leave = f"{child}export XDG_RUNTIME_DIR=/run/user/1000; echo on; exec systemd-run --user --scope -q sleep 4321"
    try:
        job = start(machine, "--stop-timeout", "1s", "--", "sh", "-c", leave)
        told = ended(machine, job)
        assert (told["state"], told["result"], told["reason"]) == ("failed", "signal", "left its scope")
        assert jobctl(machine, "logs", "--stream", "stdout", job).stdout == b"on\n"
    finally:
        machine.run("systemctl", "stop", "user@1000.service")
