"""How output travels: raw bytes, JSON lines, or the journal export format (also read here). Pure.

json and export end in one trailer: how the run ended, how many bytes it wrote, which of them are
missing. A stream without it was cut off. https://systemd.io/JOURNAL_EXPORT_FORMATS
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, cast

from jobsvc.chunks import STREAMS, Chunk, Missing, Range, Stream, Why

FORMATS: Final = ("raw", "json", "export")

_LONGEST = 16 * 1024 * 1024  # of one field; more is not ours


@dataclass(frozen=True, slots=True)
class Origin:
    """What is the same in every entry of a run."""

    id: str
    run: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class End:
    """The facts of a run that a reader wants at the end of its output. None is unknown."""

    run: int
    state: str
    result: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    cut: tuple[Range, ...] = ()
    undelivered: tuple[Range, ...] = ()
    finished_usec: int | None = None  # CLOCK_REALTIME


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last thing in json and export: the end, and what of the output is missing."""

    end: End
    missing: tuple[Missing, ...] = ()


@lru_cache(maxsize=16)  # many followers of one job get the same chunk
def encode(style: str, origin: Origin, chunk: Chunk) -> bytes:
    match style:
        case "json":
            return _json_chunk(chunk)
        case "export":
            return _export_chunk(origin, chunk)
        case _:
            return chunk.data


def encode_trailer(style: str, trailer: Trailer) -> bytes:
    match style:
        case "json":
            return _json_trailer(trailer)
        case "export":
            return _export_trailer(trailer)
        case _:
            return b""


def _json_chunk(chunk: Chunk) -> bytes:
    time = datetime.fromtimestamp(chunk.time_usec // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    head = {
        "stream": chunk.stream,
        "offset": chunk.offset,
        "length": len(chunk.data),
        "time": f"{time}.{chunk.time_usec % 1_000_000:06}Z",
    }
    try:
        text = json.dumps({**head, "encoding": "utf-8", "data": chunk.data.decode()}, ensure_ascii=False)
        line = text.encode() + b"\n"
        if len(line) <= 256 + len(chunk.data) * 4 // 3:  # control characters cost six bytes each
            return line
    except UnicodeDecodeError:
        pass
    data = base64.b64encode(chunk.data).decode()
    return json.dumps({**head, "encoding": "base64", "data": data}).encode() + b"\n"


def _json_trailer(trailer: Trailer) -> bytes:
    end = trailer.end
    facts = {
        "end": True,
        "run": end.run,
        "state": end.state,
        "result": end.result,
        "exit_code": end.exit_code,
        "signal": end.signal,
        "stdout_bytes": end.stdout_bytes,
        "stderr_bytes": end.stderr_bytes,
        "missing": [
            {"stream": gap.stream, "from": gap.start, "to": gap.end, "why": gap.why} for gap in trailer.missing
        ],
    }
    return json.dumps(facts).encode() + b"\n"


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" not in value and value.isascii() and value.decode().isprintable():
        return name + b"=" + value + b"\n"
    return b"".join((name, b"\n", len(value).to_bytes(8, "little"), value, b"\n"))


def _export_chunk(origin: Origin, chunk: Chunk) -> bytes:
    head = (
        f"__REALTIME_TIMESTAMP={chunk.time_usec}\n_BOOT_ID={origin.boot_id}\nJOBSVC_ID={origin.id}\n"
        f"JOBSVC_RUN={origin.run}\nJOBSVC_STREAM={chunk.stream}\nJOBSVC_OFFSET={chunk.offset}\n"
    )
    return b"".join((head.encode(), _field(b"MESSAGE", chunk.data), b"\n"))


def _export_trailer(trailer: Trailer) -> bytes:
    end = trailer.end
    facts = {
        "JOBSVC_END": 1,
        "JOBSVC_RUN": end.run,
        "JOBSVC_STATE": end.state,
        "JOBSVC_RESULT": end.result,
        "JOBSVC_EXIT_CODE": end.exit_code,
        "JOBSVC_SIGNAL": end.signal,
        "JOBSVC_STDOUT_BYTES": end.stdout_bytes,
        "JOBSVC_STDERR_BYTES": end.stderr_bytes,
    }
    fields = [_field(name.encode(), str(fact).encode()) for name, fact in facts.items() if fact is not None]
    return b"".join(
        (
            *fields,
            *(_field(b"JOBSVC_MISSING", show(gap).encode()) for gap in trailer.missing),
            b"\n",
        )
    )


