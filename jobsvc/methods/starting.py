"""New jobs: Start, StartMany, Duplicate."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from dbus_next.signature import Variant

from jobsvc import hooks, spec, wire
from jobsvc.callers import Caller
from jobsvc.errors import AccessDenied, InvalidArgs, InvalidSpec, NoSuchJob
from jobsvc.interface import Request, method
from jobsvc.methods.desk import MIB, Desk, path_of
from jobsvc.methods.preparing import Preparing
from jobsvc.model import Job

MAX_MANY: Final = 1000
ADDED: Final = {"Environment", "Labels", *spec.IO_PATHS}  # what Duplicate adds to the old job's


class Starting:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @method("a{sv} spec", "s id, o job", cap=MIB, fds=True)
    async def Start(self, request: Request, options: dict[str, Variant]) -> tuple[str, str]:
        typed = wire.unpack(options)
        dry = _dry_run(typed)
        _check_input(request, typed)
        jobs, digests = await self._prepare(request, [typed])
        if dry:
            return "", "/"
        accept = partial(self._accept_input, request) if request.call.parcel else self._accept
        (job_id,) = await accept(jobs, digests)
        if jobs[0].spec.get("Pty") and job_id == jobs[0].id:
            self._note_starter(job_id, request.caller.sender, jobs[0].spec)
        return job_id, path_of(job_id)

    @method("aa{sv} specs, a{sv} options", "a(so) jobs", {"DryRun": "b"}, cap=4 * MIB)
    async def StartMany(
        self, request: Request, specs: list[dict[str, Variant]], options: dict[str, Any]
    ) -> tuple[list[Any]]:
        if len(specs) > MAX_MANY:
            raise InvalidSpec(f"StartMany takes at most {MAX_MANY} jobs in one call, not {len(specs)}")
        typed, pace = [], self._desk.pace(request)
        for one in specs:
            await pace.step()
            typed.append(wire.unpack(one))
        for index, one in enumerate(typed):
            if one.keys() & {"StandardInput", "DryRun"}:
                raise InvalidSpec(f"job {index}: StartMany takes no StandardInput, and DryRun as an option of the call")
        jobs, digests = await self._prepare(request, typed)
        if options.get("DryRun", False):
            return ([],)
        accepted = await self._accept(jobs, digests)
        return ([[job_id, path_of(job_id)] for job_id in accepted],)

    @method("s id, a{sv} overrides", "s id, o job", cap=MIB)
    async def Duplicate(self, request: Request, job_id: str, overrides: dict[str, Variant]) -> tuple[str, str]:
        """A new job of the caller's; what it executes is authorized like any start of its."""
        typed = wire.unpack(overrides)
        if "StandardInput" in typed:
            raise InvalidSpec("Duplicate takes no StandardInput; start a new job instead")
        dry, dropped = _dry_run(typed), _unset(typed)
        old = await self._desk.managed(request, job_id)
        wanted = self._resembling(request.caller, old, spec.check_some(typed), dropped)
        job, mark = await Preparing(self._desk, request).job(wanted)
        if "User" not in overrides and job.user != old.user:  # its number is somebody else's by now
            raise NoSuchJob.of(old.id)
        if dry:
            return "", "/"
        (new_id,) = await self._accept([job], [mark])
        return new_id, path_of(new_id)

    async def _prepare(self, request: Request, typed: list[wire.Typed]) -> tuple[list[Job], list[str]]:
        preparing, pace = Preparing(self._desk, request), self._desk.pace(request)
        jobs, digests = [], []
        for index, one in enumerate(typed):
            await pace.step()
            try:
                job, mark = await preparing.job(spec.check(one), index)
            except InvalidSpec as error:
                raise InvalidSpec(f"job {index}: {error}" if len(typed) > 1 else str(error)) from None
            jobs.append(job)
            digests.append(mark)
        return jobs, digests

    async def _accept_input(self, request: Request, jobs: list[Job], digests: list[str]) -> list[str]:
        """What is kept for a job is there before the job is."""
        manager, job_id = self._desk.manager, jobs[0].id
        try:
            await manager.inputs.keep(job_id, request.call)
            return await self._accept(jobs, digests)
        finally:
            if job_id not in manager.jobs:
                manager.inputs.discard(job_id)

    async def _accept(self, jobs: list[Job], digests: list[str]) -> list[str]:
        accepted = self._desk.manager.accept(jobs, digests)
        await self._desk.manager.store.sync()
        return accepted

    def _note_starter(self, job_id: str, sender: str, values: spec.Values) -> None:
        """Who was allowed to start it may type into it. A later bus uses the name again, so this is never stored."""
        starters, unfinished = self._desk.starters, self._desk.manager.jobs
        for old in [old for old in starters if old not in unfinished]:
            del starters[old]
        starters[job_id] = sender, values

    def _resembling(self, caller: Caller, old: Job, overrides: spec.Values, dropped: frozenset[str]) -> spec.Values:
        """The spec of a duplicate: who runs it stays as it was, secrets go along for the owner only."""
        dropped |= {"RequestId", "Hold"}
        kept = {name: value for name, value in hooks.wanted(old.spec).items() if name not in dropped}
        # What it waited for and is not there any more, it waits for no more.
        named = [one for one in kept.pop("Dependencies", ()) if self._desk.manager.knows(one[0])]
        kept |= {"Dependencies": named} if named else {}
        if overrides.keys() & {"Command", "Script"}:
            for name in ("Command", "Script", "Shell", "Arguments"):
                kept.pop(name, None)
        mine = caller.is_root or caller.user == old.owner
        for name in overrides.keys() & kept.keys() & ADDED:
            if mine or not spec.KEYS[name].secret:
                overrides[name] = spec.combined(kept[name], overrides[name])
        wanted = kept | {"User": str(old.user.uid)} | overrides
        if old.group_override and "User" not in overrides:
            wanted.setdefault("Group", str(old.gid))
        if wanted.get("StandardInput"):
            raise InvalidSpec(f"job {old.id} reads a standard input that is used up; start a new job instead")
        if "Environment" in kept and "Environment" not in overrides and not mine:
            raise AccessDenied(f"the environment of job {old.id} is its owner's; give an Environment of your own")
        spec.check_together(wanted)
        return wanted


def _check_input(request: Request, typed: wire.Typed) -> None:
    """StandardInput names the one descriptor that came."""
    came = request.call.parcel.count if request.call.parcel else 0
    named = "StandardInput" in typed
    if named and (typed["StandardInput"] != ("h", 0) or not came):
        raise InvalidSpec("StandardInput must be a file descriptor ('h') that comes with the message")
    if came > named:
        raise InvalidArgs("a file descriptor came that no key names; StandardInput takes one")
    if named:
        typed["StandardInput"] = ("h", True)


def _dry_run(typed: wire.Typed) -> bool:
    signature, value = typed.pop("DryRun", ("b", False))
    if signature != "b":
        raise InvalidSpec(f"DryRun must be of type 'b', not {signature!r}")
    return bool(value)


def _unset(typed: wire.Typed) -> frozenset[str]:
    """The keys of the old job that its duplicate does without."""
    signature, names = typed.pop("Unset", ("as", []))
    if signature != "as":
        raise InvalidSpec(f"Unset must be of type 'as', not {signature!r}")
    for name in names:
        if name not in spec.KEYS:
            raise spec.unknown(name, spec.KEYS, "key in Unset")
    return frozenset(names)
