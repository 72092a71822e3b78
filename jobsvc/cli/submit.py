"""submit: several jobs that wait for each other, from a TOML file."""

from __future__ import annotations

import sys
from typing import Any

import click

from jobsvc.cli.command import command
from jobsvc.cli.options import Spec, dry_run_option
from jobsvc.cli.session import Session
from jobsvc.client import Client
from jobsvc.errors import InvalidSpec


@command("submit")
@click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
@click.option("-q", "--quiet", is_flag=True, help="Print the ids and nothing else.")
@dry_run_option
def submit_(session: Session, file: str, quiet: bool, dry_run: bool) -> int:
    """Submit the jobs of the TOML file FILE, all or none, and print their ids.

    Each table [job.NAME] is a job: command or script, after = ["NAME:success"], and the options of
    'start' as keys; [defaults] holds what is the same for all.
    """
    from jobsvc.cli.graph import Plan

    try:
        plan = Plan(_document(file))
    except InvalidSpec as error:
        raise click.UsageError(f"{file}: {error}") from None
    with session.client() as client:
        _settle(client, plan.specs)
        ids = client.start_many(plan.specs, dry_run)
    if dry_run:
        session.say("these would be accepted; nothing was started")
    elif session.format != "table":
        session.put_json({"name": name, "id": job_id} for name, job_id in zip(plan.names, ids, strict=True))
    else:
        for name, job_id in zip(plan.names, ids, strict=True):
            session.put(f"{job_id}\n" if quiet else f"{job_id} {name}\n")
    return 0


def _document(file: str) -> dict[str, Any]:
    import tomllib

    try:
        if file == "-":
            return tomllib.load(sys.stdin.buffer)
        with open(file, "rb") as text:
            return tomllib.load(text)
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} is not TOML: {error}") from None


def _settle(client: Client, specs: list[Spec]) -> None:
    """Jobs that are not in the file are jobs that are there already."""
    from jobsvc.cli.jobs import resolve_tasks

    known: dict[str, list[str]] = {}
    for spec in specs:
        if "Dependencies" in spec:
            waits: dict[str, str] = {}
            for job, condition in spec["Dependencies"][1]:
                if job[1:].isdecimal() and job[0] == "@":
                    waits[job] = condition
                    continue
                if job not in known:
                    known[job] = resolve_tasks(client, job)
                waits |= dict.fromkeys(known[job], condition)
            spec["Dependencies"] = ("a(ss)", list(waits.items()))
