"""What a job finds when it starts, and what people are told when it cannot."""

from __future__ import annotations

import grp
import os
import resource
from pathlib import Path

import pytest
from stage import NOBODY, Stage, eventually, needs_root

pytestmark = needs_root


def status_of(stage: Stage) -> dict[str, str]:
    lines = stage.journal.output().decode().splitlines()
    return {k: v.strip() for k, _, v in (line.partition(":") for line in lines)}


def test_nothing_is_inherited_but_three_descriptors(stage: Stage) -> None:
    assert stage.run("ls", "-l", "/proc/self/fd")["result"] == "success"
    lines = stage.journal.output().decode().splitlines()[1:]
    found = {line.split()[8]: line.split()[-1] for line in lines}
    assert sorted(found) == ["0", "1", "2", "3"]  # 3 is the directory ls reads
    assert found["0"] == "/dev/null"
    assert found["1"].startswith("pipe:")
    assert found["2"].startswith("pipe:")
    assert found["1"] != found["2"]
    assert found["3"].endswith("/fd")


def test_identity_capabilities_signals_and_privileges(stage: Stage) -> None:
    stage.run("cat", "/proc/self/status")
    status = status_of(stage)
    assert status["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert status["Gid"].split() == [str(NOBODY.pw_gid)] * 4
    wanted = os.getgrouplist(NOBODY.pw_name, NOBODY.pw_gid)
    assert sorted(map(int, status["Groups"].split())) == sorted(wanted)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0
    libc_own = 0b11 << 31  # 32 and 33, which make hands on ignored and no program can change through libc
    for name in ("SigBlk", "SigIgn", "SigPnd", "ShdPnd"):
        assert int(status[name], 16) & ~libc_own == 0
    assert status["NoNewPrivs"] == "0"
    assert status["Seccomp"] == "0"


def test_a_new_session_and_a_new_keyring(stage: Stage) -> None:
    run = stage.start("sh", "-c", "cat /proc/self/stat; cat /proc/self/sessionid; cat /proc/keys")
    pid = run.go()
    run.end()
    words = stage.journal.output().decode().splitlines()[0].split()
    assert (int(words[4]), int(words[5])) == (pid, pid)
    assert words[6] == "0"  # no terminal
    assert "_ses" in stage.journal.output().decode()


def test_the_environment_is_built_from_nothing(stage: Stage) -> None:
    stage.run("env", environment=["A=1", "B=two words", "HOME=/elsewhere", "EMPTY="])
    assert dict(line.split("=", 1) for line in stage.journal.output().decode().splitlines()) == {
        "HOME": "/elsewhere",
        "USER": NOBODY.pw_name,
        "LOGNAME": NOBODY.pw_name,
        "SHELL": NOBODY.pw_shell,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
        "JOBSVC_ID": "0123456789abcdef",
        "JOBSVC_RUN": str(next(stage.numbers) - 1),
        "JOBSVC_NAME": "test",
        "A": "1",
        "B": "two words",
        "EMPTY": "",
    }


def test_oom_score_nice_umask_and_limits(stage: Stage) -> None:
    code = "cat /proc/self/oom_score_adj; nice; umask; ulimit -n; ulimit -Hn; ulimit -c; ulimit -t"
    stage.run("sh", "-c", code, nice=5, umask=0o77, rlimits={"NOFILE": 777, "CPU": 2**64 - 1})
    core = resource.getrlimit(resource.RLIMIT_CORE)[0]
    expected = ["0", "5", "0077", "777", "777", "unlimited" if core == -1 else str(core), "unlimited"]
    assert stage.journal.output().decode().split() == expected
    stage.fresh()
    stage.run("sh", "-c", "nice; umask; ulimit -n; ulimit -Hn")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert stage.journal.output().decode().split() == [str(os.nice(0)), "0022", str(soft), str(hard)]


def test_stderr_can_be_opened_by_name(stage: Stage) -> None:
    assert stage.run("sh", "-c", "echo x > /dev/stderr")["result"] == "success"
    assert stage.journal.output("stderr") == b"x\n"


def test_stdin_is_what_was_passed(stage: Stage) -> None:
    path = Path(stage.directory) / "input"
    path.write_text("from the caller\n")
    fd = os.open(path, os.O_RDONLY)
    run = stage.start("cat", stdin=fd)
    os.close(fd)
    run.go()
    run.end()
    assert stage.journal.output() == b"from the caller\n"


def test_the_directory_is_entered_as_the_user(stage: Stage, tmp_path: Path) -> None:
    closed = Path(stage.directory) / "closed"
    closed.mkdir(0o700, exist_ok=True)
    report = stage.run("pwd", working_directory=str(closed))
    assert (report["result"], report["exit_code"]) == ("start-failed", 126)
    assert (report["step"], report["errno"]) == ("working-directory", 13)
    assert report["reason"] == f"cannot change to {closed}: Permission denied"
    report = stage.run("pwd", working_directory="/no/such")
    assert report["reason"] == "cannot change to /no/such: No such file or directory"
    stage.fresh()
    stage.run("pwd", working_directory=None)
    assert stage.journal.output() == b"/\n"  # /nonexistent


def test_programs_that_cannot_be_executed(stage: Stage) -> None:
    place = Path(stage.directory)
    (place / "plain").write_text("#!/bin/sh\n")
    (place / "nobang").write_text("echo\n")
    (place / "nobang").chmod(0o755)
    (place / "badbang").write_text("#!/no/such/interpreter\n")
    (place / "badbang").chmod(0o755)
    for command, code, number in (
        ("no-such-program", 127, 2),
        ("/no/such/program", 127, 2),
        (f"{place}/plain", 126, 13),
        (f"{place}/nobang", 126, 8),
        (f"{place}/badbang", 127, 2),
        ("/tmp", 126, 13),
        ("/etc/passwd/x", 126, 20),
    ):
        report = stage.run(command)
        assert report["result"] == "start-failed", command
        assert (report["exit_code"], report["errno"], report["step"]) == (code, number, "exec"), command
        assert report["reason"].startswith(f"cannot execute {command}: ")
        assert report["begun"]
        assert report["started_usec"] is None


def test_path_is_searched_with_the_users_rights(stage: Stage) -> None:
    place = Path(stage.directory) / "bin"
    hidden = Path(stage.directory) / "hidden"
    place.mkdir()
    hidden.mkdir(0o700)
    for directory in (place, hidden):
        (directory / "thing").write_text(f"#!/bin/sh\necho {directory.name}\n")
        (directory / "thing").chmod(0o755)
    report = stage.run("thing", environment=[f"PATH={hidden}:{place}:/bin"])
    assert report["result"] == "success"
    assert stage.journal.output() == b"bin\n"
    report = stage.run("thing", environment=[f"PATH={hidden}"])
    assert (report["exit_code"], report["errno"]) == (126, 13)


def test_arguments_are_passed_exactly(stage: Stage) -> None:
    stage.run("printf", "%s|", "a b", "", "\u00e4", "\udcff", "$HOME", "\n")
    assert stage.journal.output() == b"a b||\xc3\xa4|\xff|$HOME|\n|"
    report = stage.run("echo", "x" * 200_000)
    assert (report["result"], report["errno"], report["exit_code"]) == ("start-failed", 7, 126)
    assert stage.run("echo", "a\0b")["result"] == "start-failed"


@pytest.mark.parametrize("uid", [0xFFFF, 0xFFFFFFFF, -1, 1 << 32])
def test_ids_that_setresuid_would_misread_are_refused(stage: Stage, uid: int) -> None:
    run = stage.start("id", uid=uid)
    report = run.end()
    assert (report["result"], report["step"], report["begun"]) == ("start-failed", "user", False)
    assert stage.journal.output() == b""


def test_root_only_if_authorized(stage: Stage) -> None:
    root = {"uid": 0, "user": "root", "gid": 0}
    run = stage.start("id", **root)
    assert run.end()["reason"] == "the request for root is not authorized"
    stage.run("id", "-u", **root, root_allowed=True)
    assert stage.journal.output() == b"0\n"


def test_a_uid_that_belongs_to_somebody_else_now_is_refused(stage: Stage) -> None:
    run = stage.start("id", user="someone")
    assert run.end()["reason"] == "there is no user someone any more"
    run = stage.start("id", uid=54321)
    assert run.end()["reason"] == f"nobody is uid {NOBODY.pw_uid} now, not 54321"


def test_another_group_if_overridden(stage: Stage) -> None:
    group = grp.getgrnam("games")
    stage.run("id", "-g", gid=group.gr_gid, group_override=True)
    assert stage.journal.output() == b"%d\n" % group.gr_gid
    stage.fresh()
    stage.run("id", "-g", gid=group.gr_gid)
    assert stage.journal.output() == b"%d\n" % NOBODY.pw_gid


def test_group_of_the_users_own_has_to_be_one_still(stage: Stage) -> None:
    """What nobody was asked about is looked up at the start: a membership may have been withdrawn since."""
    games = grp.getgrnam("games").gr_gid
    report = stage.start("id", gid=games, group_override=True, group_granted=False).end()
    assert (report["result"], report["step"], report["begun"]) == ("start-failed", "user", False)
    assert report["reason"] == f"nobody is not in group games ({games}) any more"
    stage.fresh()
    stage.run("id", "-g", gid=NOBODY.pw_gid, group_override=True, group_granted=False)
    assert stage.journal.output() == b"%d\n" % NOBODY.pw_gid
    stage.fresh()
    stage.run("id", "-g", gid=games, group_override=True, group_granted=True)
    assert stage.journal.output() == b"%d\n" % games


def test_the_job_cannot_touch_its_supervisor(stage: Stage) -> None:
    run = stage.start("sh", "-c", "ls -l /proc/$PPID/fd; cat /proc/$PPID/environ; kill -0 $PPID; ls -ld /proc/$PPID")
    run.go()
    assert run.end()["exit_code"] == 0
    errors = stage.journal.output("stderr").decode()
    assert errors.count("ermission denied") == 2
    assert "not permitted" in errors


def on_a_disk() -> str:
    """Some path that lies on a block device: in a container / is none, but what is bound into it is on one."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        device, _, where = line.split()[2:5]
        if not device.startswith("0:") and os.path.exists(f"/sys/dev/block/{device}") and "\\" not in where:
            return where
    raise AssertionError("nothing here is mounted from a disk")


def test_io_paths_are_resolved_as_the_user_to_the_whole_disk(stage: Stage) -> None:
    path = on_a_disk()
    run = stage.start("true", io_paths=[path])
    run.go()
    assert run.end()["result"] == "success"
    devices = next(p["io_devices"] for p in run.heard if p.get("io_devices"))
    assert set(devices) == {path}
    number = devices[path].removeprefix("/dev/block/")
    assert os.path.exists(f"/sys/dev/block/{number}")
    assert not os.path.exists(f"/sys/dev/block/{number}/partition")


@pytest.mark.parametrize("path", ["/proc", "/no/such", "/root/secret"])
def test_an_io_path_without_a_disk_is_a_start_failed_that_names_it(stage: Stage, path: str) -> None:
    if path == "/root/secret":
        path = f"{stage.directory}/closed/x"
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.chmod(os.path.dirname(path), 0o700)
    run = stage.start("true", io_paths=[path])
    report = run.end()
    assert (report["result"], report["step"], report["begun"]) == ("start-failed", "io-path", False)
    assert path in report["reason"]


def test_an_unreadable_request_is_reported(stage: Stage) -> None:
    key = stage.prepare(stage.request("true"))
    Path(f"{stage.runs}/{key}/request").write_text('{"version":99}')
    stage.ask(key)
    report = eventually(lambda: os.path.exists(f"{stage.reports}/{key}") and stage.stored(key))
    assert (report["result"], report["begun"]) == ("start-failed", False)
    assert "version 99" in report["reason"]
