"""What is configured and what is remembered: reload, ceilings of groups, retention, statistics, shutdown held up."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from story import Done, assert_nothing_left, ended, in_state, inside, jobctl, service_log, start, status

from machine.host import slowness
from machine.nspawn import Guest, Machine
from machine.vm import VM

OURS = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"
WATCH = "/run/systemd/system/jobsvc.service.d/60-story.conf"
PATIENT = "/etc/systemd/logind.conf.d/60-story.conf"
MANAGER = ("org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager")
RELOAD = ("busctl", "call", *MANAGER, "Reload")


@pytest.fixture(autouse=True)
def as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each story leaves the configuration as it was, and no job."""
    yield
    machine = request.getfixturevalue("machine" if "machine" in request.fixturenames else "vm")
    machine.run("rm", "-f", OURS)
    machine.run("systemctl", "reload", "jobsvc.service")
    assert_nothing_left(machine)


def configure(machine: Guest, *lines: str) -> Done:
    """Put these lines into force, or not: how `systemctl reload` went."""
    machine.write(OURS, "\n".join(lines) + "\n")
    return machine.run("systemctl", "reload", "jobsvc.service", check=False)


def told_of(machine: Guest, *matches: str) -> list[dict[str, Any]]:
    """The entries about jobs that fit."""
    machine.run("journalctl", "--namespace=jobsvc", "--sync")
    argv = ("journalctl", "--namespace=jobsvc", "-q", "-o", "json", *matches)
    return [json.loads(line) for line in machine.run(*argv, timeout=60).stdout.splitlines()]


def max_running(machine: Guest) -> str:
    return machine.run("busctl", "get-property", *MANAGER, "MaxRunning").stdout.decode().strip()


def test_a_reload_takes_the_new_configuration_whole_or_not_at_all(machine: Machine) -> None:
    pid = machine.run("systemctl", "show", "-P", "MainPID", "jobsvc").stdout
    assert configure(machine, "[Manager]", "MaxRunning=3", "[Ceilings]", "RuntimeMaxSec=1h").returncode == 0
    assert max_running(machine) == "u 3"
    service_log(machine)
    assert configure(machine, "[Manager]", "MaxRunning=5", "[Ceilings]", "RuntimeMaxSex=2h").returncode != 0
    complaint = f"{OURS}: [Ceilings] RuntimeMaxSex=2h: unknown key 'RuntimeMaxSex'; did you mean RuntimeMaxSec?"
    kept = f"the configuration stays as it was: {complaint}"
    machine.wait_until(lambda: kept in service_log(machine), what="the complaint in the journal")
    assert max_running(machine) == "u 3"
    refused = machine.run(*RELOAD, user="alice", check=False)
    assert refused.returncode != 0
    assert b"denied" in refused.stderr
    wrong = machine.run(*RELOAD, user="dave", check=False)
    assert b"RuntimeMaxSex=2h" in wrong.stderr
    machine.wait_until(lambda: kept in service_log(machine), what="it once more")
    machine.run("kill", "-HUP", pid.decode().strip())
    machine.wait_until(lambda: kept in service_log(machine), what="it for SIGHUP, too")
    assert machine.run("systemctl", "show", "-P", "MainPID", "jobsvc").stdout == pid
    entry = told_of(machine, "JOBSVC_EVENT=reloaded")[-1]
    assert entry["MESSAGE"] == "The configuration was read anew for root."


def test_a_reload_lets_those_begin_who_have_room_now(machine: Machine) -> None:
    few = ["[Manager]", "MaxRunning=2", "MaxRunningPerUser=1", "[Queue narrow]", "MaxRunning=1"]
    assert configure(machine, *few).returncode == 0
    sleep = ("--", "sleep", "600")
    jobs = [start(machine, "-p", "Queue=narrow", *sleep), start(machine, *sleep)]
    jobs.append(start(machine, "-p", "Queue=narrow", *sleep, user="bob"))
    in_state(machine, jobs[0], "running")
    waiting = [status(machine, job, user="dave") for job in jobs[1:]]
    assert [one["state"] for one in waiting] == ["queued"] * 2
    assert [one["queue_reason"] for one in waiting] == [
        "MaxRunningPerUser=1 is reached for alice",
        "MaxRunning=1 of queue 'narrow' is reached",
    ]
    assert configure(machine, "[Queue narrow]", "MaxRunning=2").returncode == 0
    for job in jobs[1:]:
        in_state(machine, job, "running", user="dave")
    assert jobctl(machine, "stop", *jobs, user="root").returncode == 0


