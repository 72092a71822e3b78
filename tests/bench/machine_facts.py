"""What a measurement needs of the machine: the bus, processes, time."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

MANAGER = DBusAddress("/org/jobsvc1", "org.jobsvc1", "org.jobsvc1.Manager")
CONFIG = Path("/etc/jobsvc/jobsvc.conf.d/90-bench.conf")


class Bus:
    """A blocking client of the service, without any of jobsvc's own client code."""

    def __init__(self, fds: bool = False) -> None:
        self.connection: DBusConnection = open_dbus_connection("SYSTEM", enable_fds=fds)

    def call(self, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        reply = self.connection.send_and_get_reply(new_method_call(MANAGER, member, signature, body), timeout=600)
        if reply.header.message_type is MessageType.error:
            raise RuntimeError(f"{member}: {reply.body}")
        return tuple(reply.body)

    def signals(self, member: str) -> Iterator[tuple[Any, ...]]:
        """The service's signals of this name as they come; subscribe before."""
        while True:
            message = self.connection.receive(timeout=600)
            if message.header.fields.get(HeaderFields.member) == member:
                yield tuple(message.body)

    def subscribe(self) -> None:
        self.call("Subscribe")
        MatchRule(type="signal", sender="org.jobsvc1")

    def finish(self, ids: set[str]) -> None:
        """Wait for the end of these jobs."""
        for job_id, state, _ in self.signals("JobChanged"):
            if state in ("completed", "failed", "stopped"):
                ids.discard(job_id)
                if not ids:
                    return


def spec(*command: str, **keys: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    return {"Command": ("as", list(command)), **keys}


@contextmanager
def configured(*lines: str) -> Iterator[None]:
    """The service restarted with these lines in [Manager]."""
    CONFIG.write_text("\n".join(("[Manager]", *lines, "")))
    subprocess.run(["systemctl", "restart", "jobsvc"], check=True)
    try:
        yield
    finally:
        CONFIG.unlink()


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def median(action: Callable[[], object], times: int) -> float:
    return statistics.median(timed(action) for _ in range(times))


def process(*argv: str) -> Callable[[], object]:
    return lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def daemon_pid() -> int:
    done = subprocess.run(["systemctl", "show", "-P", "MainPID", "jobsvc"], check=True, capture_output=True)
    return int(done.stdout)


def memory(pid: int) -> int:
    """Bytes that are this process' own or its share (PSS), as the kernel counts them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def supervisors() -> list[int]:
    """The processes in the launcher's control group, but for the launcher."""
    group = Path("/sys/fs/cgroup/system.slice/jobsvc-launcher.service/cgroup.procs")
    done = subprocess.run(["systemctl", "show", "-P", "MainPID", "jobsvc-launcher"], check=True, capture_output=True)
    return [pid for pid in map(int, group.read_text().split()) if pid not in (0, int(done.stdout))]  # 0: not from here


def wake_ups(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)


def cpus() -> int:
    return os.cpu_count() or 1
