"""Outgoing D-Bus messages as bytes (D-Bus specification, "Message Protocol").

The library's own way makes some hundred calls for each header alone, and checks each value once
more: a third of the service's time when many jobs come and go.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable
from typing import Any

from dbus_next import Message
from dbus_next._private.constants import HeaderField
from dbus_next.signature import SignatureTree, SignatureType

Write = Callable[[bytearray, Any], None]

PADDING = tuple(bytes(size) for size in range(8))
LITTLE_ENDIAN, PROTOCOL_VERSION = b"l"[0], 1
NUMBERS = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I", "b": "?3x"}
ALIGNMENT = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}  # of the rest 4

_START = struct.Struct("<BBBBIII")
_uint = struct.Struct("<I").pack


class Packed(bytes):
    """The body of a message, packed already."""


def pack_body(signature: str, values: Iterable[Any]) -> Packed:
    body = bytearray()
    for write, value in zip(writers(signature), values, strict=True):
        write(body, value)
    return Packed(body)


def pack(message: Message, fds: bool) -> bytes:
    """The whole message; `fds` if descriptors may go with it. struct.error, TypeError and the like for a wrong body."""
    values = message.body
    body = values[0] if values and isinstance(values[0], Packed) else pack_body(message.signature, values)
    kind, flags = message.message_type.value, message.flags.value
    head = bytearray(_START.pack(LITTLE_ENDIAN, kind, flags, PROTOCOL_VERSION, len(body), message.serial, 0))
    for field, sort, value in (
        (HeaderField.PATH, "o", message.path),
        (HeaderField.INTERFACE, "s", message.interface),
        (HeaderField.MEMBER, "s", message.member),
        (HeaderField.ERROR_NAME, "s", message.error_name),
        (HeaderField.REPLY_SERIAL, "u", message.reply_serial),
        (HeaderField.DESTINATION, "s", message.destination),
        (HeaderField.SIGNATURE, "g", message.signature),
        (HeaderField.UNIX_FDS, "u", len(message.unix_fds or ()) if fds else 0),
    ):
        if value:
            head += PADDING[-len(head) & 7]
            head += b"%c\1%b\0" % (field.value, sort.encode())
            _FIELDS[sort](head, value)
    head[12:16] = _uint(len(head) - _START.size)
    head += PADDING[-len(head) & 7]
    return bytes(head) + body


@functools.cache
def writers(signature: str) -> tuple[Write, ...]:
    """What appends values of these types to a buffer that begins at a multiple of 8. The signatures are all ours."""
    return tuple(map(_writer, SignatureTree._get(signature).types))  # noqa: SLF001


def _writer(kind: SignatureType) -> Write:
    match kind.token:
        case "s" | "o":
            return _string
        case "g":
            return _signature
        case "v":
            return _variant
        case "a" if kind.signature == "ay":
            return _bytes
        case "a" if kind.signature.startswith("a{"):
            return _array(kind.children[0], lambda values: values.items())
        case "a":
            return _array(kind.children[0], iter)
        case "(" | "{":
            return _struct(kind.children)
        case token:
            return _number(NUMBERS[token], ALIGNMENT.get(token, 4))


def _number(code: str, alignment: int) -> Write:
    convert, mask = struct.Struct(f"<{code}").pack, alignment - 1

    def write(out: bytearray, value: Any) -> None:
        out += PADDING[-len(out) & mask]
        out += convert(value)

    return write


def _string(out: bytearray, value: str) -> None:
    data = value.encode()
    out += PADDING[-len(out) & 3]
    out += b"%b%b\0" % (_uint(len(data)), data)


def _signature(out: bytearray, value: str) -> None:
    out += b"%c%b\0" % (len(value), value.encode())


def _variant(out: bytearray, value: Any) -> None:
    _signature(out, value.signature)
    (write,) = writers(value.signature)
    write(out, value.value)


def _bytes(out: bytearray, value: bytes) -> None:
    out += PADDING[-len(out) & 3]
    out += _uint(len(value))
    out += value


def _array(kind: SignatureType, items: Callable[[Any], Any]) -> Write:
    write, mask = _writer(kind), ALIGNMENT.get(kind.token, 4) - 1

    def write_array(out: bytearray, values: Any) -> None:
        out += PADDING[-len(out) & 3]
        place = len(out)
        out += PADDING[4]
        out += PADDING[-len(out) & mask]
        begin = len(out)
        for value in items(values):
            write(out, value)
        out[place : place + 4] = _uint(len(out) - begin)

    return write_array


def _struct(kinds: list[SignatureType]) -> Write:
    parts = [_writer(kind) for kind in kinds]

    def write_struct(out: bytearray, values: Any) -> None:
        out += PADDING[-len(out) & 7]
        for write, value in zip(parts, values, strict=True):
            write(out, value)

    return write_struct


_FIELDS = {kind: writers(kind)[0] for kind in "osug"}
