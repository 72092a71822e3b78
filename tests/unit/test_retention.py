"""The clock of retention follows the wall clock, but never jumps with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsvc.retention import Reckoning, shares

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR
NOW = 20_000 * DAY
BOOT, NEXT = "b" * 32, "c" * 32


def test_in_ordinary_times_it_is_the_wall_clock() -> None:
    last = Reckoning(NOW, 5 * HOUR, BOOT)
    assert last.advance(NOW + HOUR, 6 * HOUR, BOOT) == Reckoning(NOW + HOUR, 6 * HOUR, BOOT)
    assert last.advance(NOW + HOUR + 1, 6 * HOUR, BOOT).believed == NOW + HOUR + 1


def test_a_jump_in_either_direction_is_followed_slowly() -> None:
    for jump in (4000 * DAY, -4000 * DAY):
        reckoning = Reckoning(NOW, 0, BOOT)
        for hour in range(1, 25):
            reckoning = reckoning.advance(NOW + jump, hour * HOUR, BOOT)
        assert abs(reckoning.believed - NOW) == 2 * DAY
        back = reckoning.advance(NOW + DAY, 25 * HOUR, BOOT)
        assert abs(back.believed - reckoning.believed) == 2 * HOUR


def test_a_clock_that_is_wrong_while_the_machine_boots_leaves_nothing_behind() -> None:
    at_boot = Reckoning(NOW, 9 * DAY, BOOT).advance(0, HOUR, NEXT)
    assert at_boot == Reckoning(NOW, HOUR, NEXT)
    corrected = at_boot.advance(NOW + DAY, HOUR + HOUR, NEXT)
    assert corrected.believed == NOW + 2 * HOUR


def test_what_is_old_is_so_by_either_clock() -> None:
    assert Reckoning(NOW, 0, BOOT).before(30 * DAY, NOW + 4000 * DAY) == NOW - 30 * DAY
    assert Reckoning(NOW, 0, BOOT).before(30 * DAY, NOW - 400 * DAY) == NOW - 430 * DAY
    assert Reckoning(NOW, 0, BOOT).before(2**62, NOW) == 0


def test_it_comes_back_as_it_was() -> None:
    reckoning = Reckoning(NOW, 7, BOOT)
    assert Reckoning.unpack(reckoning.pack()) == reckoning


@pytest.mark.parametrize(
    ("have", "excess", "gone"),
    [
        ({1: 1000, 2: 5, 3: 10}, 900, {1: 900}),
        ({1: 15, 2: 10}, 5, {1: 5}),
        ({1: 15, 2: 10}, 15, {1: 10, 2: 5}),
        ({1: 3, 2: 3}, 1, {1: 1}),
        ({1: 3, 2: 3}, 6, {1: 3, 2: 3}),
    ],
)
def test_whoever_has_the_most_loses_the_most(have: dict[int, int], excess: int, gone: dict[int, int]) -> None:
    assert shares(have, excess) == gone


@given(st.dictionaries(st.integers(0, 9), st.integers(0, 50), min_size=1), st.data())
def test_so_many_go_and_nobody_falls_below_those_who_keep_more(have: dict[int, int], data: st.DataObject) -> None:
    excess = data.draw(st.integers(0, sum(have.values())))
    gone = shares(have, excess)
    assert sum(gone.values()) == excess
    left = {owner: count - gone.get(owner, 0) for owner, count in have.items()}
    assert min(left.values()) >= 0
    assert all(left[owner] >= max(left.values()) - 1 for owner in gone)
