"""A porter has what a user handed over, and nobody else does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import NOBODY, REPOSITORY, Stage, eventually, lives, needs_root, staged, use_loopback

from jobsvc import control, porter

pytestmark = needs_root


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def fresh(stage: Stage) -> tuple[socket.socket, int]:
    """A porter: the channel to it, and its pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    with theirs:
        control.send_fds(stage.connection, control.pack_first("porter", run="p"), [theirs.fileno()])
    answer = control.unpack_first(stage.connection.recv(4096))
    assert answer["type"] == "launched"
    return ours, answer["pid"]


def test_a_keeper_has_the_rights_of_the_user_who_cannot_touch_it(stage: Stage) -> None:
    """Whoever closes a descriptor does it with some rights; and a user may signal and trace processes of their own."""
    theirs, ours = os.pipe()
    _, pid = stage.keep(theirs)
    os.close(theirs)
    found = status(pid)
    assert found["Uid"].split() == ["0", str(NOBODY.pw_uid), "0", str(NOBODY.pw_uid)]
    assert found["Gid"].split() == ["65534"] * 4
    assert found["Groups"] == ""
    assert [int(found[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "0"
    code = f"""
import os, sys
for forbidden in (lambda: os.kill({pid}, 9), lambda: os.listdir("/proc/{pid}/fd"), lambda: open("/proc/{pid}/mem")):
    try:
        forbidden()
    except PermissionError:
        continue
    sys.exit(1)
"""
    subprocess.run(["/usr/bin/python3", "-c", code], user=NOBODY.pw_uid, check=True)
    os.close(ours)


def test_a_keeper_gives_again_and_again_and_to_root_only(stage: Stage) -> None:
    theirs, ours = os.pipe()
    path, pid = stage.keep(theirs)
    os.close(theirs)
    for word in (b"one", b"two"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            end.connect(path)
            assert control.peer(end) == (pid, NOBODY.pw_uid)
            end.send(b"give")
            _, (fd,) = control.receive(end)
            os.write(ours, word)
            assert os.read(fd, 9) == word
            os.close(fd)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.connect(path)
        end.send(b"anything else")
        assert end.recv(9) == b""
    os.chmod(path, 0o777)
    code = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET);"
        "s.settimeout(5); s.connect(sys.argv[1]); print(s.recv(10))"
    )
    os.chmod(stage.directory, 0o755)
    shown = subprocess.run(["/usr/bin/python3", "-c", code, path], user=NOBODY.pw_uid, capture_output=True, check=True)
    assert shown.stdout == b"b''\n"
    os.kill(pid, signal.SIGKILL)
    os.set_blocking(ours, False)
    eventually(lambda: not lives(pid))
    with pytest.raises(BrokenPipeError):  # nobody else has the other end
        os.write(ours, b"x")
    os.close(ours)


def test_what_is_dropped_is_closed_again_and_again(stage: Stage) -> None:
    channel, pid = fresh(stage)
    before = None
    for _ in range(3):
        bus, peer = socket.socketpair()
        bus.setblocking(False)
        theirs, ours = os.pipe()
        socket.send_fds(peer, [b"y" * 20], [ours])
        os.close(ours)
        control.send_fds(channel, control.pack("drop", uid=NOBODY.pw_uid), [bus.fileno()])
        assert control.unpack(channel.recv(4096))["type"] == "read"
        assert bus.recv(99) == b"y" * 4
        assert os.read(theirs, 1) == b""  # the last to have it was the porter
        os.close(theirs)
        now = os.listdir(f"/proc/{pid}/fd")
        assert now == (before or now)
        before = now
        assert status(pid)["Uid"].split() == ["0", str(NOBODY.pw_uid), "0", str(NOBODY.pw_uid)]
        bus.close()
        peer.close()
    channel.close()
    eventually(lambda: not lives(pid))


def test_a_porter_that_hangs_over_what_is_dropped_reads_on(stage: Stage) -> None:
    channel, pid = fresh(stage)
    use_loopback()
    listener = socket.create_server(("127.0.0.1", 0))
    lingers = socket.create_connection(listener.getsockname())
    deaf, _ = listener.accept()
    lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 100, 0, 0, 0]))
    lingers.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            lingers.send(b"x" * 100_000)
    bus, peer = socket.socketpair()
    bus.setblocking(False)
    socket.send_fds(peer, [b"y" * 20], [lingers.fileno()])
    lingers.close()
    for left in (1, 2, 3):
        control.send_fds(channel, control.pack("drop", uid=NOBODY.pw_uid), [bus.fileno()])
        assert control.unpack(channel.recv(4096)) == {"type": "read", "count": 0, "left": left}
        assert bus.recv(99) == b"y" * 4
        theirs, ours = os.pipe()
        socket.send_fds(peer, [b"y" * 20], [ours])
        os.close(theirs)
        os.close(ours)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not lives(pid))
    for end in (channel, deaf, listener, bus, peer):
        end.close()


