"""This machine: its programs, its cache, its way to say what is going on."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
_CACHE_OF_ROOT, _CACHE_OF_OTHERS = Path("/var/cache/jobsvc-build"), Path("~/.cache/jobsvc-build").expanduser()
CACHE = Path(os.environ.get("JOBSVC_CACHE", _CACHE_OF_OTHERS if os.geteuid() else _CACHE_OF_ROOT))
SUITES = ("bookworm", "trixie")
DEFAULT_SUITE = "trixie"

# How many times slower than usual a machine may be before a wait that only guards against hanging is given up.
SLOW = 6
_QUICK = 0.01  # seconds of computing that `slowness` takes on a quick machine

# What each program that we start comes in.
_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
    "git": "git",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
}

_started = time.monotonic()
_lock = threading.Lock()


class HostError(Exception):
    """This machine cannot do what was asked; the text says why."""


def say(text: str) -> None:
    """One line of progress, with the seconds since we began."""
    with _lock:
        print(f"[{time.monotonic() - _started:6.1f}s] {text}", file=sys.stderr, flush=True)


def need(*programs: str, packages: Sequence[str] = (), root: bool = True) -> None:
    """Have these programs, and what else is in `packages`, from Debian's archive."""
    if root and os.geteuid() != 0:
        raise HostError("this starts Debian machines and must be run by root")
    wanted = [_PACKAGES[program] for program in programs if shutil.which(program) is None]
    for package in packages:
        status = subprocess.run(
            ["dpkg-query", "-W", "-f", "${db:Status-Status}", package],
            capture_output=True,
            check=False,
        )
        if status.stdout != b"installed":
            wanted.append(package)
    if not wanted:
        return
    if os.geteuid() != 0:
        raise HostError(f"this needs packages that are not there: sudo apt install {' '.join(wanted)}")
    say(f"installing {' '.join(wanted)} on this machine")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quietly("apt-get", "update", env=env)
    quietly("apt-get", "install", "-y", "--no-install-recommends", *wanted, env=env)


def quietly(*argv: str | Path, env: Mapping[str, str] | None = None, progress: str | None = None) -> None:
    """Run it; what it says is shown only if it fails, but for its "I:" lines with `progress`."""
    said: list[str] = []
    with subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if progress is not None and line.startswith("I: ") and "hook" not in line:
                say(f"{progress}: {line[3:].strip()}")
    if process.returncode:
        raise HostError(f"{argv[0]} failed with status {process.returncode}:\n{''.join(said)}")


def asks_systemd() -> bool:
    """Does this machine run systemd, and is there a bus to ask it for a unit?"""
    return os.path.isdir("/run/systemd/system") and os.path.exists("/run/dbus/system_bus_socket")


def slowness() -> float:
    """How much slower than a quick machine this one computes now; at least 1. For promises about computing time."""
    begin = time.thread_time()
    for _ in range(30):
        json.dumps([{"name": str(number), "value": number} for number in range(1000)])
    return max(1.0, (time.thread_time() - begin) / _QUICK)
