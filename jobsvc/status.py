"""A job as clients see it: status keys, their D-Bus types, and what of them is known."""

from __future__ import annotations

from typing import Any

from jobsvc import spec, systemd
from jobsvc.model import Finished, Job, Queued, Stopping

# Every key of Status, List and the Job interface, with its D-Bus signature.
SIGNATURES: dict[str, str] = {
    **dict.fromkeys(("Id", "Name", "Owner", "User", "WorkingDirectory", "State", "Result", "Reason"), "s"),
    **dict.fromkeys(("Unit", "Slice", "ControlGroup", "RequestId", "OnBehalfOf", "Queue", "QueueReason"), "s"),
    **dict.fromkeys(("UID", "OwnerUID", "Run", "MainPID"), "u"),
    **dict.fromkeys(("ExitCode", "Signal", "Priority"), "i"),
    **dict.fromkeys(("Unique", "ArrayId", "HookOf"), "s"),
    **dict.fromkeys(("Retries", "ArrayIndex"), "u"),
    "NotBeforeUSec": "t",
    "Dependencies": "a(ss)",
    **dict.fromkeys(("CreatedTimestamp", "StartedTimestamp", "FinishedTimestamp", "Seq"), "t"),
    "Command": "as",
    "Labels": "a{ss}",
    "LimitsNotInForce": "as",
    **dict.fromkeys(("Limits", "Usage", "Output"), "a{sv}"),
}
CONSTANT = frozenset("Id Owner User UID OwnerUID CreatedTimestamp RequestId OnBehalfOf HookOf".split())
NESTED: dict[str, str] = {
    **{name: spec.KEYS[name].signature for name in spec.SHOWN},
    **dict.fromkeys(("CPUUsageNSec", "IOReadBytes", "IOWriteBytes"), "t"),
    **dict.fromkeys(("MemoryCurrent", "MemoryPeak", "TasksCurrent"), "t"),
    "Source": "s",
    **dict.fromkeys(("StdoutBytes", "StderrBytes", "MissingBytes"), "t"),
}
ALL = SIGNATURES | NESTED


def usage(job: Job) -> dict[str, Any]:
    """What the run has used by now: while it runs, what its cgroup says."""
    run = job.run
    if run.control_group and not run.finished:
        return dict(run.usage) | systemd.live(run.control_group) | {"Source": "cgroup"}
    return dict(run.usage)


def describe(
    job: Job,
    offsets: tuple[int, int] | None = None,
    used: dict[str, Any] | None = None,
    queue_reason: str | None = None,
) -> dict[str, Any]:
    """Status keys to plain values; what is unknown is None. `used` is what `usage` said, None if it was not asked."""
    run = job.run
    end = run.phase if isinstance(run.phase, Finished) else None
    launched = not isinstance(run.phase, Queued)
    wanted = job.spec
    stdout, stderr = offsets or (run.stdout_bytes, run.stderr_bytes)
    return {
        "Id": job.id,
        "Name": job.name,
        "Owner": job.owner.name,
        "User": job.user.name,
        "UID": job.user.uid,
        "OwnerUID": job.owner.uid,
        "Command": job.command,
        "WorkingDirectory": wanted.get("WorkingDirectory"),
        "State": str(run.state),
        "Result": str(end.result) if end else None,
        "ExitCode": end.exit_code if end else None,
        "Signal": end.signal if end else None,
        "Reason": run.phase.reason or None if isinstance(run.phase, Finished | Stopping) else None,
        "Run": run.number,
        "Unit": job.unit,
        "Slice": job.slice,
        "ControlGroup": run.control_group if not end else None,
        "MainPID": run.main_pid if not end else None,
        "CreatedTimestamp": job.created_at,
        "StartedTimestamp": run.started_at,
        "FinishedTimestamp": end.at if end else None,
        "Seq": job.seq,
        "Labels": wanted.get("Labels", {}),
        "RequestId": wanted.get("RequestId"),
        "HookOf": wanted.get("HookOf"),
        "OnBehalfOf": wanted.get("OnBehalfOf"),
        "Queue": job.queue,
        "Priority": job.priority,
        "Dependencies": _listed(wanted.get("Dependencies", [])),
        "NotBeforeUSec": wanted.get("NotBeforeUSec"),
        "Retries": wanted.get("Retries"),
        "Unique": wanted.get("Unique"),
        "ArrayId": wanted.get("ArrayId"),
        "ArrayIndex": wanted.get("ArrayIndex"),
        "QueueReason": queue_reason,
        "Limits": {name: _listed(wanted[name]) for name in spec.SHOWN if name in wanted},
        "LimitsNotInForce": list(run.limits_not_in_force),
        "Usage": dict(run.usage) if used is None else used,
        "Output": {
            "StdoutBytes": stdout,
            "StderrBytes": stderr,
            "MissingBytes": sum(b - a for _, a, b, _ in run.missing) if launched else None,
        },
    }


def asked_for(job: Job) -> dict[str, Any]:
    """The spec of a job but for what is secret, and a standard input, which is used up."""
    public = (key for key in spec.KEYS.values() if key.name in job.spec and not key.secret and key.signature != "h")
    return {key.name: _listed(job.spec[key.name]) if "(" in key.signature else job.spec[key.name] for key in public}


def _listed(value: Any) -> Any:
    """Structures as lists, which is how dbus-next wants them."""
    return [list(pair) for pair in value] if isinstance(value, list) else value
