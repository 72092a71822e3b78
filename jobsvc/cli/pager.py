"""Long output through a pager, as systemctl does it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import split

from jobsvc.cli.session import Session

RAISED = {"SUDO_UID", "PKEXEC_UID", "DOAS_USER"}  # how to tell that somebody else's rights are used


@contextmanager
def paged(session: Session) -> Iterator[None]:
    """On a terminal, what is written in the block goes through the pager.

    How it is to look, and what may ask for a password, comes before: then the terminal is there.
    """
    command = _command() if session.pager and sys.stdout and sys.stdout.isatty() else []
    pager = _start(command)
    if pager is None:
        yield
        return
    sys.stdout.flush()
    kept = {fd: os.dup(fd) for fd in (1, 2) if os.isatty(fd)}
    try:
        for fd in kept:
            os.dup2(pager[1], fd)
        os.close(pager[1])
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # the reader has seen enough
    finally:
        for fd, terminal in kept.items():
            os.dup2(terminal, fd)
            os.close(terminal)
        _wait(pager[0])


def _command() -> list[str]:
    secure = _secure()
    for name in ("SYSTEMD_PAGER", "PAGER"):
        if name in os.environ and not secure:
            try:
                words = split(os.environ[name])
            except ValueError:  # an unbalanced quote is no pager
                words = []
            return [] if words == ["cat"] else words
        if os.environ.get(name) in ("", "cat"):
            return []
    return ["less"]


def _secure() -> bool:
    """Under sudo a pager with a shell escape would be more than was granted (CVE-2023-26604)."""
    given = os.environ.get("SYSTEMD_PAGERSECURE")
    if given is not None:
        return given.lower() not in ("0", "no", "false", "off", "n", "f")
    return bool(RAISED & os.environ.keys()) or os.geteuid() != os.getuid()


def _start(command: list[str]) -> tuple[int, int] | None:
    """The pager's pid and the descriptor it reads from; None if there is no such program."""
    if not command:
        return None
    environment = dict(os.environ)
    environment["LESS"] = os.environ.get("SYSTEMD_LESS", "FRSXMK")
    environment["LESSCHARSET"] = os.environ.get("SYSTEMD_LESSCHARSET", "utf-8")
    if _secure():
        environment["LESSSECURE"] = "1"
    read, write = os.pipe()
    try:
        pid = os.posix_spawnp(command[0], command, environment, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)])
    except OSError:
        os.close(write)
        return None
    finally:
        os.close(read)
    return pid, write


def _wait(pid: int) -> None:
    while True:
        try:
            os.waitpid(pid, 0)
            return
        except KeyboardInterrupt:
            continue  # Ctrl-C in a pager is the pager's
