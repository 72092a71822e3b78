"""Points in time as systemd.time(7) spells them: "18:00", "+1h", "tomorrow", "2026-12-01 08:00", "@1767225600"."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from jobsvc.quantity import INFINITY, SEC, parse_span

if TYPE_CHECKING:
    from datetime import tzinfo

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NAMES = r"(?:(Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:day|sday|nesday|rsday|urday)?,?\s+)?"
_DATE = r"(?:(\d{4}|\d\d)-(\d\d?)-(\d\d?))?"
_CLOCK = r"(?:(?:\s+|T|^)(\d\d?):(\d\d)(?::(\d\d)(?:\.(\d{1,20}))?)?)?"
_ZONE = r"(?:\s*(UTC|Z)|\s+([A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+))?"
_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}

YEAR_9999 = 253402300799  # its last second; later ones have five digits
Fields = tuple[int, int, int, int, int, int]


def parse_time(text: str, now_usec: int, ahead: bool = False) -> int:
    """Microseconds since 1970 of a point in time as journalctl takes it, or ValueError with a text for people.

    "2026-01-01 10:00:00", "2026-01-01", "10:00", "today", "yesterday", "tomorrow", "now", "-5min",
    "+1h", "5min ago", "1h left", "@1767225600"; local time unless it ends in UTC, Z or a name as
    Europe/Berlin. With `ahead` a mere time of day that is over today is tomorrow's, as at(1) has it.
    """
    words = text.strip()
    match words[:1]:
        case "@":
            return _epoch(words)
        case "-":
            return _possible(now_usec - parse_span(words[1:]), text)
        case "+":
            return _possible(now_usec + parse_span(words[1:]), text)
    if words.endswith(" ago"):
        return _possible(now_usec - parse_span(words[: -len(" ago")]), text)
    if words.endswith(" left"):
        return _possible(now_usec + parse_span(words[: -len(" left")]), text)
    if words == "now":
        return now_usec
    if words in _DAYS:
        now = time.localtime(now_usec // SEC)
        return _clock((now.tm_year, now.tm_mon, now.tm_mday + _DAYS[words], 0, 0, 0), None)
    return _calendar(words, now_usec, ahead)


def _possible(value: int, text: str) -> int:
    if value < 0:
        raise ValueError(f"'{text}' is before 1970")
    if value >= INFINITY // 2:  # the database counts with a sign
        raise ValueError(f"'{text}' is too far a time")
    return value


def _epoch(text: str) -> int:
    found = re.fullmatch(r"@([0-9]{1,20})(?:\.([0-9]{1,20}))?", text, re.ASCII)
    if not found:
        raise ValueError(f"'{text}' is not a time; after @ come seconds since 1970")
    return _possible(int(found[1]) * SEC + _fraction(found[2]), text)


def _calendar(text: str, now_usec: int, ahead: bool) -> int:
    found = re.fullmatch(_NAMES + _DATE + _CLOCK + _ZONE, text, re.ASCII | re.IGNORECASE)
    if not found or (found[2] is None and found[5] is None):
        raise ValueError(
            f"'{text}' is not a time; write '2026-01-01 10:00:00', 10:00, today, tomorrow, +1h, -5min or @SECONDS"
        )
    weekday, year, month, day, hour, minute, second, part, utc, name = found.groups()
    zone = "UTC" if utc else name
    date = _today(now_usec, zone)
    if year is not None:
        number = int(year) + (0 if len(year) == 4 else 1900 if int(year) > 68 else 2000)  # strptime(3)
        date = (number, int(month), int(day))
        if not (1 <= date[1] <= 12 and 1 <= date[2] <= _days(date[0], date[1])):
            raise ValueError(f"'{text}': there is no such day")
    clock = (int(hour or 0), int(minute or 0), int(second or 0))
    if clock[0] > 23 or clock[1] > 59 or clock[2] > 59:
        raise ValueError(f"'{text}': there is no such time of day")
    if weekday and _weekday(date) != weekday.lower():
        raise ValueError(f"'{text}': that day is a {_weekday(date).capitalize()}")
    usec = _clock(date + clock, zone) + _fraction(part)
    if ahead and year is None and not weekday and usec <= now_usec:
        usec = _clock((date[0], date[1], date[2] + 1, *clock), zone) + _fraction(part)
    return _possible(usec, text)


def _today(now_usec: int, zone: str | None) -> tuple[int, int, int]:
    if zone and zone.upper() != "UTC":
        from datetime import datetime

        there = datetime.fromtimestamp(now_usec // SEC, _zone(zone))
        return there.year, there.month, there.day
    now = time.gmtime(now_usec // SEC) if zone else time.localtime(now_usec // SEC)
    return now.tm_year, now.tm_mon, now.tm_mday


def _clock(fields: Fields, zone: str | None) -> int:
    """Microseconds of a date and time; a day beyond the end of its month is one of the next."""
    if zone is None:
        return int(time.mktime((*fields, 0, 0, -1))) * SEC
    import calendar  # only needed here, and it pulls in datetime and locale

    utc = calendar.timegm((*fields, 0, 0, 0))
    if zone.upper() == "UTC":
        return utc * SEC
    from datetime import UTC, datetime

    naive = datetime.fromtimestamp(utc, UTC).replace(tzinfo=_zone(zone))
    return int(naive.timestamp()) * SEC


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(
            f"no time zone '{name}' is known here; write UTC or one of 'timedatectl list-timezones'"
        ) from None


def _weekday(date: tuple[int, int, int]) -> str:
    import calendar

    return _WEEKDAYS[calendar.weekday(*date)]


def _days(year: int, month: int) -> int:
    import calendar

    return calendar.monthrange(year, month)[1] if year > 0 else 0


def _fraction(part: str | None) -> int:
    return int(part) * SEC // int(10 ** len(part)) if part else 0


def format_time(usec: int) -> str:
    """Spell a point in time as "2026-01-01T10:00:00Z"."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(usec // 1_000_000, YEAR_9999)))
