"""logind: holds up the machine's shutdown while there is a reason to, and hears of it in time.

Without logind nothing is held up and nothing heard; what is wanted is asked for when logind comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from jobsvc.bus import DBUS, Bus, BusError, Call

log = logging.getLogger(__name__)

NAME = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
MANAGER = NAME + ".Manager"
MODES = ("delay", "block")
LINGER = 1.0  # seconds that a lock outlives its reason: short jobs one after the other need one lock


class Inhibitor:
    """One lock a mode for all who want one. `on_shutdown` hears True when the machine goes down, False if it stays.

    A delay lock holds a shutdown up until it is released, at most logind's InhibitDelayMaxSec=; a
    block lock has it refused (systemd-inhibit(1)).
    """

    def __init__(self) -> None:
        self.on_shutdown: list[Callable[[bool], None]] = []
        self.shutting_down = False
        self._bus: Bus | None = None
        self._owner = ""
        self._wanted: dict[str, tuple[str, str]] = {}  # by who wants it: the mode, and why
        self._locks: dict[str, int] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    async def connect(self, bus: Bus) -> None:
        """Speak to logind on this connection, which must take descriptors; beside whoever hears its signals."""
        first = bus.on_signal

        def both(message: Call) -> None:
            first(message)
            self._signal(message)

        self._bus, bus.on_signal = bus, both
        await bus.match(f"type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{NAME}'")
        await bus.match(f"type='signal',sender='{NAME}',path='{PATH}',member='PrepareForShutdown'")
        try:
            (self._owner,) = await bus.ask_bus("GetNameOwner", "s", (NAME,))
        except BusError:
            log.info("logind is not there: no shutdown is held up")
        self._settle()

    def want(self, who: str, why: str | None, mode: str = "delay") -> None:
        """Have shutdown held up for this reason; None takes it back. Asking twice changes nothing."""
        wish = None if why is None else (mode, why)
        if self._wanted.get(who) == wish:
            return
        if wish is None:
            del self._wanted[who]
        else:
            self._wanted[who] = wish
        self._settle()

    def close(self) -> None:
        """Let go of everything."""
        self._wanted.clear()
        for task in self._asking.values():
            task.cancel()
        for mode in list(self._locks):
            self._drop(mode)

    def _settle(self) -> None:
        for mode in MODES:
            why = next((reason for kind, reason in self._wanted.values() if kind == mode), None)
            if why is not None:
                if timer := self._leaving.pop(mode, None):
                    timer.cancel()
                if self._owner and mode not in self._locks and mode not in self._asking:
                    self._asking[mode] = asyncio.create_task(self._take(mode, why), name=f"inhibit-{mode}")
            elif mode in self._locks:
                if self.shutting_down:  # it is us that everybody waits for
                    self._drop(mode)
                elif mode not in self._leaving:
                    self._leaving[mode] = asyncio.get_running_loop().call_later(LINGER, self._drop, mode)

    async def _take(self, mode: str, why: str) -> None:
        assert self._bus
        body = ("shutdown", "jobsvc", why, mode)
        try:
            self._locks[mode] = await self._bus.ask_fd(NAME, PATH, f"{MANAGER}.Inhibit", "ssss", body)
        except (BusError, TimeoutError) as error:
            log.warning("logind does not hold up a shutdown for us: %s", error)
            return
        finally:
            del self._asking[mode]
        self._settle()  # the reason may be gone by now

    def _drop(self, mode: str) -> None:
        if timer := self._leaving.pop(mode, None):
            timer.cancel()
        os.close(self._locks.pop(mode))

    def _signal(self, message: Call) -> None:
        if message.sender == DBUS and message.member == "NameOwnerChanged" and message.body[0] == NAME:
            self._owner = message.body[2]
            self._settle()
        # Anybody may send us a signal of any name: only logind's are believed.
        elif message.sender == self._owner and message.member == "PrepareForShutdown" and message.signature == "b":
            (self.shutting_down,) = message.body
            log.info("the machine %s", "is going down" if self.shutting_down else "stays up after all")
            for hear in self.on_shutdown:
                try:
                    hear(self.shutting_down)
                except Exception:
                    log.exception("at shutdown")
            self._settle()
