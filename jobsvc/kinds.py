"""What the value of a spec key may be, and how unit files write it.

Checks take a plain value from the bus and return it, parsers take text; both raise ValueError with a
text for people.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobsvc import moment, quantity

INFINITY = quantity.INFINITY


def text(allowed: Callable[[str], bool], what: str) -> Callable[[Any], Any]:
    def check(value: str) -> str:
        if not allowed(value) or "\0" in value:
            raise ValueError(f"must be {what}")
        return value

    return check


def between(low: int, high: int, infinity: bool = False) -> Callable[[Any], Any]:
    def check(value: int) -> int:
        if infinity and value == INFINITY:
            return value
        if not low <= value <= high:
            also = " or infinity" if infinity else ""
            raise ValueError(f"must be from {low} to {high}{also}")
        return value

    return check


def one_of(*words: str) -> Callable[[Any], Any]:
    return text(lambda value: value in words, "one of " + ", ".join(words))


def absolute(value: str) -> bool:
    return value.startswith("/") and ".." not in value.split("/") and len(value) <= 4095


def argv(value: list[str]) -> list[str]:
    if not value or not value[0]:
        raise ValueError("must name a program to run")
    if any("\0" in word for word in value):
        raise ValueError("must not contain NUL")
    if max(len(os.fsencode(word)) for word in value) >= 128 * 1024:
        raise ValueError("has an argument of 128 KiB or more, which the kernel refuses")
    return value


VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=[^\0]*", re.DOTALL)


def environment(value: list[str]) -> list[str]:
    for assignment in value:
        if not VARIABLE.fullmatch(assignment):
            raise ValueError("must be NAME=VALUE, names of letters, digits and _")
    return value


def quota(value: int) -> int:
    if value == INFINITY:
        return value
    # systemd writes whole percents to the unit file and reads "0%" back as no limit at daemon-reload.
    if value < 10_000 or value % 10_000 or value > 10_000 * 1_000_000:
        raise ValueError("must be whole percents of a CPU, 1 % (10000) or more")
    return value


def cpus(value: bytes) -> bytes:
    if not any(value) or len(value) > 1024:
        raise ValueError("must name at least one CPU")
    return bytes(value)


PATHS_MAX = 8 * 1024  # bytes; those of all four keys have to fit into one packet of a supervisor's


def devices(value: list[Any]) -> list[Any]:
    for path, amount in value:
        if not absolute(path) or not path.isprintable() or os.path.normpath(path) != path:
            raise ValueError(f"path {path!r} must be absolute, printable and without '.', '..' or '//'")
        if amount < 1:
            raise ValueError("amount must be at least 1")
    if len(value) > 32:
        raise ValueError("must not name more than 32 paths")
    if sum(len(os.fsencode(path)) for path, _ in value) > PATHS_MAX:
        raise ValueError(f"must not name paths of more than {PATHS_MAX >> 10} KiB in all")
    return [(path, amount) for path, amount in value]


def output(value: str) -> str:
    kind, _, path = value.partition(":")
    if kind not in ("append", "truncate") or not absolute(path):
        raise ValueError("must be append:/PATH or truncate:/PATH")
    for mark in MARK.findall(path):
        if mark not in MARKS:
            raise ValueError(f"must not have %{mark} in it; there are {', '.join(f'%{each}' for each in MARKS)}")
    return value


# What stands for a fact of the run in the name of an output file; sbatch(1) has these, but for %r.
MARKS = {
    "j": "the job's id",
    "A": "its array's id",
    "a": "its index in the array",
    "x": "its name",
    "r": "the run",
    "u": "its user",
    "%": "%",
}
MARK = re.compile("%(.?)", re.DOTALL)


def filled(path: str, facts: Mapping[str, str]) -> str:
    """The name of an output file with its marks filled in; one that is not among the facts stays as it is."""
    parts = {"%": "%", **{mark: _part(fact) for mark, fact in facts.items()}}
    return MARK.sub(lambda mark: parts.get(mark[1]) or mark[0].replace("/", "_"), path)


def _part(fact: str) -> str:
    """A fact as one part of a path: not empty, not hidden, and neither the directory itself nor the one above it."""
    flat = fact.replace("/", "_")
    rest = flat.lstrip(".")
    return "_" * (len(flat) - len(rest)) + rest or "_"


def labels(value: Mapping[str, str]) -> dict[str, str]:
    if len(value) > 32:
        raise ValueError("must not be more than 32")
    if sum(len(k.encode()) + len(v.encode()) for k, v in value.items()) > 4096:
        raise ValueError("must not be more than 4 KiB in all")
    for name, text in value.items():
        if not name or not (name + text).isprintable():
            raise ValueError("must be printable and have a name")
    return dict(value)


def signal_number(value: int) -> int:
    if value not in signal.valid_signals():
        raise ValueError(f"must be a signal from 1 to {signal.NSIG - 1}")
    return value


def umask(value: int) -> int:
    return int(between(0, 0o777)(value))


REALTIME = re.compile(r"SIG(?:(RTMIN)\+([0-9]{1,2})|RTMAX-([0-9]{1,2}))", re.ASCII)


def parse_signal(text: str) -> int:
    """A signal by number or name, with or without SIG."""
    if text.isdecimal():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else "SIG" + text.upper()
    if found := REALTIME.fullmatch(name):
        number = signal.SIGRTMIN + int(found[2]) if found[1] else signal.SIGRTMAX - int(found[3])
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    try:
        return signal.Signals[name].value
    except KeyError:
        raise ValueError(f"unknown signal {text!r}; 'kill -l' lists them") from None


def parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be a number, not {text!r}") from None


def parse_octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError(f"must be an octal mode as 0022, not {text!r}") from None


def parse_quota(text: str) -> int:
    if text == "infinity" or text.isdecimal():
        return INFINITY if text == "infinity" else int(text)
    return quantity.parse_percent(text) * 10_000


def parse_usec_or_quota(text: str) -> int:
    """CPU time a second: 500ms is half a CPU."""
    return parse_quota(text) if text.endswith("%") else parse_usec(text)


def parse_memory(text: str) -> int:
    """A size, or a share of the machine's memory, in whole pages as systemd has it."""
    if not text.endswith("%"):
        return quantity.parse_size(text)
    return os.sysconf("SC_PHYS_PAGES") * quantity.parse_share(text) // 10_000 * os.sysconf("SC_PAGE_SIZE")


