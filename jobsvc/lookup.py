"""Which disks I/O paths are on, when the job runs already: looked up by a child with the user's rights.

The path may lie where the user can make a look-up hang: the child hangs then, and not its supervisor.
"""

from __future__ import annotations

import os
import signal

from jobsvc import birth, disk, loop
from jobsvc.gate import Gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from jobsvc.account import Account

PATIENCE: Final = 10.0  # seconds


class Lookup:
    """Calls `found` once: with an error or "", and path → /dev/block/M:N."""

    def __init__(
        self, events: loop.Loop, account: Account, paths: list[str], found: Callable[[str, dict[str, str]], None]
    ) -> None:
        self.events = events
        self.found = found
        self.ended = False  # the child; one that hangs in the kernel does not
        self.gate, theirs = Gate.pair()
        self.pid = os.fork()
        if self.pid == 0:
            birth.be_born(theirs, 1, 2)
        theirs.close()
        self.fd = os.pidfd_open(self.pid)
        events.watch(self.gate.fileno(), loop.READ, self._hear)
        events.at(f"lookup {self.pid}", loop.now() + PATIENCE, self._give_up)
        wanted = {"uid": account.uid, "gid": account.gid, "groups": account.groups, "io_paths": paths}
        self.gate.send(wanted)

    def _hear(self, _events: int) -> None:
        error = "the process that looked for the disks ended"
        disks: dict[str, str] = {}
        try:
            said, _ = self.gate.receive()
            if said and "failed" in said:
                error = said["failed"][1]
            elif said:
                error, disks = self._whole(said["devices"])
        except OSError:
            pass
        self._end(error, disks)

    @staticmethod
    def _whole(devices: dict[str, Any]) -> tuple[str, dict[str, str]]:
        disks = {}
        for path, (major, minor) in devices.items():
            try:
                disks[path] = disk.whole_disk(major, minor)
            except OSError as error:
                return f"cannot find the disk of {path}: {error.strerror}", {}
        return "", disks

    def _give_up(self) -> None:
        signal.pidfd_send_signal(self.fd, signal.SIGKILL)
        self._end(f"its paths could not be looked up within {PATIENCE:.0f} s", {})

    def _end(self, error: str, disks: dict[str, str]) -> None:
        self.events.cancel(f"lookup {self.pid}")
        self.events.forget(self.gate.fileno())
        self.gate.close()  # the child ends
        self.events.watch(self.fd, loop.READ, self._reap)
        self.found(error, disks)

    def _reap(self, _events: int) -> None:
        self.ended = True
        self.events.forget(self.fd)
        os.close(self.fd)
        os.waitpid(self.pid, 0)
