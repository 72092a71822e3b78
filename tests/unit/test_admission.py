"""The queue: strict priority, fair between users, first in first out, and never more than may run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsvc import admission, config, model, quantity
from jobsvc.admission import Queue
from jobsvc.config import Config
from jobsvc.model import Job, Queued, Run, User

NOW = 1_000_000
PLAIN = replace(Config(), max_running=100)


def job(number: int, uid: int = 1000, **spec: Any) -> Job:
    user = User(uid, f"u{uid}")
    fresh = Job(f"{number:016x}", user, user, uid, {"Command": ["true"], **spec}, number, "", Run(1, Queued("")))
    lined = model.line_up(fresh, 1, NOW, held=spec.get("Hold", False))
    return replace(lined, run=replace(lined.run, place=number))


def queue(*jobs: Job) -> Queue:
    waiting = Queue()
    for one in jobs:
        waiting.add(one, NOW)
    return waiting


def admitted(waiting: Queue, settings: Config = PLAIN, room: int = 1000, at: int = NOW) -> list[int]:
    """Which begin, each of them when the one before it has come up."""
    found = []
    while len(found) < room and (begun := waiting.admit(1, settings, at)):
        waiting.slots.came_up(begun[0].id)
        found.append(int(begun[0].id, 16))
    return found


def queues(**limits: int) -> Config:
    named = {name: config.Queue(max_running=most) for name, most in limits.items()}
    return replace(PLAIN, queues={"default": config.Queue(), **named})


def test_first_in_first_out() -> None:
    waiting = queue(job(1), job(3), job(2))
    assert admitted(waiting) == [1, 2, 3]
    assert len(waiting) == 0


def test_higher_priority_first() -> None:
    assert admitted(queue(job(1), job(2, Priority=5), job(3, Priority=-1), job(4, Priority=5))) == [2, 4, 1, 3]


def test_above_0_it_counts_between_users_only_for_those_who_may_push_past_others() -> None:
    urgent = job(3, uid=1001, Priority=1000)
    others = job(1), job(2, uid=1001), job(4, uid=1002, Priority=-1)
    assert admitted(queue(urgent, *others)) == [1, 3, 2, 4]
    assert admitted(queue(replace(urgent, priority_allowed=True), *others)) == [3, 1, 2, 4]
    elsewhere = job(5, uid=1001, Queue="gpu", Priority=7)
    assert admitted(queue(urgent, elsewhere, job(1)), queues(gpu=9)) == [1, 3, 5]


def test_no_more_than_may_run_nor_than_there_is_room_for() -> None:
    waiting = queue(job(1), job(2), job(3))
    two = replace(PLAIN, max_running=2)
    assert admitted(waiting, two, room=1) == [1]
    assert admitted(waiting, two) == [2]
    assert admitted(waiting, two) == []
    waiting.end(job(1).id)
    assert admitted(waiting, two) == [3]


def test_a_user_with_thousands_does_not_starve_another_with_one() -> None:
    waiting = queue(*(job(number) for number in range(5000)), job(5000, uid=1001))
    one = replace(PLAIN, max_running=1)
    first = admitted(waiting, one)
    waiting.end(job(first[0]).id)
    assert admitted(waiting, one) == [5000]


def test_users_take_turns_also_with_a_single_slot() -> None:
    waiting = queue(*(job(number, uid=1000 + (number >= 10)) for number in range(20)))
    order = []
    while found := admitted(waiting, replace(PLAIN, max_running=1)):
        order += found
        waiting.end(job(found[0]).id)
    assert [number >= 10 for number in order] == [False, True] * 10
    assert [number for number in order if number < 10] == list(range(10))


def test_the_user_with_fewer_slots_is_next() -> None:
    waiting = queue(*(job(number) for number in range(3)))
    assert len(admitted(waiting)) == 3
    for number, uid in ((10, 1000), (11, 1000), (12, 1001), (13, 1001)):
        waiting.add(job(number, uid), NOW)
    assert admitted(waiting, room=3) == [12, 13, 10]


def test_a_full_queue_holds_up_its_own_only() -> None:
    waiting = queue(job(1, Queue="gpu"), job(2, Queue="gpu"), job(3), job(4, Queue="gone"))
    settings = queues(gpu=1)
    assert admitted(waiting, settings) == [1, 3]
    slots = waiting.slots
    assert admission.limit(job(2, Queue="gpu"), slots, settings) == "MaxRunning=1 of queue 'gpu' is reached"
    assert admission.limit(job(4, Queue="gone"), slots, settings) == "there is no queue 'gone' any more"


def test_a_full_user_holds_up_nobody_else_and_root_is_not_counted() -> None:
    settings = replace(PLAIN, max_running_per_user=1)
    waiting = queue(job(1), job(2), job(3, 1001), job(4, 0), job(5, 0))
    assert sorted(admitted(waiting, settings)) == [1, 3, 4, 5]
    assert admission.limit(job(2), waiting.slots, settings) == "MaxRunningPerUser=1 is reached for u1000"


def test_one_user_leaves_slots_to_the_others_where_nothing_is_configured() -> None:
    waiting = queue(*(job(number) for number in range(100)), *(job(number, 1001) for number in range(100, 105)))
    assert len([number for number in admitted(waiting) if number < 100]) == 90
    assert admission.limit(job(99), waiting.slots, PLAIN) == "MaxRunningPerUser=90 is reached for u1000"
    assert len(waiting.slots.taken) == 95
    lifted = replace(PLAIN, max_running_per_user=quantity.INFINITY)
    assert len(admitted(waiting, lifted)) == 5
    few = queue(*(job(number) for number in range(100)))
    assert len(admitted(few, replace(PLAIN, max_running=9))) == 9
    assert admission.limit(job(99), few.slots, replace(PLAIN, max_running=9)) == "MaxRunning=9 is reached"


def test_starts_that_hang_leave_some_to_other_users() -> None:
    waiting = queue(*(job(number, uid=0) for number in range(100)), job(100, 1001), job(101, 1001))
    hung = waiting.admit(admission.MAX_STARTING, PLAIN, NOW)
    assert Counter(one.owner.uid for one in hung) == {0: admission.MAX_STARTING_PER_USER, 1001: 2}
    assert not waiting.wants(PLAIN, NOW)
    assert admission.limit(job(99, uid=0), waiting.slots, PLAIN) == "20 jobs of u0 are just starting"
    first, second, *_ = [one for one in hung if one.owner.uid == 0]
    waiting.end(first.id)  # it did not come up
    waiting.slots.came_up(second.id)
    assert len(waiting.admit(10, PLAIN, NOW)) == 2


def test_a_queue_may_run_so_many_of_each_user_also_of_root() -> None:
    settings = replace(PLAIN, queues=config.Config().queues)
    serial = [job(number, uid, Queue="serial") for number, uid in enumerate((1000, 1000, 1001, 0, 0))]
    waiting = queue(*serial, job(5))
    assert sorted(admitted(waiting, settings)) == [0, 2, 3, 5]
    says = "MaxRunningPerUser=1 of queue 'serial' is reached for u1000"
    assert admission.limit(serial[1], waiting.slots, settings) == says
    waiting.end(serial[0].id)
    assert admitted(waiting, settings) == [1]


def test_an_array_has_its_own_limit_and_goes_on_as_its_tasks_end() -> None:
    tasks = [job(number, ArrayId="a", ArrayIndex=number, ArrayMaxRunning=2) for number in range(6)]
    waiting = queue(*tasks, job(10))
    assert admitted(waiting) == [0, 1, 10]
    assert admission.limit(tasks[2], waiting.slots, PLAIN) == "ArrayMaxRunning=2 is reached"
    waiting.end(tasks[0].id)
    waiting.discard(tasks[2].id)  # canceled just when its turn had come
    assert admitted(waiting) == [3]
    waiting.end(tasks[1].id)
    waiting.end(tasks[3].id)
    assert admitted(waiting) == [4, 5]


def test_what_waits_for_something_of_its_own_is_not_looked_at() -> None:
    held, late = job(1, Hold=True), job(2, NotBeforeUSec=NOW + 5)
    depends = job(3)
    depends = replace(depends, run=replace(depends.run, waiting_for=((held.id, "success"),)))
    waiting = queue(held, late, depends, job(4))
    assert admitted(waiting) == [4]
    assert waiting.next_due == NOW + 5
    assert admitted(waiting, at=NOW + 5) == [2]
    assert waiting.next_due is None
    waiting.add(replace(held, run=replace(held.run, held=False)), NOW)
    waiting.add(replace(depends, run=replace(depends.run, waiting_for=())), NOW)
    assert admitted(waiting) == [1, 3]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"held": True}, "held; 'jobctl release 0000000000000001' lets it begin"),
        ({"waiting_for": (("a", "any"),)}, "waiting for job a to end"),
        ({"waiting_for": (("a", "success"), ("b", "any"))}, "waiting for job a to succeed and 1 more"),
        ({"due": 1_767_225_600_000_000}, "not before 2026-01-01T00:00:00Z"),
        ({"due": 1_767_225_600_000_000, "tries": 2}, "retry 2 of 3 at 2026-01-01T00:00:00Z"),
        (
            {"due": 1_767_225_600_000_000, "tries": 2, "phase": Queued("run 2 ended: exit-code 1")},
            "retry 2 of 3 at 2026-01-01T00:00:00Z; run 2 ended: exit-code 1",
        ),
        ({"due": NOW}, None),
        ({}, None),
    ],
)
def test_what_it_waits_for_is_said(facts: dict[str, Any], says: str | None) -> None:
    one = job(1, Retries=3)
    assert admission.waits(replace(one, run=replace(one.run, **facts)), NOW) == says


def test_a_job_that_comes_back_has_its_old_place() -> None:
    waiting = queue(job(1), job(2), job(3))
    assert admitted(waiting, room=1) == [1]
    waiting.end(job(1).id)
    waiting.add(job(1), NOW)
    waiting.discard(job(2).id)
    waiting.discard(job(2).id)
    assert admitted(waiting) == [1, 3]


def test_leaving_costs_no_memory() -> None:
    waiting = Queue()
    for number in range(20_000):
        waiting.add(job(number, NotBeforeUSec=NOW + 5 if number % 2 else 0), NOW)
        waiting.discard(job(number).id)
    assert sum(map(len, waiting._lanes.values())) + len(waiting._late) < 3000


# The rules, as plainly as they can be said, against the queue that does not look at every job.


@dataclass
class Plainly:
    """Looks at every job every time."""

    settings: Config
    waiting: dict[str, Job] = field(default_factory=dict)
    running: dict[str, Job] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    turn: int = 0

    def next(self, at: int) -> Job | None:
        slots = admission.Slots()
        for one in self.running.values():
            slots.take(one)

        def turn(one: Job) -> tuple[int, int, int, int]:
            uid = one.owner.uid
            counts = one.priority if one.priority_allowed or one.priority < 0 else 0
            return (-counts, slots.by_user[uid], self.turns[uid], one.run.place)

        able = [
            one
            for one in self.waiting.values()
            if not admission.waits(one, at) and not admission.limit(one, slots, self.settings)
        ]
        first = {one.owner.uid: one for one in sorted(able, key=lambda one: (one.priority, -one.run.place))}
        return min(first.values(), key=turn, default=None)

    def admit(self, room: int, at: int) -> list[str]:
        begun: list[str] = []
        while len(begun) < room and (one := self.next(at)):
            del self.waiting[one.id]
            self.running[one.id] = one
            self.turn += 1
            self.turns[one.owner.uid] = self.turn
            begun.append(one.id)
        return begun


SPECS = st.fixed_dictionaries(
    {},
    optional={
        "Priority": st.integers(-1, 2),
        "Allowed": st.booleans(),
        "Queue": st.sampled_from(["default", "gpu", "gone"]),
        "NotBeforeUSec": st.integers(NOW - 2, NOW + 20),
        "Hold": st.booleans(),
        "ArrayId": st.sampled_from(["a", "b"]),
    },
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1000, 1003) | st.just(0), SPECS),
        st.tuples(st.just("admit"), st.integers(0, 4), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 50), st.none()),
        st.tuples(st.just("leave"), st.integers(0, 50), st.none()),
        st.tuples(st.just("release"), st.integers(0, 50), st.none()),
        st.tuples(st.just("return"), st.integers(0, 50), st.none()),
    ),
    max_size=60,
)
SETTINGS = st.builds(
    lambda most, per_user, gpu, gpu_per_user: replace(
        Config(),
        max_running=most,
        max_running_per_user=per_user,
        queues={"default": config.Queue(), "gpu": config.Queue(gpu, gpu_per_user)},
    ),
    st.integers(1, 6),
    st.none() | st.integers(1, 3),
    st.none() | st.integers(1, 2),
    st.none() | st.integers(1, 2),
)


@given(ACTIONS, SETTINGS)
def test_the_queue_does_what_the_rules_say(actions: list[tuple[str, Any, Any]], limits: Config) -> None:
    plainly, waiting, at = Plainly(limits), Queue(), NOW
    for number, (verb, first, second) in enumerate(actions):
        if verb == "add":
            array = {"ArrayIndex": 0, "ArrayMaxRunning": 2} if "ArrayId" in second else {}
            one = replace(job(number, first, **second, **array), priority_allowed="Allowed" in second)
            plainly.waiting[one.id] = one
            waiting.add(one, at)
        elif verb == "admit":
            at += second
            assert waiting.wants(limits, at) == (plainly.next(at) is not None)
            assert [one.id for one in waiting.admit(first, limits, at)] == plainly.admit(first, at)
        elif verb in ("end", "return") and plainly.running:
            one = plainly.running.pop(list(plainly.running)[first % len(plainly.running)])
            waiting.end(one.id)
            if verb == "return":
                plainly.waiting[one.id] = one
                waiting.add(one, at)
        elif verb in ("leave", "release") and plainly.waiting:
            one = plainly.waiting.pop(list(plainly.waiting)[first % len(plainly.waiting)])
            waiting.discard(one.id)
            if verb == "release":
                plainly.waiting[one.id] = one = replace(one, run=replace(one.run, held=False))
                waiting.add(one, at)
        late = [one.run.due for one in plainly.waiting.values() if admission.waits(one, at) and not one.run.held]
        assert len(waiting) == len(plainly.waiting)
        assert waiting.next_due is None or waiting.next_due <= at or waiting.next_due == min(late, default=None)


def test_processes_that_outlive_their_jobs_count_as_running() -> None:
    waiting = queue(job(1), job(2), job(3), job(4, uid=1001))
    waiting.slots.left[1000] = 2
    settings = replace(PLAIN, max_running_per_user=3)
    assert admitted(waiting, settings) == [1, 4]
    assert "2 processes of ended jobs that hang" in str(admission.limit(job(2), waiting.slots, settings))
    waiting.slots.left[1000] = 0
    assert admitted(waiting, settings) == [2, 3]
