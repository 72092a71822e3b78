"""What is said of the queue: options, scripts, arrays, graphs become the specs that were meant, or one clear line."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeService, GoAway, Jobctl, job, unhurried

ONE, TWO = "aaaa000000000001", "aaaa000000000002"


@pytest.fixture(autouse=True)
def two(service: FakeService) -> None:
    service.jobs = {
        ONE: job(Id=ONE, Name="fetch", State="queued", StartedTimestamp=None),
        TWO: job(Id=TWO, Name="build"),
    }


def submitted(service: FakeService, jobctl: Jobctl, *args: str, **options: Any) -> dict[str, Any]:
    done = jobctl(*args, **options)
    assert (done.code, done.err) == (0, "")
    spec: dict[str, Any] = dict(service.saw("Start")[0])
    service.calls.clear()
    for name in ("RequestId", "WorkingDirectory"):
        del spec[name]
    return spec


def many(service: FakeService) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = service.saw("StartMany")[0]
    return specs


def test_options_of_the_queue(service: FakeService, jobctl: Jobctl) -> None:
    spec = submitted(
        service, jobctl, "start", "--queue", "night", "--priority", "-5", "--after", "fetch", "--after", f"{TWO}:any",
        "--at", "@1800000000", "--retries", "3", "--retry-delay", "1min", "--unique", "k", "--unique-policy", "return",
        "--hold", "--notify", "mail", "--private-tmp", "--private-network", "--read-only-root", "--no-new-privileges",
        "true",
    )  # fmt: skip
    assert spec == {
        "Command": ("as", ["true"]),
        "Queue": ("s", "night"),
        "Priority": ("i", -5),
        "Dependencies": ("a(ss)", [(ONE, "success"), (TWO, "any")]),
        "NotBeforeUSec": ("t", 1_800_000_000_000_000),
        "Retries": ("u", 3),
        "RetryDelayUSec": ("t", 60_000_000),
        "Unique": ("s", "k"),
        "UniquePolicy": ("s", "return"),
        "Hold": ("b", True),
        "Notify": ("s", "mail"),
        "PrivateTmp": ("b", True),
        "PrivateNetwork": ("b", True),
        "ReadOnlyRoot": ("b", True),
        "NoNewPrivileges": ("b", True),
    }


def test_after_takes_what_an_array_printed(service: FakeService, jobctl: Jobctl) -> None:
    spec = submitted(service, jobctl, "start", "--after", f"{ONE}\n{TWO}\n:any", "true")
    assert spec["Dependencies"] == ("a(ss)", [(ONE, "any"), (TWO, "any")])


def test_after_an_array_is_after_all_of_its_tasks(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    array = "f" * 16
    for number in range(600):
        service.jobs[f"{number:016x}"] = job(number, ArrayId=array, ArrayIndex=number)
    spec = submitted(service, jobctl, "start", "--after", f"{array}:any", "--after", "fetch", "true")
    waits = [(f"{number:016x}", "any") for number in range(600)] + [(ONE, "success")]
    assert spec["Dependencies"] == ("a(ss)", waits)
    (tmp_path / "f").write_text(f"[job.a]\ncommand=['x']\nafter=['{array}:any', 'fetch']")
    assert jobctl("submit", "f", cwd=tmp_path).code == 0
    assert many(service)[0]["Dependencies"] == ("a(ss)", waits)
    for number in range(600, 1000):
        service.jobs[f"{number:016x}"] = job(number, ArrayId=array, ArrayIndex=number)
    done = jobctl("start", "--after", array, "--after", "fetch", "true")
    assert (done.code, done.err) == (2, "jobctl: --after: these are 1001 jobs; 1000 are the most of one job\n")


def test_properties_spell_the_queue_as_unit_files_do(service: FakeService, jobctl: Jobctl) -> None:
    spec = submitted(
        service, jobctl, "start", "-p", "NotBefore=2030-01-01 08:00", "-p", "RetryDelaySec=90", "-p", "Retries=1",
        "-p", "Hold=yes", "true",
    )  # fmt: skip
    assert spec["NotBeforeUSec"] == ("t", 1_893_484_800_000_000)
    assert (spec["RetryDelayUSec"], spec["Hold"]) == (("t", 90_000_000), ("b", True))


# Scripts

SCRIPT = """#!/bin/bash
# what it does
#JOBCTL --memory 1G --name from-file   # a comment
#JOBCTL -E A=1
#JOBCTLX --nonsense

