"""systemd: the only module that knows its bus API and where a limit shows in the cgroup.

Scopes are made with StartTransientUnit and kept readable by AddRef until `release`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dbus_next.signature import Variant

from jobsvc import cgroup
from jobsvc.bus import DBUS, Bus, BusError, Call

log = logging.getLogger(__name__)

NAME = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER = NAME + ".Manager"
SCOPE = NAME + ".Scope"
CGROUPS = Path("/sys/fs/cgroup")
UNSET = 2**64 - 1
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries to make a scope
AWAY = (".NoReply", ".Disconnected", ".NameHasNoOwner", ".ServiceUnknown")  # for the moments of a daemon-reexec
GONE = "gone"

LIMITS = {
    **dict.fromkeys(("CPUQuotaPerSecUSec", "CPUWeight", "MemoryMax", "MemoryHigh", "MemorySwapMax"), "t"),
    **dict.fromkeys(("TasksMax", "IOWeight"), "t"),
    **dict.fromkeys(("IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax"), "a(st)"),
    "AllowedCPUs": "ay",
}
# What every scope of ours has besides (order, accounting, collection) is in jobsvc-.scope.d.
SIGNATURES = LIMITS | {
    "PIDs": "au",
    "AddRef": "b",
    "Description": "s",
    "Slice": "s",
    "TimeoutStopUSec": "t",
    "OOMPolicy": "s",
}
# The scope's property, and the controller without which it is never known.
USAGE = {"CPUUsageNSec": None, "MemoryPeak": "memory", "IOReadBytes": "io", "IOWriteBytes": "io"}


class ScopeError(Exception):
    """systemd did not make the scope; the text is its reason."""


class ShuttingDownError(ScopeError):
    """No scope can be made any more: the machine is going down."""


class Systemd:
    """PID 1, on a connection of its own: the scope references last as long as it does."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bus.on_signal = self._signal
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._expected: Counter[str] = Counter()  # units of which a job is being asked for
        self._early: dict[str, tuple[str, str]] = {}  # unit and result of jobs, told before the answer naming them
        self._owner = ""
        self._releasing: set[asyncio.Task[None]] = set()
        self.version = 0

    async def connect(self) -> None:
        """Subscribe to job results, and learn the version."""
        await self._bus.match(f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{NAME}'")
        (self._owner,) = await self._bus.ask_bus("GetNameOwner", "s", (NAME,))
        await self._bus.match(f"type='signal',sender='{NAME}',path='{PATH}',interface='{MANAGER}',member='JobRemoved'")
        version = await self._get(PATH, MANAGER, "Version")
        self._usage = [name for name, controller in USAGE.items() if controller is None or controller in controllers()]
        self.version = int("".join(c if c.isdigit() else " " for c in version).split()[0])

    @property
    def remembers_memory_peak(self) -> bool:
        return self.version >= 255  # before that nothing keeps the peak once the cgroup is gone

    def _signal(self, message: Call) -> None:
        if message.sender == DBUS and message.member == "NameOwnerChanged" and message.body[0] == NAME:
            self._owner = message.body[2]  # systemctl daemon-reexec
            for other in self._waiting.values():
                if not other.done():
                    other.set_result(GONE)
        # Anybody may send us a signal of any name: only PID 1's are believed.
        elif message.sender == self._owner and message.member == "JobRemoved" and message.signature == "uoss":
            _, job, unit, result = message.body
            if waiting := self._waiting.get(job):
                if not waiting.done():
                    waiting.set_result(result)
            elif unit in self._expected:
                self._early[job] = unit, result

    @contextlib.contextmanager
    def _expecting(self, unit: str) -> Iterator[None]:
        """Keep the results of this unit's jobs until it is known which one is ours."""
        self._expected[unit] += 1
        try:
            yield
        finally:
            self._expected[unit] -= 1
            if not self._expected[unit]:
                del self._expected[unit]
                self._early = {job: told for job, told in self._early.items() if told[0] != unit}

    async def start_scope(self, unit: str, pid: int, properties: Mapping[str, Any]) -> None:
        """Make the scope `unit` around `pid` and wait until it is there. Raises ScopeError."""
        values = {"PIDs": [pid], "AddRef": True, **properties}
        listed = [[name, Variant(SIGNATURES[name], value)] for name, value in values.items()]
        try:
            with self._expecting(unit):
                result = await self._make(unit, pid, listed)
            if result != "done":
                raise ScopeError(f"the start of {unit} ended as {result!r}")
        except (BusError, TimeoutError, ScopeError) as error:
            self.release(unit)  # it is loaded all the same, and our reference would keep it so
            raise _scope_error(error) from None

    async def _make(self, unit: str, pid: int, listed: list[Any]) -> str:
        """The result of the start, asked for again when PID 1 was executed anew meanwhile (daemon-reexec)."""
        for pause in PAUSES:
            try:
                job = await self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", listed, [])
                result = await self._result(job[0])
                if result != GONE:
                    return result
            except BusError as error:
                # The same run was about to begin when the service went away: its scope is just leaving.
                if not error.name.endswith((".UnitExists", *AWAY)):
                    raise
            await asyncio.sleep(pause)
            if (cgroup.of_process(pid) or "").endswith("/" + unit):
                return "done"
        raise ScopeError(f"{unit} is there already, or systemd does not answer")

    async def _result(self, job: str, seconds: float | None = 90) -> str:
        if job in self._early:
            return self._early.pop(job)[1]
        waiting = self._waiting[job] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(waiting, seconds)
        finally:
            del self._waiting[job]

    async def _call(self, member: str, signature: str, *body: Any) -> list[Any]:
        return await self._bus.ask(NAME, PATH, f"{MANAGER}.{member}", signature, body, timeout=90)

    async def _get(self, path: str, interface: str, name: str) -> Any:
        (value,) = await self._bus.ask(NAME, path, "org.freedesktop.DBus.Properties.Get", "ss", (interface, name))
        return value.value

    async def usage(self, unit: str) -> dict[str, Any]:
        """What the ended scope used, as its unit still knows: only what is known."""
        path = unit_path(unit)
        names = [name for name in self._usage if name != "MemoryPeak" or self.remembers_memory_peak]
        answers = await asyncio.gather(*(self._get(path, SCOPE, name) for name in names), return_exceptions=True)
        return {
            name: value for name, value in zip(names, answers, strict=True) if isinstance(value, int) and value != UNSET
        }

    async def limits(self, unit: str, names: Iterable[str]) -> dict[str, Any]:
        """What the scope has of these now, as set_limits takes it. Raises ScopeError."""
        path = unit_path(unit)
        try:
            return {name: await self._get(path, SCOPE, name) for name in names}
        except (BusError, TimeoutError) as error:
            raise ScopeError(str(error)) from None

    async def set_limits(self, unit: str, limits: Mapping[str, Any]) -> None:
        """Change limits of a scope that is there, and wait until PID 1 has written them. Raises ScopeError."""
        listed = []
        for name, value in limits.items():
            if SIGNATURES[name] == "a(st)":
                listed.append([name, Variant("a(st)", [])])  # each item adds to what was there
            listed.append([name, Variant(SIGNATURES[name], value)])
        try:
            await self._call("SetUnitProperties", "sba(sv)", unit, True, listed)
            # PID 1 answers at once and writes when its loop turns: it has by the time it answers this.
            await self._get(unit_path(unit), SCOPE, "ControlGroup")
        except (BusError, TimeoutError) as error:
            raise ScopeError(str(error)) from None

    async def hold(self, unit: str) -> bool:
        """Reference a scope that an earlier connection made; False if it is gone."""
        return await self._insist("RefUnit", unit)

    def release(self, unit: str) -> None:
        """Let systemd forget the scope; if it has already, so much the better."""
        task = asyncio.get_running_loop().create_task(self._let_go(unit))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _let_go(self, unit: str) -> None:
        await self._insist("UnrefUnit", unit)

    async def _insist(self, member: str, unit: str) -> bool:
        """Whether PID 1 did it, or may have: an answer may get lost when it is executed anew."""
        for pause in PAUSES:
            try:
                await self._call(member, "s", unit)
                return True
            except BusError as error:
                if not error.name.endswith(AWAY):
                    return False
            except TimeoutError:
                pass
            await asyncio.sleep(pause)
        return True

    async def thaw(self, unit: str) -> None:
        """Let the processes of a scope go on; harmless if they do."""
        with contextlib.suppress(BusError, TimeoutError):
            await self._call("ThawUnit", "s", unit)

    async def stop(self, unit: str, seconds: float | None) -> None:
        """Stop what is left of a scope, and wait that long at most until nothing of it lives."""
        try:
            async with asyncio.timeout(seconds):
                with self._expecting(unit):
                    await self._stop(unit)
        except BusError as error:
            log.debug("%s was gone already: %s", unit, error)
        except TimeoutError:
            log.warning("%s does not end", unit)

    async def _stop(self, unit: str) -> None:
        """Asked for again when PID 1 was executed anew meanwhile."""
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                (job,) = await self._call("StopUnit", "ss", unit, "replace")
                if await self._result(job, None) != GONE:
                    return
            except BusError as error:
                if not error.name.endswith(AWAY):
                    raise
            await asyncio.sleep(pause)

    async def kill(self, unit: str, number: int) -> None:
        """Signal every process of a scope. Raises ScopeError if it has none any more."""
        try:
            await self._call("KillUnit", "ssi", unit, "all", number)
        except (BusError, TimeoutError) as error:
            raise ScopeError(str(error)) from None


def _scope_error(error: Exception) -> ScopeError:
    if isinstance(error, ScopeError):
        return error
    if isinstance(error, BusError):
        going_down = error.name.endswith(".TransactionIsDestructive")
        return ShuttingDownError(str(error)) if going_down else ScopeError(str(error))
    return ScopeError("systemd did not answer in time")


def unit_path(unit: str) -> str:
    """The object path of a unit: everything but letters and digits as _hh (sd_bus_path_encode(3))."""
    return f"{PATH}/unit/" + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)