def test_the_main_process_gets_its_input_as_the_user_and_nobody_else_has_it(stage: Stage) -> None:
    stage.fresh()
    theirs, ours = os.pipe()
    run = stage.start("sh", "-c", "read x; echo $x; read y; ls /proc/self/fd", stdin=theirs)
    os.close(theirs)
    pipe = os.stat(ours).st_ino
    run.go()
    os.write(ours, b"one\n")
    run.hear("started")

    def holders() -> set[int]:
        found = set()
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                if any(os.stat(f"/proc/{pid}/fd/{fd}").st_ino == pipe for fd in os.listdir(f"/proc/{pid}/fd")):
                    found.add(int(pid))
            except OSError:
                continue
        return found - {os.getpid()}

    main = run.heard[0].get("main_pid") or next(p["main_pid"] for p in run.heard if "main_pid" in p)
    assert holders() == {main, stage.kept[-1]}
    os.kill(stage.kept[-1], signal.SIGKILL)
    os.write(ours, b"two\n")
    os.close(ours)
    assert run.end()["result"] == "success"
    assert stage.journal.output() == b"one\n0\n1\n2\n3\n"


def test_an_input_that_nobody_keeps_is_a_failed_step(stage: Stage) -> None:
    theirs, ours = os.pipe()
    path, pid = stage.keep(theirs)
    os.close(theirs)
    os.close(ours)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not lives(pid))
    report = stage.run("cat", standard_input=path)
    assert (report["result"], report["step"], report["exit_code"]) == ("start-failed", "stdin", 126)
    assert report["reason"] == "cannot get its standard input: Connection refused"
    report = stage.run("cat", standard_input=f"{path}-never")
    assert report["reason"] == "cannot get its standard input: No such file or directory"


def test_get_gives_the_lowest_number_and_no_other(tmp_path: Path) -> None:
    """A second one would have to be closed, which might hang."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (tmp_path / "x").write_text("mine")
    with (tmp_path / "x").open() as file:
        control.send_fds(there, b"given", [file.fileno()])
    free = os.dup(0)
    before = len(os.listdir("/proc/self/fd"))
    porter.get(here, free)
    assert os.read(free, 9) == b"mine"
    assert os.get_inheritable(free)
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the connection's
    os.close(free)
    there.close()


def test_a_porter_whose_service_was_killed_ends_without_a_word() -> None:
    """It has something to say that nobody reads: its next read is reset."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(b"unread")
    ours.close()
    code = "import sys; from jobsvc import porter; porter.enter(int(sys.argv[1]))"
    argv = [sys.executable, "-c", code, str(theirs.fileno())]
    done = subprocess.run(argv, cwd=REPOSITORY, pass_fds=[theirs.fileno()], capture_output=True, check=False)
    theirs.close()
    assert done.stderr == b""