echo "$1"
#JOBCTL --cpu 50%
"""


def test_a_script_is_its_text_and_the_command_line_wins(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "work.sh").write_text(SCRIPT)
    args = ("script", "--memory", "2G", "-E", "B=2", "work.sh", "one", "--two")
    assert submitted(service, jobctl, *args, cwd=tmp_path) == {
        "Script": ("ay", SCRIPT.encode()),
        "Arguments": ("as", ["one", "--two"]),
        "Name": ("s", "from-file"),
        "MemoryMax": ("t", 2 * 2**30),
        "Environment": ("as", ["A=1", "B=2"]),
    }
    spec = submitted(service, jobctl, "script", "--name", "n", "--shell", "/bin/dash", "work.sh", cwd=tmp_path)
    assert (spec["Name"], spec["Shell"], spec["MemoryMax"]) == (("s", "n"), ("s", "/bin/dash"), ("t", 2**30))


def test_of_two_for_the_same_thing_the_later_holds(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "s").write_text(
        "#JOBCTL --io-read /:1M --io-read /srv:1M --after fetch --after build -E A=1 -E B=2 --label a=1 --label b=2\n"
        "#JOBCTL --memory 1G --unique k -p RuntimeMaxSec=9\n"
    )
    args = ("--io-read", "/:2M", "--after", "build:any", "-E", "A=3", "--label", "b=4")
    spec = submitted(service, jobctl, "script", *args, "-p", "MemoryMax=", "-p", "Unique =", "s", cwd=tmp_path)
    assert spec["IOReadBandwidthMax"] == ("a(st)", [("/", 2_000_000), ("/srv", 1_000_000)])
    assert spec["Dependencies"] == ("a(ss)", [(ONE, "success"), (TWO, "any")])
    assert (spec["Environment"], spec["Labels"]) == (("as", ["A=3", "B=2"]), ("a{ss}", {"a": "1", "b": "4"}))
    assert not spec.keys() & {"MemoryMax", "Unique", "Unset"}
    assert spec["RuntimeMaxUSec"] == ("t", 9_000_000)
    spec = submitted(service, jobctl, "start", "--after", "build", "--after", f"{TWO}:any", "x")
    assert spec["Dependencies"] == ("a(ss)", [(TWO, "any")])
    spec = submitted(service, jobctl, "start", "-E", "A=1", "-p", "Environment=", "-p", "Environment=B=2", "x")
    assert spec["Environment"] == ("as", ["B=2"])


def test_a_script_comes_from_standard_input(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"echo \xff\n")
    with text.open() as stdin:
        assert submitted(service, jobctl, "script", "-", stdin=stdin) == {"Script": ("ay", b"echo \xff\n")}


def test_a_script_may_read_our_standard_input(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    got: list[bytes] = []
    start = service.Start

    def take(spec: Any) -> Any:
        with open(spec["StandardInput"][1].to_raw_fd(), "rb") as stdin:
            got.append(stdin.read())
        return start(spec)

    service.on["Start"] = take
    (tmp_path / "s").write_text("cat\n")
    (tmp_path / "input").write_text("typed")
    with (tmp_path / "input").open() as stdin:
        assert jobctl("script", "-i", "s", stdin=stdin, cwd=tmp_path).code == 0
    assert got == [b"typed"]
    service.on.clear()
    service.calls.clear()
    assert "StandardInput" not in submitted(service, jobctl, "script", "s", cwd=tmp_path)
    done = jobctl("script", "-i", "-")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "the text comes from standard input already" in done.err


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("#!/bin/sh\n#JOBCTL --memroy 1G\n", "s, line 2: no option --memroy"),
        ("#JOBCTL --memory lots\n", "s, line 1: --memory: 'lots' is not a size"),
        ("#JOBCTL stray\n", "s, line 1: Got unexpected extra argument (stray)"),
        ("#JOBCTL 'open\n", "s, line 1: No closing quotation"),
        ("#JOBCTL --uid\n", "s, line 1: Option '--uid' requires an argument"),
        ("\x7fELF\0", "s is no text; 'jobctl start -- s' runs a program"),
        (" \n", "s is empty; there is nothing to run"),
        ("#!/bin/sh\r\ntrue\r\n", "s must not end its #! line in a carriage return"),
        ("#JOBCTL --shell no-such-shell\n", "s, line 1: --shell: 'no-such-shell' is not in PATH"),
        ("x" * 1_100_000, "s is longer than 1024 KiB"),
    ],
)
def test_a_script_that_cannot_be_is_refused(
    service: FakeService, jobctl: Jobctl, tmp_path: Path, text: str, error: str
) -> None:
    (tmp_path / "s").write_text(text)
    done = jobctl("script", "s", cwd=tmp_path)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert error in done.err
    assert not service.calls


def test_a_shell_is_looked_up(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("echo\n")
    (tmp_path / "mine").touch(0o755)
    jobctl.environment["PATH"] = f"{tmp_path}:/bin"
    for given, meant in (("mine", f"{tmp_path}/mine"), ("./any", f"{tmp_path}/./any"), ("sh", "/bin/sh")):
        assert submitted(service, jobctl, "script", "--shell", given, "s", cwd=tmp_path)["Shell"] == ("s", meant)
    done = jobctl("script", "--shell", "no-such-shell", "s", cwd=tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--shell: 'no-such-shell' is not in PATH; write an absolute path" in done.err
    (tmp_path / "jobs").write_text("[job.a]\nscript='x'\nshell='mine'")
    assert jobctl("submit", "jobs", cwd=tmp_path).code == 0
    assert many(service)[0]["Shell"] == ("s", f"{tmp_path}/mine")


def test_a_script_that_is_not_there(service: FakeService, jobctl: Jobctl) -> None:
    assert "cannot read /nowhere: No such file" in jobctl("script", "/nowhere").err


# Arrays


def test_an_array_is_a_job_a_task(service: FakeService, jobctl: Jobctl) -> None:
    done = jobctl("start", "--array", "1-3,7%2", "--output", "/tmp/out-%a", "--request-id", "r", "x")
    assert done.code == 0
    specs = many(service)
    assert done.out.split() == list(service.jobs)[2:]
    assert [spec["ArrayIndex"] for spec in specs] == [("u", 1), ("u", 2), ("u", 3), ("u", 7)]
    assert {spec["ArrayMaxRunning"] for spec in specs} == {("u", 2)}
    assert len({spec["ArrayId"] for spec in specs}) == 1
    assert specs[3]["StandardOutput"] == ("s", "truncate:/tmp/out-%a")
    assert specs[3]["RequestId"] == ("s", "r-7")
    answers = json.loads(jobctl("-o", "json", "start", "--array", "0-20:10", "x").out)
    assert [answer["array_index"] for answer in answers] == [0, 10, 20]


def test_the_same_request_is_the_same_array(service: FakeService, jobctl: Jobctl) -> None:
    for request in ("r", "r", "s"):
        assert jobctl("start", "--array", "1-2", "--unique", "k", "--request-id", request, "x").code == 0
    first, again, other = (list(body[0]) for member, body in service.calls if member == "StartMany")
    assert first == again
    assert first[0]["ArrayId"] != other[0]["ArrayId"]
    assert [spec["Unique"] for spec in first] == [("s", "k-1"), ("s", "k-2")]


def test_an_array_may_be_asked_for_in_the_script(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("#JOBCTL --array 1-4\ntrue\n")
    assert len(jobctl("script", "s", cwd=tmp_path).out.split()) == 4
    assert len(jobctl("script", "--array", "1-2", "s", cwd=tmp_path).out.split()) == 2


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--array", "", "x"], "--array: '' is not an array; write 1-100, 1-100%4, 1,3,5 or 0-20:5"),
        (["--array", "5-1", "x"], "--array: '5-1' is not a range"),
        (["--array", "1-5:0", "x"], "--array: '1-5:0' is not a range"),
        (["--array", "1-5%0", "x"], "after % comes how many tasks may run at once"),
        (["--array", "1-1001", "x"], "is too many tasks; 1000 is the most of one array"),
        (["--array", "0-4294967295", "x"], "is too many tasks"),
        (["--array", "1-2", "--output", "/tmp/o", "x"], "every task would write /tmp/o anew; put %a"),
        (["--array", "1-2", "--output", "/tmp/%%a-%x", "x"], "every task would write /tmp/%%a-%x anew; put %a"),
        (["--output", "o-%a", "x"], "StandardOutput has %a, which only the tasks of an array have"),
        (["--error", "append:o-%A", "x"], "StandardError has %A, which only the tasks of an array have"),
        (["--output", "o-%4a", "x"], "must not have %4 in it; there are %j, %A, %a, %x, %r, %u, %%"),
        (["--output", "o%", "x"], "must not have % in it"),
        (["--array", "1-2", "-i", "x"], "one standard input cannot be given to every task"),
        (["--priority", "1001", "x"], "--priority: '1001' is not from -1000 to 1000"),
        (["--retries", "-1", "x"], "--retries: '-1' is not from 0 to 100"),
        (["--after", "x:never", "x"], "--after: 'never' is not one of success, failure, any"),
        (["--after", ":any", "x"], "--after: an empty name is no job"),
        (["--at", "soon", "x"], "--at: 'soon' is not a time"),
        (["--at", "@5", "x"], "--at: 1970-01-01T00:00:05Z is over"),
        (["--at", "-5min", "x"], "is over; without --at it begins"),
        (["--unique-policy", "maybe", "x"], "--unique-policy: 'maybe' is not one of refuse, replace, return"),
        (["--notify", "pigeon", "x"], "--notify: 'pigeon' is not one of no, mail, failure-mail"),
        (["-p", "ArrayIndex=1", "x"], "-p ArrayIndex: this comes from the command line itself"),
    ],
)
def test_nonsense_about_the_queue_changes_nothing(
    service: FakeService, jobctl: Jobctl, args: list[str], error: str
) -> None:
    done = jobctl("start", *args)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert error in done.err
    assert not [member for member, _ in service.calls if member.startswith("Start")]


def test_a_dependency_that_is_not_there_is_4(service: FakeService, jobctl: Jobctl) -> None:
    done = jobctl("start", "--after", "nothing", "x")
    assert (done.code, done.err) == (4, "jobctl: no job 'nothing'; 'jobctl list' shows the jobs there are\n")


# Graphs

GRAPH = """
[defaults]
memory = "1G"
setenv = { LANG = "C" }

