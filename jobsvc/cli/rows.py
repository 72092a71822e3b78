"""The options that describe a job, one row each: spellings, spec keys, how to read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from jobsvc import quantity


class Row(NamedTuple):
    """An option: its spellings, the spec keys it sets, their D-Bus type, how to read it. A flag has no metavar."""

    flags: str
    keys: str
    signature: str
    parse: Callable[[str], Any]
    metavar: str
    help: str

    @property
    def destination(self) -> str:
        return "spec_" + self.flags.split()[0].lstrip("-").replace("-", "_")

    def read(self, text: str) -> Any:
        """The value, if there can be a job with it. Of jobs that are named it is only known later."""
        value = self.parse(text)
        if self.keys != "Dependencies":
            from jobsvc import spec

            for key in self.keys.split():
                try:
                    spec.KEYS[key].check(value)
                except ValueError as error:
                    raise ValueError(f"{error}" if spec.KEYS[key].secret else f"'{text}' {error}") from None
        return value


def absolute(text: str) -> str:
    """Absolute, from where the user is; '..' is left to the kernel, which knows about symlinks."""
    if not text:
        raise ValueError("an empty path")
    return text if text.startswith("/") else os.path.join(here(), text)


def program_path(text: str) -> str:
    """Where a program is: one without a slash is looked up, as a shell does it."""
    if "/" in text:
        return absolute(text)
    from shutil import which

    if not (found := which(text)):
        raise ValueError(f"'{text}' is not in PATH; write an absolute path")
    return absolute(found)


def _directory(text: str) -> str:
    return os.path.normpath(absolute(text))


def here() -> str:
    try:
        return os.getcwd()
    except OSError:
        raise click.UsageError("the current directory is gone; give --working-directory") from None


def _file(text: str) -> str:
    """Where output goes as well: replaced as by the shell's >, unless it says append:."""
    mode, colon, path = text.partition(":")
    if not colon or mode not in ("append", "truncate"):
        mode, path = "truncate", text
    return f"{mode}:{os.path.normpath(absolute(path))}"


def _variable(text: str) -> list[str]:
    name, equals, _ = text.partition("=")
    if equals:
        return [text]
    if name not in os.environ:
        raise ValueError(f"{name} is not set here; write {name}=VALUE")
    return [f"{name}={os.environ[name]}"]


def _label(text: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"'{text}' is not NAME=VALUE")
    return {name: value}


def _rate(text: str) -> list[tuple[str, int]]:
    """PATH:10M, or 10M for the disk of /. By 1000, as systemd counts what disks do."""
    path, _, amount = text.rpartition(":")
    return [(os.path.normpath(absolute(path or "/")), quantity.parse_size(amount, base=1000))]


def _cpu(text: str) -> int:
    return quantity.INFINITY if text == "infinity" else quantity.parse_percent(text) * 10_000


def _count(text: str) -> int:
    if text == "infinity":
        return quantity.INFINITY
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ValueError(f"'{text}' is not a number; write 10 or infinity")
    return int(text)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a number") from None


def _at(text: str) -> int:
    import time

    from jobsvc.moment import parse_time

    return parse_time(text, time.time_ns() // 1000, ahead=True)


def _after(text: str) -> list[tuple[str, str]]:
    """One JOB; or several ids, as `start --array` prints them."""
    job, condition = condition_of(text)
    words = job.replace(",", " ").split()
    several = len(words) > 1 and all(len(word) == 16 and not word.strip("0123456789abcdef") for word in words)
    return [(word, condition) for word in (words if several else [job])]


def condition_of(text: str) -> tuple[str, str]:
    """JOB, or JOB:CONDITION; which job is meant is found out when it is submitted."""
    job, colon, condition = text.rpartition(":")
    if not colon:
        job, condition = text, CONDITIONS[0]
    elif condition not in CONDITIONS:
        raise ValueError(f"'{condition}' is not one of {', '.join(CONDITIONS)}")
    if not job:
        raise ValueError("an empty name is no job; write JOB or JOB:any")
    return job, condition


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"'{text}' is not one of {', '.join(words)}")
        return text

    return parse


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _integer(text)
        if not least <= value <= most:
            raise ValueError(f"'{text}' is not from {least} to {most}")
        return value

    return parse


def _flag(_: str) -> bool:
    return True


