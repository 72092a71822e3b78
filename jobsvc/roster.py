"""Every unfinished job there is, found by id and by what it is looked up for: slots, turns, keys, who waits for it."""

from __future__ import annotations

from collections.abc import Iterable

from jobsvc.admission import Queue
from jobsvc.alike import Alike
from jobsvc.model import Job, Queued, Starting, Waits
from jobsvc.waiting import Waiting

Key = tuple[int, str, str]  # uid and name of the owner, the Unique key


class Roster:
    """In memory, and nothing but memory: what is here is in the store, too."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.queue = Queue()
        self.waiting = Waiting()
        self._alike = Alike()
        self._unique: dict[Key, dict[str, None]] = {}
        self._dependents: dict[str, dict[str, None]] = {}

    @property
    def busy(self) -> int:
        """Jobs that hold a slot: all that have left the queue and are not finished."""
        return len(self.queue.slots.taken)

    def put(self, job: Job, now: int) -> None:
        """Take a new or changed job; one that has finished is here no more."""
        old = self.jobs.get(job.id)
        if old is None:
            job = self._alike.same(job)
        if old is None or old.spec is not job.spec or old.run.waiting_for != job.run.waiting_for or job.run.finished:
            self._forget(old or job)
            if not job.run.finished:
                self._learn(job)
        if job.run.finished:
            self.jobs.pop(job.id, None)
        else:
            self.jobs[job.id] = job
        if isinstance(job.run.phase, Queued):
            self.queue.end(job.id)
            self.queue.add(job, now)
        elif job.run.finished:
            self.queue.discard(job.id)
            self.queue.end(job.id)
        else:
            self.queue.begin(job)
        self.waiting.see(job)
        # Until its scope is there: a hung file system behind the exec of one holds up nobody else.
        if isinstance(job.run.phase, Starting) and job.run.control_group is None:
            self.queue.slots.start(job)
        else:
            self.queue.slots.came_up(job.id)

    def holders(self, job: Job) -> list[Job]:
        """The other unfinished jobs with its Unique key."""
        key = _key(job)
        return [self.jobs[one] for one in self._unique.get(key, ()) if one != job.id] if key else []

    def dependents(self, job_id: str) -> list[Job]:
        """Who waits for this job to end, in the order they came."""
        return [self.jobs[one] for one in self._dependents.get(job_id, ())]

    def reaches(self, start: Iterable[str], goal: str) -> bool:
        """Whether from these jobs, by what each depends on, one comes to the goal."""
        seen: set[str] = set()
        waiting = list(start)
        while waiting:
            one = waiting.pop()
            if one == goal:
                return True
            if one not in seen and one in self.jobs:
                seen.add(one)
                waiting += [other for other, _ in depends_on(self.jobs[one])]
        return False

    def _learn(self, job: Job) -> None:
        if key := _key(job):
            self._unique.setdefault(key, {})[job.id] = None
        for other, _ in job.run.waiting_for:
            self._dependents.setdefault(other, {})[job.id] = None

    def _forget(self, job: Job) -> None:
        if (key := _key(job)) and key in self._unique:
            self._unique[key].pop(job.id, None)
            if not self._unique[key]:
                del self._unique[key]
        for other, _ in job.run.waiting_for:
            if waiting := self._dependents.get(other):
                waiting.pop(job.id, None)
                if not waiting:
                    del self._dependents[other]


def _key(job: Job) -> Key | None:
    return (job.owner.uid, job.owner.name, job.spec["Unique"]) if "Unique" in job.spec else None


def depends_on(job: Job) -> Waits:
    """What a job says it depends on, and what it waits for besides."""
    return (*named(job), *job.run.waiting_for)


def named(job: Job) -> Waits:
    """What a job depends on, as its spec has it; from the store come lists."""
    return tuple((other, condition) for other, condition in job.spec.get("Dependencies", ()))
