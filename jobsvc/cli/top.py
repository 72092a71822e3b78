"""top: what runs, and what it uses, again and again as systemd-cgtop does it."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from jobsvc.cli.command import command, format_option
from jobsvc.cli.interrupts import Interrupts
from jobsvc.cli.listing import MAINTENANCE
from jobsvc.cli.options import Word
from jobsvc.cli.session import Session
from jobsvc.cli.targets import BEGUN, filter_of, filter_options
from jobsvc.client import Client, Options, Status
from jobsvc.quantity import format_size
from jobsvc.render import STATE_COLORS, Style, as_json, cells, clip, command_line, escape, short_span, table

FIELDS = ("Id", "Name", "ArrayIndex", "Owner", "User", "State", "StartedTimestamp", "Command", "Usage")
HEAD = ("ID", "NAME", "STATE", "USER", "TIME", "CPU", "%CPU", "MEMORY", "TASKS", "READ/s", "WRITTEN/s", "COMMAND")
# What goes first when a terminal is too narrow, unless it is what the jobs are ordered by.
DROPPED = ("CPU", "TASKS", "WRITTEN/s", "READ/s", "USER", "TIME", "STATE", "MEMORY", "%CPU", "NAME")
CLEAR, HOME, LINE, REST = "\x1b[2J", "\x1b[H", "\x1b[K", "\r\n\x1b[J"
SCREEN, BACK = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"  # without cursor and line wrap
NAME_WIDTH, COMMAND_WIDTH = 20, 12
ROWS, COLUMNS = 24, 80  # of a terminal that does not say


class Sample(NamedTuple):
    """One look at a job, with what happened since the last one."""

    job: Status
    cpu_percent: float | None
    read: float | None
    written: float | None


class Order(NamedTuple):
    name: str
    columns: tuple[str, ...]
    value: Callable[[Sample], Any]


ORDERS = {
    "c": Order("cpu", ("%CPU",), lambda one: (one.cpu_percent or 0, _usage(one.job, "CPUUsageNSec"))),
    "m": Order("memory", ("MEMORY",), lambda one: _usage(one.job, "MemoryCurrent")),
    "t": Order("tasks", ("TASKS",), lambda one: _usage(one.job, "TasksCurrent")),
    "i": Order("io", ("READ/s", "WRITTEN/s"), lambda one: (one.read or 0) + (one.written or 0)),
    "s": Order("started", ("TIME",), lambda one: one.job.get("StartedTimestamp", 0)),
}
NAMES = {order.name: key for key, order in ORDERS.items()}


def _delay(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise ValueError(f"'{text}' is not a number of seconds from 0.1 to 86400")
    return seconds


@command("top")
@filter_options
@click.option("-d", "--delay", metavar="SECONDS", type=Word("SECONDS", _delay), default=1.0, show_default=True,
              help="Look so often.")  # fmt: skip
@click.option("-n", "--iterations", metavar="N", type=click.IntRange(min=1), help="Look so many times.")
@click.option("--order", type=click.Choice(list(NAMES)), default="cpu", show_default=True, help="What comes first.")
@format_option
def top_(session: Session, delay: float, iterations: int | None, order: str, **filters: Any) -> int:
    """Show running jobs and what they use, the greediest first.

    Keys: c, m, t, i, s order by CPU, memory, tasks, I/O, start; q ends. Without a terminal it looks
    once, or --iterations times.
    """
    states = {"State": ("as", list(BEGUN))} if not filters["states"] else {}
    asked: Options = {**states, **filter_of(**filters), "Fields": ("as", list(FIELDS)), "Live": ("b", True)}
    terminal = bool(sys.stdout and sys.stdout.isatty() and sys.stdin and sys.stdin.isatty())
    with session.client() as client:
        top = Top(session, client, asked, NAMES[order])
        if terminal and session.format == "table":
            with Screen() as screen:
                client.bus.interrupt = screen
                return top.watch(screen, delay, iterations)
        return top.print(delay, iterations or 1)


class Top:
    """Looks at all running jobs, and remembers the last look."""

    def __init__(self, session: Session, client: Client, asked: Options, order: str) -> None:
        self._session = session
        self._client = client
        self._asked = asked
        self._order = order
        self._before: dict[str, tuple[float, dict[str, Any]]] = {}

    def look(self) -> list[Sample]:
        """All jobs, in order."""
        now = time.monotonic()
        samples, seen = [], {}
        for job in self._client.list(self._asked):
            usage = job.get("Usage") or {}
            seen[str(job["Id"])] = now, usage
            samples.append(self._sample(job, now, usage))
        self._before = seen
        return self._sorted(samples)

    def _sorted(self, samples: list[Sample]) -> list[Sample]:
        return sorted(samples, key=ORDERS[self._order].value, reverse=True)

    def _sample(self, job: Status, now: float, usage: dict[str, Any]) -> Sample:
        then, before = self._before.get(str(job["Id"]), (now, {}))

        def rate(key: str) -> float | None:
            if now == then or key not in usage or key not in before:
                return None
            return max(float(usage[key] - before[key]), 0.0) / (now - then)

        cpu = rate("CPUUsageNSec")
        return Sample(job, None if cpu is None else cpu / 1e7, rate("IOReadBytes"), rate("IOWriteBytes"))

    def print(self, delay: float, times: int) -> int:
        """So many looks, one after the other, for a file or a pipe."""
        for number in range(times):
            if number:
                time.sleep(delay)
            samples = self.look()
            if self._session.format != "table":
                self._session.put_json(as_json(one.job) for one in samples)
            else:
                self._session.put(("\n" if number else "") + self._table(samples, Style.of(sys.stdout)))
            sys.stdout.flush()
        return 0

    def watch(self, screen: Screen, delay: float, times: int | None) -> int:
        """Fill the screen until q is typed."""
        done = 0
        try:
            while done != times:
                samples = self.look()
                done += 1
                self._draw(samples)
                if done != times and not self._typed(screen, samples, time.monotonic() + delay):
                    return 0
        except Ended:
            return 128 + signal.SIGTERM
        return 0

    def _typed(self, screen: Screen, samples: list[Sample], until: float) -> bool:
        """What happens until the next look; False if it was q."""
        while (left := until - time.monotonic()) > 0:
            for key in screen.keys(left):
                if key == "q":
                    return False
                if key == " ":
                    until = 0.0
                self._order = key if key in ORDERS else self._order
            if time.monotonic() < until:
                self._draw(self._sorted(samples))
        return True

    def _draw(self, samples: list[Sample]) -> None:
        style, size = Style.of(sys.stdout), os.get_terminal_size(1)
        rows, style.width = size.lines or ROWS, size.columns or COLUMNS
        lines = [self._head(style), "", *self._table(samples, style).splitlines()][:rows]
        # Line by line over the last picture: nothing flickers.
        picture = "\r\n".join(LINE + line for line in lines)
        sys.stdout.write(HOME + picture + (REST if len(lines) < rows else ""))
        sys.stdout.flush()

    def _head(self, style: Style) -> str:
        facts = self._client.properties()
        parts = [
            f"{facts.get('Running', '?')} running, {facts.get('Queued', '?')} queued",
            f"by {ORDERS[self._order].name} (c m t i s), q ends",
        ]
        if facts.get("Maintenance"):
            parts.insert(1, MAINTENANCE.partition(":")[0])
        return style.paint("; ".join(parts)[: style.width], "33" if facts.get("Maintenance") else None)

    def _table(self, samples: list[Sample], style: Style) -> str:
        now = time.time_ns() // 1000
        colours = [STATE_COLORS.get(one.job.get("State", "")) for one in samples]
        rows = [_row(one, now, style) for one in samples]
        shown = _fitting(rows, style.width, ORDERS[self._order].columns)
        head = [HEAD[column] for column in shown]
        state = head.index("STATE") if "STATE" in head else None
        return table(head, [[row[column] for column in shown] for row in rows], style, colours, state)


def _fitting(rows: list[tuple[str, ...]], width: int | None, kept: tuple[str, ...]) -> list[int]:
    """The columns for which there is room beside the beginning of the command."""
    shown = list(range(len(HEAD)))
    widths = [max(cells(escape(cell)) for cell in column) for column in zip(HEAD, *rows, strict=True)]
    for name in DROPPED:
        if width is None or sum(widths[column] + 2 for column in shown[:-1]) + COMMAND_WIDTH <= width:
            break
        if name not in kept:
            shown.remove(HEAD.index(name))
    return shown


def _row(one: Sample, now: int, style: Style) -> tuple[str, ...]:
    job, usage = one.job, one.job.get("Usage") or {}
    started, index = job.get("StartedTimestamp"), job.get("ArrayIndex")
    name = str(job.get("Name", "-")) + ("" if index is None else f"[{index}]")
    cpu, memory = usage.get("CPUUsageNSec"), usage.get("MemoryCurrent")
    return (
        str(job["Id"]),
        name if style.width is None else clip(name, NAME_WIDTH),
        str(job.get("State", "-")),
        str(job.get("User", "-")),
        short_span(max(now - started, 0)) if started else "-",
        "-" if cpu is None else short_span(cpu // 1000),
        "-" if one.cpu_percent is None else f"{one.cpu_percent:.1f}",
        "-" if memory is None else format_size(memory),
        str(usage.get("TasksCurrent", "-")),
        "-" if one.read is None else format_size(int(one.read)),
        "-" if one.written is None else format_size(int(one.written)),
        command_line(job.get("Command", [])),
    )


def _usage(job: Status, key: str) -> int:
    return int((job.get("Usage") or {}).get(key) or 0)


class Ended(Exception):
    """SIGTERM: we go, but not before the terminal is as it was."""


class Screen:
    """A screen of our own, and its keys; what was there before comes back, also while we are stopped."""

    def __init__(self) -> None:
        self._interrupts = Interrupts(signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM)
        self._before = termios.tcgetattr(0)

    def __enter__(self) -> Screen:
        self._interrupts.__enter__()
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._hide()
        self._interrupts.__exit__()

    def _show(self) -> None:
        tty.setcbreak(0)
        sys.stdout.write(SCREEN + CLEAR)
        sys.stdout.flush()

    def _hide(self) -> None:
        termios.tcsetattr(0, termios.TCSADRAIN, self._before)
        sys.stdout.write(BACK)
        sys.stdout.flush()

    def keys(self, seconds: float) -> str:
        """What is typed within this time; q when the terminal has gone, nothing when its size has changed."""
        ready, _, _ = select.select([0, self.fileno()], [], [], seconds)
        if self.fileno() in ready:
            self.handle()
        return os.read(0, 64).decode(errors="replace") or "q" if 0 in ready else ""

    def fileno(self) -> int:
        return self._interrupts.fileno()

    def handle(self) -> None:
        for number in self._interrupts.take():
            if number == signal.SIGTERM:
                raise Ended
            if number == signal.SIGTSTP:
                self._hide()
                os.kill(os.getpid(), signal.SIGSTOP)
                self._show()
