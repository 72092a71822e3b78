"""PrivateTmp=, PrivateNetwork=, ReadOnlyRoot=: bubblewrap makes the sandbox, and the main process enters it.

Run below bwrap the job would be a child of it: its signals would not reach the program, and an end by
a signal would come back as an exit status. So bwrap holds the namespaces for a moment, around a shell
that waits, and the main process joins them (setns(2)) and goes on to its exec by itself.
"""

from __future__ import annotations

import errno
import os

from jobsvc import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final

BWRAP: Final = "/usr/bin/bwrap"
KEYS: Final = ("PrivateTmp", "PrivateNetwork", "ReadOnlyRoot")  # NoNewPrivileges needs no sandbox
HOLD: Final = ("/bin/sh", "-c", "echo $$; read -r end")


def missing(keys: Collection[str]) -> str:
    """Of these keys one that cannot be had here, as far as can be seen; or nothing."""
    return next((name for name in KEYS if name in keys and not os.path.exists(BWRAP)), "")


def options(keys: Collection[str]) -> list[str]:
    """bwrap(1)'s, with everything of the machine in it that is not taken away."""
    if "ReadOnlyRoot" in keys:
        found = ["--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--dev-bind", "/proc", "/proc"]
    else:
        found = ["--dev-bind", "/", "/"]
    if "PrivateTmp" in keys:
        found += ["--tmpfs", "/tmp", "--tmpfs", "/var/tmp"]
    if "PrivateNetwork" in keys:
        found += ["--unshare-net"]
    return found


def enter(keys: Collection[str]) -> None:
    """Have a sandbox made, by the calling process' own rights, and move into it. Raises OSError with bwrap's reason."""
    waits, end = os.pipe()
    told, tell = os.pipe()
    moves = [(os.POSIX_SPAWN_DUP2, waits, 0), (os.POSIX_SPAWN_DUP2, tell, 1), (os.POSIX_SPAWN_DUP2, tell, 2)]
    try:
        holder = os.posix_spawn(BWRAP, ["bwrap", *options(keys), "--", *HOLD], {}, file_actions=moves)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "bubblewrap is not installed here") from None
    os.close(tell)
    os.close(waits)
    said = os.read(told, 4096)
    if said.strip().isdigit():
        linux.join_namespaces(int(said), "PrivateNetwork" in keys)
    os.close(end)
    os.close(told)
    os.waitpid(holder, 0)
    if not said.strip().isdigit():
        raise OSError(errno.EPERM, said.decode("utf-8", "replace").strip() or "bubblewrap said nothing")
    linux.forbid_privileges()
