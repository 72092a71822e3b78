"""hold and release what waits; pause and resume what runs."""

from __future__ import annotations

from jobsvc.cli.command import command
from jobsvc.cli.session import Session
from jobsvc.cli.targets import Chosen, answer, do, jobs_or_filter


@command("hold")
@jobs_or_filter("queued")
def hold_(session: Session, chosen: Chosen) -> int:
    """Keep queued JOBs from beginning until they are released."""
    with session.client() as client:
        return answer(session, chosen, do(client, chosen, "Hold", ["queued"]), "held")


@command("release")
@jobs_or_filter("queued")
def release_(session: Session, chosen: Chosen) -> int:
    """Let JOBs that are held begin when their turn comes."""
    with session.client() as client:
        return answer(session, chosen, do(client, chosen, "Release", ["queued"]), "released")


@command("pause")
@jobs_or_filter("running")
def pause_(session: Session, chosen: Chosen) -> int:
    """Freeze JOBs: their processes keep their memory and stop running.

    A paused job keeps its place; the time does not count for its time limit.
    """
    with session.client() as client:
        return answer(session, chosen, do(client, chosen, "Pause", ["running"]), "paused")


@command("resume")
@jobs_or_filter("paused")
def resume_(session: Session, chosen: Chosen) -> int:
    """Let paused JOBs go on."""
    with session.client() as client:
        return answer(session, chosen, do(client, chosen, "Resume", ["paused"]), "resumed")
