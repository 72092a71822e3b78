"""The porter: a process that has a user's descriptors, so that jobsvcd, launcher and supervisors never do.

close(2) of what a user handed over runs code of theirs: a file system of theirs need not answer, and
then nothing ends that process, not even SIGKILL; a socket lingers. A porter may hang, alone. It is
forked by the launcher, is told over a socket pair what to do, and ends with it, unless it has become the
keeper of a job's standard input: that one outlives everybody, and ends by SIGKILL.
"""

from __future__ import annotations

import _socket
import _thread
import collections
import os
import resource
import select
import sys

from jobsvc import control, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

START: Final = 16  # bytes of a message of the bus: its descriptors come with the first
MAX_FDS: Final = 253  # SCM_MAX_FD, unix(7)
MAX_PEERS: Final = 16
NOBODY: Final = 65534
IDLE: Final = 5.0  # seconds after which one that has closed all it was given ends


def enter(channel: int) -> NoReturn:
    """From a forked launcher to a porter. Never returns into the launcher's stack."""
    status = 1
    try:
        linux.close_all_but([channel])
        try:
            linux.write_file("/proc/self/comm", b"jobsvc-porter")
            linux.write_file("/proc/self/oom_score_adj", b"0")  # the launcher's is -900
        except OSError:
            pass  # as for a job: in some containers it cannot be written
        Porter(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, channel)).run()
        status = 0
    except ConnectionError:  # jobsvcd was killed, and had something unread
        pass
    except BaseException:  # noqa: BLE001 (nothing may return into the launcher)
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


class Porter:
    """Reads the beginning of messages, until one has brought descriptors that are wanted."""

    def __init__(self, channel: _socket.socket) -> None:
        self.channel = channel
        self.taken: list[int] = []
        self.closer: Closer | None = None

    def run(self) -> None:
        """Until the channel closes, or for as long as the kept descriptor is wanted."""
        while True:
            try:
                data, fds = control.receive(self.channel)
            except TimeoutError:
                if self.closer and not self.closer.left:
                    return
                continue
            if not data:
                return
            packet = control.unpack(data)
            match packet["type"]:
                case "drop":
                    self.drop(fds.pop(), packet.get("uid", NOBODY))
                case "take":
                    self.take(fds.pop(), packet["uid"])
                case "keep":
                    self.keep(fds.pop())

    def drop(self, bus: int, uid: int) -> None:
        """Read, and close what came in a thread: that may hang, and what comes next is read all the same.

        The first time be nobody but that user from then on.
        """
        came = self.read(bus)
        if self.closer is None:
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            linux.act_only_as(uid)
            self.closer = Closer()
            self.channel.settimeout(IDLE)
        self.closer.give(came)
        self.channel.send(control.pack("read", count=0, left=self.closer.left))

    def take(self, bus: int, uid: int) -> None:
        """Read, and be nobody but that user from then on. Touches none of them."""
        self.taken = self.read(bus)
        linux.act_only_as(uid)
        self.channel.send(control.pack("read", count=len(self.taken)))

    def read(self, bus: int) -> list[int]:
        """With a control buffer: what is installed is not closed yet."""
        with_fds = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, bus)
        space = _socket.CMSG_SPACE(MAX_FDS * 4)
        _, ancillary, _, _ = with_fds.recvmsg(START, space, _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC)
        with_fds.close()
        return control.descriptors(ancillary)

    def keep(self, door: int) -> None:
        """Give the descriptor to whichever process of root's asks for it at that socket, again and again.

        The socket is listened on here: so it tells whoever connects whose process this is (SO_PEERCRED).
        """
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, door)
        listener.listen(linux.BACKLOG)
        listener.setblocking(False)
        self.channel.send(control.pack("kept"))
        self.channel.close()
        peers: dict[int, _socket.socket] = {}
        poll = select.poll()
        poll.register(door, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == door:
                    if (peer := meet(listener, len(peers))) is not None:
                        peers[peer.fileno()] = peer
                        poll.register(peer.fileno(), select.POLLIN)
                elif not self.serve(peers[fd]):
                    poll.unregister(fd)
                    peers.pop(fd).close()

    def serve(self, peer: _socket.socket) -> bool:
        """Answer one packet; False if there will be no more."""
        try:
            if peer.recv(64) == b"give":
                control.send_fds(peer, b"given", self.taken)
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False


class Closer:
    """A thread that closes descriptors, one after the other. What one hangs over keeps the others open."""

    def __init__(self) -> None:
        self.waiting: collections.deque[int] = collections.deque()
        self.given = 0  # each is written by one thread
        self.closed = 0
        self.bell = _thread.allocate_lock()
        _thread.start_new_thread(self._close, ())

    @property
    def left(self) -> int:
        return self.given - self.closed

    def give(self, fds: list[int]) -> None:
        self.given += len(fds)
        self.waiting.extend(fds)
        if self.bell.locked():
            self.bell.release()

    def _close(self) -> None:
        while True:
            self.bell.acquire()
            while self.waiting:
                try:
                    os.close(self.waiting.popleft())
                except OSError:
                    pass  # it is closed all the same
                self.closed += 1


def meet(listener: _socket.socket, peers: int) -> _socket.socket | None:
    """Take a connection of root's; nobody else has business here."""
    try:
        peer = linux.accept(listener)
    except OSError:
        return None
    if control.peer(peer)[1] != 0 or peers >= MAX_PEERS:
        peer.close()
        return None
    peer.setblocking(False)
    return peer


def ask(path: str) -> _socket.socket:
    """Ask the keeper at that path for what it keeps, which is received by `get`. OSError if there is none any more."""
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    peer.connect(path)
    peer.send(b"give")
    return peer


def get(peer: _socket.socket, number: int) -> None:
    """Have the descriptor under that number, open across exec, and under no other: closing it might hang."""
    os.close(number)  # the lowest that is free is what the kernel gives
    data, ancillary, _, _ = peer.recvmsg(64, _socket.CMSG_SPACE(4))
    if not data or control.descriptors(ancillary) != [number]:
        raise OSError("it has ended")
    peer.close()
