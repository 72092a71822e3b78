"""The package replaced by a later and by an earlier one, removed and purged, while jobs run."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from story import assert_nothing_left, ended, follow, in_state, inside, jobctl, line, start, status, systemctl
from test_accidents_journal import WRITER, had_or_named, wrote

from machine.nspawn import Machine

COUNT = 'i=0; while [ -e going ]; do i=$((i+1)); echo "$i"; sleep {pause}; done; echo "end $i"; exit {code}'
STREAMS = ("stdout", "stderr")
WAITS = b"jobctl: the job service is gone; waiting for it to come back"
# What a later release may well do: another table layout, another version in each packet and report.
LATER = {
    "store.py": (
        ("\nSCHEMA = 2 ", "\nSCHEMA = 3 "),
        (
            "        elif version == 1:",
            '        elif version == 2:\n            self._db.execute("ALTER TABLE jobs ADD COLUMN extra TEXT")\n'
            '            self._db.execute("PRAGMA user_version=3")\n        elif version == 1:',
        ),
    ),
    "control.py": (("VERSION: Final = 1", "VERSION: Final = 9"), ("frozenset({VERSION,", "frozenset({1, VERSION,")),
}


def later(deb: Path, place: Path) -> Path:
    """A release after this one, made from it."""
    tree = place / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 9."))
    for name, changes in LATER.items():
        path = tree / "usr/lib/python3/dist-packages/jobsvc" / name
        text = path.read_text()
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        path.write_text(text)
    built = place / "later.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, built], check=True, capture_output=True)
    return built


@pytest.fixture
def packages(machine: Machine, deb: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Where they are in the machine; afterwards it has the present one, and a state of its own making."""
    places = {"present": "/var/tmp/present.deb", "later": "/var/tmp/later.deb"}
    machine.write(places["present"], deb.read_bytes())
    machine.write(places["later"], later(deb, tmp_path).read_bytes())
    yield places
    install(machine, places["present"])
    systemctl(machine, "stop", "jobsvc.service")
    machine.run("sh", "-c", "rm -f /var/lib/jobsvc/jobs.db*")
    systemctl(machine, "start", "jobsvc.service")
    assert_nothing_left(machine)


def install(machine: Machine, package: str) -> None:
    machine.run("dpkg", "--force-downgrade", "--force-confold", "-i", package, timeout=180)


def begin(count: int, first: int, pause: str) -> list[str]:
    bus = Bus()  # noqa: F821
    script = 'i=0; while [ -e going ]; do i=$((i+1)); echo "$i"; sleep {pause}; done; echo "end $i"; exit {code}'
    texts = [script.format(pause=pause, code=code) for code in range(first, first + count)]
    jobs = many(bus, [{"Command": ("as", ["sh", "-c", text])} for text in texts])  # noqa: F821
    for job in jobs:
        while bus.status(job)["State"] != "running":
            pass
    return jobs


def ends(jobs: list[str]) -> list[list[object]]:
    bus = Bus()  # noqa: F821
    told = bus.until_ended(*jobs, timeout=100)
    return [
        [told[job]["Result"], told[job].get("ExitCode"), told[job]["Run"], bus.logs(job).decode(), told[job]["Reason"]]
        for job in jobs
    ]


def counted(text: str) -> bool:
    """Each number once, in order, and the end."""
    *lines, last = text.splitlines()
    return lines == [str(i) for i in range(1, len(lines) + 1)] and last == f"end {len(lines)}"


