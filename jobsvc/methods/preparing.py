"""From a spec as asked for to a job that may be accepted: checked, completed, authorized."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Final

from jobsvc import cgroup, hooks, sandbox, spec
from jobsvc.authority import Grant, complete, files_of
from jobsvc.clock import realtime_usec
from jobsvc.errors import InvalidSpec, NoSuchJob
from jobsvc.interface import Request
from jobsvc.methods.desk import Desk
from jobsvc.model import Job, Queued, Run
from jobsvc.packing import pack_spec

OUTPUT_FILES: Final = ("StandardOutput", "StandardError")


class Preparing:
    """The jobs of one call. The same job many times is one question for polkit."""

    def __init__(self, desk: Desk, request: Request) -> None:
        self._desk = desk
        self._request = request
        self._seen: set[str] = set()  # jobs that the caller may see
        self._asked: dict[str, Grant] = {}

    async def job(self, wanted: spec.Values, index: int = 0) -> tuple[Job, str]:
        """The job, and what tells it apart as asked for. `index` is its place in the call."""
        await self.may_depend(wanted, index)
        desk, caller = self._desk, self._request.caller
        values = complete(wanted, await desk.authority.bounds(caller))
        self.check_fits(values)
        if hook := self._hook():
            values[hooks.OF] = hook
        if any(name in values for name in OUTPUT_FILES):
            desk.manager.leftovers.check(caller.user.uid)
        subject = await desk.authority.subject(caller, values)
        job = Job(
            id=secrets.token_hex(8),
            owner=caller.user,
            user=subject.account.user,
            gid=subject.gid,
            spec=values,
            created_at=realtime_usec(),
            request=values.get("RequestId", self._request.id),
            run=Run(1, Queued("")),
            root_allowed=subject.account.user.uid == 0,
            group_override=subject.group_override,
        )
        asked = sorted((key, value) for key, value in values.items() if key not in spec.UNASKED)
        question = repr((asked, files_of(job), subject))
        if question not in self._asked:
            self._asked[question] = await desk.authority.start(caller, job, values, subject)
        job = self._asked[question].to(job)
        if values.get("UniquePolicy") == "replace":
            await self._may_replace(job)
        return job, _digest(wanted, subject.account.user.uid, subject.gid)

    async def may_depend(self, wanted: spec.Values, index: int = 0) -> None:
        """A job may wait for those its caller may see, and for those before it in the same call."""
        for other, _ in wanted.get("Dependencies", ()):
            if other.startswith("@") and int(other[1:]) >= index:
                raise InvalidSpec(f"Dependencies: {other} must be one of the jobs before it in the same StartMany")
            if not other.startswith("@") and other not in self._seen:
                try:
                    await self._desk.lookup(self._request, other)
                except NoSuchJob:
                    raise InvalidSpec(f"Dependencies: there is no job {other}") from None
                self._seen.add(other)

    def check_fits(self, values: spec.Values) -> None:
        """What this machine and its configuration have to say."""
        if name := sandbox.missing([name for name in sandbox.KEYS if values.get(name)]):
            raise InvalidSpec(f"{name} needs bubblewrap, which is not installed here: 'apt install bubblewrap'")
        hooks.check(values)
        words = [word for name in ("Command", "Arguments", "Environment") for word in values.get(name, [])]
        size = sum(len(word.encode()) + 1 for word in words) + len(values.get("Script", b""))
        limit = self._desk.manager.config.max_command_bytes
        if size > limit:
            raise InvalidSpec(f"Command and Environment are {size} bytes; MaxCommandBytes={limit} is the most")

    def _hook(self) -> str | None:
        """What a hook submits is part of it: nothing follows that either, or there would be no end to it."""
        jobs, sender = self._desk.manager, self._request.caller.sender
        if not jobs.config.on_finish or (pid := self._desk.callers.pid(sender)) is None:
            return None
        job = hooks.job_of(cgroup.of_process(pid), jobs.jobs)
        return job.spec.get(hooks.OF) if job else None

    async def _may_replace(self, job: Job) -> None:
        """The present holders of its Unique key are the caller's to stop."""
        allowed: set[str] = set()
        while holders := [one for one in self._desk.manager.roster.holders(job) if one.id not in allowed]:
            for holder in holders:
                await self._desk.authority.manage(self._request.caller, holder)
                allowed.add(holder.id)


def _digest(wanted: spec.Values, uid: int, gid: int) -> str:
    """What makes two submissions the same: the spec as asked for and who runs it, not when or under which key."""
    asked = {name: value for name, value in pack_spec(wanted).items() if name != "RequestId"}
    text = json.dumps([asked, uid, gid], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
