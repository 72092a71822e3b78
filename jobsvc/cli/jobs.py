"""Which job is meant: an id, a unique beginning of one, a name, @ or @~N."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from jobsvc.client import Client, Options, Outcome
from jobsvc.errors import JobsvcError, NoSuchJob

_ID = re.compile(r"[0-9a-f]{16}")
_PREFIX = re.compile(r"[0-9a-f]{1,15}")
_LAST = re.compile(r"@(?:~([0-9]{1,9}))?")
_PLAIN = re.compile(r"[A-Za-z0-9_.@%+-]+")
NO_HOOKS = ("b", False)  # a job that only tells of another's end is hardly meant

Targets = list[tuple[str, str]]  # what the user wrote, and the id it stands for


def resolve(client: Client, job: str) -> str:
    """The id of the job that is meant. NoSuchJob when there is none, or more than one."""
    if _ID.fullmatch(job):
        return job
    if last := _LAST.fullmatch(job):
        return _mine(client, int(last[1] or 0))
    if not job:
        raise NoSuchJob("an empty name is no job; 'jobctl list' shows the jobs there are")
    named = _fields("Id", Name=("s", _literal(job)))
    for filters in ({**named, "Hooks": NO_HOOKS}, named):
        for found in client.list(filters, limit=1):
            return str(found["Id"])
    if _PREFIX.fullmatch(job):
        return _beginning(client, job)
    raise NoSuchJob.of(job)


def resolve_all(client: Client, jobs: Sequence[str]) -> tuple[Targets, list[Outcome]]:
    """Every job that is meant, each once, and those that could not be found."""
    targets: dict[str, str] = {}
    failed: list[Outcome] = []
    for job in jobs:
        try:
            targets.setdefault(resolve(client, job), job)
        except NoSuchJob as error:
            failed.append(Outcome(job, "", error))
    return [(job, job_id) for job_id, job in targets.items()], failed


def resolve_tasks(client: Client, job: str) -> list[str]:
    """The ids of all tasks if it is the id of an array, else that of the one job that is meant."""
    if _ID.fullmatch(job):
        tasks = [str(found["Id"]) for found in client.list(_fields("Id", ArrayId=("s", job)))]
        return tasks or [job]
    return [resolve(client, job)]


def complete(incomplete: str) -> Iterator[tuple[str, str]]:
    """Names and ids of recent jobs that begin so, for the shell; nothing if anything fails."""
    try:
        with Client() as client:
            jobs = list(client.list(_fields("Id", "Name", "State"), limit=50))
    except (JobsvcError, OSError):
        return
    seen: set[str] = set()
    for job in jobs:
        name, state = str(job.get("Name", "")), str(job.get("State", ""))
        # A name is another user's choice: only plain ones are handed to a shell.
        words = (name if _PLAIN.fullmatch(name) else "", job["Id"] if incomplete else "")
        for word in words:
            if word and word.startswith(incomplete) and word not in seen:
                seen.add(word)
                yield word, state


def complete_queue(incomplete: str) -> Iterator[tuple[str, str]]:
    """The queues of recent jobs, and the one that is always there."""
    queues = {"default"}
    try:
        with Client() as client:
            queues |= {str(job.get("Queue", "default")) for job in client.list(_fields("Queue"), limit=500)}
    except (JobsvcError, OSError):
        pass
    return ((queue, "") for queue in sorted(queues) if _PLAIN.fullmatch(queue) and queue.startswith(incomplete))


def _fields(*names: str, **filters: tuple[str, object]) -> Options:
    return {"Fields": ("as", list(names)), **filters}


def _literal(name: str) -> str:
    """A glob that only matches this name."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _mine(client: Client, back: int) -> str:
    """The last job of the caller, or the one so many before: an administrator sees everybody's."""
    found = list(client.list(_fields("Id", OwnerUID=("u", os.getuid()), Hooks=NO_HOOKS), limit=back + 1))
    if len(found) <= back:
        raise NoSuchJob("you have no such job; 'jobctl list' shows the jobs there are")
    return str(found[back]["Id"])


def _beginning(client: Client, prefix: str) -> str:
    found = [job["Id"] for job in client.list(_fields("Id", IdPrefix=("s", prefix)), limit=4)]
    if not found:
        raise NoSuchJob.of(prefix)
    if len(found) > 1:
        some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise NoSuchJob(f"{prefix!r} could be several jobs: {some}; write more of the id")
    return str(found[0])
