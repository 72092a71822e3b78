"""What Linux has and Python's os module has not: a few calls of libc and of the kernel.

System call numbers differ by machine; on one that is not listed here the call says ENOSYS.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.signal makes enums of what it is given
import _socket
import ctypes
import errno
import fcntl
import os
import resource
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
CLONE_FILES: Final = 0x00000400
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
KEYCTL_JOIN_SESSION_KEYRING: Final = 1
CAPABILITY_VERSION_3: Final = 0x20080522
M_ARENA_MAX: Final = -8
FIONREAD: Final = 0x541B
SIOCOUTQ: Final = 0x5411

# machine: (keyctl, waitid), from the kernel's asm/unistd.h
_NUMBERS: Final = {
    "x86_64": (250, 247),
    "aarch64": (219, 95),
    "riscv64": (219, 95),
    "loongarch64": (219, 95),
    "ppc64le": (271, 272),
    "s390x": (280, 281),
    "i686": (288, 284),
    "armv7l": (311, 280),
}
_KEYCTL, _WAITID = _NUMBERS.get(os.uname().machine, (-1, -1))

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

BACKLOG: Final = 16
LAST_WORDS: Final = 5.0  # seconds
FIRST_FREE: Final = 3
LAST_FD: Final = 0x7FFFFFFF
NOGROUP: Final = 65534

# What the launcher and supervisors ignore, and Python itself. Ignored signals stay ignored across
# exec. The launcher's children are reaped by the kernel as long as SIGCHLD is ignored.
IGNORED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD)
TO_RESET: Final = tuple(map(int, (*IGNORED, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)))

DEFAULT: Final = int(signal.SIG_DFL)
TERM: Final = int(signal.SIGTERM)
CHILD_ENDED: Final = int(signal.SIGCHLD)

LIMITS: Final[dict[str, int]] = {
    name.removeprefix("RLIMIT_"): getattr(resource, name)
    for name in sorted(vars(resource))
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}

# What our unit was given; a job starts from these, whatever we set for ourselves.
limits_given: dict[str, tuple[int, int]] = {}


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def harden() -> None:
    """Once, in the launcher: no core dump of ours, no ptrace by users, nothing to inherit.

    exec makes a process dumpable again, so a job is not touched by the first; the core limit is
    given back to it by name (limits_given).
    """
    limits_given.update((name, resource.getrlimit(number)) for name, number in LIMITS.items())
    hard = limits_given["CORE"][1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    undumpable()
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _set_capabilities([None, None, 0])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        try:
            signal.signal(number, signal.SIG_IGN if number in IGNORED else signal.SIG_DFL)
        except OSError:
            pass  # the two that libc keeps for itself


def close_all_but(keep: list[int]) -> None:
    """What was inherited is not ours, but for these, in order, and the standard descriptors."""
    first = FIRST_FREE
    for fd in keep:
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, LAST_FD)


def unshare_files() -> None:
    """Give this thread a table of descriptors of its own, a copy of the one it shared.

    Where it hangs with one of them, the others of the process close theirs, and end, without it.
    """
    _check(_libc.unshare(CLONE_FILES))


def one_heap() -> None:
    """Have all threads use one heap (mallopt(3)): what a second one would take is more than they need."""
    _libc.mallopt(M_ARENA_MAX, 1)


def undumpable() -> None:
    """No core dump of this process, and no ptrace by others of its user: it holds what is secret."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))


def reset_signals() -> None:
    """In a child, before exec: nothing ignored, nothing blocked."""
    for number in TO_RESET:
        _signal.signal(number, DEFAULT)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def wake_on_term(fd: int) -> None:
    """SIGTERM does nothing but write a byte into fd, which a loop can wait for."""
    signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    _signal.signal(TERM, _noted)


def _noted(_number: int, _frame: object) -> None:
    """The byte says it."""


def reap_own_children() -> None:
    """In a supervisor: its main process is to stay until it is asked for."""
    _signal.signal(CHILD_ENDED, DEFAULT)


def limits() -> dict[str, tuple[int, int]]:
    """Every resource limit of this process, by name: (soft, hard)."""
    return {name: resource.getrlimit(number) for name, number in LIMITS.items()}


