"""Whom a job runs as: looked up and checked at the moment it starts, not when it was accepted."""

from __future__ import annotations

import grp
import os
import pwd

from jobsvc.verdict import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from jobsvc.request import Request

# (uid_t) -1 means "leave it" to setresuid, so that a process asked to become it would stay root;
# 65535 is the same in 16 bits.
REFUSED: Final = frozenset({0xFFFF, 0xFFFFFFFF})

STEP: Final = "user"

PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
ROOT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Account:
    """A user as the system knows it now."""

    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, request: Request) -> None:
        uid = check_id(request.uid, "user")
        if uid == 0 and not request.root_allowed:
            raise StartError(STEP, "the request for root is not authorized")
        try:
            entry = pwd.getpwnam(request.user)  # by name: two may share a uid
        except KeyError:
            raise StartError(STEP, f"there is no user {request.user} any more") from None
        if entry.pw_uid != uid:
            raise StartError(STEP, f"{request.user} is uid {entry.pw_uid} now, not {uid}")
        self.uid = uid
        self.gid = check_id(request.gid if request.group_override else entry.pw_gid, "group")
        looked_up = request.group_override and not request.group_granted
        if looked_up and self.gid not in os.getgrouplist(entry.pw_name, entry.pw_gid):
            raise StartError(STEP, f"{request.user} is not in group {group_name(self.gid)} any more")
        self.name = entry.pw_name
        self.home = entry.pw_dir or "/"
        self.shell = entry.pw_shell or "/bin/sh"
        self.groups = [check_id(gid, "group") for gid in os.getgrouplist(self.name, self.gid)]

    def environment(self) -> dict[str, str]:
        """What login(1) would set."""
        return {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "PATH": ROOT_PATH if self.uid == 0 else PATH,
        }


def group_name(gid: int) -> str:
    """Name and number of a group, or the number alone."""
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)


def check_id(number: int, kind: str) -> int:
    """A number that setresuid(2) takes as meant."""
    if not 0 <= number <= 0xFFFFFFFF or number in REFUSED:
        raise StartError(STEP, f"{number} cannot be the id of a {kind}")
    return number
