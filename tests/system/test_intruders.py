"""From inside a job, and with what can be asked of one, nobody gets at root or at anybody else."""

import json
from typing import Any

import pytest
from story import ended, in_state, inside, jobctl, start, status

from machine import scale
from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

SECRET = "s3cr3t-w0rd"
MEAN = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\r\nforged\x00".replace("\0", "")


def job(machine: Machine, source: str, *argv: str, user: str = "alice") -> Any:
    """Run Python in a job and return what it prints as JSON."""
    done = jobctl(machine, "run", *argv, "--", "python3", "-c", source, user=user, timeout=120)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


ATTACKS = """
import ctypes, errno, glob, json, os, signal, socket, sys
parent = os.getppid()
told = {}
def tried(name, attack):
    try:
        told[name] = repr(attack())
    except OSError as error:
        told[name] = errno.errorcode[error.errno]
def connect(path, kind=socket.SOCK_SEQPACKET):
    socket.socket(socket.AF_UNIX, kind).connect(path)
def ptrace(request):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, parent, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
group = open("/proc/self/cgroup").read().strip().partition("::")[2]
home = "/sys/fs/cgroup" + group
tried("attach", lambda: ptrace(16))
tried("seize", lambda: ptrace(0x4206))
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, 0):
    tried(f"signal {number:d}", lambda: os.kill(parent, number))
for name in ("mem", "environ", "maps", "fd", "root", "cwd", "exe", "io", "ns/mnt", "auxv", "stack"):
    path = f"/proc/{parent}/{name}"
    tried(name, lambda: os.listdir(path) if name == "fd" else os.readlink(path) if "/" in name
          or name in ("root", "cwd", "exe") else open(path, "rb").read(1))
tried("oom", lambda: write(f"/proc/{parent}/oom_score_adj", "1000"))
tried("own oom", lambda: write("/proc/self/oom_score_adj", "-1"))
tried("launcher", lambda: connect("/run/jobsvc/launcher.sock"))
tried("runs", lambda: os.listdir("/run/jobsvc/runs"))
tried("control", lambda: connect(glob.escape(f"/run/jobsvc/runs/{os.environ['JOBSVC_ID']}-1/control")))
tried("request", lambda: open(f"/run/jobsvc/runs/{os.environ['JOBSVC_ID']}-1/request"))
tried("state", lambda: os.listdir("/var/lib/jobsvc"))
tried("database", lambda: open("/var/lib/jobsvc/jobs.db", "rb"))
tried("leave", lambda: write("/sys/fs/cgroup/cgroup.procs", "0"))
tried("leave up", lambda: write(os.path.dirname(home) + "/cgroup.procs", "0"))
tried("join launcher", lambda: write("/sys/fs/cgroup/system.slice/jobsvc-launcher.service/cgroup.procs", "0"))
tried("limits", lambda: write(home + "/cgroup.freeze", "0"))
tried("child group", lambda: os.mkdir(home + "/mine"))
tried("become root", lambda: os.setuid(0))
tried("groups", lambda: os.setgroups([0]))
tried("terminal", lambda: open("/dev/tty"))
tried("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
told["fds"] = sorted(os.listdir("/proc/self/fd"))[:-1]
told["session"] = os.getsid(0) == os.getpid()
told["writable"] = [p for p in ("/run/jobsvc", "/var/lib/jobsvc", "/etc/jobsvc", "/usr/lib/jobsvc")
                    if os.access(p, os.W_OK)]
json.dump(told, sys.stdout)
"""


def test_nothing_of_the_service_is_within_a_jobs_reach(machine: Machine) -> None:
    told = job(machine, ATTACKS)
    assert (told.pop("fds"), told.pop("session"), told.pop("writable")) == (["0", "1", "2"], True, [])
    assert told.pop("terminal") == "ENXIO"
    refused = {"EPERM", "EACCES"}
    assert {name: answer for name, answer in told.items() if answer not in refused} == {}
    assert status(machine)["result"] == "success"


