"""The output of one run as a client reads it: in order, whole, across restarts of the service.

Always asked for in the export format, because only that says where each byte belongs and where the
output ends. Over a socket the service passes, or where descriptors cannot pass, by ReadLogs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from typing import Any

from jobsvc.chunks import Chunk, Missing, Stream
from jobsvc.client import Client, Options
from jobsvc.errors import Internal, ServiceUnavailable
from jobsvc.formats import Export, Trailer

READ_SIZE = 256 * 1024
WAIT_USEC = 30_000_000  # the longest that ReadLogs waits
PAUSES = (0.0, 0.2, 1.0, 3.0, 10.0)  # seconds, between readings that bring nothing and no end

_BOOT_ID = re.compile(rb"^_BOOT_ID=([0-9a-f]{32})$", re.MULTILINE)
_FROM: dict[Stream, str] = {"stdout": "FromStdout", "stderr": "FromStderr"}


class LogStream:
    """Iterate to get every chunk of a run's output and at last its trailer."""

    def __init__(
        self,
        client: Client,
        job_id: str,
        options: Options,
        written: dict[Stream, int] | None = None,
    ) -> None:
        """`options` are those of Logs; `written` is where a stream not seen yet is taken up again.

        That matters when not everything was asked for: else such a stream begins at 0.
        """
        self.boot_id = ""
        self._client = client
        self._id = job_id
        self._options = {**options, "Format": ("s", "export")}
        self._at: dict[Stream, int] = dict(written or {})
        self._whole = not ({"Lines", "SinceUSec", "UntilUSec"} & options.keys())
        self._seen: set[Stream] = set()
        self._holes: list[Missing] = []

    def __iter__(self) -> Iterator[Chunk | Trailer]:
        fruitless = 0
        while fruitless < len(PAUSES):
            owner = self._client.owner
            for thing in self._once():
                if isinstance(thing, Trailer):
                    yield self._complete(thing)
                    return
                chunk = self._fresh(thing)
                if chunk.data:
                    fruitless = 0
                    yield chunk
            self._client.await_service()
            if owner != self._client.owner:  # another process than before: all is as it should be
                fruitless = 0
            self._client.await_change(PAUSES[fruitless])  # it may be on its way out
            fruitless += 1
            self._resume()
        raise Internal("the output breaks off again and again; see 'journalctl -u jobsvc'")

    def _fresh(self, chunk: Chunk) -> Chunk:
        """What of a chunk we do not have yet; and a note when something before it is not there."""
        if not self._whole and chunk.stream not in self._seen:
            self._seen.add(chunk.stream)
            self._at[chunk.stream] = chunk.offset
        at = self._at.get(chunk.stream, 0)
        if chunk.offset > at:
            self._holes.append(Missing(chunk.stream, at, chunk.offset, "lost"))
        chunk = chunk.since(at)
        self._at[chunk.stream] = max(at, chunk.end)
        return chunk

    def _complete(self, trailer: Trailer) -> Trailer:
        """The trailer knows best what is missing, unless it is only about a part of the output."""
        unnamed = [
            hole
            for hole in self._holes
            if not any(
                gap.stream == hole.stream and gap.start < hole.end and hole.start < gap.end for gap in trailer.missing
            )
        ]
        return Trailer(trailer.end, (*trailer.missing, *unnamed))

    def _resume(self) -> None:
        self._options.pop("Lines", None)
        for stream, option in _FROM.items():
            if stream in self._at:
                self._options[option] = ("t", self._at[stream])

    def _once(self) -> Iterator[Chunk | Trailer]:
        """One reading, to its trailer or to where it was cut off."""
        export = Export()
        source = self._pipe() if self._client.bus.fds else self._calls()
        try:
            for data in source:
                if not self.boot_id and (found := _BOOT_ID.search(data)):
                    self.boot_id = found[1].decode()
                yield from export.feed(data)
        except ServiceUnavailable:
            if not self._client.owner:
                raise
        except ValueError as error:
            raise Internal(f"the job service sent what is not a log stream: {error}") from error
        finally:
            source.close()

    def _pipe(self) -> Generator[bytes, None, None]:
        (handle,) = self._client.call("Logs", "sa{sv}", self._id, self._options, again=True)
        fd = handle.to_raw_fd()
        try:
            while True:
                if self._client.bus.wait(None, also=fd):
                    data = os.read(fd, READ_SIZE)
                    if not data:
                        return
                    yield data
        finally:
            os.close(fd)

    def _calls(self) -> Generator[bytes, None, None]:
        options: dict[str, Any] = dict(self._options)
        if options.pop("Follow", None):
            options["WaitUSec"] = ("t", WAIT_USEC)
        while True:
            data, after = self._client.call("ReadLogs", "sa{sv}", self._id, options)
            yield data
            if not after:
                return
            options = dict(after)
