"""Standard input of jobs that have not begun: each with a porter that keeps it, also while we are not there.

A keeper listens at a socket of its own, which is named as the job. The main process, still root, connects
there, and gets the descriptor when it is the user.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Container
from pathlib import Path
from typing import Final

from jobsvc import control
from jobsvc.bus import Call
from jobsvc.errors import Internal, Quota
from jobsvc.porters import Porter, PorterGone, Porters, hung_up

log = logging.getLogger(__name__)

FOLDER = Path("/run/jobsvc/inputs")
KEPT_WITHIN: Final = 5.0  # seconds


class Inputs:
    """Which jobs have one, by id."""

    def __init__(self, porters: Porters) -> None:
        self._porters = porters
        self._kept: dict[str, Porter] = {}
        FOLDER.mkdir(mode=0o700, exist_ok=True)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._kept and not self._kept[str(job_id)].gone.done()

    def room(self, uid: int, limit: int) -> None:
        """Quota if that user may not have one more. Root is not counted."""
        if uid and self._porters.number(uid) >= limit:
            raise Quota(
                f"you have {limit} standard inputs of jobs that have not begun, or that cannot be closed;"
                f" MaxInputsPerUser={limit} is reached"
            )

    async def keep(self, job_id: str, call: Call) -> None:
        """Have the descriptor that came with the call kept for the job."""
        porter = call.parcel
        assert isinstance(porter, Porter)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
                door.bind(str(FOLDER / job_id))
                await porter.ask("keep", door.fileno(), KEPT_WITHIN)
            call.parcel = None
            porter.dismiss()
            self._kept[job_id] = porter
        except (OSError, PorterGone) as error:
            raise Internal(f"standard input cannot be kept: {str(error) or 'its process has ended'}") from None
        finally:
            if job_id not in self._kept:
                (FOLDER / job_id).unlink(missing_ok=True)

    def discard(self, job_id: str) -> None:
        """It is not needed any more; or there is none, which is as well."""
        if porter := self._kept.pop(job_id, None):
            porter.close()
            (FOLDER / job_id).unlink(missing_ok=True)

    # From one life of the service to the next

    def recall(self) -> None:
        """Find the keepers that an earlier life of the service left."""
        for path in FOLDER.iterdir():
            if (found := _keeper(path)) is None:
                path.unlink(missing_ok=True)
                continue
            porter, uid = found
            self._kept[path.name] = porter
            self._porters.count(porter, uid)

    def keep_only(self, jobs: Container[str]) -> None:
        for job_id in list(self._kept):
            if job_id not in jobs:
                log.info("nobody waits for the standard input of job %s any more", job_id)
                self.discard(job_id)


def _keeper(path: Path) -> tuple[Porter, int] | None:
    """The process that listens there, and whose descriptor it has."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.setblocking(False)
        end.connect(str(path))
        pid, uid = control.peer(end)
        porter = Porter(pid)
        if not hung_up(end):  # it lives, so the number is its own
            return porter, uid
        porter.forget()
    return None
