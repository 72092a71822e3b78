"""The service itself: who hears of changes, maintenance, configuration."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from jobsvc import config
from jobsvc.errors import InvalidConfig
from jobsvc.interface import Request, method
from jobsvc.methods.desk import Desk

log = logging.getLogger(__name__)


class Administering:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._reloading = asyncio.Lock()

    @method()
    async def Subscribe(self, request: Request) -> tuple[()]:
        await self._desk.subscribers.add(request.caller)
        return ()

    @method()
    async def Unsubscribe(self, request: Request) -> tuple[()]:
        self._desk.subscribers.drop(request.caller.sender)
        return ()

    @method("b on, a{sv} options", options={})
    async def SetMaintenance(self, request: Request, on: bool, _: dict[str, Any]) -> tuple[()]:
        jobs = self._desk.manager
        await self._desk.authority.administer(request.caller)
        if on != jobs.maintenance:
            jobs.set_maintenance(on)
            jobs.events.maintenance(on, request.caller.user.name, request.id)
            self._desk.subscribers.announce({"Maintenance": on})
        await jobs.store.sync()
        return ()

    @method()
    async def Reload(self, request: Request) -> tuple[()]:
        await self._desk.authority.administer(request.caller)
        await self.reload(request.caller.user.name, request.id)
        return ()

    async def reload(self, who: str, request_id: str) -> None:
        """The configuration anew; with anything wrong in it InvalidConfig, and all stays as it was."""
        async with self._reloading:  # what was read last holds
            try:
                new = await asyncio.to_thread(config.load)
            except InvalidConfig as error:
                # For SIGHUP, and as journald may not find out the unit of a busctl that has ended.
                log.error("the configuration stays as it was: %s", error)
                raise
            self._desk.authority.use(new)
            self._desk.manager.configure(new)
            self._desk.manager.events.reloaded(who, request_id)
            self._desk.subscribers.announce({"MaxRunning": new.max_running})
