"""One hardened D-Bus connection: dbus-next 0.2.3 with what it gets wrong put right.

- its writer takes EAGAIN for the end of the connection: a client that pipelines 120 calls ends the service;
- it parses a body of any size (the system bus lets 32 MiB pass) before anyone can refuse it;
- it reads on as long as there is anything to read: nothing else is done while somebody floods it;
- it keeps every signature it ever saw, 47 kB for one of 255 characters, of which anybody can make up new ones;
- it takes whatever descriptors come with any message: what a user hands over is not to be touched, nor closed, here;
- an unknown header field, which the specification says to ignore, ends the connection;
- an exception travels to the caller with its traceback.
"""

from __future__ import annotations

import array
import asyncio
import functools
import io
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, Self

from dbus_next import Message
from dbus_next._private.constants import HeaderField
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio import message_bus as upstream
from dbus_next.constants import BusType, MessageFlag, MessageType
from dbus_next.signature import SignatureTree, Variant

from jobsvc.errors import InvalidArgs, JobsvcError
from jobsvc.inflow import START, Inflow
from jobsvc.message import pack

log = logging.getLogger(__name__)

DBUS = "org.freedesktop.DBus"
DBUS_PATH = "/org/freedesktop/DBus"
MAX_IN_FLIGHT = 64  # the bus refuses everything beyond 128 pending replies of one connection
CALL_TIMEOUT = 60.0
READ_AT_ONCE = 16 * 1024  # bytes of a body that the loop parses itself
MAX_FDS: Final = 16  # of one message; dbus-daemon lets no more pass
MESSAGES_AT_ONCE = 32  # that are read before others have their turn

_FIELDS = {field.value: field.name.lower() for field in HeaderField}
_tree = functools.lru_cache(maxsize=256)(SignatureTree)  # of what others send
_HEADER = SignatureTree("a(yv)").types[0]