def test_groups_have_ceilings_of_their_own_at_once(machine: Machine) -> None:
    assert jobctl(machine, "run", "--timeout", "5h", "--", "true").returncode == 0
    general, group = ["[Ceilings]", "RuntimeMaxSec=1h"], ["[Ceilings jobsvc-viewer]", "RuntimeMaxSec=4h"]
    assert configure(machine, *general, *group, "[Ceilings no-such-group]", "RuntimeMaxSec=9h").returncode == 0
    wanted = ("start", "--timeout", "3h", "--", "true")
    refused = jobctl(machine, *wanted)
    assert refused.returncode == 5
    assert b"org.jobsvc1.exceed-limits" in refused.stderr
    assert jobctl(machine, *wanted, user="carol").returncode == 0
    assert jobctl(machine, "start", "--timeout", "5h", "--", "true", user="carol").returncode == 5
    told = [ended(machine, start(machine, "--", "true", user=who), user=who) for who in ("alice", "carol")]
    hour = 3600 * 1_000_000
    assert [one["limits"]["runtime_max_usec"] for one in told] == [hour, 4 * hour]
    ended(machine, user="carol")


def cancel_thousands(count: int) -> int:
    """Submit jobs that have to wait, and cancel them: how many are remembered then."""
    bus = Bus()  # noqa: F821
    for _ in range(count // 1000):
        many(bus, [{"Command": ("as", ["true"]), "Name": ("s", "legion")}] * 1000)  # noqa: F821
    outcomes = bus.reply(bus.send("StopMany", "asa{sv}", [], {"Name": ("s", "legion")}), timeout=200)
    assert not [one for one in outcomes if one[1]]
    return sum(bus.call("Count", "a{sv}", {"Name": ("s", "legion")}).values())


def count_of(name: str) -> int:
    return sum(Bus().call("Count", "a{sv}", {"Name": ("s", name)}).values())  # noqa: F821


def test_thousands_go_when_fewer_are_to_be_kept_and_leave_a_record(machine: Machine) -> None:
    assert configure(machine, "[Manager]", "MaxRunning=1").returncode == 0
    first = start(machine, "--", "sleep", "600")
    in_state(machine, first, "running")
    assert inside(machine, cancel_thousands, 2000, user="root", timeout=300) == 2000
    assert jobctl(machine, "stop", first).returncode == 0
    assert configure(machine, "[Manager]", "KeepFinished=20").returncode == 0
    machine.wait_until(
        lambda: inside(machine, count_of, "legion", user="root") <= 20, what="thousands to go", timeout=120
    )
    assert jobctl(machine, "list").returncode == 0
    records = [one for one in told_of(machine, "JOBSVC_EVENT=removed") if one["JOBSVC_REQUEST"] == "retention"]
    says = "(legion, canceled) of root was removed from the history: KeepFinished=20 is reached."
    gone = [one for one in records if one["MESSAGE"].endswith(says)]  # those of other tests go as well
    assert len(gone) >= 1980
    assert gone[-1]["JOBSVC_RESULT"] == "canceled"


def pile_up(count: int) -> None:
    """Jobs of 100 kB each that have had their end."""
    bus = Bus()  # noqa: F821
    large = {"Command": ("as", ["true", "x" * 100_000]), "Name": ("s", "pile")}
    for _ in range(count):
        ((job, _),) = bus.call("StartMany", "aa{sv}a{sv}", [large], {})
        bus.until_ended(job, timeout=60)


def test_one_users_history_takes_no_more_room_than_it_may(machine: Machine) -> None:
    others = start(machine, "--", "true", user="bob")
    ended(machine, others, user="bob")
    assert configure(machine, "[Manager]", "KeepFinishedBytesPerUser=1M").returncode == 0
    inside(machine, pile_up, 30, timeout=120)
    machine.wait_until(lambda: inside(machine, count_of, "pile") <= 12, what="the oldest to go")
    assert jobctl(machine, "status", others, user="bob").returncode == 3
    says = "(pile, success) of alice was removed from the history: KeepFinishedBytesPerUser=1048576 is reached."
    assert [one for one in told_of(machine, "JOBSVC_EVENT=removed") if one["MESSAGE"].endswith(says)]


def test_age_ends_at_its_time_and_by_hand_at_once(machine: Machine) -> None:
    by_hand, old = [start(machine, "--", "true") for _ in range(2)]
    for job in (by_hand, old):
        ended(machine, job)
    assert jobctl(machine, "remove", by_hand).returncode == 0
    (record,) = told_of(machine, f"JOBSVC_ID={by_hand}", "JOBSVC_EVENT=removed")
    assert (
        record["MESSAGE"] == f"Job {by_hand} (true, success) of alice was removed from the history: removed by alice."
    )
    assert configure(machine, "[Manager]", "KeepFinishedSec=1s").returncode == 0

    def gone() -> bool:
        machine.run("systemctl", "reload", "jobsvc")
        return jobctl(machine, "status", old).returncode == 4

    machine.wait_until(gone, what="it to be over a second old")
    assert jobctl(machine, "logs", old).returncode == 4
    (record,) = told_of(machine, f"JOBSVC_ID={old}", "JOBSVC_EVENT=removed")
    assert record["MESSAGE"].endswith("KeepFinishedSec= is over.")


def stats_with(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    rows = Bus().call("Stats", "a{sv}", {name: tuple(value) for name, value in wanted.items()})  # noqa: F821
    return [{name: value for name, (_, value) in row.items()} for row in rows]


def test_statistics_count_what_was_and_only_ones_own(machine: Machine) -> None:
    label = {"Labels": ["a{ss}", {"story": "stats"}]}
    spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 3"
    for argv in (("sh", "-c", spin), ("true",)):
        jobctl(machine, "run", "-p", "Labels=story=stats", "--", *argv)
    jobctl(machine, "run", "-p", "Labels=story=stats", "--", "true", user="bob")
    rows = inside(machine, stats_with, label)
    (mine,) = rows
    assert (mine["User"], mine["Queue"], mine["Jobs"]) == ("alice", "default", 2)
    assert (mine["Completed"], mine["Failed"], mine["Stopped"]) == (1, 1, 0)
    assert mine["CPUUsageNSec"] > 10_000_000
    assert 0 < mine["WaitUSec"] < 60_000_000
    assert [row["User"] for row in inside(machine, stats_with, label, user="carol")] == ["alice", "bob"]


def ask_much(jobs: int) -> dict[str, int]:
    """As many jobs with 32 labels, canceled; everything that is asked about many, and their removal."""
    bus = Bus()  # noqa: F821
    labels = {f"label{n}": "a value of many jobs" for n in range(32)}
    one = {"Command": ("as", ["true"]), "Labels": ("a{ss}", labels), "Hold": ("b", True)}
    for _ in range(0, jobs, 200):
        bus.reply(bus.send("StartMany", "aa{sv}a{sv}", [one] * 200, {}), 60)
    mine = {"Labels": ("a{ss}", labels)}
    stopped = bus.reply(bus.send("StopMany", "asa{sv}", [], mine), 60)
    asked = [bus.send("Count", "a{sv}", mine) for _ in range(10)]
    asked += [bus.send("Stats", "a{sv}", mine) for _ in range(10)]
    asked += [bus.send("List", "a{sv}", {**mine, "Limit": ("u", 500)}) for _ in range(10)]
    for serial in asked:
        bus.reply(serial, 120)
    removed = bus.reply(bus.send("RemoveMany", "asa{sv}", [], mine), 120)
    return {"stopped": len(stopped), "removed": sum(not name for _, name, _ in removed)}


def test_a_large_history_never_stalls_the_loop(machine: Machine) -> None:
    """The watcher of jobsvcd tells of it. The goal is 50 ms; twice that is a fault, more on a slow machine."""
    machine.write(WATCH, f"[Service]\nEnvironment=JOBSVC_WATCH={100 * slowness():.0f}\n")
    machine.run("sh", "-c", "systemctl daemon-reload && systemctl restart jobsvc.service")
    try:
        service_log(machine)
        told = inside(machine, ask_much, 4000, timeout=300)
        assert told == {"stopped": 4000, "removed": 4000}
        assert "slow callback" not in (log := service_log(machine)), log
    finally:
        machine.run("sh", "-c", f"rm -f {WATCH}; systemctl daemon-reload; systemctl restart jobsvc.service")


def test_a_configured_shutdown_waits_for_what_runs(machine: Machine) -> None:
    assert configure(machine, "[Manager]", "InhibitShutdown=delay").returncode == 0
    machine.write(PATIENT, "[Login]\nInhibitDelayMaxSec=60\n")
    machine.run("systemctl", "restart", "systemd-logind.service")
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    # It has something left to do when the shutdown begins, and then some.
    job = start(machine, "--", "sh", "-c", "echo begun; read _ <gate; sleep 3; echo done")
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout == b"begun\n")
    listed = ("systemd-inhibit", "--list", "--no-pager", "--no-legend")
    machine.wait_until(lambda: b"jobs run" in machine.run(*listed).stdout)
    machine.run("sh", "-c", "echo >gate", user="alice")
    machine.reboot()
    machine.run("rm", PATIENT, "/home/alice/gate")
    told = status(machine, job)
    assert (told["result"], jobctl(machine, "logs", job).stdout) == ("success", b"begun\ndone\n")
    machine.wait_until(lambda: b"jobs run" not in machine.run(*listed).stdout)
    job = start(machine, "--", "sleep", "600")
    in_state(machine, job, "running")
    assert configure(machine, "[Manager]", "InhibitShutdown=block").returncode == 0
    machine.wait_until(lambda: b"block" in machine.run(*listed).stdout)
    assert jobctl(machine, "stop", job).returncode == 0
    machine.wait_until(lambda: b"jobsvc" not in machine.run(*listed).stdout, what="the lock to go")


def spend_a_budget() -> list[Any]:
    """A job with 9 tasks, a second of the same user, one of another's; then two that want all there is of the CPU."""
    bus = Bus()  # noqa: F821
    crowd = ("sh", "-c", "for i in $(seq 8); do sleep 600 & done; echo all; wait")
    alice, bob = {"User": ("s", "alice")}, {"User": ("s", "bob")}
    first = bus.start(*crowd, **alice)
    while bus.logs(first) != b"all\n":
        pass
    second = bus.start(*crowd, **alice)
    result = bus.until_ended(second)[second]["Result"]
    complaint = bus.logs(second, Stream=("s", "stderr")).decode()
    theirs = bus.start(*crowd, **bob)
    while bus.logs(theirs) != b"all\n":
        pass
    bus.call("StopMany", "asa{sv}", [first, theirs], {})
    bus.until_ended(first, theirs)
    spin = [bus.start("sh", "-c", "while :; do :; done", RuntimeMaxUSec=("t", 6_000_000), **alice) for _ in range(2)]
    ends = bus.until_ended(*spin).values()
    used = sum(end["Usage"]["CPUUsageNSec"][1] for end in ends) / 1e9
    seconds = (max(end["FinishedTimestamp"] for end in ends) - min(end["StartedTimestamp"] for end in ends)) / 1e6
    return [result, complaint, used, seconds]


@pytest.mark.one_suite
def test_a_users_slice_bounds_all_jobs_together(vm: VM) -> None:
    """The drop-in of jobsvcd(8): BUDGETS."""
    folder = "/etc/systemd/system/jobsvc-u1000.slice.d"
    vm.write(f"{folder}/50-budget.conf", "[Slice]\nTasksMax=12\nCPUQuota=50%\n")
    vm.run("systemctl", "daemon-reload")
    try:
        result, complaint, used, seconds = inside(vm, spend_a_budget, user="root", timeout=200)
        assert result == "exit-code"
        assert "fork" in complaint
        assert 0 < used < 0.5 * seconds * 1.25
    finally:
        vm.run("rm", "-r", folder)
        vm.run("systemctl", "daemon-reload")


@pytest.mark.one_suite
def test_a_clock_that_jumps_ahead_removes_nothing_at_once(vm: VM) -> None:
    assert configure(vm, "[Manager]", "KeepFinishedSec=1d").returncode == 0
    job = start(vm, "--", "true")
    ended(vm, job)
    now = int(vm.run("date", "+%s").stdout)
    try:
        vm.run("date", "-s", f"@{now + 400 * 86400}")
        for verb in ("reload", "restart", "restart"):
            vm.run("systemctl", verb, "jobsvc")
        assert status(vm, job)["result"] == "success"
    finally:
        vm.run("date", "-s", f"@{now + 5}")
