"""jobctl and the service, with nothing between them but a bus: what one says the other understands."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from house import House, Scenario

from jobsvc.model import Finished, Result, finish

Run = Callable[[Scenario], None]
ROOT = Path(__file__).parents[2]
GRAPH = """
[job.last]
script = "echo $1"
arguments = ["x"]
after = ["many:any"]
retries = 2
retry-delay = "1min"

[job.many]
command = ["true"]
array = "1-3%2"
hold = true
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


async def jobctl(house: House, *argv: str, input: str = "") -> Done:
    """Run it as a process of its own."""
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": house.address, "PYTHONPATH": str(ROOT), "TZ": "UTC"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobsvc.cli", *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )
    out, err = await asyncio.wait_for(process.communicate(input.encode()), 30)
    return Done(process.returncode or 0, out.decode(), err.decode())


async def told(house: House, *argv: str) -> Any:
    done = await jobctl(house, "-o", "json", *argv)
    assert done.err == ""
    return json.loads(done.out)


async def start(house: House, *argv: str) -> str:
    done = await jobctl(house, "start", *argv)
    assert (done.code, done.err) == (0, "")
    return done.out.strip()


def end(house: House, job_id: str, at: int = 9) -> None:
    """Have a job ended, long ago."""
    job = house.manager.get(job_id)
    house.manager.change(job, lambda job: finish(job, Finished(Result.SUCCESS, at, 0)))


def test_what_is_asked_for_is_what_status_shows(house: Run) -> None:
    async def scenario(house: House) -> None:
        first = await start(house, "--name", "first", "--hold", "true")
        job = await start(
            house, "--after", "first:any", "--at", "2030-01-01 08:00", "--retries", "3", "--retry-delay", "1min",
            "--unique", "k", "--priority", "-7", "--label", "a=b", "true",
        )  # fmt: skip
        found = await told(house, "status", job)
        assert found["dependencies"] == [[first, "any"]]
        assert (found["not_before_usec"], found["retries"], found["unique"]) == (1_893_484_800_000_000, 3, "k")
        assert (found["priority"], found["queue"], found["labels"]) == (-7, "default", {"a": "b"})
        assert found["queue_reason"].startswith(f"waiting for job {first}")
        assert (await told(house, "status", first))["queue_reason"].startswith("held")
        done = await jobctl(house, "start", "--unique", "k", "true")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert job in done.err
        assert (await jobctl(house, "start", "--unique", "k", "--unique-policy", "return", "true")).out.strip() == job
        assert "held" in (await jobctl(house, "list", "--columns", "name,reason")).out
        assert f"After: {first} (any)" in (await jobctl(house, "status", job)).out

    house(scenario)


def test_one_many_all_by_filters(house: Run) -> None:
    async def scenario(house: House) -> None:
        ids = (await jobctl(house, "start", "--name", "task", "--array", "1-4%2", "true")).out.split()
        other = await start(house, "--name", "other", "true")
        array = (await told(house, "status", ids[0]))["array_id"]
        assert [job["array_index"] for job in await told(house, "list", "--array", array, "--reverse")] == [1, 2, 3, 4]
        assert (await jobctl(house, "hold", "--array", array)).out.count("held") == 4
        done = await jobctl(house, "release", *ids[:2], "nothing")
        assert (done.code, done.out.count("released"), done.err.count("\n")) == (1, 2, 1)
        assert (await jobctl(house, "hold", "other")) == (0, "", "")
        assert (await jobctl(house, "pause", "--all")) == (0, "", "")
        assert (await jobctl(house, "pause", "other")).code == 1
        assert (await jobctl(house, "kill", "--name", "task")).out == ""
        assert (await jobctl(house, "set", "other", "Priority=-3", "Name=renamed")) == (0, "", "")
        assert (await told(house, "status", "renamed"))["priority"] == -3
        assert (await jobctl(house, "stop", "--name", "task", "--state", "queued")).out.count("stopped") == 4
        assert (await jobctl(house, "wait", "--all", "--name", "task")).code == 0
        end(house, other)
        assert (await jobctl(house, "remove", "--finished", "--older-than", "7d")).out == f"{other} removed\n"
        assert len((await jobctl(house, "remove", "--all")).out.split()) == 8
        assert await told(house, "list") == []

    house(scenario)


def test_scripts_graphs_and_duplicates(house: Run) -> None:
    async def scenario(house: House) -> None:
        script = "#!/bin/sh\n#JOBCTL --name made --hold --memory 64M\necho $1\n"
        job = (await jobctl(house, "script", "-", "a b", input=script)).out.strip()
        found = await told(house, "status", job)
        assert (found["name"], found["limits"]["memory_max"], found["state"]) == ("made", 64 * 2**20, "queued")
        assert house.manager.get(job).spec["Script"] == script.encode()
        copy = (await jobctl(house, "duplicate", "made", "--memory", "1G", "--name", "copy")).out.strip()
        assert (await told(house, "status", copy))["limits"]["memory_max"] == 2**30
        assert house.manager.get(copy).spec["Script"] == script.encode()
        other = (await jobctl(house, "duplicate", "copy", "--", "echo", "-n", "x")).out.strip()
        assert (await told(house, "status", other))["command"] == ["echo", "-n", "x"]
        done = await jobctl(house, "submit", "-", input=GRAPH)
        assert (done.code, done.err) == (0, "")
        ids = {name: job_id for job_id, name in (line.split() for line in done.out.splitlines())}
        last = await told(house, "status", ids["last"])
        assert len(last["dependencies"]) == 3
        assert last["retries"] == 2
        before = len(await told(house, "list"))
        bad = GRAPH.replace("[job.last]", '[job.last]\nqueue = "nowhere"')
        done = await jobctl(house, "submit", "-", input=bad)
        assert (done.code, done.err.count("\n"), "nowhere" in done.err) == (2, 1, True)
        assert len(await told(house, "list")) == before

    house(scenario)


def test_maintenance_stats_and_top(house: Run) -> None:
    async def scenario(house: House) -> None:
        job = await start(house, "true")
        assert (await jobctl(house, "maintenance", "on", "--wait")) == (0, "", "")
        done = await jobctl(house, "start", "true")
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert "in maintenance" in (await jobctl(house, "list")).err
        assert "on: nothing new" in (await jobctl(house, "maintenance")).out
        assert (await jobctl(house, "maintenance", "off")).code == 0
        assert (await jobctl(house, "top")).out.startswith("ID ")
        end(house, job)
        (day,) = await told(house, "stats", "--user", "root")
        assert (day["jobs"], day["completed"], day["queue"]) == (1, 1, "default")
        assert "default" in (await jobctl(house, "stats")).out

    house(scenario)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["start", "--queue", "nowhere", "true"], 2),
        (["start", "--shell", "/bin/sh", "true"], 2),
        (["start", "-p", "RetryDelaySec=5", "true"], 2),
        (["attach", "@"], 4),
        (["export", "@", "/tmp/x.tar"], 4),
    ],
)
def test_what_cannot_be_is_one_line(house: Run, argv: list[str], code: int) -> None:
    async def scenario(house: House) -> None:
        done = await jobctl(house, *argv)
        assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
        assert await told(house, "list") == []

    house(scenario)
