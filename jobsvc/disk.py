"""From a path to the disk it is on: what an I/O limit can be put on.

systemd skips, with a warning, what it cannot resolve; a job with a limit that is not in force would
start. So it is resolved here, as the user, and refused by name. The mapping is systemd's own:
partition to disk, a device-mapper device on one disk to that disk.
"""

from __future__ import annotations

import errno
import os
import stat

from jobsvc import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

BLOCK: Final = "/sys/dev/block"


def device_of(path: str) -> tuple[int, int]:
    """Major and minor of the block device that holds the file, or that the file is."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            number = status.st_rdev
        elif os.major(status.st_dev):
            number = status.st_dev
        else:
            number = _mounted_from(fd)
    finally:
        os.close(fd)
    return os.major(number), os.minor(number)


def _mounted_from(fd: int) -> int:
    """btrfs has device numbers of its own; its mount knows the disk. Others have none to limit."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        mount = next(line.split()[1] for line in info if line.startswith(b"mnt_id:"))
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            if line.split(b" ", 1)[0] == mount:
                kind, source = line.partition(b" - ")[2].split(b" ")[:2]
                if kind == b"btrfs" and stat.S_ISBLK((status := os.stat(source)).st_mode):
                    return status.st_rdev
                raise OSError(errno.ENOTBLK, f"it is on {kind.decode()}, not on a disk")
    raise OSError(errno.ENOTBLK, "it is on no disk that can be limited")


def whole_disk(major: int, minor: int) -> str:
    """The path to give to systemd: /dev/block/M:N of the whole disk."""
    node = os.path.realpath(f"{BLOCK}/{major}:{minor}", strict=True)
    node = _disk(node)
    while len(slaves := _slaves(node)) == 1:
        node = slaves.pop()
    return f"/dev/block/{linux.read_file(f'{node}/dev').decode().strip()}"


def _disk(node: str) -> str:
    return os.path.dirname(node) if os.path.exists(f"{node}/partition") else node


def _slaves(node: str) -> set[str]:
    """The disks below a device-mapper device (LUKS, LVM)."""
    try:
        names = os.listdir(f"{node}/slaves")
    except FileNotFoundError:
        return set()
    return {_disk(os.path.realpath(f"{node}/slaves/{name}")) for name in names}
