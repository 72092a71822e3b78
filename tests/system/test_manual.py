"""What the manual shows with busctl works as it stands there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from story import assert_nothing_left, in_state, start

from machine.nspawn import Machine

PAGE = (Path(__file__).parents[2] / "man/org.jobsvc1.5").read_text()
BLOCKS = re.findall(r"^\.Bd -literal.*\n(busctl (?:.*\n)+?)\.Ed$", PAGE, flags=re.MULTILINE)
ESCAPES = {"\\(aq": "'", "\\-": "-", "\\e": "\\", "\\&": ""}


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    yield
    machine.run(
        "sh",
        "-c",
        'jobctl -o json list --state queued,running,paused | grep -o \'"id": "[0-9a-f]*\' | '
        "cut -d'\"' -f4 | xargs -r jobctl stop",
        check=False,
    )
    assert_nothing_left(machine)


def test_the_examples_of_the_bus_work(machine: Machine) -> None:
    assert len(BLOCKS) >= 9
    running = start(machine, "--", "sh", "-c", "trap '' USR1; while :; do sleep 0.1; done", user="root")
    waiting = start(machine, "-p", "NotBefore=2037-01-01", "--", "true", user="root")
    in_state(machine, running, "running", user="root")
    for block in BLOCKS:
        for escape, plain in ESCAPES.items():
            block = block.replace(escape, plain)
        job = waiting if "Hold " in block else running
        done = machine.run("sh", "-ec", f"ID={job}\n{block}", check=False)
        assert (done.returncode, done.stderr) == (0, b""), (block, done)
