"""What jobs wrote: Logs by a socket to read from, ReadLogs in the answer."""

from __future__ import annotations

import logging
from typing import Any, Final

from dbus_next.signature import Variant

from jobsvc import formats, pipe, wire
from jobsvc.chunks import STREAMS
from jobsvc.errors import InvalidArgs
from jobsvc.guard import guarded
from jobsvc.interface import LOGS, READ_LOGS, Fd, Request, method
from jobsvc.live import Live
from jobsvc.logs import Selection
from jobsvc.methods.desk import Desk
from jobsvc.polkit import Action
from jobsvc.share import Count

log = logging.getLogger(__name__)

WAIT_MAX: Final = 30_000_000  # µs
STYLES: Final = ("raw", "json", "export")


class Output:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._followers = Count("MaxFollowersPerUser", "outputs that you read")

    @method("s id, a{sv} options", "h fd", LOGS)
    async def Logs(self, request: Request, job_id: str, options: dict[str, Any]) -> tuple[Fd]:
        live = await self._live(request, job_id, options)
        uid = request.caller.user.uid
        selection = _selection(options, uid)
        self._followers.take(uid, self._desk.manager.config.max_followers_per_user)
        try:
            ours, theirs = pipe.pair()
        except OSError:
            self._followers.give_back(uid)
            raise
        what, examine = f"output of {live.job.key}", self._desk.manager.store.examine
        stream = guarded(lambda: self._stream(live, selection, theirs, uid), what, examine)
        self._desk.tasks.create_task(stream, name=what)
        return (Fd(ours),)

    @method("s id, a{sv} options", "ay data, a{sv} next", READ_LOGS)
    async def ReadLogs(
        self, request: Request, job_id: str, options: dict[str, Any]
    ) -> tuple[bytes, dict[str, Variant]]:
        wait = options.get("WaitUSec", 0)
        if wait > WAIT_MAX:
            raise InvalidArgs("WaitUSec must be at most 30 s (30000000)")
        live = await self._live(request, job_id, options)
        data, following = await self._desk.logs.read(live, _selection(options, request.caller.user.uid), wait)
        return data, wire.pack(following, READ_LOGS)

    async def _live(self, request: Request, job_id: str, options: dict[str, Any]) -> Live:
        """The run whose output the caller may read."""
        jobs = self._desk.manager
        await self._desk.authority.view(request.caller, jobs.get(job_id), Action.LOGS)
        job = jobs.get(job_id)
        return jobs.live(job, options.get("Run", job.run.number))

    async def _stream(self, live: Live, selection: Selection, fd: int, uid: int) -> None:
        try:
            missing = await self._desk.logs.stream(live, selection, fd)
            if missing:
                log.warning("a reader of %s was not given %s", live.job.id, ", ".join(map(formats.show, missing)))
        finally:
            self._followers.give_back(uid)


def _selection(options: dict[str, Any], uid: int) -> Selection:
    stream, style = options.get("Stream"), options.get("Format", "raw")
    if stream not in (None, *STREAMS):
        raise InvalidArgs(f"Stream must be stdout or stderr, not {stream!r}")
    if style not in STYLES:
        raise InvalidArgs(f"Format must be {', '.join(STYLES)}, not {style!r}")
    try:
        missing = tuple(formats.parse_missing(text) for text in options.get("Missing", ()))
    except ValueError:
        raise InvalidArgs("Missing must be as an earlier ReadLogs gave it") from None
    return Selection(
        stream=stream,
        lines=options.get("Lines"),
        since_usec=options.get("SinceUSec"),
        until_usec=options.get("UntilUSec"),
        from_stdout=options.get("FromStdout", 0),
        from_stderr=options.get("FromStderr", 0),
        format=style,
        follow=options.get("Follow", False),
        missing=missing,
        uid=uid,
    )
