"""What is typed becomes the spec that was meant, or one clear line; and starting up stays quick."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeService, GoAway, Jobctl

ROOT = Path(__file__).parents[2]


def submitted(service: FakeService, jobctl: Jobctl, *args: str, **options: Any) -> dict[str, Any]:
    done = jobctl("start", *args, **options)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{list(service.jobs)[-1]}\n"
    spec: dict[str, Any] = dict(service.calls[-1][1][0])
    return spec


def test_the_least_there_is_to_say(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    spec = submitted(service, jobctl, "true", cwd=tmp_path)
    assert len(spec.pop("RequestId")[1]) == 32
    assert spec == {"Command": ("as", ["true"]), "WorkingDirectory": ("s", str(tmp_path))}


def test_every_option_has_its_key(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    jobctl.environment["HERE"] = "of the caller"
    spec = submitted(
        service, jobctl,
        "--name", "n", "-d", "sub", "-E", "A=b=c", "--setenv", "HERE", "--uid", "bob", "--gid", "7",
        "--output", "out", "--error", "append:/abs/err", "--cpu", "50%", "--memory", "512M",
        "--memory-high", "1.5G", "--swap", "0", "--tasks", "10", "--io-read", "/:10M", "--io-read",
        "data:5K", "--io-write", "2M", "--iops-read", "/:100", "--iops-write", "/dev/x:y:200",
        "--timeout", "30min", "--stop-timeout", "5", "--nice", "-3", "--label", "a=b", "--label", "c=",
        "--request-id", "r1", "--", "sh", "-c", "x", "--name",
        cwd=tmp_path,
    )  # fmt: skip
    here = str(tmp_path)
    assert spec == {
        "Command": ("as", ["sh", "-c", "x", "--name"]),
        "Name": ("s", "n"),
        "WorkingDirectory": ("s", f"{here}/sub"),
        "Environment": ("as", ["A=b=c", "HERE=of the caller"]),
        "User": ("s", "bob"),
        "Group": ("s", "7"),
        "StandardOutput": ("s", f"truncate:{here}/out"),
        "StandardError": ("s", "append:/abs/err"),
        "CPUQuotaPerSecUSec": ("t", 500_000),
        "MemoryMax": ("t", 512 * 2**20),
        "MemoryHigh": ("t", 3 * 2**29),
        "MemorySwapMax": ("t", 0),
        "TasksMax": ("t", 10),
        "IOReadBandwidthMax": ("a(st)", [("/", 10_000_000), (f"{here}/data", 5000)]),
        "IOWriteBandwidthMax": ("a(st)", [("/", 2_000_000)]),
        "IOReadIOPSMax": ("a(st)", [("/", 100)]),
        "IOWriteIOPSMax": ("a(st)", [("/dev/x:y", 200)]),
        "RuntimeMaxUSec": ("t", 1_800_000_000),
        "TimeoutStopUSec": ("t", 5_000_000),
        "Nice": ("i", -3),
        "Labels": ("a{ss}", {"a": "b", "c": ""}),
        "RequestId": ("s", "r1"),
    }


def test_aliases(service: FakeService, jobctl: Jobctl) -> None:
    spec = submitted(service, jobctl, "--max-cpu", "200%", "--max-memory", "infinity", "--max-iobps", "/:1M", "x")
    assert spec["CPUQuotaPerSecUSec"] == ("t", 2_000_000)
    assert spec["MemoryMax"] == ("t", 2**64 - 1)
    assert spec["IOReadBandwidthMax"] == spec["IOWriteBandwidthMax"] == ("a(st)", [("/", 1_000_000)])


def test_properties_are_spelled_as_in_unit_files_and_win(service: FakeService, jobctl: Jobctl) -> None:
    spec = submitted(
        service, jobctl, "--memory", "1M", "-p", "MemoryMax=2M", "-p", "CPUQuota=20%", "-p",
        "RuntimeMaxSec=90", "-p", "IOReadBandwidthMax=/ 2M", "--io-read", "/home:1M", "-E", "A=1",
        "-p", "Environment=B=2", "-p", "WorkingDirectory=/", "x",
    )  # fmt: skip
    assert spec["MemoryMax"] == ("t", 2 * 2**20)
    assert spec["CPUQuotaPerSecUSec"] == ("t", 200_000)
    assert spec["RuntimeMaxUSec"] == ("t", 90_000_000)
    assert spec["IOReadBandwidthMax"] == ("a(st)", [("/home", 1_000_000), ("/", 2_000_000)])
    assert spec["Environment"] == ("as", ["A=1", "B=2"])
    assert spec["WorkingDirectory"] == ("s", "/")


def test_a_dry_run_starts_nothing(service: FakeService, jobctl: Jobctl) -> None:
    for command in ("start", "run"):
        done = jobctl(command, "--dry-run", "-i", "true")
        assert done == (0, "", "jobctl: this would be accepted; nothing was started\n")
        assert service.calls[-1][1][0]["DryRun"] == ("b", True)
    assert not service.jobs


def test_start_answers_with_the_id_alone(service: FakeService, jobctl: Jobctl) -> None:
    assert jobctl("start", "true").out == "000000000000abc0\n"
    assert jobctl("start", "-q", "true").out == "000000000000abc1\n"
    assert jobctl("-o", "jsonl", "start", "true").out == '{"id": "000000000000abc2"}\n'
    shown = jobctl.on_terminal("start", "true").out
    assert shown == "000000000000abc3\r\njobctl: 'jobctl logs -f 000000000000abc3' follows it\r\n"
    assert jobctl.on_terminal("start", "-q", "true").out == "000000000000abc4\r\n"


def test_a_deleted_directory_is_told(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = tmp_path / "jobctl"
    program.write_text("from jobsvc.cli import main\nmain()\n")
    script = f'rmdir {gone}; exec "$0" {program} start true'
    done = subprocess.run(["sh", "-c", script, sys.executable], cwd=gone, env=jobctl.environment, capture_output=True)
    assert done.returncode == 2
    assert b"current directory is gone" in done.stderr
    assert not service.calls


NONSENSE = [
    ([], "missing command"),
    (["strt"], "no command 'strt'; did you mean start?"),
    (["xyzzy"], "no command 'xyzzy'; 'jobctl --help' lists the commands"),
    (["--foo", "list"], "no option --foo; see jobctl --help"),
    (["-o", "xml", "list"], "'xml' is not one of"),
    (["start"], "missing argument 'CMD [ARG]...'; see jobctl start --help"),
    (["start", ""], "an empty command; give the program to run"),
    (["start", "--memroy", "1M", "x"], "no option --memroy; did you mean --memory?"),
    (["start", "--memory", "5X", "x"], "--memory: '5X' is not a size"),
    (["start", "--memory", "", "x"], "--memory: '' is not a size"),
    (["start", "--cpu", "50", "x"], "--cpu: '50' is not a whole percentage; write 50%"),
    (["start", "--cpu", "0%", "x"], "--cpu: '0%' is too little; the least is 1%"),
    (["start", "--tasks", "ten", "x"], "--tasks: 'ten' is not a number; write 10 or infinity"),
    (["start", "--tasks", "-1", "x"], "--tasks: '-1' is not a number"),
    (["start", "--timeout", "5 parsec", "x"], "no time unit 'parsec'"),
    (["start", "--nice", "nice", "x"], "--nice: 'nice' is not a number"),
    (["start", "--io-read", "/:fast", "x"], "--io-read: 'fast' is not a size"),
    (["start", "--label", "a", "x"], "--label: 'a' is not NAME=VALUE"),
    (["start", "-E", "SURELY_NOT_SET", "x"], "SURELY_NOT_SET is not set here"),
    (["start", "-d", "", "x"], "--working-directory: an empty path"),
    (["start", "--output", "", "x"], "--output: an empty path"),
    (["start", "-p", "MemroyMax=1M", "x"], "unknown key 'MemroyMax'; did you mean MemoryMax?"),
    (["start", "-p", "MemoryMax", "x"], "MemoryMax needs a value"),
    (["start", "-p", "MemoryMax=lots", "x"], "'lots' is not a size"),
    (["start", "-p", "Command=evil", "x"], "this comes from the command line itself"),
    *(
        ([command, flag, value, "x"], f"{flag}: '{value}' must be ")
        for command in ("run", "start")
        for flag, value in (
            ("--nice", "99"),
            ("--memory", "0"),
            ("--tasks", "0"),
            ("--timeout", "0"),
            ("--cpu", "2000000%"),
            ("--name", ""),
            ("--queue", "a b"),
            ("--uid", ""),
            ("--retry-delay", "31d"),
        )
    ),
    (["run", "-E", "1=2", "x"], "--setenv: must be NAME=VALUE"),
    (["run", "-p", "Nice=99", "x"], "-p Nice=99: must be from -20 to 19"),
    (["run", *[word for n in range(33) for word in ("--label", f"l{n}=x")], "x"], "--label must not be more than 32"),
    (["run", "--retry-delay", "1s", "x"], "RetryDelayUSec means nothing without Retries"),
    (["run", "-i", "--retries", "1", "x"], "Retries and StandardInput do not go together"),
    (["run", "--timeout"], "requires an argument"),
    (["stop"], "give either JOBs or --all (or --state, --name, ...); see jobctl stop --help"),
    (["stop", "--all", "x"], "give either JOBs or --all"),
    (["status", "-n", "-1", "x"], "invalid value for '-n' / '--lines'"),
    (["stop", "--state", ""], "--state: an empty list of states"),
    (["list", "--state", ",", "--state", "running"], "--state: an empty list of states"),
    (["list", "--state", "runing"], "--state: no state 'runing'; did you mean running?"),
    (["list", "--limit", "many"], "invalid value for '--limit'"),
    (["list", "--since", "2026-02-30"], "--since: '2026-02-30': there is no such day"),
    (["logs"], "missing argument 'JOB'"),
    (["logs", "a", "b"], "unexpected extra argument"),
    (["logs", "x", "--stream", "stdin"], "'stdin' is not one of 'stdout', 'stderr'"),
    (["logs", "x", "--since", "soon"], "--since: 'soon' is not a time"),
    (["kill", "x", "-s", "FOO"], "unknown signal 'FOO'; 'kill -l' lists them"),
    (["kill", "x", "-s", "99"], "there is no signal 99; 'kill -l' lists them"),
    (["logs", "x", "--run", "99999999999"], "99999999999 is not in the range 1<=x<=4294967295"),
    (["status", "x", "--run", "99999999999"], "99999999999 is not in the range 1<=x<=4294967295"),
    *(
        (["top", "-d", value, "-n", "2"], f"-d: '{value}' is not a number of seconds from 0.1 to 86400")
        for value in ("0", "nan", "inf", "1e300", "", "soon")
    ),
    (["set", "x", "Nice=99"], "jobctl: Nice=99: must be from -20 to 19"),
    (["wait"], "give either JOBs or --all"),
]


@pytest.mark.parametrize(("args", "text"), NONSENSE, ids=[" ".join(args) for args, _ in NONSENSE])
def test_nonsense_gets_one_clear_line_and_changes_nothing(
    service: FakeService, jobctl: Jobctl, args: list[str], text: str
) -> None:
    done = jobctl(*args)
    assert done.code == 2
    assert done.out == ""
    assert text in done.err
    assert done.err.startswith("jobctl: ")
    assert done.err.count("\n") == 1
    assert not service.calls


def test_bytes_that_are_no_text_are_refused(service: FakeService, jobctl: Jobctl) -> None:
    done = jobctl("start", "--", "echo", b"\xff")  # type: ignore[arg-type]
    assert (done.code, done.out) == (2, "")
    assert done.err == "jobctl: D-Bus only takes UTF-8, and there are other bytes in this\n"


def test_a_fault_of_ours_is_a_line_and_a_traceback_only_if_wanted(service: FakeService, jobctl: Jobctl) -> None:
    service.on["List"] = lambda *_: ("s", ("not what a client expects",))
    done = jobctl("list")
    assert done.code == 1
    assert done.err.startswith("jobctl: unexpected ValueError")
    assert done.err.count("\n") == 1
    assert "Traceback" in jobctl("--debug", "list").err
    assert "Traceback" in jobctl("list", "--debug").err


def test_a_service_that_dies_is_no_service(service: FakeService, jobctl: Jobctl) -> None:
    def die(*_: Any) -> Any:
        raise GoAway

    service.on["Restart"] = die
    done = jobctl("restart", "0000000000000000")
    assert (done.code, done.err) == (6, "jobctl: the job service went away before it answered\n")
    service.enter()


@pytest.mark.parametrize("address", ["unix:path=/nonexistent", "nonsense"])
def test_no_bus_is_no_service(jobctl: Jobctl, address: str) -> None:
    jobctl.environment["DBUS_SYSTEM_BUS_ADDRESS"] = address
    done = jobctl("list")
    assert (done.code, done.err.count("\n")) == (6, 1)


def test_help_and_version_need_no_service(jobctl: Jobctl) -> None:
    import jobsvc

    jobctl.environment["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/nonexistent"
    assert jobctl("--version") == (0, f"jobctl {jobsvc.__version__}\n", "")
    assert "Commands:" in jobctl("--help").out
    for name in ("run", "start", "stop", "restart", "remove", "status", "list", "logs", "wait", "kill"):
        done = jobctl(name, "-h")
        assert done.code == 0
        assert done.out.startswith(f"Usage: jobctl {name} ")
        assert all("\n" not in option.strip() or option for option in done.out.splitlines())


def test_help_tells_what_may_be_left_out(jobctl: Jobctl) -> None:
    for command, usage in (
        ("stop", "stop [OPTIONS] [JOB]..."), ("status", "status [OPTIONS] [JOB]..."), ("logs", "logs [OPTIONS] JOB"),
        ("duplicate", "duplicate [OPTIONS] JOB [-- CMD [ARG]...]"), ("start", "start [OPTIONS] CMD [ARG]..."),
    ):  # fmt: skip
        assert jobctl(command, "-h").out.startswith(f"Usage: jobctl {usage}\n")


def test_the_manual_names_every_command_and_option() -> None:
    from jobsvc.cli.root import FAMILIES, jobctl

    manual = (ROOT / "man/jobctl.1").read_text().replace("\\-", "-").replace("\\&", "")
    missing = []
    for name in FAMILIES:
        command = jobctl.get_command(None, name)  # type: ignore[arg-type]
        assert command
        options = [flag for param in command.params if not getattr(param, "hidden", False)
                   for flag in param.opts if flag.startswith("-")]  # fmt: skip
        missing += [f"{name} {flag}" for flag in options if flag not in manual]
        if f".B {name}" not in manual:
            missing.append(name)
    assert not missing


def test_starting_a_job_imports_nothing_heavy(service: FakeService, jobctl: Jobctl) -> None:
    code = "import sys\nfrom jobsvc.cli.root import execute\nexecute(['start', 'true'])\nprint(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=jobctl.environment, capture_output=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.decode().splitlines()[-1]))
    heavy = {"asyncio", "dbus_next", "jeepney.io", "json", "subprocess", "sqlite3", "shlex", "difflib"}
    ours = {"jobsvc.spec", "jobsvc.model", "jobsvc.formats", "jobsvc.render", "jobsvc.cli.attach"}
    assert not loaded & (heavy | ours)


def test_the_client_imports_no_engine() -> None:
    code = (
        "import sys, pkgutil, importlib, jobsvc.cli\n"
        "for module in pkgutil.iter_modules(jobsvc.cli.__path__, 'jobsvc.cli.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    loaded = {name for name in ast.literal_eval(done.stdout.decode()) if name.startswith("jobsvc.")}
    words = {"errors", "quantity", "moment", "kinds", "spec", "model", "formats", "chunks"}
    doors = {"client", "client_bus", "client_logs", "cli", "render"}
    assert {name.split(".")[1] for name in loaded} <= words | doors


def test_the_environment_is_not_shown_to_others(service: FakeService, jobctl: Jobctl) -> None:
    """Variables go to the service in the message; nothing puts them on a command line or in a log."""
    spec = submitted(service, jobctl, "-E", "SECRET=x", "true")
    assert spec["Environment"] == ("as", ["SECRET=x"])
    assert os.environ.get("SECRET") is None
