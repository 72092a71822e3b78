"""One user does its worst; another one's jobs run on, and the service has nothing left over from it."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from story import assert_nothing_left, code, ended, inside, jobctl, service_log, start, status, systemctl

from machine.host import SLOW
from machine.nspawn import Machine

PATIENCE = 5.0  # seconds, on a machine that is busy with the flood and with other tests


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    before = main_pid(machine)
    yield
    assert_nothing_left(machine)
    assert main_pid(machine) == before  # it did not fall over


def main_pid(machine: Machine) -> str:
    return systemctl(machine, "show", "-P", "MainPID", "jobsvc.service")


def held(machine: Machine) -> tuple[int, int]:
    """Descriptors and KiB of memory of the service."""
    pid = main_pid(machine)
    count = len(machine.run("ls", f"/proc/{pid}/fd").stdout.split())
    (resident,) = [line for line in machine.read(f"/proc/{pid}/status").splitlines() if line.startswith(b"VmRSS")]
    return count, int(resident.split()[1])


def slowness(machine: Machine) -> float:
    """How many times longer than on a usual machine a call of alice's takes here while nothing else is asked."""
    at = time.monotonic()
    jobctl(machine, "run", "--", "true", timeout=60)
    return max(1.0, (time.monotonic() - at) / 0.5)


def work(machine: Machine, flood: Any, *arguments: Any, seconds: float = 120) -> tuple[Any, list[float]]:
    """bob runs the flood; meanwhile alice works. What the flood tells, and how long each of her calls took.

    The latter in seconds of a usual machine.
    """
    slow = slowness(machine)
    argv = ("timeout", str(seconds * SLOW), "python3", "-B", "-c", code(flood, *arguments))
    took = []

    def alice() -> None:
        at = time.monotonic()
        done = jobctl(machine, "run", "--", "echo", "here", timeout=60)
        assert (done.returncode, done.stdout) == (0, b"here\n"), done
        took.append((time.monotonic() - at) / slow)

    with machine.popen(*argv, user="bob", stdout=-1, stderr=-1) as process:
        alice()
        while process.poll() is None:
            alice()
        out, err = process.communicate()
    assert process.returncode == 0, err.decode()[-2000:]
    return json.loads(out), took