HOSTILE = {
    "LD_PRELOAD": "/tmp/evil.so",
    "LD_LIBRARY_PATH": "/tmp",
    "LD_AUDIT": "/tmp/evil.so",
    "PYTHONPATH": "/tmp",
    "PYTHONSTARTUP": "/tmp/evil.py",
    "PYTHONHOME": "/tmp",
    "GCONV_PATH": "/tmp",
    "GETCONF_DIR": "/tmp",
    "TZ": "/tmp/evil",
    "HOSTALIASES": "/tmp/evil",
    "NIS_PATH": "/tmp",
    "MALLOC_TRACE": "/tmp/evil",
    "BASH_ENV": "/tmp/evil",
    "IFS": "x",
    "NOTIFY_SOCKET": "/run/systemd/notify",
    "LISTEN_FDS": "1",
    "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/tmp/evil",
}


def test_what_a_user_puts_into_the_environment_reaches_the_job_alone(machine: Machine) -> None:
    machine.run("sh", "-c", "echo LD_PRELOAD DEFAULT=/tmp/evil.so > .pam_environment", user="alice")
    words = [word for name, value in HOSTILE.items() for word in ("-E", f"{name}={value}")]
    one = start(machine, *words, "--", "/bin/sleep", "600")
    pid = in_state(machine, one, "running")["main_pid"]
    given = machine.read(f"/proc/{pid}/environ").split(b"\0")
    assert {f"{name}={value}".encode() for name, value in HOSTILE.items()} <= set(given)
    supervisor = machine.run("sh", "-c", f"grep PPid /proc/{pid}/status").stdout.split()[1].decode()
    theirs = machine.read(f"/proc/{supervisor}/environ")
    assert b"evil" not in theirs
    assert b"/tmp" not in theirs
    assert b"jobsvc.launcher" in machine.read(f"/proc/{supervisor}/cmdline")
    machine.run("jobctl", "stop", one, user="alice")
    machine.run("rm", ".pam_environment", user="alice")


# What is asked for, and what the reason has to say.
PATHS: list[tuple[dict[str, Any], str]] = [
    ({"StandardOutput": ("s", "truncate:/home/alice/link")}, "symbolic links"),
    ({"StandardOutput": ("s", "truncate:/home/alice/hard")}, "Permission denied"),
    ({"StandardOutput": ("s", "append:/home/alice/fifo")}, "No such device or address|not a regular file"),
    ({"StandardOutput": ("s", "append:/dev/null")}, "not a regular file"),
    ({"StandardOutput": ("s", "append:/dev/kmsg")}, "not permitted|denied|not a regular file"),
    ({"StandardOutput": ("s", "truncate:/etc/shadow")}, "Permission denied"),
    ({"StandardError": ("s", "append:/root/x")}, "Permission denied"),
    ({"StandardError": ("s", "append:/home/bob/x")}, "Permission denied"),
    ({"StandardError": ("s", "append:/var/lib/jobsvc/jobs.db")}, "Permission denied"),
    ({"StandardError": ("s", "append:/home/alice")}, "Is a directory"),
    ({"WorkingDirectory": ("s", "/root")}, "Permission denied"),
    ({"WorkingDirectory": ("s", "/home/alice/to-root")}, "Permission denied"),
    ({"WorkingDirectory": ("s", "/home/alice/fifo")}, "Not a directory"),
    ({"IOReadBandwidthMax": ("a(st)", [("/home/alice/fifo", 1000)])}, "disk"),
    ({"IOReadBandwidthMax": ("a(st)", [("/home/alice/to-root/x", 1000)])}, "Permission denied"),
    ({"IOWriteBandwidthMax": ("a(st)", [("/proc/self/mem", 1000)])}, "disk"),
    ({"Command": ("as", ["/home/alice"])}, "Permission denied"),
    ({"Command": ("as", ["/home/alice/fifo"])}, "Permission denied"),
    ({"Command": ("as", ["/dev/null"])}, "Permission denied"),
    ({"Command": ("as", ["/etc/shadow"])}, "Permission denied"),
    ({"Command": ("as", ["/root/x"])}, "Permission denied"),
    ({"Script": ("ay", b"#!/home/alice/fifo\ntrue\n")}, "Permission denied"),
    ({"Script": ("ay", b"#!/home/alice/link\ntrue\n")}, "Permission denied"),
    ({"Script": ("ay", b"#!/dev/zero\ntrue\n")}, "Permission denied"),
    ({"Script": ("ay", b"true"), "Shell": ("s", "/home/alice/fifo")}, "Permission denied"),
    ({"Script": ("ay", b"true"), "Shell": ("s", "/home/alice/hard")}, "Permission denied"),
]


