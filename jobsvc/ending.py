"""How a run is found to have ended: the report its supervisor left, taken into the job."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobsvc import control, model, rundir
from jobsvc.chunks import Missing
from jobsvc.model import Finished, Job, Result, Stopping

log = logging.getLogger(__name__)

REPORTS = Path("/var/lib/jobsvc/reports")
NEVER_BEGUN = "never begun"
CALLED_OFF = "stopped before it began"

Report = dict[str, Any]


def read(key: str) -> Report | None:
    """The report of a run, from where it should be or, if the disk was full, from its run directory."""
    for path in (REPORTS / key, rundir.path(key) / "report"):
        try:
            report = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.error("report %s cannot be read: %s", path, error)
            continue
        if isinstance(report, dict) and control.spoken(report):
            return report
        log.error("report %s has a version this release does not speak", path)
    return None


def keys() -> Iterator[str]:
    """The runs that have a report."""
    return (path.name for path in REPORTS.iterdir() if control.is_run_key(path.name))


def discard(key: str) -> None:
    """The report has been taken in."""
    (REPORTS / key).unlink(missing_ok=True)
    (rundir.path(key) / "report").unlink(missing_ok=True)


def never_begun(report: Report) -> bool:
    """Whether the run ended only because the service went away before it could begin."""
    return not report.get("begun") and report.get("reason") == NEVER_BEGUN


def take(job: Job, report: Report, usage: dict[str, Any], at: int) -> Job:
    """The job with its run ended as the report says. `usage` is what systemd still knew, the better source.

    `at` is when we heard of it, for a report that does not say when it was.
    """
    reason = report.get("reason") or ""
    try:
        result = Result(report.get("result", ""))
    except ValueError:  # of a supervisor of a newer release
        result, reason = Result.LOST, f"{report.get('result', 'no result')}: {reason}"
    if isinstance(job.run.phase, Stopping):
        if not report.get("begun"):
            result, reason = Result.STOPPED, CALLED_OFF
        elif result is Result.STOPPED:
            reason = job.run.phase.reason or reason
    end = Finished(
        result,
        at=report.get("finished_usec") or at,
        reason="; ".join(text for text in (reason, *report.get("notes", ())) if text),
        exit_code=report.get("exit_code"),
        signal=report.get("signal"),
    )
    out, err, cut = report.get("stdout_bytes"), report.get("stderr_bytes"), report.get("cut", ())
    kept = (out or 0) + (err or 0) - sum(b - a for _, a, b in cut)  # of a supervisor of an earlier release
    return model.finish(
        job,
        end,
        main_pid=report.get("main_pid") or job.run.main_pid,
        started_at=report.get("started_usec") or job.run.started_at,
        stdout_bytes=out,
        stderr_bytes=err,
        journal_bytes=report.get("journal_bytes", kept),
        usage=best_usage(report, usage) if report.get("begun") else {},
        missing=tuple((s, a, b, "cut") for s, a, b in cut),
    )


def undelivered(job: Job, ranges: list[Any]) -> Job:
    """The job with what its supervisor could not bring to the journal named as missing. Twice is harmless."""
    lost = [Missing(stream, start, end, "lost") for stream, start, end in ranges]
    return replace(job, run=replace(job.run, missing=with_lost(job.run.missing, lost)))


Holes = tuple[tuple[str, int, int, str], ...]
MOST_HOLES = 1000


def with_lost(known: Holes, gaps: Iterable[Missing]) -> Holes:
    """What is known to be missing and these gaps, no byte counted twice."""
    lost: dict[str, list[list[int]]] = {}
    ours = [(gap.stream, gap.start, gap.end) for gap in gaps]
    for stream, start, end in sorted([*((s, a, b) for s, a, b, why in known if why == "lost"), *ours]):
        ranges = lost.setdefault(stream, [])
        if ranges and start <= ranges[-1][1]:
            ranges[-1][1] = max(ranges[-1][1], end)
        else:
            ranges.append([start, end])
    merged = tuple((stream, start, end, "lost") for stream, ranges in lost.items() for start, end in ranges)
    return (*(hole for hole in known if hole[3] != "lost"), *merged[:MOST_HOLES])


NAMES = {
    "cpu_usage_nsec": "CPUUsageNSec",
    "memory_peak": "MemoryPeak",
    "io_read_bytes": "IOReadBytes",
    "io_write_bytes": "IOWriteBytes",
}


def best_usage(report: Report, unit: dict[str, Any]) -> dict[str, Any]:
    """Each figure from its best source: the unit, the cgroup the supervisor saw, the main process' rusage."""
    usage: dict[str, Any] = {}
    for source, figures in (
        ("rusage", _named(report.get("rusage", {}))),
        ("cgroup", _named(report.get("usage", {}))),
        ("unit", unit),
    ):
        usage |= figures | ({"Source": source} if figures else {})
    return usage


def _named(figures: dict[str, Any]) -> dict[str, Any]:
    return {NAMES[name]: value for name, value in figures.items() if name in NAMES and value is not None}
