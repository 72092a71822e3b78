"""Sizes, time spans and percents, as systemd spells them.

The spelling is the one of systemd.syntax(7) and systemd.time(7). Every parser raises
ValueError with a text for people.
"""

import re
from typing import Any

INFINITY = 2**64 - 1  # what systemd writes on the bus for "infinity"

MSEC = 1000
SEC = 1000 * MSEC
MINUTE = 60 * SEC
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
MONTH = 2_629_800 * SEC  # systemd.time(7): 30.44 days
YEAR = 31_557_600 * SEC  # 365.25 days

_SIZES = ("MemoryMax", "MemoryHigh", "MemorySwapMax", "LogSizeMax")
_SPANS = ("RuntimeMaxUSec", "TimeoutStopUSec")

_UNITS = {
    **dict.fromkeys(("usec", "us", "µs", "μs"), 1),
    **dict.fromkeys(("msec", "ms"), MSEC),
    **dict.fromkeys(("seconds", "second", "sec", "s", ""), SEC),
    **dict.fromkeys(("minutes", "minute", "min", "m"), MINUTE),
    **dict.fromkeys(("hours", "hour", "hr", "h"), HOUR),
    **dict.fromkeys(("days", "day", "d"), DAY),
    **dict.fromkeys(("weeks", "week", "w"), WEEK),
    **dict.fromkeys(("months", "month", "M"), MONTH),
    **dict.fromkeys(("years", "year", "y"), YEAR),
}
_SHOWN = (
    ("y", YEAR),
    ("month", MONTH),
    ("w", WEEK),
    ("d", DAY),
    ("h", HOUR),
    ("min", MINUTE),
    ("s", SEC),
    ("ms", MSEC),
    ("us", 1),
)
_LETTERS = "KMGTPE"
_NUMBER = r"([0-9]{1,20})(?:\.([0-9]{1,20}))?"
_PART = rf"\s*{_NUMBER}\s*([A-Za-zµμ]*)\s*"


def parse_size(text: str, base: int = 1024) -> int:
    """Bytes of "64M", "1.5G" or "infinity".

    systemd counts I/O bandwidths by 1000 (systemd.resource-control(5)), all other sizes by 1024.
    """
    if text.strip() == "infinity":
        return INFINITY
    found = re.fullmatch(rf"{_NUMBER}\s*([KMGTPEB]?)", text.strip(), re.ASCII)
    if not found:
        raise ValueError(f"'{text}' is not a size; write bytes, 512M, 1.5G or infinity")
    whole, part, letter = found.groups()
    factor = base ** (_LETTERS.index(letter) + 1) if letter not in ("", "B") else 1
    return _bounded(_scaled(whole, part, factor), text, "size")


def parse_span(text: str) -> int:
    """Microseconds of "5min 30s", "500ms", "90" (seconds) or "infinity"."""
    if text.strip() == "infinity":
        return INFINITY
    total, at = 0, 0
    pattern = re.compile(_PART, re.ASCII)  # compiled when first used: most commands need none
    while found := pattern.match(text, at):
        whole, part, unit = found.groups()
        if unit not in _UNITS:
            raise ValueError(f"'{text}': no time unit '{unit}'; use us, ms, s, min, h, d or w")
        total += _scaled(whole, part, _UNITS[unit])
        at = found.end()
    if at == 0 or at < len(text):
        raise ValueError(f"'{text}' is not a time span; write 90, 500ms, 5min 30s or infinity")
    return _bounded(total, text, "time span")


def parse_percent(text: str) -> int:
    """Whole percents of "50%"; more than 100 is more than one CPU."""
    found = re.fullmatch(r"([0-9]{1,20})\s*%", text.strip(), re.ASCII)
    if not found:
        raise ValueError(f"'{text}' is not a whole percentage; write 50%")
    percent = int(found[1])
    if percent < 1:
        raise ValueError(f"'{text}' is too little; the least is 1%")
    return _bounded(percent, text, "percentage")


def parse_share(text: str) -> int:
    """Hundredths of a percent of "50%" or "12.5%", 100% at the most."""
    found = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?\s*%", text.strip(), re.ASCII)
    share = int(found[1]) * 100 + int((found[2] or "0").ljust(2, "0")) if found else 0
    if not 1 <= share <= 10_000:
        raise ValueError(f"'{text}' is not a share; write 50% or 12.5%, up to 100%")
    return share


def format_size(size: int) -> str:
    """Spell bytes as "64M", "512B", "infinity", or with one rounded decimal as "1.5G"."""
    if size >= INFINITY:
        return "infinity"
    for power in range(len(_LETTERS), 0, -1):
        unit = 1024**power
        if size >= unit:
            if size % unit == 0:
                return f"{size // unit}{_LETTERS[power - 1]}"
            tenths = (size * 10 + unit // 2) // unit
            return f"{tenths // 10}.{tenths % 10}{_LETTERS[power - 1]}"
    return f"{size}B"


def format_span(usec: int, accuracy: int = 1) -> str:
    """Spell microseconds as "5min 30s", "500ms", "0" or "infinity", down to `accuracy`."""
    if usec >= INFINITY:
        return "infinity"
    parts: list[str] = []
    for name, unit in _SHOWN:
        if unit < accuracy and parts:
            break
        count, usec = divmod(usec, unit)
        if count:
            parts.append(f"{count}{name}")
    return " ".join(parts) or "0"


def limit_name(key: str) -> str:
    """Name a limit as unit files do."""
    if key == "CPUQuotaPerSecUSec":
        return "CPUQuota"
    return key.replace("USec", "Sec") if key in _SPANS else key


def format_limit(key: str, value: Any) -> str:
    """Spell a limit as unit files do, from its name and value on the bus: "CPUQuota=50%", "MemoryMax=1G"."""
    name = limit_name(key)
    if key == "CPUQuotaPerSecUSec":
        return f"{name}=" + ("infinity" if value == INFINITY else f"{value // 10_000}%")
    if key in _SIZES:
        return f"{name}={format_size(value)}"
    if key in _SPANS:
        return f"{name}={format_span(value)}"
    if isinstance(value, list | tuple):
        return " ".join(f"{name}={path} {_thousands(rate)}" for path, rate in value)
    if isinstance(value, bytes):
        cpus = [cpu for cpu in range(len(value) * 8) if value[cpu // 8] >> cpu % 8 & 1]
        return f"{name}={','.join(map(str, cpus))}"
    return f"{name}={'infinity' if value == INFINITY else value}"


def _thousands(rate: int) -> str:
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if rate >= 1000**power and rate % 1000**power == 0:
            return f"{rate // 1000**power}{letter}"
    return "infinity" if rate == INFINITY else str(rate)


def _scaled(whole: str, part: str | None, factor: int) -> int:
    """whole.part by factor, in integers: a float would lose bytes beyond 2**53."""
    if not part:
        return int(whole) * factor
    return int(whole) * factor + int(part) * factor // int(10 ** len(part))


def _bounded(value: int, text: str, what: str) -> int:
    if value >= INFINITY:
        raise ValueError(f"'{text}' is too large a {what}; write infinity for no limit")
    return value
