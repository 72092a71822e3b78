"""The main process between fork and exec: root at the barrier, the user after it.

Everything here runs in the forked child. It knows nothing of its run until the gate opens, and ends
in exec or in _exit; a step that fails is told with its name, an errno and a sentence.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import termios

from jobsvc import disk, linux, pam, porter, sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from jobsvc.gate import Gate

FIRST_FREE: Final = 3
NOT_FOUND: Final = 127  # as a shell
NOT_STARTED: Final = 126


class Step:
    """What is being done, for the message if it fails."""

    def __init__(self) -> None:
        self.name = "prepare"
        self.what = "cannot prepare the process"

    def at(self, name: str, what: str) -> None:
        self.name, self.what = name, what


def be_born(gate: Gate, stdout: int, stderr: int) -> NoReturn:
    """From a forked supervisor to the user's program."""
    status = NOT_STARTED
    step = Step()
    try:
        detach(gate.fileno(), stdout, stderr)
        wanted, fds = gate.receive()
        if wanted is not None and "io_paths" in wanted:
            gate.send({"devices": devices(step, wanted)})
            wanted, fds = gate.receive()
        if wanted is None:
            os._exit(status)  # nobody wants us any more
        if fds:
            take_terminal(step, fds[0])
        keeper = None
        if wanted["stdin"] is not None:
            step.at("stdin", "cannot get its standard input")
            keeper = porter.ask(wanted["stdin"])
        become_user(step, wanted)
        if wanted["sandbox"]:
            step.at("sandbox", f"cannot make the sandbox for {', '.join(wanted['sandbox'])}")
            sandbox.enter(wanted["sandbox"])
        if wanted["no_new_privileges"]:
            linux.forbid_privileges()
        enter_directory(step, wanted["directory"], wanted["home"])
        if keeper is not None:  # by the user, and last of all: whatever it is
            step.at("stdin", "cannot get its standard input")
            porter.get(keeper, 0)
        step.at("exec", f"cannot execute {wanted['command'][0]}")
        gate.send({"executing": True})
        execute(wanted["command"], wanted["environment"])
    except OSError as error:
        if step.name == "exec" and error.errno == errno.ENOENT:
            status = NOT_FOUND
        fail(gate, step, error.errno, error.strerror or str(error))
    except ValueError as error:  # a NUL byte
        fail(gate, step, errno.EINVAL, str(error))
    except Exception as error:  # noqa: BLE001 (a mistake of ours must be seen, too)
        fail(gate, step, None, repr(error))
    finally:
        os._exit(status)


def fail(gate: Gate, step: Step, number: int | None, why: str) -> None:
    gate.send({"failed": (step.name, f"{step.what}: {why}", number)})


def detach(gate: int, stdout: int, stderr: int) -> None:
    """Leave everything of the launcher's and the supervisor's behind."""
    linux.reset_signals()
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.closerange(FIRST_FREE, gate)
    os.closerange(gate + 1, linux.LAST_FD)
    linux.join_session_keyring()
    try:
        linux.write_file("/proc/self/oom_score_adj", b"0")  # the launcher's is -900
    except OSError:
        pass  # no /proc/sys-like freedom in some containers; the job is more precious then


def take_terminal(step: Step, fd: int) -> None:
    """Standard descriptors and controlling terminal of the session we lead."""
    step.at("terminal", "cannot take the terminal")
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    for number in range(FIRST_FREE):
        os.dup2(fd, number)
    os.close(fd)


def devices(step: Step, wanted: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Which devices the job's I/O limits are about: looked up with the user's rights."""
    found: dict[str, tuple[int, int]] = {}
    os.setgroups(wanted["groups"])
    os.setresgid(-1, wanted["gid"], -1)
    os.setresuid(-1, wanted["uid"], -1)
    for path in wanted["io_paths"]:
        step.at("io-path", f"cannot find the disk of {path}")
        found[path] = disk.device_of(path)
    os.setresuid(-1, 0, -1)
    os.setresgid(-1, 0, -1)
    return found


def become_user(step: Step, wanted: dict[str, Any]) -> None:
    """Limits first, they need root; then the ids, and proof that there is no way back."""
    step.at("limits", "cannot set the resource limits")
    if wanted["loginuid"] is not None:
        pam.set_loginuid(wanted["loginuid"])
    for number, limits in wanted["limits"].items():
        resource.setrlimit(number, limits)
    if wanted["nice"]:
        os.setpriority(os.PRIO_PROCESS, 0, wanted["nice"])
    os.umask(wanted["umask"])

    step.at("identity", f"cannot become user {wanted['uid']}")
    uid, gid = wanted["uid"], wanted["gid"]
    os.setgroups(wanted["groups"])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise OSError(errno.EPERM, "the kernel did not take the ids")
    if uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise OSError(errno.EPERM, "root could be regained")


def enter_directory(step: Step, directory: str | None, home: str) -> None:
    """The one asked for, or home, or if that is missing the root directory."""
    step.at("working-directory", f"cannot change to {directory}")
    if directory is not None:
        os.chdir(directory)
        return
    try:
        os.chdir(home)
    except OSError:
        os.chdir("/")


def execute(command: list[str], environment: dict[str, str]) -> None:
    """PATH is searched with the user's rights; the first error that is not "no" counts."""
    name = command[0]
    if "/" in name:
        os.execve(name, command, environment)  # noqa: S606 (a shell is not wanted)
    refused: OSError | None = None
    for directory in environment["PATH"].split(":"):
        try:
            os.execve(f"{directory or '.'}/{name}", command, environment)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = refused or error
    raise refused or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
