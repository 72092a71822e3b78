"""run and start: submit a job, and stay with it or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from jobsvc.cli.command import command
from jobsvc.cli.options import (
    Spec,
    Word,
    command_argument,
    completed,
    dry_run_option,
    merge,
    program,
    settle,
    spec_options,
    stdin_option,
    wanted,
)
from jobsvc.cli.session import Session
from jobsvc.client import Client
from jobsvc.errors import JobsvcError, ServiceUnavailable

OWN_FAILURE = 125  # what env, timeout and docker exit with when it was not the program that failed
ACCEPTABLE = "this would be accepted; nothing was started"
SUBMIT = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def _array(text: str) -> Any:
    from jobsvc.cli.array import parse_array

    return parse_array(text)


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print the id and nothing else.")
array_option = click.option(
    "--array", metavar="TASKS", type=Word("TASKS", _array),
    help="One job for each index: 1-100, 1,3,5, 0-20:5; 1-100%4 runs four at once.",
)  # fmt: skip


@command("start", settings=SUBMIT)
@quiet_option
@array_option
@stdin_option
@dry_run_option
@spec_options
@command_argument()
def start_(session: Session, **given: Any) -> int:
    """Submit CMD as a job, print its id and return."""
    return submit(session, completed(program(given["command"]) | wanted(given), bool(given["array"])), given)


@command("run", settings=SUBMIT)
@click.option("-t", "--pty", is_flag=True, help="In a terminal of its own, joined to ours.")
@stdin_option
@dry_run_option
@spec_options
@command_argument()
def run_(session: Session, **given: Any) -> int:
    """Submit CMD as a job, follow it, and exit as it exits.

    Its output comes here, standard output and standard error apart. Exits 124 when it ran into its
    time limit, 128+N when signal N ended it, 126 or 127 when it could not be executed, 125 when
    something else went wrong. Ctrl-C stops the job; once more kills it.
    """
    from jobsvc.cli.attach import Attached

    asked = wanted(given)
    renewed, retries = bool(asked.keys() & {"RequestId", "Unique"}), "Retries" in asked
    made = completed(program(given["command"]) | asked)
    if given["pty"]:
        if "RequestId" not in asked:
            del made["RequestId"]  # who begins a job may type into it unasked; with one it need not be ours
        return _in_terminal(session, made, given, renewed, retries)
    session.failure = OWN_FAILURE
    try:
        with session.client(fds=True) as client:
            settle(client, made)
            if given["dry_run"]:
                return _dry_run(session, client, [made])
            with Attached(session, client) as attached:
                return attached.follow(lambda: _start(client, made), renewed, retries)
    except JobsvcError as error:
        session.complain(error)
        return OWN_FAILURE


def _in_terminal(session: Session, made: Spec, given: dict[str, Any], renewed: bool, retries: bool) -> int:
    from jobsvc.cli.terminal import Terminal

    if given["stdin"]:
        raise click.UsageError("-t gives the job a terminal to read from; leave out -i")
    session.failure = OWN_FAILURE
    try:
        with session.client(fds=True) as client:
            settle(client, made)
            terminal = Terminal(session, client)
            made = merge(terminal.spec(), made)
            if given["dry_run"]:
                return _dry_run(session, client, [made])
            return terminal.run(lambda: _start(client, made), renewed, retries)
    except JobsvcError as error:
        session.complain(error)
        return OWN_FAILURE


def submit(session: Session, made: Spec, given: dict[str, Any]) -> int:
    """Start a job, or an array of them, and answer with the id."""
    with session.client(fds="StandardInput" in made) as client:
        settle(client, made)
        specs = _tasks(made, given) if given["array"] else [made]
        if given["dry_run"]:
            return _dry_run(session, client, specs)
        if given["array"]:
            ids = client.start_many(specs)
            return _answer(session, ids, specs)
        return _answer(session, [_start(client, made)], [], given["quiet"])


def _tasks(made: Spec, given: dict[str, Any]) -> list[Spec]:
    from jobsvc.cli.array import overwritten, tasks

    if "StandardInput" in made:
        raise click.UsageError("one standard input cannot be given to every task; leave out -i")
    if path := overwritten(made):
        raise click.UsageError(f"every task would write {path} anew; put %a for the index into its name, or append:")
    return tasks(made, given["array"])


def _answer(session: Session, ids: Sequence[str], tasks: list[Spec], quiet: bool = True) -> int:
    if session.format == "table":
        session.put("".join(f"{job_id}\n" for job_id in ids))
    elif tasks:
        session.put_json(
            {"id": job_id, "array_id": task["ArrayId"][1], "array_index": task["ArrayIndex"][1]}
            for job_id, task in zip(ids, tasks, strict=True)
        )
    else:
        session.put_json([{"id": ids[0]}], single=True)
    if not quiet and session.format == "table" and sys.stderr and sys.stderr.isatty():
        session.say(f"'jobctl logs -f {ids[0]}' follows it")
    return 0


def _start(client: Client, made: Spec) -> str:
    if "StandardInput" in made and not client.bus.fds:
        raise ServiceUnavailable("this connection cannot pass standard input on; leave out --stdin")
    return client.start(made)


def _dry_run(session: Session, client: Client, specs: list[Spec]) -> int:
    for made in specs:
        made.pop("StandardInput", None)
    if len(specs) == 1:
        client.start(specs[0], dry_run=True)
    else:
        client.start_many(specs, dry_run=True)
    session.say(ACCEPTABLE)
    return 0
