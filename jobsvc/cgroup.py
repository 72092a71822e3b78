"""A scope's cgroup: who is in it, what happened to it, what it used; and the ways to end it.

Every read may find the cgroup gone: systemd removes it as soon as it is empty.
"""

from __future__ import annotations

import os
import signal

from jobsvc import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PASSES: Final = 5
HERE: Final = os.O_RDONLY | os.O_CLOEXEC


def of_process(pid: int) -> str | None:
    """The process's cgroup, as in ControlGroup; None if there is no such process.

    Users name theirs as they like: any bytes but a line feed.
    """
    try:
        lines = linux.read_file(f"/proc/{pid}/cgroup").split(b"\n")
    except OSError:
        return None
    return next((os.fsdecode(line[3:]) for line in lines if line.startswith(b"0::")), None)


def within(path: str, group: str) -> bool:
    """Whether the cgroup of a process is this one or below it."""
    path = path.removesuffix(" (deleted)")  # a process that is just ending may outlast its cgroup, and says so
    return path == group or path.startswith(group + "/")


class Scope:
    """The cgroup of one run, by its path below the mount."""

    def __init__(self, mount: str, path: str) -> None:
        self.mount = mount
        self.path = path
        self.directory = os.open(mount + path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.events_fd = os.open("cgroup.events", HERE, dir_fd=self.directory)
        # Kept open and read again: the kernel signals a change on the open file (kernfs). Absent
        # without the memory controller.
        self.memory_fd = self._open("memory.events")
        # Counts for the slice, too, and is still there when the scope is not.
        self.slice_fd = self._open("../memory.events") if self.memory_fd is not None else None
        self.oom_before = count(self.memory_fd, b"oom_kill") or 0
        self.slice_before = count(self.slice_fd, b"oom_kill")
        self.oom_seen = 0

    def _open(self, name: str) -> int | None:
        try:
            return os.open(name, HERE, dir_fd=self.directory)
        except OSError:
            return None

    def populated(self) -> bool | None:
        """Whether a living process is in it; None if the cgroup is gone."""
        found = count(self.events_fd, b"populated")
        return None if found is None else bool(found)

    def oom_count(self) -> int | None:
        """The counter itself; None if the cgroup is gone."""
        return count(self.memory_fd, b"oom_kill")

    def oom_kills(self) -> int:
        """How many processes of the scope the kernel killed for memory, as far as can be known."""
        known = self.oom_count()
        if known is not None:
            self.oom_seen = max(self.oom_seen, known - self.oom_before)
        elif self.oom_seen == 0 and self.slice_before is not None:
            # Gone before it was read. The slice's counter includes the owner's other jobs, but
            # without its rising there was none here.
            after = count(self.slice_fd, b"oom_kill")
            return 0 if after is None else after - self.slice_before
        return self.oom_seen

    def pids(self) -> list[int]:
        """Its processes and those of cgroups below it."""
        found: list[int] = []
        pending = [self.mount + self.path]
        while pending:
            directory = pending.pop()
            try:
                with open(f"{directory}/cgroup.procs", "rb") as file:
                    found += map(int, file.read().split())
                with os.scandir(directory) as entries:
                    pending += [e.path for e in entries if e.is_dir(follow_symlinks=False)]
            except OSError:
                continue
        return found

    def holds(self, pid: int) -> bool:
        """Whether the process is in the scope or below it."""
        return within(of_process(pid) or "", self.path)

    def signal(self, number: int) -> None:
        """Signal every process once; whoever is forked meanwhile is found by another pass."""
        done: set[int] = set()
        for _ in range(PASSES):
            fresh = [pid for pid in self.pids() if pid not in done and pid != 0]
            if not fresh:
                break
            for pid in fresh:
                done.add(pid)
                self._signal_one(pid, number)

    def _signal_one(self, pid: int, number: int) -> None:
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            # Only now is the number bound to one process; look whether it is still ours.
            if self.holds(pid):
                signal.pidfd_send_signal(fd, number)
        except OSError:
            pass
        finally:
            os.close(fd)

    def freeze(self, on: bool) -> None:
        """Halt all processes, or let them go on; `frozen` says when it is done. OSError if the cgroup is gone."""
        linux.write_file("cgroup.freeze", b"1" if on else b"0", self.directory)

    def frozen(self) -> bool | None:
        """Whether all of its processes have been halted; None if the cgroup is gone."""
        found = count(self.events_fd, b"frozen")
        return None if found is None else bool(found)

    def kill(self) -> None:
        """SIGKILL to all at once, so that no fork escapes (Linux 5.14), else one by one."""
        try:
            linux.write_file("cgroup.kill", b"1", self.directory)
        except FileNotFoundError:
            self.signal(signal.SIGKILL)
        except OSError:
            pass  # gone

    def memory_peak(self) -> int | None:
        """Linux 5.19."""
        text = self._read("memory.peak")
        return int(text) if text else None

    def usage(self) -> dict[str, int]:
        """What can be read now, under the report's names."""
        found: dict[str, int] = {}
        for line in self._read("cpu.stat").splitlines():
            if line.startswith(b"usage_usec "):
                found["cpu_usage_nsec"] = int(line.split()[1]) * 1000
        if (peak := self.memory_peak()) is not None:
            found["memory_peak"] = peak
        if devices := self._read("io.stat"):
            pairs = [pair.partition(b"=") for pair in devices.split()]
            found["io_read_bytes"] = sum(int(v) for k, _, v in pairs if k == b"rbytes")
            found["io_write_bytes"] = sum(int(v) for k, _, v in pairs if k == b"wbytes")
        return found

    def _read(self, name: str) -> bytes:
        try:
            return linux.read_file(name, self.directory)
        except OSError:
            return b""


def count(fd: int | None, key: bytes) -> int | None:
    """One number of a "key number" file; None if the file, its cgroup or the key is gone."""
    if fd is None:
        return None
    try:
        words = os.pread(fd, 4096, 0).split()
    except OSError:
        return None
    return int(words[words.index(key) + 1]) if key in words else None