def show(gap: Missing) -> str:
    """A missing range in one line: stream, first byte, byte after the last, why."""
    return f"{gap.stream} {gap.start} {gap.end} {gap.why}"


def parse_missing(text: str) -> Missing:
    """The reverse of show. ValueError for anything else."""
    stream, start, end, why = text.split(" ")
    known = stream in STREAMS and why in ("lost", "late", "cut", "clash")
    if not known or not (start + end).isdecimal() or not int(start) < int(end) < 2**63:
        raise ValueError(f"{text!r} is not a missing range, which look like 'stdout 0 10 lost'")
    return Missing(cast(Stream, stream), int(start), int(end), cast(Why, why))


class Export:
    """Reads the export format as it arrives: feed it bytes, get chunks and at last the trailer."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = 1  # bytes without which looking again is of no use

    @property
    def pending(self) -> bool:
        """Is an entry only partly here? At the end of a stream that means it was cut off."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Chunk | Trailer]:
        """Every entry that is now whole. ValueError when this is not the export format."""
        self._buffer += data
        things: list[Chunk | Trailer] = []
        if len(self._buffer) < self._need:
            return things
        whole = bytes(self._buffer)
        at = 0
        while at < len(whole):
            fields, at = self._entry(whole, at)
            if fields is None:
                break
            if fields:
                things.append(_thing(fields))
        del self._buffer[:at]
        return things

    def _entry(self, whole: bytes, start: int) -> tuple[dict[bytes, list[bytes]] | None, int]:
        fields: dict[bytes, list[bytes]] = {}
        at = start
        while (end := whole.find(b"\n", at)) >= 0:
            line = whole[at:end]
            if not line:
                self._need = 1
                return fields, end + 1
            name, equals, value = line.partition(b"=")
            at = end + 1
            if not equals:
                length = int.from_bytes(whole[at : at + 8], "little")
                if len(whole) >= at + 8 and length > _LONGEST:
                    raise ValueError(f"a field of {length} bytes in the log stream")
                if len(whole) < at + 8 + length + 1:
                    self._need = at + 8 + length + 1 - start
                    return None, start
                value = whole[at + 8 : at + 8 + length]
                at += 8 + length + 1
            fields.setdefault(name, []).append(value)
        self._need = len(whole) - start + 1
        if self._need > 2 * _LONGEST:
            raise ValueError("an endless entry in the log stream")
        return None, start


def _thing(fields: dict[bytes, list[bytes]]) -> Chunk | Trailer:
    def number(name: bytes) -> int | None:
        return int(fields[name][0]) if name in fields else None

    def text(name: bytes) -> str | None:
        return fields[name][0].decode() if name in fields else None

    if b"JOBSVC_END" not in fields:
        stream = text(b"JOBSVC_STREAM")
        if stream not in STREAMS or b"JOBSVC_OFFSET" not in fields or b"MESSAGE" not in fields:
            raise ValueError("an entry in the log stream that is neither output nor its end")
        time = number(b"__REALTIME_TIMESTAMP") or 0
        return Chunk(cast(Stream, stream), number(b"JOBSVC_OFFSET") or 0, fields[b"MESSAGE"][0], time)
    end = End(
        run=number(b"JOBSVC_RUN") or 0,
        state=text(b"JOBSVC_STATE") or "",
        result=text(b"JOBSVC_RESULT"),
        exit_code=number(b"JOBSVC_EXIT_CODE"),
        signal=number(b"JOBSVC_SIGNAL"),
        stdout_bytes=number(b"JOBSVC_STDOUT_BYTES"),
        stderr_bytes=number(b"JOBSVC_STDERR_BYTES"),
    )
    return Trailer(end, tuple(parse_missing(gap.decode()) for gap in fields.get(b"JOBSVC_MISSING", [])))
