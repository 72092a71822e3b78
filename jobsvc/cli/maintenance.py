"""maintenance: take nothing new for a while; what runs goes on."""

from __future__ import annotations

import click

from jobsvc.cli.command import command, format_option
from jobsvc.cli.session import Session
from jobsvc.client import Client


@command("maintenance")
@click.argument("what", metavar="on|off|status", type=click.Choice(["on", "off", "status"]), default="status")
@click.option("--wait", is_flag=True, help="Return when nothing runs any more.")
@format_option
def maintenance_(session: Session, what: str, wait: bool) -> int:
    """Have the service accept and begin nothing new (on), or go on as usual (off).

    What runs goes on. It stays so across restarts and reboots. Without a word, or with 'status',
    say how it is.
    """
    if wait and what == "off":
        raise click.UsageError("--wait is for 'on': it waits until nothing runs")
    with session.client() as client:
        if what != "status":
            client.call("SetMaintenance", "ba{sv}", what == "on", {}, again=True)
        if wait:
            _drained(session, client)
        facts = client.properties()
    told = {"maintenance": facts.get("Maintenance"), "running": facts.get("Running"), "queued": facts.get("Queued")}
    if session.format != "table":
        session.put_json([told], single=True)
    elif what == "status":
        state = "on: nothing new is accepted or begun" if told["maintenance"] else "off"
        session.put(f"maintenance is {state}; {told['running']} running, {told['queued']} queued\n")
    return 0


def _drained(session: Session, client: Client) -> None:
    """Wait until no job holds a place."""
    left = int(client.properties().get("Running", 0))
    if left:
        session.hint(f"waiting for {left} running {'job' if left == 1 else 'jobs'}")
    client.until_idle()
