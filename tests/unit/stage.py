"""The launcher and its supervisors for real, as root, with a fake journal and a hand-made scope."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobsvc import control

REPOSITORY = Path(__file__).parents[2]
NOBODY = pwd.getpwnam("nobody")
ID = "0123456789abcdef"

needs_root = pytest.mark.root  # supervisors are root's

LAUNCHER = """
import os, sys
sys.path.insert(0, {repository!r})
import time
from jobsvc import beginning, capture, disk, launcher, pump, supervisor, entry, outfile
launcher.RUNS = {runs!r}
supervisor.REPORTS = {reports!r}
supervisor.NAMESPACE = {journal!r}
supervisor.CGROUPS = {cgroups!r}
supervisor.LAST_WORDS = 10.0
supervisor.DRAIN_WITHIN = 4.0
os.dup2({listener}, 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "1"
really = outfile.open_as_caller


def open_as_caller(wanted):
    # A file on a server that does not answer: a pipe that nobody reads.
    path = wanted.partition(":")[2]
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC) if path.endswith("/hangs") else really(wanted)


outfile.open_as_caller = open_as_caller


def or_hang(read):
    # A pipe whose lock somebody holds: nothing but the thread that reads it is to notice.
    def reads(self, *stream):
        if b"SYSLOG_IDENTIFIER=hangs" in self.streams[0].prefix:
            time.sleep(1000)
        read(self, *stream)

    return reads


pump.Pump.read = or_hang(pump.Pump.read)
pump.Pump.finish = or_hang(pump.Pump.finish)
captures = capture.Capture.start


def start(self, *given):
    if self.request.name == "no-thread":
        raise RuntimeError("can't start new thread")
    return captures(self, *given)


capture.Capture.start = start
looks_up = beginning.Beginning.look_up


def look_up(self):
    if self.request.name == "no-answer":  # of the user database
        time.sleep(1000)
    looks_up(self)


beginning.Beginning.look_up = look_up
device_of = disk.device_of
disk.device_of = lambda path: time.sleep(1000) if path.endswith("/hangs") else device_of(path)


class NothingIsImportedLate:
    # An upgrade replaces the files under running supervisors.

    def find_spec(self, name, *_):
        sys.stderr.write(f"imported late: {{name}}\\n")
        os.abort()


real = launcher.Launcher.run
def run(self):
    sys.meta_path.insert(0, NothingIsImportedLate())
    real(self)
launcher.Launcher.run = run
launcher.main()
"""


def cgroup_mount() -> str:
    with open("/proc/mounts", encoding="utf-8") as mounts:
        return next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of the condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
    return value


def lives(pid: int) -> bool:
    """Whether there is such a process and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def use_loopback() -> None:
    """Its interface is there in a network namespace of the tests' own, and down."""
    request = struct.pack("16sh14x", b"lo", 1)  # IFF_UP, netdevice(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def parse(datagram: bytes) -> dict[str, bytes]:
    """One native entry, read as journald reads it."""
    fields: dict[str, bytes] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
            datagram = rest
        else:
            name, size = line, struct.unpack("<Q", rest[:8])[0]
            value, datagram = rest[8 : 8 + size], rest[8 + size + 1 :]
            assert rest[8 + size : 8 + size + 1] == b"\n"
        fields[name.decode()] = value
    return fields


class Entry:
    def __init__(self, fields: dict[str, bytes], sender: tuple[int, int, int]) -> None:
        self.fields = fields
        self.pid, self.uid, self.gid = sender
        self.at = time.monotonic()

    def __getitem__(self, name: str) -> str:
        return self.fields[name].decode()

    @property
    def event(self) -> str | None:
        return self.fields.get("JOBSVC_EVENT", b"").decode() or None


