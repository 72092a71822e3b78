"""A few runs of nothing by the launcher itself, before it forks the first supervisor.

CPython writes into the code it runs for the first times (counters, specialized instructions) and
keeps what it looked up, and in a forked process each page written to is a page copied. What has
been run here is as fast as it gets, and is not written to again.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import os
import signal
import sys

from jobsvc import cgroup, control, linux, loop, supervisor
from jobsvc.process import MainProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

KEY: Final = "0000000000000000-1"
TIMES: Final = 4 if sys.version_info >= (3, 12) else 10  # code becomes special from the second, in 3.11 from the ninth
PATIENCE: Final = 1.0  # seconds, should it hang

REQUEST: Final = {
    "id": KEY[:16],
    "run": 1,
    "unit": "rehearsal.scope",
    "name": "rehearsal",
    "boot_id": "",
    "request": "launcher",
    "uid": 0,
    "gid": 0,
    "user": "root",
    "root_allowed": True,
    "pam": "no",
    "command": ["true"],
    "environment": ["A=b"],
}


def rehearse(place: str) -> None:
    """Leaves this process as it was. `place` is a directory that is made and removed.

    Should it fail, supervisors are slower, and that is all.
    """
    real = supervisor.NAMESPACE, supervisor.REPORTS
    supervisor.NAMESPACE, supervisor.REPORTS = f"{place}/journal", f"{place}/reports"
    linux.reap_own_children()
    first = os.dup(0)
    try:
        clear(place)
        os.mkdir(place, 0o700)
        os.mkdir(supervisor.REPORTS, 0o700)
        for _ in range(TIMES):
            perform(f"{place}/{KEY}")
        look(cgroup.of_process(os.getpid()) or "/")
    except Exception as error:  # noqa: BLE001 (whatever it is, jobs can be run)
        sys.stderr.write(f"jobsvc: the launcher could not rehearse: {error!r}\n")
        sys.stderr.flush()
    supervisor.NAMESPACE, supervisor.REPORTS = real
    signal.set_wakeup_fd(-1)
    _signal.signal(linux.TERM, linux.DEFAULT)
    _signal.signal(linux.CHILD_ENDED, int(signal.SIG_IGN))
    gc.collect()  # objects close their own descriptors; what is left are bare numbers
    os.closerange(first, linux.LAST_FD)
    clear(place)


def perform(directory: str) -> None:
    """One run, from its request to its report; the job is true(1)."""
    os.mkdir(directory, 0o700)
    with open(f"{directory}/request", "xb") as file:
        file.write(control.dump(REQUEST))
    journal = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    journal.bind(supervisor.NAMESPACE)
    listener = linux.listen(f"{directory}/control")
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    peer.connect(f"{directory}/control")
    peer.send(control.pack_first("hello"))
    peer.send(control.pack("go", control_group=""))
    run = supervisor.Supervisor(directory, listener, MainProcess())

    def take(_events: int) -> None:
        journal.recv(65536)

    run.events.watch(journal.fileno(), loop.READ, take)
    run.events.at("rehearsal", loop.now() + PATIENCE, run.hurry)
    run.run()
    for end in (journal, listener, peer):
        end.close()
    os.unlink(supervisor.NAMESPACE)
    os.unlink(f"{supervisor.REPORTS}/{KEY}")


def look(path: str) -> None:
    """The run had no scope: look at the control group we are in, as a supervisor at its scope."""
    for _ in range(TIMES):
        scope = cgroup.Scope(supervisor.CGROUPS, path)
        scope.holds(os.getpid())
        scope.populated()
        scope.oom_kills()
        scope.usage()


def clear(place: str) -> None:
    """Also what an earlier launcher left that was killed."""
    for directory, _, files in os.walk(place, topdown=False):
        for name in files:
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
