"""Output for people: escaped for the terminal, or in lines with their time as in journalctl."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator

from jobsvc.chunks import Chunk
from jobsvc.client import Status
from jobsvc.formats import Export
from jobsvc.quantity import SEC
from jobsvc.render import escape, escape_text

LONGEST = 64 * 1024  # of a line that is still held back for its end


class Escaper:
    """Bytes of one stream, in pieces as they come, as text that does nothing to a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def feed(self, data: bytes, last: bool = False) -> str:
        return escape_text(self._decoder.decode(data, last))


class Short:
    """journalctl's short form: time, name, pid, line."""

    def __init__(self, job: Status) -> None:
        name, pid = escape(str(job.get("Name", "job"))), job.get("MainPID")
        self._head = f"{name}[{pid}]: " if pid else f"{name}: "
        self._partial: dict[str, tuple[int, bytes]] = {}

    def feed(self, chunk: Chunk) -> Iterator[str]:
        """The lines that are complete now. A line has the time of its first byte."""
        begun, held = self._partial.pop(chunk.stream, (chunk.time_usec, b""))
        *whole, rest = (held + chunk.data).split(b"\n")
        for line in whole:
            yield self._line(begun, line)
            begun = chunk.time_usec
        if len(rest) >= LONGEST:
            yield self._line(begun, rest)
        elif rest:
            self._partial[chunk.stream] = (begun, rest)

    def rest(self) -> Iterator[str]:
        """What never got its line end."""
        for begun, line in self._partial.values():
            yield self._line(begun, line)
        self._partial.clear()

    def _line(self, usec: int, line: bytes) -> str:
        stamp = time.strftime("%b %d %H:%M:%S", time.localtime(usec // SEC))
        text = line.removesuffix(b"\r").decode(errors="surrogateescape")
        return f"{stamp} {self._head}{escape_text(text)}"


def short_lines(export: bytes, job: Status) -> list[str]:
    """All of a piece in the export format, in the short form."""
    short = Short(job)
    found: list[str] = []
    for thing in Export().feed(export):
        if isinstance(thing, Chunk):
            found += short.feed(thing)
    return [*found, *short.rest()]
