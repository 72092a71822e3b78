"""A job with a terminal: its own session, what is typed into it, its size, and its output to the last byte."""

from __future__ import annotations

import socket
import struct
from types import SimpleNamespace

from stage import NOBODY, Run, Stage, eventually, needs_root

from jobsvc import control, loop
from jobsvc.pump import Pump
from jobsvc.request import Request

pytestmark = needs_root


def seated(stage: Stage, script: str, **facts: object) -> Run:
    run = stage.start("sh", "-c", script, terminal=[30, 100], **facts)
    run.go()
    run.hear("started")
    return run


def attach(run: Run) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        control.send_fds(run.connection, control.pack("ask", ask=1, what="attach"), [theirs.fileno()])
    assert run.hear("answer")["error"] == ""
    ours.settimeout(60)
    return ours


def test_it_leads_a_session_with_a_terminal_of_the_users(stage: Stage) -> None:
    script = "tty; stat -c %U $(tty); ps -o pid=,sid=,tpgid= $$; stty size; echo $TERM; echo over >/dev/tty"
    script += "; ls /proc/self/fd"
    run = seated(stage, script)
    report = run.end()
    lines = stage.journal.output().decode().split("\r\n")
    assert report["result"] == "success", report
    assert lines[0].startswith("/dev/pts/")
    assert lines[1] == NOBODY.pw_name
    assert len(set(lines[2].split())) == 1
    assert lines[3:6] == ["30 100", "vt220", "over"]
    assert lines[6].split() == ["0", "1", "2", "3"]
    assert report["stderr_bytes"] == 0


def test_what_is_typed_is_read_and_ctrl_c_is_a_character(stage: Stage) -> None:
    run = seated(
        stage, "trap 'echo got; exit 5' INT; read a; echo you said $a; stty size; while :; do sleep 0.05; done"
    )
    client = attach(run)
    client.send(b"w" + struct.pack("HH", 50, 132))
    client.send(b"ihel")
    client.send(b"ilo\n")
    eventually(lambda: b"you said hello\r\n50 132" in stage.journal.output())
    client.send(b"i\x03")
    report = run.end()
    assert (report["result"], report["exit_code"]) == ("exit-code", 5)
    assert stage.journal.output().endswith(b"^Cgot\r\n")
    assert client.recv(10) == b""  # the run is over


def test_the_end_of_input_and_a_client_that_leaves(stage: Stage) -> None:
    run = seated(stage, "cat; echo eof; read b; echo $b")
    attach(run).close()
    first, second = attach(run), attach(run)
    first.send(b"iabc\n")
    first.send(b"i")
    eventually(lambda: b"eof" in stage.journal.output())
    first.close()
    second.send(b"x")  # not a packet of ours
    second.send(b"ibye\n")
    assert run.end()["result"] == "success"
    assert stage.journal.output() == b"abc\r\nabc\r\neof\r\nbye\r\nbye\r\n"


def test_output_is_whole_and_a_job_may_close_its_terminal(stage: Stage) -> None:
    run = seated(stage, "stty -onlcr; seq 30000; exec <&- >&- 2>&-; sleep 0.2; exit 3")
    assert run.end()["exit_code"] == 3
    assert stage.journal.output() == b"".join(b"%d\n" % n for n in range(1, 30001))


def test_much_typed_to_a_job_that_does_not_read_waits(stage: Stage) -> None:
    run = seated(stage, "stty raw -echo; echo on; sleep 0.5; head -c 200000 | wc -c")
    eventually(stage.journal.output)
    client = attach(run)
    for _ in range(200):
        client.send(b"i" + b"x" * 1000)
    assert run.end()["result"] == "success"
    assert stage.journal.output().split() == [b"on", b"200000"]


def test_part_of_a_line_is_not_held_back_from_who_sits_there() -> None:
    events, sent = loop.Loop(), []
    request = Request(Stage.request(SimpleNamespace(numbers=iter([1])), "true"))  # type: ignore[arg-type]
    for terminal, at_once in ((True, [b"$ "]), (False, [])):
        pump = Pump(events, request, -1, -1, terminal)
        pump.sender = SimpleNamespace(send=lambda entry: sent.append(entry.parts[1]), busy=False)  # type: ignore[assignment]
        pump.take(pump.streams[0], b"$ ")
        assert sent == at_once
        sent.clear()


def test_no_more_than_enough_attach_and_none_where_is_nothing(stage: Stage) -> None:
    run = seated(stage, "read a")
    clients = [attach(run) for _ in range(16)]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        control.send_fds(run.connection, control.pack("ask", ask=1, what="attach"), [theirs.fileno()])
        assert "too many" in run.hear("answer")["error"]
    clients[0].send(b"i\n")
    run.end()
    run = stage.start("sleep", "100")
    run.go()
    run.hear("started")
    assert "attach" in run.ask("attach")["error"]
    run.tell("stop")
    run.end()


def test_a_shell_at_its_terminal_is_stopped_by_a_hang_up(stage: Stage) -> None:
    run = stage.start("bash", "-i", terminal=[24, 80], timeout_stop_usec=60_000_000)
    run.go()
    run.hear("started")
    eventually(stage.journal.output)
    run.tell("stop")
    assert run.end()["result"] == "stopped"
