"""The queue: which job may begin next, and why the others wait. Pure: no clock, no files, no bus.

A user's own jobs begin by their priority, at equal priority in the order they came. Of what is first with each
user the one with the highest priority is next; there a priority above 0 counts only for jobs that may push past
others. At equal priority it is the user's with the fewest slots, of those the one's that has waited longest for a
turn. `waits` and `limit` are the rules for one job, `Queue` finds the next one without looking at all of them: only
the best of each lane (the jobs of one user in one queue) is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

from jobsvc import moment
from jobsvc.config import Config
from jobsvc.model import Job, Queued, ends_as

MAX_STARTING = 24  # at one time: enough to keep all who take part busy, measured; more would only wait for PID 1
# Of these for one user: its starts may hang, on a dead network file system or in PAM, for as long as StartTimeoutSec=
# lets them, and those of the others go on in what is left.
MAX_STARTING_PER_USER = 20
TURN = "waiting for its turn"

Array = tuple[int, str]  # whose, and its name
Lane = tuple[str, int]  # queue, and whose
Entry = tuple[int, int, str]  # sorts as the jobs of a lane go: -priority, place, id


def array_of(job: Job) -> Array | None:
    return (job.owner.uid, job.spec["ArrayId"]) if "ArrayId" in job.spec else None


@dataclass(slots=True)
class Slots:
    """Who holds slots: every job that has left the queue and is not finished holds one."""

    taken: dict[str, tuple[str, int, Array | None]] = field(default_factory=dict)  # by job, and what they count for
    by_queue: Counter[str] = field(default_factory=Counter)
    by_user: Counter[int] = field(default_factory=Counter)
    by_lane: Counter[Lane] = field(default_factory=Counter)
    by_array: Counter[Array | None] = field(default_factory=Counter)
    left: dict[int, int] = field(default_factory=dict)  # by user: processes that hang and outlive their jobs
    starting: dict[str, int] = field(default_factory=dict)  # whose, of those that have not come up yet
    starting_by: Counter[int] = field(default_factory=Counter)

    def take(self, job: Job) -> None:
        """Taking one twice is harmless."""
        if job.id not in self.taken:
            self.taken[job.id] = queue, uid, array = job.queue, job.owner.uid, array_of(job)
            self.by_queue[queue] += 1
            self.by_user[uid] += 1
            self.by_lane[queue, uid] += 1
            self.by_array[array] += 1

    def give_back(self, job_id: str) -> Array | None:
        """The slot is free again; the array that it counted for."""
        queue, uid, array = self.taken.pop(job_id)
        _less(self.by_queue, queue)
        _less(self.by_user, uid)
        _less(self.by_lane, (queue, uid))
        _less(self.by_array, array)
        self.came_up(job_id)
        return array

    def start(self, job: Job) -> None:
        """The job is about to come up. Hearing it twice is harmless."""
        if job.id not in self.starting:
            self.starting[job.id] = job.owner.uid
            self.starting_by[job.owner.uid] += 1

    def came_up(self, job_id: str) -> None:
        """Or it never will. Hearing it twice is harmless."""
        if (uid := self.starting.pop(job_id, None)) is not None:
            _less(self.starting_by, uid)


def _less(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def rank(job: Job) -> int:
    """The priority that counts between users."""
    return job.priority if job.priority_allowed else min(job.priority, 0)


def waits(job: Job, now: int) -> str | None:
    """What of its own a queued job waits for."""
    run = job.run
    if run.held:
        return f"held; 'jobctl release {job.id}' lets it begin"
    if run.waiting_for:
        (other, condition), *more = run.waiting_for
        return f"waiting for job {other} {ends_as(condition)}" + (f" and {len(more)} more" if more else "")
    if run.due is not None and run.due > now:
        at = moment.format_time(run.due)
        if not run.tries:
            return f"not before {at}"
        last = run.phase.reason if isinstance(run.phase, Queued) else ""
        return f"retry {run.tries} of {job.spec['Retries']} at {at}" + (f"; {last}" if last else "")
    return None


def limit(job: Job, slots: Slots, config: Config) -> str | None:
    """Which limit has to be below what it is for this job to begin."""
    lane = job.queue, job.owner.uid
    if full := _queue_full(job.queue, slots, config) or _lane_full(lane, job.owner.name, slots, config):
        return full
    if _user_full(job.owner.uid, slots, config):
        left = slots.left.get(job.owner.uid)
        hanging = f" with {left} processes of ended jobs that hang in the kernel" if left else ""
        return f"MaxRunningPerUser={config.running_per_user} is reached for {job.owner.name}{hanging}"
    return _array_full(job, slots) or _all_full(slots, config) or _start_full(job.owner.uid, job.owner.name, slots)


def _all_full(slots: Slots, config: Config) -> str | None:
    return f"MaxRunning={config.max_running} is reached" if len(slots.taken) >= config.max_running else None


def _queue_full(name: str, slots: Slots, config: Config) -> str | None:
    queue = config.queues.get(name)
    if queue is None:
        return f"there is no queue {name!r} any more"
    if queue.max_running is not None and slots.by_queue[name] >= queue.max_running:
        return f"MaxRunning={queue.max_running} of queue {name!r} is reached"
    return None


def _lane_full(lane: Lane, user: str, slots: Slots, config: Config) -> str | None:
    """Also of root: whoever chooses such a queue wants it to be so."""
    most = config.queues[lane[0]].max_running_per_user
    if most is None or slots.by_lane[lane] < most:
        return None
    return f"MaxRunningPerUser={most} of queue {lane[0]!r} is reached for {user}"


def _user_full(uid: int, slots: Slots, config: Config) -> bool:
    """Root has no limit. What outlives its job counts as one."""
    return uid != 0 and slots.by_user[uid] + slots.left.get(uid, 0) >= config.running_per_user


def _start_full(uid: int, name: str, slots: Slots) -> str | None:
    """Root, too: this is not about rights."""
    starting = slots.starting_by[uid]
    return f"{starting} jobs of {name} are just starting" if starting >= MAX_STARTING_PER_USER else None


def _array_full(job: Job, slots: Slots) -> str | None:
    most = job.spec.get("ArrayMaxRunning")
    array = array_of(job)
    if most is None or array is None or slots.by_array[array] < most:
        return None
    return f"ArrayMaxRunning={most} is reached"


class Queue:
    """The jobs that wait and the slots that are taken. A job is in it from its queueing to its end."""

    def __init__(self) -> None:
        self.slots = Slots()
        self._waiting: dict[str, Job] = {}
        self._lanes: dict[Lane, list[Entry]] = {}  # heaps
        self._late: list[tuple[int, str]] = []  # a heap
        self._parked: dict[Array, list[Entry]] = {}  # heaps of those whose array is full
        self._ready: dict[str, Entry] = {}  # what of the heaps is true; the rest of them is passed over
        self._stale = 0
        self._turns = 0
        self._last_turn: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def ready(self) -> int:
        """How many wait for nothing but a slot."""
        return len(self._ready)

    @property
    def next_due(self) -> int | None:
        """When the next of those becomes ready that wait for a point in time."""
        while self._late and not self._is_late(*self._late[0]):
            heappop(self._late)
        return self._late[0][0] if self._late else None

    def add(self, job: Job, now: int) -> None:
        """A job waits; or something of it has changed that decides when it may begin."""
        self.discard(job.id)
        self._waiting[job.id] = job
        run = job.run
        if run.held or run.waiting_for:
            return
        if run.due is not None and run.due > now:
            heappush(self._late, (run.due, job.id))
        else:
            self._make_ready(job)

    def discard(self, job_id: str) -> None:
        job = self._waiting.pop(job_id, None)
        if job is None:
            return
        self._stale += 1
        if self._ready.pop(job_id, None) and (array := array_of(job)):
            self._unpark(array)  # the slot that it was to have
        self._tidy()

    def begin(self, job: Job) -> None:
        """The job holds a slot from here on."""
        self.discard(job.id)
        self.slots.take(job)

    def end(self, job_id: str) -> None:
        """The job holds no slot any more, if it did."""
        if job_id in self.slots.taken and (array := self.slots.give_back(job_id)):
            self._unpark(array)

    def admit(self, room: int, config: Config, now: int, shut: Collection[str] = ()) -> list[Job]:
        """The jobs whose turn it is, at most `room`, and none of the queues that are shut; they have left the queue and
        hold their slots."""
        self._wake(now)
        begun: list[Job] = []
        while len(begun) < room and self._ready and not _all_full(self.slots, config):
            job = self._next(config, shut)
            if job is None:
                break
            del self._waiting[job.id], self._ready[job.id]
            self._turns += 1
            self._last_turn[job.owner.uid] = self._turns
            self.slots.take(job)
            self.slots.start(job)
            begun.append(job)
        return begun

    def wants(self, config: Config, now: int, shut: Collection[str] = ()) -> bool:
        """Whether a job would begin if there were room."""
        self._wake(now)
        return bool(self._ready) and not _all_full(self.slots, config) and self._best(config, shut) is not None

    def _next(self, config: Config, shut: Collection[str]) -> Job | None:
        lane = self._best(config, shut)
        return self._waiting[heappop(self._lanes[lane])[2]] if lane else None

    def _best(self, config: Config, shut: Collection[str]) -> Lane | None:
        """The lane whose first job is next."""
        first: dict[int, tuple[Entry, Lane]] = {}  # of each user
        full: dict[str, bool] = {}
        for lane in list(self._lanes):
            name, uid = lane
            if name not in full:
                full[name] = name in shut or _queue_full(name, self.slots, config) is not None
            if full[name] or _user_full(uid, self.slots, config) or _start_full(uid, "", self.slots):
                continue
            head = None if _lane_full(lane, "", self.slots, config) else self._head(lane)
            if head is not None and (uid not in first or head < first[uid][0]):
                first[uid] = head, lane
        return min(first.values(), key=self._turn)[1] if first else None

    def _turn(self, first: tuple[Entry, Lane]) -> tuple[int, int, int, int]:
        """Sorts as users take turns: by what is first with each."""
        (_, place, job_id), (_, uid) = first
        return -rank(self._waiting[job_id]), self.slots.by_user.get(uid, 0), self._last_turn.get(uid, 0), place

    def _head(self, lane: Lane) -> Entry | None:
        """The best of a lane that its array lets begin."""
        heap = self._lanes[lane]
        while heap:
            entry = heap[0]
            if self._ready.get(entry[2]) is not entry:
                heappop(heap)
                continue
            job = self._waiting[entry[2]]
            array = array_of(job)
            if array is None or not _array_full(job, self.slots):
                return entry
            heappush(self._parked.setdefault(array, []), heappop(heap))
        del self._lanes[lane]
        return None

    def _make_ready(self, job: Job) -> None:
        entry = self._ready[job.id] = (-job.priority, job.run.place, job.id)
        heappush(self._lanes.setdefault((job.queue, job.owner.uid), []), entry)

    def _unpark(self, array: Array) -> None:
        """One of an array may be looked at again."""
        heap = self._parked.get(array)
        while heap:
            entry = heappop(heap)
            if self._ready.get(entry[2]) is entry:
                job = self._waiting[entry[2]]
                heappush(self._lanes.setdefault((job.queue, job.owner.uid), []), entry)
                break
        if not heap:
            self._parked.pop(array, None)

    def _wake(self, now: int) -> None:
        while (due := self.next_due) is not None and due <= now:
            self._make_ready(self._waiting[heappop(self._late)[1]])

    def _is_late(self, due: int, job_id: str) -> bool:
        job = self._waiting.get(job_id)
        if job is None or job_id in self._ready:
            return False
        return job.run.due == due and not job.run.held and not job.run.waiting_for

    def _tidy(self) -> None:
        """What is passed over must not pile up: many may leave that were never looked at."""
        if self._stale < 1000 or self._stale < len(self._waiting):
            return
        self._stale = 0
        for heaps in (self._lanes, self._parked):
            for key, heap in list(heaps.items()):
                kept = [entry for entry in heap if self._ready.get(entry[2]) is entry]
                heapify(kept)
                heaps[key] = kept  # type: ignore[index]
        self._late = [one for one in set(self._late) if self._is_late(*one)]
        heapify(self._late)
