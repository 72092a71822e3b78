"""org.jobsvc1 while jobs run: news by waiting and by signals, many calls at once, nothing that piles up."""

import re
from itertools import groupby
from typing import Any

import pytest
from story import inside, jobctl

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_read_logs_waits_for_news_and_goes_on_from_there(machine: Machine) -> None:
    def ask() -> list[Any]:
        bus = Bus()  # noqa: F821
        job = bus.start("sh", "-c", "exec 3<>gate; for i in 1 2 3; do read x <&3; echo $i; done")
        options: Any = {"WaitUSec": ("t", 100_000)}
        nothing, options = bus.call("ReadLogs", "sa{sv}", job, options)
        options = {**options, "WaitUSec": ("t", 20_000_000)}
        pieces, slowest = [], 0.0
        gate = os.open("gate", os.O_RDWR)  # noqa: F821
        while options:
            os.write(gate, b"\n")  # noqa: F821
            begun = time.monotonic()  # noqa: F821
            data, options = bus.call("ReadLogs", "sa{sv}", job, options)
            slowest = max(slowest, time.monotonic() - begun)  # noqa: F821
            pieces.append(data.decode())
        return [nothing.decode(), "".join(pieces), len(pieces), slowest]

    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    nothing, text, count, slowest = inside(machine, ask)
    assert (nothing, text) == ("", "1\n2\n3\n")
    assert count <= 4
    assert slowest < 10
    machine.run("rm", "gate", user="alice")


def test_subscribers_hear_of_a_jobs_whole_life_in_order(machine: Machine) -> None:
    def ask() -> list[Any]:
        bus = Bus()  # noqa: F821
        bus.call("Subscribe")
        job = bus.start("true")
        heard = []
        while not heard or heard[-1] != ["JobChanged", "completed", "success"]:
            message = bus.signals.popleft() if bus.signals else bus.connection.receive(timeout=60)
            member, body = str(message.header.fields.get(3)), message.body
            if member == "PropertiesChanged":
                heard.append([member, message.header.fields[1], sorted(body[1])])
            elif member != "NameAcquired":
                assert body[0] == job
                heard.append([member, *body[1:]])
        bus.call("Remove", "sa{sv}", job, {})
        heard.append(["JobRemoved", *bus.signal("JobRemoved", id=job)[1:]])
        bus.call("Unsubscribe")
        other = bus.start("true")
        while bus.status(other)["State"] not in ("completed", "failed"):
            pass
        return [job, heard, len(bus.signals)]

    job, heard, later = inside(machine, ask)
    path = f"/org/jobsvc1/job/{job}"
    changes = [entry for entry, _ in groupby(entry[1:] for entry in heard if entry[0] == "JobChanged")]
    assert heard[0] == ["JobAdded", path]
    assert changes == [["starting", ""], ["running", ""], ["completed", "success"]]
    assert heard[-1] == ["JobRemoved", path]
    assert any(entry[1] == path and "State" in entry[2] for entry in heard if entry[0] == "PropertiesChanged")
    assert later <= 1  # PropertiesChanged of the end, which came before we left


def test_a_running_job_tells_what_it_uses_and_what_it_wrote(machine: Machine) -> None:
    def ask() -> list[Any]:
        bus = Bus()  # noqa: F821
        job = bus.start("sh", "-c", "seq 5; echo e >&2; exec 3<>gate; read x <&3")
        while bus.logs(job, Stream=("s", "stderr")) != b"e\n":
            pass
        told = bus.status(job)
        place = bus.get_all(f"/org/jobsvc1/job/{job}", "org.jobsvc1.Job")
        os.write(os.open("gate", os.O_RDWR), b"\n")  # noqa: F821
        bus.until_ended(job)
        return [told, place["Output"][1], place["State"][1]]

    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    told, output, state = inside(machine, ask)
    assert (told["State"], state) == ("running", "running")
    assert told["Output"]["StdoutBytes"][1] == output["StdoutBytes"][1] == 10
    assert told["Output"]["StderrBytes"][1] == output["StderrBytes"][1] == 2
    assert machine.run("rm", "gate", user="alice").returncode == 0


def test_a_client_that_asks_120_things_at_once_gets_120_answers(machine: Machine) -> None:
    def ask() -> list[int]:
        bus = Bus()  # noqa: F821
        serials = [bus.send("Count", "a{sv}", {}) for _ in range(120)]
        replies: dict[int, str] = {}
        while len(replies) < len(serials):
            message = bus.connection.receive(timeout=120)
            if (to := message.header.fields.get(5)) in serials:
                replies[to] = message.header.message_type.name
        return [list(replies.values()).count(kind) for kind in ("method_return", "error")]

    answered, refused = inside(machine, ask)
    assert answered + refused == 120
    assert answered >= 64
    assert jobctl(machine, "run", "--", "true").returncode == 0


def test_a_thousand_calls_cost_no_memory_and_no_descriptor(machine: Machine) -> None:
    def ask(rounds: int) -> int:
        bus = Bus()  # noqa: F821
        spare = os.open("/dev/null", os.O_RDONLY)  # noqa: F821
        errors = 0
        for _ in range(rounds):
            bus.call("Count", "a{sv}", {})
            bus.call("List", "a{sv}", {"Limit": ("u", 5)})
            errors += bus.refused("Stop", "sa{sv}", "0123456789abcdef", {})[0] == "NoSuchJob"
            errors += bus.refused("Stop", "sa{sv}", "0123456789abcdef", {"Stray": ("h", spare)})[0] != ""
            errors += bus.refused("Start", "a{sv}", {"Stray": ("h", spare)})[0] != ""
        bus.connection.close()
        return errors

    assert inside(machine, ask, 20) == 60  # what is cached is cached now
    pid = machine.run("systemctl", "show", "-P", "MainPID", "jobsvc.service").stdout.decode().strip()

    def holds() -> tuple[int, int]:
        count = len(machine.run("ls", f"/proc/{pid}/fd").stdout.split())
        rss = re.search(rb"VmRSS:\s+(\d+) kB", machine.read(f"/proc/{pid}/status"))
        assert rss is not None
        return count, int(rss[1])

    before = holds()
    assert inside(machine, ask, 200) == 600
    machine.wait_until(lambda: holds()[0] <= before[0], what="descriptors to be closed")
    assert holds()[1] < before[1] + 2048
