"""status: all about jobs, or about the service."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from jobsvc.cli.columns import DEFAULT, needed
from jobsvc.cli.command import command, format_option, job_arguments
from jobsvc.cli.describe import describe
from jobsvc.cli.jobs import resolve_all
from jobsvc.cli.listing import jobs_table
from jobsvc.cli.pager import paged
from jobsvc.cli.session import Session
from jobsvc.client import Client, Status
from jobsvc.errors import JobsvcError
from jobsvc.render import Style, as_json

NOT_RUNNING = 3  # as systemctl, after the LSB
RUNNING = frozenset({"starting", "running", "paused", "stopping"})
RECENT = 10


@command("status")
@job_arguments(required=False, reading=True)
@click.option(
    "-n", "--lines", metavar="N", type=click.IntRange(min=0, max=10_000), default=10,
    show_default=True, help="So many of the last lines of output.",
)  # fmt: skip
@click.option("--run", metavar="N", type=click.IntRange(min=1, max=2**32 - 1), help="An earlier run.")
@format_option
def status_(session: Session, jobs: tuple[str, ...], lines: int, run: int | None) -> int:
    """Show how JOBs are doing, with limits, usage and the last output.

    Without a JOB, show the service and the latest jobs. Exits 3 if a job is not running.
    """
    with session.client() as client:
        if not jobs:
            return _service(session, client)
        targets, outcomes = resolve_all(client, jobs, reading=True)
        failed: list[tuple[str, JobsvcError]] = [(o.job, o.error) for o in outcomes if o.error]
        found: list[Status] = []
        for job, job_id in targets:
            try:
                found.append(client.status(job_id, {"Run": ("u", run)} if run else None))
            except JobsvcError as error:
                failed.append((job, error))
        if session.format == "table":
            style, now = Style.of(sys.stdout), time.time_ns() // 1000
            texts = [describe(job, style, now, _last(client, job, lines)) for job in found]
            with paged(session):
                session.put("\n".join(texts))
        elif found or len(jobs) > 1:
            session.put_json(map(as_json, found), single=len(jobs) == 1)
    for job, failure in failed:
        session.complain(failure, job if len(jobs) > 1 else "")
    if failed:
        return failed[0][1].exit_code
    return 0 if all(job.get("State") in RUNNING for job in found) else NOT_RUNNING


def _last(client: Client, job: Status, lines: int) -> list[str]:
    """The last lines of a job's output, as `logs -o short` shows them."""
    if not lines or not job.get("StartedTimestamp"):
        return []
    from jobsvc.cli.lines import short_lines

    options = {"Lines": ("u", lines), "Format": ("s", "export"), "Run": ("u", job.get("Run", 1))}
    try:
        data, _ = client.call("ReadLogs", "sa{sv}", job["Id"], options, again=True)
    except JobsvcError as error:
        return [f"(no output to show: {error})"]
    return short_lines(data, job)[-lines:]


def _service(session: Session, client: Client) -> int:
    facts: dict[str, Any] = client.properties()
    if session.format != "table":
        from jobsvc.model import snake

        jobs = [as_json(job) for job in client.list({}, RECENT)]
        session.put_json([{snake(name): fact for name, fact in facts.items()} | {"jobs": jobs}],
                         single=True)  # fmt: skip
        return 0
    most = facts.get("MaxRunning")
    text = (
        f"jobsvc {facts.get('Version', '')}: {facts.get('Running', '?')} running"
        + (f" of at most {most}" if most else "")
        + f", {facts.get('Queued', '?')} queued"
        + ("; in maintenance, nothing new is accepted or begun" if facts.get("Maintenance") else "")
    )
    recent = list(client.list({"Fields": ("as", needed(DEFAULT))}, RECENT))
    text += "\n" + ("\n" + jobs_table(recent) if recent else "")
    with paged(session):
        session.put(text)
    return 0
