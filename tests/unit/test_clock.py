"""Run time is monotonic time less pauses."""

from __future__ import annotations

from jobsvc.clock import RunClock


def test_unknown_before_the_beginning() -> None:
    clock = RunClock(1_000_000)
    assert clock.elapsed_usec(5.0) is None
    assert clock.deadline() is None


def test_counts_from_the_beginning() -> None:
    clock = RunClock(2_000_000)
    clock.begin(10.0)
    assert clock.deadline() == 12.0
    assert clock.elapsed_usec(11.5) == 1_500_000


def test_a_pause_does_not_count_and_asking_twice_changes_nothing() -> None:
    clock = RunClock(2_000_000)
    clock.begin(10.0)
    clock.pause(11.0)
    clock.pause(12.0)
    assert clock.deadline() is None
    assert clock.elapsed_usec(50.0) == 1_000_000
    clock.resume(15.0)
    clock.resume(16.0)
    assert clock.deadline() == 16.0
    assert clock.elapsed_usec(15.5) == 1_500_000


def test_the_limit_can_be_changed_and_removed() -> None:
    clock = RunClock(None)
    clock.begin(10.0)
    assert clock.deadline() is None
    clock.limit_usec = 500_000
    assert clock.deadline() == 10.5


def test_a_pause_before_the_beginning_counts_from_the_beginning() -> None:
    clock = RunClock(1_000_000)
    clock.pause(5.0)
    clock.begin(10.0)
    assert clock.elapsed_usec(12.0) == 0
    clock.resume(13.0)
    assert clock.elapsed_usec(13.5) == 500_000
