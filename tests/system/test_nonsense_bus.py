"""Nonsense that programs send: to the bus it is an error with a name, to the journal it is nobody's output."""

import json
from typing import Any

import pytest
from story import ended, inside, jobctl, start, status

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

MISSING = "0123456789abcdef"


def count(machine: Machine) -> int:
    return len(json.loads(jobctl(machine, "-o", "json", "list", "--limit", "0", user="root").stdout))


def sent(calls: list[list[Any]]) -> list[list[str]]:
    """The error that each call of [member, signature, body, ...] is answered with."""
    bus = Bus()  # noqa: F821
    return [
        bus.refused(member, signature, *body, **(more[0] if more else {})) for member, signature, body, *more in calls
    ]


COMMAND = ["as", ["true"]]
CALLS: dict[str, tuple[list[Any], str]] = {
    "no such method": (["Frobnicate", "", []], "UnknownMethod"),
    "no such method with arguments": (["Stopp", "sa{sv}", [MISSING, {}]], "UnknownMethod"),
    "no such interface": (["Stop", "", [], {"of": "org.jobsvc1.Nothing"}], "AccessDenied"),
    "no such path": (["Count", "a{sv}", [{}], {"path": "/org/jobsvc1/x"}], "UnknownMethod"),
    "no such object": (["GetAll", "s", [""], {"path": "/x", "of": "org.freedesktop.DBus.Properties"}], ""),
    "setting a property": (
        ["Set", "ssv", ["org.jobsvc1.Manager", "Version", ["s", "9"]], {"of": "org.freedesktop.DBus.Properties"}],
        "UnknownMethod",
    ),
    "a property of no interface": (
        ["Get", "ss", ["x\n", "y\n"], {"of": "org.freedesktop.DBus.Properties"}],
        "InvalidArgs",
    ),
    "no arguments": (["Start", "", []], "InvalidArgs"),
    "too many arguments": (["Subscribe", "s", ["x"]], "InvalidArgs"),
    "wrong argument": (["Status", "ua{sv}", [7, {}]], "InvalidArgs"),
    "empty spec": (["Start", "a{sv}", [{}]], "InvalidSpec"),
    "unknown key": (["Start", "a{sv}", [{"Command": COMMAND, "Memory": ["t", 1]}]], "InvalidSpec"),
    "unit file key": (["Start", "a{sv}", [{"Command": COMMAND, "CPUQuota": ["s", "1%"]}]], "InvalidSpec"),
    "wrong type": (["Start", "a{sv}", [{"Command": COMMAND, "MemoryMax": ["s", "1G"]}]], "InvalidSpec"),
    "command is a string": (["Start", "a{sv}", [{"Command": ["s", "true"]}]], "InvalidSpec"),
    "command is empty": (["Start", "a{sv}", [{"Command": ["as", []]}]], "InvalidSpec"),
    "program is empty": (["Start", "a{sv}", [{"Command": ["as", ["", "x"]]}]], "InvalidSpec"),
    "argument too long": (["Start", "a{sv}", [{"Command": ["as", ["true", "x" * 140_000]]}]], "InvalidSpec"),
    "command too big": (
        ["StartMany", "aa{sv}a{sv}", [[{"Command": ["as", ["true", *["x" * 1000] * 1100]]}], {}]],
        "InvalidSpec",
    ),
    "relative directory": (
        ["Start", "a{sv}", [{"Command": COMMAND, "WorkingDirectory": ["s", "tmp"]}]],
        "InvalidSpec",
    ),
    "dots in a directory": (
        ["Start", "a{sv}", [{"Command": COMMAND, "WorkingDirectory": ["s", "/tmp/../root"]}]],
        "InvalidSpec",
    ),
    "quota of less than a percent": (
        ["Start", "a{sv}", [{"Command": COMMAND, "CPUQuotaPerSecUSec": ["t", 5000]}]],
        "InvalidSpec",
    ),
    "a pid": (["Start", "a{sv}", [{"Command": COMMAND, "PIDs": ["au", [1]]}]], "InvalidSpec"),
    "stdin without a descriptor": (["Start", "a{sv}", [{"Command": COMMAND, "StandardInput": ["s", "x"]}]], ""),
    "too many labels": (
        ["Start", "a{sv}", [{"Command": COMMAND, "Labels": ["a{ss}", {str(i): "" for i in range(33)}]}]],
        "InvalidSpec",
    ),
    "dry run that is no boolean": (
        ["Start", "a{sv}", [{"Command": COMMAND, "DryRun": ["s", "yes"]}]],
        "InvalidSpec",
    ),
    "one bad among many": (["StartMany", "aa{sv}a{sv}", [[{"Command": COMMAND}, {}], {}]], "InvalidSpec"),
    "1001 at once": (["StartMany", "aa{sv}a{sv}", [[{"Command": COMMAND}] * 1001, {}]], "InvalidSpec"),
    "unknown option": (["Status", "sa{sv}", [MISSING, {"Runn": ["u", 1]}]], "InvalidArgs"),
    "option of a wrong type": (["Status", "sa{sv}", [MISSING, {"Run": ["s", "1"]}]], "InvalidArgs"),
    "no such id": (["Status", "sa{sv}", [MISSING, {}]], "NoSuchJob"),
    "an id that is none": (["Status", "sa{sv}", ["../x\n%", {}]], "NoSuchJob"),
    "unknown filter": (["List", "a{sv}", [{"Nmae": ["s", "x"]}]], "InvalidArgs"),
    "no such state": (["List", "a{sv}", [{"State": ["as", ["sleeping"]]}]], "InvalidSpec"),
    "limit of 0": (["List", "a{sv}", [{"Limit": ["u", 0]}]], "InvalidArgs"),
    "limit of 501": (["List", "a{sv}", [{"Limit": ["u", 501]}]], "InvalidArgs"),
    "unknown field": (["List", "a{sv}", [{"Fields": ["as", ["Nmae"]]}]], "InvalidArgs"),
    "no such signal": (["Kill", "ssia{sv}", [MISSING, "all", 99, {}]], "InvalidArgs"),
    "negative signal": (["Kill", "ssia{sv}", [MISSING, "all", -1, {}]], "InvalidArgs"),
    "kill whom": (["Kill", "ssia{sv}", [MISSING, "everybody", 9, {}]], "InvalidArgs"),
    "ids and a filter": (["StopMany", "asa{sv}", [[MISSING], {"Name": ["s", "x"]}]], "InvalidArgs"),
    "neither ids nor a filter": (["RemoveMany", "asa{sv}", [[], {}]], "InvalidArgs"),
    "wait for an hour": (["ReadLogs", "sa{sv}", [MISSING, {"WaitUSec": ["t", 3_600_000_000]}]], "InvalidArgs"),
    "a body beyond 64 KiB": (["Status", "sa{sv}", ["x" * 70_000, {}]], "LimitsExceeded"),
    "a spec beyond 1 MiB": (["Start", "a{sv}", [{"Name": ["s", "x" * 1_100_000]}]], "LimitsExceeded"),
    "specs beyond 4 MiB": (
        ["StartMany", "aa{sv}a{sv}", [[{"Name": ["s", "x" * 4_300_000]}], {}]],
        "LimitsExceeded",
    ),
}