class Client:
    """A jobctl of alice's in the background, which nobody has to read from."""

    def __init__(self, machine: Machine, place: Path, *argv: str) -> None:
        self._files = [place.with_suffix(end) for end in (".out", ".err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self._process = machine.popen("jobctl", *argv, user="alice", stdout=out, stderr=err)

    def end(self, code: int) -> tuple[bytes, bytes]:
        """What it has said, once it has ended with this status."""
        assert self._process.wait(360) == code
        out, err = (path.read_bytes() for path in self._files)
        return out, err


def test_fifty_jobs_and_their_clients_notice_no_upgrade_downgrade_reinstallation_or_restart(
    machine: Machine, packages: dict[str, str], tmp_path: Path
) -> None:
    machine.run("touch", "going", user="alice")
    writers = [start(machine, "--", "python3", "-c", WRITER, "0.01") for _ in range(5)]
    raw, objects = (
        Client(machine, tmp_path / name, "logs", "-f", *argv)
        for name, argv in (("raw", writers[:1]), ("json", ["-o", "json", writers[1]]))
    )
    waits = [Client(machine, tmp_path / f"wait-{job}", "wait", job) for job in writers[2:4]]
    jobs = inside(machine, begin, 50, 1, "1")
    followers = [follow(machine, job) for job in jobs[:4]]
    runs = [
        machine.popen("jobctl", "run", "--", "sh", "-c", COUNT.format(pause=0.1, code=70 + i), user="alice", bufsize=0)
        for i in range(4)
    ]
    heads = [line(process) for process in (*followers, *runs)]
    assert heads == [b"1\n"] * 8
    install(machine, packages["later"])
    assert machine.run("jobctl", "--version", user="alice").returncode == 0
    jobs += inside(machine, begin, 10, 51, "1")
    systemctl(machine, "restart", "jobsvc-launcher.service", "jobsvc.service")
    # What is running now has supervisors of both releases.
    install(machine, packages["present"])
    jobs += inside(machine, begin, 5, 61, "1")
    systemctl(machine, "restart", "jobsvc.service", "jobsvc-launcher.service")
    install(machine, packages["present"])  # again
    assert {status(machine, job)["state"] for job in jobs} == {"running"}
    machine.run("rm", "going", user="alice")
    told = inside(machine, ends, jobs, timeout=110)
    assert [one[:3] for one in told] == [["exit-code", code, 1] for code in range(1, 66)]
    assert [counted(str(one[3])) for one in told] == [True] * 65
    for follower, one in zip(followers, told, strict=False):
        out, err = follower.communicate(timeout=360)
        assert (b"1\n" + out, follower.returncode) == (str(one[3]).encode(), 0)
        assert set(err.splitlines()) <= {WAITS}
    for i, run in enumerate(runs):
        out, err = run.communicate(timeout=360)
        assert (counted((b"1\n" + out).decode()), run.returncode) == (True, 70 + i)
        assert set(err.splitlines()) <= {WAITS}
    ends_of_writers = [ended(machine, job) for job in writers]
    assert [one["exit_code"] for one in ends_of_writers] == [7] * 5
    texts = [wrote(one) for one in ends_of_writers]
    assert [had_or_named(machine, job, *text) for job, text in zip(writers, texts, strict=True)] == [0] * 5
    out, err = raw.end(0)
    assert (out, err.replace(WAITS + b"\n", b"")) == texts[0]
    *chunks, trailer = [json.loads(one) for one in objects.end(0)[0].splitlines()]
    assert (trailer["end"], trailer["missing"]) == (True, [])
    assert (
        tuple("".join(one["data"] for one in chunks if one["stream"] == name).encode() for name in STREAMS) == texts[1]
    )
    for client in waits:
        assert client.end(1)[1].replace(WAITS + b"\n", b"").endswith(b" failed: exit-code\n")


def test_a_state_that_only_a_later_release_reads_is_left_alone(machine: Machine, packages: dict[str, str]) -> None:
    job = start(machine, "--", "sh", "-c", "sleep 3; echo there; exit 5")
    in_state(machine, job, "running", "failed")  # on a slow machine it may be over
    systemctl(machine, "stop", "jobsvc.service")
    state = "import sqlite3; db = sqlite3.connect('/var/lib/jobsvc/jobs.db', isolation_level=None); "
    machine.run("python3", "-c", state + "db.execute('PRAGMA user_version=99'); "
                "db.execute('UPDATE facts SET value=99 WHERE name=\"readable_by\"')")  # fmt: skip
    machine.run("systemctl", "start", "jobsvc.service", check=False)
    assert systemctl(machine, "show", "-P", "Result", "jobsvc.service") == "exit-code"
    log = ("journalctl", "-q", "-o", "cat", "-n", "10", "-u", "jobsvc.service")
    refusal = b"was written by a newer jobsvc that this one cannot read"
    machine.wait_until(lambda: refusal in machine.run(*log).stdout, what="the reason in the journal")
    assert b"Traceback" not in machine.run(*log).stdout
    machine.run("python3", "-c", state + "db.execute('PRAGMA user_version=2'); "
                "db.execute('UPDATE facts SET value=1 WHERE name=\"readable_by\"')")  # fmt: skip
    assert jobctl(machine, "wait", job).returncode == 1
    assert status(machine, job)["exit_code"] == 5
    assert jobctl(machine, "logs", job).stdout == b"there\n"


def left(machine: Machine) -> set[str]:
    """All that a package could leave, but for what every installation of anything does."""
    common = ("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/", "/tmp/", "/var/tmp/", "/proc/", "/dev/")
    common += (
        "/home/",
        "/root/",
        "/run/systemd/",
        "/run/udev/",
        "/var/backups/",
        "/run/user/",
        "/sys/",
        "/var/lib/systemd/",
    )
    listed = machine.run("find", "/", "/run", "-xdev", "-printf", "%p\\n", timeout=120).stdout.decode()
    found = {path for path in listed.splitlines() if not path.startswith(common) and "__pycache__" not in path}
    asked = "find /run/systemd /var/log /var/lib/systemd /var/cache /tmp /sys/fs/cgroup -name '*jobsvc*'"
    found |= set(machine.run("sh", "-c", asked, check=False).stdout.decode().splitlines())
    for name in ("passwd", "group", "shadow", "gshadow"):
        found |= {f"{name}: {line}" for line in machine.read(f"/etc/{name}").decode().splitlines()}
    asked = "systemctl list-units --plain --no-legend; systemctl list-unit-files --no-legend"
    units = machine.run("sh", "-c", asked).stdout.decode().splitlines()
    return found | {f"unit: {line.split()[0]}" for line in units if "jobsvc" in line}


# Debian lets system groups stay: a number that is given away again would take what they own along.
GROUPS = re.compile(r"g?(group|shadow): jobsvc-(admin|viewer):.*")


def test_removal_stops_the_jobs_and_purging_leaves_nothing(fresh: Machine, deb: Path) -> None:
    fields = ("Pre-Depends", "Depends", "Recommends")
    depends = subprocess.run(["dpkg-deb", "-f", deb, *fields], capture_output=True, text=True, check=True)
    needed = re.findall(r"(?:^[A-Z][A-Za-z-]*:|,) *([a-z0-9.+-]+)", depends.stdout, re.MULTILINE)
    fresh.run("apt-get", "install", "-y", *needed, timeout=600)
    fresh.run("useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", "alice")
    before = left(fresh)
    assert not [one for one in before if "jobsvc" in one]
    fresh.install(deb)
    fresh.write("/etc/jobsvc/jobsvc.conf.d/50-story.conf", "[Manager]\nMaxRunning=3\nLimitEnforcement=best-effort\n")
    systemctl(fresh, "restart", "jobsvc.service")
    systemctl(fresh, "is-active", "jobsvc.service", "jobsvc-launcher.socket", "systemd-journald@jobsvc.service")

    polite = "trap 'echo bye; exit 3' TERM; echo on; while :; do sleep 0.1; done"
    running = [start(fresh, "--", "sh", "-c", polite), start(fresh, "--", "sleep", "4242")]
    running.append(start(fresh, "--stop-timeout", "1s", "--", "sh", "-c", "trap '' TERM; while :; do sleep 4243; done"))
    waiting = [start(fresh, "--", "sh", "-c", f"echo {i} >> waited") for i in range(5)]
    fresh.wait_until(lambda: jobctl(fresh, "logs", running[0]).stdout == b"on\n")
    fresh.run("apt-get", "remove", "-y", "jobsvc", timeout=300)
    alive = "pgrep -fx 'sleep 424.*'; pgrep -f 'jobsvc[.]'; systemctl list-units --plain --no-legend 'jobsvc-*.scope'"
    assert fresh.run("sh", "-c", alive, check=False).stdout == b""
    assert not fresh.exists("/home/alice/waited")
    fresh.run("systemctl", "--failed", "--quiet")
    assert fresh.exists("/var/lib/jobsvc/jobs.db")

    fresh.run("dpkg", "-i", f"/var/tmp/{deb.name}", timeout=120)
    told = [status(fresh, job) for job in running]
    assert [(one["exit_code"], one["signal"]) for one in told] == [(3, None), (None, 15), (None, 9)]
    assert jobctl(fresh, "logs", running[0]).stdout == b"on\nbye\n"
    assert jobctl(fresh, "wait", *waiting).returncode == 0
    assert sorted(fresh.run("cat", "waited", user="alice").stdout.split()) == [b"0", b"1", b"2", b"3", b"4"]

    start(fresh, "--", "sleep", "4242")
    fresh.run("rm", "/etc/jobsvc/jobsvc.conf.d/50-story.conf")  # an administrator's own
    fresh.run("apt-get", "purge", "-y", "jobsvc", timeout=300)
    assert fresh.run("sh", "-c", alive, check=False).stdout == b""
    stays = sorted(one for one in left(fresh) - before if not GROUPS.fullmatch(one))
    assert stays == [], "\n".join(stays)
    for path in ("/var/lib/jobsvc", "/run/jobsvc", "/usr/lib/jobsvc"):
        assert not fresh.exists(path), path
    assert fresh.run("sh", "-c", "ls -d /var/log/journal/*.jobsvc", check=False).stdout == b""
    assert fresh.run("systemctl", "--failed", "--quiet").stdout == b""
