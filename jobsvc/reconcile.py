"""From one life of the service to the next: what an earlier one left unfinished is taken up where it is now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from jobsvc import ending, model, rundir
from jobsvc.clock import realtime_usec
from jobsvc.model import Finished, Job, Queued, Starting
from jobsvc.runner import Runner
from jobsvc.store import Store

log = logging.getLogger(__name__)


class Owner(Protocol):
    """What reconciling needs of the manager."""

    store: Store
    boot_id: str
    runners: dict[str, Runner]

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Those that are not finished."""

    def look(self, job_id: str) -> Job | None: ...
    def change(self, job: Job, transition: Callable[[Job], Job]) -> Job: ...
    def place(self, job: Job) -> None: ...
    def drive(self, job: Job, *, adopt: bool) -> None: ...
    def cancel(self, job: Job, reason: str) -> None: ...
    def mind_input(self, job: Job) -> None: ...
    def dependency_ended(self, job: Job, other: Job) -> None: ...


def reconcile(owner: Owner) -> None:
    """Files are the truth: a run directory or a report means that the run was launched, whatever was noted."""
    for job in owner.store.unfinished():  # one by one: they may be many
        owner.place(job)
    for job in list(owner.jobs.values()):
        _take_up(owner, job)
    for job in [job for job in owner.jobs.values() if job.run.waiting_for]:
        _catch_up(owner, job)
    for key in {*ending.keys(), *rundir.keys()} - set(owner.runners):
        _take_back(owner, key)


def _take_up(owner: Owner, job: Job) -> None:
    here = rundir.path(job.key).is_dir()
    facts = ending.read(job.key)
    if isinstance(job.run.phase, Queued):
        if not here and facts is None:
            owner.mind_input(job)
            return
        job = owner.change(job, lambda job: model.begin(job, owner.boot_id))
    elif isinstance(job.run.phase, Starting) and not here and facts is None and job.run.boot_id == owner.boot_id:
        owner.change(job, lambda job: model.requeue(job, ""))
        return
    elif facts is None and not here and job.run.boot_id != owner.boot_id:
        reason = "the machine went down without a shutdown; how it ended is not known"
        end = Finished(model.Result.LOST, realtime_usec(), reason)
        owner.change(job, lambda job: model.finish(job, end))
        return
    owner.drive(job, adopt=True)


def _catch_up(owner: Owner, job: Job) -> None:
    """What it waits for and ended without our seeing it."""
    for other_id, _ in job.run.waiting_for:
        if other_id in owner.jobs or job.id not in owner.jobs:
            continue
        if other := owner.store.get(other_id):
            owner.dependency_ended(owner.jobs[job.id], other)
        else:
            owner.cancel(owner.jobs[job.id], f"job {other_id}, on which it depends, is not there any more")


def _take_back(owner: Owner, key: str) -> None:
    """Files of a run that is no unfinished one of the store."""
    job_id, _, number = key.partition("-")
    job = owner.look(job_id)
    wanted = rundir.supervised(key) or ending.read(key) is not None
    if wanted and job and (run := owner.store.run(job_id, int(number))):
        owner.drive(replace(job, run=run), adopt=True)  # its end is noted; what its last words are is not
        return
    job = rundir.recover(key) if wanted and job is None else None
    if job is None:
        log.info("run %s is over and recorded: its files go", key)
        ending.discard(key)
        rundir.discard(key)
        return
    log.error("run %s is not in jobs.db; it is taken over as its request describes it", key)
    job = owner.store.put(job)
    owner.place(job)
    owner.drive(job, adopt=True)