[job.report]
script = "cat data\\n"
arguments = ["a"]
after = ["sim:any", "fetch", "build:failure"]
hold = true

[job.sim]
command = ["sim"]
array = "1-2%1"
memory = "2G"
setenv = { N = 4 }
properties = { CPUWeight = 50 }
after = "fetch"

[job.fetch]
command = ["get", "it"]
retries = 2
timeout = "5min"
label = ["a=b"]
properties = { MemoryMax = "" }
"""


def test_a_graph_of_jobs_is_submitted_in_one_call(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(GRAPH)
    done = jobctl("submit", "jobs.toml", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    fetch, one, two, report = many(service)
    assert [line.split()[1] for line in done.out.splitlines()] == ["fetch", "sim", "sim", "report"]
    assert fetch["Command"] == ("as", ["get", "it"])
    assert (fetch["Name"], fetch["Retries"], fetch["RuntimeMaxUSec"]) == (("s", "fetch"), ("u", 2), ("t", 300_000_000))
    assert (fetch.get("MemoryMax"), fetch["Labels"]) == (None, ("a{ss}", {"a": "b"}))
    assert one["Dependencies"] == ("a(ss)", [("@0", "success")])
    assert (one["MemoryMax"], one["CPUWeight"], two["ArrayIndex"]) == (("t", 2**31), ("t", 50), ("u", 2))
    assert sorted(one["Environment"][1]) == ["LANG=C", "N=4"]
    assert report["Dependencies"] == ("a(ss)", [("@1", "any"), ("@2", "any"), ("@0", "success"), (TWO, "failure")])
    assert (report["Script"], report["Arguments"], report["Hold"]) == (
        ("ay", b"cat data\n"), ("as", ["a"]), ("b", True),
    )  # fmt: skip
    assert jobctl("submit", "--dry-run", "jobs.toml", cwd=tmp_path).err.startswith("jobctl: these would be accepted")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "there is no job in it"),
        ("x = 1", "unknown table [x]"),
        ("[jobs.a]\ncommand=['x']", "unknown table [jobs]; did you mean job?"),
        ("[job.a]", "[job.a] must have either a command or a script"),
        ("[job.a]\ncommand=['x']\nscript='x'", "[job.a] must have either a command or a script"),
        ("[job.a]\ncommand='x'", '[job.a] command: must be a list of words, as ["make", "-j4"]'),
        ("[job.a]\ncommand=[]", "[job.a] command: must be a list of words"),
        ("[job.a]\ncommand=['x']\nmemroy=1", "[job.a] unknown key 'memroy'; did you mean memory?"),
        ("[job.a]\ncommand=['x']\nmemory='lots'", "[job.a] memory: 'lots' is not a size"),
        ("[job.a]\ncommand=['x']\nmemory=1.5", "[job.a] memory: must be a text or a number, not 1.5"),
        ("[job.a]\ncommand=['x']\nhold='yes'", "[job.a] hold: must be true or false"),
        ("[job.a]\ncommand=['x']\narray='1-'", "[job.a] array: '1-' is not an array"),
        ("[job.a]\ncommand=['x']\nproperties={X=1}", "[job.a] properties: unknown key 'X'"),
        ("[job.a]\ncommand=['x']\nafter=1", "[job.a] after: must be names of jobs"),
        ("[job.a]\ncommand=['x']\nafter='b:never'", "[job.a] after: 'never' is not one of"),
        ("[job.a]\ncommand=['x']\nafter='a'", "these wait for each other: a -> a"),
        ("[job.a]\ncommand=['x']\nafter='b'\n[job.b]\ncommand=['x']\nafter='a'", "these wait for each other: "),
        ("[defaults]\ncommand=['x']\n[job.a]", "[defaults] command: this is for each job to say"),
        ("[job.a]\ncommand=['x']\narguments=['x']", "[job.a] arguments: this is for a script"),
        ("[job.a]\ncommand=['x']\nafter='@0'", "[job.a] after: no job '@0'"),
        ("[job.a]\nscript='x'\nshell='no-such-shell'", "[job.a] shell: 'no-such-shell' is not in PATH"),
        ('[job.a]\nscript="#!/bin/sh\\r\\n"', "[job.a] script: must not end its #! line in a carriage return"),
        ("[job]\na=1", "[job.a] must be a table"),
        ("[job.a", "f is not TOML: "),
    ],
)
def test_a_graph_that_cannot_be_is_refused_whole(
    service: FakeService, jobctl: Jobctl, tmp_path: Path, text: str, error: str
) -> None:
    (tmp_path / "f").write_text(text)
    done = jobctl("submit", "f", cwd=tmp_path)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert error in done.err
    assert not service.calls


# Changing what is there


def test_one_many_all(service: FakeService, jobctl: Jobctl) -> None:
    for command, method, done_text in (
        ("hold", "Hold", "held"),
        ("release", "Release", "released"),
        ("pause", "Pause", "paused"),
        ("resume", "Resume", "resumed"),
        ("kill", "Kill", "signalled"),
    ):
        service.calls.clear()
        assert jobctl(command, "fetch") == (0, "", "")
        assert service.saw(method)[0] == ONE
        assert jobctl(command, ONE, TWO).out == f"{ONE} {done_text}\n{TWO} {done_text}\n"
        assert (
            jobctl(command, "--state", "queued,running", "--user", "alice").out.split("\n")[0] == f"{ONE} {done_text}"
        )
        ids, *_, asked = service.saw(f"{method}Many")
        assert (ids, asked) == ([], {"State": ("as", ["queued", "running"]), "User": ("s", "alice")})
        assert jobctl(command, "--name", "nothing").out == ""


@pytest.mark.parametrize("uid", [0, 4711])
def test_all_names_the_states_it_means(service: FakeService, jobctl: Jobctl, uid: int) -> None:
    """The service takes no call that has neither ids nor a filter."""
    jobctl.as_uid(uid)
    unfinished = ["queued", "starting", "running", "paused", "stopping"]
    for command, states in (
        ("stop", unfinished),
        ("restart", unfinished[1:]),
        ("remove", ["completed", "failed", "stopped"]),
        ("hold", ["queued"]),
        ("release", ["queued"]),
        ("pause", ["running"]),
        ("resume", ["paused"]),
        ("kill", unfinished[1:]),
    ):
        assert jobctl(command, "--all").code == 0
        ids, *_, asked = service.saw(f"{command.capitalize()}Many")
        own = {"OwnerUID": ("u", uid)} if uid else {}
        assert (ids, asked) == ([], {"State": ("as", states), **own})


def test_all_that_is_older(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ONE].update(State="failed", FinishedTimestamp=1)
    service.jobs[TWO].update(State="failed", FinishedTimestamp=2**61)
    assert jobctl("remove", "--finished", "--older-than", "7d") == (0, f"{ONE} removed\n", "")
    assert set(service.saw("RemoveMany")[1]) - {"OwnerUID"} == {"State", "FinishedBeforeUSec"}
    done = jobctl("remove", "--older-than", "tomorrow")
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_wait_for_all_that_fit(service: FakeService, jobctl: Jobctl) -> None:
    process = jobctl.start("wait", "--all")
    service.saw("Status")
    service.end(ONE, State="completed", Result="success")
    service.end(TWO, State="failed", Result="exit-code", ExitCode=1)
    assert process.communicate(timeout=120)[1].decode() == f"jobctl: job {TWO} failed: exit-code\n"
    assert process.returncode == 1
    assert jobctl("wait", "--all") == (0, "", "")
    service.jobs[ONE]["State"] = "running"
    jobctl.environment["JOBSVC_ID"] = ONE
    assert jobctl("wait", "--all") == (0, "", "")


def test_set_takes_unit_file_spellings(service: FakeService, jobctl: Jobctl) -> None:
    assert jobctl("set", "build", "MemoryMax=2G", "CPUQuota=50%", "Labels=a=b", "Labels=c=d") == (0, "", "")
    assert service.saw("SetProperties") == (
        TWO,
        {"MemoryMax": ("t", 2**31), "CPUQuotaPerSecUSec": ("t", 500_000), "Labels": ("a{ss}", {"a": "b", "c": "d"})},
        {},
    )
    service.calls.clear()
    assert jobctl("set", "build", "Labels=", "Environment=").code == 0
    assert service.saw("SetProperties")[1] == {"Labels": ("a{ss}", {}), "Environment": ("as", [])}
    done = jobctl("set", "build", "MemoryMax=")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "'MemoryMax=' cannot be of a job that is there; give another value" in done.err
    done = jobctl("set", "build", "MemroyMax=1G")
    assert (done.code, done.err) == (2, "jobctl: unknown key 'MemroyMax'; did you mean MemoryMax?\n")


def test_duplicate_overrides_only_what_is_said(service: FakeService, jobctl: Jobctl) -> None:
    assert jobctl("duplicate", "build", "--memory", "1G", "--", "make", "-j4") == (0, f"{0xD0B:016x}\n", "")
    job_id, overrides = service.saw("Duplicate")
    assert (job_id, len(overrides.pop("RequestId")[1])) == (TWO, 32)
    assert overrides == {"Command": ("as", ["make", "-j4"]), "MemoryMax": ("t", 2**30)}
    service.calls.clear()
    jobctl("duplicate", "build", "-p", "Unique=", "-p", "Environment=", "-E", "A=1", "--request-id", "r")
    assert service.saw("Duplicate")[1] == {
        "Unset": ("as", ["Unique", "Environment"]), "RequestId": ("s", "r"),
    }  # fmt: skip
    service.calls.clear()
    assert jobctl("duplicate", "--dry-run", "build").err == "jobctl: this would be accepted; nothing was started\n"
    assert service.saw("Duplicate")[1].keys() == {"DryRun", "RequestId"}


def test_a_lost_answer_duplicates_nothing_twice(service: FakeService, jobctl: Jobctl) -> None:
    def die(*_: Any) -> Any:
        del service.on["Duplicate"]
        threading.Timer(0.1, service.enter).start()
        raise GoAway

    service.on["Duplicate"] = die
    code, out, err = jobctl.raw("duplicate", "build")
    assert (code, out, unhurried(err)) == (0, b"%016x\n" % 0xD0B, b"")
    first, second = (body for member, body in service.calls if member == "Duplicate")
    assert first == second


def test_maintenance(service: FakeService, jobctl: Jobctl) -> None:
    assert jobctl("maintenance").out == "maintenance is off; 1 running, 2 queued\n"
    process = jobctl.start("maintenance", "on", "--wait")
    service.saw("Subscribe")
    service.running = 0
    service.end(TWO, State="completed", Result="success")
    assert (process.wait(120), service.maintenance) == (0, True)
    assert "on: nothing new" in jobctl("maintenance", "status").out
    assert json.loads(jobctl("-o", "json", "maintenance").out)["maintenance"] is True
    assert "in maintenance" in jobctl("list").err
    assert "in maintenance" in jobctl("status").out
    assert jobctl("maintenance", "off").code == 0
    assert "is off" in jobctl("maintenance").out
    assert jobctl("maintenance", "off", "--wait").code == 2
    assert jobctl("maintenance", "maybe").code == 2


# Looking


def test_why_a_job_waits_is_shown(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ONE].update(QueueReason="held", Queue="night", Priority=3, Retries=2, Unique="k",
                             NotBeforeUSec=1_800_000_000_000_000, Dependencies=[(TWO, "any")])  # fmt: skip
    listed = jobctl("list").out.splitlines()
    assert listed[0].split()[-2:] == ["REASON", "COMMAND"]
    assert "  held    tar" in listed[1]
    assert "  -       tar" in listed[2]
    shown = jobctl("status", ONE).out
    for text in ("Reason: held", "Queue: night, priority 3", f"After: {TWO} (any)", "Retries: at most 2",
                 "Not before: Fri 2027-01-15 08:00:00 UTC", "Unique: k"):  # fmt: skip
        assert text in shown
    told = json.loads(jobctl("-o", "json", "status", ONE).out)
    assert told["dependencies"] == [[TWO, "any"]]


def test_columns_and_order(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ONE]["Priority"] = 5
    service.jobs[TWO] |= {"Priority": 1, "ArrayIndex": 7, "ArrayId": "a1"}
    assert jobctl("list", "--columns", "name,priority,array", "--sort", "priority").out == (
        "NAME      PRIORITY  ARRAY\nbuild[7]  1         a1\nfetch     5         -\n"
    )
    assert jobctl("list", "--columns", "id", "--sort", "name", "--reverse", "--limit", "1").out == f"ID\n{ONE}\n"
    assert "no column 'prio'" in jobctl("list", "--columns", "prio").err
    assert "--sort: give one column" in jobctl("list", "--sort", "id,name").err


def test_a_job_that_waits_says_why_on_a_terminal(service: FakeService, jobctl: Jobctl) -> None:
    start = service.Start

    def waiting(spec: Any) -> Any:
        answer = start(spec)
        service.jobs[answer[1][0]].update(State="queued", QueueReason="MaxRunning=1 is reached")
        return answer

    def look(job_id: str, options: Any) -> Any:
        answer = FakeService.Status(service, job_id, options)
        looks.append(job_id)
        if len(looks) == 1:
            news.start()  # if that took so long that it knew the reason at once, it looks again only then
        if len(looks) == 2:
            service.jobs[job_id].update(State="running")
            service.tell("JobChanged", "sss", (job_id, "running", ""))
        return answer

    looks: list[str] = []
    changed = ("PropertiesChanged", "sa{sv}as", ("org.jobsvc1.Manager", {}, []))
    news = threading.Timer(1.0, service.tell, changed)
    service.on |= {"Start": waiting, "Status": look}
    service.write("stdout", b"out\n")
    shown = jobctl.on_terminal("run", "x")
    news.cancel()
    assert shown.code == 0
    assert shown.out.endswith("waits: MaxRunning=1 is reached\r\nout\r\n")


def test_run_follows_the_retries(service: FakeService, jobctl: Jobctl) -> None:
    from jobsvc.formats import End, Trailer

    ends = [Trailer(End(1, "failed", "exit-code", 7)), Trailer(End(2, "completed", "success", 0))]

    def logs(job_id: str, options: Any) -> Any:
        run = options["Run"][1]
        service.trailer = ends[run - 1]
        service.jobs[job_id]["Run"] = min(run + 1, 2)
        return FakeService.Logs(service, job_id, options)

    service.on["Logs"] = logs
    done = jobctl("run", "--retries", "1", "x")
    job_id = list(service.jobs)[-1]
    assert done == (0, "", f"jobctl: run 1 of job {job_id} failed (exit-code); run 2 follows\n")
    done = jobctl("run", "x")
    assert done.code == 7
