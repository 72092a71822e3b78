"""The journal, as far as we need it: the output entries of one run, in order. Blocking.

Only what journald itself vouches for is believed: `_UID`, `_PID` and `_BOOT_ID` are part of every
match, because anybody can write JOBSVC_* fields to the namespace's socket. Fields are fetched one
by one from the C reader (get_next() converts all twenty of them). Seeking by monotonic time is not
used: systemd 252 finds the wrong entry once there is more than one file.
"""

# ruff: noqa: SLF001  # python-systemd gives no other names to its unconverted reading

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, cast

from jobsvc import events
from jobsvc.chunks import STREAMS, Chunk, Stream

NAMESPACE: Final = "jobsvc"

_LONGEST: Final = 1024 * 1024  # a supervisor sends 64 KiB at most: more is the job's own forgery
_LATEST: Final = 2**63 - 1  # µs; the C reader takes no more than 64 bits


class Entries(Protocol):
    """What we use of systemd.journal.Reader; the names are python-systemd's."""

    data_threshold: int

    def add_match(self, match: str, /) -> None: ...
    def flush_matches(self) -> None: ...
    def seek_head(self) -> None: ...
    def seek_tail(self) -> None: ...
    def seek_cursor(self, cursor: str, /) -> None: ...
    def seek_realtime(self, usec: int, /) -> None: ...
    def test_cursor(self, cursor: str, /) -> bool: ...
    def _next(self) -> bool: ...
    def _previous(self) -> bool: ...
    def _get(self, name: str, /) -> bytes: ...
    def _get_cursor(self) -> str: ...
    def _get_realtime(self) -> int: ...
    def fileno(self) -> int: ...
    def process(self) -> int: ...
    def has_persistent_files(self) -> bool: ...
    def has_runtime_files(self) -> bool: ...
    def close(self) -> None: ...


def open_namespace() -> Entries:
    """A reader of our namespace. It is not safe to use from two threads at once."""
    return cast(Entries, importlib.import_module("systemd.journal").Reader(namespace=NAMESPACE))