class Journal:
    """A journald that takes what it is sent, when it is in the mood."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.since = 0  # what runs before this one still send is of no interest
        self.socket: socket.socket | None = None
        self.taking = threading.Event()
        self.taking.set()
        self.closed = False
        self.open()

    def open(self) -> None:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        fresh.bind(self.path)
        self.socket = fresh
        self.thread = threading.Thread(target=self._take, args=(fresh,), daemon=True)
        self.thread.start()

    def gone(self) -> None:
        """The socket unit is stopped: no socket, nobody behind it."""
        os.unlink(self.path)
        assert self.socket is not None
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self.taking.is_set():
            self.thread.join(10)  # what was in its queue is noted
        self.socket.close()
        self.socket = None

    def _take(self, sock: socket.socket) -> None:
        while True:
            try:
                # It is taken only when it has been noted: the supervisor may be over, and its test look, right then.
                data, ancillary, _, _ = sock.recvmsg(1 << 20, 4096, socket.MSG_PEEK)
            except OSError:
                return
            if not ancillary:
                return
            sender = (-1, -1, -1)
            for _, kind, value in ancillary:
                if kind == socket.SCM_CREDENTIALS:
                    sender = struct.unpack("iII", value[:12])
                if kind == socket.SCM_RIGHTS:
                    fd = int.from_bytes(value[:4], sys.byteorder)
                    data = os.pread(fd, os.fstat(fd).st_size, 0)
                    os.close(fd)
            entry = Entry(parse(data), sender)
            if int(entry.fields.get("JOBSVC_RUN", b"0")) >= self.since:
                self.entries.append(entry)
            with contextlib.suppress(OSError):
                sock.recv(1)
            self.taking.wait()

    def output(self, stream: str = "stdout") -> bytes:
        """What the entries say the job wrote; fails on a gap or an overlap."""
        data = b""
        for entry in self.chunks(stream):
            assert int(entry["JOBSVC_OFFSET"]) == len(data)
            data += entry.fields["MESSAGE"]
        return data

    def chunks(self, stream: str = "stdout") -> list[Entry]:
        wanted = stream.encode()
        return [e for e in self.entries if e.fields.get("JOBSVC_STREAM") == wanted]

    def events(self) -> list[str]:
        return [entry.event for entry in self.entries if entry.event]


class Run:
    """One run and jobsvcd's part in it."""

    def __init__(self, stage: Stage, key: str, pid: int) -> None:
        self.stage = stage
        self.key = key
        self.directory = f"{stage.runs}/{key}"
        self.supervisor = pid
        self.scope = f"{stage.slice}/{key}.scope"
        self.heard: list[dict[str, Any]] = []
        self.gate = -1
        self.connection = self.connect()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(120)
        connection.connect(f"{self.directory}/control")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is over: what it said is there to be read
            connection.send(control.pack_first("hello"))
        return connection

    def on(self, word: str = "") -> None:
        """Let a script that reads a line go on."""
        os.write(self.gate, f"{word}\n".encode())

    def tell(self, kind: str, **facts: Any) -> None:
        self.connection.send(control.pack(kind, **facts))

    def hear(self, *kinds: str) -> dict[str, Any]:
        """The next packet of these types."""
        while True:
            try:
                data = self.connection.recv(control.MAX_PACKET)
            except ConnectionResetError:  # it did not read our last words; its own are still there
                continue
            assert data, f"end of file instead of {kinds}; heard {self.heard}"
            packet = json.loads(data)
            self.heard.append(packet)
            if packet["type"] in kinds:
                return packet
            assert packet["type"] != "closed", f"closed instead of {kinds}; heard {self.heard}"

    def ask(self, what: str, **facts: Any) -> dict[str, Any]:
        """Order something and hear how it went."""
        self.tell("ask", ask=7, what=what, **facts)
        return self.hear("answer")

    def cgroup(self, file: str) -> str:
        return Path(f"{self.stage.mount}{self.scope}/{file}").read_text()

    def hold(self) -> int:
        """Wait for the held process and make its scope, as PID 1 does."""
        packet = self.hear("hello", "held")
        while packet.get("phase", "held") == "preparing":
            packet = self.hear("held", "ended")
        assert packet["type"] in ("hello", "held"), packet
        os.makedirs(f"{self.stage.mount}{self.scope}")
        Path(f"{self.stage.mount}{self.scope}/cgroup.procs").write_text(str(packet["main_pid"]))
        return int(packet["main_pid"])

    def go(self) -> int:
        pid = self.hold()
        self.tell("go", control_group=self.scope)
        return pid

    def report(self) -> dict[str, Any]:
        """What it says when it has ended."""
        while True:
            packet = self.hear("hello", "ended")
            if packet["report"] is not None:
                report: dict[str, Any] = packet["report"]
                return report

    def end(self) -> dict[str, Any]:
        """The report, when everything is over and cleaned up."""
        report = self.report()
        if self.heard[-1].get("phase") != "closed":
            self.hear("closed")
        eventually(lambda: not lives(self.supervisor))
        return report


