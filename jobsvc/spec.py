"""What a job may be asked to be: the spec keys, their D-Bus types, their unit-file spelling, their bounds.

Names and types are systemd's own wherever systemd has the thing (systemd.resource-control(5),
systemd.exec(5), systemd.kill(5)). A spec is a plain dict of bus name to Python value; `check` is the
one door into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobsvc import kinds, quantity
from jobsvc.errors import InvalidSpec, nearest

INFINITY = quantity.INFINITY
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """One spec key: its D-Bus signature, what it may be, and how unit files spell and write it."""

    name: str
    signature: str
    check: Callable[[Any], Any]
    parse: Callable[[str], Any]
    spelling: str = ""  # the unit-file name, where it is not the bus name
    limit: bool = False  # enforced by the kernel through the scope
    secret: bool = False  # never shown again


def _memory(name: str, low: int = 1) -> Key:
    return Key(name, "t", kinds.between(low, 2**63, infinity=True), kinds.parse_memory, limit=True)


def _span(name: str, spelling: str, low: int = 1) -> Key:
    return Key(name, "t", kinds.between(low, 2**62, infinity=True), kinds.parse_usec, spelling)


def _per_device(name: str, amount: Callable[[str], int]) -> Key:
    return Key(name, "a(st)", kinds.devices, kinds.parse_devices(amount), limit=True)


def _weight(name: str, low: int) -> Key:
    return Key(name, "t", kinds.between(low, 10_000), kinds.parse_weight, limit=True)


def _flag(name: str) -> Key:
    return Key(name, "b", bool, kinds.parse_flag)


LONGEST_NAME = 128  # bytes


def _line(name: str, size: int) -> Key:
    check = kinds.text(
        lambda value: 0 < len(value.encode()) <= size and value.isprintable(),
        f"printable text of 1 to {size} bytes",
    )
    return Key(name, "s", check, str)


RLIMITS: dict[str, Callable[[str], int]] = {
    **dict.fromkeys(("AS", "CORE", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "RSS", "STACK"), quantity.parse_size),
    **dict.fromkeys(("LOCKS", "NICE", "NOFILE", "NPROC", "RTPRIO", "SIGPENDING"), kinds.parse_number),
    "CPU": kinds.parse_seconds,
    "RTTIME": kinds.parse_usec,
}

_TABLE: tuple[Key, ...] = (
    Key("Command", "as", kinds.argv, kinds.parse_words),
    _line("Name", LONGEST_NAME),
    Key("WorkingDirectory", "s", kinds.text(kinds.absolute, "an absolute path without '..'"), str),
    Key("Environment", "as", kinds.environment, kinds.parse_words, secret=True),
    _line("User", 256),
    _line("Group", 256),
    Key("StandardInput", "h", lambda value: value, str),
    Key("StandardOutput", "s", kinds.output, str),
    Key("StandardError", "s", kinds.output, str),
    Key("CPUQuotaPerSecUSec", "t", kinds.quota, kinds.parse_quota, "CPUQuota", limit=True),
    _weight("CPUWeight", 0),
    Key("AllowedCPUs", "ay", kinds.cpus, kinds.parse_cpus, limit=True),
    _memory("MemoryMax"),
    _memory("MemoryHigh"),
    _memory("MemorySwapMax", low=0),
    Key("TasksMax", "t", kinds.between(1, 2**22, infinity=True), kinds.parse_tasks, limit=True),
    _per_device("IOReadBandwidthMax", kinds.bandwidth),
    _per_device("IOWriteBandwidthMax", kinds.bandwidth),
    _per_device("IOReadIOPSMax", kinds.bandwidth),
    _per_device("IOWriteIOPSMax", kinds.bandwidth),
    _weight("IOWeight", 1),
    _span("RuntimeMaxUSec", "RuntimeMaxSec"),
    _span("TimeoutStopUSec", "TimeoutStopSec", low=0),
    Key("KillSignal", "i", kinds.signal_number, kinds.parse_signal),
    Key("OOMPolicy", "s", kinds.one_of("continue", "stop", "kill"), str),
    Key("ExitType", "s", kinds.one_of("main", "cgroup"), str),
    Key("Nice", "i", kinds.between(-20, 19), kinds.parse_int),
    Key("UMask", "u", kinds.umask, kinds.parse_octal),
    *(Key(f"Limit{name}", "t", kinds.between(0, 2**63, infinity=True), parse) for name, parse in RLIMITS.items()),
    Key("LogSizeMax", "t", kinds.between(1, 2**63, infinity=True), quantity.parse_size, limit=True),
    Key("Labels", "a{ss}", kinds.labels, kinds.parse_label),
    _line("OnBehalfOf", 256),
    _line("RequestId", 128),
    # When it may begin (queue).
    Key("Queue", "s", kinds.queue, str),
    Key("Priority", "i", kinds.between(-1000, 1000), kinds.parse_int),
    Key("Dependencies", "a(ss)", kinds.dependencies, kinds.parse_dependencies),
    Key("NotBeforeUSec", "t", kinds.between(0, 2**62), kinds.parse_point, "NotBefore"),
    Key("Retries", "u", kinds.between(0, 100), kinds.parse_int),
    Key("RetryDelayUSec", "t", kinds.between(0, 30 * quantity.DAY), kinds.parse_usec, "RetryDelaySec"),
    _line("Unique", 128),
    Key("UniquePolicy", "s", kinds.one_of("refuse", "replace", "return"), str),
    _flag("Hold"),
    _line("ArrayId", 128),
    Key("ArrayIndex", "u", kinds.between(0, 2**32 - 1), kinds.parse_int),
    Key("ArrayMaxRunning", "u", kinds.between(1, 2**32 - 1), kinds.parse_int),
    # A script instead of a command.
    Key("Script", "ay", kinds.script, lambda text: text.encode()),
    Key("Shell", "s", kinds.text(kinds.absolute, "an absolute path without '..'"), str),
    Key("Arguments", "as", kinds.arguments, kinds.parse_words),
    # A terminal.
    _flag("Pty"),
    Key("TTYRows", "u", kinds.between(1, 65535), kinds.parse_int),
    Key("TTYColumns", "u", kinds.between(1, 65535), kinds.parse_int),
    # A sandbox.
    _flag("PrivateTmp"),
    _flag("PrivateNetwork"),
    _flag("ReadOnlyRoot"),
    _flag("NoNewPrivileges"),
    Key("Notify", "s", kinds.one_of("no", "mail", "failure-mail"), str),
)
# What says nothing of what a job does or may use: the same for any of it.
UNASKED = frozenset({"RequestId", "ArrayIndex", "Dependencies"})
# Values that no error repeats: secrets, and what is too long to recognize.
UNSHOWN = frozenset({"Environment", "Script", "StandardInput"})
# Keys that mean nothing without another.
NEEDS = {
    "Shell": "Script",
    "Arguments": "Script",
    "TTYRows": "Pty",
    "TTYColumns": "Pty",
    "RetryDelayUSec": "Retries",
    "UniquePolicy": "Unique",
    "ArrayIndex": "ArrayId",
    "ArrayId": "ArrayIndex",
    "ArrayMaxRunning": "ArrayId",
}

KEYS: dict[str, Key] = {key.name: key for key in _TABLE}
LIMITS: tuple[str, ...] = tuple(key.name for key in _TABLE if key.limit and key.name != "LogSizeMax")
IO_PATHS: tuple[str, ...] = tuple(key.name for key in _TABLE if key.signature == "a(st)")
# What status shows under Limits: the kernel's, and the bounds the supervisor keeps.
SHOWN: tuple[str, ...] = (*LIMITS, "RuntimeMaxUSec", "TimeoutStopUSec", "LogSizeMax")
_SPELLINGS: dict[str, Key] = {key.spelling: key for key in _TABLE if key.spelling} | KEYS
LISTS = frozenset({"as", "a(st)", "a(ss)", "a{ss}"})
WHOLE = frozenset({"Command", "Arguments"})  # lists that are one thing


def unknown(name: str, known: Iterable[str], what: str = "key") -> InvalidSpec:
    """The error for a word that is not one of `known`."""
    return InvalidSpec(f"unknown {what} {name!r}{nearest(name, list(known))}")


def bus_name(name: str) -> str:
    """What a key is called on the bus, whichever way it is spelled."""
    if name not in _SPELLINGS:
        raise unknown(name, _SPELLINGS)
    return _SPELLINGS[name].name


def from_unit_file(assignment: str) -> tuple[str, Any]:
    """`CPUQuota=50%` → `("CPUQuotaPerSecUSec", 500000)`. Takes bus names as well, plain numbers in their unit."""
    name, equals, text = assignment.partition("=")
    name = name.strip()
    if name not in _SPELLINGS:
        raise unknown(name, _SPELLINGS)
    if not equals:
        raise InvalidSpec(f"{name} needs a value: {name}=VALUE")
    key = _SPELLINGS[name]
    try:
        return key.name, key.check(_parser(name, key)(text.strip()))
    except ValueError as error:
        shown = "" if key.name in UNSHOWN else f"={_cut(text)}"
        raise InvalidSpec(f"{name}{shown}: {error}") from None


def _parser(name: str, key: Key) -> Callable[[str], Any]:
    """A time is seconds by its name in unit files, and µs by that on the bus."""
    if name == key.spelling and key.parse is kinds.parse_usec:
        return quantity.parse_span
    if name == key.name and key.parse is kinds.parse_quota:
        return kinds.parse_usec_or_quota
    return key.parse


def merge(values: Values, name: str, value: Any) -> None:
    """Add one assignment to a spec as unit files do: lists and maps grow, anything else is replaced."""
    grows = KEYS[name].signature in LISTS and name not in WHOLE and name in values
    values[name] = combined(values[name], value) if grows else value


def combined(old: Any, new: Any) -> Any:
    """What two lists or maps come to: of two for one variable, path, job or name the later holds."""
    if isinstance(old, dict):
        return {**old, **new}
    about = {(each.partition("=")[0] if isinstance(each, str) else each[0]): each for each in (*old, *new)}
    return list(about.values())


def check(typed: Mapping[str, tuple[str, Any]]) -> Values:
    """A spec from the bus (key → signature and plain value), or InvalidSpec naming the key and why."""
    values = check_some(typed)
    check_together(values)
    return values


def check_some(typed: Mapping[str, tuple[str, Any]]) -> Values:
    """Each key for itself: part of a spec."""
    values: Values = {}
    for name, (signature, value) in typed.items():
        if name not in KEYS:
            hint = f"; on the bus it is {_SPELLINGS[name].name}" if name in _SPELLINGS else ""
            raise InvalidSpec(f"unknown key {name!r}" + (hint or nearest(name, list(KEYS))))
        key = KEYS[name]
        if signature != key.signature:
            raise InvalidSpec(f"{name} must be of type {key.signature!r}, not {signature!r}")
        try:
            values[name] = key.check(value)
        except ValueError as error:
            shown = "" if name in UNSHOWN else f"={_cut(repr(value))}"
            raise InvalidSpec(f"{name}{shown}: {error}") from None
    return values


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def check_together(values: Values) -> None:
    """What no key says of itself alone."""
    if "Command" in values and "Script" in values:
        raise InvalidSpec("Command and Script are both there; a job is one or the other")
    if "Command" not in values and "Script" not in values:
        raise InvalidSpec("Command is missing: a job needs a program to run (or a Script)")
    if values.get("StandardInput") and values.get("Pty"):
        raise InvalidSpec("StandardInput and Pty are both there; what is typed into a terminal is its input")
    for name in ("StandardOutput", "StandardError"):
        marks = kinds.MARK.findall(values.get(name, ""))
        if "ArrayId" not in values and (mark := next((mark for mark in marks if mark in "aA"), None)):
            raise InvalidSpec(f"{name} has %{mark}, which only the tasks of an array have; %j is the id of any job")
    for name, needs in NEEDS.items():
        if name in values and needs not in values:
            raise InvalidSpec(f"{name} means nothing without {needs}")
    if values.get("Retries") and values.get("StandardInput"):
        raise InvalidSpec("Retries and StandardInput do not go together: the input is used up by the first run")
