"""stats: finished jobs by day, user and queue."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from jobsvc.cli.command import command, format_option
from jobsvc.cli.options import Word
from jobsvc.cli.pager import paged
from jobsvc.cli.session import Session
from jobsvc.cli.targets import of_user
from jobsvc.client import Status, unpack
from jobsvc.model import snake
from jobsvc.moment import parse_time
from jobsvc.quantity import format_size
from jobsvc.render import Style, short_span, table

KEYS = ("Day", "User", "Queue", "Jobs", "Completed", "Failed", "Stopped", "CPUUsageNSec", "MemoryPeak", "WaitUSec")
HEAD = ("DAY", "USER", "QUEUE", "JOBS", "COMPLETED", "FAILED", "STOPPED", "CPU", "MEMORY PEAK", "MEAN WAIT")


def _time(text: str) -> int:
    return parse_time(text, time.time_ns() // 1000)


@command("stats")
@click.option("--user", metavar="USER", type=Word("USER", str), help="Only jobs of this user.")
@click.option("--name", metavar="GLOB", help="Only jobs so named.")
@click.option("--queue", metavar="QUEUE", type=Word("QUEUE", str), help="Only jobs of this queue.")
@click.option("--since", metavar="TIME", type=Word("TIME", _time), help="Only jobs made since.")
@click.option("--until", metavar="TIME", type=Word("TIME", _time), help="Only jobs made before.")
@format_option
def stats_(session: Session, **terms: Any) -> int:
    """Count finished jobs by day, user and queue: how they ended, CPU time, memory, waiting.

    It counts the jobs that are remembered: yours, and those of others that you may see.
    """
    kinds = {"name": ("Name", "s"), "queue": ("Queue", "s")}
    kinds |= {"since": ("SinceUSec", "t"), "until": ("UntilUSec", "t")}
    asked = {key: (kind, terms[name]) for name, (key, kind) in kinds.items() if terms[name] is not None}
    if terms["user"] is not None:
        asked |= of_user(terms["user"])
    with session.client() as client:
        (answer,) = client.call("Stats", "a{sv}", asked, again=True)
    rows = [unpack(row) for row in answer]
    if session.format != "table":
        session.put_json({snake(key): row.get(key) for key in (*KEYS, *row)} for row in rows)
        return 0
    text = table(HEAD, [_row(row) for row in rows], Style.of(sys.stdout))
    with paged(session):
        session.put(text)
    return 0


def _row(row: Status) -> tuple[str, ...]:
    jobs, wait = row.get("Jobs", 0), row.get("WaitUSec")
    cpu, memory = row.get("CPUUsageNSec"), row.get("MemoryPeak")
    return (
        *(str(row.get(key, "-")) for key in KEYS[:7]),
        "-" if cpu is None else short_span(cpu // 1000),
        "-" if memory is None else format_size(memory),
        "-" if wait is None or not jobs else short_span(wait // jobs),
    )
