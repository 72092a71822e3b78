"""kill: a signal to a job's processes."""

from __future__ import annotations

import signal

import click

from jobsvc.cli.command import command
from jobsvc.cli.options import Word
from jobsvc.cli.session import Session
from jobsvc.cli.targets import BEGUN, Chosen, answer, do, jobs_or_filter

NAMES = tuple(number.name.removeprefix("SIG") for number in signal.Signals)


def _signal(text: str) -> int:
    from jobsvc.kinds import parse_signal

    number = parse_signal(text)
    if number not in signal.valid_signals():
        raise ValueError(f"there is no signal {number}; 'kill -l' lists them")
    return number


@command("kill")
@jobs_or_filter("running")
@click.option(
    "-s", "--signal", "number", metavar="SIGNAL", type=Word("SIGNAL", _signal, NAMES), default="TERM",
    show_default=True, help="Which signal, by name or number.",
)  # fmt: skip
@click.option(
    "--whom", type=click.Choice(["main", "all"]), default="all", show_default=True,
    help="To the main process, or to all processes.",
)  # fmt: skip
def kill_(session: Session, chosen: Chosen, number: int, whom: str) -> int:
    """Send a signal to the processes of JOBs."""
    with session.client() as client:
        return answer(session, chosen, do(client, chosen, "Kill", BEGUN, "si", whom, number), "signalled")
