"""Every command but run and logs: which jobs are meant, what is asked, what is shown, what is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_service import NOW, FakeService, Jobctl, Refusal, job

ONE, TWO, THREE = "aaaa000000000001", "aaaa000000000002", "bbbb000000000003"


@pytest.fixture(autouse=True)
def three(service: FakeService) -> None:
    """Newest first."""
    service.jobs = {
        ONE: job(Id=ONE, Name="arch", Owner="bob", OwnerUID=4242),
        TWO: job(Id=TWO, Name="arch"),
        THREE: job(Id=THREE, Name="make*", State="failed", Result="exit-code", ExitCode=2,
                   MainPID=None, FinishedTimestamp=NOW),
    }  # fmt: skip


# Which job


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (TWO, TWO),
        ("aaaa000000000002", TWO),
        ("b", THREE),
        ("bbbb0", THREE),
        ("arch", TWO),
        ("aaaa", TWO),
        (ONE, ONE),
        ("aaaa000000000001", ONE),
        ("make*", THREE),
        ("@", TWO),
        ("@~0", TWO),
        ("@~1", THREE),
    ],
)
def test_a_job_is_found(service: FakeService, jobctl: Jobctl, given: str, meant: str) -> None:
    service.jobs[meant]["State"] = "running"
    done = jobctl("-o", "json", "status", given)
    assert (done.code, json.loads(done.out)["id"]) == (0, meant)


def test_a_hook_is_only_meant_when_nothing_else_is(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ONE] |= {"Name": "mail", "HookOf": TWO, "OwnerUID": os.getuid()}
    assert json.loads(jobctl("-o", "json", "status", "mail").out)["id"] == ONE
    service.jobs[TWO]["Name"] = "mail"
    assert json.loads(jobctl("-o", "json", "status", "mail").out)["id"] == TWO


def test_a_name_is_not_taken_for_a_glob(service: FakeService, jobctl: Jobctl) -> None:
    jobctl("status", "ma[k]e?*")
    asked = next(body[0] for member, body in service.calls if member == "List")
    assert asked["Name"] == ("s", "ma[[]k]e[?][*]")


def test_an_exact_name_comes_before_a_beginning_of_an_id(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[TWO]["Name"] = "bbbb"
    assert json.loads(jobctl("-o", "json", "status", "bbbb").out)["id"] == TWO


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("nope", "no job 'nope'; 'jobctl list' shows the jobs there are"),
        ("0000000000000000", "no job '0000000000000000'; 'jobctl list' shows the jobs there are"),
        ("", "an empty name is no job; 'jobctl list' shows the jobs there are"),
        ("@~2", "you have no such job; 'jobctl list' shows the jobs there are"),
        ("@x", "no job '@x'; 'jobctl list' shows the jobs there are"),
        ("e\x1b[2J", "no job 'e\\x1b[2J'; 'jobctl list' shows the jobs there are"),
    ],
)
def test_no_such_job_is_4(service: FakeService, jobctl: Jobctl, given: str, text: str) -> None:
    assert jobctl("stop", given) == (4, "", f"jobctl: {text}\n")


READING = (["status"], ["logs"], ["wait"], ["export"])
CHANGING = tuple(([name], []) for name in "stop restart remove kill pause resume hold release".split())
ALONE = ((["set"], ["Nice=1"]), (["duplicate"], []), (["attach"], []), (["start", "--after"], ["true"]))


def test_beginning_of_several_ids_is_none(service: FakeService, jobctl: Jobctl) -> None:
    text = f"jobctl: 'aaaa' could be several jobs: {ONE}, {TWO}; write more of the id\n"
    service.jobs[ONE]["OwnerUID"] = os.getuid()
    assert jobctl("stop", "aaaa") == jobctl("status", "aaaa") == (4, "", text)
    for each in (ONE, TWO):
        service.jobs[each]["OwnerUID"] = 4242
    assert jobctl("status", "aaaa") == (4, "", text)


@pytest.mark.parametrize("uid", [0, 4711])
def test_reading_finds_others_jobs_after_ones_own(service: FakeService, jobctl: Jobctl, uid: int) -> None:
    jobctl.as_uid(uid)
    service.jobs[TWO] |= {"State": "completed", "OwnerUID": uid, "Result": "success", "ExitCode": 0}
    service.jobs[ONE] |= {"State": "completed"}
    for (command,) in READING:
        file = ["/dev/null"] if command == "export" else []
        for given, meant in (("arch", TWO), ("aaaa", TWO), ("make*", THREE), ("bbbb", THREE), (ONE, ONE)):
            service.calls.clear()
            jobctl(command, given, *file)
            assert service.saw("Status")[0] == meant, (command, given)


@pytest.mark.parametrize("uid", [0, 4711])
def test_a_name_of_others_jobs_changes_nothing(service: FakeService, jobctl: Jobctl, uid: int) -> None:
    """Whoever names a job to change it must not come by whatever somebody else has called so."""
    jobctl.as_uid(uid)
    for each in (TWO, THREE):
        service.jobs[each]["OwnerUID"] = 4243
    for command, more in (*CHANGING, *ALONE):
        done = jobctl(*command, "arch", *more)
        hint = "the id, or --user and --name" if (command, more) in CHANGING else "the id"
        text = f"jobctl: no job of yours is 'arch'; there are {ONE} (bob), {TWO} (alice); give {hint}\n"
        assert done == (4, "", text), command
        done = jobctl(*command, "bbb", *more)
        text = f"jobctl: no job of yours is 'bbb'; there is {THREE} (alice); give the id\n"
        assert done == (4, "", text), command
        assert jobctl(*command, "@", *more).code == 4
    assert {member for member, _ in service.calls} <= {"List", "Unsubscribe"}
    assert jobctl("stop", ONE).code == 0  # a whole id is that job
    assert jobctl("status", "arch").code == 3


def test_an_array_is_one_users(service: FakeService, jobctl: Jobctl) -> None:
    """Anybody may call an array as they like: it joins nobody else's, and takes no id of a job."""
    array = "f" * 16
    for each, owner in ((ONE, 4242), (TWO, os.getuid())):
        service.jobs[each] |= {"ArrayId": array, "OwnerUID": owner}
    assert jobctl("start", "--after", array, "true").code == 0
    assert service.saw("Start")[0]["Dependencies"] == ("a(ss)", [(TWO, "success")])
    service.calls.clear()
    service.jobs[TWO]["OwnerUID"] = 4243
    assert jobctl("start", "--after", array, "true") == (
        4, "", f"jobctl: the array '{array}' could be of alice or bob; give the ids of its tasks\n",
    )  # fmt: skip
    service.jobs[ONE]["ArrayId"] = service.jobs[TWO]["ArrayId"] = THREE
    service.calls.clear()
    assert jobctl("start", "--after", THREE, "true").code == 0
    assert service.saw("Start")[0]["Dependencies"] == ("a(ss)", [(THREE, "success")])


