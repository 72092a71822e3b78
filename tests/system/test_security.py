"""What confines the service, and that nothing of it, nor anything else, confines or frees a job."""

import json
import os
import re
import signal
import socket
import time
from typing import Any

import pytest
from story import inside, jobctl, start, status, systemctl

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

CONF = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"


def test_what_still_exposes_the_service_is_explained_in_its_unit(machine: Machine) -> None:
    """At most 1.0 (of 10) on Debian 13; and every point that counts has its reason in the unit."""
    told = machine.run("systemd-analyze", "security", "--no-pager", "jobsvc.service").stdout.decode()
    found = re.search(r"level for jobsvc.service: ([0-9.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= (1.0 if machine.suite != "bookworm" else 1.2), told
    unit = systemctl(machine, "cat", "jobsvc.service")
    reasons = "\n".join(line for line in unit.splitlines() if line.startswith("#"))
    points = [line.split()[1] for line in told.splitlines() if line.startswith("✗")]
    assert points
    for point in points:
        for name in point.replace("/", " ").split():
            assert name in reasons, f"{point} is not explained"


# What a command finds around itself. Numbers that are each process's own are left out.
AROUND = """
import ctypes, json, os, resource, signal, sys
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return error.strerror
status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
own = "Name Umask Pid PPid Tgid Ngid NStgid NSpid NSpgid NSsid voluntary_ctxt_switches nonvoluntary_ctxt_switches SigQ"
own = (*own.split(), *(name for name in status if name.startswith(("Vm", "Rss", "Hugetlb"))))
found = {f"status {n}": v.strip() for n, v in status.items() if n not in own}
found |= {f"limit {line[:26].strip()}": line[26:].strip() for line in read("/proc/self/limits").splitlines()[1:]}
found |= {f"namespace {n}": os.readlink(f"/proc/self/ns/{n}") for n in os.listdir("/proc/self/ns")}
found["mounts"] = read("/proc/self/mounts")
found["oom_score_adj"] = read("/proc/self/oom_score_adj").strip()
found["coredump_filter"] = read("/proc/self/coredump_filter").strip()
found["loginuid"] = read("/proc/self/loginuid").strip()
found["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
found["scheduler"] = os.sched_getscheduler(0)
found["cpus"] = sorted(os.sched_getaffinity(0))
found["umask"] = oct(os.umask(0))
found["fds"] = sorted(os.listdir("/proc/self/fd"))[:-1]
found["stdin"] = os.readlink("/proc/self/fd/0")
found["leader of its session"] = os.getsid(0) == os.getpid()
found["terminal"] = os.path.exists("/dev/tty") and read("/dev/tty")
found["directory"] = os.getcwd()
found["keyrings"] = sorted(line.split()[-2] for line in read("/proc/keys").splitlines())
found["ids"] = [os.getresuid(), os.getresgid(), sorted(os.getgroups())]
found["personality"] = read("/proc/self/personality").strip()
found["timerslack"] = read("/proc/self/timerslack_ns").strip()
found["group"] = read("/proc/self/cgroup").strip()
found |= {f"environment {name}": value for name, value in os.environ.items()}
print(json.dumps(found))
"""

# Where a job is unlike a command of cron's, and why.
DIFFERENCES = {
    "status CapInh": "a container's manager may leave some to its services; a job inherits none",
    "group": "a scope of its own is what a job is",
    "environment JOBSVC_ID": "so that it knows who it is",
    "environment JOBSVC_RUN": "so that it knows who it is",
    "environment JOBSVC_NAME": "so that it knows who it is",
    "environment PATH": "login's, not cron's short one",
    "environment USER": "login(1) sets it, cron LOGNAME only",
    "environment SHELL": "the user's own, where cron says /bin/sh",
    "environment PWD": "cron's shell sets it",
    "environment SHLVL": "cron's shell sets it",
    "environment OLDPWD": "cron's shell sets it",
    "environment _": "cron's shell sets it",
    "environment LC_CTYPE": "Python sets it for itself where no language is set",
    "stdin": "/dev/null, where cron gives a pipe",
    "leader of its session": "it is executed itself, cron has a shell around it",
    "keyrings": "a session keyring of its own; cron's jobs share one",
    "fds": "cron leaves none open either; the numbers are those of the probe",
}


def test_a_job_finds_what_a_command_of_crons_finds(machine: Machine) -> None:
    """status, limits, namespaces, keyring, mounts, environment: every difference is known and has a reason."""
    machine.write("/usr/local/bin/around", f"#!/usr/bin/python3\n{AROUND}", mode=0o755)
    machine.write("/etc/cron.d/story", "@reboot alice /usr/local/bin/around > /home/alice/around.cron 2>&1\n")
    try:
        # Without this file cron takes its own start for one of the machine, and does not wait for a full minute.
        machine.run("rm", "-f", "/run/crond.reboot")
        systemctl(machine, "restart", "cron.service")
        done = jobctl(machine, "run", "-d", "/home/alice", "--", "/usr/local/bin/around")
        assert done.returncode == 0, done
        job = json.loads(done.stdout)
        written = ("grep", "-qs", "}$", "/home/alice/around.cron")
        machine.wait_until(lambda: machine.run(*written, check=False).returncode == 0, what="cron to run it")
        cron = json.loads(machine.read("/home/alice/around.cron"))
    finally:
        machine.run("rm", "-f", "/etc/cron.d/story", "/home/alice/around.cron", "/usr/local/bin/around")
    different = {
        name: (cron.get(name), job.get(name))
        for name in {*cron, *job}
        if cron.get(name) != job.get(name) and name not in DIFFERENCES
    }
    assert different == {}
    assert (job["leader of its session"], job["stdin"], job["status NoNewPrivs"]) == (True, "/dev/null", "0")


def touched(times: int) -> list[list[str]]:
    bus = Bus()  # noqa: F821
    jobs = [bus.start("touch", "/tmp/expired") for _ in range(times)]
    return [[end["Result"], end["Reason"]] for end in bus.until_ended(*jobs).values()]


def test_an_account_that_has_expired_starts_nothing(machine: Machine) -> None:
    machine.run("usermod", "-L", "-e", "1", "bob")
    try:
        # PAM says no while PID 1 makes the scope: in some before, in some after.
        for result, reason in inside(machine, touched, 10, user="bob"):
            assert (result, "expired" in reason) == ("start-failed", True), reason
        done = jobctl(machine, "run", "--", "touch", "/tmp/expired", user="bob")
        assert (done.returncode, b"expired" in done.stderr) == (125, True), done
        assert not machine.exists("/tmp/expired")
    finally:
        machine.run("usermod", "-U", "-e", "", "bob", check=False)
        machine.run("usermod", "-e", "", "bob")
    assert jobctl(machine, "run", "--", "true", user="bob").returncode == 0


def test_a_locked_password_and_a_notice_against_logins_are_about_logins(machine: Machine) -> None:
    """As for cron: what keeps somebody from logging in keeps no job from running. An expired account does."""
    machine.run("usermod", "-p", "x", "bob")
    machine.run("usermod", "-L", "bob")
    machine.write("/etc/nologin", "not now\n")
    try:
        assert jobctl(machine, "run", "--", "id", "-un", user="bob").stdout == b"bob\n"
    finally:
        machine.run("rm", "/etc/nologin")
        machine.run("usermod", "-p", "!", "bob")


def test_what_limits_conf_says_holds_and_only_an_administrator_goes_beyond(machine: Machine) -> None:
    machine.write(
        "/etc/security/limits.d/60-story.conf", "carol hard nproc 321\ncarol hard nofile 123\ndave hard nofile 123\n"
    )
    try:
        show = ("bash", "-c", "ulimit -Hu; ulimit -Hn")
        assert jobctl(machine, "run", "--", *show, user="carol").stdout == b"321\n123\n"
        done = jobctl(machine, "run", "-p", "LimitNOFILE=99", "--", "sh", "-c", "ulimit -Hn", user="carol")
        assert done.stdout == b"99\n"
        for beyond in ("LimitNOFILE=124", "LimitNPROC=infinity"):
            done = jobctl(machine, "run", "-p", beyond, "--", *show, user="carol")
            assert (done.returncode, done.stdout) == (125, b""), done
            assert "hard limit" in status(machine, user="carol")["reason"]
        done = jobctl(machine, "run", "-p", "LimitNOFILE=124", "--", "sh", "-c", "ulimit -Hn", user="dave")
        assert (done.returncode, done.stdout) == (0, b"124\n"), done
    finally:
        machine.run("rm", "/etc/security/limits.d/60-story.conf")


HANGING = """session [success=ignore default=1] pam_succeed_if.so quiet user = bob
session required pam_exec.so /usr/bin/sleep 600
"""


def test_a_pam_module_that_hangs_costs_its_own_job_alone(machine: Machine) -> None:
    before = machine.read("/etc/pam.d/jobsvc")
    machine.write("/etc/pam.d/jobsvc", before + HANGING.encode())
    machine.write(CONF, "[Manager]\nStartTimeoutSec=6s\n")
    systemctl(machine, "reload", "jobsvc.service")
    try:
        hung = [start(machine, "--", "true", user="bob") for _ in range(3)]
        for _ in range(3):
            assert jobctl(machine, "run", "--", "echo", "here").stdout == b"here\n"
        for job in hung:
            machine.wait_until(lambda job=job: status(machine, job, user="bob")["result"], what="the start timeout")
            told = status(machine, job, user="bob")
            assert (told["state"], told["result"]) == ("failed", "start-failed")
            assert "StartTimeoutSec=" in told["reason"]
    finally:
        machine.write("/etc/pam.d/jobsvc", before)
        machine.run("sh", "-c", f"rm {CONF}; pkill -x sleep || true")
        systemctl(machine, "reload", "jobsvc.service")
    assert jobctl(machine, "run", "--", "true", user="bob").returncode == 0


def slow(who: list[str]) -> dict[str, Any]:
    """Jobs while a name service (nscd's protocol) has no answer about one user, and none to give about others."""
    import struct
    import subprocess
    import threading

    os.makedirs("/run/nscd", exist_ok=True)
    server, kept, users = socket.socket(socket.AF_UNIX), [], {}
    with open("/etc/passwd") as file:
        for line in file:
            name, word, uid, gid, *rest = line.strip().split(":")
            users[name] = users[uid] = (name, word, int(uid), int(gid), *rest)
    server.bind("/run/nscd/socket")
    os.chmod("/run/nscd/socket", 0o666)
    server.listen(100)

    def serve() -> None:
        while True:
            client, _ = server.accept()
            asked = client.recv(4096)
            _, kind, size = struct.unpack("iii", asked[:12])
            key = asked[12 : 12 + size].rstrip(b"\0").decode()
            if key in who:
                kept.append(client)  # for ever
                continue
            if kind in (0, 1) and key in users:  # else libc would ask it about nobody any more
                name, word, uid, gid, *rest = users[key]
                texts = [text.encode() + b"\0" for text in (name, word, *rest)]
                sizes = [len(text) for text in texts]
                client.send(struct.pack("4i2I3i", 2, 1, *sizes[:2], uid, gid, *sizes[2:]) + b"".join(texts))
            client.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        # Who has once been without such a service does not try it again for a while.
        subprocess.run(["systemctl", "restart", "jobsvc-launcher.service", "jobsvc.service"], check=True)
        bus, place = Bus(), ("s", "/")  # noqa: F821
        hung = [bus.start("true", User=("s", who[0]), WorkingDirectory=place) for _ in range(3)]
        longest, others = 0.0, []
        while any("Result" not in bus.status(job) for job in hung):
            at = time.monotonic()
            others.append(bus.start("true", User=("s", "alice"), WorkingDirectory=place))
            bus.until_ended(others[-1])
            longest = max(longest, time.monotonic() - at)
        ends = [bus.status(job) for job in hung]
        return {
            "hung": [[end["Result"], end.get("Reason", "")] for end in ends],
            "others": [bus.status(job)["Result"] for job in others],
            "longest": longest,
            "asked": len(kept),
        }
    finally:
        os.unlink("/run/nscd/socket")


def test_a_user_database_that_hangs_costs_the_job_it_is_asked_for_and_no_other(machine: Machine) -> None:
    machine.write(CONF, "[Manager]\nStartTimeoutSec=3s\n")  # libc itself gives up after five
    try:
        told = inside(machine, slow, ["bob", "1001"], user="root", timeout=90)
    finally:
        machine.run("rm", "-f", "/run/nscd/socket", CONF)
        systemctl(machine, "restart", "jobsvc-launcher.service", "jobsvc.service")
    assert told["asked"] >= 3, told
    for result, reason in told["hung"]:
        assert (result, "StartTimeoutSec=" in reason) == ("start-failed", True), told
    assert set(told["others"]) == {"success"}
    assert told["longest"] < 6, told  # three of three seconds, one after the other, would be 9
    assert jobctl(machine, "run", "--", "true", user="bob").returncode == 0


def without_pid_1(hers: str) -> dict[str, Any]:
    """What is answered while PID 1 is not, and how long the longest answer took.

    Root is asked nothing, and nobody is for what is one's own to see; polkitd itself asks PID 1 about others.
    """
    bus, longest, ids = Bus(), 0.0, []  # noqa: F821
    with seen_as(1000):  # noqa: F821
        alice = Bus()  # noqa: F821
    end = time.monotonic() + 5
    while time.monotonic() < end:
        at = time.monotonic()
        ids.append(bus.start("true"))
        bus.call("List", "a{sv}", {"Limit": ("u", 10)})
        bus.call("Count", "a{sv}", {})
        held = bus.start("true", Hold=("b", True))
        bus.call("SetProperties", "sa{sv}a{sv}", held, {"Nice": ("i", 3)}, {})
        bus.call("Stop", "sa{sv}", held, {})
        told = alice.status(hers)["State"], alice.get_all(f"/org/jobsvc1/job/{hers}")["State"][1]
        assert (*told, alice.read_logs(hers)) == ("running", "running", b"here\n")
        longest = max(longest, time.monotonic() - at)
        time.sleep(0.05)  # the pace of somebody who works, not of a flood
    return {"longest": longest, "jobs": ids, "states": sorted({bus.status(job)["State"] for job in ids})}


def test_while_pid_1_does_nothing_calls_are_answered_and_afterwards_jobs_begin(machine: Machine) -> None:
    main = systemctl(machine, "show", "-P", "MainPID", "jobsvc.service")
    hers = start(machine, "--", "sh", "-c", "echo here; exec sleep 600")
    machine.wait_until(lambda: jobctl(machine, "logs", hers).stdout == b"here\n")
    assert machine.leader is not None
    os.kill(machine.leader, signal.SIGSTOP)
    try:
        told = inside(machine, without_pid_1, hers, user="root")
    finally:
        os.kill(machine.leader, signal.SIGCONT)
    assert told["longest"] < 10, told  # who waits for PID 1 waits until it goes on, or for thirty
    assert set(told["states"]) <= {"queued", "starting"}
    done = jobctl(machine, "wait", *told["jobs"], user="root", timeout=120)
    assert done.returncode == 0, done
    assert jobctl(machine, "stop", hers).returncode == 0
    assert systemctl(machine, "show", "-P", "MainPID", "jobsvc.service") == main  # the watchdog was content


def test_nothing_of_the_service_can_be_changed_by_anybody_but_root(machine: Machine) -> None:
    """What the package brings and what is above it, where its state lies, and wherever Python looks for modules."""
    script = "import sys; print(*filter(None, sys.path))"
    path = machine.run("python3", "-I", "-c", script).stdout.decode().split()
    state = ["/run/jobsvc", "/var/lib/jobsvc", "/etc/jobsvc", "/usr/lib/jobsvc", "/run/systemd/journal.jobsvc"]
    look = (
        """stat -Lc '%u %a %n' $(dpkg -L jobsvc); find "$@" -maxdepth 3 ! -type l -printf '%U %m %p\\n' 2>/dev/null"""
    )
    told = machine.run("sh", "-c", look, "sh", *path, *state, check=False).stdout.decode().splitlines()
    found = {name: (owner, int(mode, 8)) for owner, mode, name in (line.split(" ", 2) for line in told)}
    assert {"/usr/bin/jobctl", "/usr/lib/python3/dist-packages/jobsvc/daemon.py", "/run/jobsvc/runs"} <= found.keys()
    del found["/usr/share/polkit-1/rules.d"]  # Debian 12 gives it to polkitd
    assert {name: facts for name, facts in found.items() if facts[0] != "0" or facts[1] & 0o022} == {}


# Named as what ours import first: whoever imports one of these has looked where it stands.
EVIL = (
    "argparse",
    "asyncio",
    "ctypes",
    "dbus_next",
    "jobsvc",
    "logging",
    "os",
    "pystemd",
    "signal",
    "socket",
    "sqlite3",
)


def test_no_module_is_taken_from_where_somebody_stands(machine: Machine) -> None:
    commands = []
    for unit in ("jobsvc.service", "jobsvc-launcher.service"):
        text = systemctl(machine, "cat", unit)
        commands += re.findall(r"^Exec\w+=(/usr/bin/python3 .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    assert all(command.startswith("/usr/bin/python3 -I -m jobsvc.") for command in commands)
    assert b"python3 -I " in machine.read("/usr/sbin/jobsvcd")
    write = 'import posix; posix.close(posix.open("/tmp/evil-ran", posix.O_CREAT, 0o666))'
    script = f"mkdir -p evil; cd evil; for m in $@; do echo '{write}' > $m.py; done"
    machine.run("sh", "-c", script, "sh", *EVIL, user="alice")
    env = {
        "PYTHONPATH": "/home/alice/evil",
        "PYTHONSTARTUP": "/home/alice/evil/os.py",
        "PYTHONHOME": "/home/alice/evil",
    }
    control = machine.run("python3", "-c", "import jobsvc", cwd="/home/alice/evil", user="alice", check=False)
    assert machine.exists("/tmp/evil-ran"), control
    machine.run("rm", "/tmp/evil-ran")
    for command in (*commands, "/usr/sbin/jobsvcd"):
        machine.run("timeout", "5", *command.split(), "--version", cwd="/home/alice/evil", env=env, check=False)
    assert not machine.exists("/tmp/evil-ran")
    machine.run("rm", "-r", "/home/alice/evil")


def test_the_service_and_the_launcher_are_never_dumped(machine: Machine) -> None:
    """Not even where an administrator raises the limit: PID 1 tells by how they end, and another one is dumped."""
    drop_in = "/run/systemd/system/jobsvc.service.d/60-story.conf"
    machine.write(drop_in, "[Service]\nLimitCORE=infinity\n")
    systemctl(machine, "daemon-reload")
    systemctl(machine, "restart", "jobsvc.service")
    options = ("-p", "WorkingDirectory=/tmp", "-p", "LimitCORE=infinity", "--unit=other")
    try:
        fault = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        machine.run("systemd-run", "--quiet", "--wait", "--collect", *options, "python3", "-c", fault, check=False)
        for unit in ("jobsvc.service", "jobsvc-launcher.service"):
            pid = systemctl(machine, "show", "-P", "MainPID", unit)
            machine.run("prlimit", "--core=unlimited:", "--pid", pid)
            machine.run("kill", "-SEGV", pid)

            def another(unit: str = unit, pid: str = pid) -> bool:
                return systemctl(machine, "show", "-P", "MainPID", unit) not in (pid, "0")

            machine.wait_until(another, what=f"{unit} to be back")
    finally:
        machine.run("sh", "-c", f"rm -f {drop_in} /tmp/core*")
        systemctl(machine, "daemon-reload")
        systemctl(machine, "restart", "jobsvc.service")
    machine.run("journalctl", "--sync")
    said = machine.run("journalctl", "-q", "-o", "cat", "-b", "_PID=1", "-g", "status=11/SEGV").stdout.decode()
    ends = re.findall("^(.*): Main process exited, code=(.*), status=11/SEGV", said, re.MULTILINE)
    assert ends[-3:] == [
        ("other.service", "dumped"),
        ("jobsvc.service", "killed"),
        ("jobsvc-launcher.service", "killed"),
    ]
    assert jobctl(machine, "run", "--", "true").returncode == 0
