"""A pytest plugin: where a run is every half minute, each failure at once, and at the end where the time went.

It prints whole lines only. Those that begin with MARK are for the program that started pytest: `Lines` of
machine.check reads them.
"""

import json
import os
import threading
import time
from collections import Counter, defaultdict

import pytest

from machine import costs

MARK = "\x1e"
_STDOUT = os.dup(1)  # while a test runs pytest has put something else in its place
_EVERY = float(os.environ.get("JOBSVC_PROGRESS", "30"))  # seconds


class Progress:
    """What has run, what runs, and how long each test took, setup and teardown included."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._expected: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._done: set[str] = set()
        self._failed: list[str] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._over = threading.Event()
        self._lock = threading.Lock()

    # -- what pytest tells -----------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if not self._expected:
            self._begin(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        with self._lock:
            self._running[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        with self._lock:
            self._seconds[report.nodeid] += report.duration
            if report.failed:
                self._failed.append(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        with self._lock:
            self._running.pop(nodeid, None)
            self._done.add(nodeid)
            failed = nodeid in self._failed
        if failed:
            self._say(f"FAILED {nodeid.partition('@')[0]}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No letter a test: the lines say more."""
        if report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
            return "passed", "", ""
        return None

    def pytest_sessionfinish(self) -> None:
        self._over.set()

    def pytest_terminal_summary(self) -> None:
        told = {"seconds": self._seconds, "failed": self._failed, "counts": Counter(map(folder, self._seconds))}
        self._write(MARK + json.dumps(told))

    # -- what is said ----------------------------------------------------------------------------

    def _begin(self, ids: list[str]) -> None:
        self._expected = costs.of_tests(ids)
        threading.Thread(target=self._repeat, daemon=True).start()

    def _repeat(self) -> None:
        while not self._over.wait(_EVERY):
            self._say(self.line())

    def line(self) -> str:
        """Where the run is now."""
        now = time.monotonic()
        with self._lock:
            done, failed = len(self._done), len(set(self._failed))
            running = sorted(self._running.items(), key=lambda one: one[1])
            spent = sum(self._expected.get(name, 0) for name in self._done)
        elapsed = now - self._began
        left = f"about {clock(elapsed * (sum(self._expected.values()) / spent - 1))} left" if spent else "just begun"
        words = f"{done}/{len(self._expected)} tests, {failed} failed, {clock(elapsed)} gone, {left}"
        doing = [f"{name.rpartition('::')[2].partition('@')[0]} ({now - since:.0f} s)" for name, since in running]
        return f"{words}; running: {', '.join(doing) or 'nothing'}"

    def _say(self, text: str) -> None:
        self._write(f"{MARK}{text}")

    def _write(self, line: str) -> None:
        with self._lock:
            os.write(_STDOUT, f"{line}\n".encode())


def folder(nodeid: str) -> str:
    """What a test is counted with: its folder, and for those in virtual machines "vm"."""
    path = nodeid.partition("::")[0].split("/")
    return "vm" if nodeid.endswith("@vm") else "/".join(path[:-1]).removeprefix("tests/")


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def pytest_configure(config: pytest.Config) -> None:
    """Once, in the process that hears of all tests."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(), "jobsvc-progress")
