"""Output files: what is written where is what the user could write, and a place that hangs hangs nobody else."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from foreign import acting, census, mains, mounted, nothing_changes_for_bob, watched
from story import ended, inside, jobctl, start, status

from machine import scale
from machine.nspawn import Machine

FEW = 8  # processes of one user's that hang


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    with watched(machine):
        yield
    machine.run("sh", "-c", "rm -rf /home/alice/out /home/alice/d /home/alice/l /home/bob/d")


def to(path: str, text: str, *argv: str, user: str = "alice") -> tuple[str, ...]:
    return ("run", "-p", f"StandardOutput=append:{path}", "-p", "WorkingDirectory=/", *argv, "--", "printf", "%s", text)


def asleep(machine: Machine, user: str) -> str:
    """A process of this user's that is not a job."""
    machine.run("sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!", user=user)
    return machine.run("pgrep", "-n", "-u", user, "-x", "sleep").stdout.decode().strip()


def test_no_pseudo_file_believes_who_writes_it(machine: Machine) -> None:
    """They ask the writer for its capabilities, and there are none of these that a user can lend."""
    mine, bobs = (asleep(machine, user) for user in ("alice", "bob"))
    machine.run("sh", "-c", "mkdir -p /sys/fs/cgroup/foreign && chown -R alice: /sys/fs/cgroup/foreign")
    machine.run("sh", "-c", "mountpoint -q /dev/mqueue || mount -t mqueue mqueue /dev/mqueue")
    machine.run("sh", "-c", "touch /dev/mqueue/foreign && chown alice: /dev/mqueue/foreign")
    asked = [
        ("/proc/1/timerslack_ns", "5000000000"),
        (f"/proc/{bobs}/timerslack_ns", "5000000000"),
        (f"/proc/{mine}/oom_score_adj", "-1000"),
        (f"/proc/{mine}/timerslack_ns", "70000"),
        (f"/proc/{mine}/autogroup", "-20"),
        (f"/proc/{mine}/comm", "owned"),
        (f"/proc/{mine}/coredump_filter", "0x7f"),
        (f"/proc/{mine}/task/{mine}/comm", "owned"),
        (f"/proc/{mine}/root/proc/{mine}/comm", "owned"),
        ("/sys/fs/cgroup/foreign/cgroup.max.depth", "3"),
        ("/sys/fs/cgroup/foreign/cgroup.procs", mine),
        ("/dev/mqueue/foreign", "x"),
    ]
    # Nor for root, who has all capabilities: such a line would be written by accident.
    roots = [*asked[:3], ("/proc/self/comm", "owned"), ("/sys/fs/cgroup/foreign/cgroup.max.depth", "4")]
    wrong = []
    try:
        for user, path, text in [("alice", *one) for one in asked] + [("root", *one) for one in roots]:
            before = machine.run("cat", path, check=False).stdout
            done = jobctl(machine, *to(path, text), user=user, timeout=30)
            changed = "self" not in path and machine.run("cat", path, check=False).stdout != before
            told = status(machine, user=user)
            if changed or (done.returncode, told["result"]) != (126, "start-failed") or path not in told["reason"]:
                wrong.append((user, path, "changed" if changed else "", told["result"], told["reason"]))
        assert not wrong, wrong
    finally:
        machine.run("sh", "-c", "echo 0 > /proc/1/timerslack_ns")
        machine.run(
            "sh", "-c", f"kill {mine} {bobs}; rm -f /dev/mqueue/foreign; sleep 0.1; rmdir /sys/fs/cgroup/foreign"
        )


def test_a_limit_of_the_size_of_files_holds(machine: Machine) -> None:
    words = ("-p", "StandardOutput=append:/home/alice/out", "-p", "LimitFSIZE=1000")
    done = jobctl(machine, "run", *words, "--", "head", "-c", "50000", "/dev/zero")
    assert len(done.stdout) == 50_000
    told = status(machine)
    assert int(machine.run("stat", "-c", "%s", "/home/alice/out").stdout) <= 1000
    assert "/home/alice/out: File too large" in told["reason"], told
    assert told["result"] == "success", told


@pytest.fixture
def disk(machine: Machine) -> Iterator[str]:
    """Eight megabytes, half of them for root alone."""
    script = """set -e
    [ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
    number=$(python3 -c 'import fcntl; print(fcntl.ioctl(open("/dev/loop-control", "rb"), 0x4C82))')
    [ -e /dev/loop$number ] || mknod /dev/loop$number b 7 $number
    mkdir -p /mnt/disk; mount -o loop=/dev/loop$number /var/tmp/disk /mnt/disk; chmod 1777 /mnt/disk"""
    image = machine.root / "var/tmp/disk"  # made out here: no machine has the program
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "50", image, "8M"], check=True)
    machine.run("sh", "-c", script)
    yield "/mnt/disk"
    machine.run("sh", "-c", "umount -l /mnt/disk; rm -f /var/tmp/disk")


def test_what_a_disk_keeps_for_root_is_not_for_output(machine: Machine, disk: str) -> None:
    free = int(machine.run("stat", "-f", "-c", "%a", disk).stdout) * int(
        machine.run("stat", "-f", "-c", "%S", disk).stdout
    )
    words = ("-p", f"StandardOutput=append:{disk}/out")
    done = jobctl(machine, "run", *words, "--", "head", "-c", "7000000", "/dev/zero", timeout=60)
    assert len(done.stdout) == 7_000_000
    told = status(machine)
    assert int(machine.run("stat", "-c", "%s", f"{disk}/out").stdout) <= free
    assert f"{disk}/out: No space left on device" in told["reason"], told


