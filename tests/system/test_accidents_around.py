"""What the service stands on breaks while it works: PID 1, polkit, the bus; and users come and go."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from story import ended, in_state, inside, jobctl, service, start, status
from story import systemctl as control
from test_restart import exit_codes

from machine import nspawn, scale
from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

DROP_IN = "/run/systemd/system/jobsvc.service.d/story.conf"
TIMES = scale.times(4, 25)  # of each
DEAF_A_WHILE = "trap 'echo bye; sleep 0.2; exit 7' TERM; echo on; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def machine(suite: str, deb: Path) -> Iterator[Machine]:
    """A machine of its own: without its bus logind and others are not what they were, for as long as it is up."""
    with nspawn.installed(suite, deb) as machine:
        yield machine


def submit() -> list[str]:
    """Short jobs one by one; who is refused because polkit is away, or gets no answer, asks again with the same key."""
    jobs = []
    bus = Bus()  # noqa: F821
    while os.path.exists("going"):  # noqa: F821
        n = len(jobs)
        script = f"echo {n} >> ran; echo out {n}; echo err {n} >&2; sleep 0.0{n % 7}; exit {n % 256}"
        keys = {"Command": ("as", ["sh", "-c", script]), "RequestId": ("s", f"around-{n}-{os.getpid()}")}  # noqa: F821
        for _ in range(1000):
            try:
                jobs.append(bus.call("Start", "a{sv}", keys)[0])
                break
            except (Refused, TimeoutError) as error:  # noqa: F821
                if getattr(error, "name", "NoReply") not in ("AccessDenied", "NoReply", "ServiceUnknown"):
                    raise
    return jobs


def break_around(times: int, seed: int) -> dict[str, int]:
    """Each so many times, in any order; counted is what has been seen to have happened."""
    names = ("daemon-reexec", "daemon-reload", "polkit.service", "jobsvc-launcher.service")
    wanted, seen = [name for name in names for _ in range(times)], dict.fromkeys(names, 0)
    random.Random(seed).shuffle(wanted)  # noqa: F821

    def said(name: str) -> int:
        subprocess.run(["journalctl", "--sync"], check=True)  # noqa: F821
        asked = ["journalctl", "-q", "-o", "cat", "-b", "_PID=1"]
        log = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: F821
        return log.count({"daemon-reexec": "\nReexecuting.", "daemon-reload": "\nReloading."}[name])

    before = {name: said(name) for name in names[:2]}
    for name in wanted:
        if name.startswith("daemon"):
            systemctl(name)  # noqa: F821
        else:
            systemctl("start", name)  # noqa: F821
            pid = systemctl("show", "-P", "MainPID", name)  # noqa: F821
            dead = killed(int(pid))  # noqa: F821
            systemctl("start", name)  # noqa: F821
            seen[name] += dead and systemctl("show", "-P", "MainPID", name) not in ("0", pid)  # noqa: F821
    return seen | {name: said(name) - count for name, count in before.items()}


def outputs(jobs: list[str]) -> list[list[str]]:
    bus = Bus()  # noqa: F821
    return [[bus.logs(job, Stream=("s", name)).decode() for name in ("stdout", "stderr")] for job in jobs]


def kill_supervisors(phase: str, count: int, script: str, seed: int) -> dict[str, Any]:
    """Start jobs and kill as many supervisors, in this phase of theirs; how many died of it, and how the jobs ended."""
    chance, bus, dead, died = random.Random(seed), Bus(), set(), 0  # noqa: F821
    systemctl("start", "jobsvc-launcher.service")  # noqa: F821 (it may be the first to want one)
    launcher = int(systemctl("show", "-P", "MainPID", "jobsvc-launcher.service"))  # noqa: F821
    keys = {"Command": ("as", ["sh", "-c", script]), "User": ("s", "alice")}

    def supervisors() -> list[int]:
        with open("/sys/fs/cgroup/system.slice/jobsvc-launcher.service/cgroup.procs") as procs:
            found = set(map(int, procs)) - dead - {launcher}
        found = {pid for pid in found if parent(pid) == launcher}  # main processes that are held are there, too
        return chance.sample(sorted(found), len(found))

    def parent(pid: int) -> int:
        try:
            with open(f"/proc/{pid}/stat") as file:
                name, _, stat = file.read().rpartition(")")
                return 0 if name.endswith("jobsvc-porter") else int(stat.split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return 0

    asked = bus.send("StartMany", "aa{sv}a{sv}", [keys] * count, {})
    if phase != "held":
        jobs = [job for job, _ in bus.reply(asked)]
        for job in jobs:
            while bus.logs(job) != b"on\n":
                pass
    if phase == "stopping":
        bus.call("StopMany", "asa{sv}", jobs, {})
    while died < count and (phase == "held" or len(dead) < count):
        found = supervisors()
        if phase == "stopping" and not found:
            break  # the others were done before their turn came
        for pid in found:
            time.sleep(chance.uniform(0, 0.01))  # noqa: F821
            dead.add(pid)
            died += killed(pid)  # noqa: F821
    if phase == "held":  # who had not begun begins again
        jobs = [job for job, _ in bus.reply(asked)]
        bus.call("StopMany", "asa{sv}", jobs, {})
    told = bus.until_ended(*jobs)
    place = "/sys/fs/cgroup/jobsvc.slice/jobsvc-u1000.slice"
    deadline = time.monotonic() + 120  # noqa: F821
    while left := [job for job in jobs if os.path.exists(f"{place}/jobsvc-{job}-1.scope")]:  # noqa: F821
        if time.monotonic() > deadline:  # noqa: F821
            break  # PID 1 hears of an empty scope later than its supervisor
        time.sleep(0.01)  # noqa: F821
    ends = [[told[job].get(key) for key in ("Result", "ExitCode", "Signal")] for job in jobs]
    return {"died": died, "ends": ends, "left": left}


@pytest.mark.scaled
def test_jobs_come_and_go_while_pid_1_is_reloaded_and_polkit_and_the_launcher_are_killed(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f ran; touch going", user="alice")
    jobs: list[str] = []
    submitter = threading.Thread(target=lambda: jobs.extend(inside(machine, submit, timeout=200)))
    submitter.start()
    try:
        seen = inside(machine, break_around, TIMES, scale.seed(20261122), user="root", timeout=150)
    finally:
        machine.run("rm", "going", user="alice")
        submitter.join()
    assert set(seen.values()) == {TIMES}, seen
    told = inside(machine, exit_codes, jobs, timeout=110)
    wanted = range(len(jobs))
    assert told == [["exit-code" if n % 256 else "success", n % 256, 1] for n in wanted]
    assert inside(machine, outputs, jobs, timeout=300) == [[f"out {n}\n", f"err {n}\n"] for n in wanted]
    assert sorted(map(int, machine.run("cat", "ran", user="alice").stdout.split())) == list(wanted)


@pytest.mark.scaled
@pytest.mark.parametrize("phase", ["held", "running", "stopping"])
def test_a_job_whose_supervisor_is_killed_is_lost_or_its_true_end_is_known(machine: Machine, phase: str) -> None:
    told = inside(machine, kill_supervisors, phase, TIMES, DEAF_A_WHILE, scale.seed(20261122), user="root")
    ends, known = [tuple(end) for end in told["ends"]], ("stopped", 7, None)
    assert told["left"] == []
    match phase:
        case "running":
            assert told["died"] == TIMES
            assert ends == [("lost", None, None)] * TIMES
        case "stopping":
            assert set(ends) <= {("lost", None, None), known}
            assert ends.count(("lost", None, None)) <= told["died"]
        case "held":
            assert told["died"] >= TIMES
            never = ("stopped", None, None)
            unable = ("start-failed", None, None)  # it was killed before it could say that it was there
            assert set(ends) <= {("lost", None, None), known, never, unable, ("stopped", None, 15)}
    assert machine.run("pgrep", "-f", "trap 'echo bye", check=False).stdout == b""


def test_the_bus_dies_and_no_job_notices(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    script = "exec 3<>gate; echo in; read x <&3; echo out; exit {code}"
    jobs = [start(machine, "--", "sh", "-c", script.format(code=code)) for code in (21, 22, 23)]
    for job in jobs:
        in_state(machine, job, "running")

    def breaks() -> int:
        """Nobody calls the service, it is back by itself; PID 1 is asked, by its own socket."""
        times = 0
        for _ in range(3):
            before, bus = (systemctl("show", "-P", "MainPID", name) for name in ("jobsvc.service", "dbus.service"))  # noqa: F821
            times += killed(int(bus))  # noqa: F821
            deadline = time.monotonic() + 360  # noqa: F821
            while True:
                state = systemctl("show", "-P", "ActiveState", "-P", "MainPID", "jobsvc.service").split()  # noqa: F821
                if "active" in state and before not in state:
                    break
                assert time.monotonic() < deadline, state  # noqa: F821
                time.sleep(0.05)  # noqa: F821
        return times

    assert inside(machine, breaks, user="root", timeout=200) == 3
    machine.run("sh", "-c", "echo >gate; echo >gate; echo >gate", user="alice")
    assert [ended(machine, job)["exit_code"] for job in jobs] == [21, 22, 23]
    assert [jobctl(machine, "logs", job).stdout for job in jobs] == [b"in\nout\n"] * 3
    assert jobctl(machine, "run", "--", "sh", "-c", "exit 4").returncode == 4


def test_a_service_that_hangs_is_replaced_and_no_job_notices(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -f gate; mkfifo gate", user="alice")
    machine.write(DROP_IN, "[Service]\nWatchdogSec=5s\n")
    control(machine, "daemon-reload")
    service(machine, "restart")
    try:
        job = start(machine, "--", "sh", "-c", "exec 3<>gate; echo in; read x <&3; echo out; exit 21")
        in_state(machine, job, "running")
        hung = control(machine, "show", "-P", "MainPID", "jobsvc.service")
        control(machine, "kill", "--kill-whom=main", "--signal=STOP", "jobsvc.service")
        machine.run("sh", "-c", "echo >gate", user="alice")  # it ends while nobody looks
        told = ended(machine, job, timeout=120)
        assert (told["result"], told["exit_code"], told["run"]) == ("exit-code", 21, 1)
        assert jobctl(machine, "logs", job).stdout == b"in\nout\n"
        assert control(machine, "show", "-P", "MainPID", "jobsvc.service") != hung
    finally:
        machine.run("rm", DROP_IN)
        control(machine, "daemon-reload")
        service(machine, "restart")


def test_who_gets_the_number_of_a_deleted_user_gets_nothing_else(machine: Machine) -> None:
    machine.run("useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1099", "erin")
    secret = start(machine, "--", "echo", "secret", user="erin")
    assert ended(machine, secret, user="erin")["result"] == "success"
    machine.run("userdel", "--remove", "erin")
    machine.run("useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1099", "frank")
    try:
        assert json.loads(jobctl(machine, "-o", "json", "list", user="frank").stdout) == []
        for asked in (("status", secret), ("logs", secret), ("restart", secret), ("remove", secret), ("stop", secret)):
            done = jobctl(machine, "--no-ask-password", *asked, user="frank")
            assert (done.returncode, done.stdout) == (4, b""), done
        assert status(machine, secret, user="root")["owner"] == "erin"
        own = start(machine, "--", "echo", "mine", user="frank")
        assert ended(machine, own, user="frank")["result"] == "success"
        listed = json.loads(jobctl(machine, "-o", "json", "list", user="frank").stdout)
        assert [job["id"] for job in listed] == [own]
        assert jobctl(machine, "logs", own, user="frank").stdout == b"mine\n"
    finally:
        machine.run("userdel", "--remove", "frank")


def test_a_user_is_deleted_while_a_job_of_theirs_runs_and_another_waits(machine: Machine) -> None:
    machine.run("useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1098", "gina")
    running = start(
        machine, "--", "sh", "-c", "trap 'echo bye; exit 6' TERM; echo on; while :; do sleep 0.1; done", user="gina"
    )
    began = ("--", "sh", "-c", "echo began > /var/tmp/gina-began")
    held, waiting = (start(machine, *when, *began, user="gina") for when in (["--hold"], ["--after", f"{running}:any"]))
    machine.wait_until(lambda: jobctl(machine, "logs", running, user="root").stdout == b"on\n")
    machine.run("userdel", "--force", "--remove", "gina")
    assert status(machine, running, user="root")["state"] == "running"
    # What the manual says to do before the number is given away.
    done = jobctl(machine, "release", held, user="root")  # asked like a start
    assert (done.returncode, b"there is no user" in done.stderr) == (2, True), done
    assert jobctl(machine, "stop", held, user="root").returncode == 0
    control(machine, "stop", "jobsvc-u1098.slice")
    told = ended(machine, running, user="root")
    assert (told["result"], told["exit_code"], told["owner"]) == ("exit-code", 6, "gina")
    told = ended(machine, waiting, user="root")
    assert (told["result"], "gina" in told["reason"]) == ("start-failed", True), told["reason"]
    assert not machine.exists("/var/tmp/gina-began")
    logs = jobctl(machine, "logs", running, user="root")
    assert (logs.returncode, logs.stdout) == (0, b"on\nbye\n")
    machine.run("journalctl", "--namespace=jobsvc", "--rotate")
    machine.run("sh", "-c", "rm -f /var/log/journal/*.jobsvc/user-1098*.journal")
    logs = jobctl(machine, "logs", running, user="root")
    assert (logs.returncode, logs.stdout) == (1, b"")
    assert b"bytes 0 to 7 of stdout are missing" in logs.stderr
    assert jobctl(machine, "run", "--", "echo", "fine").stdout == b"fine\n"
