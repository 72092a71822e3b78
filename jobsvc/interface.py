"""The interface as data: every method with its types and options, and the introspection that tells of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobsvc import status, wire
from jobsvc.bus import Call
from jobsvc.callers import Caller
from jobsvc.errors import InvalidArgs, nearest

NAME = "org.jobsvc1"
ROOT = "/org/jobsvc1"
JOBS = ROOT + "/job"
MANAGER = NAME + ".Manager"
JOB = NAME + ".Job"
KIB = 1024

FILTER = {
    "IdPrefix": "s",
    "State": "as",
    "User": "s",
    "OwnerUID": "u",
    "Name": "s",
    "Queue": "s",
    "ArrayId": "s",
    "SinceUSec": "t",
    "UntilUSec": "t",
    "FinishedBeforeUSec": "t",
    "ChangedSince": "t",
    "Labels": "a{ss}",
    "Hooks": "b",
}
PAGE = {"Limit": "u", "After": "s", "Reverse": "b", "Fields": "as", "Live": "b"}
LOGS = {
    "Stream": "s",
    "Run": "u",
    "Lines": "u",
    "SinceUSec": "t",
    "UntilUSec": "t",
    "FromStdout": "t",
    "FromStderr": "t",
    "Format": "s",
    "Follow": "b",
}
READ_LOGS = LOGS | {"WaitUSec": "t", "Missing": "as"}
PROPERTIES = {"Version": "s", "Running": "u", "Queued": "u", "MaxRunning": "u", "Maintenance": "b"}
STATS = {
    **dict.fromkeys(("User", "Queue", "Day"), "s"),
    **dict.fromkeys(("Jobs", "Completed", "Failed", "Stopped", "CPUUsageNSec", "MemoryPeak", "WaitUSec"), "t"),
}
SIGNALS = {
    "JobAdded": (("id", "s"), ("job", "o")),
    "JobChanged": (("id", "s"), ("state", "s"), ("result", "s")),
    "JobRemoved": (("id", "s"), ("job", "o")),
}

OPTIONS = "a{sv}"  # what every method ends in
Arguments = tuple[tuple[str, str], ...]
Handler = Callable[..., Awaitable[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Request:
    """One call being answered: who calls, and how it is known in the journal."""

    caller: Caller
    call: Call

    @property
    def id(self) -> str:
        return f"{self.call.sender}:{self.call.serial}"


@dataclass(frozen=True, slots=True)
class Method:
    """A method: its arguments in and out; the last one in is `a{sv}` options where `options` is given."""

    name: str
    takes: Arguments
    gives: Arguments
    options: Mapping[str, str] | None
    cap: int
    fds: bool
    handler: Handler

    @property
    def signature(self) -> str:
        return "".join(kind for _, kind in self.takes)

    @property
    def reply(self) -> str:
        return "".join(kind for _, kind in self.gives)

    def read(self, call: Call) -> list[Any]:
        """The arguments of a call of this method, its options as plain values.

        Options may be left out, and be given where there are none.
        """
        body = list(call.body)
        if call.signature + OPTIONS == self.signature and self.options is not None:
            body.append({})
        elif call.signature == OPTIONS and not self.takes:
            self._unpack(body.pop())
        elif call.signature != self.signature:
            raise InvalidArgs(f"{self.name} takes {self.signature!r}, not {call.signature!r}")
        return body if self.options is None else [*body[:-1], self._unpack(body[-1])]

    def _unpack(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, each known and of its type."""
        known = self.options or {}
        values = {}
        for name, (signature, value) in wire.unpack(options).items():
            if name not in known:
                raise InvalidArgs(f"{self.name} has no option {name!r}{nearest(name, list(known))}")
            if signature != known[name]:
                raise InvalidArgs(f"option {name} must be of type {known[name]!r}, not {signature!r}")
            values[name] = value
        return values


class Fd:
    """A descriptor to be sent with a reply, and then closed."""

    def __init__(self, number: int) -> None:
        self.number = number


def method(
    takes: str = "",
    gives: str = "",
    options: Mapping[str, str] | None = None,
    cap: int = 64 * KIB,
    fds: bool = False,
) -> Callable[[Handler], Handler]:
    """Make a coroutine a D-Bus method. `takes` and `gives` read "s id, a{sv} options"."""

    def mark(handler: Handler) -> Handler:
        described = Method(handler.__name__, arguments(takes), arguments(gives), options, cap, fds, handler)
        handler.method = described  # type: ignore[attr-defined]
        return handler

    return mark


def arguments(text: str) -> Arguments:
    pairs = (part.split() for part in text.split(",") if part)
    return tuple((name, kind) for kind, name in pairs)


def methods(door: type) -> dict[str, Method]:
    """The methods of a class, in the order they are written in."""
    found = (getattr(value, "method", None) for value in vars(door).values())
    return {method.name: method for method in found if method}


HEAD = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
STANDARD = """ <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg name="xml" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
 </interface>
"""
WITH_PROPERTIES = """ <interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
   <arg name="interface" type="s" direction="in"/>
   <arg name="property" type="s" direction="in"/>
   <arg name="value" type="v" direction="out"/>
  </method>
  <method name="GetAll">
   <arg name="interface" type="s" direction="in"/>
   <arg name="properties" type="a{sv}" direction="out"/>
  </method>
  <signal name="PropertiesChanged">
   <arg name="interface" type="s"/>
   <arg name="changed_properties" type="a{sv}"/>
   <arg name="invalidated_properties" type="as"/>
  </signal>
 </interface>
"""


def node(body: str, children: Iterable[str] = ()) -> str:
    listed = "".join(f' <node name="{child}"/>\n' for child in children)
    return f"{HEAD}<node>\n{STANDARD}{body}{listed}</node>\n"


def manager_xml(table: Mapping[str, Method]) -> str:
    lines = [f' <interface name="{MANAGER}">']
    for entry in table.values():
        lines.append(f'  <method name="{entry.name}">')
        lines += [f'   <arg name="{name}" type="{kind}" direction="in"/>' for name, kind in entry.takes]
        lines += [f'   <arg name="{name}" type="{kind}" direction="out"/>' for name, kind in entry.gives]
        lines.append("  </method>")
    for name, signal in SIGNALS.items():
        lines.append(f'  <signal name="{name}">')
        lines += [f'   <arg name="{argument}" type="{kind}"/>' for argument, kind in signal]
        lines.append("  </signal>")
    emits = {"Version": "const", "MaxRunning": "true", "Maintenance": "true"}
    lines += [_property(name, kind, emits.get(name, "false")) for name, kind in PROPERTIES.items()]
    return WITH_PROPERTIES + "\n".join(lines) + "\n </interface>\n"


def job_xml() -> str:
    emits = {name: "const" if name in status.CONSTANT else "true" for name in status.SIGNATURES}
    emits |= dict.fromkeys(("Usage", "Output", "QueueReason"), "false")
    lines = [_property(name, kind, emits[name]) for name, kind in status.SIGNATURES.items()]
    return f'{WITH_PROPERTIES} <interface name="{JOB}">\n' + "\n".join(lines) + "\n </interface>\n"


def _property(name: str, kind: str, emits: str) -> str:
    note = f'<annotation name="{EMITS}" value="{emits}"/>'
    return f'  <property name="{name}" type="{kind}" access="read">{note}</property>'
