"""The last lines of an output, found from its end. Pure."""

from __future__ import annotations

from jobsvc.chunks import Chunk, Stream


class Tail:
    """Finds the last N lines: `put` chunks from the last one backwards until there is `enough`.

    The N lines are those whose last bytes were written last, whichever stream they are in. An
    unfinished line counts.
    """

    def __init__(self, lines: int) -> None:
        self.left = lines
        self._starts: dict[Stream, int] = {}
        self._low: dict[Stream, int] = {}
        self._high: dict[Stream, int] = {}
        self._open: set[Stream] = set()  # streams in a line whose beginning is not found yet

    @property
    def enough(self) -> bool:
        return self.left <= 0 and not self._open

    def put(self, chunk: Chunk) -> None:
        stream = chunk.stream
        low = self._low.get(stream, chunk.end)
        self._high.setdefault(stream, chunk.end)
        if chunk.offset >= low and stream in self._low:
            return
        if chunk.end < low and stream in self._open:  # the line begins in a hole
            self._close(stream, low)
        self._search(stream, chunk.offset, chunk.data[: low - chunk.offset])
        self._low[stream] = chunk.offset
        if chunk.offset == 0 and stream in self._open:
            self._close(stream, 0)

    def starts(self) -> dict[Stream, int]:
        """Where each stream that was seen is to be begun."""
        for stream in tuple(self._open):
            self._close(stream, self._low[stream])
        return {stream: self._starts.get(stream, high) for stream, high in self._high.items()}

    def _close(self, stream: Stream, start: int) -> None:
        self._open.discard(stream)
        self._starts[stream] = start

    def _search(self, stream: Stream, offset: int, data: bytes) -> None:
        at = len(data)
        while at > 0:
            end = at
            if stream not in self._open:
                if self.left <= 0:
                    return
                self.left -= 1
                self._open.add(stream)
                end = at - 1  # its own line end, or its last byte
            newline = data.rfind(b"\n", 0, end)
            if newline < 0:
                return
            at = newline + 1
            self._close(stream, offset + at)
