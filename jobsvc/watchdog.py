"""sd_notify(3) of a service that imports as little as it can: it is ready, and its loop turns."""

from __future__ import annotations

import _socket
import os
import time


class Watchdog:
    """Takes what systemd has told of it from the environment: no child is to answer in our name."""

    def __init__(self) -> None:
        path = os.environ.pop("NOTIFY_SOCKET", "")
        usec, pid = os.environ.pop("WATCHDOG_USEC", "0"), os.environ.pop("WATCHDOG_PID", "")
        self.path = "\0" + path[1:] if path.startswith("@") else path
        watched = self.path and usec.isdecimal() and pid in ("", str(os.getpid()))
        self.milliseconds = int(usec) // 2000 if watched and int(usec) else None
        self.due = 0.0

    def ready(self) -> None:
        self._tell(b"READY=1")

    def alive(self) -> None:
        if self.milliseconds is not None and (now := time.monotonic()) >= self.due:
            self.due = now + self.milliseconds / 2000
            self._tell(b"WATCHDOG=1")

    def _tell(self, text: bytes) -> None:
        """PID 1 has no time for it: no reason to have none for jobs."""
        if not self.path:
            return
        sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            sender.sendto(text, _socket.MSG_DONTWAIT, self.path)
        except OSError:
            pass
        sender.close()
