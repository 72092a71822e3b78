"""org.jobsvc1 as any program meets it on the bus."""

import json
import re
from typing import Any

import pytest
from story import ended, inside, jobctl, service

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

CALL = ("busctl", "--json=short", "call", "--", "org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager")


def busctl(machine: Machine, *argv: str, user: str = "alice") -> Any:
    """The body of the answer to a call of the Manager's."""
    answer = machine.run(*CALL, *argv, user=user).stdout
    return json.loads(answer)["data"] if answer else None


def test_busctl_is_enough_for_the_whole_life_of_a_job(machine: Machine) -> None:
    spec = ("2", "Command", "as", "3", "sh", "-c", "echo hi; exit 4", "Name", "s", "tour")
    job, path = busctl(machine, "Start", "a{sv}", *spec)
    assert path == f"/org/jobsvc1/job/{job}"
    ended(machine, job)
    (told,) = busctl(machine, "Status", "sa{sv}", job, "0")
    assert (told["State"]["data"], told["Result"]["data"], told["ExitCode"]["data"]) == ("failed", "exit-code", 4)
    data, _ = busctl(machine, "ReadLogs", "sa{sv}", job, "0")
    assert bytes(data) == b"hi\n"
    shown = machine.run("busctl", "introspect", "org.jobsvc1", path, user="alice").stdout.decode()
    assert re.search(r'^\.Name +property +s +"tour"', shown, re.MULTILINE)
    assert busctl(machine, "Restart", "sa{sv}", job, "0") == [2]
    ended(machine, job)
    busctl(machine, "Remove", "sa{sv}", job, "0")
    assert jobctl(machine, "status", job).returncode == 4
    tree = machine.run("busctl", "tree", "--list", "org.jobsvc1", user="alice").stdout.decode().split()
    assert "/org/jobsvc1/job" in tree


def test_one_key_and_one_spec_are_one_job_also_later(machine: Machine) -> None:
    def ask(key: str) -> list[Any]:
        bus = Bus()  # noqa: F821
        spec = {"Command": ("as", ["sh", "-c", "echo ran"]), "RequestId": ("s", key)}
        jobs = [bus.call("Start", "a{sv}", spec)[0] for _ in range(3)]
        jobs += [job for job, _ in bus.call("StartMany", "aa{sv}a{sv}", [spec], {})]
        bus.until_ended(jobs[0])
        jobs.append(bus.call("Start", "a{sv}", spec)[0])
        other = bus.refused("Start", "a{sv}", {**spec, "Command": ("as", ["true"])})
        return [jobs, other, bus.logs(jobs[0]).decode(), bus.status(jobs[0])["Run"]]

    key = machine.read("/proc/sys/kernel/random/uuid").decode().strip()
    jobs, other, output, run = inside(machine, ask, key)
    assert (len(set(jobs)), other[0], output, run) == (1, "InvalidSpec", "ran\n", 1)
    assert key in other[1]
    service(machine, "kill")
    assert inside(machine, ask, key)[0] == jobs
    assert inside(machine, ask, key, user="bob")[0][0] not in jobs  # a key is its owner's

    def again(key: str) -> list[Any]:
        bus = Bus()  # noqa: F821
        job, _ = bus.call("Start", "a{sv}", {"Command": ("as", ["sh", "-c", "echo ran"]), "RequestId": ("s", key)})
        return [job, bus.refused("Status", "sa{sv}", job, {})[0]]

    assert jobctl(machine, "remove", jobs[0]).returncode == 0
    assert inside(machine, again, key) == [jobs[0], "NoSuchJob"]  # it is gone, and does not run again


def test_lists_are_filtered_and_come_in_pages(machine: Machine) -> None:
    def ask(mark: str) -> dict[str, Any]:
        bus = Bus()  # noqa: F821
        specs = [
            {
                "Command": ("as", ["true" if i % 2 else "false"]),
                "Name": ("s", f"page-{i}"),
                "Labels": ("a{ss}", {"story": mark, "odd": str(i % 2)}),
            }
            for i in range(10)
        ]
        before = max([job["Seq"][1] for job in bus.call("List", "a{sv}", {"Limit": ("u", 1)})[0]], default=0)
        jobs = many(bus, specs)  # noqa: F821
        bus.until_ended(*jobs)
        mine = {"Labels": ("a{ss}", {"story": mark})}

        def names(**options: Any) -> list[str]:
            return [job["Name"][1] for job in bus.call("List", "a{sv}", {**mine, **options})[0]]

        pages, after = [], {}
        while True:
            found, following = bus.call("List", "a{sv}", {**mine, **after, "Limit": ("u", 4)})
            pages.append([job["Name"][1] for job in found])
            if not following:
                break
            after = {"After": ("s", following)}
        changed = {"ChangedSince": ("t", before)}
        last = max(bus.status(job)["Seq"] for job in jobs)
        return {
            "pages": pages,
            "reverse": names(Reverse=("b", True)),
            "odd": names(Labels=("a{ss}", {"story": mark, "odd": "1"})),
            "failed": names(State=("as", ["failed"])),
            "glob": names(Name=("s", "page-[12]")),
            "count": bus.call("Count", "a{sv}", mine),
            "changed": sorted(names(**changed)),
            "unchanged": names(ChangedSince=("t", last)),
            "fields": sorted(bus.call("List", "a{sv}", {**mine, "Fields": ("as", ["Id", "Labels"])})[0][0]),
            "user": names(User=("s", "bob")),
        }

    mark = machine.read("/proc/sys/kernel/random/uuid").decode().strip()
    told = inside(machine, ask, mark)
    newest = [f"page-{i}" for i in range(9, -1, -1)]
    assert told["pages"] == [newest[:4], newest[4:8], newest[8:]]
    assert told["reverse"] == newest[::-1]
    assert told["odd"] == newest[::2]
    assert told["failed"] == newest[1::2]
    assert told["glob"] == ["page-2", "page-1"]
    assert told["count"] == {"completed": 5, "failed": 5}
    assert told["changed"] == sorted(newest)
    assert (told["unchanged"], told["user"], told["fields"]) == ([], [], ["Id", "Labels"])


def test_start_many_is_all_or_nothing_and_a_dry_run_starts_nothing(machine: Machine) -> None:
    def ask(mark: str) -> list[Any]:
        bus = Bus()  # noqa: F821
        good = {"Command": ("as", ["touch", f"/var/tmp/{mark}"]), "Name": ("s", mark)}
        bad = {"Command": ("as", ["true"]), "Nmae": ("s", "x")}
        told = [bus.refused("StartMany", "aa{sv}a{sv}", [good, bad, good], {})]
        told.append(bus.call("StartMany", "aa{sv}a{sv}", [good] * 3, {"DryRun": ("b", True)}))
        told.append(bus.call("Start", "a{sv}", {**good, "DryRun": ("b", True)}))
        told.append(bus.refused("Start", "a{sv}", {**bad, "DryRun": ("b", True)}))
        told.append(bus.call("Count", "a{sv}", {"Name": ("s", mark)}))
        return told

    many, dry_many, dry, dry_bad, count = inside(machine, ask, "story-dry")
    assert many[0] == dry_bad[0] == "InvalidSpec"
    assert "job 1" in many[1]
    assert "Nmae" in many[1]
    assert "Name" in many[1]
    assert (dry_many, dry, count) == ([], ["", "/"], {})
    assert not machine.exists("/var/tmp/story-dry")
