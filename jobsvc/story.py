"""A run's life events in the journal, sent as root: started, finished, end of output."""

from __future__ import annotations

from jobsvc import events, native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jobsvc.request import Request

INFO = "6"
LONGEST = 512  # characters of a reason; the report has all of it


class Story:
    """Tells of one run. The entries follow the output on the same socket, so they come after it.

    If it is to be quiet it tells of nothing but the end of output that there was.
    """

    def __init__(self, request: Request, sender: native.Sender) -> None:
        self.request = request
        self.sender = sender

    def started(self, pid: int) -> None:
        if self.request.quiet:
            return
        text = f"Job {self.request.name} ({self.request.id}) started."
        self._tell(events.STARTED, "started", text, JOBSVC_MAIN_PID=pid)

    def finished(self, report: dict[str, Any]) -> None:
        if self.request.quiet:
            return
        text = f"Job {self.request.name} ({self.request.id}) finished: {report['result']}"
        self._tell(
            events.FINISHED,
            "finished",
            f"{text}, {report['reason'][:LONGEST]}." if report["reason"] else f"{text}.",
            JOBSVC_RESULT=report["result"],
            JOBSVC_EXIT_CODE=report["exit_code"],
            JOBSVC_SIGNAL=report["signal"],
            JOBSVC_STDOUT_BYTES=report["stdout_bytes"],
            JOBSVC_STDERR_BYTES=report["stderr_bytes"],
        )

    def end_of_output(self, report: dict[str, Any]) -> None:
        """The last entry of all: once journald has taken it, it has processed what came before."""
        if self.request.quiet and not report["journal_bytes"]:
            return
        out, err = report["stdout_bytes"], report["stderr_bytes"]
        self._tell(
            events.END_OF_OUTPUT,
            "end-of-output",
            f"Job {self.request.name} ({self.request.id}) wrote {out} and {err} bytes.",
            JOBSVC_STDOUT_BYTES=out,
            JOBSVC_STDERR_BYTES=err,
        )

    def _tell(self, message_id: str, event: str, text: str, **fields: str | int | None) -> None:
        known: dict[str, str | int | None] = {
            "MESSAGE_ID": message_id,
            "MESSAGE": text,
            "PRIORITY": INFO,
            "SYSLOG_IDENTIFIER": "jobsvc",
            "OBJECT_SYSTEMD_UNIT": self.request.unit,
            "JOBSVC_ID": self.request.id,
            "JOBSVC_RUN": self.request.run,
            "JOBSVC_EVENT": event,
            "JOBSVC_UID": self.request.uid,
            "JOBSVC_REQUEST": self.request.request_id,
            **fields,
        }
        parts = [native.field(name, str(v)) for name, v in known.items() if v is not None]
        self.sender.send(native.Entry([b"".join(parts)]))