def swapped(one: str, other: str) -> Iterator[Any]:
    """Two directories change places all the time."""
    from hostile import things

    pid = os.fork()  # noqa: F821
    if not pid:
        things.exchange(one, other, 60)
        os._exit(0)  # noqa: F821
    yield None
    os.kill(pid, signal.SIGKILL)  # noqa: F821
    os.waitpid(pid, 0)  # noqa: F821
    yield None


def test_directories_that_change_while_a_file_is_opened(machine: Machine) -> None:
    """What is opened is the user's own, or nothing."""
    machine.run("sh", "-c", "mkdir -p d/e l; ln -sfn /home/bob/d l/e; ln -sfn /proc/self x", user="alice")
    machine.run("sh", "-c", "mkdir -p d; echo mine > d/out; chmod 755 . d", user="bob")
    machine.run("sh", "-c", "mkdir -p /root/d; ln -sfn /root/d /home/alice/l/r; mkdir -p /home/alice/d/r")
    machine.run("chown", "-R", "alice:", "/home/alice/d")
    with acting(machine, swapped, "/home/alice/d", "/home/alice/l") as alice:
        alice.next()
        jobs = []
        for number in range(30):
            path = f"/home/alice/d/{'er'[number % 2]}/{('out', 'new')[number % 3 % 2]}"
            words = to(path, "alice\n")[1:]
            jobs.append(start(machine, *words))
        ends = {ended(machine, job, timeout=60)["result"] for job in jobs}
        alice.next()
    assert ends <= {"success", "start-failed"}
    assert machine.run("ls", "-A", "/home/bob/d", "/root/d").stdout.split() == [b"/home/bob/d:", b"out", b"/root/d:"]
    assert machine.read("/home/bob/d/out") == b"mine\n"
    machine.run("rm", "-rf", "/root/d")


def hanging() -> dict[str, list[Any]]:
    """For inside(), as root: every process that waits for an answer, or behind one that does; what it is and may."""

    def where(pid: str) -> str:
        """Its wchan. While an exec closes descriptors, who asks for it waits as long."""
        read, write = os.pipe()  # noqa: F821
        if not os.fork():  # noqa: F821
            os.closerange(0, 3)  # noqa: F821 - or whoever reads what we say waits, too
            with open(f"/proc/{pid}/wchan", "rb") as file:
                os.write(write, file.read())  # noqa: F821
            os._exit(0)  # noqa: F821
        answered = select.select([read], [], [], 1)[0]  # noqa: F821
        return os.read(read, 100).decode() if answered else "exec"  # noqa: F821

    told = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: F821
        with contextlib.suppress(OSError):  # noqa: F821
            with open(f"/proc/{pid}/status") as file:
                lines = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
            with open(f"/proc/{pid}/oom_score_adj") as file:
                score = int(file.read())
            if lines["State"].startswith("D") or where(pid) in ("request_wait_answer", "exec"):
                told[pid] = [lines["Name"], int(lines["Uid"].split()[1]), int(lines["CapEff"], 16), score]
    return told


def many(paths: list[str]) -> list[Any]:
    """Jobs with output to these files, a few at a time; how each ended."""
    bus = Bus()  # noqa: F821
    told: list[Any] = []
    while paths:
        some, paths = paths[:5], paths[5:]
        jobs = []
        for path in some:
            spec = {"StandardOutput": ("s", f"append:{path}"), "TimeoutStopUSec": ("t", 1_000_000)}
            try:
                jobs.append(bus.start("echo", "x", **spec))
            except Refused as error:  # noqa: F821
                told.append([error.name, error.text])
        try:
            ends = bus.until_ended(*jobs, timeout=25)
        except TimeoutError:  # enough is known
            return [*told, ["does not end", ""]]
        told += [[ends[job]["Result"], ends[job].get("Reason", "")] for job in jobs]
    return told


HANG = {
    "write": ("WRITE=never", [f"{number}" for number in range(scale.times(20, 65))]),
    "write to one file": ("WRITE=never", [""] * scale.times(10, 20)),
    "open": ("OPEN=never", [""] * scale.times(10, 20)),
    "close": ("FLUSH=never", [""] * scale.times(10, 20)),
}


@pytest.mark.scaled
@pytest.mark.one_suite
@pytest.mark.parametrize("what", HANG)
def test_files_that_hang_again_and_again(machine: Machine, what: str) -> None:
    """A few processes hang, which have no right of ours; then alice's output files are refused, and nobody else's."""
    before = mains(census(machine))
    rule, names = HANG[what]
    with mounted(machine, rule) as path:
        with nothing_changes_for_bob(machine):
            told = inside(machine, many, [path + name for name in names], timeout=250)
        left = inside(machine, hanging, user="root")
        print(json.dumps({"told": told, "left": left}))
        assert jobctl(machine, *to("/home/bob/out", "mine"), user="bob").returncode == 0
        assert machine.read("/home/bob/out") == b"mine"
        machine.run("rm", "/home/bob/out")
        assert mains(census(machine)) == before
        assert len(left) <= FEW, left
        for name, uid, capabilities, score in left.values():
            assert (capabilities, score > -900, uid != 0) == (0, True, True), (name, uid, capabilities, score)
        result, reason = told[-1]
        assert result in ("start-failed", "Quota", "LimitsExceeded"), told[-1]
        assert reason, told[-1]
    machine.wait_until(
        lambda: jobctl(machine, *to("/home/alice/out", "again")).returncode == 0, what="alice to have files again"
    )
    assert machine.read("/home/alice/out").endswith(b"again")
