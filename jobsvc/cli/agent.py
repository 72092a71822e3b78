"""polkit's question, put in this terminal by pkttyagent as systemctl does it."""

from __future__ import annotations

import os
import select
import signal

PATIENCE_MSEC = 5000
# It talks to the terminal itself. Our output may be a pipe, which would stay open as long as it lives.
WITH_US = ["setpriv", "--pdeathsig", "TERM", "--"]  # also when we are killed (prctl(2), PR_SET_PDEATHSIG)
NOWHERE = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]


class TerminalAgent:
    """Starts pkttyagent when the first question comes up, and ends it with us."""

    def __init__(self) -> None:
        self._pid = 0

    def open(self) -> None:
        """Return when questions can be answered; a desktop's own agent has precedence."""
        if self._pid:
            return
        read, write = os.pipe()
        os.set_inheritable(write, True)
        command = [*WITH_US, "pkttyagent", "--notify-fd", str(write), "--fallback"]
        try:
            self._pid = os.posix_spawnp(command[0], command, os.environ, file_actions=NOWHERE)
        except OSError:
            pass  # then only an agent that is there already can ask
        os.close(write)
        if self._pid:
            poll = select.poll()
            poll.register(read, select.POLLHUP)
            poll.poll(PATIENCE_MSEC)  # it closes its end once it is registered
        os.close(read)

    def close(self) -> None:
        """Nothing more will be asked."""
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)  # not reaped yet, so the pid is its own
            os.kill(self._pid, signal.SIGCONT)  # it may have been stopped for using the terminal
            os.waitpid(self._pid, 0)
            self._pid = 0
