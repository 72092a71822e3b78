"""Cgroups for machines on a host without systemd: each needs one of its own, in each hierarchy systemd looks at.

nspawn makes "payload" in the cgroup it runs in. Two machines that share it share every unit's cgroup,
and each boot removes those that are empty at that moment under the other.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from machine.host import asks_systemd

_TOP = Path("/sys/fs/cgroup")


def joining(name: str) -> Callable[[], None]:
    """Make the cgroup of the machine of that name; what is returned moves the process that calls it there."""
    places = list(_places(name))
    for place in places:
        place.mkdir(exist_ok=True)

    def join() -> None:
        for place in places:
            (place / "cgroup.procs").write_text("0")

    return join


def remove(name: str) -> None:
    """Remove it when the machine is gone, and what is left of one whose nspawn was killed."""
    for place in _places(name):
        with contextlib.suppress(OSError):  # not there, or cgroup v1
            (place / "cgroup.kill").write_text("1")
        for directory, _, _ in os.walk(place, topdown=False):
            with contextlib.suppress(OSError):  # a last process may be on its way out
                os.rmdir(directory)


def _places(name: str) -> Iterator[Path]:
    if not asks_systemd():
        for hierarchy in (_TOP, _TOP / "unified", _TOP / "systemd"):
            if (hierarchy / "cgroup.procs").exists():
                yield hierarchy / f"jobsvc-{name}"
