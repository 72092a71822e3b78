"""What the tests of hostile things are told with: alice who has them, bob who measures, a census, and a sure end."""

import contextlib
import json
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from story import assert_nothing_left, code, inside, systemctl

from machine.host import slowness
from machine.nspawn import USERS, Guest, Machine

HOSTILE = Path(__file__).parents[1] / "hostile"
PLACE = "/opt/hostile"
WITH = {"PYTHONPATH": "/opt"}
MOUNTED = "/mnt/hostile"
COMM = "hostile-fuse"  # of the servers (hostile/fuse.py)
UNITS = ("jobsvc", "jobsvc-launcher")
START_WITHIN = 10.0  # seconds; half a second without anything in the way, more where other tests keep both processors
STATUS_WITHIN = 1.0
STALL = 5.0  # once, for the machine as a whole
GROWTH = 30_000  # KiB
PATIENCE = 100.0  # with what alice does; most of it is up to the service


def put(machine: Guest) -> None:
    for file in HOSTILE.glob("*.py"):
        machine.write(f"{PLACE}/{file.name}", file.read_bytes())


def count() -> dict[str, Any]:
    """For inside(), as root: the processes, descriptors and memory of each of our services."""
    told: dict[str, Any] = {}
    for unit in ("jobsvc", "jobsvc-launcher"):
        pids: list[int] = []
        for folder, _, _ in os.walk(f"/sys/fs/cgroup/system.slice/{unit}.service"):  # noqa: F821
            with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs") as file:
                pids += map(int, file.read().split())
        main = subprocess.run(
            ["systemctl", "show", "-P", "MainPID", unit], check=True, capture_output=True, text=True
        ).stdout.strip()
        told[unit] = {"main": int(main), "processes": len(pids), "descriptors": 0, "memory": 0}
        if int(main):
            with open(f"/proc/{main}/status") as file:
                (resident,) = [line.split()[1] for line in file if line.startswith("VmRSS")]
            descriptors = len(os.listdir(f"/proc/{main}/fd"))  # noqa: F821
            told[unit] |= {"descriptors": descriptors, "memory": int(resident)}
    return told


def census(machine: Machine) -> dict[str, Any]:
    told: dict[str, Any] = inside(machine, count, user="root")
    return told


def assert_no_more(machine: Machine, before: dict[str, Any], timeout: float = 30, growth: int = GROWTH) -> None:
    """Wait until there is nothing beyond what there was; the same two processes all along, if they are to be."""
    now: dict[str, Any] = {}

    def none() -> bool:
        now.update(census(machine))
        return all(
            now[unit][what] <= before[unit][what] + more
            for unit in UNITS
            for what, more in (("processes", 0), ("descriptors", 5), ("memory", growth))
        )

    try:
        machine.wait_until(none, timeout=timeout)
    except TimeoutError:
        raise AssertionError(f"before: {before}\nnow: {now}") from None


def mains(told: dict[str, Any]) -> list[int]:
    return [told[unit]["main"] for unit in UNITS]


def killed_all(uid: int, comm: str) -> int:
    """For inside(), as root: SIGKILL for all of this user's processes; how many there were.

    The servers go first: what hangs on them ends then, and only then. `pkill` and `ps` would hang, too: they read
    what the kernel keeps locked while an exec closes descriptors (exec_update_lock), of which comm and status are not.
    """

    def those(servers: bool) -> list[int]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: F821
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as name, open(f"/proc/{pid}/status") as file:
                lines = {name: value.split() for name, _, value in (line.partition(":") for line in file)}
                if int(lines["Uid"][0]) != uid or lines["State"][0] == "Z":
                    continue
                if not servers or name.read().strip() == comm:
                    found.append(int(pid))
        return found

    count = 0
    for servers in (True, False):
        deadline = time.monotonic() + 20  # noqa: F821
        while (pids := those(servers)) and time.monotonic() < deadline:  # noqa: F821
            count += len(pids)
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)  # noqa: F821
            time.sleep(0.05)  # noqa: F821
        assert not pids, pids
    return count


def end_all(machine: Machine, user: str = "alice") -> None:
    """No process of this user's is left and no file system that one served, whatever has gone wrong."""
    uid, _ = USERS[user]
    inside(machine, killed_all, uid, COMM, user="root")
    machine.run("sh", "-c", f"umount -l {MOUNTED} 2>/dev/null; true")


