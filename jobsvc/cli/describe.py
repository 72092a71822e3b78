"""A job in words, laid out as `systemctl status` lays out a unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jobsvc.cli.attach import signal_name
from jobsvc.client import FINISHED, Status
from jobsvc.quantity import INFINITY, format_limit, format_size, limit_name
from jobsvc.render import STATE_COLORS, Style, ago, command_line, escape, short_span, when

_LABEL = 14  # columns, as wide as "Not in force"


def describe(job: Status, style: Style, now: int, lines: Sequence[str] = ()) -> str:
    """All there is to say about a job, ending in a newline."""
    colour = STATE_COLORS.get(job.get("State", ""))
    name, job_id = escape(str(job.get("Name", ""))), escape(str(job.get("Id", "")))
    text = [f"{style.paint(style.dot, colour)} {style.paint(name, '1')} - {job_id}"]
    text += [f"{label:>{_LABEL}}: {what}" for label, what in _facts(job, style, colour, now)]
    if lines:
        text += ["", *lines]
    return "\n".join(text) + "\n"


def _facts(job: Status, style: Style, colour: str | None, now: int) -> Iterator[tuple[str, str]]:
    yield "State", _state(job, style, colour, now)
    if reason := job.get("Reason") or job.get("QueueReason"):
        yield "Reason", escape(str(reason))
    yield "Command", command_line(job.get("Command", []))
    if job.get("WorkingDirectory"):
        yield "Directory", escape(job["WorkingDirectory"])
    yield "User", _user(job)
    yield "Run", _run(job, now)
    yield from _waiting(job, now)
    if job.get("Unit"):
        yield "Unit", escape(job["Unit"])
    if job.get("MainPID"):
        yield "Main PID", str(job["MainPID"])
    limits = {key: value for key, value in (job.get("Limits") or {}).items() if value is not None}
    if limits:
        yield "Limits", escape(", ".join(format_limit(key, value) for key, value in limits.items()))
    if job.get("LimitsNotInForce"):
        yield "Not in force", style.paint(escape(", ".join(map(limit_name, job["LimitsNotInForce"]))), "31")
    yield from _usage(job.get("Usage") or {}, limits)
    if output := _output(job.get("Output") or {}):
        yield "Output", output
    if job.get("Labels"):
        yield "Labels", escape(", ".join(f"{key}={value}" for key, value in job["Labels"].items()))
    if job.get("OnBehalfOf"):
        yield "On behalf of", escape(job["OnBehalfOf"])


def _waiting(job: Status, now: int) -> Iterator[tuple[str, str]]:
    """What decides on when it begins, as far as it was asked for."""
    queue, priority = job.get("Queue", "default"), job.get("Priority", 0)
    if queue != "default" or priority:
        yield "Queue", escape(str(queue)) + (f", priority {priority}" if priority else "")
    if after := job.get("Dependencies"):
        yield "After", escape(", ".join(f"{job_id} ({condition})" for job_id, condition in after))
    if before := job.get("NotBeforeUSec"):
        yield "Not before", f"{when(before)}; {ago(before, now)}"
    if job.get("Retries"):
        yield "Retries", f"at most {job['Retries']}"
    if job.get("Unique"):
        yield "Unique", escape(job["Unique"])
    if job.get("HookOf"):
        yield "Hook of", escape(job["HookOf"])
    if job.get("ArrayId"):
        yield "Array", f"{escape(job['ArrayId'])}, task {job.get('ArrayIndex', '?')}"


def _state(job: Status, style: Style, colour: str | None, now: int) -> str:
    state = escape(str(job.get("State", "unknown")))
    text = style.paint(state, colour)
    if job.get("State") in FINISHED:
        text += f" ({_end(job)})"
        since = job.get("FinishedTimestamp")
    elif job.get("State") == "queued":
        since = job.get("CreatedTimestamp")
    else:
        since = job.get("StartedTimestamp")
    return f"{text} since {when(since)}; {ago(since, now)}" if since else text


def _end(job: Status) -> str:
    """The result, and how the main process really ended."""
    result = escape(str(job.get("Result", "unknown")))
    if job.get("Signal") is not None:
        return f"{result}, {signal_name(job['Signal'])}"
    if job.get("ExitCode") is not None and result != "success":
        return f"{result}, status {job['ExitCode']}"
    return result


def _user(job: Status) -> str:
    user, owner = str(job.get("User", "?")), str(job.get("Owner", "?"))
    return escape(user if user == owner else f"{user}, submitted by {owner}")


def _run(job: Status, now: int) -> str:
    number = str(job.get("Run", "-"))
    started, finished = job.get("StartedTimestamp"), job.get("FinishedTimestamp")
    if not started:
        return number
    return f"{number}, for {short_span(max((finished or now) - started, 0))}"


def _usage(usage: dict[str, Any], limits: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Usage may be spelled as on the bus, or as in JSON."""
    from jobsvc.model import snake

    known = {snake(key): value for key, value in usage.items()}
    if (cpu := known.get("cpu_usage_nsec")) is not None:
        yield "CPU", short_span(cpu // 1000)
    now, peak = known.get("memory_current"), known.get("memory_peak")
    if now is not None or peak is not None:
        yield "Memory", _with(now, peak, limits.get("MemoryMax"))
    if (tasks := known.get("tasks_current")) is not None:
        most = limits.get("TasksMax", INFINITY)
        yield "Tasks", str(tasks) + ("" if most == INFINITY else f" (limit: {most})")
    read, written = known.get("io_read_bytes"), known.get("io_write_bytes")
    if read is not None or written is not None:
        parts = ((read, "read"), (written, "written"))
        yield "IO", ", ".join(f"{format_size(n)} {what}" for n, what in parts if n is not None)


def _with(now: int | None, peak: int | None, most: int | None) -> str:
    notes = [f"peak: {format_size(peak)}"] if peak is not None and now is not None else []
    if most is not None and most != INFINITY:
        notes.append(f"max: {format_size(most)}")
    head = format_size(now) if now is not None else f"{format_size(peak or 0)} at most"
    return head + (f" ({', '.join(notes)})" if notes else "")


def _output(output: dict[str, Any]) -> str:
    from jobsvc.model import snake

    known = {snake(key): value for key, value in output.items()}
    parts = [
        f"{format_size(known[key])} to {stream}"
        for key, stream in (("stdout_bytes", "stdout"), ("stderr_bytes", "stderr"))
        if known.get(key) is not None
    ]
    if known.get("missing_bytes"):
        parts.append(f"{format_size(known['missing_bytes'])} missing")
    return ", ".join(parts)
