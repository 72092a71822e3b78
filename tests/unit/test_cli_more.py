"""top, stats, export, notices, and the terminal of a job."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from fake_service import NOW, FakeService, Handed, Jobctl, Refusal, job
from jeepney import HeaderFields, MessageType, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import Proxy, open_dbus_connection

from jobsvc.chunks import Missing
from jobsvc.formats import End, Trailer

ONE, TWO = "aaaa000000000001", "aaaa000000000002"


@pytest.fixture(autouse=True)
def two(service: FakeService) -> None:
    service.jobs = {
        ONE: job(Id=ONE, Name="arch", State="completed", Result="success", ExitCode=0, FinishedTimestamp=NOW, Run=2),
        TWO: job(Id=TWO, Name="build", Usage={"CPUUsageNSec": 2_000_000_000, "MemoryCurrent": 2**20}),
    }


# export


def members(data: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content
            found[member.name.removeprefix(f"job-{ONE}/")] = content.read()
    return found


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.txz"])
def test_an_export_has_everything(service: FakeService, jobctl: Jobctl, tmp_path: Path, name: str) -> None:
    service.write("stdout", b"out\0\n")
    service.write("stderr", b"err")
    assert jobctl("export", "arch", name, cwd=tmp_path) == (0, "", "")
    found = members((tmp_path / name).read_bytes())
    assert list(found) == [
        "job.json", "spec.json", "runs/1/run.json", "runs/1/stdout", "runs/1/stderr",
        "runs/2/run.json", "runs/2/stdout", "runs/2/stderr",
    ]  # fmt: skip
    assert (found["runs/2/stdout"], found["runs/2/stderr"]) == (b"out\0\n", b"err")
    assert json.loads(found["job.json"])["name"] == "arch"
    assert json.loads(found["runs/1/run.json"])["missing"] == []
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert os.listdir(tmp_path) == [name]


def test_an_export_has_what_was_asked_for(service: FakeService, jobctl: Jobctl) -> None:
    service.spec = {
        "Script": ("ay", b"#!/bin/sh\n\xff"), "MemoryMax": ("t", 2**64 - 1), "Nice": ("i", 5),
        "AllowedCPUs": ("ay", b"\x05"), "IOReadBandwidthMax": ("a(st)", [("/", 10)]), "Labels": ("a{ss}", {"a": "b"}),
    }  # fmt: skip
    found = members(jobctl.raw("export", "arch", "-")[1])
    assert found["script"] == b"#!/bin/sh\n\xff"
    assert json.loads(found["spec.json"]) == {
        "memory_max": "infinity", "nice": 5, "allowed_cpus": [0, 2], "io_read_bandwidth_max": [["/", 10]],
        "labels": {"a": "b"},
    }  # fmt: skip
    assert "spec" not in json.loads(found["job.json"])


def test_an_export_of_what_one_may_only_look_at_has_no_spec(service: FakeService, jobctl: Jobctl) -> None:
    def viewed(job_id: str, options: Any) -> Any:
        if "Spec" in options:
            raise Refusal("org.freedesktop.DBus.Error.AccessDenied", "not yours")
        return FakeService.Status(service, job_id, options)

    service.on["Status"] = viewed
    code, out, err = jobctl.raw("export", "arch", "-")
    assert (code, err) == (0, b"")
    assert "spec.json" not in members(out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_export_into_a_pipe_names_what_is_missing(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ONE]["Run"] = 1
    service.trailer = Trailer(End(1, "completed", "success", 0), (Missing("stdout", 0, 7, "lost"),))
    code, out, err = jobctl.raw("export", ONE, "-")
    assert (code, err) == (1, b"jobctl: bytes 0 to 7 of stdout of run 1 are missing (lost)\n")
    missing = [{"stream": "stdout", "from": 0, "to": 7, "why": "lost"}]
    assert json.loads(members(out)["runs/1/run.json"])["missing"] == missing


def test_an_export_replaces_only_plain_files(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    fifo, link, old = tmp_path / "fifo", tmp_path / "link", tmp_path / "old"
    os.mkfifo(fifo)
    old.write_bytes(b"x" * 100_000)
    link.symlink_to("old")
    process = jobctl.start("export", ONE, str(fifo))
    try:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        assert select.select([reader], [], [], 10)[0]
        with os.fdopen(reader, "rb") as read:
            assert "job.json" in members(read.read())
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()
    assert jobctl("export", ONE, str(link)).code == 0
    assert link.is_symlink()
    assert "job.json" in members(old.read_bytes())
    code, out, _ = jobctl.raw("export", ONE, "/dev/stdout")
    assert code == 0
    assert "job.json" in members(out)
    assert os.path.islink("/dev/stdout")
    done = jobctl.on_terminal("export", ONE, "/dev/stdout")
    assert (done.code, done.out) == (2, "jobctl: a tar archive is nothing for a terminal; give a FILE\r\n")
    assert jobctl("export", ONE, str(tmp_path)).err == "jobctl: Is a directory\n"


def test_what_has_not_ended_is_not_exported(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    done = jobctl("export", "build", "x.tar", cwd=tmp_path)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "is running; export it when it has ended" in done.err
    assert jobctl("export", "nothing", "x.tar", cwd=tmp_path).code == 4
    assert jobctl("export", ONE, "no/such/x.tar", cwd=tmp_path).code == 1
    assert os.listdir(tmp_path) == []


# top, stats


def test_top_looks_once_without_a_terminal(service: FakeService, jobctl: Jobctl) -> None:
    shown = jobctl("top").out.splitlines()
    assert [line.split()[:4] for line in shown] == [
        ["ID", "NAME", "STATE", "USER"], [TWO, "build", "running", "alice"],
    ]  # fmt: skip
    asked = service.saw("List")[0]
    assert asked["Live"] == ("b", True)
    assert asked["State"] == ("as", ["starting", "running", "paused", "stopping"])
    assert json.loads(jobctl("-o", "json", "top").out)[0]["usage"]["memory_current"] == 2**20


def test_top_has_rates_with_the_second_look(service: FakeService, jobctl: Jobctl) -> None:
    def busy(options: Any) -> Any:
        service.jobs[TWO]["Usage"]["CPUUsageNSec"] += 100_000_000
        return FakeService.List(service, options)

    service.on["List"] = busy
    first, second = jobctl("top", "-n", "2", "-d", "0.2").out.split("\n\n")
    assert " - " in first.splitlines()[1]
    percent = float(second.splitlines()[1].split("ms")[0].split()[-1]) if "ms" in second else None
    assert percent is None or percent >= 0


def test_top_fills_a_terminal_until_q(service: FakeService, jobctl: Jobctl) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 100, 0, 0))
    with jobctl.start("top", "-d", "0.1", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = _until(ours, b"by cpu")
        os.write(ours, b"m")
        shown += _until(ours, b"by memory")
        os.write(ours, b"q")
        shown += _until(ours, b"\x1b[?1049l")
        assert process.wait(60) == 0
    os.close(ours)
    assert b"1 running, 2 queued" in shown
    assert TWO.encode() in shown


@pytest.mark.parametrize("size", [(4, 20), (10, 40), (24, 80), (10, 200)])
def test_top_fits_into_any_terminal(service: FakeService, jobctl: Jobctl, size: tuple[int, int]) -> None:
    service.jobs |= {each["Id"]: each for each in (job(n, Command=["echo", "x" * 300]) for n in range(1, 40))}
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with jobctl.start("top", "-n", "1", "--order", "tasks", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = _until(ours, b"\x1b[?1049l").decode()
    os.close(ours)
    assert process.returncode == 0
    picture = shown.partition("\x1b[H")[2].partition("\x1b[?7h")[0]
    lines = [re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", line).rstrip("\r") for line in picture.split("\n")]
    assert len(lines) == size[0]
    assert size[1] < 30 or all(len(line) <= size[1] for line in lines)
    assert "TASKS" in lines[2]
    assert ("READ/s" in lines[2]) == (size[1] == 200)


def test_top_leaves_the_terminal_as_it_was(service: FakeService, jobctl: Jobctl) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 100, 0, 0))
    before = termios.tcgetattr(theirs)
    with jobctl.start("top", "-d", "600", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            _until(ours, b"COMMAND")
            ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 90, 0, 0))
            process.send_signal(signal.SIGWINCH)
            _until(ours, b"COMMAND")
            process.send_signal(signal.SIGTSTP)
            _until(ours, b"\x1b[?1049l")
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            assert termios.tcgetattr(theirs) == before
            process.send_signal(signal.SIGCONT)
            assert b"\x1b[?1049h" in _until(ours, b"COMMAND")
            process.send_signal(signal.SIGTERM)
            _until(ours, b"\x1b[?1049l")
            assert process.wait(120) == 143
            assert termios.tcgetattr(theirs) == before
        finally:
            process.kill()
    os.close(theirs)
    os.close(ours)


def _until(fd: int, wanted: bytes, seconds: float = 60) -> bytes:
    """Read a terminal until this has come."""
    seen, until = b"", time.monotonic() + seconds
    while wanted not in seen:
        assert select.select([fd], [], [], until - time.monotonic())[0], seen
        seen += os.read(fd, 65536)
    return seen


def test_stats_are_a_table(service: FakeService, jobctl: Jobctl) -> None:
    row = {
        "Day": ("s", "2026-01-01"), "User": ("s", "alice"), "Queue": ("s", "default"), "Jobs": ("t", 4),
        "Completed": ("t", 3), "Failed": ("t", 1), "Stopped": ("t", 0), "CPUUsageNSec": ("t", 90_000_000_000),
        "MemoryPeak": ("t", 2**20), "WaitUSec": ("t", 8_000_000),
    }  # fmt: skip
    service.on["Stats"] = lambda *_: ("aa{sv}", ([row],))
    assert jobctl("stats", "--user", "alice", "--since", "@5").out == (
        "DAY         USER   QUEUE    JOBS  COMPLETED  FAILED  STOPPED  CPU       MEMORY PEAK  MEAN WAIT\n"
        "2026-01-01  alice  default  4     3          1       0        1min 30s  1M           2s\n"
    )
    assert service.saw("Stats") == ({"User": ("s", "alice"), "SinceUSec": ("t", 5_000_000)},)
    assert json.loads(jobctl("-o", "json", "stats").out)[0]["wait_usec"] == 8_000_000


# notices


def test_the_desktop_is_told(service: FakeService, jobctl: Jobctl) -> None:
    desktop = open_dbus_connection(service.address, auth_timeout=360)
    with desktop as bus:
        assert Proxy(message_bus, bus).RequestName("org.freedesktop.Notifications") == (1,)
        jobctl.environment["DBUS_SESSION_BUS_ADDRESS"] = service.address
        service.jobs[ONE].update(State="failed", Result="exit-code", ExitCode=3, Name="<b>\x1b")
        process = jobctl.start("wait", "--notify", ONE)
        while True:
            message = bus.receive(timeout=60)
            if message.header.message_type is MessageType.method_call:
                break
        assert message.header.fields[HeaderFields.member] == "Notify"
        assert message.body[3:5] == ("<b>\\x1b failed", f"Job {ONE}: exit-code, status 3")
        bus.send(new_method_return(message, "u", (1,)))
        assert process.wait(120) == 1
        process.communicate()
    del jobctl.environment["DBUS_SESSION_BUS_ADDRESS"]
    assert "there is no desktop to tell" in jobctl("wait", "--notify", ONE).err


# terminals


class Played:
    """A job's terminal as the service hands it out, and jobctl on a terminal of ours."""

    def __init__(self, service: FakeService, jobctl: Jobctl, *args: str) -> None:
        self.theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.settimeout(60)
        handed = os.dup(ours.fileno())
        ours.close()
        service.on["Attach"] = lambda *_: ("h", (Handed(handed),))
        self.terminal, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
        service.held.clear()
        self.process = jobctl.start(*args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)

    def packet(self) -> bytes:
        return self.theirs.recv(8192)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
        self.theirs.close()