def populated(group: str) -> bool:
    """Whether a living process is in the cgroup or below it."""
    return "populated 1" in (_read(group, "cgroup.events") or "")


def controllers() -> set[str]:
    """The cgroup v2 controllers this machine has."""
    return set((_read("", "cgroup.controllers") or "").split())


def not_in_force(group: str, limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The limits that the kernel does not hold, each with the reason (systemd only logs a failed write)."""
    wrong = []
    for name, value in limits.items():
        if value == UNSET and name not in FILES:
            continue
        reason = _io(group, name, value) if name.startswith("IO") and name != "IOWeight" else _one(group, name, value)
        if reason:
            wrong.append((name, reason))
    return wrong


FILES = {
    "CPUQuotaPerSecUSec": ("cpu.max", "cpu"),
    "CPUWeight": ("cpu.weight", "cpu"),
    "AllowedCPUs": ("cpuset.cpus.effective", "cpuset"),
    "MemoryMax": ("memory.max", "memory"),
    "MemoryHigh": ("memory.high", "memory"),
    "MemorySwapMax": ("memory.swap.max", "memory"),
    "TasksMax": ("pids.max", "pids"),
    "IOWeight": ("io.weight", "io"),
}
IO_WORDS = {
    "IOReadBandwidthMax": "rbps",
    "IOWriteBandwidthMax": "wbps",
    "IOReadIOPSMax": "riops",
    "IOWriteIOPSMax": "wiops",
}


def _read(group: str, file: str) -> str | None:
    try:
        return (CGROUPS / group.lstrip("/") / file).read_text().strip()
    except OSError:
        return None


def _one(group: str, name: str, value: Any) -> str | None:
    file, controller = FILES[name]
    text = _read(group, file)
    if value == UNSET:
        return None if text is None or text.split()[0] == "max" else f"{file} says {text!r}"
    if text is None and name == "CPUWeight" and value == 0:
        text = _read(group, "cpu.idle")
    if text is None:
        return f"no {file} here: this machine has no {controller} controller for it"
    return None if _holds(name, value, text) else f"{file} says {text!r}"


def _holds(name: str, value: Any, text: str) -> bool:
    match name:
        case "CPUQuotaPerSecUSec":
            quota, period = text.split()
            return quota != "max" and abs(int(quota) * 1_000_000 // int(period) - value) <= 1_000
        case "CPUWeight":
            return value == 0 or text == str(value)
        case "IOWeight":
            return text.split()[-1].isdecimal()  # the kernel may scale it (bfq)
        case "AllowedCPUs":
            # What was asked for stays in cpuset.cpus even where none of it can be granted.
            return bool(text) and all(
                value[cpu // 8 : cpu // 8 + 1] and value[cpu // 8] >> cpu % 8 & 1 for cpu in cpus(text)
            )
        case "TasksMax":
            return text == str(value)
        case _:
            page = os.sysconf("SC_PAGE_SIZE")
            return text.isdecimal() and int(text) == value // page * page


def cpus(text: str) -> list[int]:
    """The numbers of a cpuset list: 0-3,7."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _io(group: str, name: str, value: list[tuple[str, int]]) -> str | None:
    text = _read(group, "io.max")
    if text is None and value:
        return "no io.max here: this machine has no io controller for it"
    lines = {device: dict(w.split("=") for w in words) for device, *words in map(str.split, (text or "").splitlines())}
    for path, amount in value:
        device = path.removeprefix("/dev/block/")
        if lines.get(device, {}).get(IO_WORDS[name]) != str(amount):
            return f"io.max has no {IO_WORDS[name]}={amount} for {device}"
    return None


def live(group: str) -> dict[str, Any]:
    """What a running scope uses now, from its cgroup: only what is known."""
    usage: dict[str, Any] = {}
    files = {"MemoryCurrent": "memory.current", "MemoryPeak": "memory.peak", "TasksCurrent": "pids.current"}
    for name, file in files.items():
        if (text := _read(group, file)) and text.isdecimal():
            usage[name] = int(text)
    if text := _read(group, "cpu.stat"):
        usage["CPUUsageNSec"] = int(dict(map(str.split, text.splitlines()))["usage_usec"]) * 1000
    if text := _read(group, "io.stat"):
        words = [w.split("=") for line in text.splitlines() for w in line.split()[1:]]
        usage["IOReadBytes"] = sum(int(v) for k, v in words if k == "rbytes")
        usage["IOWriteBytes"] = sum(int(v) for k, v in words if k == "wbytes")
    return usage