def assert_answered(took: list[float], times: int = 1) -> None:
    """alice was not kept waiting: a stall of the whole machine is one long call, a flood that has its way is many."""
    assert sorted(took)[len(took) // 2] < times * PATIENCE, took
    assert max(took) < 4 * times * PATIENCE, took


def bodies() -> dict[str, Any]:
    """As large as the bus lets through, to methods that are there and to some that are not."""
    bus, told = Bus(fds=False), []  # noqa: F821
    huge, many = "x" * 31_000_000, [7] * 500_000
    for member, signature, body in (
        ("Nothing", "s", [huge]),
        ("Nothing", "ai", [many]),
        ("Status", "sa{sv}", [huge, {}]),
        ("Start", "a{sv}", [{"Command": ("as", ["true", huge])}]),
        ("StartMany", "aa{sv}a{sv}", [[{"Command": ("as", ["x"] * 400)}] * 1000 + [{}], {}]),
        ("Start", "a{sv}", [{"Command": ("as", [*"x" * 120_000])}]),
        ("Start", "a{sv}", [{"Nothing": ("ai", [1] * 200_000)}]),
    ):
        told.append(bus.refused(member, signature, *body)[0] or "accepted")
    listed = bus.call("List", "a{sv}", {"State": ("as", ["queued", "running", "starting"])})[0]
    return {"told": told, "left": [one["Id"][1] for one in listed]}


def test_bodies_of_thirty_megabytes(machine: Machine) -> None:
    told, took = work(machine, bodies)
    assert told["told"][:4] == ["LimitsExceeded"] * 4
    assert told["told"][4:] == ["InvalidSpec", "accepted", "InvalidSpec"]
    assert_answered(took)


def descriptors(rounds: int) -> int:
    """Descriptors with every call that takes none, and with one that takes one."""
    import jeepney

    bus = Bus()  # noqa: F821
    ends = [os.memfd_create("x") for _ in range(16)]  # noqa: F821
    answers = 0
    for number in range(rounds):
        body = ({"Command": ("as", ["true"]), "StandardInput": ("h", 3)},) if number % 3 else (ends,)
        member, signature = ("Start", "a{sv}") if number % 3 else ("Nothing", "ah")
        if number % 3:
            keys = {f"Nothing{end}": ("h", end) for end in ends} | {"Command": ("as", ["true"])}
            body = (keys,)
        call = jeepney.new_method_call(jeepney.DBusAddress(ROOT, NAME, MANAGER), member, signature, body)  # noqa: F821
        serial = next(bus.connection.outgoing_serial)
        bus.connection.send(call, serial=serial)
        try:
            bus.reply(serial)
        except Refused:  # noqa: F821
            answers += 1
    return answers


def test_thousands_of_descriptors(machine: Machine) -> None:
    before, _ = held(machine)
    told, took = work(machine, descriptors, 300)
    assert told == 300
    assert_answered(took)
    machine.wait_until(lambda: held(machine)[0] <= before + 5, what="all descriptors to be closed")


def specs() -> list[str]:
    """Ten thousand jobs in one call, and then as many as one may have waiting."""
    bus = Bus()  # noqa: F821
    one = {"Command": ("as", ["sleep", "600"]), "Hold": ("b", True)}
    told = []
    for number in (10_000, *[1000] * 6):
        serial = bus.send("StartMany", "aa{sv}a{sv}", [one] * number, {})
        try:
            bus.reply(serial, 60)
            told.append("accepted")
        except Refused as error:  # noqa: F821
            told.append(error.name)
    return told


def sweep() -> int:
    """Of what root does polkit is not asked five thousand times."""
    bus = Bus()  # noqa: F821
    stopped = bus.reply(bus.send("StopMany", "asa{sv}", [], {"State": ("as", ["queued"])}), 60)
    return sum(not name for _, name, _ in stopped)


def test_ten_thousand_jobs_at_once(machine: Machine) -> None:
    told, took = work(machine, specs)
    assert told == ["InvalidSpec", *["accepted"] * 5, "Quota"]
    assert inside(machine, sweep, user="root", timeout=90) == 5000
    assert_answered(took, 2)


def questions(calls: int) -> dict[str, int]:
    """An agent that never answers, and calls that each want a password."""
    import collections

    import jeepney

    agent = Bus(fds=False)  # noqa: F821
    with open("/proc/self/stat") as file:
        start = file.read().rpartition(")")[2].split()[19]
    subject = ("unix-process", {"pid": ("u", os.getpid()), "start-time": ("t", int(start))})  # noqa: F821
    polkit = jeepney.DBusAddress(
        "/org/freedesktop/PolicyKit1/Authority",
        "org.freedesktop.PolicyKit1",
        "org.freedesktop.PolicyKit1.Authority",
    )
    register = jeepney.new_method_call(polkit, "RegisterAuthenticationAgent", "(sa{sv})ss", (subject, "C", "/agent"))
    serial = next(agent.connection.outgoing_serial)
    agent.connection.send(register, serial=serial)
    agent.reply(serial)
    buses = [Bus(fds=False) for _ in range(8)]  # noqa: F821
    spec = {"Command": ("as", ["true"]), "User": ("s", "root")}
    for bus in buses:
        for _ in range(calls // 8):
            bus.send("Start", "a{sv}", spec, flags=4)
    told: collections.Counter[str] = collections.Counter()
    deadline = time.monotonic() + 240
    while told["Quota"] < calls - 4 and time.monotonic() < deadline:
        for bus in buses:
            try:
                while True:
                    told[bus.connection.receive(timeout=0.05).header.fields.get(4, "").rpartition(".")[2]] += 1
            except TimeoutError:
                pass
    dialogs = 0
    try:
        while True:
            message = agent.connection.receive(timeout=1)
            dialogs += message.header.fields.get(3) == "BeginAuthentication"
    except TimeoutError:
        pass
    return {"Quota": told["Quota"], "dialogs": dialogs}


def test_a_hundred_and_twenty_eight_open_questions(machine: Machine) -> None:
    told, took = work(machine, questions, 128)
    assert told == {"Quota": 124, "dialogs": 4}
    assert_answered(took)
    # dave's questions are his own: nothing of bob's is in the way, and nothing of it is left.
    assert jobctl(machine, "run", "--uid", "root", "--", "true", user="dave").returncode == 0


def followers(job: str, number: int) -> dict[str, int]:
    """Open as many outputs as one may, and read none of them."""
    bus, opened, refused = Bus(), [], 0  # noqa: F821
    for _ in range(number // 100):
        for _ in range(100):
            bus.send("Logs", "sa{sv}", job, {"Follow": ("b", True)})
        answers = 0
        while answers < 100:  # in whatever order they come
            message = bus.connection.receive(timeout=360)
            if 5 not in message.header.fields:
                continue
            answers += 1
            if 4 in message.header.fields:
                refused += message.header.fields[4].endswith(".Quota")
            else:
                opened.append(message.body[0].to_raw_fd())
    time.sleep(1)
    return {"opened": len(opened), "refused": refused}


def test_a_thousand_followers_that_never_read(machine: Machine) -> None:
    flood = start(machine, "-p", "LogSizeMax=64M", "--", "sh", "-c", "yes | head -c 20M; exec sleep 600", user="bob")
    machine.wait_until(lambda: status(machine, flood, user="bob")["output"]["stdout_bytes"] >= 20_000_000)
    before = held(machine)
    told, took = work(machine, followers, flood, 1100)
    assert told == {"opened": 1000, "refused": 100}
    assert_answered(took)
    machine.wait_until(lambda: held(machine)[0] <= before[0] + 5, what="all pipes to be closed")
    assert held(machine)[1] < before[1] + 500_000  # of what each was given once Python gives little back
    jobctl(machine, "stop", flood, user="bob")


def test_a_flood_of_output(machine: Machine) -> None:
    """bob's jobs write as fast as they can, one of them a line without an end; alice's output is exact."""
    slow = slowness(machine)
    floods = [
        start(machine, "-p", "LogSizeMax=48M", "--", "sh", "-c", script, user="bob")
        for script in ("yes", "cat /dev/zero", "tr -d '\\n' < /dev/urandom", "yes >&2")
    ]
    took, lines = [], "".join(f"{number}\n" for number in range(1, 20001)).encode()
    for _ in range(4):
        at = time.monotonic()
        done = jobctl(machine, "run", "--", "seq", "20000", timeout=90)
        took.append((time.monotonic() - at) / slow)
        assert (done.returncode, done.stdout == lines, done.stderr) == (0, True, b"")
    for flood in floods:
        told = status(machine, flood, user="bob")
        assert told["state"] == "running"
        jobctl(machine, "stop", flood, user="bob")
        told = ended(machine, flood, user="bob")
        kept = told["output"]["stdout_bytes"] + told["output"]["stderr_bytes"] - told["output"]["missing_bytes"]
        assert kept <= 48 << 20  # what is cut is named
    assert_answered(took, 4)


def limits() -> dict[str, Any]:
    """Everything exactly as large as it may be, and one more."""
    bus = Bus()  # noqa: F821
    fine = {
        "name": {"Name": ("s", "n" * 128)},
        "unicode name": {"Name": ("s", "\u00fc" * 64)},
        "word": {"Command": ("as", ["true", "x" * 131_071])},
        "words": {"Command": ("as", ["true", *["x" * 1000] * 1000])},
        "labels": {"Labels": ("a{ss}", {f"{n:03}": "x" * 125 for n in range(32)})},
        "request": {"RequestId": ("s", "r" * 128)},
        "behalf": {"OnBehalfOf": ("s", "o" * 256)},
        "directory": {"WorkingDirectory": ("s", "/" + "/".join(["."] * 2000))},
        "environment": {"Environment": ("as", [f"V{n}={'x' * 1000}" for n in range(900)])},
        "nice": {"Nice": ("i", 19)},
        "quota": {"CPUQuotaPerSecUSec": ("t", 10_000)},
    }
    beyond = {
        "name": {"Name": ("s", "n" * 129)},
        "unicode name": {"Name": ("s", "\u00fc" * 65)},
        "word": {"Command": ("as", ["true", "x" * 131_072])},
        "words": {"Command": ("as", ["true", *["x" * 1000] * 1047])},
        "labels": {"Labels": ("a{ss}", {f"{n:03}": "x" * 125 for n in range(33)})},
        "request": {"RequestId": ("s", "r" * 129)},
        "behalf": {"OnBehalfOf": ("s", "o" * 257)},
        "directory": {"WorkingDirectory": ("s", "/" * 4096)},
        "environment": {"Environment": ("as", ["=x"])},
        "nice": {"Nice": ("i", 20)},
        "quota": {"CPUQuotaPerSecUSec": ("t", 9_999)},
        "empty": {"Command": ("as", [])},
        "nul": {"Command": ("as", [""])},
    }
    jobs = {
        what: bus.start("true", **keys) if "Command" not in keys else bus.call("Start", "a{sv}", keys)[0]
        for what, keys in fine.items()
    }
    ends = bus.until_ended(*jobs.values(), timeout=60)
    told = {what: ends[job]["Result"] for what, job in jobs.items()}
    base = {"Command": ("as", ["true"])}
    return {"fine": told, "beyond": {w: bus.refused("Start", "a{sv}", base | keys)[0] for w, keys in beyond.items()}}


def test_lengths_at_every_limit(machine: Machine) -> None:
    told = inside(machine, limits, user="bob", timeout=90)
    assert set(told["fine"].values()) == {"success"}, told
    assert set(told["beyond"].values()) <= {"InvalidSpec", "LimitsExceeded"}, told


def crowd() -> list[str]:
    """More calls that wait than one may have, from many connections."""
    buses = [Bus(fds=False) for _ in range(6)]  # noqa: F821
    job = buses[0].start("true", Hold=("b", True))
    wait = {"WaitUSec": ("t", 8_000_000)}  # none is over before all are there
    for bus in buses:
        for _ in range(100):
            bus.send("ReadLogs", "sa{sv}", job, wait)
    told = []
    for bus in buses:
        while sum(one[0] is bus for one in told) < 100:
            message = bus.connection.receive(timeout=360)
            if 5 in message.header.fields:
                told.append((bus, message.header.fields.get(4, "").rpartition(".")[2]))
    buses[0].call("Stop", "sa{sv}", job, {})
    return [name for _, name in told]


def test_more_calls_than_one_may_have(machine: Machine) -> None:
    told, took = work(machine, crowd)
    assert set(told) == {"", "Quota"}
    assert told.count("") <= 256
    assert_answered(took)


def badly(rounds: int, cut: str) -> dict[str, int]:
    """Calls that are wrong in every way there is, and readers of what is not there."""
    import collections

    bus, told = Bus(), collections.Counter()  # noqa: F821
    spec = {"Command": ("as", ["true"])}
    calls: list[tuple[str, str, Any]] = [
        ("Status", "sa{sv}", ("0123456789abcdef", {})),
        ("Stop", "sa{sv}", ("x\n" * 100, {})),
        ("Nothing", "s", ("x",)),
        ("Start", "s", ("x",)),
        ("Start", "a{sv}", ({},)),
        ("Start", "a{sv}", (spec | {"Nothing": ("s", "x")},)),
        ("Start", "a{sv}", (spec | {"WorkingDirectory": ("s", "x")},)),
        ("Status", "sa{sv}", ("x" * 70_000, {})),
        ("Logs", "sa{sv}", (cut, {"Format": ("s", "xml")})),
        ("Logs", "sa{sv}", (cut, {})),
    ]
    asking: list[tuple[str, str, Any]] = [
        ("Reload", "", ()),
        ("Start", "a{sv}", (spec | {"User": ("s", "root")},)),
    ]
    for number in range(rounds):
        sent = [*calls, *(() if number % 20 else asking)]
        for member, signature, body in sent:
            bus.send(member, signature, *body)
        answers = 0
        while answers < len(sent):
            message = bus.connection.receive(timeout=360)
            if 5 in message.header.fields:
                answers += 1
                told[message.header.fields.get(4, "").rpartition(".")[2]] += 1
    return told


def test_thousands_of_bad_calls_leave_no_more_than_a_page_in_the_journal(machine: Machine) -> None:
    cut = start(machine, "-p", "LogSizeMax=10", "--", "seq", "100", user="bob")
    assert ended(machine, cut, user="bob")["output"]["missing_bytes"] > 0
    service_log(machine)
    told, took = work(machine, badly, 500, cut)
    assert told.pop("") == 500
    assert sum(told.values()) == 9 * 500 + 50, told
    said = service_log(machine)
    assert said.count("\n") < 60 + 10 * len(took), said[-4000:]  # alice's jobs among them
    assert_answered(took)
