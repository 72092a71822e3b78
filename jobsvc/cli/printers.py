"""The forms in which `logs` shows output: raw, short, json, export."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable
from typing import Protocol

from jobsvc.chunks import Chunk, Stream
from jobsvc.cli.lines import Escaper, Short
from jobsvc.client import Status
from jobsvc.client_logs import LogStream
from jobsvc.formats import Origin, Trailer, encode, encode_trailer
from jobsvc.render import dumps, escape_text

FDS: dict[Stream, int] = {"stdout": 1, "stderr": 2}


class Printer(Protocol):
    def put(self, thing: Chunk | Trailer) -> None: ...


def printer(form: str, job: Status, stream: LogStream) -> Printer:
    """What shows output in this form; to be made before a pager takes the terminal's place."""
    terminal = os.isatty(1)
    match form:
        case "short":
            return ShortPrinter(job)
        case "json":
            return Encoded("json", job, stream, _ascii if terminal else None)
        case "export":
            return Encoded("export", job, stream, _visible if terminal else None)
    return Raw({name for name, fd in FDS.items() if os.isatty(fd)})


class Raw:
    """The bytes, each stream to its own descriptor; escaped where that is a terminal."""

    def __init__(self, escaped: set[Stream]) -> None:
        self._escapers: dict[Stream, Escaper] = {name: Escaper() for name in escaped}

    def put(self, thing: Chunk | Trailer) -> None:
        if isinstance(thing, Chunk):
            escaper = self._escapers.get(thing.stream)
            write(FDS[thing.stream], _bytes(escaper.feed(thing.data)) if escaper else thing.data)
            return
        for name, escaper in self._escapers.items():
            write(FDS[name], _bytes(escaper.feed(b"", last=True)))


class ShortPrinter:
    """A line at a time, with time, name and pid; what both streams said, on standard output."""

    def __init__(self, job: Status) -> None:
        self._short = Short(job)

    def put(self, thing: Chunk | Trailer) -> None:
        lines = self._short.feed(thing) if isinstance(thing, Chunk) else self._short.rest()
        write(1, _bytes("".join(line + "\n" for line in lines)))


class Encoded:
    """json or export, as the service itself would send it in one piece."""

    def __init__(self, form: str, job: Status, stream: LogStream, safe: Callable[[bytes], bytes] | None) -> None:
        self._form = form
        self._job = job
        self._stream = stream
        self._safe = safe

    def put(self, thing: Chunk | Trailer) -> None:
        if isinstance(thing, Chunk):
            run = int(self._job.get("Run", 1))
            origin = Origin(str(self._job["Id"]), run, self._stream.boot_id)
            data = encode(self._form, origin, thing)
        else:
            data = encode_trailer(self._form, thing)
        write(1, self._safe(data) if self._safe else data)


def write(fd: int, data: bytes) -> None:
    """All of it, also to a descriptor that somebody has set non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _ascii(line: bytes) -> bytes:
    return dumps(json.loads(line)).encode() + b"\n"


def _visible(entry: bytes) -> bytes:
    return _bytes(escape_text(entry.decode(errors="surrogateescape")))
