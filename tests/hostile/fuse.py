"""A file system of an ordinary user's, with files file, file1, file2 …: whose server decides what is answered, and if.

Raw /dev/fuse (linux/fuse.h, protocol 7.31), no libfuse. What is never answered hangs whoever asked, unkillably, on the
kernel of the host too. It ends when the last descriptor of the connection is closed: only the server's process has
one, and that process never touches its own file system, so that it can always be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

COMM = "hostile-fuse"  # by which whoever made sure of the end finds the servers
NEVER = "never"
LIFETIME = 300  # seconds, after which a server ends whatever has become of those who were to end it
SIZE = 1 << 20
_ROOT, _FILE = 1, 2
_NOBODY = 65534

_HEADER = struct.Struct("<IIQQIIIHH")
_ANSWER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_OPS = {
    1: "LOOKUP",
    2: "FORGET",
    3: "GETATTR",
    4: "SETATTR",
    14: "OPEN",
    15: "READ",
    16: "WRITE",
    17: "STATFS",
    18: "RELEASE",
    20: "FSYNC",
    25: "FLUSH",
    26: "INIT",
    27: "OPENDIR",
    28: "READDIR",
    29: "RELEASEDIR",
    31: "GETLK",
    32: "SETLK",
    33: "SETLKW",
    34: "ACCESS",
    36: "INTERRUPT",
    38: "DESTROY",
    40: "POLL",
    42: "BATCH_FORGET",
    43: "FALLOCATE",
}
_UNANSWERED = {"FORGET", "BATCH_FORGET", "INTERRUPT"}

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 1 << 18
_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Rule:
    """What this operation is answered with: NEVER, or the name of an errno. The first rule that fits holds.

    `comms` are the callers it is for, `spared` those it is not for; `after` as many times it does not hold.
    """

    operation: str
    answer: str
    comms: Sequence[str] = ()
    spared: Sequence[str] = ()
    uids: Sequence[int] = ()
    after: int = 0
    seen: int = field(default=0, compare=False)

    def fits(self, operation: str, comm: str, uid: int) -> bool:
        if operation != self.operation or comm in self.spared:
            return False
        if (self.comms and comm not in self.comms) or (self.uids and uid not in self.uids):
            return False
        self.seen += 1
        return self.seen > self.after


def rule(text: str) -> Rule:
    """A rule as a word: "FLUSH=never", "READ=EIO@3" (after the third), "FLUSH=never,-dbus-daemon", "WRITE=EIO,+cat"."""
    what, *whom = text.split(",")
    operation, _, answer = what.partition("=")
    answer, _, after = answer.partition("@")
    given: dict[str, list[str]] = {"+": [], "-": []}
    for who in whom:
        given[who[0]].append(who[1:])
    return Rule(operation, answer, given["+"], given["-"], after=int(after or 0))


class Server:
    """Answers on a connection until it is over."""

    def __init__(self, fd: int, rules: Sequence[Rule], proc: int, report: socket.socket | None = None) -> None:
        self.fd = fd
        self.rules = rules
        self.proc = proc
        self.report = report
        self.uid = os.getuid()
        self.written = 0

    def serve(self) -> None:
        while True:
            try:
                packet = os.read(self.fd, 1 << 21)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # ENODEV: it is not mounted any more
            _, number, unique, node, uid, _, pid, _, _ = _HEADER.unpack_from(packet)
            operation = _OPS.get(number, str(number))
            if operation in _UNANSWERED:
                continue
            answer = self._answer(operation, node, uid, pid, packet[_HEADER.size :])
            if answer is None:
                continue
            number, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            with contextlib.suppress(OSError):  # ENOENT: whoever asked is gone
                os.write(self.fd, _ANSWER.pack(_ANSWER.size + len(body), number, unique) + body)

    def _answer(self, operation: str, node: int, uid: int, pid: int, body: bytes) -> bytes | int | None:
        """The body of the answer, an errno, or None for none at all."""
        if node >= _FILE:
            comm = self._comm(pid)
            for one in self.rules:
                if one.fits(operation, comm, uid):
                    self._tell(f"{operation} {one.answer} {pid} {comm}")
                    return None if one.answer == NEVER else int(getattr(errno, one.answer))
        match operation:
            case "INIT":
                return struct.pack("<4I2H2I2H8I", 7, 31, 0, 1 << 5, 64, 48, 1 << 16, 1, 16, *[0] * 9)
            case "LOOKUP":
                name, _, number = body.rstrip(b"\0").partition(b"file")
                if name or not (number.isdigit() or not number):
                    return errno.ENOENT
                node = _FILE + int(number or 0)
                return struct.pack("<4Q2I", node, 0, 0, 0, 0, 0) + self._attributes(node)
            case "GETATTR" | "SETATTR":
                return struct.pack("<Q2I", 0, 0, 0) + self._attributes(node)
            case "OPEN" | "OPENDIR":
                return struct.pack("<Q2I", 1, 0, 0)
            case "READ":
                _, offset, size = struct.unpack_from("<QQI", body)
                return b"fuse\n" * (min(size, max(0, SIZE - offset)) // 5)
            case "READDIR":
                return b""
            case "WRITE":
                _, offset, size = struct.unpack_from("<QQI", body)
                self.written = max(self.written, offset + size)
                return struct.pack("<II", size, 0)
            case "STATFS":
                return struct.pack("<5Q10I", 1 << 20, 1 << 19, 1 << 19, 100, 100, 4096, 255, 4096, *[0] * 7)
            case "RELEASE" | "RELEASEDIR" | "FSYNC" | "FLUSH" | "ACCESS" | "DESTROY" | "FALLOCATE":
                return b""
        return errno.ENOSYS

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o40755, 0) if node == _ROOT else (0o100666, max(SIZE, self.written))
        return _ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, self.uid, self.uid, 0, 4096, 0)

    def _comm(self, pid: int) -> str:
        try:
            fd = os.open(f"{pid}/comm", os.O_RDONLY, dir_fd=self.proc)
        except OSError:
            return ""
        with os.fdopen(fd) as file:
            return file.read().strip()

    def _tell(self, what: str) -> None:
        if self.report is not None:
            with contextlib.suppress(OSError):
                self.report.send(what.encode())


_mounts: list[Mount] = []


class Mount:
    """A mounted file system, its server's process, and what that tells of the rules it followed."""

    def __init__(self, path: str, server: int, report: socket.socket) -> None:
        self.path = path
        self.server = server
        self.report = report

    def open(self, number: int | str = "") -> int:
        return os.open(f"{self.path}/file{number}", os.O_RDWR | os.O_CLOEXEC)

    def told(self, timeout: float) -> str | None:
        """The next time a rule was followed: operation, answer, pid and comm of who asked."""
        self.report.settimeout(timeout)
        try:
            return self.report.recv(4096).decode()
        except TimeoutError:
            return None

    def abort(self) -> None:
        """End it: whatever waits for an answer gets an error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.server, 0)


def private(*rules: str, device: str = "/dev/fuse", proc: int | None = None, lifetime: int = LIFETIME) -> Mount:
    """In a user and mount namespace of its own, which this process is in from now on. No right is needed for it.

    `proc` is a directory of processes as the callers are numbered, if that is not /proc.
    """
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # else what it has in /proc is root's, after setuid
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount")
    return _mount([rule(text) for text in rules], "/mnt", uid, gid, device=device, proc=proc, lifetime=lifetime)


def public(path: str, uid: int, gid: int, *rules: str) -> Mount:
    """Where all can see it, served by this user: as root, what the setuid program fusermount does for anybody."""
    return _mount([rule(text) for text in rules], path, uid, gid, options=b",allow_other")


def _mount(
    rules: Sequence[Rule],
    path: str,
    uid: int,
    gid: int,
    *,
    options: bytes = b"",
    device: str = "/dev/fuse",
    proc: int | None = None,
    lifetime: int = LIFETIME,
) -> Mount:
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    words = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d" % (fd, uid, gid) + options
    _check(_libc.mount(b"hostile", path.encode(), b"fuse", _MS_NOSUID | _MS_NODEV, words), f"mount {path}")
    told, telling = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    telling.setblocking(False)  # nobody need listen
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC) if proc is None else proc
    pid = os.fork()
    if not pid:
        try:
            told.close()
            _become_server({fd, telling.fileno(), proc}, lifetime)
            if os.getuid() != uid:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            Server(fd, rules, proc, telling).serve()
        finally:
            os._exit(0)
    os.close(fd)
    telling.close()
    mount = Mount(path, pid, told)
    _mounts.append(mount)
    return mount


def abort_all() -> None:
    """Each that this process has mounted. Before it ends: to close what it has open may hang it, too."""
    for mount in _mounts:
        mount.abort()


def _become_server(kept: set[int], lifetime: int) -> None:
    """Hold nothing of anybody else's; a signal for the group of whoever started it is not for it."""
    os.setsid()
    _libc.prctl(_PR_SET_NAME, COMM.encode(), 0, 0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(lifetime)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def main(path: str, uid: int, rules: list[str]) -> None:
    """`python3 -m hostile.fuse PATH UID RULE…`, as root: mount it there, say so, serve until killed or unmounted."""
    mount = public(path, uid, uid, *rules)
    print(mount.server, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        os.waitpid(mount.server, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
