"""logs: exact bytes into pipes, harmless text on terminals, and nothing missing in silence."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_service import BOOT, FakeService, Jobctl, job, unhurried

from jobsvc.chunks import Chunk, Missing
from jobsvc.formats import End, Export, Trailer

ID = job()["Id"]
ODD = bytes(range(256)) + b"\n\n  \n" + "täst \u202e".encode() + b"\r\nno newline"


@pytest.fixture(autouse=True)
def arch(service: FakeService) -> None:
    service.jobs[ID] = job()
    service.trailer = Trailer(End(1, "completed", "success", 0, None, len(ODD), 4))


def test_bytes_are_exact_and_streams_apart(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", ODD)
    service.write("stderr", b"err\0")
    assert jobctl.raw("logs", "arch") == (0, ODD, b"err\0")
    assert jobctl.raw("logs", "-f", ID, "-o", "raw") == (0, ODD, b"err\0")


def test_options_are_passed_on_and_the_run_is_named(service: FakeService, jobctl: Jobctl) -> None:
    command = ["logs", "arch", "-n", "5", "--stream", "stderr", "--run", "2", "--since", "@10.5"]
    assert jobctl(*command, "--until", "2026-01-01 00:00:00", "-f").code == 0
    options = {key: value for key, (_, value) in service.calls[-1][1][1].items()}
    assert options == {
        "Format": "export", "Follow": True, "Lines": 5, "Stream": "stderr", "Run": 2,
        "SinceUSec": 10_500_000, "UntilUSec": 1_767_225_600_000_000,
    }  # fmt: skip


def test_what_is_missing_is_named_and_the_exit_status_says_so(service: FakeService, jobctl: Jobctl) -> None:
    service.output = [Chunk("stdout", 10, b"rest", 1)]
    gaps = (Missing("stdout", 0, 10, "cut"), Missing("stderr", 0, 4, "lost"))
    service.trailer = Trailer(End(1, "completed"), gaps)
    assert jobctl("logs", "arch") == (
        1,
        "rest",
        "jobctl: bytes 0 to 10 of stdout are missing (cut)\njobctl: bytes 0 to 4 of stderr are missing (lost)\n",
    )


def test_short_is_a_line_at_a_time(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"hello\nwor")
    service.write("stderr", b"bad\x1b[2J\n", 61)
    service.write("stdout", b"ld", 2)
    assert jobctl("logs", "arch", "-o", "short") == (
        0,
        (
            "Jan 01 10:00:00 arch[4711]: hello\n"
            "Jan 01 10:01:01 arch[4711]: bad\\x1b[2J\n"
            "Jan 01 10:00:00 arch[4711]: world\n"
        ),
        "",
    )


def test_json_is_a_chunk_a_line_and_a_trailer(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"hello\n")
    service.write("stderr", b"\xff")
    for command in (["logs", "arch", "-o", "json"], ["-o", "json", "logs", "arch"]):
        first, second, last = map(json.loads, jobctl(*command).out.splitlines())
        assert first == {
            "stream": "stdout", "offset": 0, "length": 6, "time": "2026-01-01T10:00:00.000000Z",
            "encoding": "utf-8", "data": "hello\n",
        }  # fmt: skip
        assert (second["encoding"], second["data"]) == ("base64", "/w==")
        assert (last["end"], last["result"], last["missing"]) == (True, "success", [])


def test_export_reads_back(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", ODD)
    _, out, _ = jobctl.raw("logs", "arch", "-o", "export")
    chunk, trailer = Export().feed(out)
    assert isinstance(chunk, Chunk)
    assert chunk.data == ODD
    assert trailer == service.trailer
    assert f"_BOOT_ID={BOOT}\n".encode() in out
    assert f"JOBSVC_ID={ID}\n".encode() in out


@pytest.mark.parametrize("paged", [True, False])
def test_what_goes_into_a_file_is_exact_beside_a_terminal(
    service: FakeService, jobctl: Jobctl, tmp_path: Path, paged: bool
) -> None:
    service.write("stdout", b"out\x1b\n")
    service.write("stderr", ODD)
    jobctl.environment["SYSTEMD_PAGER"] = "sed s/^/paged:/" if paged else ""
    with (tmp_path / "err").open("wb") as err:
        shown = jobctl.on_terminal("logs", "arch", stderr=err)
    assert shown.out == ("paged:" if paged else "") + "out\\x1b\r\n"
    assert (tmp_path / "err").read_bytes() == ODD


@pytest.mark.parametrize("form", ["raw", "short", "json", "export"])
def test_nothing_acts_on_a_terminal(service: FakeService, jobctl: Jobctl, form: str) -> None:
    service.write("stdout", ODD)
    service.write("stderr", b"\x1b]52;c;eA==\x07\n")
    shown = jobctl.on_terminal("--no-pager", "logs", "arch", "-o", form).out
    assert shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert all(char.isprintable() or char in "\r\n\t" for char in shown)


def test_a_terminal_shows_what_was_escaped(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"a\x1b[31mb\n\ttab \xff caf\xc3")
    service.write("stdout", b"\xa9\n")
    shown = jobctl.on_terminal("--no-pager", "logs", "arch")
    assert shown.out == "a\\x1b[31mb\r\n\ttab \\xff café\r\n"


def test_a_reader_that_has_enough_is_no_error(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"y\n" * 1_000_000)
    process = jobctl.start("logs", "arch")
    assert process.stdout
    assert process.stderr
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_full_disk_is_an_error(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"data")
    with open("/dev/full", "wb") as full:
        for command in (["logs", "arch"], ["list"], ["status", "arch"], ["list", "-o", "json"]):
            done = jobctl(*command, stdout=full)
            assert (done.code, done.err) == (1, "jobctl: No space left on device\n")


def test_followers_end_with_the_job(service: FakeService, jobctl: Jobctl) -> None:
    service.held.clear()
    service.write("stdout", b"so far\n")
    followers = [jobctl.start("logs", "-f", "arch") for _ in range(2)]
    for process in followers:
        assert process.stdout
        assert process.stdout.read(7) == b"so far\n"
        assert process.poll() is None
    service.held.set()
    for process in followers:
        assert process.communicate(timeout=120) == (b"", b"")
        assert process.returncode == 0


def test_following_goes_on_after_a_restart_of_the_service(service: FakeService, jobctl: Jobctl) -> None:
    service.held.clear()
    service.write("stdout", b"before ")
    process = jobctl.start("logs", "-f", "arch")
    assert process.stdout
    assert process.stdout.read(7) == b"before "
    service.leave()
    service.write("stdout", b"after")
    service.held.set()
    threading.Timer(0.3, service.enter).start()
    out, err = process.communicate(timeout=120)
    assert (out, unhurried(err)) == (b"after", b"")
    assert process.returncode == 0
    assert threading.active_count() < 10


def test_ctrl_c_ends_the_following_and_not_the_job(service: FakeService, jobctl: Jobctl) -> None:
    import signal

    service.held.clear()
    service.write("stdout", b"x")
    process = jobctl.start("logs", "-f", "arch")
    assert process.stdout
    assert process.stdout.read(1) == b"x"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[1].strip() == b""
    assert process.returncode == 130
    assert "Stop" not in [member for member, _ in service.calls]


@pytest.fixture
def pager(tmp_path: Path, jobctl: Jobctl) -> Path:
    """A pager that notes what it was given, and with which settings."""
    program, notes = tmp_path / "pager", tmp_path / "notes"
    program.write_text(f'#!/bin/sh\nexec > {notes}\necho "LESS=$LESS LESSSECURE=$LESSSECURE"\nexec cat\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    jobctl.environment["SYSTEMD_PAGER"] = str(program)
    return notes


def test_a_terminal_gets_a_pager(service: FakeService, jobctl: Jobctl, pager: Path) -> None:
    service.write("stdout", b"out\x1b\n")
    service.write("stderr", b"err\x1b\n")
    assert jobctl.on_terminal("logs", "arch").out == ""
    assert pager.read_text() == "LESS=FRSXMK LESSSECURE=\nout\\x1b\nerr\\x1b\n"
    jobctl.on_terminal("list")
    assert "COMMAND" in pager.read_text()


def test_a_pager_changes_neither_colours_nor_columns(service: FakeService, jobctl: Jobctl, pager: Path) -> None:
    service.jobs[ID]["Command"] = ["echo", "x" * 200]
    row = {"Day": ("s", "2026-01-01"), "Jobs": ("t", 4)}
    service.on["Stats"] = lambda *_: ("aa{sv}", ([row],))
    for command in (["list"], ["status"], ["status", "arch"], ["stats"]):
        direct = jobctl.on_terminal("--no-pager", *command).out.replace("\r", "")
        assert "\x1b[1m" in direct
        jobctl.on_terminal(*command)
        shown = pager.read_text().partition("\n")[2]
        assert shown.splitlines()[0] == direct.splitlines()[0]
        assert "…" in shown or command[0] != "list"


@pytest.mark.parametrize("variable", ["SUDO_UID", "PKEXEC_UID", "DOAS_USER"])
def test_under_sudo_only_less_will_do_and_securely(
    service: FakeService, jobctl: Jobctl, pager: Path, tmp_path: Path, variable: str
) -> None:
    less = pager.parent / "less"
    os.rename(pager.parent / "pager", less)
    jobctl.environment |= {variable: "1000", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    jobctl.on_terminal("logs", "arch")
    assert pager.read_text().startswith("LESS=FRSXMK LESSSECURE=1\n")


@pytest.mark.parametrize("how", ["--no-pager", "cat", "", "/nonexistent/pager", "'unbalanced"])
def test_no_pager_no_harm(service: FakeService, jobctl: Jobctl, how: str) -> None:
    service.write("stdout", b"out\n")
    option = [how] if how == "--no-pager" else []
    jobctl.environment["SYSTEMD_PAGER"] = "" if option else how
    assert jobctl.on_terminal("logs", *option, "arch").out == "out\r\n"


def test_following_is_not_paged(service: FakeService, jobctl: Jobctl, pager: Path) -> None:
    service.write("stdout", b"out\n")
    assert jobctl.on_terminal("logs", "-f", "arch").out == "out\r\n"
    assert not pager.exists()


def test_a_pager_that_quits_early_is_no_error(service: FakeService, jobctl: Jobctl) -> None:
    service.write("stdout", b"y\n" * 500_000)
    jobctl.environment["SYSTEMD_PAGER"] = "true"
    assert jobctl.on_terminal("logs", "arch").code == 0


def test_what_cannot_be_encoded_is_no_traceback(service: FakeService, jobctl: Jobctl) -> None:
    service.jobs[ID]["Name"] = "käse☃"
    jobctl.environment |= {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = jobctl("status", ID)
    assert done.code == 0
    assert done.out.startswith("* k")


def test_lines_are_shown_by_other_interpreters_alike() -> None:
    """The writer of exact bytes does not depend on how Python buffers standard output."""
    code = "from jobsvc.cli.printers import write; write(1, b'\\0\\xff' * 200000)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=20)
    assert done.stdout == b"\0\xff" * 200000
