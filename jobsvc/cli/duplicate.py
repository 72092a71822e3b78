"""duplicate: a new job from an old one."""

from __future__ import annotations

from typing import Any

from jobsvc.cli.command import command, job_argument
from jobsvc.cli.jobs import resolve
from jobsvc.cli.options import command_argument, dry_run_option, identified, program, settle, spec_options, wanted
from jobsvc.cli.run import ACCEPTABLE, SUBMIT, quiet_option
from jobsvc.cli.session import Session


@command("duplicate", settings=SUBMIT | {"allow_interspersed_args": True})
@quiet_option
@dry_run_option
@spec_options
@job_argument
@command_argument(required=False)
def duplicate_(session: Session, job: str, command: tuple[str, ...], dry_run: bool, **given: Any) -> int:
    """Submit a new job like JOB, with other options or another command; print its id.

    It is authorized like any start of yours. The options and CMD, after --, replace JOB's; variables,
    labels and limits of disks are added to JOB's. It is not held because JOB was.
    """
    with session.client() as client:
        overrides = identified(settle(client, (program(command) if command else {}) | wanted(given)))
        if dry_run:
            overrides["DryRun"] = ("b", True)
        made, _ = client.call("Duplicate", "sa{sv}", resolve(client, job), overrides, again=True)
    if dry_run:
        session.say(ACCEPTABLE)
    elif session.format == "table":
        session.put(f"{made}\n")
    else:
        session.put_json([{"id": made}], single=True)
    return 0
