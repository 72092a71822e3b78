"""The main process as its parent sees it: forked, held, released, signalled, ended, reaped."""

from __future__ import annotations

import os
import select
import signal

from jobsvc import birth, linux, loop
from jobsvc.gate import Gate
from jobsvc.verdict import StartError, Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class MainProcess:
    """Unreaped until reap(): its number cannot belong to anybody else, and signals cannot miss.

    Its gate opens the barrier, brings back what the child has to say, and closes by itself when
    exec succeeds.
    """

    def __init__(self) -> None:
        """Fork first of all: what this process touches before, it would have to touch again."""
        self.stdout, out = os.pipe2(os.O_CLOEXEC)
        self.stderr, err = os.pipe2(os.O_CLOEXEC)
        self.gate, childs_gate = Gate.pair()
        self.ends = (out, err)
        self.pid = os.fork()
        if self.pid == 0:
            birth.be_born(childs_gate, out, err)
        childs_gate.close()
        self.fd = os.pidfd_open(self.pid)
        for fd in (self.gate.fileno(), self.stdout, self.stderr):
            os.set_blocking(fd, False)
        self.devices: dict[str, tuple[int, int]] = {}
        self.failure: StartError | None = None
        self.executing = False
        self.gate_closed = False

    def give_pipes(self, uid: int, gid: int) -> None:
        """Else `echo >/dev/stderr`, which opens the pipe anew, is refused to the user."""
        for fd in self.ends:
            os.fchown(fd, uid, gid)
            os.close(fd)

    def ask_devices(self, uid: int, gid: int, groups: list[int], paths: list[str]) -> None:
        """Have it look up, as the user, which disks the paths are on."""
        self.gate.send({"uid": uid, "gid": gid, "groups": groups, "io_paths": paths})

    def release(self, wanted: dict[str, Any], fds: list[int]) -> None:
        """Open the barrier, with what terminal there is. OSError: the child is not there to go."""
        self.gate.send(wanted, fds)

    def listen(self) -> bool:
        """Take what the child has said; True when it has said its last."""
        while not self.gate_closed:
            try:
                said, _ = self.gate.receive()
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True  # it ended with something of ours unread
            if said is None:
                return True
            self._hear(said)
        return True

    def _hear(self, said: dict[str, Any]) -> None:
        self.executing = said.get("executing", False)
        self.devices = said.get("devices", self.devices)
        if "failed" in said:
            self.failure = StartError(*said["failed"])

    def close_gate(self, events: loop.Loop) -> None:
        """Before release() this ends the child; after exec nobody is behind it."""
        if not self.gate_closed:
            self.gate_closed = True
            events.forget(self.gate.fileno())
            self.gate.close()

    def watch_end(self, events: loop.Loop, callback: Callable[[int], None]) -> None:
        events.watch(self.fd, loop.READ, callback)

    def signal(self, number: int) -> None:
        """A signal to this process alone; harmless when it has ended."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except OSError:
            pass  # ended, or no such signal

    def ended(self) -> Status | None:
        """How it ended, if it has; it stays a zombie, so that journald can still look it up."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if ended is None else Status.of(ended)

    def usage(self) -> dict[str, int]:
        """What the kernel charged to it and to the children it waited for."""
        usage = linux.usage_of_zombie(self.pid)
        if usage is None:
            return {}
        cpu, peak = usage
        # The kernel counts what it was before exec, too: a copy of this process.
        if peak > linux.own_peak() * 5 // 4:
            return {"cpu_usage_nsec": cpu, "memory_peak": peak}
        return {"cpu_usage_nsec": cpu}

    def disk_usage(self) -> dict[str, int]:
        """What it and the children it waited for read from disks and wrote; a zombie is still asked."""
        try:
            lines = linux.read_file(f"/proc/{self.pid}/io").splitlines()
        except OSError:
            return {}
        found = {name: int(value) for name, _, value in (line.partition(b": ") for line in lines)}
        names = {"io_read_bytes": b"read_bytes", "io_write_bytes": b"write_bytes"}
        return {name: found[key] for name, key in names.items() if key in found}

    def wait(self, seconds: float) -> None:
        """Until it has ended, but no longer than that."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(seconds * 1000)

    def reap(self, seconds: float) -> None:
        """Give the number back. What hangs in the kernel even now is left to PID 1."""
        self.wait(seconds)
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass
