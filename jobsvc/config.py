"""jobsvc.conf(5): one frozen dataclass with the defaults in it; an unknown key is an error.

Read in systemd's order: the vendor's file, then the administrator's, then drop-ins by file name.
"""

from __future__ import annotations

import itertools
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobsvc import kinds, quantity, spec
from jobsvc.errors import InvalidConfig, InvalidSpec, nearest
from jobsvc.quantity import DAY, MINUTE

VENDOR = Path("/usr/lib/jobsvc")
ADMIN = Path("/etc/jobsvc")


def _default_running() -> int:
    return max(100, 2 * (os.cpu_count() or 1))


def _ceilings() -> dict[str, Any]:
    # PID 1 waits this long for a job at shutdown: "infinity" from a plain user would block it for 30 min.
    return {"TimeoutStopUSec": 5 * MINUTE}


@dataclass(frozen=True, slots=True)
class Queue:
    """[Queue NAME]: how many of its jobs may run at once, of all users and of each, how busy the machine may be (None:
    whatever [Manager] says), and whose groups may use it (None: everybody's)."""

    max_running: int | None = None
    max_running_per_user: int | None = None
    start_when_load_below: float | None = None
    start_when_memory_available: int | None = None  # bytes
    allowed_groups: tuple[str, ...] | None = None


DEFAULT_QUEUE = "default"


def _queues() -> dict[str, Queue]:
    """Those that are there without a configuration."""
    return {DEFAULT_QUEUE: Queue(), "serial": Queue(max_running_per_user=1)}


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set, with its default. Field names are the keys of jobsvc.conf in snake_case."""

    max_running: int = field(default_factory=_default_running)
    max_running_per_user: int | None = None  # None: what `running_per_user` makes of it
    start_when_load_below: float = math.inf
    start_when_memory_available: int = 0  # bytes
    max_queued: int = 10_000
    max_queued_per_user: int = 5_000
    max_command_bytes: int = 1024 * 1024
    max_queued_bytes_per_user: int = 64 * 1024**2
    max_followers_per_user: int = 1_000
    max_subscribers_per_user: int = 100
    max_calls_per_user: int = 256
    max_questions_per_user: int = 4
    max_inputs_per_user: int = 64
    max_output_per_user: int = 2 * 1024**3
    keep_finished: int = 100_000
    keep_finished_usec: int = 30 * DAY
    keep_finished_bytes_per_user: int = 256 * 1024**2
    keep_request_id_usec: int = 7 * DAY
    limit_enforcement: str = "strict"
    log_size_max: int = 1024**3
    pam: str = "session"
    start_timeout_usec: int = MINUTE
    allowed_system_users: tuple[str, ...] = ()
    on_finish: tuple[str, ...] = ()
    inhibit_shutdown: str = "no"
    defaults: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, Any] = field(default_factory=_ceilings)
    group_ceilings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by group
    queues: dict[str, Queue] = field(default_factory=_queues)

    @property
    def running_per_user(self) -> int:
        """Nine tenths of all slots if nothing else is said: one user's jobs that never end leave some to the others."""
        if self.max_running_per_user is not None:
            return self.max_running_per_user
        return self.max_running * 9 // 10 if self.max_running >= 10 else spec.INFINITY

    def of(self, groups: Iterable[str]) -> Config:
        """The configuration as it is for somebody in these groups.

        Of the groups that name a limit the most generous counts; what none of them names is as for everybody.
        """
        ceilings: dict[str, Any] = {}
        for group in groups:
            for name, value in self.group_ceilings.get(group, {}).items():
                ceilings[name] = _more(ceilings[name], value) if name in ceilings else value
        return replace(self, ceilings=self.ceilings | ceilings) if ceilings else self


def _more(one: Any, other: Any) -> Any:
    """The more generous of two ceilings: CPUs of either, for each path the higher amount."""
    if isinstance(one, bytes):
        return bytes(a | b for a, b in itertools.zip_longest(one, other, fillvalue=0))
    if isinstance(one, list):
        amounts = dict(one)
        return list({**amounts, **{path: max(amount, amounts.get(path, 0)) for path, amount in other}}.items())
    return max(one, other)


def _whole(low: int, infinity: bool = True) -> Callable[[str], int]:
    """A number; `infinity` where the limit can be lifted."""

    def parse(text: str) -> int:
        if infinity and text == "infinity":
            return spec.INFINITY
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise ValueError("must be a number" + " or infinity" * infinity)
        if int(text) < low:
            raise ValueError(f"must be at least {low}")
        return int(text)

    return parse


def _load(text: str) -> float:
    if text == "infinity":
        return math.inf
    try:
        load = float(text)
    except ValueError:
        load = 0.0
    if not 0 < load < 1_000_000:
        raise ValueError("must be a load average above 0, as 1.5, or infinity")
    return load


def _seconds(text: str) -> int:
    """From a second to an hour: what waits for ever holds a place at the start of the queue for ever."""
    span = quantity.parse_span(text)
    if not 1_000_000 <= span <= 60 * MINUTE:
        raise ValueError("must be from 1s to 1h")
    return span


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return text

    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _command(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if words and not words[0].startswith("/"):
        raise ValueError("must begin with the absolute path of a program")
    return words


MANAGER: dict[str, tuple[str, Callable[[str], Any]]] = {
    "MaxRunning": ("max_running", _whole(1, infinity=False)),
    "MaxRunningPerUser": ("max_running_per_user", _whole(1)),
    "StartWhenLoadBelow": ("start_when_load_below", _load),
    "StartWhenMemoryAvailable": ("start_when_memory_available", quantity.parse_size),
    "MaxQueued": ("max_queued", _whole(0)),
    "MaxQueuedPerUser": ("max_queued_per_user", _whole(0)),
    "MaxCommandBytes": ("max_command_bytes", quantity.parse_size),
    "MaxQueuedBytesPerUser": ("max_queued_bytes_per_user", quantity.parse_size),
    "MaxFollowersPerUser": ("max_followers_per_user", _whole(0)),
    "MaxSubscribersPerUser": ("max_subscribers_per_user", _whole(0)),
    "MaxCallsPerUser": ("max_calls_per_user", _whole(1)),
    "MaxQuestionsPerUser": ("max_questions_per_user", _whole(0)),
    "MaxInputsPerUser": ("max_inputs_per_user", _whole(0)),
    "MaxOutputPerUser": ("max_output_per_user", quantity.parse_size),
    "KeepFinished": ("keep_finished", _whole(0)),
    "KeepFinishedSec": ("keep_finished_usec", quantity.parse_span),
    "KeepFinishedBytesPerUser": ("keep_finished_bytes_per_user", quantity.parse_size),
    "KeepRequestIdSec": ("keep_request_id_usec", quantity.parse_span),
    "LimitEnforcement": ("limit_enforcement", _choice("strict", "best-effort")),
    "LogSizeMax": ("log_size_max", quantity.parse_size),
    "StartTimeoutSec": ("start_timeout_usec", _seconds),
    "PAM": ("pam", _choice("session", "account", "no")),
    "AllowedSystemUsers": ("allowed_system_users", _names),
    "OnFinish": ("on_finish", _command),
    "InhibitShutdown": ("inhibit_shutdown", _choice("no", "delay", "block")),
}
QUEUE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "MaxRunning": ("max_running", _whole(1)),
    "MaxRunningPerUser": ("max_running_per_user", _whole(1)),
    "StartWhenLoadBelow": ("start_when_load_below", _load),
    "StartWhenMemoryAvailable": ("start_when_memory_available", quantity.parse_size),
    "AllowedGroups": ("allowed_groups", _names),
}
# What [Defaults] and [Ceilings] may name: bounds, never what is executed or as whom.
BOUNDS = frozenset(spec.SHOWN) | {"Nice", "KillSignal", "OOMPolicy", "UMask", "ExitType"}
UNORDERED = frozenset({"Nice", "KillSignal", "OOMPolicy", "UMask", "ExitType"})
BOUNDS |= {name for name in spec.KEYS if name.startswith("Limit")}


def files(vendor: Path = VENDOR, admin: Path = ADMIN) -> list[Path]:
    """The files that make up the configuration, in the order in which they apply."""
    main = [path / "jobsvc.conf" for path in (vendor, admin)]
    dropins: dict[str, Path] = {}
    for path in (vendor, admin):
        dropins |= {file.name: file for file in sorted((path / "jobsvc.conf.d").glob("*.conf"))}
    return [path for path in main if path.exists()] + [dropins[name] for name in sorted(dropins)]