@dataclass(frozen=True, slots=True)
class Source:
    """Whose entries are believed to be the output of a run. No main process, no output.

    `written` is how long each stream became, once that is known: the number of an ended process is
    given to another, which may be the same user's and say that it writes on.
    """

    id: str
    run: int
    uid: int
    main_pid: int | None
    boot_id: str
    written: tuple[int, int] | None = None  # stdout, stderr


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the journal: after the entry with this cursor, or at it; None: before all."""

    cursor: str | None = None
    at_it: bool = False


HEAD: Final = Mark()


@dataclass(frozen=True, slots=True)
class Item:
    """One entry: its place, and its chunk if it makes sense and is of a stream asked for."""

    cursor: str
    chunk: Chunk | None


@dataclass(frozen=True, slots=True)
class Batch:
    items: list[Item]
    mark: Mark
    drained: bool  # there was nothing more at that moment


class Reader:
    """One open journal. Every question places it anew: 20 µs, and nothing is remembered wrongly."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self._ends: dict[str, int] = {}  # of the streams of the source asked about
        entries.data_threshold = _LONGEST + 64
        try:
            entries.fileno()  # sets up inotify: without it new files are never seen
            self.reusable = entries.has_persistent_files() or entries.has_runtime_files()
        except OSError:
            self.reusable = False

    @classmethod
    def open(cls, opener: Callable[[], Entries] = open_namespace) -> Self:
        return cls(opener())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.entries.close()

    def forward(
        self,
        source: Source,
        mark: Mark = HEAD,
        streams: Collection[Stream] = STREAMS,
        max_bytes: int = 1024 * 1024,
        max_entries: int = 1024,
    ) -> Batch:
        """The entries from `mark` on, oldest first, in bounded portions."""
        entries = self.entries
        self.match(source)
        if source.main_pid is None:
            return Batch([], mark, True)
        items: list[Item] = []
        size = 0
        more = self._seek(mark)
        while more:
            item = Item(entries._get_cursor(), self.chunk(streams))
            items.append(item)
            size += len(item.chunk.data) if item.chunk else 0
            if size >= max_bytes or len(items) >= max_entries:
                break
            more = entries._next()
        return Batch(items, Mark(items[-1].cursor) if items else mark, not more)

    def match(self, source: Source, stream: Stream | None = None) -> None:
        entries = self.entries
        self._ends = dict(zip(STREAMS, source.written, strict=True)) if source.written else {}
        entries.process()  # take note of files that came and went
        entries.flush_matches()
        entries.add_match(f"JOBSVC_ID={source.id}")
        entries.add_match(f"JOBSVC_RUN={source.run}")
        entries.add_match(f"_UID={source.uid}")
        entries.add_match(f"_PID={source.main_pid or 0}")
        entries.add_match(f"_BOOT_ID={source.boot_id}")
        if stream:
            entries.add_match(f"JOBSVC_STREAM={stream}")

    def has_last(self, source: Source) -> bool:
        """Is the entry there that its supervisor sends after all output of the run?"""
        entries = self.entries
        entries.process()
        entries.flush_matches()
        for match in (f"JOBSVC_ID={source.id}", f"JOBSVC_RUN={source.run}", f"MESSAGE_ID={events.END_OF_OUTPUT}"):
            entries.add_match(match)
        entries.add_match("_UID=0")
        entries.add_match(f"_BOOT_ID={source.boot_id}")
        entries.seek_head()
        return entries._next()

    def newest(self) -> str | None:
        """The newest entry of all, whosever it is."""
        self.entries.flush_matches()
        self.entries.seek_tail()
        return self.entries._get_cursor() if self.entries._previous() else None

    def _seek(self, mark: Mark) -> bool:
        entries = self.entries
        if mark.cursor is None:
            entries.seek_head()
            return entries._next()
        entries.seek_cursor(mark.cursor)
        found = entries._next()
        if found and not mark.at_it and entries.test_cursor(mark.cursor):
            return entries._next()
        return found

    def chunk(self, streams: Collection[Stream] = STREAMS, data: bool = True) -> Chunk | None:
        """The entry as a chunk; None if it is of no interest or not as a supervisor writes them."""
        get = self.entries._get
        try:
            name = get("JOBSVC_STREAM").decode()
            offset = get("JOBSVC_OFFSET")
            if name not in STREAMS or name not in streams or not offset.isdigit() or len(offset) > 18:
                return None
            message = get("MESSAGE") if data else b""
        except (KeyError, UnicodeDecodeError):
            return None
        except OSError:  # a damaged entry: what it held is missing
            return None
        end = self._ends.get(name, int(offset) + _LONGEST)
        if len(message) > _LONGEST or int(offset) >= end:
            return None
        return Chunk(cast(Stream, name), int(offset), message[: end - int(offset)], self.entries._get_realtime())

    def first(self) -> Chunk | None:
        """The next entry that makes sense, without its bytes."""
        while self.next():
            if chunk := self.chunk(data=False):
                return chunk
        return None

    def backward(
        self,
        source: Source,
        streams: Collection[Stream] = STREAMS,
        until_usec: int | None = None,
    ) -> Iterator[Chunk]:
        """The chunks from the last one (until then) to the first."""
        self.match(source, next(iter(streams)) if len(streams) == 1 else None)
        if until_usec is None:
            self.entries.seek_tail()
        else:
            self.seek_time(until_usec + 1)
        while self.previous():
            chunk = self.chunk(streams)
            if chunk and (until_usec is None or chunk.time_usec <= until_usec):
                yield chunk

    def seek_time(self, usec: int) -> None:
        self.entries.seek_realtime(min(usec, _LATEST))

    def next(self) -> bool:
        return self.entries._next()

    def previous(self) -> bool:
        return self.entries._previous()

    def cursor(self) -> str:
        return self.entries._get_cursor()

    def time_usec(self) -> int:
        return self.entries._get_realtime()
