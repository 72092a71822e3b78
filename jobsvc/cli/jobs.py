"""Which job is meant: an id, a unique beginning of one, a name, @ or @~N.

A whole id is that job. Anything else means a job of one's own, by owner. Only commands that look (`reading`) take it
for another's if none of one's own fits: names are free, and a name that is given to change a job, or to have one wait
for it, must not lead to a job that another user has called so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from jobsvc.client import Client, Options, Outcome, Status
from jobsvc.errors import JobsvcError, NoSuchJob

_ID = re.compile(r"[0-9a-f]{16}")
_PREFIX = re.compile(r"[0-9a-f]{1,15}")
_LAST = re.compile(r"@(?:~([0-9]{1,9}))?")
_PLAIN = re.compile(r"[A-Za-z0-9_.@%+-]+")
NO_HOOKS = ("b", False)  # a job that only tells of another's end is hardly meant

ALL: Options = {}  # whose jobs: anybody's that may be seen
SHOWN = 3  # of several jobs, in an error

Targets = list[tuple[str, str]]  # what the user wrote, and the id it stands for


def resolve(client: Client, job: str, *, reading: bool = False, filters: bool = False) -> str:
    """The id of the job that is meant. NoSuchJob when there is none, or more than one.

    `filters`: the command has --user and --name, which an error may point to.
    """
    if _ID.fullmatch(job):
        return job
    if last := _LAST.fullmatch(job):
        return _mine(client, int(last[1] or 0))
    if not job:
        raise NoSuchJob("an empty name is no job; 'jobctl list' shows the jobs there are")
    found = _named(client, job, 1, _own()) or _beginning(client, job, _own())
    if not found and reading:
        found = _named(client, job, 1) or _beginning(client, job)
    if found:
        return str(found[0]["Id"])
    raise NoSuchJob.of(job) if reading else _no_job_of_yours(client, job, filters)


def resolve_all(
    client: Client, jobs: Sequence[str], *, reading: bool = False, filters: bool = False
) -> tuple[Targets, list[Outcome]]:
    """Every job that is meant, each once, and those that could not be found."""
    targets: dict[str, str] = {}
    failed: list[Outcome] = []
    for job in jobs:
        try:
            targets.setdefault(resolve(client, job, reading=reading, filters=filters), job)
        except NoSuchJob as error:
            failed.append(Outcome(job, "", error))
    return [(job, job_id) for job_id, job in targets.items()], failed


def resolve_tasks(client: Client, job: str) -> list[str]:
    """The ids of all tasks if it is the id of an array, else that of the one job that is meant.

    An id that is a job's is that job's, whatever arrays are called, and an array is one user's.
    """
    if not _ID.fullmatch(job):
        return [resolve(client, job)]
    if list(client.list(_fields("Id", IdPrefix=("s", job)), limit=1)):
        return [job]
    array: Options = {"ArrayId": ("s", job)}
    tasks = list(client.list({**_fields("Id"), **array, **_own()})) or list(
        client.list(_fields("Id", "Owner", **array))
    )
    if len(owners := sorted({str(task.get("Owner")) for task in tasks})) > 1:
        raise NoSuchJob(f"the array {job!r} could be of {' or '.join(owners)}; give the ids of its tasks")
    return [str(task["Id"]) for task in tasks] or [job]


def complete(incomplete: str, reading: bool = False) -> Iterator[tuple[str, str]]:
    """Names and ids of recent jobs that begin so, for the shell; nothing if anything fails."""
    wanted = _fields("Id", "Name", "State", "Owner", "OwnerUID")
    try:
        with Client() as client:
            jobs = [*client.list({**wanted, **_own()}, limit=50), *client.list(wanted, limit=50)]
    except (JobsvcError, OSError):
        return
    seen: set[str] = set()
    for job in jobs:
        name, own = str(job.get("Name", "")), job.get("OwnerUID") == os.getuid()
        # A name is another user's choice: only plain ones are handed to a shell.
        words = (name if _PLAIN.fullmatch(name) and (own or reading) else "", job["Id"] if incomplete else "")
        for word in words:
            if word and word.startswith(incomplete) and word not in seen:
                seen.add(word)
                yield word, f"{job.get('State', '')}" + ("" if own else f", {job.get('Owner', '')}")


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


def _own() -> Options:
    return {"OwnerUID": ("u", os.getuid())}


def _named(client: Client, name: str, most: int, whose: Options = ALL) -> list[Status]:
    """The newest jobs of this name; hooks only if nothing else has it."""
    named = _fields("Id", "Owner", Name=("s", _literal(name)), **whose)
    return list(client.list({**named, "Hooks": NO_HOOKS}, limit=most)) or list(client.list(named, limit=most))


def _beginning(client: Client, prefix: str, whose: Options = ALL) -> list[Status]:
    """The only job whose id begins so, if it is the beginning of one."""
    if not _PREFIX.fullmatch(prefix):
        return []
    found = list(client.list(_fields("Id", "Owner", IdPrefix=("s", prefix), **whose), limit=SHOWN + 1))
    if len(found) > 1:
        some = ", ".join(str(job["Id"]) for job in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        raise NoSuchJob(f"{prefix!r} could be several jobs: {some}; write more of the id")
    return found


def _no_job_of_yours(client: Client, job: str, filters: bool) -> NoSuchJob:
    """The error for a word that means no job of one's own; it lists others' jobs that fit, with their owners."""
    named = _named(client, job, SHOWN + 1)
    found = named or _beginning(client, job)
    if not found:
        return NoSuchJob.of(job)
    there = ", ".join(f"{each['Id']} ({each.get('Owner', '?')})" for each in found[:SHOWN])
    there += ", ..." if len(found) > SHOWN else ""
    how = "the id, or --user and --name" if filters and named else "the id"
    return NoSuchJob(f"no job of yours is {job!r}; there {'is' if len(found) == 1 else 'are'} {there}; give {how}")
