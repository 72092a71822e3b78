"""list: the jobs there are, newest first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from jobsvc.cli.columns import COLUMNS, DEFAULT, needed, rows_of
from jobsvc.cli.command import command, format_option
from jobsvc.cli.options import Word
from jobsvc.cli.pager import paged
from jobsvc.cli.session import Session
from jobsvc.cli.targets import BEGUN, filter_of, filter_options
from jobsvc.client import Client, Status
from jobsvc.errors import JobsvcError
from jobsvc.moment import parse_time
from jobsvc.render import STATE_COLORS, Style, as_json, table

LIMIT = 100
MAINTENANCE = "in maintenance: nothing new is accepted or begun; 'jobctl maintenance status' says more"


def _time(text: str) -> int:
    return parse_time(text, time.time_ns() // 1000)


def _columns(text: str) -> list[str]:
    from jobsvc.errors import nearest

    found = [word for word in text.lower().split(",") if word]
    for word in found:
        if word not in COLUMNS:
            hint = nearest(word, list(COLUMNS)) or f"; there are {', '.join(COLUMNS)}"
            raise ValueError(f"no column '{word}'{hint}")
    if not found:
        raise ValueError("an empty list of columns")
    return found


def _column(text: str) -> str:
    words = _columns(text)
    if len(words) > 1:
        raise ValueError("give one column to sort by")
    return words[0]


@command("list")
@filter_options
@click.option("--since", metavar="TIME", type=Word("TIME", _time), help="Only jobs made since.")
@click.option("--until", metavar="TIME", type=Word("TIME", _time), help="Only jobs made before.")
@click.option(
    "--sort", metavar="COLUMN", type=Word("COLUMN", _column, tuple(COLUMNS)), help="By this column, not by age."
)
@click.option("--reverse", is_flag=True, help="The other way round: oldest first.")
@click.option(
    "--limit", "most", metavar="N", type=click.IntRange(min=0),
    help="At most so many, 100 by default; 0 is all.",
)  # fmt: skip
@click.option(
    "--columns", metavar="COLUMN,...", type=Word("COLUMN", _columns, tuple(COLUMNS)), help="Show these columns."
)
@format_option
def list_(
    session: Session,
    most: int | None,
    since: int | None,
    until: int | None,
    sort: str | None,
    reverse: bool,
    columns: list[str] | None,
    **filters: Any,
) -> int:
    """List jobs, newest first: yours, and those of others that you may see."""
    asked, limit = filter_of(**filters), LIMIT if most is None else most
    for key, value in (("SinceUSec", since), ("UntilUSec", until)):
        if value is not None:
            asked[key] = ("t", value)
    if reverse and not sort:
        asked["Reverse"] = ("b", True)
    shown = columns or list(DEFAULT)
    fields = [*needed([*shown, *([sort] if sort else [])]), "CreatedTimestamp"]
    if session.format == "table":
        asked["Fields"] = ("as", list(dict.fromkeys(fields)))
    if session.format != "table" or "Usage" in fields:
        asked["Live"] = ("b", True)
    with session.client() as client:
        if sort:
            jobs: Iterable[Status] = _sorted(client.list(asked), sort, reverse)[: limit or None]
        elif most is None and not reverse and "State" not in asked:
            jobs = _newest(client, asked, limit)
        else:
            jobs = client.list(asked, limit or None)
        if session.format != "table":
            session.put_json(as_json(job) for job in jobs)
            return 0
        listed = list(jobs)
        maintenance = in_maintenance(client)
    text = jobs_table(listed, columns=columns)
    with paged(session):
        session.put(text)
    if limit and len(listed) == limit and sys.stdout and sys.stdout.isatty():
        session.say(f"these are {limit}; --limit 0 lists all there are")
    if maintenance:
        session.say(MAINTENANCE)
    return 0


def _newest(client: Client, asked: dict[str, tuple[str, Any]], limit: int) -> list[Status]:
    """So many of the newest, but what has not ended is not hidden by what has, nor what runs by what waits."""
    found = list(client.list(asked, limit))
    if len(found) < limit:
        return found
    for states in (BEGUN, ("queued",)):
        found += client.list({**asked, "State": ("as", list(states))}, limit)
    each = sorted({job["Id"]: job for job in found}.values(), key=lambda job: -int(job.get("CreatedTimestamp", 0)))
    shown = {job["Id"] for job in sorted(each, key=_rank)[:limit]}
    return [job for job in each if job["Id"] in shown]


def _rank(job: Status) -> int:
    state = job.get("State")
    return 0 if state in BEGUN else 1 if state == "queued" else 2


def in_maintenance(client: Client) -> bool:
    try:
        return bool(client.properties().get("Maintenance"))
    except JobsvcError:
        return False  # what was asked for is there already


def _sorted(jobs: Any, column: str, reverse: bool) -> list[Status]:
    value = COLUMNS[column].order
    return sorted(jobs, key=lambda job: (value(job) is None, value(job)), reverse=reverse)


def jobs_table(jobs: Sequence[Status], now: int | None = None, columns: Sequence[str] | None = None) -> str:
    """Jobs for people, a line each; why they wait, if any does."""
    style = Style.of(sys.stdout)
    now = now if now is not None else time.time_ns() // 1000
    if columns is None:
        waiting = any(job.get("QueueReason") for job in jobs)
        columns = [name for name in DEFAULT if name != "reason" or waiting]
    state = columns.index("state") if "state" in columns else None
    colours = [STATE_COLORS.get(job.get("State", "")) for job in jobs]
    return table([name.upper() for name in columns], rows_of(jobs, columns, now, style), style, colours, state)