class Stage:
    """Directories, a journal, a slice and a launcher."""

    def __init__(self, prefix: tuple[str, ...] = ()) -> None:
        self.prefix = prefix
        self.directory = tempfile.mkdtemp(prefix="jobsvc-", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.runs = f"{self.directory}/runs"
        self.reports = f"{self.directory}/reports"
        os.mkdir(self.runs, 0o700)
        os.mkdir(self.reports, 0o700)
        self.mount = cgroup_mount()
        self.slice = f"/{os.path.basename(self.directory)}.slice"
        os.mkdir(self.mount + self.slice)
        self.journal = Journal(f"{self.directory}/journal")
        self.numbers = iter(range(1, 1_000_000))
        self.kept: list[int] = []  # the porters that keep something
        self.launcher, self.connection = self.launch()

    def fresh(self) -> None:
        """For what comes now: the journal takes what it gets, is empty, and stays so for what earlier runs say."""
        self.journal.taking.set()
        if self.journal.socket is None:
            self.journal.open()
        self.journal.since = next(self.numbers)
        self.journal.entries.clear()

    def launch(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        path = f"{self.directory}/launcher.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen()
        code = LAUNCHER.format(
            repository=str(REPOSITORY),
            runs=self.runs,
            reports=self.reports,
            journal=self.journal.path,
            cgroups=self.mount,
            listener=listener.fileno(),
        )
        process = subprocess.Popen(
            [*self.prefix, sys.executable, "-I", "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
        listener.close()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(120)
        connection.connect(path)
        return process, connection

    def request(self, *command: str, **facts: Any) -> dict[str, Any]:
        return {
            "boot_id": "0" * 32,
            "id": ID,
            "run": next(self.numbers),
            "unit": "jobsvc-test.scope",
            "name": "test",
            "uid": NOBODY.pw_uid,
            "user": NOBODY.pw_name,
            "gid": NOBODY.pw_gid,
            "command": list(command),
            "working_directory": "/",
            "timeout_stop_usec": 20_000_000,
            "pam": "no",
            "request": "key",
            **facts,
        }

    def prepare(self, request: dict[str, Any]) -> str:
        """Write the request of a run; its key."""
        key = control.run_key(request["id"], request["run"])
        os.mkdir(f"{self.runs}/{key}", 0o700)
        os.close(os.open(f"{self.runs}/{key}/ticket", os.O_CREAT | os.O_WRONLY, 0o600))
        Path(f"{self.runs}/{key}/request").write_bytes(control.dump(request))
        Path(f"{self.runs}/{key}/ticket").touch()
        return key

    def ask(self, key: str, fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """What the launcher answers to a launch."""
        packet = control.pack_first("launch", run=key)
        control.send_fds(self.connection, packet, list(fds))
        return control.unpack_first(self.connection.recv(4096))

    def keep(self, fd: int, uid: int = NOBODY.pw_uid) -> tuple[str, int]:
        """Have a porter keep a descriptor, as if it had come with a message of the bus: where, and its pid."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bus, peer = socket.socketpair()
        path = f"{self.directory}/input-{next(self.numbers)}"
        with ours, bus, peer, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            ours.settimeout(20)
            with theirs:
                control.send_fds(self.connection, control.pack_first("porter", run="p"), [theirs.fileno()])
                answer = control.unpack_first(self.connection.recv(4096))
            bus.setblocking(False)
            socket.send_fds(peer, [b"x" * 20], [fd])
            control.send_fds(ours, control.pack("take", uid=uid), [bus.fileno()])
            assert control.unpack(ours.recv(4096)) == {"type": "read", "count": 1}
            assert bus.recv(99) == b"x" * 4
            door.bind(path)
            control.send_fds(ours, control.pack("keep"), [door.fileno()])
            assert control.unpack(ours.recv(4096)) == {"type": "kept"}
        self.kept.append(answer["pid"])
        return path, answer["pid"]

    def start(self, *command: str, stdin: int | None = None, **facts: Any) -> Run:
        """Launch and connect, not yet go."""
        if stdin is not None:
            facts["standard_input"], _ = self.keep(stdin)
        key = self.prepare(self.request(*command, **facts))
        answer = self.ask(key)
        assert answer["type"] == "launched", answer
        return Run(self, key, answer["pid"])

    def gated(self, script: str, **facts: Any) -> Run:
        """A script of the shell, which waits wherever it reads a line."""
        theirs, ours = os.pipe()
        run = self.start("sh", "-c", script, stdin=theirs, **facts)
        os.close(theirs)
        run.gate = ours
        return run

    def run(self, *command: str, **facts: Any) -> dict[str, Any]:
        """From launch to cleaned up."""
        run = self.start(*command, **facts)
        run.go()
        return run.end()

    def stored(self, key: str) -> dict[str, Any]:
        return control.parse(Path(f"{self.reports}/{key}").read_bytes())

    def close(self) -> None:
        self.launcher.kill()
        self.launcher.wait()
        for pid in self.kept:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.connection.close()
        for directory, _, _ in os.walk(self.mount + self.slice, topdown=False):
            for pid in Path(f"{directory}/cgroup.procs").read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                eventually(lambda d=directory: "populated 0" in Path(f"{d}/cgroup.events").read_text())
                os.rmdir(directory)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def staged(*prefix: str) -> Iterator[Stage]:
    """A stage; the prefix is put before the launcher's command line."""
    stage = Stage(prefix)
    try:
        yield stage
    finally:
        stage.close()