@pytest.mark.parametrize("command", ["status", "logs", "wait", "kill", "restart", "remove"])
def test_no_such_job_is_4_everywhere(service: FakeService, jobctl: Jobctl, command: str) -> None:
    for given in ("nope", "0000000000000000"):
        text = f"jobctl: no job '{given}'; 'jobctl list' shows the jobs there are\n"
        assert jobctl(command, given) == (4, "", text)


# status


def test_status_in_json_is_3_unless_it_runs(service: FakeService, jobctl: Jobctl) -> None:
    assert jobctl("-o", "json", "status", TWO).code == 0
    done = jobctl("status", "-o", "json", THREE)
    assert done.code == 3
    assert json.loads(done.out) | {"exit_code": 2, "state": "failed"} == json.loads(done.out)
    done = jobctl("-o", "jsonl", "status", TWO, THREE)
    assert done.code == 3
    assert [json.loads(line)["id"] for line in done.out.splitlines()] == [TWO, THREE]
    assert [each["id"] for each in json.loads(jobctl("-o", "json", "status", TWO, ONE).out)] == [
        TWO, ONE,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "code"),
    [("running", 0), ("paused", 0), ("starting", 0), ("stopping", 0), ("queued", 3), ("stopped", 3)],
)
def test_status_says_by_its_exit_code_whether_it_runs(
    service: FakeService, jobctl: Jobctl, state: str, code: int
) -> None:
    service.jobs[TWO]["State"] = state
    assert jobctl("status", TWO).code == code


