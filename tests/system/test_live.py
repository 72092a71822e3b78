"""What can be done to a job while it runs: pause and resume it, signal it, change its bounds."""

import time

import pytest
from story import ended, in_state, jobctl, service, start, status, systemctl

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
CALL = ("busctl", "call", "org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager")


def call(machine: Machine, member: str, signature: str, *words: str, user: str = "alice") -> str:
    """A method as busctl calls it: what it answers, or its complaint."""
    done = machine.run(*CALL, member, signature, *words, user=user, check=False)
    return (done.stdout if done.returncode == 0 else done.stderr).decode().strip()


def counting(machine: Machine, *argv: str, script: str = COUNT) -> str:
    job = start(machine, *argv, "--", "sh", "-c", script)
    machine.wait_until(lambda: jobctl(machine, "logs", job).stdout)
    return job


def written(machine: Machine, job: str) -> int:
    return int(status(machine, job)["output"]["stdout_bytes"])


def freezer(machine: Machine, job: str) -> bool:
    return b"frozen 1" in machine.read(f"/sys/fs/cgroup{status(machine, job)['control_group']}/cgroup.events")


def test_a_paused_job_stands_still_until_it_is_resumed(machine: Machine) -> None:
    job = counting(machine)
    assert call(machine, "Pause", "sa{sv}", job, "0") == ""
    assert status(machine, job)["state"] == "paused"
    assert freezer(machine, job)
    before = written(machine, job)
    time.sleep(0.3)
    assert written(machine, job) == before
    assert call(machine, "Resume", "sa{sv}", job, "0") == ""
    assert status(machine, job)["state"] == "running"
    machine.wait_until(lambda: written(machine, job) > before + 20)
    assert jobctl(machine, "stop", job).returncode == 0
    assert ended(machine, job)["result"] == "stopped"


def test_a_pause_outlives_the_service_and_its_crash(machine: Machine) -> None:
    job = counting(machine)
    call(machine, "Pause", "sa{sv}", job, "0")
    for verb in ("restart", "kill"):
        service(machine, verb)
        assert in_state(machine, job, "paused")["state"] == "paused"
        assert freezer(machine, job)
    machine.wait_until(lambda: call(machine, "Resume", "sa{sv}", job, "0") == "", what="its supervisor to be heard")
    assert in_state(machine, job, "running")
    assert not freezer(machine, job)
    call(machine, "Pause", "sa{sv}", job, "0")
    assert jobctl(machine, "stop", job, timeout=20).returncode == 0
    assert status(machine, job)["signal"] == 15


def test_what_was_paused_while_nobody_looked_is_seen_afterwards(machine: Machine) -> None:
    job = counting(machine)
    call(machine, "Pause", "sa{sv}", job, "0")
    group = status(machine, job)["control_group"]
    systemctl(machine, "stop", "jobsvc.service")
    machine.run("sh", "-c", f"echo 0 > /sys/fs/cgroup{group}/cgroup.freeze")
    service(machine, "start")
    assert in_state(machine, job, "running")
    jobctl(machine, "stop", job)


def test_paused_time_does_not_count(machine: Machine) -> None:
    began = time.monotonic()
    job = counting(machine, "--timeout", "1h")
    assert call(machine, "Pause", "sa{sv}", job, "0") == ""
    most = time.monotonic() - began + 1
    assert set_(machine, job, "RuntimeMaxUSec", "t", str(int(most * 1e6))) == ""
    time.sleep(most + 0.5)
    assert status(machine, job)["state"] == "paused"
    assert call(machine, "Resume", "sa{sv}", job, "0") == ""
    assert ended(machine, job)["result"] == "timeout"


@pytest.mark.parametrize("whom", ["main", "all"])
def test_a_signal_wakes_a_paused_job(machine: Machine, whom: str) -> None:
    job = counting(machine)
    call(machine, "Pause", "sa{sv}", job, "0")
    call(machine, "Kill", "ssia{sv}", job, whom, "10", "0")
    told = ended(machine, job)
    assert (told["result"], told["signal"]) == ("signal", 10)


def test_a_paused_job_keeps_its_slot_and_holds_up_a_shutdown(machine: Machine) -> None:
    job = counting(machine)
    call(machine, "Pause", "sa{sv}", job, "0")
    asked = ("busctl", "get-property", "org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager", "Running")
    assert machine.run(*asked).stdout == b"u 1\n"

    def held_up() -> bool:
        return b"jobsvc" in machine.run("systemd-inhibit", "--list", "--no-pager").stdout

    machine.wait_until(held_up, what="the inhibitor")
    call(machine, "Resume", "sa{sv}", job, "0")
    machine.wait_until(lambda: not held_up(), what="the inhibitor to go")
    jobctl(machine, "stop", job)


