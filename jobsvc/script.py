"""A script instead of a command: its text as a file, and the interpreter that reads it.

A real file, because interpreters look at where a script lies (node resolves /dev/fd/3 to a name that
is not there). The kernel is not asked to execute it: /run is mounted noexec on Debian.
"""

from __future__ import annotations

import os

from jobsvc.verdict import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from jobsvc.account import Account

STEP: Final = "script"
FIRST_LINE: Final = 4096  # the kernel itself reads 256 bytes


def path_of(directory: str) -> str:
    """Where the script of the run with that directory lies: beside the run directories, which only root enters."""
    runs, run = os.path.split(directory)
    return f"{os.path.dirname(runs)}/scripts/{run}"


def place(directory: str, text: str, account: Account) -> str:
    """Write it for the user to read; its path. Raises StartError."""
    path = path_of(directory)
    folder = os.path.dirname(path)
    try:
        if not os.path.isdir(folder):
            os.mkdir(folder)
            os.chmod(folder, 0o711)  # a script is found by whoever knows its name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(text.encode("utf-8", "surrogateescape"))
            while view:
                view = view[os.write(fd, view) :]
            os.fchown(fd, account.uid, account.gid)
            os.fchmod(fd, 0o500)
        finally:
            os.close(fd)
    except OSError as error:
        remove(directory)
        raise StartError(STEP, f"the script cannot be written to {path}: {error.strerror}", error.errno) from None
    return path


def remove(directory: str) -> None:
    """It has been run."""
    try:
        os.unlink(path_of(directory))
    except OSError:
        pass


def interpreter(text: str, shell: str) -> list[str]:
    """What reads it, as execve(2) does: after #! a program, and all that follows it as one argument."""
    if not text.startswith("#!"):
        return [shell]
    line = text[2:FIRST_LINE].partition("\n")[0].strip(" \t")
    if line.endswith("\r"):
        raise StartError(STEP, "the #! line ends in a carriage return: is this a file from DOS or Windows?")
    words = line.replace("\t", " ").split(" ", 1) if line else []
    if not words:
        raise StartError(STEP, "the #! line names no interpreter")
    return [words[0], line[len(words[0]) :].strip(" \t")] if len(words) > 1 else words