def test_status_shows_the_last_lines(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"one\ntwo\x1b\n")
    done = jobctl("status", TWO, "-n", "1")
    assert done.out.endswith("\n\nJan 01 10:00:00 arch[4711]: two\\x1b\n")
    options = {key: value for key, (_, value) in service.calls[-1][1][1].items()}
    assert options == {"Lines": 1, "Format": "export", "Run": 1}
    assert "two" not in jobctl("status", TWO, "-n", "0").out


def test_status_without_the_right_to_read_says_so(service: FakeService, jobctl: Jobctl) -> None:
    def refuse(*_: Any) -> Any:
        raise Refusal("org.freedesktop.DBus.Error.AccessDenied", "not yours")

    service.on["ReadLogs"] = refuse
    done = jobctl("status", TWO)
    assert done.code == 0
    assert done.out.endswith("\n(no output to show: not yours)\n")


def test_status_of_several_goes_on_after_an_error(service: FakeService, jobctl: Jobctl) -> None:
    done = jobctl("status", "nope", TWO)
    assert (done.code, done.err) == (4, "jobctl: no job 'nope'; 'jobctl list' shows the jobs there are\n")
    assert f"arch - {TWO}" in done.out


def test_status_of_nothing_is_about_the_service(service: FakeService, jobctl: Jobctl) -> None:
    done = jobctl("status")
    assert done.code == 0
    assert done.out.startswith("jobsvc 0.1.0: 1 running of at most 4, 2 queued\n\nID  ")
    facts = json.loads(jobctl("-o", "json", "status").out)
    assert (facts["running"], facts["max_running"], facts["maintenance"]) == (1, 4, False)
    assert len(facts["jobs"]) == 3


# list