def test_run_in_a_terminal(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"\x1b[1mbold\r\n")
    service.trailer = Trailer(End(1, "failed", "exit-code", 5))
    played = Played(service, jobctl, "run", "-t", "-E", "A=1", "-E", "B=2", "sh")
    spec = service.saw("Start")[0]
    assert (spec["Pty"], spec["TTYRows"], spec["TTYColumns"]) == (("b", True), ("u", 30), ("u", 90))
    assert spec["Environment"] == ("as", ["TERM=xterm", "A=1", "B=2"])
    assert "RequestId" not in spec
    assert played.packet() == b"w" + struct.pack("HH", 30, 90)
    assert b"\x1b[1mbold\r\n" in _until(played.terminal, b"bold\r\n")
    os.write(played.terminal, b"ls\x03\r")
    assert played.packet() == b"ils\x03\r"
    ioctl(played.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    os.killpg(played.process.pid, 28)  # SIGWINCH: there is no shell here that would make us its foreground
    assert played.packet() == b"w" + struct.pack("HH", 40, 100)
    service.held.set()
    assert played.process.wait(120) == 5
    played.close()


def test_a_retry_has_the_terminal_as_well(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    ours: list[socket.socket] = []

    def attach(*_: Any) -> Any:
        theirs, mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.append(mine)
        return "h", (Handed(os.dup(theirs.fileno())),)

    def logs(job_id: str, options: Any) -> Any:
        service.trailer = ends[options["Run"][1] - 1]
        service.jobs[job_id]["Run"] = 2
        return FakeService.Logs(service, job_id, options)

    ends = [Trailer(End(1, "failed", "exit-code", 7)), Trailer(End(2, "completed", "success", 0))]
    service.on |= {"Attach": attach, "Logs": logs}
    (tmp_path / "input").write_bytes(b"one\n")
    with (tmp_path / "input").open() as stdin:
        done = jobctl("run", "-t", "--retries", "1", "cat", stdin=stdin)
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert "failed (exit-code); run 2 follows" in done.err
    first, second = ours
    assert [first.recv(100), first.recv(100)] == [b"ione\n", b"i"]
    assert second.recv(100) == b"i"
    first.close(), second.close()


def test_attach_leaves_after_three_escapes(service: FakeService, jobctl: Jobctl) -> None:
    played = Played(service, jobctl, "attach", "-n", "0", "build")
    assert service.saw("Attach")[0] == TWO
    assert played.packet()[:1] == b"w"
    before = termios.tcgetattr(played.terminal)
    os.write(played.terminal, b"x\x1d\x1d")
    assert played.packet() == b"ix\x1d\x1d"
    os.write(played.terminal, b"\x1d\x1d\x1d")  # all within a second
    assert b"left job" in _until(played.terminal, b"to itself\r\n")
    assert played.process.wait(120) == 130
    assert termios.tcgetattr(played.terminal) != before
    assert not [member for member, _ in service.calls if member in ("Stop", "Kill")]
    played.close()


def test_input_that_is_no_terminal_ends_with_its_file(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handed = os.dup(ours.fileno())
    ours.close()
    service.on["Attach"] = lambda *_: ("h", (Handed(handed),))
    (tmp_path / "input").write_bytes(b"one\n")
    with (tmp_path / "input").open() as stdin:
        done = jobctl("run", "-t", "cat", stdin=stdin)
    assert done.code == 0
    assert [theirs.recv(100), theirs.recv(100)] == [b"ione\n", b"i"]
    theirs.close()


def test_a_file_as_input_is_sent_in_pieces(service: FakeService, jobctl: Jobctl, tmp_path: Path) -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handed = os.dup(ours.fileno())
    ours.close()
    service.on["Attach"] = lambda *_: ("h", (Handed(handed),))
    service.write("stdout", b"hello\n")
    service.held.clear()
    (tmp_path / "input").write_bytes(b"x" * 5_000_000)  # more than a socket holds, and the job reads nothing
    with (tmp_path / "input").open() as stdin, jobctl.start("run", "-t", "cat", stdin=stdin) as process:
        try:
            assert process.stdout
            assert b"hello\n" in _until(process.stdout.fileno(), b"hello\n")
            process.send_signal(signal.SIGINT)
            service.saw("Stop")
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            assert service.saw("Kill")[2] == 9
            theirs.settimeout(60)
            while packet := theirs.recv(8192)[1:]:
                assert not packet.strip(b"x")
            service.held.set()
            process.communicate(timeout=120)
        finally:
            process.kill()
    theirs.close()


def queued(service: FakeService) -> str:
    """From now on jobs wait in the queue; the id of the next."""

    def start(spec: Any) -> Any:
        signature, body = service.Start(spec)
        service.jobs[body[0]].update(State="queued")
        del service.jobs[body[0]]["StartedTimestamp"]
        return signature, body

    service.on["Start"] = start
    return f"{0xABC0 + len(service.jobs):016x}"


def test_ctrl_c_cancels_a_job_that_waits_in_the_queue(service: FakeService, jobctl: Jobctl) -> None:
    job_id = queued(service)
    service.trailer = Trailer(End(1, "stopped", "canceled"))
    played = Played(service, jobctl, "run", "-t", "sh")
    service.saw("Subscribe")
    played.process.send_signal(signal.SIGINT)
    assert service.saw("Stop")[0] == job_id
    _until(played.terminal, b"stopping job")
    service.held.set()
    assert played.process.wait(120) == 125
    played.close()


def test_ctrl_c_leaves_a_job_that_was_only_to_be_attached_to(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[TWO].update(State="queued")
    played = Played(service, jobctl, "attach", "build")
    service.saw("Subscribe")
    played.process.send_signal(signal.SIGINT)
    assert b"left job" in _until(played.terminal, b"to itself\r\n")
    assert played.process.wait(120) == 130
    assert "Stop" not in [member for member, _ in service.calls]
    played.close()


def test_attach_to_what_has_ended(service: FakeService, jobctl: Jobctl) -> None:
    done = jobctl("attach", "arch")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "has ended (completed)" in done.err
    assert jobctl("run", "-t", "-i", "x").code == 2


def test_starting_up_loads_no_terminal(jobctl: Jobctl) -> None:
    code = "import sys\nfrom jobsvc.cli.root import execute\nexecute(['start', '--help'])\nprint(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=jobctl.environment, capture_output=True, check=True)
    assert not {"termios", "tarfile", "tomllib", "jobsvc.cli.terminal", "jobsvc.moment"} & set(
        done.stdout.decode().splitlines()[-1].replace("'", "").strip("[]").split(", ")
    )
