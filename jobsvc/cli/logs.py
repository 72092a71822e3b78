"""logs: what a job wrote, exactly."""

from __future__ import annotations

import time
from contextlib import nullcontext
from itertools import chain
from typing import Any

import click

from jobsvc.chunks import Stream
from jobsvc.cli.command import command, job_to_read
from jobsvc.cli.jobs import resolve
from jobsvc.cli.options import Word
from jobsvc.cli.pager import paged
from jobsvc.cli.printers import printer
from jobsvc.cli.session import Session
from jobsvc.client import Status
from jobsvc.client_logs import LogStream
from jobsvc.formats import Trailer
from jobsvc.model import snake
from jobsvc.moment import parse_time


def _time(text: str) -> int:
    return parse_time(text, time.time_ns() // 1000)


@command("logs")
@job_to_read
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option(
    "-n", "--lines", metavar="N", type=click.IntRange(min=0, max=2**32 - 1),
    help="Only the last N lines, and what follows.",
)  # fmt: skip
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this one.")
@click.option("--run", metavar="N", type=click.IntRange(min=1, max=2**32 - 1), help="An earlier run.")
@click.option("--since", metavar="TIME", type=Word("TIME", _time), help="Only what came since.")
@click.option("--until", metavar="TIME", type=Word("TIME", _time), help="Only what came before.")
@click.option(
    "-o", "--output", "form", type=click.Choice(["raw", "short", "json", "export"]),
    help="raw: the bytes (the default); short: lines with their time.",
)  # fmt: skip
def logs_(session: Session, job: str, form: str | None, follow: bool, **given: Any) -> int:
    """Show what JOB wrote: its standard output on ours, its standard error on ours.

    Into a pipe or a file every byte is exact; on a terminal control characters are shown escaped.
    What is missing is named, and the exit status is 1 then.
    """
    form = form or ("raw" if session.format == "table" else "json")
    with session.client(fds=True) as client:
        job_id = resolve(client, job, reading=True)
        status = client.status(job_id, {"Run": ("u", given["run"])} if given["run"] else None)
        options = _options(status, follow, given)
        partial = {"Lines", "SinceUSec", "UntilUSec"} & options.keys()
        stream = LogStream(client, job_id, options, _written(status) if partial else None)
        sink = printer(form, status, stream)
        things = iter(stream)
        first = next(things)  # that is when a password may be asked for
        with nullcontext() if follow else paged(session):
            code = 0
            for thing in chain([first], things):
                if isinstance(thing, Trailer):
                    code = _missing(session, thing)
                sink.put(thing)
    return code


def _missing(session: Session, trailer: Trailer) -> int:
    for gap in trailer.missing:
        session.say(f"bytes {gap.start} to {gap.end} of {gap.stream} are missing ({gap.why})")
    return 1 if trailer.missing else 0


def _written(status: Status) -> dict[Stream, int]:
    """How much there was of each stream; if not all is wanted, what was not shown stays unshown."""
    output = {snake(key): value for key, value in (status.get("Output") or {}).items()}
    return {"stdout": output.get("stdout_bytes") or 0, "stderr": output.get("stderr_bytes") or 0}


def _options(status: Status, follow: bool, given: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """The options of Logs. The run is named, so that a restart of the job does not change it."""
    asked: dict[str, tuple[str, Any]] = {}
    if run := given["run"] or status.get("Run"):
        asked["Run"] = ("u", run)
    if follow:
        asked["Follow"] = ("b", True)
    for name, key, signature in (
        ("lines", "Lines", "u"),
        ("stream", "Stream", "s"),
        ("since", "SinceUSec", "t"),
        ("until", "UntilUSec", "t"),
    ):
        if given[name] is not None:
            asked[key] = (signature, given[name])
    return asked