def odd_files(machine: Machine) -> None:
    """What alice might have lying about."""
    script = "[ -p fifo ] || { mkfifo fifo; ln -s /etc/shadow link; ln -s /root to-root; }"
    machine.run("sh", "-c", script, user="alice")
    machine.run("ln", "-f", "/etc/shadow", "/home/alice/hard")  # she could not herself


def test_paths_are_the_users_own_to_open(machine: Machine) -> None:
    """No link, FIFO or device leads anywhere, and nothing waits for somebody to open the other end."""

    def ask(specs: list[dict[str, Any]]) -> list[list[str]]:
        bus, jobs = Bus(), []  # noqa: F821
        for keys in specs:
            if "Script" in keys:
                keys["Script"] = ("ay", bytes(keys["Script"][1], "ascii"))
            elif "Command" not in keys:
                keys["Command"] = ("as", ["true"])
            for name, (kind, value) in keys.items():
                keys[name] = (kind, [tuple(pair) for pair in value] if kind == "a(st)" else value)
            jobs.append(bus.call("Start", "a{sv}", keys)[0])
        ends = bus.until_ended(*jobs, timeout=60)
        return [[ends[job]["Result"], ends[job].get("Reason", "")] for job in jobs]

    odd_files(machine)
    look = "sha256sum /etc/shadow; stat -c %s:%a:%U /etc/shadow; ls -A /root"
    before = machine.run("sh", "-c", look).stdout
    specs = [{k: (t, v.decode() if isinstance(v, bytes) else v) for k, (t, v) in one.items()} for one, _ in PATHS]
    told = inside(machine, ask, specs, timeout=90)
    wrong = [
        (keys, result, reason)
        for (keys, why), (result, reason) in zip(PATHS, told, strict=True)
        if result != "start-failed" or not any(word in reason for word in why.split("|"))
    ]
    assert wrong == []
    assert machine.run("sh", "-c", look).stdout == before


def inputs() -> dict[str, str]:
    """Jobs whose standard input is anything but a file: what they find there."""
    import tempfile

    bus, here = Bus(), tempfile.mkdtemp()  # noqa: F821
    read, write = os.pipe()  # noqa: F821
    os.write(write, b"piped")  # noqa: F821
    os.close(write)  # noqa: F821
    ours, theirs = socket.socketpair()  # noqa: F821
    theirs.send(b"sent")
    theirs.close()
    os.mkfifo(f"{here}/fifo")  # noqa: F821
    kinds = {
        "pipe": read,
        "socket": ours.detach(),
        "fifo": os.open(f"{here}/fifo", os.O_RDONLY | os.O_NONBLOCK),  # noqa: F821
        "directory": os.open(here, os.O_DIRECTORY),  # noqa: F821
        "path": os.open("/etc/shadow", os.O_PATH),  # noqa: F821
        "device": os.open("/dev/zero", os.O_RDWR),  # noqa: F821
        "write only": os.open(f"{here}/file", os.O_WRONLY | os.O_CREAT),  # noqa: F821
        "memory": os.memfd_create("x"),  # noqa: F821
        "event": os.eventfd(0, os.EFD_NONBLOCK),  # noqa: F821
        "terminal": os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK),  # noqa: F821
    }
    script = """head -c 5 2>&1 | tr '\\0' 0
        (exec 3<>/dev/tty) 2>/dev/null && echo a terminal
        test -e /proc/self/fd/3 && echo a descriptor
        [ -f /proc/self/fd/0 ] && head -c 9 /proc/self/fd/0 2>&1 | grep root; true"""
    jobs = {}
    for what, fd in kinds.items():
        spec = {"Command": ("as", ["sh", "-c", script]), "StandardInput": ("h", fd)}
        jobs[what] = bus.call("Start", "a{sv}", spec)[0]
    bus.until_ended(*jobs.values())
    return {what: bus.logs(job).decode() for what, job in jobs.items()}


