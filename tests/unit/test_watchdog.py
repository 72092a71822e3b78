"""What systemd is told of a service, and what no child hears."""

from __future__ import annotations

import os
import socket
import tempfile

import pytest

from jobsvc.watchdog import Watchdog


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_ready_and_alive_and_children_hear_nothing(abstract: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = f"@jobsvc-test-{os.getpid()}" if abstract else f"{place}/notify"
        systemd.bind(path.replace("@", "\0"))
        systemd.setblocking(False)
        for name, value in (("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", str(os.getpid()))):
            monkeypatch.setenv(name, value)
        watchdog = Watchdog()
        assert not os.environ.keys() & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
        assert watchdog.milliseconds == 15_000
        watchdog.ready()
        for _ in range(100):
            watchdog.alive()
        assert (systemd.recv(99), systemd.recv(99)) == (b"READY=1", b"WATCHDOG=1")
        with pytest.raises(BlockingIOError):
            systemd.recv(99)
    watchdog.ready()  # nobody listens any more


@pytest.mark.parametrize("pid", ["4194305", None])
def test_without_a_watchdog_nothing_wakes_it(pid: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", pid or "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere" if pid else "")
    watchdog = Watchdog()
    assert watchdog.milliseconds is None
    watchdog.ready()
    watchdog.alive()
