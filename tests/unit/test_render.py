"""What others chose never does anything to a terminal; JSON has all keys, always."""

from __future__ import annotations

import json
import unicodedata

import pytest
from fake_service import NOW, job

from jobsvc import render
from jobsvc.chunks import Chunk
from jobsvc.cli.describe import describe
from jobsvc.cli.lines import Escaper, Short
from jobsvc.quantity import INFINITY
from jobsvc.render import Style, as_json, escape, escape_text


def test_nothing_that_acts_on_a_terminal_gets_through() -> None:
    bad = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) in ("Cc", "Cs", "Zl", "Zp")]
    bad += list("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
    shown = escape("".join(bad))
    assert shown.isascii()
    assert shown.isprintable()


def test_ordinary_text_of_any_language_is_left_alone() -> None:
    text = "käse 日本語 العربية עברית ☃ 🎉 a\\b"
    assert escape(text) == text
    assert escape_text(f"{text}\n\tx") == f"{text}\n\tx"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("a\x9b31m", "a\\x9b31m"),
        ("a\nb\tc\rd", "a\\x0ab\\x09c\\x0dd"),
        ("exe.\u202etxt", "exe.\\u202etxt"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_escaped_is_shown(given: str, shown: str) -> None:
    assert escape(given) == shown


def test_a_stream_is_escaped_the_same_however_it_is_cut() -> None:
    data = "täst\x1b[2J \u202e 🎉\r\n".encode() + b"\xff\xc3"
    whole = Escaper().feed(data, last=True)
    assert whole == "täst\\x1b[2J \\u202e 🎉\\x0d\n\\xff\\xc3"
    escaper = Escaper()
    pieces = [escaper.feed(data[at : at + 1]) for at in range(len(data))]
    assert "".join(pieces) + escaper.feed(b"", last=True) == whole


def test_short_lines_are_put_together_per_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Short(job())
    out = [
        *short.feed(Chunk("stdout", 0, b"one\ntw", NOW)),
        *short.feed(Chunk("stderr", 0, b"bad\x1b\r\n", NOW)),
        *short.feed(Chunk("stdout", 6, b"o\n\nlast", NOW)),
        *short.rest(),
    ]
    assert [line.split(" ", 3)[3] for line in out] == [
        "arch[4711]: one",
        "arch[4711]: bad\\x1b",
        "arch[4711]: two",
        "arch[4711]: ",
        "arch[4711]: last",
    ]


def test_json_always_has_all_keys() -> None:
    empty = as_json({"Id": "0" * 16})
    assert list(empty) == [
        "id", "name", "owner", "user", "uid", "owner_uid", "command", "working_directory", "state", "result",
        "exit_code", "signal", "reason", "run", "unit", "slice", "control_group", "main_pid", "created_at",
        "started_at", "finished_at", "queue", "priority", "queue_reason", "dependencies",
        "not_before_usec", "retries", "unique", "array_id", "array_index", "hook_of", "labels", "request_id",
        "on_behalf_of", "seq", "limits", "limits_not_in_force", "usage", "output",
    ]  # fmt: skip
    assert list(empty["usage"]) == [
        "cpu_usage_nsec", "memory_current", "memory_peak", "tasks_current", "io_read_bytes", "io_write_bytes",
        "source",
    ]  # fmt: skip
    assert list(empty["output"]) == ["stdout_bytes", "stderr_bytes", "missing_bytes"]
    assert {"cpu_quota_per_sec_usec", "memory_max", "io_read_bandwidth_max"} <= set(empty["limits"])
    assert empty["labels"] == {}
    assert empty["limits_not_in_force"] == []
    assert empty["exit_code"] is None
    assert empty["usage"]["memory_peak"] is None


def test_json_values_are_plain() -> None:
    shown = as_json(
        job(
            ExitCode=0,
            FinishedTimestamp=NOW + 5,
            Limits={"MemoryMax": INFINITY, "AllowedCPUs": b"\x05", "IOReadBandwidthMax": [("/", 10)]},
            Usage={"CPUUsageNSec": 7, "Source": "unit"},
        )
    )
    assert shown["finished_at"] == "2026-01-01T10:00:00.000005Z"
    assert shown["exit_code"] == 0
    assert shown["limits"]["memory_max"] == "infinity"
    assert shown["limits"]["allowed_cpus"] == [0, 2]
    assert json.loads(render.dumps(shown))["limits"]["io_read_bandwidth_max"] == [["/", 10]]
    assert shown["usage"] | {"cpu_usage_nsec": 7, "source": "unit"} == shown["usage"]


def test_json_is_safe_on_a_terminal() -> None:
    assert render.dumps({"name": "\x1b\x7f\x9b\u202e"}) == '{"name": "\\u001b\\u007f\\u009b\\u202e"}'


def test_a_running_job_in_words(utc: None) -> None:
    running = job(
        Owner="bob",
        Limits={
            "CPUQuotaPerSecUSec": 500_000,
            "MemoryMax": 512 * 2**20,
            "TasksMax": 10,
            "IOReadBandwidthMax": [("/", 2_000_000)],
            "RuntimeMaxUSec": 1_800_000_000,
            "AllowedCPUs": b"\x03",
        },
        LimitsNotInForce=["CPUQuotaPerSecUSec", "IOReadBandwidthMax"],
        Usage={
            "CPUUsageNSec": 1_234_000_000, "MemoryCurrent": 12 * 2**20, "MemoryPeak": 20 * 2**20,
            "TasksCurrent": 3, "IOReadBytes": 2**20, "IOWriteBytes": 0,
        },
        Output={"StdoutBytes": 2048, "StderrBytes": 0, "MissingBytes": 7},
        Labels={"team": "a\x1bb"},
    )  # fmt: skip
    assert describe(running, Style(dot="●"), NOW, ["Jan 01 10:00:00 arch[4711]: hello"]) == (
        """\
● arch - 0000000000000001
         State: running since Thu 2026-01-01 09:58:55 UTC; 1min 5s ago
       Command: tar cf - /usr
     Directory: /home/alice
          User: alice, submitted by bob
           Run: 1, for 1min 5s
          Unit: jobsvc-0000000000000001-1.scope
      Main PID: 4711
        Limits: CPUQuota=50%, MemoryMax=512M, TasksMax=10, IOReadBandwidthMax=/ 2M, \
RuntimeMaxSec=30min, AllowedCPUs=0,1
  Not in force: CPUQuota, IOReadBandwidthMax
           CPU: 1s 234ms
        Memory: 12M (peak: 20M, max: 512M)
         Tasks: 3 (limit: 10)
            IO: 1M read, 0B written
        Output: 2K to stdout, 0B to stderr, 7B missing
        Labels: team=a\\x1bb

Jan 01 10:00:00 arch[4711]: hello
"""
    )


def test_a_failed_job_in_words_and_colour(utc: None) -> None:
    failed = job(
        Name="evil\x1b[2J",
        State="failed",
        Result="signal",
        Signal=9,
        Reason="killed\nby hand",
        MainPID=None,
        FinishedTimestamp=NOW,
        Usage={"MemoryPeak": 5 * 2**20},
    )
    assert describe(failed, Style(colour=True, dot="●"), NOW + 2_000_000) == (
        """\
\x1b[31m●\x1b[0m \x1b[1mevil\\x1b[2J\x1b[0m - 0000000000000001
         State: \x1b[31mfailed\x1b[0m (signal, SIGKILL) since Thu 2026-01-01 10:00:00 UTC; 2s ago
        Reason: killed\\x0aby hand
       Command: tar cf - /usr
     Directory: /home/alice
          User: alice
           Run: 1, for 1min 5s
          Unit: jobsvc-0000000000000001-1.scope
        Memory: 5M at most
"""
    )


def test_a_table_fits_the_terminal() -> None:
    rows = [("1", "arch", "running", "x" * 50), ("22", "b\x1b", "failed", "short")]
    head = ("ID", "NAME", "STATE", "COMMAND")
    assert render.table(head, rows, Style(width=40, dot="●"), [None, None]) == (
        "ID  NAME   STATE    COMMAND\n1   arch   running  xxxxxxxxxxxxxxxxxxx…\n22  b\\x1b  failed   short\n"
    )
    assert "x" * 50 in render.table(head, rows, Style(), [None, None])


def test_wide_and_combining_characters_keep_a_table_straight() -> None:
    rows = [("漢字", "字" * 20), ("e\u0301", "e\u0301" * 6), ("abc", "y")]
    assert render.table(("NAME", "COMMAND"), rows, Style(width=15, dot="●")) == (
        "NAME  COMMAND\n漢字  字字字字…\ne\u0301     " + "e\u0301" * 6 + "\nabc   y\n"
    )
