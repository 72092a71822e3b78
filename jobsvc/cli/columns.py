"""The columns of `list`: what they show, what they are sorted by, which status keys they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jobsvc.cli.attach import signal_name
from jobsvc.client import Status
from jobsvc.quantity import SEC, format_size
from jobsvc.render import Style, command_line, short_span

NAME_WIDTH, REASON_WIDTH = 24, 40


class Column(NamedTuple):
    keys: tuple[str, ...]
    text: Callable[[Status, int], str]
    order: Callable[[Status], Any]
    width: int | None = None  # at most so wide on a terminal, to leave room for others


def _plain(key: str, width: int | None = None) -> Column:
    return Column((key,), lambda job, now: _word(job.get(key)), lambda job: job.get(key), width)


def _word(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


def _name(job: Status, now: int) -> str:
    index = job.get("ArrayIndex")
    return str(job.get("Name", "-")) + ("" if index is None else f"[{index}]")


def _user(job: Status, now: int) -> str:
    user, owner = str(job.get("User", "-")), str(job.get("Owner", "-"))
    return user if user == owner else f"{user}({owner})"


def _moment(key: str) -> Column:
    return Column((key,), lambda job, now: moment_text(job.get(key), now), lambda job: job.get(key))


def moment_text(usec: int | None, now: int) -> str:
    """The time of day for today, else the day."""
    if usec is None:
        return "-"
    then, today = time.localtime(usec // SEC), time.localtime(now // SEC)
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%Y-%m-%d", then)


def _since(job: Status) -> int | None:
    return job.get("FinishedTimestamp") or job.get("StartedTimestamp") or job.get("CreatedTimestamp")


def _time(job: Status, now: int) -> str:
    started, finished = job.get("StartedTimestamp"), job.get("FinishedTimestamp")
    return short_span(max((finished or now) - started, 0)) if started else "-"


def _duration(job: Status) -> int | None:
    started, finished = job.get("StartedTimestamp"), job.get("FinishedTimestamp")
    return (finished or time.time_ns() // 1000) - started if started else None


def _usage(key: str, show: Callable[[int], str]) -> Column:
    def value(job: Status) -> int | None:
        found: int | None = (job.get("Usage") or {}).get(key)
        return found

    return Column(("Usage",), lambda job, now: "-" if value(job) is None else show(value(job) or 0), value)


def exit_text(job: Status) -> str:
    """How a job ended, in a word."""
    result = job.get("Result")
    match result:
        case "success" | "exit-code":
            return str(job.get("ExitCode", "-"))
        case "signal" | "core-dump":
            return signal_name(job.get("Signal"))
        case None | "":
            return "-"
    return str(result)


def _after(job: Status) -> str:
    return ",".join(f"{job_id}:{condition}" for job_id, condition in job.get("Dependencies") or ())


_TIMES = ("CreatedTimestamp", "StartedTimestamp", "FinishedTimestamp")
COLUMNS: dict[str, Column] = {
    "id": _plain("Id"),
    "name": Column(("Name", "ArrayIndex"), _name, lambda job: (job.get("Name"), job.get("ArrayIndex", 0)), NAME_WIDTH),
    "state": _plain("State"),
    "exit": Column(("Result", "ExitCode", "Signal"), lambda job, now: exit_text(job), exit_text),
    "user": Column(("User", "Owner"), _user, lambda job: job.get("User")),
    "since": Column(_TIMES, lambda job, now: moment_text(_since(job), now), _since),
    "time": Column(_TIMES, _time, _duration),
    "reason": _plain("QueueReason", REASON_WIDTH),
    "result": _plain("Result"),
    "run": _plain("Run"),
    "queue": _plain("Queue"),
    "priority": _plain("Priority"),
    "array": _plain("ArrayId"),
    "unique": _plain("Unique"),
    "after": Column(("Dependencies",), lambda job, now: _word(_after(job)), _after),
    "at": _moment("NotBeforeUSec"),
    "created": _moment("CreatedTimestamp"),
    "started": _moment("StartedTimestamp"),
    "finished": _moment("FinishedTimestamp"),
    "cpu": _usage("CPUUsageNSec", lambda nsec: short_span(nsec // 1000)),
    "memory": _usage("MemoryPeak", format_size),
    "pid": _plain("MainPID"),
    "unit": _plain("Unit"),
    "directory": _plain("WorkingDirectory"),
    "command": Column(("Command",), lambda job, now: command_line(job.get("Command", [])), lambda job: job["Command"]),
}
DEFAULT = ("id", "name", "state", "exit", "user", "since", "time", "reason", "command")


def needed(columns: Sequence[str]) -> list[str]:
    """The status keys that these columns are made of, and those a table needs."""
    keys = ["Id", "State"] + [key for name in columns for key in COLUMNS[name].keys]
    return list(dict.fromkeys(keys))


def rows_of(jobs: Sequence[Status], columns: Sequence[str], now: int, style: Style) -> Iterator[tuple[str, ...]]:
    for job in jobs:
        yield tuple(_cell(COLUMNS[name], job, now, style) for name in columns)


def _cell(column: Column, job: Status, now: int, style: Style) -> str:
    text = column.text(job, now)
    if style.width is None or column.width is None or len(text) <= column.width:
        return text
    return text[: column.width - 1] + style.more
