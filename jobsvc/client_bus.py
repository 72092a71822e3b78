"""One connection to a message bus: authentication, calls, and the signals that come in between.

jeepney packs and unpacks the messages; the socket is ours, so that it may be any connected one, fds
are negotiated rather than demanded, and a wait can watch other file descriptors as well.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jeepney.bus import get_connectable_addresses
from jeepney.fds import FileDescriptor, fds_buf_size
from jeepney.low_level import HeaderFields, MessageFlag, MessageType, Parser
from jeepney.wrappers import DBusAddress, new_method_call

from jobsvc.errors import ServiceUnavailable

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
DRIVER = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
READ_SIZE = 64 * 1024
HANDSHAKE_SECONDS = 30.0


class BusError(Exception):
    """An error reply: its D-Bus name and text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Reply(NamedTuple):
    body: tuple[Any, ...]
    sender: str


class Signal(NamedTuple):
    sender: str
    interface: str
    member: str
    body: tuple[Any, ...]


class Interrupt(Protocol):
    """Something that may want attention during any wait, such as Ctrl-C."""

    def fileno(self) -> int: ...
    def handle(self) -> None: ...


def system_bus() -> socket.socket:
    """A socket connected to the system bus, wherever DBUS_SYSTEM_BUS_ADDRESS says it is."""
    return connect(os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS)


def connect(address: str) -> socket.socket:
    """A socket connected to the bus at this address."""
    error: Exception | None = None
    try:
        for path in get_connectable_addresses(address):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(path)
            except OSError as failed:
                sock.close()
                error = failed
            else:
                return sock
    except (ValueError, RuntimeError) as bad:
        raise ServiceUnavailable(f"cannot make sense of the bus address {address!r}") from bad
    why = error.strerror if isinstance(error, OSError) else "no address"
    raise ServiceUnavailable(f"cannot reach the bus at {address}: {why}")


class Connection:
    """A conversation with the bus over `sock`, which may be any connected stream socket."""

    def __init__(self, sock: socket.socket, want_fds: bool = False) -> None:
        self.signals: deque[Signal] = deque()
        self.listening = False  # nobody else's signals pile up before we asked for any
        self.interrupt: Interrupt | None = None
        self._sock = sock
        self._parser = Parser()
        self._serial = 0
        self._replies: dict[int, Any] = {}
        self._callbacks: dict[int, Callable[[BusError | None], None]] = {}
        try:
            sock.settimeout(HANDSHAKE_SECONDS)
            self.fds = _authenticate(sock, want_fds)
            sock.settimeout(None)
            self.unique_name: str = self.call(DRIVER, "Hello", timeout=HANDSHAKE_SECONDS).body[0]
        except (OSError, BusError) as error:
            sock.close()
            raise ServiceUnavailable(f"the bus does not let us in: {error}") from error

    def close(self) -> None:
        self._sock.close()

    def send(
        self,
        address: DBusAddress,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        *,
        interactive: bool = False,
        start: bool = True,
        then: Callable[[BusError | None], None] | None = None,
    ) -> int:
        """Send a call and return its serial; `then` is told how it went, if nobody waits for it."""
        message = new_method_call(address, member, signature or None, body)
        if interactive:
            message.header.flags |= MessageFlag.allow_interactive_authorization
        if not start:
            message.header.flags |= MessageFlag.no_auto_start
        self._serial += 1
        fds: list[int] | None = [] if self.fds else None
        data = message.serialise(serial=self._serial, fds=fds)
        if then:
            self._callbacks[self._serial] = then
        else:
            self._replies[self._serial] = None
        try:
            sent = socket.send_fds(self._sock, [data], fds) if fds else 0
            self._sock.sendall(data[sent:])
        except OSError as error:
            raise ServiceUnavailable(f"the bus has gone: {error.strerror}") from error
        return self._serial

    def answer(self, serial: int, timeout: float | None = None) -> Reply:
        """The reply to a call sent before. TimeoutError when none came in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._replies[serial] is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                del self._replies[serial]
                raise TimeoutError
            self.wait(left)
        message = self._replies.pop(serial)
        if message.header.message_type is MessageType.error:
            raise _error(message)
        return Reply(message.body, message.header.fields.get(HeaderFields.sender, ""))

    def call(
        self,
        address: DBusAddress,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        *,
        interactive: bool = False,
        start: bool = True,
        timeout: float | None = None,
    ) -> Reply:
        serial = self.send(address, member, signature, body, interactive=interactive, start=start)
        return self.answer(serial, timeout)

    def wait(self, timeout: float | None = None, also: int = -1) -> bool:
        """Wait for a message, an interrupt or `timeout`; True if the descriptor `also` is ready."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if also >= 0:
            poll.register(also, select.POLLIN)
        if self.interrupt:
            poll.register(self.interrupt.fileno(), select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if timeout is None else max(0, timeout * 1000))]
        if self.interrupt and self.interrupt.fileno() in ready:
            self.interrupt.handle()
        if self._sock.fileno() in ready:
            self._read()
        return also in ready

    def _read(self) -> None:
        try:
            if self.fds:  # one message at a time, or its fds could be attributed to the next
                size = min(self._parser.bytes_desired(), 1024 * 1024)
                data, ancillary, _, _ = self._sock.recvmsg(size, fds_buf_size())
                self._parser.add_data(data, fds=FileDescriptor.from_ancdata(ancillary))
            else:
                data = self._sock.recv(READ_SIZE)
                self._parser.add_data(data)
        except OSError as error:
            raise ServiceUnavailable(f"the bus has gone: {error.strerror}") from error
        if not data:
            raise ServiceUnavailable("the bus has closed the connection")
        while (message := self._parser.get_next_message()) is not None:
            self._file(message)

    def _file(self, message: Any) -> None:
        fields = message.header.fields
        serial = fields.get(HeaderFields.reply_serial)
        if message.header.message_type is MessageType.signal:
            if self.listening:
                self.signals.append(
                    Signal(
                        fields.get(HeaderFields.sender, ""),
                        fields.get(HeaderFields.interface, ""),
                        fields.get(HeaderFields.member, ""),
                        message.body,
                    )
                )
        elif serial in self._callbacks:
            failed = message.header.message_type is MessageType.error
            self._callbacks.pop(serial)(_error(message) if failed else None)
        elif serial in self._replies:
            self._replies[serial] = message


def _error(message: Any) -> BusError:
    text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
    return BusError(message.header.fields.get(HeaderFields.error_name, ""), text)


def _authenticate(sock: socket.socket, want_fds: bool) -> bool:
    """SASL EXTERNAL by the socket's own credentials, in one round trip as sd-bus does it.

    No uid is spelled out, so it holds across user namespaces and through a bridge. True if the
    other side passes file descriptors.
    """
    negotiate = b"NEGOTIATE_UNIX_FD\r\n" if want_fds else b""
    sock.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\n" + negotiate + b"BEGIN\r\n")
    data_line, ok = _line(sock), _line(sock)
    if not data_line.startswith(b"DATA") or not ok.startswith(b"OK"):
        raise OSError(f"authentication was answered by {data_line!r}, {ok!r}")
    return want_fds and _line(sock).startswith(b"AGREE_UNIX_FD")


def _line(sock: socket.socket) -> bytes:
    """One line, byte by byte: what follows the last one is already a message."""
    line = b""
    while not line.endswith(b"\r\n"):
        byte = sock.recv(1)
        if not byte or len(line) > 512:
            raise OSError("the connection was closed during authentication")
        line += byte
    return line
