"""Sizes and spans read as systemd reads them, and refuse in words."""

from __future__ import annotations

import pytest

from jobsvc import quantity
from jobsvc.quantity import DAY, HOUR, INFINITY, MINUTE, MSEC, SEC


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("12B", 12),
        ("64M", 64 * 2**20),
        (" 10 K ", 10 * 1024),
        ("1.5G", 3 * 2**29),
        ("0.1K", 102),
        ("infinity", INFINITY),
    ],
)
def test_sizes_count_by_1024(text: str, size: int) -> None:
    assert quantity.parse_size(text) == size


def test_bandwidths_count_by_1000() -> None:
    assert quantity.parse_size("2M", base=1000) == 2_000_000


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "5X", "64MB", "1,5G", "0x10", "\u0661", "17000000E", "9" * 5000, "1e3", "nan"]
)
def test_a_size_that_is_none_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        quantity.parse_size(text)


@pytest.mark.parametrize(
    ("text", "usec"),
    [
        ("0", 0),
        ("90", 90 * SEC),
        ("500ms", 500 * MSEC),
        ("5min 30s", 5 * MINUTE + 30 * SEC),
        ("1h30min", 90 * MINUTE),
        ("1.5h", 90 * MINUTE),
        ("2 weeks", 14 * DAY),
        ("1d 1h 1us", DAY + HOUR + 1),
        ("3µs", 3),
        ("infinity", INFINITY),
    ],
)
def test_spans_add_up(text: str, usec: int) -> None:
    assert quantity.parse_span(text) == usec


@pytest.mark.parametrize("text", ["", " ", "-5s", "5 parsec", "s", "5min x", "1e3", "\u0663", "9" * 5000])
def test_a_span_that_is_none_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        quantity.parse_span(text)


def test_percents_are_whole_and_at_least_one() -> None:
    assert quantity.parse_percent("50%") == 50
    assert quantity.parse_percent("250 %") == 250
    for text in ("0%", "12.5%", "50", "%", "-1%", ""):
        with pytest.raises(ValueError, match=r"percent|1%"):
            quantity.parse_percent(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (512, "512B"),
        (1024, "1K"),
        (64 * 2**20, "64M"),
        (3 * 2**29, "1.5G"),
        (1025, "1.0K"),
        (INFINITY, "infinity"),
    ],
)
def test_sizes_are_shown_short(size: int, text: str) -> None:
    assert quantity.format_size(size) == text


@pytest.mark.parametrize(
    ("usec", "text"),
    [
        (0, "0"),
        (500 * MSEC, "500ms"),
        (330 * SEC, "5min 30s"),
        (DAY + 1, "1d 1us"),
        (INFINITY, "infinity"),
    ],
)
def test_spans_are_shown_so_that_they_read_back(usec: int, text: str) -> None:
    assert quantity.format_span(usec) == text
    assert quantity.parse_span(text) == usec


def test_spans_can_be_shown_roughly() -> None:
    assert quantity.format_span(90 * SEC + 5, SEC) == "1min 30s"
    assert quantity.format_span(5, SEC) == "5us"
