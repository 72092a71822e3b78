"""What a submission comes to, worked out before anything of it is stored: all of it is accepted, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jobsvc import model
from jobsvc.config import Config
from jobsvc.errors import InvalidSpec, QueueFull, WrongState
from jobsvc.model import Job, User
from jobsvc.roster import Roster, named

ONCE = ("RequestId", "Unique")
Look = Callable[[str], Job | None]
Request = tuple[User, str, str, str]  # owner, key, job id, digest


@dataclass(slots=True)
class Plan:
    """`ids` as the caller is answered; the rest is what there is to do for it."""

    ids: list[str] = field(default_factory=list)
    fresh: list[Job] = field(default_factory=list)
    by_id: dict[str, Job] = field(default_factory=dict)  # the same
    keys: set[tuple[str, str]] = field(default_factory=set)  # that no two of them may have
    requests: list[Request] = field(default_factory=list)
    replaced: list[tuple[Job, str]] = field(default_factory=list)  # a job to stop, and by which it is replaced
    broken: list[tuple[str, Job]] = field(default_factory=list)  # a fresh job, and what it depends on in vain

    def add(self, job: Job) -> None:
        """A fresh job."""
        self.fresh.append(job)
        self.by_id[job.id] = job
        self.keys |= {(key, job.spec[key]) for key in ONCE if key in job.spec}


class Intake:
    """Reads the roster and what is remembered; changes nothing."""

    def __init__(self, roster: Roster, look: Look, request: Callable[[User, str], tuple[str, str] | None]) -> None:
        self._roster = roster
        self._look = look
        self._request = request

    def plan(self, jobs: list[Job], digests: list[str], config: Config, at: int) -> Plan:
        plan = Plan()
        for job, mark in zip(jobs, digests, strict=True):
            known = self._known(job, mark)
            if known is None:
                known = self._take(job, mark, plan, at)
            plan.ids.append(known)
        self.room(plan.fresh, config)
        return plan

    def room(self, fresh: list[Job], config: Config) -> None:
        """Refuse what the queue has no room for."""
        queue = self._roster.queue
        if fresh and len(queue) + len(fresh) > config.max_queued:
            raise QueueFull(f"{len(queue)} jobs are queued; MaxQueued={config.max_queued} is reached")
        if fresh:
            self._roster.waiting.room(fresh, config)

    def _known(self, job: Job, mark: str) -> str | None:
        """The id an idempotency key already stands for; another spec under the same key is an error."""
        if "RequestId" not in job.spec or not (found := self._request(job.owner, job.spec["RequestId"])):
            return None
        job_id, old_mark = found
        if old_mark != mark:
            raise InvalidSpec(f"RequestId {job.spec['RequestId']!r} was used for another job, {job_id}; use a new one")
        return job_id

    def _take(self, job: Job, mark: str, plan: Plan, at: int) -> str:
        self._only_once(job, plan)
        holders = self._roster.holders(job)
        policy = job.spec.get("UniquePolicy", "refuse")
        if holders and policy == "refuse":
            raise held_by(holders[0])
        job_id = holders[-1].id if holders and policy == "return" else job.id
        if "RequestId" in job.spec:
            plan.requests.append((job.owner, job.spec["RequestId"], job_id, mark))
        if job_id == job.id:
            plan.replaced += [(holder, job.id) for holder in holders]
            plan.add(self._line_up(job, holders, plan, at))
        return job_id

    def _only_once(self, job: Job, plan: Plan) -> None:
        for key in ONCE:
            if key in job.spec and (key, job.spec[key]) in plan.keys:
                raise InvalidSpec(f"{key} {job.spec[key]!r} is used twice in one call")

    def _line_up(self, job: Job, holders: list[Job], plan: Plan, at: int) -> Job:
        depends = [(_meant(other, plan), condition) for other, condition in named(job)]
        waiting: dict[str, str] = {holder.id: "any" for holder in holders}
        for other_id, condition in depends:
            other = plan.by_id.get(other_id) or self._look(other_id)
            if other is None:
                raise InvalidSpec(f"Dependencies: there is no job {other_id}")
            if not model.holds(condition, other):
                waiting[other_id] = condition
                if other.run.finished:
                    plan.broken.append((job.id, other))
        if depends:
            job = replace(job, spec=job.spec | {"Dependencies": depends})
        return model.line_up(job, 1, at, tuple(waiting.items()), held=job.spec.get("Hold", False))

    def waits_again(self, job: Job) -> tuple[model.Waits, Job | None]:
        """What a further run of a job has to wait for, and a dependency that cannot hold any more.

        One that was removed is not asked about, and what itself waits for this job is not waited for.
        """
        waits = []
        for other_id, condition in named(job):
            other = self._look(other_id)
            if other is None or self._roster.reaches([other_id], job.id):
                continue
            verdict = model.holds(condition, other)
            if verdict is None:
                waits.append((other_id, condition))
            elif not verdict:
                return (), other
        return tuple(waits), None

    def respec(self, old: Job, new: Job) -> Job:
        """A queued job as it is with another spec: it keeps its place, and what of its waiting is still true."""
        if (
            "Unique" in new.spec
            and new.spec["Unique"] != old.spec.get("Unique")
            and (first := self._roster.holders(new))
        ):
            raise held_by(first[0])
        run = new.run
        if named(new) != named(old):
            run = replace(run, waiting_for=self._other_waits(old, new))
        if new.spec.get("NotBeforeUSec") != old.spec.get("NotBeforeUSec"):
            run = replace(run, due=new.spec.get("NotBeforeUSec"))
        if new.spec.get("Hold") != old.spec.get("Hold"):
            run = replace(run, held=new.spec.get("Hold", False))
        return replace(new, run=run)

    def _other_waits(self, old: Job, new: Job) -> model.Waits:
        for other, _ in named(new):
            if self._look(other) is None:
                raise InvalidSpec(f"Dependencies: there is no job {other}")
            if self._roster.reaches([other], old.id):
                raise InvalidSpec(f"Dependencies: job {other} waits for job {old.id} itself")
        waits, broken = self.waits_again(new)
        if broken:
            raise WrongState(f"Dependencies: job {broken.id} is {broken.state} already")
        before = {other for other, _ in named(old)}
        kept = [one for one in old.run.waiting_for if one[0] not in before]  # what it replaces
        return (*kept, *(one for one in waits if one not in kept))


def _meant(other: str, plan: Plan) -> str:
    """@N is the Nth job of the same call; the door has seen to it that it comes before."""
    return plan.ids[int(other[1:])] if other.startswith("@") else other


def held_by(first: Job) -> WrongState:
    key = first.spec["Unique"]
    return WrongState(
        f"job {first.id} has the Unique key {key!r} and is {first.state}; wait for it, stop it, or "
        "use --unique-policy replace or return"
    )