def limit_changes(wanted: dict[str, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """What a job must set, by number: what is wanted beyond what our unit was given, and CORE."""
    changes = {"CORE": limits_given["CORE"], **wanted}
    return {LIMITS[name]: pair for name, pair in changes.items() if name in LIMITS}


def rlimit(value: int) -> int:
    """A resource limit of a spec as Python's setrlimit takes it: there infinity is -1."""
    return resource.RLIM_INFINITY if value >= 2**63 else value


def above(limit: int, hard: int) -> bool:
    """Whether a resource limit is more than a hard one; infinity is -1 or beyond all numbers that matter."""
    return hard >= 0 and not 0 <= limit <= hard


def set_limits(wanted: dict[str, tuple[int, int]], current: dict[str, tuple[int, int]]) -> None:
    """Set the ones that differ. A limit that cannot be raised again stays: it is our own loss."""
    for name, number in LIMITS.items():
        if name in wanted and tuple(wanted[name]) != current.get(name):
            soft, hard = wanted[name]
            try:
                resource.setrlimit(number, (soft, hard))
            except (OSError, ValueError):
                pass  # a container without CAP_SYS_RESOURCE


def join_session_keyring() -> None:
    """A new, empty, anonymous session keyring.

    Made by root: its keys' quota is root's (1,000,000), a user's own is 200, which 200 running jobs
    would use up. Whoever holds a session keyring has all rights to it.
    """
    _syscall(_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None)  # may fail: containers without keyrings


def forbid_privileges() -> None:
    """From now on no exec of this process or of its children gains any: setuid and the like count for nothing."""
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def join_namespaces(pid: int, network: bool) -> None:
    """Move into the mount namespace of a process, into its user namespace if it has one, and its network."""
    kinds = CLONE_NEWNS | (CLONE_NEWNET if network else 0)
    if os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"):
        kinds |= CLONE_NEWUSER
    fd = os.pidfd_open(pid)
    try:
        _check(_libc.setns(fd, kinds))
    finally:
        os.close(fd)


def usage_of_zombie(pid: int) -> tuple[int, int] | None:
    """CPU time in ns and peak memory in bytes of an ended, unreaped child (and what it waited for).

    waitid(2) has a fifth argument that neither libc nor Python pass on.
    """
    usage = (ctypes.c_long * 18)()
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    if _syscall(_WAITID, int(os.P_PID), pid, None, flags, usage) < 0:
        return None
    user_s, user_us, system_s, system_us, peak_kib = usage[:5]
    return (user_s + system_s) * 1_000_000_000 + (user_us + system_us) * 1000, peak_kib * 1024


def listen(path: str) -> _socket.socket:
    """A SEQPACKET socket that listens there. A leftover at that path is replaced."""
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            os.unlink(path)
            listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def accept(listener: _socket.socket) -> _socket.socket:
    """accept(2), close-on-exec. socket.accept() would make enums of the family and the type."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)


def own_peak() -> int:
    """The most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_file(path: str, directory: int | None = None) -> bytes:
    """A small file of the kernel's, in one read (io's text layer costs more than the file)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def read_whole(path: str) -> bytes:
    """A file of any size."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def write_file(path: str, data: bytes, directory: int | None = None) -> None:
    """One write to a file of the kernel's that exists."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def unread(fd: int) -> int:
    """Bytes waiting in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, FIONREAD, bytes(4)), sys.byteorder)


def arguments(pid: int) -> tuple[int, int]:
    """Where the arguments of a process begin and end in its memory: elsewhere after an exec, nowhere at last."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            fields = stat.read(4096).rpartition(b")")[2].split()
    except OSError:
        return 0, 0
    return int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)


def untaken(fd: int) -> int:
    """What the receiver has not taken yet, in the kernel's own measure of memory; 0 is none."""
    return int.from_bytes(fcntl.ioctl(fd, SIOCOUTQ, bytes(4)), sys.byteorder)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_last_words: Callable[[], None] | None = None


def _overdue(_number: int) -> None:
    speak = _last_words
    set_alarm(LAST_WORDS, None)  # whatever comes of it: it does not take long
    if speak is not None:
        speak()


_overdue_handler = _HANDLER(_overdue)


def set_alarm(seconds: float, last_words: Callable[[], None] | None) -> None:
    """After that time call `last_words`, which ends the process; without it, the process ends at once.

    In the midst of a call of libc: modules of NSS and PAM may hang, and Python would run a handler of
    its own when they have returned. 0 seconds take it back.
    """
    global _last_words
    _last_words = last_words
    _libc.signal(signal.SIGALRM, _overdue_handler if last_words else None)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def file_system(fd: int) -> int:
    """The kind of file system a file is on: f_type of statfs(2)."""
    facts = (ctypes.c_ulong * 32)()  # larger than the structure anywhere
    _check(_libc.fstatfs(fd, facts))
    return facts[0] & 0xFFFFFFFF


def act_only_as(uid: int, gid: int = NOGROUP, groups: Sequence[int] = ()) -> None:
    """Have no right that this user has not. Real and saved user stay root's: else they could signal and trace us."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(0, uid, 0)
    if uid:
        _set_capabilities([0, 0, 0])


def _set_capabilities(wanted: list[int | None]) -> None:
    """Effective, permitted, inheritable: all of them, as 32 bits for each half; None leaves them as they are."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_libc.capget(header, data))
    for place, bits in enumerate(wanted):
        if bits is not None:
            data[place] = data[place + 3] = bits
    _check(_libc.capset(header, data))
