"""run: the job's output is ours, its end is our exit code, our interrupts are its."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from fake_service import FakeService, GoAway, Jobctl, Refusal, unhurried

from jobsvc.chunks import Missing
from jobsvc.formats import End, Trailer

ID = "000000000000abc0"


def test_streams_are_apart_and_the_exit_code_is_the_jobs(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"out\0\xff\n\n")
    service.write("stderr", b"err  \n")
    service.write("stdout", b"no newline")
    service.trailer = Trailer(End(1, "failed", "exit-code", 3))
    assert jobctl.raw("run", "--", "sh", "-c", "x") == (3, b"out\0\xff\n\nno newline", b"err  \n")
    _, body = next(call for call in service.calls if call[0] == "Logs")
    assert body[1]["Follow"] == ("b", True)
    assert body[1]["Run"] == ("u", 1)


@pytest.mark.parametrize("code", [0, 1, 2, 124, 125, 126, 127, 128, 137, 255])
def test_every_exit_code_comes_back(service: FakeService, jobctl: Jobctl, code: int) -> None:
    end = End(1, "failed", "exit-code", code) if code else End(1, "completed", "success", 0)
    service.trailer = Trailer(end)
    assert jobctl("run", "x") == (code, "", "")


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        (End(1, "failed", "signal", None, 9), 137, "was ended by SIGKILL"),
        (End(1, "failed", "core-dump", None, 11), 139, "crashed with SIGSEGV and dumped core"),
        (End(1, "failed", "signal", None, 35), 163, "was ended by signal 35"),
        (End(1, "failed", "timeout", None, 15), 124, "ran into its time limit and was stopped"),
        (End(1, "failed", "oom-kill", None, 9), 137, "ran out of memory and was killed"),
        (End(1, "failed", "oom-kill", 0, None), 137, "ran out of memory and was killed"),
        (End(1, "failed", "start-failed", 127), 127, "could not be started"),
        (End(1, "failed", "start-failed"), 125, "could not be started"),
        (End(1, "failed", "lost"), 125, "was lost: nobody saw how it ended"),
        (End(1, "stopped", "stopped", None, 15), 143, "was stopped"),
        (End(1, "stopped", "stopped", 0), 0, "was stopped"),
        (End(1, "stopped", "canceled"), 125, "was canceled before it began"),
    ],
)
def test_an_unusual_end_is_explained(service: FakeService, jobctl: Jobctl, end: End, code: int, text: str) -> None:
    service.trailer = Trailer(end)
    service.on["Status"] = lambda *_: ("a{sv}", ({},))
    assert jobctl("run", "x") == (code, "", f"jobctl: job {ID} {text}\n")


def test_the_services_reason_is_the_better_one(service: FakeService, jobctl: Jobctl) -> None:
    service.trailer = Trailer(End(1, "failed", "start-failed", 127))
    service.on["Status"] = lambda *_: ("a{sv}", ({"Reason": ("s", "cannot execute x\x1b")},))
    assert jobctl("run", "x") == (127, "", f"jobctl: job {ID} (start-failed): cannot execute x\\x1b\n")


def test_missing_output_is_named(service: FakeService, jobctl: Jobctl) -> None:
    service.trailer = Trailer(End(1, "completed", "success", 0), (Missing("stdout", 3, 7, "cut"),))
    assert jobctl("run", "x") == (0, "", "jobctl: bytes 3 to 7 of stdout are missing (cut)\n")


@pytest.mark.parametrize(("end", "code"), [(0, 125), (3, 3)])
def test_success_without_the_whole_output_is_none(service: FakeService, jobctl: Jobctl, end: int, code: int) -> None:
    service.trailer = Trailer(End(1, "completed", "success", end), (Missing("stdout", 3, 7, "lost"),))
    assert jobctl("run", "x") == (code, "", "jobctl: bytes 3 to 7 of stdout are missing (lost)\n")


def test_own_failures_are_125(service: FakeService, jobctl: Jobctl) -> None:
    def refuse(*_: Any) -> Any:
        raise Refusal("org.freedesktop.DBus.Error.AccessDenied", "not as root\x1b[2J")

    service.on["Start"] = refuse
    assert jobctl("run", "--uid", "root", "true") == (125, "", "jobctl: not as root\\x1b[2J\n")
    assert jobctl("start", "--uid", "root", "true").code == 5


def test_without_a_service_it_is_125(bus: str, jobctl: Jobctl) -> None:
    assert jobctl("run", "true").code == 125
    assert jobctl("start", "true").code == 6


def test_it_goes_on_where_it_was_when_the_service_is_restarted(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"before ")
    service.trailer = None

    def logs(job_id: str, options: Any) -> Any:
        if "FromStdout" in options:
            service.write("stdout", b"after")
            service.trailer = Trailer(End(1, "failed", "exit-code", 7))
        return service.Logs(job_id, options)

    service.on["Logs"] = logs
    service.held.clear()
    process = jobctl.start("run", "x")
    service.saw("Logs")
    service.leave()
    service.held.set()
    service.enter()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, unhurried(err)) == (7, b"before after", b"")


def interrupted(service: FakeService, jobctl: Jobctl) -> subprocess.Popen[bytes]:
    """A jobctl that follows a job which does not end by itself."""
    service.held.clear()
    service.trailer = Trailer(End(1, "stopped", "stopped", None, 15))
    process = jobctl.start("run", "sleep", "inf", start_new_session=True)
    service.saw("Logs")
    return process


def test_ctrl_c_stops_the_job_and_its_end_is_ours(service: FakeService, jobctl: Jobctl) -> None:
    process = interrupted(service, jobctl)
    process.send_signal(signal.SIGINT)
    assert service.saw("Stop")[0] == ID
    service.write("stdout", b"cleaning up\n")
    service.held.set()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert f"stopping job {ID}; Ctrl-C again kills it" in err.decode()


def test_ctrl_c_twice_kills_and_thrice_leaves(service: FakeService, jobctl: Jobctl) -> None:
    process = interrupted(service, jobctl)
    process.send_signal(signal.SIGINT)
    service.saw("Stop")
    process.send_signal(signal.SIGINT)
    assert service.saw("Kill")[:3] == (ID, "all", 9)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "to itself" in err.decode()


@pytest.mark.parametrize("name", ["org.jobsvc1.Error.NotAuthorized", "org.freedesktop.DBus.Error.AccessDenied"])
def test_a_stop_that_is_refused_is_told(service: FakeService, jobctl: Jobctl, name: str) -> None:
    def refuse(*_: Any) -> Any:
        raise Refusal(name, "not yours")

    service.on |= {"Stop": refuse, "Kill": refuse}
    process = interrupted(service, jobctl)
    assert process.stderr
    process.send_signal(signal.SIGINT)
    told = iter(process.stderr.readline, b"")
    assert f"jobctl: cannot stop job {ID}: not yours\n".encode() in told
    process.send_signal(signal.SIGINT)
    assert f"jobctl: cannot kill job {ID}: not yours\n".encode() in told
    service.held.set()
    process.communicate(timeout=120)


def test_sigterm_stops_the_job_as_well(service: FakeService, jobctl: Jobctl) -> None:
    process = interrupted(service, jobctl)
    process.send_signal(signal.SIGTERM)
    service.saw("Stop")
    process.send_signal(signal.SIGTERM)
    service.held.set()
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Kill" not in [member for member, _ in service.calls]


def test_ctrl_c_is_heard_while_nobody_reads_our_output(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"x" * 1_000_000)
    process = interrupted(service, jobctl)
    process.send_signal(signal.SIGINT)
    service.saw("Stop")
    service.held.set()
    out, _ = process.communicate(timeout=120)
    assert out == b"x" * 1_000_000
    assert process.returncode == 143


def test_a_stop_that_the_service_did_not_hear_is_said_again(service: FakeService, jobctl: Jobctl) -> None:
    def die(*_: Any) -> Any:
        del service.on["Stop"]
        raise GoAway

    service.on["Stop"] = die
    process = interrupted(service, jobctl)
    process.send_signal(signal.SIGINT)
    service.saw("Stop")
    service._thread.join()
    service.calls.clear()
    service.enter()
    assert service.saw("Stop")[0] == ID
    service.held.set()
    process.communicate(timeout=120)
    assert process.returncode == 143


def test_when_the_reader_goes_the_job_is_stopped(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"y\n" * 1_000_000)
    process = interrupted(service, jobctl)
    assert process.stdout
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    service.saw("Stop")
    assert process.wait(120) == 141
    assert process.stderr
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [("<&-", b"out", b"err"), (">&-", b"", b"err"), ("2>&-", b"out", b""), ("<&- >&- 2>&-", b"", b"")],
)
def test_what_is_closed_stays_out_of_the_way(
    service: FakeService, jobctl: Jobctl, closed: str, out: bytes, err: bytes
) -> None:
    service.write("stdout", b"out")
    service.write("stderr", b"err")
    service.trailer = Trailer(End(1, "failed", "exit-code", 3))
    for args in ("run x", "run -i x", f"logs {ID}"):
        command = f'exec "$0" -m jobsvc.cli {args} {closed}'
        done = subprocess.run(
            ["sh", "-c", command, sys.executable], env=jobctl.environment, capture_output=True, timeout=20
        )
        assert (done.returncode, done.stdout, done.stderr) == (3 if "run" in args else 0, out, err)


def test_output_that_finds_no_room_stops_the_job(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"x")
    with open("/dev/full", "wb") as full:
        done = jobctl("run", "x", stdout=full)
    assert (done.code, done.err) == (125, "jobctl: No space left on device\n")
    assert service.saw("Stop")[0] == ID


def test_the_unforeseen_is_125(service: FakeService, jobctl: Jobctl) -> None:
    service.on["Start"] = lambda *_: ("", ())
    done = jobctl("run", "x")
    assert done.code == 125
    assert done.err.startswith("jobctl: unexpected IndexError")
    assert jobctl("start", "x").code == 1


def test_standard_input_is_passed_only_when_asked_for(service: FakeService, jobctl: Jobctl) -> None:
    got: list[bytes] = []
    start = service.Start

    def take(spec: Any) -> Any:
        with os.fdopen(spec["StandardInput"][1].to_raw_fd(), "rb") as stdin:
            got.append(stdin.read())
        return start(spec)

    service.on["Start"] = take
    read, write = os.pipe()
    os.write(write, b"input")
    os.close(write)
    assert jobctl("run", "-i", "cat", stdin=read).code == 0
    os.close(read)
    assert got == [b"input"]
    service.on.clear()
    jobctl("run", "cat")
    assert "StandardInput" not in service.calls[-3][1][0]