def test_many_at_once_and_nobody_elses(machine: Machine) -> None:
    jobs = [counting(machine, "--name", "many") for _ in range(3)]
    other = start(machine, "--name", "many", "--", "sleep", "60", user="bob")
    in_state(machine, other, "running", user="bob")
    answer = call(machine, "PauseMany", "asa{sv}", "0", "1", "Name", "s", "many")
    assert answer.count('"" ""') == 3
    assert other not in answer
    assert {status(machine, job)["state"] for job in jobs} == {"paused"}
    assert "NoSuchJob" in call(machine, "PauseMany", "asa{sv}", "1", other, "0")
    assert "no job" in call(machine, "Pause", "sa{sv}", other, "0")
    assert call(machine, "ResumeMany", "asa{sv}", "0", "1", "Name", "s", "many").count('"" ""') == 3
    assert call(machine, "KillMany", "assia{sv}", "0", "all", "9", "1", "Name", "s", "many").count('"" ""') == 3
    assert {ended(machine, job)["signal"] for job in jobs} == {9}
    assert status(machine, other, user="bob")["state"] == "running"
    jobctl(machine, "stop", other, user="bob")


def test_what_does_not_run_is_not_paused(machine: Machine) -> None:
    job = start(machine, "--", "true")
    ended(machine, job)
    for member in ("Pause", "Resume"):
        assert "only a running job" in call(machine, member, "sa{sv}", job, "0")


def set_(machine: Machine, job: str, *words: str, user: str = "alice") -> str:
    """SetProperties with words as busctl takes them, by three: key, type, value."""
    return call(machine, "SetProperties", "sa{sv}a{sv}", job, str(len(words) // 3), *words, "0", user=user)


def test_the_run_time_of_a_running_job_can_be_changed(machine: Machine) -> None:
    job = counting(machine, "--timeout", "1h", script="trap '' TERM; " + COUNT)
    assert set_(machine, job, "RuntimeMaxUSec", "t", "1500000", "TimeoutStopUSec", "t", "300000") == ""
    service(machine, "kill")  # it is the supervisor's by now
    told = ended(machine, job)
    assert (told["result"], told["signal"]) == ("timeout", 9)
    assert told["limits"]["runtime_max_usec"] == 1_500_000
    assert told["limits"]["timeout_stop_usec"] == 300_000
    jobctl(machine, "restart", job)  # a new run has them, too
    assert ended(machine, job)["result"] == "timeout"


def test_what_cannot_be_changed_is_refused_and_nothing_is(machine: Machine) -> None:
    job = counting(machine)
    unit = status(machine, job)["unit"]
    before = systemctl(machine, "show", "-P", "MemoryMax", "-P", "AllowedCPUs", unit)
    for path in ("/proc", "/root/secret"):
        asked = ("2", "MemoryMax", "t", "1000000000", "IOReadBandwidthMax", "a(st)", "1", path, "1000000", "0")
        assert path in call(machine, "SetProperties", "sa{sv}a{sv}", job, *asked)
    assert systemctl(machine, "show", "-P", "MemoryMax", "-P", "AllowedCPUs", unit) == before
    assert status(machine, job)["limits"].get("memory_max") is None
    for words in (("Nice", "i", "5"), ("Environment", "as", "0"), ("Name", "s", "x")):
        assert f"{words[0]} cannot be changed while job {job} runs" in call(
            machine, "SetProperties", "sa{sv}a{sv}", job, "1", *words, "0"
        )
    assert "User of a job cannot be changed" in set_(machine, job, "User", "s", "root")
    assert "must be" in set_(machine, job, "RuntimeMaxUSec", "t", "0")
    assert "unknown key" in set_(machine, job, "Memory", "t", "1")
    jobctl(machine, "stop", job)


def test_beyond_the_ceilings_is_asked_of_polkit(machine: Machine) -> None:
    job = counting(machine)
    assert "Access denied" in set_(machine, job, "TimeoutStopUSec", "t", "3600000000")
    assert "Access denied" in set_(machine, job, "CPUWeight", "t", "1000")
    assert status(machine, job)["limits"]["timeout_stop_usec"] == 90_000_000
    assert "no job" in set_(machine, job, "RuntimeMaxUSec", "t", "1000000", user="bob")
    assert set_(machine, job, "RuntimeMaxUSec", "t", "3600000000", user="dave") == ""
    jobctl(machine, "stop", job)


def test_a_paused_job_does_not_outlive_its_supervisor(machine: Machine) -> None:
    job = counting(machine)
    call(machine, "Pause", "sa{sv}", job, "0")
    unit = status(machine, job)["unit"]
    script = (
        f"for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null | grep -q {job}-1/lock && kill -9 ${{p#/proc/}}; done; true"
    )
    machine.run("sh", "-c", script)
    assert ended(machine, job)["result"] == "lost"
    machine.wait_until(lambda: systemctl(machine, "list-units", "--plain", "--no-legend", unit) == "")