class BusError(Exception):
    """An error reply: its D-Bus name and text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Parcel(Protocol):
    """The descriptors of one message, in a process of their own."""

    count: int

    def close(self) -> None:
        """Let go of them."""


class Carrier(Protocol):
    """Has the descriptors of messages read elsewhere."""

    async def carry(
        self, sock: socket.socket, unread: Callable[[], bool], uid: int | None, wanted: bool
    ) -> Parcel | None:
        """Have the first START bytes read. Their descriptors are kept for that user, if they are wanted.

        `unread` tells whether they are still there, once nobody else reads.
        """


class Call(Message):  # type: ignore[misc]
    """A received message; `too_big` and `broken` ones come without their body, `unread` ones get it by `read`."""

    size = 0  # of the body, in bytes
    unwanted = False
    too_big = False
    broken = False
    unread: _Reader | None = None
    parcel: Parcel | None = None
    refused: JobsvcError | None = None  # why the descriptors that came were not taken

    def dispose(self) -> None:
        """Let go of what came with it."""
        if self.parcel is not None:
            parcel, self.parcel = self.parcel, None
            parcel.close()

    def read(self) -> None:
        """Parse the body. It takes half a second a MiB: large ones are left for a thread."""
        if self.unread is not None:
            reader, self.unread = self.unread, None
            reader.read_body(self)


class _Reader(Unmarshaller):  # type: ignore[misc]
    """Reads the header, then decides whether the body is worth parsing."""

    def __init__(self, stream: Any, cap: Callable[[str], int], addressed: bool) -> None:
        super().__init__(stream)
        self._cap = cap
        self._addressed = addressed

    def _unmarshall(self) -> None:
        self.offset = 0
        self.read(16, prefetch=True)
        self.endian = self.read_byte()
        message_type = MessageType(self.read_byte())
        flags = MessageFlag(self.read_byte())
        self.read_byte()  # the protocol version; the bus daemon has checked it
        body_size, serial, header_size = self.read_uint32(), self.read_uint32(), self.read_uint32()
        self.read(header_size + self._padding(header_size, 8) + body_size, prefetch=True)
        self.offset -= 4  # the size of the field array is part of it
        fields = {_FIELDS[code]: variant.value for code, variant in self.read_argument(_HEADER) if code in _FIELDS}
        self.align(8)
        fields.pop("unix_fds", None)
        tree = _tree(fields.pop("signature", ""))
        call = Call(
            message_type=message_type,
            flags=flags,
            serial=serial,
            **fields,
        )
        call.signature, call.signature_tree, call.size = tree.signature, tree, body_size
        if body_size > self._cap(call.member or ""):
            call.too_big = True
        elif message_type is MessageType.SIGNAL and call.destination and not self._addressed:
            call.unwanted = True
        elif body_size > READ_AT_ONCE and message_type is MessageType.METHOD_CALL:
            call.unread = self
        elif body_size:
            self.read_body(call)
        self.message = call

    def read_variant(self, _: Any = None) -> Variant:
        tree = _tree(self.read_signature())
        return Variant(tree, self.read_argument(tree.types[0]))

    def read_body(self, call: Call) -> None:
        self.stream = io.BytesIO()  # all of it is here; what follows is the next message's
        try:
            call.body = [self.read_argument(kind) for kind in call.signature_tree.types]
        except Exception:
            call.broken = True


def _header(data: bytes) -> Call | None:
    """What the header says, without the body; None if it cannot be read."""
    try:
        call: Call | None = _Reader(
            io.BytesIO(data[:4] + bytes(4) + data[8:] + bytes(8)), lambda _: 0, False
        ).unmarshall()
    except Exception:
        return None
    return call


class _Writer(upstream._MessageWriter):  # type: ignore[misc]
    """Upstream's writer, for which a full socket is not the end of the connection."""

    buf: memoryview | None
    futures: tuple[asyncio.Future[None] | None, ...] = ()
    registered = False

    def buffer_message(self, message: Message, future: asyncio.Future[None] | None = None) -> None:
        data = pack(message, self.negotiate_unix_fd)
        self.messages.put_nowait((data, list(message.unix_fds or ()), future))

    def schedule_write(self, message: Message | None = None, future: asyncio.Future[None] | None = None) -> None:
        if message is not None:
            self.buffer_message(message, future)
        if self.bus.unique_name and not self.registered:  # not before the bus has answered Hello
            self.registered = True
            self.loop.add_writer(self.fd, self.write_callback)

    def write_callback(self) -> None:
        try:
            while self.buf is not None or self.messages.qsize():
                if self.buf is None:
                    self.buf = self._take()
                self.offset += self._send(self.buf[self.offset :])
                if self.offset == len(self.buf):
                    self.buf = None
                    for future in self.futures:
                        if future and not future.done():
                            future.set_result(None)
            self.registered = False
            self.loop.remove_writer(self.fd)
        except (BlockingIOError, InterruptedError):
            return  # still registered: called again when there is room
        except OSError as error:
            self.bus._finalize(error)

    def _take(self) -> memoryview:
        """All that waits, up to the next message with descriptors: each send() would wake the bus daemon."""
        message, self.unix_fds, future = self.messages.get_nowait()
        parts, futures = [message], [future]
        while self.messages.qsize() and not self.unix_fds and not self.messages._queue[0][1]:
            message, _, future = self.messages.get_nowait()
            parts.append(message)
            futures.append(future)
        self.futures = tuple(futures)
        self.offset = 0
        return memoryview(b"".join(parts))

    def _send(self, data: memoryview) -> int:
        if not (self.unix_fds and self.negotiate_unix_fd):
            return int(self.sock.send(data))
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.unix_fds))
        sent = self.sock.sendmsg([data], [rights])
        self.unix_fds = None  # they travel with the first byte, once
        return int(sent)


