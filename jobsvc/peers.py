"""The supervisor's side of its control socket: any number of root peers, usually one jobsvcd."""

from __future__ import annotations

import collections
import os

from jobsvc import control, linux, loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any, Final, Protocol

    class Subject(Protocol):
        """What peers talk about."""

        def hello(self) -> bytes: ...
        def offsets(self) -> bytes: ...
        def told(self, peer: Peer, packet: dict[str, Any], fds: list[int]) -> None: ...
        def dropped(self) -> None: ...


MAX_PEERS: Final = 64
LONGEST: Final = 64 * 1024  # no packet that comes down is longer


class Peer:
    """One connection. What it must hear waits in order; of offsets only the newest matters."""

    def __init__(self, connection: _socket.socket) -> None:
        self.connection = connection
        self.greeted = False
        self.follows = False
        self.looks = False  # now and again, whether jobs are in their scopes
        self.owed: collections.deque[bytes] = collections.deque()
        self.owes_offsets = False
        self.waiting = False


class Peers:
    """The listening socket and everybody on it."""

    def __init__(self, events: loop.Loop, listener: _socket.socket, subject: Subject) -> None:
        self.events = events
        self.listener = listener
        self.subject = subject
        self.all: dict[int, Peer] = {}
        self.met = False  # whether anybody ever came
        listener.setblocking(False)
        events.watch(listener.fileno(), loop.READ, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            connection = linux.accept(self.listener)
        except OSError:
            return
        if control.peer_uid(connection) != 0 or len(self.all) >= MAX_PEERS:
            connection.close()
            return
        connection.setblocking(False)
        self.met = True
        peer = Peer(connection)
        self.all[connection.fileno()] = peer
        self.events.watch(connection.fileno(), loop.READ, lambda events: self._ready(peer, events))
        self._owe(peer, self.subject.hello())

    def tell(self, packet: bytes) -> None:
        """Something that everybody must hear."""
        for peer in list(self.all.values()):
            self._owe(peer, packet)

    def nudge(self) -> None:
        """The offsets have moved: tell the followers."""
        for peer in list(self.all.values()):
            if peer.follows:
                self.owe_offsets(peer)

    def count(self) -> None:
        """The offsets have moved far: tell everybody."""
        for peer in list(self.all.values()):
            self.owe_offsets(peer)

    def owe_offsets(self, peer: Peer) -> None:
        peer.owes_offsets = True
        self._flush(peer)

    def answer(self, peer: Peer, packet: bytes) -> None:
        """Something that one peer waits for; it may have gone meanwhile."""
        if peer.connection.fileno() in self.all:
            self._owe(peer, packet)

    def _owe(self, peer: Peer, packet: bytes) -> None:
        peer.owed.append(packet)
        self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        """Send what can be sent; the rest when there is room."""
        try:
            while peer.owed:
                peer.connection.send(peer.owed[0])
                peer.owed.popleft()
            if peer.owes_offsets:
                peer.connection.send(self.subject.offsets())
                peer.owes_offsets = False
        except BlockingIOError:
            self._wait_for_room(peer, True)
            return
        except OSError:
            self._drop(peer)
            return
        self._wait_for_room(peer, False)

    def _wait_for_room(self, peer: Peer, waiting: bool) -> None:
        if peer.waiting != waiting:
            peer.waiting = waiting
            wanted = loop.READ | loop.WRITE if waiting else loop.READ
            self.events.watch(peer.connection.fileno(), wanted, lambda events: self._ready(peer, events))

    def _ready(self, peer: Peer, events: int) -> None:
        if events & loop.WRITE:
            self._flush(peer)
        if events & ~loop.WRITE and peer.connection.fileno() in self.all:
            self._read(peer)

    def _read(self, peer: Peer) -> None:
        fds: list[int] = []
        try:
            data, fds = control.receive(peer.connection, LONGEST)
            if not data:
                self._drop(peer)
                return
            packet = control.unpack(data) if peer.greeted else control.unpack_first(data)
            peer.greeted = True
            self.subject.told(peer, packet, fds)
        except BlockingIOError:
            return
        except (OSError, control.ProtocolError):
            self._drop(peer)
        finally:
            for fd in fds:
                os.close(fd)

    def _drop(self, peer: Peer) -> None:
        fd = peer.connection.fileno()
        if self.all.pop(fd, None) is None:
            return
        self.events.forget(fd)
        peer.connection.close()
        self.subject.dropped()

    def all_told(self) -> bool:
        """Whether everybody has been sent everything."""
        return not any(peer.owed or peer.owes_offsets for peer in self.all.values())