def parse_tasks(text: str) -> int:
    """A number, or a share of the most tasks that the kernel has."""
    if not text.endswith("%"):
        return parse_number(text)
    share = quantity.parse_share(text)
    try:
        most = min(int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max"))
    except (OSError, ValueError):
        raise ValueError("the kernel does not say here how many tasks there may be; write a number") from None
    return most * share // 10_000


def parse_weight(text: str) -> int:
    return 0 if text == "idle" else parse_int(text)


def parse_number(text: str) -> int:
    return INFINITY if text == "infinity" else parse_int(text)


def parse_usec(text: str) -> int:
    """A bus name's value: a plain number is µs there; a span with units is understood as well."""
    return int(text) if text.isdecimal() else quantity.parse_span(text)


def parse_words(text: str) -> list[str]:
    import shlex

    return shlex.split(text)


def parse_cpus(text: str) -> bytes:
    mask = bytearray()
    for part in re.split(r"[,\s]+", text.strip()):
        first, _, last = part.partition("-")
        low, high = parse_int(first), parse_int(last or first)
        if not 0 <= low <= high < 8192:
            raise ValueError(f"must be CPU numbers as 0-3,7, not {text!r}")
        mask.extend(bytes(max(0, high // 8 + 1 - len(mask))))
        for cpu in range(low, high + 1):
            mask[cpu // 8] |= 1 << cpu % 8
    return bytes(mask)


def parse_devices(amount: Callable[[str], int]) -> Callable[[str], Any]:
    def parse(text: str) -> list[tuple[str, int]]:
        path, _, number = text.strip().rpartition(" ")
        if not path:
            path, _, number = text.rpartition(":")
        if not path:
            raise ValueError(f"must be PATH AMOUNT, not {text!r}")
        return [(path.strip(), amount(number))]

    return parse


def parse_label(text: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"must be NAME=VALUE, not {text!r}")
    return {name: value}


def bandwidth(text: str) -> int:
    return quantity.parse_size(text, base=1000)  # as systemd.resource-control(5) counts them


def parse_seconds(text: str) -> int:
    return INFINITY if text == "infinity" else -(-quantity.parse_span(text) // 1_000_000)


def arguments(value: list[str]) -> list[str]:
    return argv(["script", *value])[1:]


SCRIPT_MAX = 1024 * 1024


def script(value: bytes) -> bytes:
    if not value or len(value) > SCRIPT_MAX:
        raise ValueError(f"must be a script's text of 1 byte to {SCRIPT_MAX >> 20} MiB")
    if value.startswith(b"#!") and bytes(value).partition(b"\n")[0].endswith(b"\r"):
        raise ValueError("must not end its #! line in a carriage return, as files from Windows do; dos2unix mends it")
    return bytes(value)


def queue(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("must be a queue's name: up to 64 of A-Z a-z 0-9 _ . -")
    return value


CONDITIONS = ("success", "failure", "any")
DEPENDENCIES_MAX = 1000


def dependencies(value: list[Any]) -> list[Any]:
    """Each the id of a job, or @N in StartMany, and on what end of it to go on."""
    if len(value) > DEPENDENCIES_MAX:
        raise ValueError(f"must not be more than {DEPENDENCIES_MAX}")
    for job, condition in value:
        if not re.fullmatch(r"[0-9a-f]{16}|@[0-9]{1,3}", job):
            raise ValueError(f"must name jobs by their ids, not {job!r}")
        if condition not in CONDITIONS:
            raise ValueError(f"must say {', '.join(CONDITIONS)} of {job}, not {condition!r}")
    if len({job for job, _ in value}) < len(value):
        raise ValueError("must not name a job twice")
    return [(job, condition) for job, condition in value]


def parse_dependencies(text: str) -> list[tuple[str, str]]:
    """Words as ID or ID:CONDITION; success is what is meant."""
    words = (word.partition(":") for word in text.split())
    return [(job, condition or "success") for job, _, condition in words]


def parse_point(text: str) -> int:
    """A point in time as systemd.time(7) has it, or a plain number of µs since 1970."""
    return int(text) if text.isdecimal() else moment.parse_time(text, time.time_ns() // 1000, ahead=True)


FLAGS = {
    **dict.fromkeys(("1", "yes", "y", "true", "t", "on"), True),
    **dict.fromkeys(("0", "no", "n", "false", "f", "off"), False),
}


def parse_flag(text: str) -> bool:
    """As systemd reads booleans."""
    try:
        return FLAGS[text.lower()]
    except KeyError:
        raise ValueError(f"must be yes or no, not {text!r}") from None
