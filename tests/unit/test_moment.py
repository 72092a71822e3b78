"""Points in time read as systemd reads them, and refuse in words."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from jobsvc.moment import parse_time
from jobsvc.quantity import HOUR, MINUTE, MSEC

NOON = 1_767_268_800_000_000  # 2026-01-01 12:00:00 UTC, 13:00 in Berlin


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "usec"),
    [
        ("now", NOON),
        ("-5min", NOON - 5 * MINUTE),
        ("+1h", NOON + HOUR),
        ("5min ago", NOON - 5 * MINUTE),
        ("today", NOON - 13 * HOUR),
        ("yesterday", NOON - 37 * HOUR),
        ("tomorrow", NOON + 11 * HOUR),
        ("2026-01-01", NOON - 13 * HOUR),
        ("2026-01-01 10:00:00", NOON - 3 * HOUR),
        ("2026-01-01 10:00", NOON - 3 * HOUR),
        ("10:00", NOON - 3 * HOUR),
        ("2026-01-01T10:00:00.25Z", NOON - 2 * HOUR + 250 * MSEC),
        ("Thu 2026-01-01 10:00:00 UTC", NOON - 2 * HOUR),
        ("1h left", NOON + HOUR),
        ("Thursday, 26-1-1 10:00", NOON - 3 * HOUR),
        ("2026-01-01 10:00 Asia/Tokyo", NOON - 11 * HOUR),
        ("10:00 America/New_York", NOON + 3 * HOUR),
        ("12:30 utc", NOON + HOUR // 2),
        ("@1767268800", NOON),
        ("@1767268800.5", NOON + 500 * MSEC),
        ("2026-07-01 00:00:00", 1_782_856_800_000_000),  # summer time
    ],
)
def test_points_in_time_are_local_unless_they_say_otherwise(text: str, usec: int, berlin: None) -> None:
    assert parse_time(text, NOON) == usec


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "2026-02-30", "2026-13-01", "25:00", "10:60", "@x", "@", "-", "- 5 parsec", "UTC",
     "0000-01-01", "9999999 weeks ago", "2026-01-01 10:00:00 PST", "+infinity",
     "Fri 2026-01-01", "2026-01-01 10:00 Moon/Base", "10:00 ../../etc/passwd", "9999-12-31 1", "3h"],
)  # fmt: skip
def test_a_time_that_is_none_is_refused_in_words(text: str, berlin: None) -> None:
    with pytest.raises(ValueError, match=r"time|day|1970"):
        parse_time(text, NOON)


@pytest.mark.parametrize(
    ("text", "usec"),
    [
        ("13:00", NOON + 24 * HOUR),
        ("13:00:00.5", NOON + 500 * MSEC),
        ("12:59", NOON + 24 * HOUR - MINUTE),
        ("18:00", NOON + 5 * HOUR),
        ("11:00 UTC", NOON + 23 * HOUR),
        ("2026-01-01 10:00", NOON - 3 * HOUR),
        ("tomorrow", NOON + 11 * HOUR),
    ],
)
def test_looking_ahead_a_time_of_day_that_is_over_is_tomorrows(text: str, usec: int, berlin: None) -> None:
    assert parse_time(text, NOON, ahead=True) == usec


def test_a_day_has_23_or_25_hours_when_the_clocks_change(berlin: None) -> None:
    before = parse_time("2026-03-28 18:00", NOON)
    assert parse_time("18:00", before, ahead=True) - before == 23 * HOUR
    before = parse_time("2026-10-24 18:00", NOON)
    assert parse_time("18:00", before, ahead=True) - before == 25 * HOUR
