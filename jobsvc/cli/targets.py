"""Which jobs a command is for: those that are named, or all that fit a filter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import update_wrapper
from typing import Any, NamedTuple, TypeVar

import click

from jobsvc.cli.command import job_arguments
from jobsvc.cli.jobs import resolve_all
from jobsvc.cli.options import Word
from jobsvc.cli.session import Session
from jobsvc.client import FINISHED, Client, Options, Outcome

F = TypeVar("F", bound=Callable[..., Any])

BEGUN = ("starting", "running", "paused", "stopping")
UNFINISHED = ("queued", *BEGUN)
STATES = (*UNFINISHED, *sorted(FINISHED))


class Chosen(NamedTuple):
    """JOBs as they were written, or a filter."""

    jobs: tuple[str, ...]
    filter: Options | None

    def in_states(self, states: Sequence[str]) -> Options:
        """The filter, in these states unless it names some."""
        assert self.filter is not None
        return {"State": ("as", list(states)), **self.filter}


def parse_states(text: str) -> list[str]:
    from jobsvc.errors import nearest

    found = [word for word in text.split(",") if word]
    for word in found:
        if word not in STATES:
            hint = nearest(word, list(STATES)) or f"; there are {', '.join(STATES)}"
            raise ValueError(f"no state '{word}'{hint}")
    if not found:  # an unset variable of a script does not mean all
        raise ValueError("an empty list of states")
    return found


def parse_label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"'{text}' is not NAME=VALUE")
    return name, value


def filter_options(function: F) -> F:
    """The terms by which jobs are chosen."""
    for option in reversed(
        (
            click.option(
                "--state", "states", metavar="STATE,...", multiple=True,
                type=Word("STATE", parse_states, STATES), help="Only jobs in these states.",
            ),
            click.option("--user", metavar="USER", type=Word("USER", str), help="Only jobs of this user."),
            click.option("--name", metavar="GLOB", help="Only jobs so named: 'backup-*'."),
            click.option("--queue", metavar="QUEUE", type=Word("QUEUE", str), help="Only jobs of this queue."),
            click.option("--array", metavar="ID", help="Only the tasks of this array."),
            click.option(
                "--label", "labels", metavar="NAME=VALUE", multiple=True,
                type=Word("LABEL", parse_label), help="Only jobs with this label.",
            ),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def filter_of(
    states: Sequence[list[str]], labels: Sequence[tuple[str, str]], **plain: Any
) -> dict[str, tuple[str, Any]]:
    """The options of List, and of what is done to many."""
    asked: dict[str, tuple[str, Any]] = {}
    if states:
        asked["State"] = ("as", [state for some in states for state in some])
    if labels:
        asked["Labels"] = ("a{ss}", dict(labels))
    if (user := plain.pop("user")) is not None:
        asked |= of_user(user)
    for name, key in (("name", "Name"), ("queue", "Queue"), ("array", "ArrayId")):
        if plain[name] is not None:
            asked[key] = ("s", plain[name])
    return asked


def of_user(user: str) -> dict[str, tuple[str, Any]]:
    """A number means whoever has it now; of somebody who is gone it is all there is."""
    if not user.isdecimal():
        return {"User": ("s", user)}
    import pwd

    try:
        return {"User": ("s", pwd.getpwuid(int(user)).pw_name)}
    except (KeyError, OverflowError):
        if int(user) >= 2**32:
            raise click.UsageError(f"--user: there is no user {user}") from None
        return {"OwnerUID": ("u", int(user))}


def jobs_or_filter(what: str, reading: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """JOB…, or --all and filters: the command gets them as `chosen`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(
            session: Session, jobs: tuple[str, ...], every: bool, states: Any, user: Any, name: Any, queue: Any,
            array: Any, labels: Any, older_than: int | None = None, finished: bool = False, **given: Any,
        ) -> Any:  # fmt: skip
            terms = filter_of(states, labels, user=user, name=name, queue=queue, array=array)
            if older_than is not None:
                terms["FinishedBeforeUSec"] = ("t", older_than)
            return function(session, chosen=_choose(jobs, every or finished, terms), **given)

        update_wrapper(chosen, function)
        flag = click.option("--all", "every", is_flag=True, help=f"All {what} jobs of mine; of everybody for root.")
        return flag(filter_options(job_arguments(required=False, reading=reading)(chosen)))

    return decorate


def _choose(jobs: tuple[str, ...], every: bool, terms: dict[str, tuple[str, Any]]) -> Chosen:
    if bool(jobs) == bool(every or terms):
        raise click.UsageError("give either JOBs or --all (or --state, --name, ...)")
    if jobs:
        return Chosen(jobs, None)
    if os.getuid() != 0 and not terms.keys() & {"User", "OwnerUID"}:
        terms["OwnerUID"] = ("u", os.getuid())
    return Chosen((), terms)


def do(
    client: Client, chosen: Chosen, member: str, states: Iterable[str], signature: str = "", *body: Any
) -> list[Outcome]:
    """Call the method for each job that is named, or the one for many with the filter."""
    if chosen.filter is not None:
        return list(client.many(f"{member}Many", chosen.in_states(tuple(states)), signature, *body))
    targets, outcomes = resolve_all(client, chosen.jobs, filters=True)
    calls: list[tuple[str, str, tuple[Any, ...]]] = [(job, job_id, (job_id, *body, {})) for job, job_id in targets]
    return [*outcomes, *client.pipelined(member, f"s{signature}a{{sv}}", calls)]


def answer(session: Session, chosen: Chosen, outcomes: list[Outcome], done: str) -> int:
    """An answer per job; a filter that nothing fits is no failure."""
    if chosen.filter is not None and not outcomes:
        session.hint("no job fits")
    return session.report(outcomes, done, listed=chosen.filter is not None)