def test_nonsense_on_the_bus_is_refused_by_name_and_in_one_line(machine: Machine) -> None:
    before = count(machine)
    told = dict(zip(CALLS, inside(machine, sent, [call for call, _ in CALLS.values()]), strict=True))
    wrong = {
        what: (name, text)
        for what, (name, text) in told.items()
        if name != (CALLS[what][1] or name) or not name or name == "Internal" or "\n" in text or len(text) > 400
    }
    assert wrong == {}
    assert count(machine) == before


def test_a_bad_format_or_stream_of_logs_is_refused(machine: Machine) -> None:
    def ask(job: str) -> list[list[str]]:
        bus = Bus()  # noqa: F821
        bad = [{"Format": ("s", "xml")}, {"Stream": ("s", "stdin")}, {"Run": ("u", 7)}]
        bad += [{"Lines": ("s", "1")}, {"Nothing": ("s", "1")}]
        return [bus.refused(member, "sa{sv}", job, options) for member in ("Logs", "ReadLogs") for options in bad]

    assert jobctl(machine, "run", "--", "true").returncode == 0
    told = inside(machine, ask, status(machine)["id"])
    one = ["InvalidArgs", "InvalidArgs", "NoSuchJob", "InvalidArgs", "InvalidArgs"]
    assert [name for name, _ in told] == one * 2, told


def forge(job: str, pid: int, uid: int) -> None:
    """Lines that say they are a job's output, or its end, from a process of this user's that is not the job."""
    connection = namespace_socket(uid)  # noqa: F821
    for offset in (0, 4, 5, 1000):
        fields = f"JOBSVC_ID={job}\nJOBSVC_RUN=1\nJOBSVC_STREAM=stdout\nJOBSVC_OFFSET={offset}\n_PID={pid}\n"
        connection.send(f"MESSAGE=FORGED\n{fields}PRIORITY=6\n".encode())
    for event in ("finished", "end-of-output", "removed"):
        fields = f"JOBSVC_ID={job}\nJOBSVC_RUN=1\nJOBSVC_EVENT={event}\nJOBSVC_RESULT=success\n"
        connection.send(f"MESSAGE=FORGED\n{fields}JOBSVC_EXIT_CODE=0\nJOBSVC_STDOUT_BYTES=6\n".encode())


@pytest.mark.parametrize("forger", [1001, 1000])
def test_forged_lines_change_nothing(machine: Machine, forger: int) -> None:
    """Nobody gets at the journal's socket; and if somebody did, it is the sender that is looked at."""
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    script = "exec 3<>gate; echo one; read x <&3; echo two; exit 3"
    job = start(machine, "--", "sh", "-c", script)
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"one\n")
    inside(machine, forge, job, status(machine, job)["main_pid"], forger, user="root")
    assert status(machine, job)["state"] == "running"
    machine.run("sh", "-c", "echo > gate", user="alice")
    told = ended(machine, job)
    inside(machine, forge, job, 1, forger, user="root")
    forged = ("journalctl", "--namespace=jobsvc", "-q", "-o", "cat", f"JOBSVC_ID={job}")
    machine.wait_until(lambda: machine.run(*forged).stdout.count(b"FORGED") == 14)
    logs = jobctl(machine, "logs", job)
    assert (logs.returncode, logs.stdout, logs.stderr) == (0, b"one\ntwo\n", b"")
    assert (told["exit_code"], told["output"]["stdout_bytes"]) == (3, 8)
    assert b"FORGED" not in jobctl(machine, "logs", "-o", "json", job).stdout
    machine.run("rm", "gate", user="alice")