def test_standard_input_may_be_anything_its_owner_has_open(machine: Machine) -> None:
    """It is read with the rights with which it was opened, it is no terminal of the job's, and nothing waits for it."""
    told = inside(machine, inputs)
    found = {what: text.removeprefix("head: error reading 'standard input': ") for what, text in told.items()}
    assert found == {
        "pipe": "piped",
        "socket": "sent",
        "fifo": "",
        "directory": "Is a directory\n",
        "path": "Bad file descriptor\n",
        "device": "00000",
        "write only": "Bad file descriptor\n",
        "memory": "",
        "event": "Invalid argument\n",
        "terminal": "Resource temporarily unavailable\n",
    }


# What is given to `jobctl script`, and what it has to say.
SCRIPTS = {
    "link": "not readable",
    "hard": "not readable",
    "to-root/x": "does not exist|Permission denied",
    "/home/alice": "Is a directory",
    "/dev/zero": "longer than",
    "/dev/null": "is empty",
    "/proc/self/mem": "Input/output error",
    "loop": "does not exist|Too many levels of symbolic links",
}


def test_a_script_is_what_its_submitter_may_read(machine: Machine) -> None:
    odd_files(machine)
    machine.run("sh", "-c", "ln -sf loop loop; echo 'echo from $0' > text; ln -sf text to-text", user="alice")
    for name, why in SCRIPTS.items():
        done = jobctl(machine, "script", "-q", name)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), (name, done)
        assert any(word in done.stderr.decode() for word in why.split("|")), (name, done)
    # A FIFO is read as by any program: <(...) of a shell is one. What waits then is jobctl alone.
    for words in (
        "cat text > fifo & jobctl script -q fifo",
        "jobctl script -q to-text",
        "jobctl script -q <(cat text)",
    ):
        job = machine.run("bash", "-c", words, user="alice").stdout.decode().strip()
        assert ended(machine, job)["result"] == "success"
        assert jobctl(machine, "logs", job).stdout.startswith(b"from /run/jobsvc/scripts/")
    machine.run("rm", "loop", "text", "to-text", user="alice")


def test_a_setuid_program_in_a_job_is_stopped_with_it(machine: Machine) -> None:
    """It has root's rights and its owner's scope: nothing of it outlives the job."""
    machine.run("sh", "-c", "cp /bin/sleep /usr/local/bin/rootsleep; chmod 4755 /usr/local/bin/rootsleep")
    one = start(machine, "--stop-timeout", "1s", "--", "sh", "-c", "trap '' TERM; rootsleep 600 & wait; wait")
    machine.wait_until(lambda: machine.run("pgrep", "-x", "rootsleep", check=False).returncode == 0)
    assert jobctl(machine, "stop", one).returncode == 0
    machine.wait_until(lambda: machine.run("pgrep", "-x", "rootsleep", check=False).returncode == 1)
    machine.run("rm", "/usr/local/bin/rootsleep")


def test_secrets_are_shown_to_nobody(machine: Machine) -> None:
    """Environment and input: not in argv of ours, not on the bus, not in any journal; on disk for root only."""
    script = f"read word; test $word = {SECRET[::-1]} && test -n $TOKEN && echo fine; exec sleep 600"
    one = start(machine, "-i", "-E", f"TOKEN={SECRET}", "--", "sh", "-c", script, input=f"{SECRET[::-1]}\n".encode())
    machine.wait_until(lambda: jobctl(machine, "logs", one).stdout == b"fine\n")

    def look(job: str) -> str:
        bus = Bus()  # noqa: F821
        everything = [bus.status(job), bus.call("List", "a{sv}", {}), bus.get_all(f"/org/jobsvc1/job/{job}")]
        return repr(everything)

    for user in ("alice", "root"):
        told = inside(machine, look, one, user=user)
        assert one in told
        assert SECRET not in told
    find = "grep -l -a -F -f - /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null || true"
    holders = machine.run("sh", "-c", find, input=SECRET.encode()).stdout.decode().split()
    assert holders == [f"/proc/{status(machine, one)['main_pid']}/environ"]
    dump = "journalctl -q -a -o export; journalctl -q -a --namespace=jobsvc -o export"
    assert SECRET.encode() not in machine.run("sh", "-c", dump, timeout=120).stdout
    modes = "stat -c '%a %U %n' /run/jobsvc/runs /var/lib/jobsvc /var/lib/jobsvc/* /run/jobsvc/launcher.sock"
    for line in machine.run("sh", "-c", modes).stdout.decode().splitlines():
        mode, owner, name = line.split()
        assert (int(mode, 8) & 0o077, owner) == (0, "root"), name
    for unit in ("jobsvc", "jobsvc-launcher"):
        main = machine.run("systemctl", "show", "-P", "MainPID", unit).stdout.decode().strip()
        limits = machine.read(f"/proc/{main}/limits").decode()
        (core,) = [line.split()[4] for line in limits.splitlines() if line.startswith("Max core")]
        assert core == "0", unit
    machine.run("jobctl", "stop", one, user="alice")


