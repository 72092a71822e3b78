"""The launcher: imports everything once, then forks one supervisor per run, and porters.

A fork of a warm interpreter costs about a millisecond where a fresh one costs fifteen. It stands
apart from jobsvcd because whatever confines a service is inherited by what it forks, and a job
must inherit none of it.
"""

from __future__ import annotations

import _socket
import os
import pwd
import select
import sys

from jobsvc import control, entry, heap, linux, pam, porter, rehearsal, watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

RUNS = "/run/jobsvc/runs"
LISTEN_FD: Final = 3
MAX_CONNECTIONS: Final = 16


class Launcher:
    """The loop. It keeps no state about runs: a supervisor stands on its own once it is forked."""

    def __init__(self, listener: _socket.socket) -> None:
        self.listener = listener
        self.connections: dict[int, _socket.socket] = {}
        self.poll = select.poll()
        self.poll.register(listener.fileno(), select.POLLIN)
        self.watchdog = watchdog.Watchdog()

    def run(self) -> None:
        """Serve for ever. SIGTERM ends the process at once; its supervisors stay.

        Supervisors that end are reaped by the kernel, because SIGCHLD is ignored. How they ended
        does not matter: their reports and locks tell.
        """
        heap.settle()
        self.watchdog.ready()
        while True:
            events = self.poll.poll(self.watchdog.milliseconds)
            self.watchdog.alive()
            for fd, _ in events:
                if fd == self.listener.fileno():
                    self.accept()
                else:
                    self.serve(self.connections[fd])

    def accept(self) -> None:
        """Take a connection of root's; nobody else has business here."""
        try:
            connection = linux.accept(self.listener)
        except OSError:
            return
        if control.peer_uid(connection) != 0 or len(self.connections) >= MAX_CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self.connections[connection.fileno()] = connection
        self.poll.register(connection.fileno(), select.POLLIN)

    def serve(self, connection: _socket.socket) -> None:
        """Answer one packet. Whatever is wrong with it, the next is served."""
        fds: list[int] = []
        try:
            data, fds = control.receive(connection)
            if not data:
                self.drop(connection)
                return
            connection.send(self.answer(control.unpack_first(data), fds))
        except control.ProtocolError as error:
            self.reply_error(connection, str(error))
        except BlockingIOError:
            pass
        except OSError:
            self.drop(connection)
        except Exception as error:  # noqa: BLE001 (jobs cannot begin without us)
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            self.reply_error(connection, repr(error))
        finally:
            for fd in fds:
                os.close(fd)  # jobsvcd's own: sockets

    def answer(self, packet: dict[str, Any], fds: list[int]) -> bytes:
        """Launch what the packet names. A descriptor comes for a porter only, which is asked over it."""
        run = packet.get("run")
        if packet["type"] == "porter" and len(fds) == 1:
            try:
                return control.pack_first("launched", run=run, pid=self.fork_porter(fds[0]))
            except OSError as error:
                return control.pack_first("error", run=run, text=f"cannot start a porter: {error.strerror or error}")
        if packet["type"] != "launch" or not control.is_run_key(run):
            return control.pack_first("error", run=run, text="not a launch of a run")
        if fds:
            return control.pack_first("error", run=run, text="a launch takes no descriptor")
        try:
            pid = self.launch(f"{RUNS}/{run}")
        except OSError as error:
            text = f"cannot start a supervisor: {error.strerror or error}"
            return control.pack_first("error", run=run, text=text)
        return control.pack_first("launched", run=run, pid=pid)

    def fork_porter(self, channel: int) -> int:
        pid = os.fork()
        if pid == 0:
            porter.enter(channel)
        return pid

    def launch(self, directory: str) -> int:
        """Fork the supervisor of the run in that directory.

        Its control socket listens before the fork, so that jobsvcd can connect as soon as it hears
        the pid. The ticket is there once: a request that was asked for twice, by a jobsvcd that was
        killed and by the next one, is launched once.
        """
        os.unlink(f"{directory}/ticket")
        listener = linux.listen(f"{directory}/control")
        try:
            pid = os.fork()
            if pid == 0:
                entry.enter(directory, listener.fileno())
            return pid
        finally:
            listener.close()

    def reply_error(self, connection: _socket.socket, text: str) -> None:
        try:
            connection.send(control.pack_first("error", run=None, text=text))
        except OSError:
            self.drop(connection)

    def drop(self, connection: _socket.socket) -> None:
        self.poll.unregister(connection.fileno())
        del self.connections[connection.fileno()]
        connection.close()


def inherited_listener() -> _socket.socket:
    """The socket that systemd opened for us (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        sys.exit("jobsvc-launcher: started by jobsvc-launcher.socket only (exactly one socket)")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    os.set_inheritable(LISTEN_FD, False)
    return _socket.socket(fileno=LISTEN_FD)


def main() -> None:
    """The process behind jobsvc-launcher.service."""
    listener = inherited_listener()
    listener.setblocking(False)
    os.umask(0o177)  # what we make in run directories is ours alone; a job has its own
    linux.harden()
    linux.one_heap()
    pam.load()
    # The first look-up makes libc load its NSS modules: once here instead of in every supervisor.
    pwd.getpwuid(0)
    os.getgrouplist("root", 0)
    rehearsal.rehearse(f"{os.path.dirname(RUNS)}/rehearsal")
    Launcher(listener).run()


if __name__ == "__main__":
    main()
