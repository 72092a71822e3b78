"""jobsvcd's own entries in the namespace of its jobs, about them and about itself; see jobsvc.catalog."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

from jobsvc import events, native
from jobsvc.model import Finished, Job

SOCKET = "/run/systemd/journal.jobsvc/socket"
MAX_UNSENT = 10_000
AGAIN = 1.0  # seconds


class Events:
    """Sends without ever waiting: what a slow or absent journal cannot take is sent when it can.

    `room` says whether there may be one more about a job.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self.room: Callable[[Job], bool] = lambda job: True
        self._path = path
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque(maxlen=MAX_UNSENT)
        self._again: asyncio.TimerHandle | None = None

    def queued(self, job: Job) -> None:
        self._send(job, "queued", events.QUEUED, f"Job {job.id} was queued by {job.owner.name}.", job.request)

    def stop_requested(self, job: Job, request: str) -> None:
        self._send(job, "stop-requested", events.STOP_REQUESTED, f"Job {job.id} was asked to stop.", request)

    def changed(self, job: Job, what: str, request: str) -> None:
        """`what` names the keys that have other values now, or says what was done."""
        self._send(job, "changed", events.CHANGED, f"Job {job.id} was changed: {what}.", request)

    def removed(self, job: Job, why: str, request: str) -> None:
        """The deletion record: all that is left of a job outside its output."""
        result = str(job.run.phase.result) if isinstance(job.run.phase, Finished) else ""
        text = f"Job {job.id} ({job.name}, {result}) of {job.owner.name} was removed from the history: {why}."
        self._send(job, "removed", events.REMOVED, text, request, JOBSVC_RESULT=result)

    def maintenance(self, on: bool, who: str, request: str) -> None:
        """Whether anything new is accepted and begun."""
        message_id = events.MAINTENANCE_ON if on else events.MAINTENANCE_OFF
        self._note("maintenance", message_id, f"Maintenance was switched {'on' if on else 'off'} by {who}.", request)

    def reloaded(self, who: str, request: str) -> None:
        self._note("reloaded", events.RELOADED, f"The configuration was read anew for {who}.", request)

    def _send(self, job: Job, event: str, message_id: str, text: str, request: str, **more: str) -> None:
        if not self.room(job):
            return
        known = {
            "JOBSVC_ID": job.id,
            "JOBSVC_RUN": str(job.run.number),
            "JOBSVC_UID": str(job.user.uid),
            "OBJECT_SYSTEMD_UNIT": job.unit,
        }
        self._note(event, message_id, text, request, **known, **more)

    def _note(self, event: str, message_id: str, text: str, request: str, **more: str) -> None:
        fields = {
            "MESSAGE_ID": message_id,
            "MESSAGE": text,
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "jobsvc",
            "JOBSVC_EVENT": event,
            "JOBSVC_REQUEST": request,
            **more,
        }
        self._unsent.append(b"".join(native.field(name, value) for name, value in fields.items()))
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                self._flush()
            except BlockingIOError:
                raise
            except OSError:  # a restarted journal has a new socket: connect again, once
                self._disconnect()
                with contextlib.suppress(OSError):
                    self._flush()
        if self._unsent and self._again is None:
            self._again = asyncio.get_running_loop().call_later(AGAIN, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        self.flush()

    def _flush(self) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.connect(self._path)
        while self._unsent:
            self._socket.send(self._unsent[0])
            self._unsent.popleft()

    def _disconnect(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """What is unsent still has a chance."""
        self.flush()
        if self._again:
            self._again.cancel()
        self._disconnect()