class Bus(upstream.MessageBus):  # type: ignore[misc]
    """A connection to the system bus. `on_call` and `on_signal` get what arrives.

    With `fds` descriptors may be sent, and come with the answer to `ask_fd`. Those that others send are
    never in this process: the `carrier` gets them from their messages. `on_fds` says, of a call by its
    header, whose they are, and what the call is refused with, if it is. Without a carrier they are dropped.

    Signals are what everybody is told: to a connection alone anybody may send anything. It hears of
    that only if it is `addressed`.
    """

    def __init__(
        self,
        address: str | None = None,
        fds: bool = False,
        cap: Callable[[str], int] | None = None,
        addressed: bool = False,
        carrier: Carrier | None = None,
    ) -> None:
        self._inflow: Inflow | None = None
        self._cap = cap or (lambda member: 16 * 1024 * 1024)
        self._addressed = addressed
        super().__init__(bus_address=address, bus_type=BusType.SYSTEM, negotiate_unix_fd=fds)
        self._writer = _Writer(self)
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self.on_call: Callable[[Call], None] = self._refuse
        self.on_signal: Callable[[Call], None] = lambda message: None
        self.on_fds: Callable[[Call], Awaitable[tuple[int | None, JobsvcError | None]]] = self._refuse_fds
        if fds:
            self._inflow = Inflow(self._sock)
        self._unmarshaller: _Reader = self._create_unmarshaller()
        self._reads_on = False
        self._carrier = carrier
        self._carrying: asyncio.Task[None] | None = None
        self._awaits_fd: set[int] = set()  # serials of calls whose answer brings one
        self._came: tuple[Parcel | None, JobsvcError | None, list[int]] = (None, None, [])  # with the next message

    def _message_reader(self) -> None:
        try:
            for _ in range(MESSAGES_AT_ONCE):
                while not self._unmarshaller.unmarshall():
                    if self._inflow is None or not self._inflow.ahead or not self._pass_over(self._inflow):
                        return
                message: Call = self._unmarshaller.message
                self._unmarshaller = self._create_unmarshaller()
                message.parcel, message.refused, message.unix_fds = self._came
                self._came = None, None, []
                self._on_message(message)
        except Exception as error:
            self._finalize(error)
            return
        if not self._reads_on:  # the socket may be empty, and the rest in the stream's buffer
            self._reads_on = True
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._reads_on = False
        if self.connected and self._carrying is None:
            self._message_reader()

    def _pass_over(self, inflow: Inflow) -> bool:
        """Get over the beginning of a message that carries descriptors; False if that takes a while."""
        head = _header(inflow.ahead)
        if head and head.message_type is MessageType.METHOD_RETURN and head.reply_serial in self._awaits_fd:
            start, fds, _, _ = socket.recv_fds(self._sock, START, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
            self._came = None, None, fds
        elif self._carrier is None:
            start = self._sock.recv(START)
        else:
            self._loop.remove_reader(self._fd)
            self._carrying = self._loop.create_task(self._carry(inflow, self._carrier, head), name="descriptors")
            return False
        inflow.resume(start)
        return True

    async def _carry(self, inflow: Inflow, carrier: Carrier, head: Call | None) -> None:
        """Have the descriptors of the next message read elsewhere. Nothing else is read meanwhile."""
        uid, refused, start = None, None, inflow.ahead[:START]
        try:
            if head and head.message_type is MessageType.METHOD_CALL:
                try:
                    uid, refused = await self.on_fds(head)
                except JobsvcError as error:
                    refused = error
                except Exception:
                    log.exception("descriptors of a call of %s", head.member)
            wanted = uid is not None and refused is None
            parcel = await carrier.carry(self._sock, inflow.unread, uid, wanted)
            if parcel is None and refused is None:
                refused = InvalidArgs("the file descriptors of the message were lost on their way; try again")
            inflow.resume(start)
            self._came = parcel, refused, []
        except Exception as error:
            log.exception("descriptors that came from the bus")
            self._finalize(error)
            return
        finally:
            self._carrying = None
        if self.connected:
            self._loop.add_reader(self._fd, self._message_reader)
            self._message_reader()

    async def _refuse_fds(self, call: Call) -> tuple[int | None, JobsvcError | None]:
        return None, InvalidArgs(f"{call.member} takes no file descriptors")

    def _finalize(self, err: Exception | None = None) -> None:
        if self._carrying is not None:
            self._carrying.cancel()
        super()._finalize(err)

    def _create_unmarshaller(self) -> _Reader:
        return _Reader(self._inflow or self._stream, self._cap, self._addressed)

    def _on_message(self, message: Call) -> None:
        try:
            match message.message_type:
                case MessageType.METHOD_CALL:
                    self.on_call(message)
                case MessageType.SIGNAL:
                    if not message.unwanted:
                        self.on_signal(message)
                case _:
                    if handler := self._method_return_handlers.pop(message.reply_serial, None):
                        handler(message, None)
                    for fd in message.unix_fds:  # nobody waits for it any more
                        os.close(fd)
        except Exception:
            log.exception("while handling %s", message.member or message.message_type)
            message.dispose()

    def _refuse(self, message: Call) -> None:
        message.dispose()
        self.send_error(message, DBUS + ".Error.UnknownMethod", "this connection offers nothing")

    def send_error(self, call: Message, name: str, text: str) -> None:
        if not call.flags & MessageFlag.NO_REPLY_EXPECTED:
            self.send(Message.new_error(call, name, text.replace("\0", "")))

    async def ask(
        self,
        destination: str,
        path: str,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] | list[Any] = (),
        timeout: float | None = CALL_TIMEOUT,
    ) -> list[Any]:
        """Call `interface.Member` (the full name) and return the reply's body; raises BusError, TimeoutError."""
        interface, _, name = member.rpartition(".")
        message = Message(destination, path, interface, name, signature=signature, body=list(body))
        return list((await self._exchange(message, timeout, None)).body)

    async def ask_fd(self, destination: str, path: str, member: str, signature: str, body: tuple[Any, ...]) -> int:
        """The same for a method that answers with one descriptor, which is the caller's to close."""
        interface, _, name = member.rpartition(".")
        message = Message(destination, path, interface, name, signature=signature, body=list(body))
        fds: list[int] = []
        try:
            await self._exchange(message, CALL_TIMEOUT, fds)
            if not fds:
                raise BusError(f"{DBUS}.Error.InconsistentMessage", f"{name} was answered without a descriptor")
            return fds.pop(0)
        finally:
            for fd in fds:
                os.close(fd)

    async def _exchange(self, message: Message, timeout: float | None, fds: list[int] | None) -> Call:
        """Send a call and return its answer, whose descriptors go to `fds` if anybody wants them."""
        message.serial = self.next_serial()
        reply: asyncio.Future[Call] = self._loop.create_future()

        def answered(answer: Call, _error: Exception | None) -> None:
            if not reply.done():
                reply.set_result(answer)
                if fds is not None:
                    fds.extend(answer.unix_fds)
                    answer.unix_fds = []

        async with self._in_flight:
            self._method_return_handlers[message.serial] = answered
            if fds is not None:
                self._awaits_fd.add(message.serial)
            try:
                self.send(message)
                # Not wait_for: in Python 3.11 it can swallow a cancellation that comes with the answer.
                async with asyncio.timeout(timeout):
                    answer = await reply
            finally:
                self._method_return_handlers.pop(message.serial, None)
                self._awaits_fd.discard(message.serial)
        if answer.message_type is MessageType.ERROR:
            raise BusError(answer.error_name, str(answer.body[0]) if answer.body else "")
        return answer

    def tell(self, destination: str, path: str, member: str, signature: str, body: tuple[Any, ...]) -> None:
        """Call without wanting to hear how it went."""
        interface, _, name = member.rpartition(".")
        flags = MessageFlag.NO_REPLY_EXPECTED
        self.send(Message(destination, path, interface, name, flags=flags, signature=signature, body=list(body)))

    def emit(self, to: str, path: str, signal: str, signature: str, body: list[Any]) -> None:
        """Send `interface.Signal` to one client: a broadcast would show it to everybody."""
        interface, _, name = signal.rpartition(".")
        message = Message.new_signal(path, interface, name, signature, body)
        message.destination = to
        self.send(message)

    async def ask_bus(self, member: str, signature: str = "", body: tuple[Any, ...] = ()) -> list[Any]:
        """Call the bus daemon itself."""
        return await self.ask(DBUS, DBUS_PATH, f"{DBUS}.{member}", signature, body)

    async def open(self) -> Self:
        """Connect, and say hello to the bus."""
        await self.connect()
        return self

    async def own(self, name: str) -> None:
        """Take a well-known name: we are open for business."""
        do_not_queue = 4
        (answer,) = await self.ask_bus("RequestName", "su", (name, do_not_queue))
        if answer != 1:
            raise BusError(f"{DBUS}.Error.NameInUse", f"somebody else owns {name} already")

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        self._disconnect_future.add_done_callback(lambda future: (future.exception(), callback()))

    async def match(self, rule: str) -> None:
        """Have signals that match this rule delivered to `on_signal`."""
        await self.ask_bus("AddMatch", "s", (rule,))