CONDITIONS = ("success", "failure", "any")
POLICIES = ("refuse", "replace", "return")
NOTICES = ("no", "mail", "failure-mail")
SIZE, RATE = quantity.parse_size, "[PATH:]RATE"
ROWS = (
    Row("--name", "Name", "s", str, "NAME", "Name of the job; the program's by default."),
    Row(
        "--working-directory -d", "WorkingDirectory", "s", _directory, "DIR",
        "Where to run; here by default.",
    ),
    Row(
        "--setenv -E", "Environment", "as", _variable, "NAME[=VALUE]",
        "Set a variable; without a value, the one it has here.",
    ),
    Row("--uid", "User", "s", str, "USER", "Run as this user."),
    Row("--gid", "Group", "s", str, "GROUP", "Run with this group."),
    Row("--output", "StandardOutput", "s", _file, "FILE", "Also to FILE, or append:FILE."),
    Row("--error", "StandardError", "s", _file, "FILE", "The same for standard error."),
    Row(
        "--cpu --max-cpu", "CPUQuotaPerSecUSec", "t", _cpu, "PERCENT",
        "At most so much of a CPU: 50%, 200%.",
    ),
    Row("--memory --max-memory", "MemoryMax", "t", SIZE, "SIZE", "At most so much memory: 512M."),
    Row("--memory-high", "MemoryHigh", "t", SIZE, "SIZE", "Slow it down above so much memory."),
    Row("--swap", "MemorySwapMax", "t", SIZE, "SIZE", "At most so much swap space."),
    Row("--tasks", "TasksMax", "t", _count, "N", "At most so many processes and threads."),
    Row("--io-read", "IOReadBandwidthMax", "a(st)", _rate, RATE, "Bytes a second read: /:10M."),
    Row("--io-write", "IOWriteBandwidthMax", "a(st)", _rate, RATE, "Bytes a second written."),
    Row(
        "--max-iobps", "IOReadBandwidthMax IOWriteBandwidthMax", "a(st)", _rate, RATE,
        "Bytes a second read, and as many written.",
    ),
    Row("--iops-read", "IOReadIOPSMax", "a(st)", _rate, RATE, "Reads a second: /:100."),
    Row("--iops-write", "IOWriteIOPSMax", "a(st)", _rate, RATE, "Writes a second."),
    Row(
        "--timeout", "RuntimeMaxUSec", "t", quantity.parse_span, "SPAN",
        "Stop it after so long: 30min, 90 (s).",
    ),
    Row(
        "--stop-timeout", "TimeoutStopUSec", "t", quantity.parse_span, "SPAN",
        "When stopped, kill what is left after so long.",
    ),
    Row("--nice", "Nice", "i", _integer, "N", "CPU priority: 19 yields to everything."),
    Row("--label", "Labels", "a{ss}", _label, "NAME=VALUE", "A label to find it by."),
    Row(
        "--request-id", "RequestId", "s", str, "ID",
        "Submitting twice with the same ID starts one job.",
    ),
    Row("--queue", "Queue", "s", str, "QUEUE", "Wait in this queue."),
    Row(
        "--priority", "Priority", "i", _number(-1000, 1000), "N",
        "Higher goes first: -1000 to 1000, 0 by default.",
    ),
    Row(
        "--after", "Dependencies", "a(ss)", _after, "JOB[:CONDITION]",
        "Begin after JOB's success, failure, or any end.",
    ),
    Row("--at", "NotBeforeUSec", "t", _at, "TIME", "Not before: 18:00, +1h, tomorrow, 2026-12-01 08:00."),
    Row("--retries", "Retries", "u", _number(0, 100), "N", "If it fails, try again so many times."),
    Row(
        "--retry-delay", "RetryDelayUSec", "t", quantity.parse_span, "SPAN",
        "Before the first retry; twice that before the next.",
    ),
    Row("--unique", "Unique", "s", str, "KEY", "Only one unfinished job of yours with this KEY."),
    Row(
        "--unique-policy", "UniquePolicy", "s", _one_of(*POLICIES), "POLICY",
        "If there is one: refuse, replace it, return its id.",
    ),
    Row("--hold", "Hold", "b", _flag, "", "Wait until it is released."),
    Row(
        "--notify", "Notify", "s", _one_of(*NOTICES), "WHEN",
        "Mail when it has ended: no, mail, failure-mail.",
    ),
    Row("--private-tmp", "PrivateTmp", "b", _flag, "", "Give it a /tmp of its own."),
    Row("--private-network", "PrivateNetwork", "b", _flag, "", "Give it no network."),
    Row("--read-only-root", "ReadOnlyRoot", "b", _flag, "", "Let it write nowhere; see --private-tmp and --output."),
    Row("--no-new-privileges", "NoNewPrivileges", "b", _flag, "", "No setuid program has an effect."),
)  # fmt: skip
