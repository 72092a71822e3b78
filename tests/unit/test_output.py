"""Every byte a job writes arrives, in the right stream, at the right offset; or is named missing."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest
from stage import NOBODY, Stage, eventually, lives, needs_root

from jobsvc.native import ENTRY_COST

pytestmark = needs_root


ODD = {
    "nothing": b"",
    "one line": b"hello\n",
    "no final newline": b"hello",
    "empty lines": b"\n\n\na\n\n\n",
    "trailing blanks": b"a  \t \n b \n",
    "NULs": b"\0a\0\0\nb\0\n\0",
    "carriage returns": b"1%\r2%\r3%\r\n",
    "invalid UTF-8": b"\xff\xfe\x80\n\xc3",
    "a line of 100 kB": b"x" * 100_000 + b"\n",
    "exactly one entry": b"y" * 65536,
    "one byte more": b"z" * 65537,
    "3 MB without a newline": os.urandom(3_000_000).replace(b"\n", b"."),
    "3 MB of lines": b"".join(b"%07d some text\n" % n for n in range(200_000)),
    "looks like a field": b"MESSAGE=x\n_UID=0\nPRIORITY=0\n\n",
}


@pytest.mark.parametrize("name", ODD)
def test_output_is_exact(stage: Stage, tmp_path: Path, name: str) -> None:
    path = Path(stage.directory) / "odd"
    path.write_bytes(ODD[name])
    report = stage.run("sh", "-c", f"cat {path}; cat {path} >&2")
    assert stage.journal.output("stdout") == ODD[name]
    assert stage.journal.output("stderr") == ODD[name]
    assert report["stdout_bytes"] == report["stderr_bytes"] == len(ODD[name])
    assert report["undelivered"] == report["cut"] == []


def test_entries_carry_the_jobs_credentials_and_events_ours(stage: Stage) -> None:
    run = stage.start("echo", "hello", name="a\nPRIORITY=0")
    pid = run.go()
    run.end()
    chunk = stage.journal.chunks()[0]
    assert (chunk.pid, chunk.uid, chunk.gid) == (pid, NOBODY.pw_uid, NOBODY.pw_gid)
    assert chunk["SYSLOG_IDENTIFIER"] == "a\nPRIORITY=0"
    assert chunk["PRIORITY"] == "6"
    assert stage.journal.events() == ["started", "finished", "end-of-output"]
    assert stage.journal.entries[-1].event == "end-of-output"
    for entry in stage.journal.entries:
        if entry.event:
            assert (entry.pid, entry.uid) == (run.supervisor, 0)
            assert entry["JOBSVC_UID"] == str(NOBODY.pw_uid)
    finished = stage.journal.entries[-2]
    assert finished["JOBSVC_RESULT"] == "success"
    assert finished["JOBSVC_EXIT_CODE"] == "0"
    assert finished["JOBSVC_STDOUT_BYTES"] == "6"


def test_a_slow_job_gets_an_entry_a_line_and_no_line_is_cut_that_comes_soon(stage: Stage) -> None:
    def entries() -> list[bytes]:
        stage.fresh()
        stage.run("sh", "-c", "for i in 1 2 3; do printf a; sleep 0.01; echo b; sleep 0.02; done")
        return [chunk.fields["MESSAGE"] for chunk in stage.journal.chunks()]

    # A busy machine may take longer than 50 ms over it now and then.
    assert eventually(lambda: entries() == [b"ab\n"] * 3)


def test_a_part_of_a_line_is_not_held_back_longer_than_50_ms(stage: Stage) -> None:
    def delay() -> float:
        stage.fresh()
        run = stage.gated("printf prompt; date +%s.%N >&2; read x")
        run.go()
        eventually(stage.journal.chunks)
        eventually(lambda: stage.journal.chunks("stderr"))
        written = float(stage.journal.chunks("stderr")[0]["MESSAGE"])
        seen = stage.journal.chunks()[0].at - time.monotonic() + time.time()
        run.on()
        run.end()
        return seen - written

    assert eventually(lambda: delay() < 0.08, 30)  # a busy machine may take longer now and then


def test_a_flood_of_small_lines_gets_big_entries(stage: Stage) -> None:
    code = "import os\nfor n in range(50000): os.write(1, b'%06d\\n' % n)"
    stage.run("/usr/bin/python3", "-c", code)
    assert stage.journal.output() == b"".join(b"%06d\n" % n for n in range(50000))
    assert len(stage.journal.chunks()) < 5000


def test_a_slow_journald_makes_the_job_wait(stage: Stage) -> None:
    stage.journal.taking.clear()
    run = stage.start("sh", "-c", "head -c 20000000 /dev/zero")
    run.go()
    run.hear("started")

    def idle() -> bool:
        used = Path(f"/proc/{run.supervisor}/stat").read_text().split()[13:15]
        time.sleep(0.5)
        return Path(f"/proc/{run.supervisor}/stat").read_text().split()[13:15] == used

    assert eventually(idle)  # nothing spins, nothing piles up, and the job has not ended
    status = Path(f"/proc/{run.supervisor}/status").read_text()
    anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    assert int(anonymous.split()[1]) < 16_000
    assert not Path(f"{stage.reports}/{run.key}").exists()
    stage.journal.taking.set()
    assert run.end()["stdout_bytes"] == 20_000_000
    assert stage.journal.output() == bytes(20_000_000)


def test_a_slow_journald_does_not_delay_the_known_end(stage: Stage) -> None:
    run = stage.gated("read x; head -c 40000 /dev/zero")
    run.go()
    run.hear("started")
    eventually(lambda: stage.journal.events() == ["started"])
    stage.journal.taking.clear()
    begun = time.monotonic()
    run.on()
    assert run.report()["result"] == "success"
    assert time.monotonic() - begun < 4  # it has five seconds to take it all
    run.hear("closed")
    assert time.monotonic() - begun > 4
    stage.journal.taking.set()


def test_the_main_process_stays_a_zombie_until_journald_has_its_output(stage: Stage) -> None:
    run = stage.gated("read x; echo last words")
    pid = run.go()
    run.hear("started")
    stage.journal.taking.clear()
    run.on()
    run.report()
    assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    stage.journal.taking.set()
    run.hear("closed")
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_a_journald_that_comes_late_gets_everything(stage: Stage) -> None:
    stage.journal.gone()
    run = stage.gated("for i in 1 2 3 4 5; do echo $i; sleep 0.02; done; read x")
    run.go()
    run.hear("started")
    time.sleep(0.5)
    stage.journal.open()
    eventually(lambda: stage.journal.output() == b"1\n2\n3\n4\n5\n")
    run.on()
    run.end()
    assert stage.journal.events() == ["started", "finished", "end-of-output"]


def test_a_journald_that_restarts_gets_what_comes_after(stage: Stage) -> None:
    run = stage.start("sh", "-c", "trap 'exit 0' USR1; i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done")
    run.go()
    for _ in range(3):
        seen = len(stage.journal.chunks())
        eventually(lambda n=seen: len(stage.journal.chunks()) > n + 3)
        stage.journal.gone()
        time.sleep(0.05)
        stage.journal.open()
    run.tell("signal", signal=signal.SIGUSR1)
    report = run.end()
    assert (report["exit_code"], report["undelivered"]) == (0, [])
    lines = stage.journal.output().splitlines(keepends=True)
    assert lines == [b"%d\n" % n for n in range(len(lines))]
    assert sum(map(len, lines)) == report["stdout_bytes"]


def test_what_no_journald_takes_is_named_after_two_seconds(stage: Stage) -> None:
    stage.journal.gone()
    run = stage.start("sh", "-c", "echo out; echo err >&2")
    begun = time.monotonic()
    run.go()
    assert run.report()["result"] == "success"
    closed = run.hear("closed")
    assert time.monotonic() - begun > 1.5
    assert sorted(closed["undelivered"]) == [["stderr", 0, 4], ["stdout", 0, 4]]
    eventually(lambda: not os.path.exists(f"/proc/{run.supervisor}"))
    assert sorted(stage.stored(run.key)["undelivered"]) == [["stderr", 0, 4], ["stdout", 0, 4]]
    stage.journal.open()


def test_log_size_max_cuts_and_counts_and_the_job_goes_on(stage: Stage) -> None:
    report = stage.run("sh", "-c", "head -c 150000 /dev/zero; echo err >&2; exit 7", log_size_max=100_000)
    assert report["exit_code"] == 7
    assert report["stdout_bytes"] == 150_000
    assert report["stderr_bytes"] == 4
    missing = sum(end - start for _, start, end in report["cut"])
    assert missing == 50_004
    kept = len(stage.journal.output()) + len(stage.journal.output("stderr"))
    assert kept == 100_000


def test_what_a_process_outside_holds_open_does_not_delay_the_end(stage: Stage) -> None:
    escape, gate = f"{stage.mount}{stage.slice}/cgroup.procs", Path(f"{stage.directory}/go")
    os.mkfifo(gate)
    gate.chmod(0o644)
    escaping = "(read x < go; while echo more; do :; done) & echo $!; read x"
    run = stage.gated(escaping, working_directory=stage.directory)
    run.go()
    pid = int(eventually(stage.journal.output))
    Path(escape).write_text(str(pid))
    gate.write_text("now\n")
    eventually(lambda: b"more" in stage.journal.output())
    run.on()
    assert run.end()["result"] == "success"
    assert stage.journal.output().startswith(b"%d\nmore\n" % pid)
    gate.unlink()


def test_offsets_are_nudged_to_followers_and_the_last_is_never_lost(stage: Stage) -> None:
    run = stage.gated("for i in 1 2 3; do read x; echo $i; done; read x; echo err >&2; read x")
    run.tell("follow", on=True)
    run.go()
    for stdout, stderr in ((2, 0), (4, 0), (6, 0), (6, 4)):
        run.on()
        while (told := run.hear("offsets"))["stdout"] + told["stderr"] < stdout + stderr:
            pass
    run.on()
    run.end()
    offsets = [(p["stdout"], p["stderr"]) for p in run.heard if p["type"] == "offsets"]
    assert offsets == sorted(offsets)
    assert {(0, 0), (2, 0), (4, 0), (6, 0), (6, 4)} <= set(offsets)
    silent = stage.start("echo")
    silent.go()
    silent.end()
    assert not [p for p in silent.heard if p["type"] == "offsets"]


def test_a_peer_that_does_not_read_hears_the_newest_offsets_and_the_end(stage: Stage) -> None:
    run = stage.start("sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done")
    run.tell("follow", on=True)
    lazy = run.connect()
    lazy.send(b'{"type":"follow","on":true}')
    run.go()
    time.sleep(1)
    report = run.end()
    size = report["stdout_bytes"]
    packets = [run.heard[-1]]
    data = lazy.recv(1 << 17)
    seen = []
    while data:
        seen.append(data)
        data = lazy.recv(1 << 17)
    assert any(b'"closed"' in packet for packet in seen)
    assert any(b'"offsets","stdout":%d' % size in packet for packet in seen)
    assert packets[0]["type"] == "closed"


def test_output_goes_to_files_too_as_the_user(stage: Stage) -> None:
    home = Path(stage.directory) / "home"
    home.mkdir()
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    (home / "log").write_text("before\n")
    os.chown(home / "log", NOBODY.pw_uid, NOBODY.pw_gid)
    report = stage.run(
        "sh",
        "-c",
        "echo out; echo err >&2",
        standard_output=f"append:{home}/log",
        standard_error=f"truncate:{home}/new",
        umask=0o027,
    )
    assert report["result"] == "success"
    assert (home / "log").read_text() == "before\nout\n"
    assert (home / "new").read_text() == "err\n"
    status = (home / "new").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (NOBODY.pw_uid, 0o640)
    assert stage.journal.output() == b"out\n"


def test_a_run_tells_how_far_it_is_and_is_cut_when_its_owner_has_no_more(stage: Stage) -> None:
    script = "yes | head -c 5000000; read x; yes | head -c 5000000"
    words = ["sh", "-c", script]
    run = stage.gated(script, output_step=1_000_000, log_size_max=10**9, output_left=10**9 + 1)
    run.go()
    told = [run.hear("offsets")["stdout"]]
    while told[-1] < 4_000_000:
        told.append(run.hear("offsets")["stdout"])
    assert len(told) <= 5
    eventually(lambda: len(stage.journal.output()) == 5_000_000)
    assert run.ask("bounds", output_left=1000 + ENTRY_COST)["error"] == ""
    run.on()
    report = run.end()
    assert report["cut"] == [["stdout", 5_001_000, 10_000_000]]
    assert report["notes"] == ["its output was cut: MaxOutputPerUser= is reached"]
    assert len(stage.journal.output()) == 5_001_000
    assert report["journal_bytes"] == len(stage.journal.chunks()) * ENTRY_COST + length(words) + 5_001_000


def length(words: list[str]) -> int:
    """What a process has of them in its memory, and journald takes down."""
    return sum(len(word) + 1 for word in words)


@pytest.mark.parametrize(
    ("left", "kept", "notes"), [(900, 900, ["its output was cut: MaxOutputPerUser= is reached"]), (10**6, 1000, [])]
)
def test_what_cut_the_output_is_told(stage: Stage, left: int, kept: int, notes: list[str]) -> None:
    script = "head -c 2000 /dev/zero; read x"
    words = ["sh", "-c", script]
    run = stage.gated(script, log_size_max=1000, output_left=ENTRY_COST + length(words) + left)
    run.go()
    eventually(stage.journal.chunks)
    run.on()
    report = run.end()
    assert (report["cut"], report["notes"]) == ([["stdout", kept, 2000]], notes)


def test_many_small_entries_count_as_what_the_journal_needs_for_them(stage: Stage) -> None:
    script, left = "while read x; do echo $x; done", 10 * ENTRY_COST
    run = stage.gated(script, output_left=left)
    run.go()
    for number in range(9):  # so many have room, each by itself
        run.on("x")
        eventually(lambda n=number: len(stage.journal.chunks()) == n + 1)
    for _ in range(20):
        run.on("x")
    os.close(run.gate)
    report = run.end()
    words = ["sh", "-c", script]
    assert report["journal_bytes"] == 9 * ENTRY_COST + length(words) + len(stage.journal.output()) <= left
    assert report["cut"] == [["stdout", 18, 2 * 29]]


def test_each_command_line_that_journald_takes_down_counts(stage: Stage) -> None:
    again = 'exec sh -c "read x; echo; read x" "$(head -c 50000 /dev/zero | tr "\\0" x)"'
    run = stage.gated(f"echo; {again}")
    run.go()
    eventually(stage.journal.chunks)
    time.sleep(1.1)  # as often as journald looks
    run.on()
    eventually(lambda: len(stage.journal.chunks()) == 2)
    run.on()
    assert 50_000 < run.end()["journal_bytes"] < 55_000


def test_output_that_was_cut_does_not_go_on(stage: Stage) -> None:
    """The first entry has no room for its command line; the next would have room without it."""
    run = stage.gated(f"echo 1; read x; echo 2; read x # {50_000 * 'x'}", output_left=10_000)
    run.go()
    run.hear("started")
    time.sleep(0.2)
    run.on()
    run.on()
    assert run.end()["cut"] == [["stdout", 0, 4]]
    assert stage.journal.chunks() == []


def test_no_event_is_as_long_as_what_could_not_be_executed(stage: Stage) -> None:
    report = stage.run("/" + 100_000 * "x")
    assert len(report["reason"]) > 100_000
    assert stage.journal.events() == ["finished", "end-of-output"]
    assert all(len(entry.fields["MESSAGE"]) < 1000 for entry in stage.journal.entries)


def test_a_quiet_run_tells_only_where_output_ends(stage: Stage) -> None:
    stage.run("echo", "out", quiet=True)
    assert stage.journal.events() == ["end-of-output"]
    stage.fresh()
    assert stage.run("true", quiet=True)["journal_bytes"] == 0
    assert stage.journal.entries == []


class Server:
    """A file on a server that does not answer until it is told to."""

    def __init__(self, stage: Stage, name: str) -> None:
        place = Path(stage.directory) / name
        place.mkdir()
        self.path = place / "hangs"
        os.mkfifo(self.path)
        os.chown(self.path, NOBODY.pw_uid, NOBODY.pw_gid)
        self.fd = os.open(self.path, os.O_RDWR)
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, 4096)

    def answer(self) -> bytes:
        """All it is sent, until everybody has gone who sends something."""
        reader = os.open(self.path, os.O_RDONLY)
        os.close(self.fd)
        with open(reader, "rb") as file:
            return file.read()


FLOOD = "head -c 3000000 /dev/zero"


@pytest.mark.parametrize("way", ["stop", "timeout", "term", "killed"])
def test_a_file_that_hangs_delays_no_end(stage: Stage, way: str) -> None:
    server = Server(stage, f"server-{way}")
    run = stage.start(*FLOOD.split(), standard_output=f"append:{server.path}")
    pid = run.go()
    eventually(lambda: len(stage.journal.output()) > 65536)
    match way:
        case "timeout":
            assert run.ask("bounds", runtime_max_usec=1)["error"] == ""
        case "stop":
            run.tell("stop", reason="enough")
        case "term":
            os.kill(run.supervisor, signal.SIGTERM)
        case "killed":
            os.kill(pid, signal.SIGKILL)
    report = run.end()
    wanted = {"stop": "stopped", "timeout": "timeout", "term": "stopped", "killed": "signal"}
    assert report["result"] == wanted[way]
    assert report["notes"] == [f"{server.path}: not written in time after 0 bytes"]  # its first write never returned
    assert 65536 < report["stdout_bytes"] < 3_000_000  # it waited in write(2)
    assert len(stage.journal.output()) == report["stdout_bytes"]
    assert report["finished_usec"] - report["started_usec"] < 1_000_000 + report["runtime_usec"]
    os.close(server.fd)


def test_a_file_that_hangs_for_a_while_gets_all_of_it(stage: Stage) -> None:
    server = Server(stage, "server-slow")
    run = stage.start("sh", "-c", f"{FLOOD}; echo done >&2", standard_output=f"append:{server.path}")
    run.go()
    eventually(lambda: len(stage.journal.output()) > 4096)
    assert stage.journal.output("stderr") == b""
    wrote = server.answer()
    report = run.end()
    assert (report["result"], report["notes"], report["stdout_bytes"]) == ("success", [], 3_000_000)
    assert wrote == bytes(3_000_000)


def test_a_file_that_hangs_holds_up_no_other_stream(stage: Stage) -> None:
    server = Server(stage, "server-other")
    script = f"{FLOOD} & head -c 500000 /dev/zero >&2; echo done >&2; wait"
    run = stage.start("sh", "-c", script, standard_output=f"append:{server.path}")
    run.go()
    eventually(lambda: stage.journal.output("stderr").endswith(b"done\n"))
    server.answer()
    assert run.end()["notes"] == []


def test_the_process_that_writes_files_ends_with_its_run_and_is_small(stage: Stage) -> None:
    path = Path(stage.directory) / "home-of-files"
    path.mkdir()
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    run = stage.start("sh", "-c", "echo on; sleep 100", standard_output=f"append:{path}/log")
    pid = run.go()
    eventually(lambda: (path / "log").exists() and (path / "log").read_bytes() == b"on\n")
    children = Path(f"/proc/{run.supervisor}/task/{run.supervisor}/children").read_text().split()
    (writer,) = {int(child) for child in children} - {pid}
    rollup = Path(f"/proc/{writer}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    assert private < 2000, rollup  # KiB
    os.kill(writer, signal.SIGKILL)
    run.tell("stop")
    assert run.end()["notes"] == [f"{path}/log: not written any more after 3 bytes"]
    assert not lives(writer)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "roots", "device"])
def test_only_the_users_own_regular_files_are_opened(stage: Stage, kind: str) -> None:
    place = Path(stage.directory) / f"place-{kind}"
    place.mkdir()
    os.chown(place, NOBODY.pw_uid, NOBODY.pw_gid)
    target = place / "target"
    secret = Path(stage.directory) / f"secret-{kind}"
    secret.write_text("secret")
    match kind:
        case "symlink":
            target.symlink_to(secret)
        case "fifo":
            os.mkfifo(target)
            os.chown(target, NOBODY.pw_uid, NOBODY.pw_gid)
        case "directory":
            target.mkdir()
        case "roots":
            target = secret
        case "device":
            target = Path("/dev/null")
    report = stage.run("echo", "x", standard_output=f"truncate:{target}")
    assert (report["result"], report["exit_code"], report["step"]) == ("start-failed", 126, "stdout")
    assert f"cannot open {target}: " in report["reason"]
    assert secret.read_text() == "secret"