def test_mean_characters_reach_no_terminal_and_no_dialog(machine: Machine) -> None:
    for key in ("--name", "--label", "--request-id"):
        text = f"x={MEAN}" if key == "--label" else MEAN
        done = jobctl(machine, "start", key, text, "--", "true")
        assert (done.returncode, done.stdout) == (2, b""), done
        assert not bare(done.stderr), done.stderr
    one = start(machine, "-d", "/", "-E", f"X={MEAN}", "--", "sh", "-c", 'printf "$0"; exec sleep 600', MEAN)
    machine.wait_until(lambda: b"owned" in jobctl(machine, "logs", one).stdout)
    failed = start(machine, "-d", f"/{MEAN}", "--", f"/no/{MEAN}")
    ended(machine, failed)
    for user in ("alice", "carol"):
        for words in (["status", one], ["status", failed], ["list"], ["logs", one], ["logs", "-n", "1", one]):
            shown = terminal(machine, "jobctl", *words, user=user)
            assert not bare(shown), (words, shown)
    for words in (["status", MEAN], ["stop", MEAN], ["logs", MEAN], ["list", "--name", MEAN], [MEAN], ["--" + MEAN]):
        shown = terminal(machine, "jobctl", *words, user="alice")
        assert not bare(shown), (words, shown)
    shown = terminal(machine, "jobctl", "run", "-d", f"/{MEAN}", "--", "true", user="alice")
    assert b"owned" in shown
    assert not bare(shown), shown
    machine.run("jobctl", "stop", one, user="alice")


def terminal(machine: Machine, *argv: str, user: str) -> bytes:
    """What a command shows on a terminal, without the colours and the line ends that are our own."""
    words = " ".join("'" + word.replace("'", "'\\''") + "'" for word in argv)
    env = {"NO_COLOR": "1", "SYSTEMD_PAGER": "cat", "TERM": "xterm"}
    return machine.run("script", "-qec", words, "/dev/null", user=user, env=env, check=False).stdout


def bare(shown: bytes) -> list[str]:
    """Characters that a terminal would act on, or show in another order."""
    text = shown.decode(errors="surrogateescape").replace("\r\n", "\n")
    return [char for char in text if (not char.isprintable() and char not in "\n\t")]


RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "org.jobsvc1.start-as-user" && subject.user == "alice" &&
            action.lookup("job.command") == "/usr/bin/id -u" && action.lookup("job.environment") == "" &&
            action.lookup("job.script") == "" && action.lookup("job.output") == "" &&
            action.lookup("job.group") == "0" && action.lookup("job.working-directory") == "/")
        return polkit.Result.YES; });"""


def test_a_held_job_of_roots_stays_what_was_allowed(machine: Machine) -> None:
    """alice may have root run one command. Nothing she can do afterwards makes it another one."""
    machine.write("/etc/polkit-1/rules.d/10-story.rules", RULE)
    try:
        words = ("start", "-q", "--hold", "--uid", "root", "-d", "/", "--", "/usr/bin/id", "-u")
        machine.wait_until(lambda: jobctl(machine, *words).returncode == 0, what="the rule to hold")
        one = status(machine)["id"]

        def attack(job: str) -> list[list[str]]:
            bus = Bus()  # noqa: F821
            evil = [
                {"Command": ("as", ["/bin/sh", "-c", "id -u > /root/owned"])},
                {"Command": ("as", ["/usr/bin/id", "-u", "-r"])},
                {"Environment": ("as", ["LD_PRELOAD=/home/alice/evil.so"])},
                {"StandardOutput": ("s", "truncate:/etc/owned")},
                {"Script": ("ay", b"#!/bin/sh\ntouch /root/owned\n")},
                {"Command": ("as", ["/usr/bin/id", "-u"]), "Group": ("s", "shadow")},
            ]
            told = []
            for values in evil:
                told.append(bus.refused("SetProperties", "sa{sv}a{sv}", job, values, {}))
                told.append(bus.refused("Duplicate", "sa{sv}", job, values))
                spec = {"Command": ("as", ["/usr/bin/id", "-u"]), "User": ("s", "root")} | values
                told.append(bus.refused("Start", "a{sv}", spec))
            fixed = ({"User": ("s", "bob")}, {"User": ("s", "0")}, {"Name": ("s", "x" * 129)})
            return told + [bus.refused("SetProperties", "sa{sv}a{sv}", job, values, {}) for values in fixed]

        told = inside(machine, attack, one)
        assert [
            name for name, _ in told if name not in ("InteractiveAuthorizationRequired", "AccessDenied", "InvalidSpec")
        ] == [], told
        left = status(machine, one)
        assert (left["state"], left["command"], left["user"]) == ("queued", ["/usr/bin/id", "-u"], "root")
        assert jobctl(machine, "release", one).returncode == 0
        assert ended(machine, one)["result"] == "success"
        assert jobctl(machine, "logs", one).stdout == b"0\n"
        assert jobctl(machine, "restart", one).returncode == 0
        machine.wait_until(lambda: status(machine, one)["run"] == 2)
        ended(machine, one)
        # The rule is gone: what was allowed once is a start again.
        machine.run("rm", "/etc/polkit-1/rules.d/10-story.rules")
        machine.wait_until(lambda: jobctl(machine, "restart", one).returncode == 5, what="the rule to go")
        assert jobctl(machine, "duplicate", one).returncode == 5
        assert not machine.exists("/root/owned")
        assert not machine.exists("/etc/owned")
    finally:
        machine.run("rm", "-f", "/etc/polkit-1/rules.d/10-story.rules")
    for name in json.loads(jobctl(machine, "-o", "json", "list", "--state", "queued").stdout):
        machine.run("jobctl", "stop", name["id"])
    machine.wait_until(lambda: jobctl(machine, "list").returncode == 0)


def rush(times: int, processes: int) -> int:
    """Call and leave in the same moment, from many processes, for root and for oneself; how many did."""

    def one(mine: int) -> None:
        for number in range(mine, times, processes):
            bus = Bus(fds=False)  # noqa: F821
            spec = {"Command": ("as", ["touch", f"/root/gone-{number}"]), "User": ("s", "root")}
            if number % 2:  # what would be allowed, were it asked for by somebody
                spec = {"Command": ("as", ["true"]), "Name": ("s", "gone"), "Hold": ("b", True)}
            bus.send("Start", "a{sv}", spec, flags=(0, 4)[number // 2 % 2])
            bus.connection.sock.close()

    children = []
    for mine in range(processes):
        pid = os.fork()  # noqa: F821
        if not pid:
            try:
                one(mine)
                os._exit(0)  # noqa: F821
            except BaseException as error:
                print(error, file=sys.stderr)  # noqa: F821
                os._exit(1)  # noqa: F821
        children.append(pid)
    ends = [os.waitpid(pid, 0)[1] for pid in children]  # noqa: F821
    bus = Bus()  # noqa: F821
    which = {"Name": ("s", "gone"), "State": ("as", ["queued"])}
    bus.reply(bus.send("StopMany", "asa{sv}", [], which), timeout=120)  # after what is left of all that
    return ends.count(0) * times // processes


@pytest.mark.scaled
def test_a_caller_that_is_gone_before_the_answer_gets_nothing(machine: Machine) -> None:
    """Whoever calls and leaves in the same moment is itself or nobody, never root."""
    calls = scale.times(2_000, 20_000)
    assert inside(machine, rush, calls, 10, user="bob", timeout=300) == calls
    assert machine.run("sh", "-c", "ls /root | grep -c gone || true").stdout == b"0\n"
    jobs = json.loads(jobctl(machine, "-o", "json", "list", "--name", "gone", "--limit", "0", user="root").stdout)
    assert {(job["owner"], job["user"]) for job in jobs} <= {("bob", "bob")}
