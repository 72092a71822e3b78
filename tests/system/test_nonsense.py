"""Whatever is asked for that cannot be: one clear line, the right code, no traceback, nothing changed."""

import json
from collections.abc import Iterator

import pytest
from story import assert_nothing_left, jobctl

from machine.nspawn import Machine

MISSING = "0123456789abcdef"


@pytest.fixture(autouse=True, scope="module")
def nothing_left(machine: Machine) -> Iterator[None]:
    before = _count(machine)
    yield
    assert_nothing_left(machine)  # its look at the services' journals included
    assert _count(machine) == before


def _count(machine: Machine) -> int:
    return len(json.loads(jobctl(machine, "-o", "json", "list", "--limit", "0", user="root").stdout))


# What is typed, the exit code, and what the line has to say.
TYPED: list[tuple[list[str], int, list[str]]] = [
    (["frobnicate"], 2, ["frobnicate"]),
    (["strat", "true"], 2, ["start"]),
    (["run"], 2, ["CMD"]),
    (["start"], 2, ["CMD"]),
    (["start", ""], 2, ["empty"]),
    (["run", "--", ""], 2, ["empty"]),
    (["start", "--memroy", "1G", "true"], 2, ["--memroy", "--memory"]),
    (["start", "-p", "MemoryMx=1G", "true"], 2, ["MemoryMx", "MemoryMax"]),
    (["start", "-p", "MemoryMax", "true"], 2, ["MemoryMax=VALUE"]),
    (["start", "-p", "Command=x", "true"], 2, ["Command"]),
    (["start", "-p", "Nmae=x", "true"], 2, ["Name"]),
    (["start", "--memory", "lots", "true"], 2, ["--memory", "lots"]),
    (["start", "--memory", "-1", "true"], 2, ["--memory"]),
    (["start", "--memory", "0", "true"], 2, ["--memory", "'0'"]),
    (["start", "--memory", "99999999999E", "true"], 2, []),
    (["start", "--cpu", "half", "true"], 2, ["--cpu", "half"]),
    (["start", "--cpu", "0%", "true"], 2, []),
    (["start", "--cpu", "0.5%", "true"], 2, []),
    (["start", "--tasks", "0", "true"], 2, ["--tasks", "'0'"]),
    (["start", "--tasks", "many", "true"], 2, ["--tasks", "many"]),
    (["start", "--io-read", "/:fast", "true"], 2, ["--io-read", "fast"]),
    (["start", "--io-read", "/no/such/disk:1M", "-p", "TasksMax=-5", "true"], 2, ["TasksMax"]),
    (["start", "--timeout", "soon", "true"], 2, ["--timeout", "soon"]),
    (["start", "--stop-timeout", "-3", "true"], 2, ["--stop-timeout"]),
    (["start", "--nice", "20", "true"], 2, ["--nice", "'20'"]),
    (["start", "--nice", "x", "true"], 2, ["--nice"]),
    (["start", "-E", "1X=2", "true"], 2, ["--setenv", "NAME=VALUE"]),
    (["start", "-E", "NOT_SET_ANYWHERE", "true"], 2, ["NOT_SET_ANYWHERE"]),
    (["start", "--label", "x", "true"], 2, ["--label"]),
    (["start", "--name", "", "true"], 2, ["--name"]),
    (["start", "--name", "a\nb", "true"], 2, ["--name"]),
    (["start", "--name", "x" * 200, "true"], 2, ["--name"]),
    (["start", "-d", "", "true"], 2, ["empty"]),
    (["start", "--uid", "nobody-there", "true"], 2, ["nobody-there"]),
    (["start", "--uid", "", "true"], 2, ["--uid"]),
    (["start", "--uid", "-1", "true"], 2, []),
    (["start", "--uid", "4294967295", "true"], 2, []),
    (["start", "--uid", "65535", "true"], 2, []),
    (["start", "--uid", " 0", "true"], 2, []),
    (["start", "--gid", "no-such-group", "true"], 2, ["no-such-group"]),
    (["start", "-p", "KillSignal=SIGNONE", "true"], 2, ["SIGNONE"]),
    (["start", "-p", "KillSignal=99", "true"], 2, ["KillSignal"]),
    (["start", "-p", "OOMPolicy=panic", "true"], 2, ["OOMPolicy"]),
    (["start", "-p", "AllowedCPUs=x", "true"], 2, ["AllowedCPUs"]),
    (["start", "-p", "StandardOutput=file:/x", "true"], 2, ["StandardOutput"]),
    (["start", "-p", "UMask=9", "true"], 2, ["UMask"]),
    (["start", "-p", "Queue=fast", "true"], 2, ["Queue"]),
    (["start", "--request-id", "", "true"], 2, ["--request-id"]),
    (["status", MISSING], 4, [MISSING]),
    (["status", "no-such-job"], 4, ["no-such-job"]),
    (["status", ""], 4, ["empty"]),
    (["status", "@~4000"], 4, []),
    (["status", "../../etc/passwd"], 4, []),
    (["status", "*"], 4, []),
    (["logs", MISSING], 4, [MISSING]),
    (["logs"], 2, ["JOB"]),
    (["logs", "--stream", "stdin", MISSING], 2, ["stdin"]),
    (["logs", "--since", "whenever", MISSING], 2, ["whenever"]),
    (["logs", "-n", "-1", MISSING], 2, ["-1"]),
    (["logs", "-o", "xml", MISSING], 2, ["xml"]),
    (["stop"], 2, ["--all"]),
    (["stop", MISSING], 4, [MISSING]),
    (["restart", MISSING], 4, [MISSING]),
    (["remove", MISSING], 4, [MISSING]),
    (["wait", MISSING], 4, [MISSING]),
    (["kill", MISSING], 4, [MISSING]),
    (["kill", "-s", "SIGNONE", MISSING], 2, ["SIGNONE"]),
    (["kill", "-s", "0", MISSING], 2, ["0"]),
    (["list", "--state", "sleeping"], 2, ["sleeping"]),
    (["list", "--label", "x"], 2, ["NAME=VALUE"]),
    (["list", "--limit", "-1"], 2, ["-1"]),
    (["list", "extra"], 2, ["extra"]),
    (["-o", "yaml", "list"], 2, ["yaml"]),
]


@pytest.mark.parametrize(("argv", "code", "words"), TYPED, ids=[" ".join(argv)[:40] or "-" for argv, _, _ in TYPED])
def test_typed_nonsense_gets_one_line_and_the_right_code(
    machine: Machine, argv: list[str], code: int, words: list[str]
) -> None:
    done = jobctl(machine, *argv)
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b""), text
    assert text.startswith("jobctl: ")
    assert text.count("\n") == 1, text
    assert len(text) < 400
    for word in words:
        assert word in text


def test_a_second_run_of_nonsense_uses_its_own_code(machine: Machine) -> None:
    """After the command line was understood, run has 125 for what is not the job's doing."""
    for argv, code in (
        (["--uid", "nobody-there", "true"], 125), (["--memory", "0", "true"], 2), (["-p", "Queue=x", "true"], 125),
    ):  # fmt: skip
        done = jobctl(machine, "run", *argv)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (code, b"", 1), done


def test_without_a_bus_or_a_service_it_says_so(machine: Machine) -> None:
    nowhere = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}
    for argv, code in ((["list"], 6), (["status", MISSING], 6), (["start", "true"], 6), (["run", "true"], 125)):
        done = jobctl(machine, *argv, env=nowhere)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (code, b"", 1), done