def test_list_is_a_table(service: FakeService, jobctl: Jobctl) -> None:
    now = time.time_ns() // 1000
    begun = now - 7_510_000_000
    service.jobs[ONE].update(StartedTimestamp=begun, User="root")
    service.jobs[TWO].update(Name="evil\x1b[2J\n", State="queued")
    del service.jobs[TWO]["StartedTimestamp"]
    done = jobctl("list")
    assert done.code == 0
    then = time.gmtime(begun // 1_000_000)
    since = time.strftime("%H:%M:%S" if then[:3] == time.gmtime(now // 1_000_000)[:3] else "%Y-%m-%d", then)
    assert done.out == (
        f"""\
ID                NAME             STATE    EXIT  USER       SINCE       TIME     COMMAND
aaaa000000000001  arch             running  -     root(bob)  {since:<10}  2h 5min  tar cf - /usr
aaaa000000000002  evil\\x1b[2J\\x0a  queued   -     alice      2026-01-01  -        tar cf - /usr
bbbb000000000003  make*            failed   2     alice      2026-01-01  1min 5s  tar cf - /usr
"""
    )


def test_list_on_a_terminal_has_colour_and_fits(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[TWO]["Command"] = ["x" * 200]
    shown = jobctl.on_terminal("--no-pager", "list").out
    assert "\x1b[32mrunning\x1b[0m" in shown
    assert "\x1b[31mfailed \x1b[0m" in shown
    assert max(len(line.replace("\x1b[32m", "").replace("\x1b[0m", "")) for line in shown.split("\r\n")[1:]) <= 85
    jobctl.environment["NO_COLOR"] = "1"
    assert "\x1b" not in jobctl.on_terminal("--no-pager", "list").out


def test_list_filters_are_the_services(service: FakeService, jobctl: Jobctl) -> None:
    jobctl("list", "--state", "running,failed", "--state", "queued", "--user", "bob", "--name", "a*",
           "--queue", "q", "--label", "team=a", "--label", "x=", "--since", "@5", "--reverse",
           "--limit", "7", "--until", "@9", "--array", "a1")  # fmt: skip
    asked = service.saw("List")[0]
    assert {key: value for key, value in asked.items() if key != "Fields"} == {
        "State": ("as", ["running", "failed", "queued"]), "User": ("s", "bob"), "Name": ("s", "a*"),
        "Queue": ("s", "q"), "Labels": ("a{ss}", {"team": "a", "x": ""}), "SinceUSec": ("t", 5_000_000),
        "UntilUSec": ("t", 9_000_000), "ArrayId": ("s", "a1"),
        "Reverse": ("b", True), "Limit": ("u", 7),
    }  # fmt: skip


def test_list_in_json(service: FakeService, jobctl: Jobctl) -> None:
    assert [each["id"] for each in json.loads(jobctl("-o", "json", "list").out)] == [ONE, TWO, THREE]
    lines = jobctl("list", "-o", "jsonl", "--limit", "2").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [ONE, TWO]
    service.jobs.clear()
    assert jobctl("list", "-o", "json").out == "[]\n"
    assert jobctl("list", "-o", "jsonl").out == ""


def test_what_has_not_ended_is_not_hidden_by_what_has(service: FakeService, jobctl: Jobctl) -> None:
    ended = {"State": "completed", "FinishedTimestamp": NOW}
    service.jobs = {each["Id"]: each for each in (job(n, CreatedTimestamp=n, **ended) for n in range(150, 0, -1))}
    running, queued, paused = (f"{n:016x}" for n in (149, 20, 10))
    service.jobs[running].update(State="running")
    service.jobs[queued].update(State="queued")
    service.jobs[paused].update(State="paused")
    listed = [line.split()[0] for line in jobctl("list", "--columns", "id").out.splitlines()][1:]
    assert listed == [f"{n:016x}" for n in (*range(150, 52, -1), 20, 10)]
    told = [each["id"] for each in json.loads(jobctl("list", "-o", "json", "--limit", "2").out)]
    assert told == [f"{n:016x}" for n in (150, 149)]
    assert len(jobctl("list", "--state", "completed", "--columns", "id").out.splitlines()) == 101


def test_list_knows_what_running_jobs_use(service: FakeService, jobctl: Jobctl) -> None:
    for args, live in (
        (("list",), None), (("list", "-o", "json"), ("b", True)), (("list", "--columns", "id,memory"), ("b", True)),
        (("list", "--sort", "cpu"), ("b", True)),
    ):  # fmt: skip
        service.calls.clear()
        assert jobctl(*args).code == 0
        assert service.saw("List")[0].get("Live") == live


def test_list_takes_pages(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs = {each["Id"]: each for each in (job(n) for n in range(1200))}
    assert len(jobctl("list", "--limit", "0").out.splitlines()) == 1201
    assert len(jobctl("list", "--limit", "700").out.splitlines()) == 701


# stop, restart, remove, kill, wait


def test_stop_returns_when_the_jobs_have_ended(service: FakeService, jobctl: Jobctl) -> None:
    service.on["Stop"] = lambda job_id, options: ("", ())
    process = jobctl.start("stop", TWO)
    service.saw("Subscribe")
    assert process.poll() is None
    threading.Timer(0.1, service.end, (TWO,), {"State": "stopped", "Result": "stopped"}).start()
    assert process.communicate(timeout=120) == (b"", b"")
    assert process.returncode == 0
    assert jobctl("stop", "--no-block", ONE).code == 0


def test_what_the_stop_of_another_has_canceled_is_stopped(service: FakeService, jobctl: Jobctl) -> None:
    def stop(job_id: str, options: Any) -> Any:
        if job_id == THREE:
            raise Refusal("WrongState", f"job {THREE} is stopped already; there is nothing to stop")
        service.end(TWO, State="stopped", Result="stopped")
        canceled = {"State": "stopped", "Result": "canceled", "FinishedTimestamp": time.time_ns() // 1000}
        service.jobs[THREE].update(canceled)
        return "", ()

    service.on["Stop"] = stop
    assert jobctl("stop", TWO, THREE) == (0, f"{TWO} stopped\n{THREE} stopped\n", "")
    done = jobctl("stop", THREE)  # it was before this command
    assert (done.code, done.err) == (1, f"jobctl: job {THREE} is stopped already; there is nothing to stop\n")


def test_several_jobs_get_an_answer_each(service: FakeService, jobctl: Jobctl) -> None:
    assert jobctl("remove", TWO, "bbbb", "nope") == (
        1,
        f"{THREE} removed\n",
        f"jobctl: no job 'nope'; 'jobctl list' shows the jobs there are\njobctl: job {TWO} is running; stop it first\n",
    )
    done = jobctl("-o", "json", "remove", TWO, "nope")
    answers = {each["job"]: each for each in json.loads(done.out)}
    assert answers[TWO]["error"] == "WrongState"
    assert answers["nope"] == {
        "job": "nope", "id": None, "error": "NoSuchJob",
        "text": "no job 'nope'; 'jobctl list' shows the jobs there are",
    }  # fmt: skip
    assert done.code == 1


def test_several_that_fail_alike_have_the_exit_code_of_one(service: FakeService, jobctl: Jobctl) -> None:
    for command in ("stop", "kill", "remove", "hold"):
        done = jobctl(command, "nope", "neither", "0000000000000000")
        assert (done.code, done.out, done.err.count("\n")) == (4, "", 3)
    assert jobctl("kill", "nope", TWO) == (
        1, f"{TWO} signalled\n", "jobctl: no job 'nope'; 'jobctl list' shows the jobs there are\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NoSuchJob", 4),
        ("WrongState", 1),
        ("org.freedesktop.DBus.Error.AccessDenied", 5),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", 5),
        ("Internal", 1),
    ],
)
def test_one_job_gets_the_exit_code_of_its_error(service: FakeService, jobctl: Jobctl, name: str, code: int) -> None:
    def refuse(*_: Any) -> Any:
        raise Refusal(name, "because")

    for method, command in (("Stop", "stop"), ("Restart", "restart"), ("Remove", "remove"), ("Kill", "kill")):
        service.on[method] = refuse
        done = jobctl(command, TWO)
        assert done.code == code
        assert done.err.startswith("jobctl: because")
        assert done.err.count("\n") == 1


def test_all_is_all_of_mine(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[TWO]["OwnerUID"] = service.jobs[THREE]["OwnerUID"] = 4243
    jobctl.as_uid(4243)
    assert jobctl("stop", "--all") == (0, f"{TWO} stopped\n", "")
    assert jobctl("remove", "--all").out.split() == [TWO, "removed", THREE, "removed"]
    assert list(service.jobs) == [ONE]
    assert jobctl("restart", "--all") == (0, "", "")
    assert not [member for member, _ in service.calls if member in ("Stop", "Remove", "Restart")]


def test_all_is_everybodys_for_root(service: FakeService, jobctl: Jobctl) -> None:
    jobctl.as_uid(0)
    assert jobctl("kill", "--all").out == f"{ONE} signalled\n{TWO} signalled\n"
    service.jobs[TWO]["Owner"] = "root"
    assert jobctl("stop", "--user", "root").out == f"{TWO} stopped\n"
    assert jobctl("stop", "--name", "ar*").out == f"{ONE} stopped\n"


def test_a_user_may_be_a_number(service: FakeService, jobctl: Jobctl) -> None:
    for command in ("list", "stats", "kill"):
        service.calls.clear()
        service.on["Stats"] = lambda *_: ("aa{sv}", ([],))
        jobctl(command, "--user", "0")
        jobctl(command, "--user", "4242")
        named, gone = (body[-1] for member, body in service.calls if member in ("List", "Stats", "KillMany"))
        assert (named["User"], named.get("OwnerUID")) == (("s", "root"), None)
        assert (gone["OwnerUID"], gone.get("User")) == (("u", 4242), None)
        assert jobctl(command, "--user", "4294967296").code == 2


def test_restart_returns_when_the_new_run_is_there(service: FakeService, jobctl: Jobctl) -> None:
    service.on["Restart"] = lambda job_id, options: ("u", (2,))
    process = jobctl.start("restart", TWO)
    service.saw("Status")
    assert process.poll() is None
    service.jobs[TWO].update(Run=2, State="queued")
    service.tell("JobChanged", "sss", (TWO, "queued", ""))
    assert process.communicate(timeout=120) == (b"", b"")
    assert process.returncode == 0


def test_kill_sends_what_was_asked(service: FakeService, jobctl: Jobctl) -> None:
    for args, expected in (
        ([], ("all", 15)),
        (["-s", "SIGUSR1"], ("all", 10)),
        (["-s", "hup", "--whom", "main"], ("main", 1)),
        (["-s", "9", "--whom", "all"], ("all", 9)),
    ):
        assert jobctl("kill", TWO, *args) == (0, "", "")
        assert service.calls[-1][1][:3] == (TWO, *expected)


def test_wait_is_for_all_of_them(service: FakeService, jobctl: Jobctl) -> None:
    process = jobctl.start("wait", ONE, TWO)
    service.saw("Status")
    service.end(ONE, State="completed", Result="success")
    time.sleep(0.1)
    assert process.poll() is None
    service.end(TWO, State="completed", Result="success")
    assert process.communicate(timeout=120) == (b"", b"")
    assert process.returncode == 0
    assert jobctl("wait", ONE, THREE) == (1, "", f"jobctl: job {THREE} failed: exit-code\n")
    assert json.loads(jobctl("wait", "-o", "json", THREE).out)["exit_code"] == 2


def test_wait_any_says_which(service: FakeService, jobctl: Jobctl) -> None:
    process = jobctl.start("wait", "--any", ONE, TWO)
    service.saw("Status")
    service.end(TWO, State="completed", Result="success")
    assert process.communicate(timeout=120) == (f"{TWO}\n".encode(), b"")
    assert process.returncode == 0


def test_wait_is_for_those_that_are_there(service: FakeService, jobctl: Jobctl) -> None:
    lost = "jobctl: no job 'nope'; 'jobctl list' shows the jobs there are\n"
    process = jobctl.start("wait", TWO, "nope")
    service.saw("Status")
    assert process.poll() is None
    service.end(TWO, State="completed", Result="success")
    assert process.communicate(timeout=120) == (b"", lost.encode())
    assert process.returncode == 1
    assert jobctl("wait", TWO, "0000000000000000").code == 1
    assert jobctl("wait", "--any", "nope", TWO) == (1, f"{TWO}\n", lost)
    for missing in (["nope"], ["nope", "neither"], ["nope", "0000000000000000"]):
        done = jobctl("wait", *missing)
        assert (done.code, done.out, done.err.count("\n")) == (4, "", len(missing))


def test_wait_may_exit_as_the_job_did(service: FakeService, jobctl: Jobctl) -> None:
    for facts, code in (
        ({"State": "completed", "Result": "success", "ExitCode": 0}, 0),
        ({"State": "failed", "Result": "exit-code", "ExitCode": 7}, 7),
        ({"State": "failed", "Result": "signal", "Signal": 9, "ExitCode": None}, 137),
        ({"State": "failed", "Result": "timeout", "Signal": 15}, 124),
        ({"State": "stopped", "Result": "canceled"}, 125),
    ):
        service.jobs[THREE] = job(Id=THREE, FinishedTimestamp=NOW, **facts)
        assert jobctl("wait", "--exit-code", THREE).code == code
    service.jobs[THREE] = job(Id=THREE, FinishedTimestamp=NOW, State="failed", Result="exit-code", ExitCode=7)
    done = jobctl("wait", "--any", "--exit-code", THREE, TWO)
    assert (done.code, done.out) == (7, f"{THREE}\n")
    assert jobctl("wait", "--exit-code", "nope").code == 4
    assert jobctl("wait", "--exit-code", TWO, THREE).code == 2
    assert jobctl("wait", "--exit-code", "--all").code == 2


def test_wait_does_not_poll(service: FakeService, jobctl: Jobctl) -> None:
    process = jobctl.start("wait", TWO)
    service.saw("Status")
    time.sleep(0.3)
    before = len(service.calls)
    time.sleep(0.7)
    assert len(service.calls) == before
    service.end(TWO, State="stopped", Result="stopped")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.decode() == f"jobctl: job {TWO} stopped: stopped\n"


# completion


def test_the_shell_is_given_names_and_ids(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ONE]["Name"] = "$(reboot)"
    jobctl.environment["_JOBCTL_COMPLETE"] = "lines_complete"

    def asked(*words: str) -> list[str]:
        jobctl.environment["COMP_WORDS"] = "".join(f"{word}\n" for word in ("jobctl", *words))
        return sorted(line.rsplit("\t", 1)[0] for line in jobctl().out.splitlines() if line)

    assert asked("status", "a") == [f"plain\t{ONE}", f"plain\t{TWO}", "plain\tarch"]
    assert asked("logs", "--st") == ["plain\t--stream"]
    assert asked("logs", "--stream", "") == ["plain\tstderr", "plain\tstdout"]
    assert asked("re") == ["plain\trelease", "plain\tremove", "plain\trestart", "plain\tresume"]
    assert asked("run", "--uid", "al") == ["user\tal"]
    assert asked("run", "--memory", "1M", "s") == ["command\ts"]
    assert asked("run", "--", "sh", "f") == ["file\tf"]
    assert asked("start", "-d", "") == ["dir\t"]
    assert asked("start", "-p", "MemoryM") == asked("set", TWO, "MemoryM") == ["plain\tMemoryMax="]
    assert asked("start", "-p", "RuntimeMax") == ["plain\tRuntimeMaxSec="]
    service.jobs[TWO]["Queue"] = "night"
    for command in ("start", "list", "stats"):
        assert asked(command, "--queue", "") == ["plain\tdefault", "plain\tnight"]
    assert asked("kill", "-s", "US") == ["plain\tUSR1", "plain\tUSR2"]
    assert asked("list", "--user", "al") == asked("stats", "--user", "al") == ["user\tal"]
    service.leave()
    assert asked("status", "a") == []
    service.enter()


def test_completion_of_others_names_is_for_reading(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ONE]["Name"] = "another"
    jobctl.environment["_JOBCTL_COMPLETE"] = "lines_complete"

    def asked(*words: str) -> list[str]:
        jobctl.environment["COMP_WORDS"] = "".join(f"{word}\n" for word in ("jobctl", *words))
        return sorted(line for line in jobctl().out.splitlines() if line)

    ids = [f"plain\t{ONE}\trunning, bob", f"plain\t{TWO}\trunning"]
    names = ["plain\tanother\trunning, bob", "plain\tarch\trunning"]
    for command in ("status", "logs", "wait", "export"):
        assert asked(command, "a") == ids + names, command
    for words in (("stop",), ("set",), ("duplicate",), ("attach",), ("start", "--after")):
        assert asked(*words, "a") == ids + names[1:], words
    assert asked("stop", "") == ["plain\tarch\trunning"]


def test_bash_completes(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    program = tmp_path / "jobctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m jobsvc.cli "$@"\n')
    program.chmod(0o755)
    jobctl.environment["PATH"] = f"{tmp_path}:{jobctl.environment['PATH']}"
    script = Path(__file__).parents[2] / "systemd/completions/jobctl.bash"
    for words, expected in (
        ("jobctl stop ma", ["make"]),
        ("jobctl statu", ["status"]),
        ("jobctl run --uid roo", ["root"]),
        ("jobctl run --name 'a b' -- printen", ["printenv"]),
    ):
        service.jobs[THREE]["Name"] = "make"
        code = (
            f"source {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _jobctl; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", code], env=jobctl.environment, capture_output=True, text=True)
        assert (sorted(set(done.stdout.split())), done.stderr) == (expected, "")
