"""What people and programs get to see: escaped text, tables, times, and the JSON form of a job.

Names, commands, reasons and labels come from other users. Nothing of theirs reaches a terminal
unescaped: no control characters, no bidirectional overrides.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobsvc.quantity import INFINITY, MSEC, SEC, format_span

# C0, DEL, C1; line and paragraph separators; everything about the direction of text;
# zero-width and interlinear characters, tags; halves of characters, as undecodable bytes arrive.
_UNSAFE = (
    "\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff"
)
_LINE = re.compile(f"[{_UNSAFE}]")
_TEXT = re.compile(f"(?![\n\t])[{_UNSAFE}]")

GREEN, RED, YELLOW, BLUE, BOLD, DIM = "32", "31", "33", "34", "1", "2"
STATE_COLORS = {
    "running": GREEN,
    "starting": GREEN,
    "stopping": YELLOW,
    "paused": YELLOW,
    "queued": BLUE,
    "failed": RED,
}

# fmt: off
JSON_KEYS = (
    "Id", "Name", "Owner", "User", "UID", "OwnerUID", "Command", "WorkingDirectory", "State",
    "Result", "ExitCode", "Signal", "Reason", "Run", "Unit", "Slice", "ControlGroup", "MainPID",
    "CreatedTimestamp", "StartedTimestamp", "FinishedTimestamp", "Queue", "Priority", "QueueReason",
    "Dependencies", "NotBeforeUSec", "Retries", "Unique", "ArrayId", "ArrayIndex", "HookOf",
    "Labels", "RequestId", "OnBehalfOf", "Seq", "Limits", "LimitsNotInForce", "Usage", "Output",
)
_NESTED = {
    "Usage": ("cpu_usage_nsec", "memory_current", "memory_peak", "tasks_current", "io_read_bytes",
              "io_write_bytes", "source"),
    "Output": ("stdout_bytes", "stderr_bytes", "missing_bytes"),
}
# fmt: on
_TIMES = {
    "CreatedTimestamp": "created_at",
    "StartedTimestamp": "started_at",
    "FinishedTimestamp": "finished_at",
}


def escape(text: str) -> str:
    """One line that does nothing to a terminal: what is not printable is shown as \\x1b."""
    return _LINE.sub(_show, text)


def escape_text(text: str) -> str:
    """The same with line ends and tabs left alone."""
    return _TEXT.sub(_show, text)


def _show(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def command_line(command: Sequence[str]) -> str:
    """A command as it could be typed, on one line."""
    from shlex import quote

    return escape(" ".join(quote(word) for word in command))


# Times


def timestamp(usec: int | None) -> str | None:
    """RFC 3339, UTC, to the microsecond."""
    if usec is None:
        return None
    seconds, rest = divmod(usec, SEC)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:06d}Z"


def when(usec: int) -> str:
    """A point in time as systemctl shows it."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(usec // SEC))


def ago(usec: int, now: int) -> str:
    """How long ago that was: two units at most, as systemctl shows it."""
    if now < usec:
        return "in " + short_span(usec - now)
    return short_span(now - usec) + " ago"


def short_span(usec: int) -> str:
    """A span for people: its two largest units, milliseconds at the least."""
    return " ".join(format_span(usec // MSEC * MSEC).split()[:2])


# JSON


def as_json(status: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a job: all keys, always; what is unknown is null."""
    from jobsvc.model import snake

    known = {name: status.get(name) for name in (*JSON_KEYS, *status)}
    return {_TIMES.get(name) or snake(name): _json(name, value) for name, value in known.items()}


def spec_json(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a job was asked to be, by the keys of its spec."""
    from jobsvc.model import snake

    return {
        snake(name): list(value) if isinstance(value, tuple) else _json(name, value) for name, value in spec.items()
    }


def _json(name: str, value: Any) -> Any:
    from jobsvc.model import snake
    from jobsvc.spec import SHOWN

    if name in _TIMES:
        return timestamp(value)
    if name in ("LimitsNotInForce", "Dependencies"):
        return [list(each) if isinstance(each, tuple) else each for each in value or []]
    if name == "Labels":
        return value or {}
    if name in _NESTED or name == "Limits":
        keys = _NESTED.get(name) or tuple(snake(limit) for limit in SHOWN)
        given = {snake(key): _json(key, each) for key, each in (value or {}).items()}
        return {key: given.get(key) for key in (*keys, *given)}
    if isinstance(value, bytes):
        return [cpu for cpu in range(len(value) * 8) if value[cpu // 8] >> cpu % 8 & 1]
    if value == INFINITY:
        return "infinity"
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON that is safe on a terminal, too: ASCII only, control characters escaped."""
    import json

    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


# Tables and colour


class Style:
    """How text looks here: colour or not, how wide, which dot."""

    def __init__(self, colour: bool = False, width: int | None = None, dot: str = "*") -> None:
        self.colour = colour
        self.width = width
        self.dot = dot
        self.more = "…" if dot == "●" else "~"  # where something was cut off

    @classmethod
    def of(cls, stream: Any) -> Style:
        """What suits a stream: plain and unbounded unless it is a terminal."""
        utf8 = (getattr(stream, "encoding", "") or "").lower().replace("-", "") == "utf8"
        dot = "●" if utf8 else "*"
        if not (stream and stream.isatty()):
            return cls(dot=dot)
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        try:
            width = int(os.environ.get("COLUMNS", "")) or None
        except ValueError:
            width = os.get_terminal_size(stream.fileno()).columns or None
        return cls(colour, width, dot)

    def paint(self, text: str, code: str | None) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code else text


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def clip(text: str, room: int) -> str:
    """Its beginning, in so many columns at most."""
    if text.isascii():
        return text[:room]
    taken = 0
    for index, char in enumerate(text):
        taken += cells(char)
        if taken > room:
            return text[:index]
    return text


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    style: Style,
    colours: Sequence[str | None] | None = None,
    coloured: int | None = 2,
) -> str:
    """Columns as wide as they must be; the last is cut off at the edge of a terminal.

    `rows` are escaped here; `colours` gives one per row, for one column: by default the third, the state.
    """
    safe = [tuple(escape(cell) for cell in row) for row in rows]
    widths = [max(map(cells, column)) for column in zip(head, *safe, strict=True)]
    lines = [style.paint(_row(head, widths, style, None, None), BOLD)]
    shades = colours if colours is not None else [None] * len(safe)
    lines += [_row(row, widths, style, colour, coloured) for row, colour in zip(safe, shades, strict=True)]
    return "".join(line + "\n" for line in lines)


def _row(row: Sequence[str], widths: Sequence[int], style: Style, colour: str | None, coloured: int | None) -> str:
    *fixed, last = [cell + " " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True)]
    room = None if style.width is None else style.width - sum(width + 2 for width in widths[:-1])
    last = last.rstrip()
    if room is not None and cells(last) > room:
        last = clip(last, max(room - 1, 0)) + style.more
    if colour and coloured is not None and coloured < len(fixed):
        fixed[coloured] = style.paint(fixed[coloured], colour)
    return "  ".join((*fixed, last)).rstrip()