def load(paths: Iterable[Path] | None = None) -> Config:
    """The configuration in force, or InvalidConfig; a bad file is refused whole."""
    values: dict[str, Any] = {"defaults": {}, "ceilings": _ceilings(), "group_ceilings": {}, "queues": _queues()}
    for path in files() if paths is None else paths:
        _read(path, values)
    return Config(**values)


def _read(path: Path, values: dict[str, Any]) -> None:
    try:
        for section, name, text in _assignments(path.read_text()):
            try:
                if name:
                    _assign(section, name, text, values)
                else:
                    _section(section, values)
            except (ValueError, InvalidSpec) as error:
                raise ValueError(f"[{section}]{f' {name}={text}' if name else ''}: {error}") from None
    except (OSError, ValueError) as error:  # also what is not UTF-8
        raise InvalidConfig(f"{path}: {' '.join(str(error).split())}") from None


def _assignments(text: str) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of each assignment in turn, as a key may come twice; a section itself without key."""
    section = ""
    for line in _lines(text):
        name, equals, value = line.partition("=")
        if line[0] == "[" and line[-1] == "]":
            section = line[1:-1].strip()
            yield section, "", ""
        elif not section:
            raise ValueError(f"{line!r} comes before the first [section]")
        elif not equals or not name.strip():
            raise ValueError(f"[{section}] {line!r} must be KEY=VALUE")
        else:
            yield section, name.strip(), value.strip()


def _lines(text: str) -> Iterator[str]:
    """The lines without comments, those that end in a backslash with what follows (systemd.syntax(7))."""
    begun = ""
    for line in map(str.lstrip, text.split("\n")):
        if line[:1] in ("#", ";"):
            continue
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:  # an even number is as many halves of itself
            begun += line[:-1] + " "
            continue
        if whole := (begun + line).strip():
            yield whole
        begun = ""
    if begun.strip():
        yield begun.strip()


def _section(section: str, values: dict[str, Any]) -> None:
    """A section may be there without a key; a queue is made by it."""
    match section.split():
        case ["Manager" | "Defaults" | "Ceilings"]:
            pass
        case ["Ceilings", group]:
            values["group_ceilings"].setdefault(group, {})
        case ["Queue", name]:
            values["queues"].setdefault(kinds.queue(name), Queue())
        case _:
            known = nearest(section, ["Manager", "Defaults", "Ceilings", "Queue"])
            raise ValueError(f"unknown section{known}")


def _assign(section: str, name: str, text: str, values: dict[str, Any]) -> None:
    """Lists grow. With nothing assigned it is as if the key had not been there yet."""
    match section.split():
        case ["Manager"]:
            attribute, parse = _known(name, MANAGER)
            if not text:
                values.pop(attribute, None)
            elif parse is _names:
                values[attribute] = values.get(attribute, ()) + parse(text)
            else:
                values[attribute] = parse(text)
        case ["Queue", queue]:
            attribute, parse = _known(name, QUEUE)
            old = values["queues"][queue]
            value = parse(text) if text else getattr(_queues().get(queue, Queue()), attribute)
            if text and parse is _names:
                value = (getattr(old, attribute) or ()) + value
            values["queues"][queue] = replace(old, **{attribute: value})
        case ["Defaults" | "Ceilings" as kind, *group]:
            limits = values["group_ceilings"][group[0]] if group else values[kind.lower()]
            first = {} if group or kind == "Defaults" else _ceilings()
            _bound(section, name, text, limits, first)


def _bound(section: str, name: str, text: str, limits: dict[str, Any], first: dict[str, Any]) -> None:
    """One of [Defaults] and [Ceilings]; `first` is what there is without a configuration."""
    key = spec.bus_name(name)
    if key not in BOUNDS or (section != "Defaults" and key in UNORDERED):
        raise ValueError(f"not a limit; [{section}] takes limits only")
    if not text:
        limits.pop(key, None)
        limits |= {key: first[key]} if key in first else {}
        return
    spec.merge(limits, *spec.from_unit_file(f"{name}={text}"))


def _known(name: str, table: dict[str, tuple[str, Callable[[str], Any]]]) -> tuple[str, Callable[[str], Any]]:
    if name not in table:
        raise ValueError(f"unknown key{nearest(name, list(table))}")
    return table[name]
