"""set: change a job that is there."""

from __future__ import annotations

from typing import Any

import click

from jobsvc.cli.command import command, job_argument
from jobsvc.cli.jobs import resolve
from jobsvc.cli.options import UNSET, assign, complete_key
from jobsvc.cli.session import Session
from jobsvc.errors import InvalidSpec


@command("set")
@job_argument
@click.argument("assignments", metavar="KEY=VALUE...", nargs=-1, required=True, shell_complete=complete_key)
def set_(session: Session, job: str, assignments: tuple[str, ...]) -> int:
    """Change limits of JOB while it waits or runs, as 'systemctl set-property' does: MemoryMax=1G.

    What waits can be changed in its name, queue, priority and times as well, and in what it runs.
    """
    from jobsvc import spec as keys

    wanted: dict[str, tuple[str, Any]] = {}
    for assignment in assignments:
        try:
            assign(wanted, assignment)
        except InvalidSpec as error:
            raise click.UsageError(str(error)) from None
    for key in wanted.pop(UNSET, ("as", ()))[1]:
        signature = keys.KEYS[key].signature
        if key not in wanted and signature not in keys.LISTS:
            raise click.UsageError(
                f"'{key}=' cannot be of a job that is there; give another value: infinity is no limit"
            )
        wanted.setdefault(key, (signature, {} if signature == "a{ss}" else []))
    with session.client() as client:
        client.call("SetProperties", "sa{sv}a{sv}", resolve(client, job), wanted, {})
    return 0
