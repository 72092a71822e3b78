"""What is known of jobs: Status, List, Count, Stats."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from dbus_next.signature import Variant

from jobsvc import interface, spec, status, wire
from jobsvc.errors import InvalidArgs
from jobsvc.interface import FILTER, PAGE, Request, method
from jobsvc.message import Packed, pack_body
from jobsvc.methods.desk import MIB, Desk
from jobsvc.model import Job

PAGE_SIZE: Final = 100
PAGE_MAX: Final = 500
PAGE_BYTES: Final = 4 * MIB  # as they are stored; the bus takes 32 MiB, and the loop stands still meanwhile


class Looking:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @method("s id, a{sv} options", "a{sv} status", {"Run": "u", "Spec": "b"})
    async def Status(self, request: Request, job_id: str, options: dict[str, Any]) -> tuple[dict[str, Variant]]:
        job = await self._desk.lookup(request, job_id)
        if options.get("Spec", False):  # a script may say more than its owner would to everybody who may look
            job = await self._desk.managed(request, job_id)
        facts = await self.describe(job, options.get("Run", job.run.number))
        if options.get("Spec", False):
            signatures = {name: key.signature for name, key in spec.KEYS.items()}
            facts["Spec"] = Variant("a{sv}", wire.pack(status.asked_for(job), signatures))
        return (facts,)

    @method("a{sv} filter", "aa{sv} jobs, s next", FILTER | PAGE)
    async def List(self, request: Request, options: dict[str, Any]) -> tuple[Packed]:
        jobs = self._desk.manager
        limit = options.get("Limit", PAGE_SIZE)
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidArgs(f"Limit must be from 1 to {PAGE_MAX}; the next page begins with After")
        fields = options.get("Fields") or list(status.SIGNATURES)
        for name in fields:
            if name not in status.SIGNATURES:
                raise InvalidArgs(str(spec.unknown(name, status.SIGNATURES, "field")))
        asker, pace = request.caller.user.uid, self._desk.pace(request)
        wanted = await self._desk.filter(request, options)
        page, after = await jobs.store.queries.page(asker, wanted, limit, PAGE_BYTES)
        live = options.get("Live", False)
        written = await self._written(page) if live and "Output" in fields else {}
        reasons, usage = {}, {}
        for job in page:
            await pace.step()
            reasons[job.id] = jobs.queue_reason(job)
            usage[job.id] = status.usage(job) if live else None

        def describe() -> Packed:
            described = (status.describe(job, written.get(job.id), usage[job.id], reasons[job.id]) for job in page)
            listed = [wire.pack({name: facts[name] for name in fields}, status.ALL) for facts in described]
            return pack_body("aa{sv}s", (listed, after))

        return (await self._desk.aside.do(asker, describe),)

    @method("a{sv} filter", "a{su} states", FILTER)
    async def Count(self, request: Request, options: dict[str, Any]) -> tuple[dict[str, int]]:
        wanted = await self._desk.filter(request, options)
        return (await self._desk.manager.store.queries.count(request.caller.user.uid, wanted),)

    @method("a{sv} filter", "aa{sv} stats", FILTER)
    async def Stats(self, request: Request, options: dict[str, Any]) -> tuple[Packed]:
        wanted, asker = await self._desk.filter(request, options), request.caller.user.uid
        if wanted.hooks is None:  # of what people did, not of what tells them
            wanted = replace(wanted, hooks=False)
        rows = await self._desk.manager.store.queries.stats(asker, wanted)

        def describe() -> Packed:
            return pack_body("aa{sv}", ([wire.pack(row, interface.STATS) for row in rows],))

        return (await self._desk.aside.do(asker, describe),)

    async def _written(self, page: list[Job]) -> dict[str, tuple[int, int]]:
        """How much of output those that run have by now."""
        jobs = self._desk.manager
        running = [(jobs.live(job, job.run.number), jobs.runners[job.key]) for job in page if job.key in jobs.runners]
        await asyncio.gather(*(runner.stat() for _, runner in running))
        return {live.job.id: live.offsets() for live, _ in running}

    async def describe(self, job: Job, number: int) -> dict[str, Variant]:
        """Everything of one run of a job, with what it uses and has written by now."""
        jobs = self._desk.manager
        live = jobs.live(job, number)
        if runner := jobs.runners.get(live.job.key):
            await runner.stat()
        waits = jobs.queue_reason(live.job)
        offsets = None if live.closed else live.offsets()
        facts = status.describe(live.job, offsets, status.usage(live.job), waits)
        return wire.pack(facts, status.ALL)
