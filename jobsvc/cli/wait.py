"""wait: until jobs have ended."""

from __future__ import annotations

import os

import click

from jobsvc.cli.command import command, format_option
from jobsvc.cli.jobs import resolve_all
from jobsvc.cli.session import Session
from jobsvc.cli.targets import UNFINISHED, Chosen, jobs_or_filter
from jobsvc.client import Client, Status
from jobsvc.errors import JobsvcError, NoSuchJob
from jobsvc.render import as_json


@command("wait")
@jobs_or_filter("unfinished", reading=True)
@click.option("--any", "first", is_flag=True, help="Until one has ended; its id is printed.")
@click.option("--notify", is_flag=True, help="Tell the desktop of each end.")
@click.option("--exit-code", is_flag=True, help="Exit as the one JOB did, or the first with --any; as run does.")
@format_option
def wait_(session: Session, chosen: Chosen, first: bool, notify: bool, exit_code: bool) -> int:
    """Wait until JOBs have ended. Exits 0 if all of them succeeded, 1 if not."""
    if exit_code and not first and len(chosen.jobs) != 1:
        raise click.UsageError("--exit-code is for one JOB, or for the first of several with --any")
    with session.client() as client:
        ids, errors = _jobs(client, chosen)
        for error in errors:
            session.complain(error)
        single = chosen.filter is None and len(ids) + len(errors) == 1
        ended: list[Status] = []
        for job_id, status in client.ended(ids):
            if status is None:
                session.complain(NoSuchJob.of(job_id))
            elif status["State"] != "completed":
                session.say(f"job {job_id} {status['State']}: {status.get('Result', 'unknown')}")
            if notify and status:
                _notify(session, status)
            ended.append(status or {"Id": job_id})
            if first:
                break
    if session.format != "table" and (ended or not errors):
        session.put_json(map(as_json, ended), single=single or first)
    elif first and ended:
        session.put(f"{ended[0]['Id']}\n")
    if exit_code and ended and "State" in ended[0]:
        return _as_run(ended[0])
    return _code(ended, len(errors), chosen)


def _as_run(job: Status) -> int:
    from jobsvc.cli.attach import exit_code
    from jobsvc.formats import End

    end = End(job.get("Run", 1), job["State"], job.get("Result"), job.get("ExitCode"), job.get("Signal"))
    return exit_code(end)


def _code(ended: list[Status], missing: int, chosen: Chosen) -> int:
    """Whether all of them succeeded, or are there at all. What fitted a filter was there."""
    seen = [job for job in ended if "State" in job]
    if chosen.filter is None and not seen and (ended or missing):
        return 4
    return 0 if not missing and len(seen) == len(ended) and all(job["State"] == "completed" for job in seen) else 1


def _jobs(client: Client, chosen: Chosen) -> tuple[list[str], list[JobsvcError]]:
    """The ids to wait for: of a filter, those that fit now. A job that asks does not wait for itself."""
    if chosen.filter is not None:
        fields = {"Fields": ("as", ["Id"])}
        found = client.list({**chosen.in_states(UNFINISHED), **fields})
        return [str(job["Id"]) for job in found if job["Id"] != os.environ.get("JOBSVC_ID")], []
    targets, outcomes = resolve_all(client, chosen.jobs, reading=True)
    return [job_id for _, job_id in targets], [outcome.error for outcome in outcomes if outcome.error]


def _notify(session: Session, status: Status) -> None:
    from jobsvc.cli.notice import notice

    if not notice(status):
        session.say("there is no desktop to tell; is DBUS_SESSION_BUS_ADDRESS set?")
