"""The queue: what waits, for what, and that it begins when it should, also with another service in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from story import assert_nothing_left, ended, in_state, inside, jobctl, service, start, status, systemctl

from machine.nspawn import Machine

DROP_IN = "/etc/jobsvc/jobsvc.conf.d/50-queue.conf"


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    yield
    machine.run("rm", "-f", DROP_IN)
    systemctl(machine, "reload", "jobsvc.service")
    assert_nothing_left(machine)


def configure(machine: Machine, text: str) -> None:
    """Another configuration, read by the service that runs."""
    machine.run("mkdir", "-p", DROP_IN.rpartition("/")[0])
    machine.run("tee", DROP_IN, input=text.encode())
    systemctl(machine, "reload", "jobsvc.service")


@contextmanager
def one_slot(machine: Machine) -> Iterator[str]:
    """A machine that runs one job at a time, and a job that has the slot until the block ends."""
    configure(machine, "[Manager]\nMaxRunning=1\n")
    blocker = start(machine, "--", "sleep", "infinity", user="root")
    in_state(machine, blocker, "running", user="root")
    yield blocker
    assert jobctl(machine, "stop", blocker, user="root").returncode == 0


def call(machine: Machine, member: str, *arguments: str, user: str = "alice") -> str:
    done = machine.run(
        *("busctl", "--system", "call", "org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager", member, *arguments),
        user=user,
    )
    return done.stdout.decode().strip()


def reason(machine: Machine, job: str, says: str, user: str = "alice") -> None:
    """Wait until a queued job says this of why it waits; in the list as in the status."""
    told: dict[str, Any] = {}

    def there() -> bool:
        told.update(status(machine, job, user=user))
        return says in (told["queue_reason"] or "")

    machine.wait_until(there, what=f"{says!r} to be the reason of {job}")
    listed = json.loads(jobctl(machine, "-o", "json", "list", user=user).stdout)
    assert says in next(one["queue_reason"] for one in listed if one["id"] == job)


def begun(machine: Machine, jobs: list[str]) -> list[str]:
    """These jobs in the order in which they began."""
    return sorted(jobs, key=lambda job: str(ended(machine, job, user="root")["started_at"]))


def test_priority_then_fair_turns_then_first_in_first_out(machine: Machine) -> None:
    with one_slot(machine):
        alices = [start(machine, "--", "true") for _ in range(4)]
        bobs = start(machine, "--", "true", user="bob")
        bobs_first = start(machine, "--priority", "5", "--", "true", user="bob")  # past his own jobs only
        urgent = start(machine, "-p", "Priority=5", "--", "true", user="root")
        idle = start(machine, "-p", "Priority=-5", "--", "true", user="bob")
        reason(machine, alices[0], "MaxRunning=1 is reached")
        systemctl(machine, "kill", "--kill-whom=main", "--signal=USR1", "jobsvc.service")
        log = ("journalctl", "-q", "-o", "cat", "-n", "100", "-u", "jobsvc.service")
        machine.wait_until(lambda: b"queue default: 1 run, 8 wait" in machine.run(*log).stdout, what="our state")
    order = begun(machine, [*alices, bobs, bobs_first, urgent, idle])
    assert (order[0], order[-1]) == (urgent, idle)
    assert [job for job in order if job in alices] == alices
    assert order.index(bobs_first) in (1, 2)
    assert order.index(bobs) in (3, 4)


def test_queues_and_users_have_limits_of_their_own(machine: Machine) -> None:
    configure(machine, "[Manager]\nMaxRunningPerUser=2\n[Queue gpu]\nMaxRunning=1\nAllowedGroups=alice bob\n")
    first = start(machine, "-p", "Queue=gpu", "--", "sleep", "infinity")
    in_state(machine, first, "running")
    second = start(machine, "-p", "Queue=gpu", "--", "sleep", "infinity", user="bob")
    reason(machine, second, "MaxRunning=1 of queue 'gpu' is reached", user="bob")
    third = start(machine, "--", "sleep", "infinity")
    in_state(machine, third, "running")
    fourth = start(machine, "--", "true")
    reason(machine, fourth, "MaxRunningPerUser=2 is reached for alice")
    refused = jobctl(machine, "start", "-p", "Queue=gpu", "--", "true", user="carol")
    assert (refused.returncode, b"is for the groups alice, bob" in refused.stderr) == (5, True)
    configure(machine, "[Manager]\nMaxRunningPerUser=3\n[Queue gpu]\nMaxRunning=1\n")
    assert ended(machine, fourth)["result"] == "success"
    jobctl(machine, "stop", first)
    in_state(machine, second, "running", user="bob")
    jobctl(machine, "stop", second, user="bob")
    jobctl(machine, "stop", third)


def test_nobody_takes_all_slots(machine: Machine) -> None:
    configure(machine, "[Manager]\nMaxRunning=10\n")
    bobs = [start(machine, "--name", "bobs", "--", "sleep", "infinity", user="bob") for _ in range(12)]
    reason(machine, bobs[-1], "MaxRunningPerUser=9 is reached for bob", user="bob")
    assert ended(machine, start(machine, "--", "true"))["result"] == "success"
    configure(machine, "[Manager]\nMaxRunning=10\nMaxRunningPerUser=infinity\n")
    reason(machine, bobs[-1], "MaxRunning=10 is reached", user="bob")
    jobctl(machine, "stop", "--name", "bobs", "--state", "queued", user="bob")
    jobctl(machine, "stop", "--name", "bobs", user="bob")


def test_everybody_has_a_queue_that_runs_one_at_a_time(machine: Machine) -> None:
    first, second = (start(machine, "--queue", "serial", "--", "sleep", "infinity") for _ in range(2))
    bobs = start(machine, "--queue", "serial", "--", "true", user="bob")
    reason(machine, second, "MaxRunningPerUser=1 of queue 'serial' is reached for alice")
    assert ended(machine, bobs, user="bob")["result"] == "success"
    jobctl(machine, "stop", first)
    in_state(machine, second, "running")
    jobctl(machine, "stop", second)


def test_dependencies_hold_over_a_crash_of_the_service(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    first = start(machine, "--", "sh", "-c", "read word < gate; exit $word")
    in_state(machine, first, "running")
    good = start(machine, "-p", f"Dependencies={first}:success", "--", "true")
    bad = start(machine, "-p", f"Dependencies={first}:failure", "--", "true")
    after = start(machine, "-p", f"Dependencies={good} {bad}:any", "--", "true")
    after_good = start(machine, "-p", f"Dependencies={good}", "--", "true")
    reason(machine, good, f"waiting for job {first} to succeed")
    service(machine, "kill")
    reason(machine, after, f"waiting for job {good} to succeed and 1 more")
    machine.run("sh", "-c", "echo 3 > gate; rm gate", user="alice")
    assert ended(machine, first)["exit_code"] == 3
    assert ended(machine, bad)["result"] == "success"
    canceled = ended(machine, good)
    assert (canceled["state"], canceled["result"]) == ("stopped", "canceled")
    assert canceled["reason"] == f"job {first} was to succeed, and it ended: exit-code"
    assert ended(machine, after_good)["reason"] == f"job {good} was to succeed, and it ended: canceled"
    assert ended(machine, after)["result"] == "canceled"


def test_each_try_is_a_run_of_its_own_and_the_pause_outlives_the_service(machine: Machine) -> None:
    script = "echo x >> tries; wc -l < tries; test $(wc -l < tries) = 3"
    machine.run("rm", "-f", "tries", user="alice")
    job = start(machine, "-p", "Retries=5", "-p", "RetryDelaySec=1h", "--", "sh", "-c", script)
    reason(machine, job, "retry 1 of 5 at 20")
    service(machine, "kill")
    reason(machine, job, "retry 1 of 5 at 20")
    assert jobctl(machine, "set", job, "NotBefore=now").returncode == 0
    reason(machine, job, "retry 2 of 5 at 20")
    assert jobctl(machine, "set", job, "NotBefore=now").returncode == 0
    told = ended(machine, job)
    assert (told["run"], told["result"]) == (3, "success")
    for run in (1, 2, 3):
        assert jobctl(machine, "logs", "--run", str(run), job).stdout == b"%d\n" % run
    machine.run("rm", "tries", user="alice")


def test_a_timeout_is_not_tried_again(machine: Machine) -> None:
    job = start(machine, "-p", "Retries=5", "--timeout", "200ms", "--", "sleep", "60")
    told = ended(machine, job)
    assert (told["run"], told["result"]) == (1, "timeout")


def test_not_before_its_time(machine: Machine) -> None:
    job = start(machine, "-p", "NotBefore=+1h", "--", "true")
    reason(machine, job, "not before 20")
    service(machine, "restart")
    reason(machine, job, "not before 20")
    assert jobctl(machine, "set", job, "NotBefore=+2s").returncode == 0
    told = ended(machine, job)
    started = machine.run("date", "-d", told["started_at"], "+%s%6N").stdout
    assert int(started) >= told["not_before_usec"]


def test_an_array_runs_so_many_of_its_tasks_at_once(machine: Machine) -> None:
    def tasks() -> Any:
        spec = {
            "Command": ("as", ["sh", "-c", "echo $JOBSVC_ARRAY_ID $JOBSVC_ARRAY_INDEX; sleep 0.2"]),
            "ArrayId": ("s", "sweep"),
            "ArrayMaxRunning": ("u", 2),
        }
        specs = [spec | {"ArrayIndex": ("u", index)} for index in range(6)]
        bus = Bus()  # noqa: F821
        return [job for job, _ in bus.call("StartMany", "aa{sv}a{sv}", specs, {})]

    jobs = inside(machine, tasks)
    times = [(told["started_at"], told["finished_at"]) for told in (ended(machine, job) for job in jobs)]
    for begin, _ in times:
        assert sum(start <= begin < end for start, end in times) <= 2
    assert [jobctl(machine, "logs", job).stdout for job in jobs] == [b"sweep %d\n" % index for index in range(6)]


def test_held_until_released_and_unique_until_it_has_ended(machine: Machine) -> None:
    job = start(machine, "-p", "Hold=yes", "-p", "Unique=backup", "--", "sleep", "infinity")
    reason(machine, job, "held")
    refused = jobctl(machine, "start", "-p", "Unique=backup", "--", "true")
    assert (refused.returncode, job.encode() in refused.stderr) == (1, True)
    assert start(machine, "-p", "Unique=backup", "-p", "UniquePolicy=return", "--", "true") == job
    call(machine, "Release", "sa{sv}", job, "0")
    in_state(machine, job, "running")
    new = start(machine, "-p", "Unique=backup", "-p", "UniquePolicy=replace", "--", "true")
    assert ended(machine, new)["result"] == "success"
    told = status(machine, job)
    assert (told["result"], told["reason"]) == ("stopped", f"replaced by job {new}")
    assert str(told["finished_at"]) <= str(status(machine, new)["started_at"])


def test_a_duplicate_runs_as_whoever_the_first_ran(machine: Machine) -> None:
    job = start(machine, "-E", "WORD=secret", "--", "sh", "-c", "echo $WORD; id -un")
    ended(machine, job)
    copy = call(machine, "Duplicate", "sa{sv}", job, "1", "Name", "s", "copy").split('"')[1]
    ended(machine, copy)
    assert jobctl(machine, "logs", copy).stdout == b"secret\nalice\n"
    roots = call(machine, "Duplicate", "sa{sv}", job, "0", user="root").split('"')[1]
    told = ended(machine, roots, user="root")
    assert (told["owner"], told["user"]) == ("root", "alice")


def test_in_maintenance_nothing_begins_and_what_runs_goes_on(machine: Machine) -> None:
    running = start(machine, "--", "sleep", "infinity")
    in_state(machine, running, "running")
    waiting = start(machine, "-p", "NotBefore=+1h", "--", "true")
    call(machine, "SetMaintenance", "ba{sv}", "true", "0", user="root")
    try:
        refused = jobctl(machine, "start", "--", "true")
        assert (refused.returncode, b"maintenance" in refused.stderr) == (1, True)
        service(machine, "restart")
        assert jobctl(machine, "set", waiting, "NotBefore=now").returncode == 0
        reason(machine, waiting, "maintenance")
        assert status(machine, running)["state"] == "running"
    finally:
        call(machine, "SetMaintenance", "ba{sv}", "false", "0", user="root")
    assert ended(machine, waiting)["result"] == "success"
    jobctl(machine, "stop", running)


@pytest.mark.parametrize(
    ("setting", "says", "lifted"),
    [
        ("StartWhenLoadBelow=0.001", "StartWhenLoadBelow=0.001", "StartWhenLoadBelow=100000"),
        ("StartWhenMemoryAvailable=900T", "StartWhenMemoryAvailable=900T", "StartWhenMemoryAvailable=1M"),
    ],
)
def test_a_busy_machine_begins_nothing(machine: Machine, setting: str, says: str, lifted: str) -> None:
    configure(machine, f"[Manager]\n{setting}\n")
    burn = machine.popen("sh", "-c", "while :; do :; done")  # a load of its own
    try:
        job = start(machine, "--", "true")
        reason(machine, job, says)
        configure(machine, f"[Manager]\n{lifted}\n")
        assert ended(machine, job)["result"] == "success"
    finally:
        machine.run("pkill", "-f", "while :; do :; done", check=False)
        burn.wait(180)


def test_a_queue_may_wait_for_an_idle_machine_alone(machine: Machine) -> None:
    configure(machine, "[Queue batch]\nStartWhenMemoryAvailable=900T\n")
    job = start(machine, "--queue", "batch", "--", "true")
    reason(machine, job, "StartWhenMemoryAvailable=900T")
    assert ended(machine, start(machine, "--", "true"))["result"] == "success"
    configure(machine, "[Queue batch]\n")
    assert ended(machine, job)["result"] == "success"


def test_what_waits_waits_on_after_a_reboot(machine: Machine) -> None:
    first = start(machine, "--", "sleep", "infinity")
    in_state(machine, first, "running")
    good = start(machine, "-p", f"Dependencies={first}", "--", "true")
    after = start(machine, "-p", f"Dependencies={first}:any", "--", "true")
    held = start(machine, "-p", "Hold=yes", "--", "true")
    late = start(machine, "-p", "NotBefore=+1h", "--", "true")
    retried = start(machine, "-p", "Retries=1", "-p", "RetryDelaySec=1h", "--", "false")
    reason(machine, retried, "retry 1 of 1 at 20")
    machine.reboot()
    assert ended(machine, first)["state"] == "stopped"
    assert ended(machine, good)["result"] == "canceled"
    assert ended(machine, after)["result"] == "success"
    for job, says in ((held, "held"), (late, "not before 20"), (retried, "retry 1 of 1 at 20")):
        reason(machine, job, says)
        assert jobctl(machine, "stop", job).returncode == 0


@pytest.mark.one_suite
def test_ten_thousand_wait_and_cost_a_row_each(machine: Machine) -> None:
    """No descriptor, no task, little memory; and one more is taken in about as quickly as when there was none."""
    configure(machine, "[Manager]\nMaxQueued=20000\n")
    service(machine, "restart")

    def depth(count: int) -> dict[str, Any]:
        import os
        import time
        from pathlib import Path

        bus = Bus()  # noqa: F821

        def one() -> float:
            at = time.monotonic()
            bus.start("true", Hold=("b", True))
            return time.monotonic() - at

        def median() -> float:
            return sorted(one() for _ in range(61))[30]

        def daemon() -> dict[str, int]:
            pid = Path("/run/jobsvcd.pid").read_text().strip()
            status = Path(f"/proc/{pid}/status").read_text()
            kib = int(status.partition("VmRSS:")[2].split()[0])
            return {"rss": kib // 1024, "fds": len(os.listdir(f"/proc/{pid}/fd"))}

        median()
        empty, before = median(), daemon()
        for _ in range(count // 250):
            spec = {"Command": ("as", ["sh", "-c", "echo a job as they come"]), "Name": ("s", "night")}
            spec |= {"Environment": ("as", ["LANG=C.UTF-8", "A=b"]), "Hold": ("b", True)}
            bus.call("StartMany", "aa{sv}a{sv}", [spec] * 250, {})
        full, after = median(), daemon()
        return {"empty": empty, "full": full, "before": before, "after": after}

    def measured(count: int) -> dict[str, Any]:
        pid = systemctl(machine, "show", "-P", "MainPID", "jobsvc.service")
        machine.run("tee", "/run/jobsvcd.pid", input=pid.encode())
        told: dict[str, Any] = inside(machine, depth, count, user="root", timeout=240)
        print(told)
        return told

    try:
        told = measured(10_000)
        assert told["full"] <= 3 * told["empty"] + 0.05, told  # the benchmark has the figure
        assert told["after"]["rss"] <= 60, told
        assert told["after"]["fds"] <= told["before"]["fds"] + 8, told  # a few of threads that answer questions
        service(machine, "restart")
        assert measured(0)["before"]["rss"] <= 60
    finally:
        for member, state in (("StopMany", "queued"), ("RemoveMany", "stopped")):
            which = ("0", "1", "State", "as", "1", state)
            manager = ("org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager")
            machine.run("busctl", "--timeout=300", "call", *manager, member, "asa{sv}", *which, timeout=310)
