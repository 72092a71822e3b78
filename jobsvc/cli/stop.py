"""stop, restart, remove: of one job, of several, of all that fit a filter."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from jobsvc.cli.command import command
from jobsvc.cli.options import Word
from jobsvc.cli.session import Session
from jobsvc.cli.targets import BEGUN, UNFINISHED, Chosen, answer, do, jobs_or_filter
from jobsvc.client import FINISHED, Client, Outcome, Status
from jobsvc.errors import WrongState
from jobsvc.quantity import parse_span

_no_block = click.option("--no-block", is_flag=True, help="Do not wait until it is done.")


@command("stop")
@jobs_or_filter("unfinished")
@_no_block
def stop_(session: Session, chosen: Chosen, no_block: bool) -> int:
    """Stop JOBs: SIGTERM to all their processes, SIGKILL after the stop timeout.

    A queued job is canceled. Returns when they have ended.
    """
    with session.client() as client:
        asked = time.time_ns() // 1000
        outcomes = [_canceled_by_another(client, one, asked) for one in do(client, chosen, "Stop", UNFINISHED)]
        if not no_block:
            for _ in client.ended([outcome.id for outcome in outcomes if not outcome.error]):
                pass
        return answer(session, chosen, outcomes, "stopped")


def _canceled_by_another(client: Client, outcome: Outcome, asked: int) -> Outcome:
    """What depends on one that was stopped before it may have been canceled by that: it is as it was to be."""
    if isinstance(outcome.error, WrongState):
        status = client.status(outcome.id)
        if status.get("State") == "stopped" and status.get("FinishedTimestamp", 0) >= asked:
            return outcome._replace(error=None)
    return outcome


@command("restart")
@jobs_or_filter("running")
@_no_block
def restart_(session: Session, chosen: Chosen, no_block: bool) -> int:
    """Run JOBs again: a new run of the same command, after stopping the present one.

    Returns when the new runs are submitted, as start does.
    """
    with session.client() as client:
        outcomes = do(client, chosen, "Restart", BEGUN)
        if not no_block:
            begun = {o.id: _again(o.body[0]) for o in outcomes if not o.error and o.body}
            for _ in client.until(begun):
                pass
        return answer(session, chosen, outcomes, "restarted")


def _again(run: int) -> Callable[[Status], bool]:
    """Has this run come up? Or has somebody stopped the job for good, meanwhile?"""
    return lambda status: status.get("Run", 0) >= run or status.get("State") == "stopped"


def _older(text: str) -> int:
    return max(time.time_ns() // 1000 - parse_span(text), 0)


@command("remove")
@jobs_or_filter("finished")
@click.option("--finished", is_flag=True, help="The same as --all.")
@click.option("--older-than", metavar="SPAN", type=Word("SPAN", _older), help="Only what ended so long ago: 7d.")
def remove_(session: Session, chosen: Chosen) -> int:
    """Forget JOBs that have ended, and their facts. Their output stays in the journal."""
    with session.client() as client:
        outcomes = do(client, chosen, "Remove", sorted(FINISHED))
        return answer(session, chosen, outcomes, "removed")
