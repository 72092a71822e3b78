"""Where a forked launcher becomes a supervisor: drops what it inherited, forks, locks, works."""

from __future__ import annotations

import _socket
import fcntl
import os
import sys

from jobsvc import control, linux, report, supervisor
from jobsvc.clock import realtime_usec
from jobsvc.process import MainProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def enter(directory: str, listener: int) -> NoReturn:
    """Supervise the run in that directory. Never returns into the launcher's stack."""
    status = 1
    try:
        linux.reap_own_children()
        linux.close_all_but([listener])
        main = MainProcess()
        lock(directory)
        ear = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, listener)
        supervise(directory, ear, main)
        status = 0
    except BaseException:  # noqa: BLE001 (nothing may return into the launcher)
        # To the journal, through the launcher's stderr; the run is "lost" to jobsvcd.
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def lock(directory: str) -> None:
    """Held for life. A record lock, because flock(2) would live on in the forked main process."""
    fd = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def supervise(directory: str, listener: _socket.socket, main: MainProcess) -> None:
    """A request that cannot be understood ends as a report, too."""
    try:
        one = supervisor.Supervisor(directory, listener, main)
    except (OSError, control.ProtocolError) as error:
        run = os.path.basename(directory)
        job_id, _, number = run.partition("-")
        facts = {
            "id": job_id,
            "run": int(number),
            "result": "start-failed",
            "reason": f"the request cannot be read: {error}",
            "begun": False,
            "finished_usec": realtime_usec(),
            "step": "request",
        }
        report.clear(directory, keep=not report.write(supervisor.REPORTS, directory, run, facts))
        return
    one.run()
