"""Jobs, runs and the phases of a run: states carry their own facts, transitions are pure functions.

Times are µs since the epoch, passed in. Unknown is None, never zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from jobsvc import kinds
from jobsvc.errors import WrongState
from jobsvc.spec import LONGEST_NAME


class State(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


KEPT_RUNS = 1000  # of one job: who restarts it for ever must not fill the disk

FINISHED = frozenset({State.COMPLETED, State.FAILED, State.STOPPED})


class Result(StrEnum):
    SUCCESS = "success"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    CORE_DUMP = "core-dump"
    TIMEOUT = "timeout"
    OOM_KILL = "oom-kill"
    START_FAILED = "start-failed"
    LOST = "lost"
    STOPPED = "stopped"
    CANCELED = "canceled"

    @property
    def state(self) -> State:
        """The state a run with this result ends in."""
        match self:
            case Result.SUCCESS:
                return State.COMPLETED
            case Result.STOPPED | Result.CANCELED:
                return State.STOPPED
            case _:
                return State.FAILED


@dataclass(frozen=True, slots=True)
class User:
    """A user or owner by number and name; a later mismatch means the uid was given to somebody else."""

    uid: int
    name: str


@dataclass(frozen=True, slots=True)
class Queued:
    reason: str


@dataclass(frozen=True, slots=True)
class Starting:
    pass


@dataclass(frozen=True, slots=True)
class Running:
    pass


@dataclass(frozen=True, slots=True)
class Paused:
    """Frozen by the cgroup freezer; it keeps its slot."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """A stop was asked for; with `again` (the request's id) a new run follows it."""

    reason: str
    again: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    result: Result
    at: int
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None


Phase = Queued | Starting | Running | Paused | Stopping | Finished

STATES: dict[type, State] = {
    Queued: State.QUEUED,
    Starting: State.STARTING,
    Running: State.RUNNING,
    Paused: State.PAUSED,
    Stopping: State.STOPPING,
}


Waits = tuple[tuple[str, str], ...]  # ids of jobs, and the condition of each


NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a job, numbered from 1: where it is and all that is known of it."""

    number: int
    phase: Phase
    boot_id: str = ""
    main_pid: int | None = None
    control_group: str | None = None
    started_at: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    journal_bytes: int | None = None  # what its output takes there
    missing: tuple[tuple[str, int, int, str], ...] = ()  # stream, from, to, why
    usage: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    limits_not_in_force: tuple[str, ...] = ()
    place: int = 0  # in the queue: the seq at which it came there; 0 for not noted yet
    queued_at: int | None = None  # when it came there
    held: bool = False
    due: int | None = None  # not before
    waiting_for: Waits = ()  # jobs still to end, and how
    tries: int = 0  # runs before this one that failed and are retried by it

    @property
    def state(self) -> State:
        match self.phase:
            case Finished(result=result):
                return result.state
            case phase:
                return STATES[type(phase)]

    @property
    def finished(self) -> bool:
        return isinstance(self.phase, Finished)


def oldest_run(newest: int) -> int:
    """The number of the oldest run of a job that is still known."""
    return max(1, newest - KEPT_RUNS + 1)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as accepted: whose it is, what it is, and its current (or next, or last) run."""

    id: str
    owner: User
    user: User
    gid: int
    spec: dict[str, Any]
    created_at: int
    request: str
    run: Run
    seq: int = 0
    root_allowed: bool = False
    limits_allowed: bool = False  # rlimits beyond what PAM gives the user
    group_override: bool = False
    group_granted: bool = True  # by polkit or root; else the user has to be in the group at the start
    priority_allowed: bool = False  # above 0 it counts between users, too, not among its owner's jobs only

    @property
    def name(self) -> str:
        name: str = self.spec.get("Name") or self.command[0].rpartition("/")[2] or self.id
        return name[:LONGEST_NAME]  # a program's may be longer than one that is given

    @property
    def command(self) -> list[str]:
        """What is executed, for people: of a script, the word itself and its arguments."""
        command: list[str] = self.spec.get("Command") or ["script", *self.spec.get("Arguments", ())]
        return command

    @property
    def queue(self) -> str:
        queue: str = self.spec.get("Queue", "default")
        return queue

    @property
    def priority(self) -> int:
        priority: int = self.spec.get("Priority", 0)
        return priority

    @property
    def state(self) -> State:
        return self.run.state

    def output_file(self, key: str, unknown: str = "") -> str | None:
        """StandardOutput= or StandardError= with the marks filled in for the present run; `unknown` ones stay."""
        if "%" not in (path := self.spec.get(key) or ""):
            return path or None
        facts = {"j": self.id, "x": self.name, "r": str(self.run.number), "u": self.user.name}
        facts |= {mark: str(self.spec[of]) for mark, of in (("A", "ArrayId"), ("a", "ArrayIndex")) if of in self.spec}
        return kinds.filled(path, {mark: fact for mark, fact in facts.items() if mark not in unknown})

    @property
    def key(self) -> str:
        return f"{self.id}-{self.run.number}"

    @property
    def unit(self) -> str:
        return f"jobsvc-{self.key}.scope"

    @property
    def slice(self) -> str:
        return f"jobsvc-u{self.user.uid}.slice"


ENDS = {"success": "to succeed", "failure": "to fail", "any": "to end"}
HOLDS = {"success": frozenset({State.COMPLETED}), "failure": frozenset({State.FAILED}), "any": FINISHED}


def ends_as(condition: str) -> str:
    """What is waited for, in words."""
    return ENDS[condition]


def holds(condition: str, job: Job) -> bool | None:
    """Whether a dependency on this job holds; None as long as the job has not ended."""
    return job.state in HOLDS[condition] if job.run.finished else None


def _wrong(job: Job, verb: str) -> WrongState:
    return WrongState(f"job {job.id} is {job.state}; it cannot be {verb} now")


def begin(job: Job, boot_id: str) -> Job:
    """The queue's turn has come: the run is about to be launched."""
    if not isinstance(job.run.phase, Queued):
        raise _wrong(job, "started")
    return replace(job, run=replace(job.run, phase=Starting(), boot_id=boot_id))


def started(job: Job, main_pid: int | None, at: int | None) -> Job:
    """The main process has been executed. Hearing it twice, or after a stop was asked, is harmless."""
    phase = Running() if isinstance(job.run.phase, Queued | Starting) else job.run.phase
    run = replace(job.run, phase=phase, main_pid=main_pid, started_at=at or job.run.started_at)
    return replace(job, run=run)


def pause(job: Job, on: bool) -> Job:
    """All of it has been frozen, or goes on. Hearing it twice, or after a stop was asked, is harmless."""
    if isinstance(job.run.phase, Running if on else Paused):
        return replace(job, run=replace(job.run, phase=Paused() if on else Running()))
    return job


def line_up(job: Job, number: int, at: int, waiting_for: Waits = (), **facts: Any) -> Job:
    """The job with a run that has come to the queue."""
    due = job.spec.get("NotBeforeUSec")
    run = Run(number, Queued(""), queued_at=at, due=due, waiting_for=waiting_for)
    return replace(job, run=replace(run, **facts))


def requeue(job: Job, reason: str) -> Job:
    """The service went away before the run began: it is as if it had never left the queue."""
    if not isinstance(job.run.phase, Queued | Starting):
        raise _wrong(job, "queued")
    before = {name: getattr(job.run, name) for name in ("place", "queued_at", "due", "tries")}
    return replace(job, run=Run(job.run.number, Queued(reason), **before))


def dependency_ended(job: Job, other: Job, at: int) -> Job:
    """A job that this one may be waiting for has ended: it waits no more, or it never will begin."""
    condition = dict(job.run.waiting_for).get(other.id)
    if condition is None or not isinstance(job.run.phase, Queued):
        return job
    if not holds(condition, other):
        end = other.run.phase.result if isinstance(other.run.phase, Finished) else other.state
        reason = f"job {other.id} was {ends_as(condition)}, and it ended: {end}"
        return finish(job, Finished(Result.CANCELED, at, reason))
    rest = tuple(one for one in job.run.waiting_for if one[0] != other.id)
    return replace(job, run=replace(job.run, waiting_for=rest))


RETRY_DELAY = 5_000_000  # µs
LONGEST_DELAY = 3_600_000_000


def retry(job: Job, at: int) -> Job | None:
    """The run that follows a failed one by itself; None if there is none to follow.

    A run that took too long would do so again, and what was stopped is to stay so. Each time the
    pause is twice as long.
    """
    end = job.run.phase
    if not isinstance(end, Finished) or end.result.state is not State.FAILED or end.result is Result.TIMEOUT:
        return None
    tries = job.run.tries + 1
    if tries > job.spec.get("Retries", 0):
        return None
    first = job.spec.get("RetryDelayUSec", RETRY_DELAY)
    delay = min(first << (tries - 1), max(first, LONGEST_DELAY))
    waits = Queued(f"run {job.run.number} ended: {told(end)}")
    return line_up(job, job.run.number + 1, at, phase=waits, due=at + delay, tries=tries)


def told(end: Finished) -> str:
    """How a run ended, in a few words: exit-code 1, signal 9, start-failed (why)."""
    match end:
        case Finished(Result.START_FAILED, reason=reason) if reason:
            return f"{end.result} ({reason})"
        case Finished(exit_code=int() as number) | Finished(signal=int() as number):
            return f"{end.result} {number}"
    return str(end.result)


def hold(job: Job, on: bool) -> Job:
    """Asking twice is harmless; what has begun cannot be held."""
    if not isinstance(job.run.phase, Queued):
        raise _wrong(job, "held" if on else "released")
    return replace(job, run=replace(job.run, held=on))


def stop(job: Job, reason: str, at: int) -> Job:
    """A stop was asked for: what is queued is canceled, what runs is on its way out."""
    match job.run.phase:
        case Finished():
            raise WrongState(f"job {job.id} is {job.state} already; there is nothing to stop")
        case Queued():
            return finish(job, Finished(Result.CANCELED, at, reason))
        case _:  # also takes back a restart that was waiting for the end
            return replace(job, run=replace(job.run, phase=Stopping(reason)))


def restart(job: Job, request: str, at: int, waiting_for: Waits = ()) -> Job:
    """A new run is wanted: now, or when the present one has been stopped."""
    match job.run.phase:
        case Finished():
            return replace(line_up(job, job.run.number + 1, at, waiting_for), request=request)
        case Queued():
            return job
        case _:
            return replace(job, run=replace(job.run, phase=Stopping("restart", again=request)))


def again(job: Job) -> Job:
    """The job as its next run will have it: that which waits, or the one after the present."""
    if isinstance(job.run.phase, Queued):
        return job
    return replace(job, run=replace(job.run, number=job.run.number + 1))


def finish(job: Job, end: Finished, **facts: Any) -> Job:
    """The one way a run ends. Asking twice is harmless: the first end holds."""
    if job.run.finished:
        return job
    return replace(job, run=replace(job.run, phase=end, **facts))


_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WHOLE = (("USec", "Usec"), ("NSec", "Nsec"), ("CPUs", "Cpus"))


def snake(name: str) -> str:
    """The JSON spelling of a bus name: CPUQuotaPerSecUSec → cpu_quota_per_sec_usec."""
    for word, plain in _WHOLE:
        name = name.replace(word, plain)
    return _WORD.sub("_", name).lower()