@contextlib.contextmanager
def acting(machine: Machine, function: Callable[..., Any], *arguments: Any, user: str = "alice") -> Iterator["Actor"]:
    """Run a generator function of ours in there: it yields what it has to tell, and goes on when told to."""
    program, _, call = code(function, *arguments).strip().rpartition("json.dump(")
    source = f"{program}\n{_PLAY}\nplay({call.removesuffix(', sys.stdout)')})\n"
    argv = ("timeout", "-k", "1", "280", "python3", "-B", "-c", source)
    with machine.popen(*argv, user=user, stdin=subprocess.PIPE, env=WITH, bufsize=0) as process:
        try:
            yield Actor(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:  # it hangs on what it made itself
                end_all(machine)
                process.kill()


_PLAY = """
def play(acts):
    import traceback
    try:
        for told in acts:
            print(json.dumps(told), flush=True)
            if not sys.stdin.readline():
                break
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    # Its own descriptors hang whoever closes them, and so its end, unless their servers are gone before;
    # and a socket that lingers holds up an end of any other kind.
    if "hostile.fuse" in sys.modules:
        sys.modules["hostile.fuse"].abort_all()
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Actor:
    """The other end of it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._started = False

    def go(self) -> None:
        """Let it go on from where it is, and do not wait."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # next() tells why
            self._process.stdin.write(b"\n")

    def next(self) -> Any:
        """Let it go on to its next yield, and what that tells."""
        assert self._process.stdout is not None
        if self._started:
            self.go()
        self._started = True
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert ready, "it neither went on nor ended"
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise AssertionError(self._process.stderr.read().decode()[-4000:])
        return json.loads(line)


def measure() -> Iterator[dict[str, list[float]]]:
    """Jobs of the second user's, one after the other, until it is asked how long they took."""
    took: dict[str, list[float]] = {"start": [], "status": []}
    try:
        bus = Bus(fds=False)  # noqa: F821
        bus.call("Subscribe")
        yield took
        last = False
        while not last:
            last = bool(select.select([sys.stdin], [], [], 0.1)[0])  # noqa: F821
            at = time.monotonic()  # noqa: F821
            took["start"].append(60.0)  # until it is known
            job = bus.start("true")
            asked = time.monotonic()  # noqa: F821
            took["status"].append(60.0)
            now = bus.status(job)
            took["status"][-1] = time.monotonic() - asked  # noqa: F821
            while now["State"] not in ("completed", "failed", "stopped"):
                bus.signal("JobChanged", id=job)
                now = bus.status(job)
            assert now["Result"] == "success", now
            took["start"][-1] = time.monotonic() - at  # noqa: F821
    except TimeoutError:  # enough is known
        pass
    yield took


@contextlib.contextmanager
def nothing_changes_for_bob(machine: Machine, user: str = "bob") -> Iterator[None]:
    """bob, or whoever is the second one, works during the block and once after all that is done in it."""
    with acting(machine, measure, user=user) as bob:
        bob.next()
        bob.go()
        yield
        took = bob.next()
    starts, statuses = sorted(took["start"]), sorted(took["status"])
    slower = slowness()
    assert starts[-1] < START_WITHIN * slower, starts
    assert statuses[len(statuses) // 2] < STATUS_WITHIN * slower, statuses
    assert statuses[-1] < STALL * slower, statuses


@contextlib.contextmanager
def watched(machine: Machine) -> Iterator[None]:
    """Around each test: both services live on, and in the end there is nothing more of anything."""
    put(machine)
    machine.run("jobctl", "run", "--", "true", user="alice")  # what is there from the first job on is there
    before = census(machine)
    try:
        yield
    finally:
        end_all(machine)
    assert_nothing_left(machine)
    assert_no_more(machine, before)


def restart(machine: Machine, *argv: str) -> None:
    """Within ten seconds, whatever somebody has in it."""
    systemctl(machine, "reset-failed")
    machine.run("systemctl", *(argv or ("restart", "jobsvc.service")), timeout=10)


@contextlib.contextmanager
def mounted(machine: Machine, *rules: str, path: str = MOUNTED, user: str = "alice") -> Iterator[str]:
    """A file system of alice's where all see it: the path of its file."""
    machine.run("mkdir", "-p", path)
    uid, _ = USERS[user]
    argv = ("python3", "-B", "-m", "hostile.fuse", path, str(uid), *rules)
    with machine.popen(*argv, env=WITH, bufsize=0) as process:
        try:
            assert process.stdout is not None
            server = process.stdout.readline().decode().strip()
            assert server, process.stderr.read() if process.stderr else ""
            yield f"{path}/file"
        finally:
            end_all(machine, user)
            process.wait(20)
