"""Scripts as jobs: kept by the service, run as the user, in any language."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from story import assert_nothing_left, ended, inside, jobctl, service, status

from machine.nspawn import Machine


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    yield
    assert_nothing_left(machine)
    assert machine.run("ls", "/run/jobsvc/scripts").stdout == b""


def run_scripts(texts: list[str], **keys: Any) -> list[list[Any]]:
    """Run these one after the other, with two arguments: result, exit code, output of each."""
    bus = Bus()  # noqa: F821
    told = []
    for text in texts:
        spec = {"Script": ("ay", text.encode("latin-1")), "Arguments": ("as", ["one", "2 3"])}
        job, _ = bus.call("Start", "a{sv}", spec)
        end = bus.until_ended(job, timeout=60)[job]
        told.append([end["Result"], end.get("ExitCode"), bus.logs(job).decode("latin-1"), end["Command"]])
    return told


def test_scripts_in_any_language(machine: Machine) -> None:
    python = "#!/usr/bin/python3 -I\nimport sys\nprint(sys.argv[1:])\nraise SystemExit(3)\n"
    perl = '#!/usr/bin/env perl\nprint "@ARGV\\n";\n'
    plain = 'echo "$1/$2" "$(id -un)"; cd; pwd'
    bytes_ = "#!/usr/bin/env -S sh -c 'cat \"$0\"'\n\xff\x00\xfe"
    told = inside(machine, run_scripts, [python, perl, plain, bytes_])
    assert [one[:3] for one in told] == [
        ["exit-code", 3, "['one', '2 3']\n"],
        ["success", 0, "one 2 3\n"],
        ["success", 0, "one/2 3 alice\n/home/alice\n"],
        ["success", 0, bytes_],
    ]
    assert told[0][3] == ["script", "one", "2 3"]


def begin(text: str) -> str:
    bus = Bus()  # noqa: F821
    job, _ = bus.call("Start", "a{sv}", {"Script": ("ay", text.encode()), "Name": ("s", "kept")})
    return str(job)


def test_a_script_is_kept_and_nobody_elses(machine: Machine) -> None:
    job = inside(machine, begin, "echo $JOBSVC_RUN; until [ -e /tmp/go ]; do sleep 0.1; done; exit 4")
    service(machine, "kill")
    path = f"/run/jobsvc/scripts/{job}-1"
    machine.wait_until(lambda: machine.exists(path))
    assert machine.run("cat", path, user="bob", check=False).returncode != 0
    assert machine.run("ls", "/run/jobsvc/scripts", user="alice", check=False).returncode != 0
    machine.run("touch", "/tmp/go")
    assert ended(machine, job)["exit_code"] == 4
    assert jobctl(machine, "restart", job).returncode == 0
    assert ended(machine, job)["exit_code"] == 4
    assert jobctl(machine, "logs", job).stdout == b"2\n"
    assert status(machine, job)["name"] == "kept"
    machine.run("rm", "/tmp/go")


def refusals() -> list[Any]:
    bus = Bus()  # noqa: F821
    text = ("ay", b"true")
    specs = [
        {"Script": text, "Command": ("as", ["true"])},
        {"Shell": ("s", "/bin/sh"), "Command": ("as", ["true"])},
        {"Script": text, "Shell": ("s", "sh")},
        {"Script": ("ay", b"")},
        {"Script": ("s", "true")},
    ]
    return [bus.refused("Start", "a{sv}", one) for one in specs]


def test_what_is_no_script_is_refused(machine: Machine) -> None:
    told = inside(machine, refusals)
    assert {name for name, _ in told} == {"InvalidSpec"}
    for (_, text), word in zip(told, ("Command", "Shell", "Shell", "Script", "Script"), strict=True):
        assert word in text, json.dumps(told)


def test_output_files_are_named_as_sbatch_names_them(machine: Machine) -> None:
    options = "--name sim --array 1-2 --output %x-%a-%u-%r.txt --error append:%A.log"
    text = f"#!/bin/sh\n#JOBCTL {options}\necho task; echo oops >&2\n"
    made = machine.run("sh", "-c", "rm -rf named; mkdir named; cd named; jobctl script -", user="alice",
                       input=text.encode())  # fmt: skip
    jobs = made.stdout.decode().split()
    assert [ended(machine, job)["result"] for job in jobs] == ["success"] * 2
    array = status(machine, jobs[0])["array_id"]
    listed = machine.run("sh", "-c", "cd named; ls; cat *.txt", user="alice").stdout.decode().split()
    assert sorted(listed) == sorted([f"{array}.log", "sim-1-alice-1.txt", "sim-2-alice-1.txt", "task", "task"])
    jobctl(machine, "remove", *jobs)
