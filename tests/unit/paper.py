"""A journal on paper: what jobsvc.journal.Entries promises, in memory, with the accidents a real one can have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jobsvc.journal import Source

SOURCE = Source("00000000000000aa", 1, 1000, 4711, "b" * 32)


@dataclass
class Entry:
    number: int
    time_usec: int
    fields: dict[str, bytes]
    damaged: bool = False


@dataclass
class Paper:
    """Entries in the order journald wrote them. Numbers stay when old ones are vacuumed."""

    entries: list[Entry] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    count: int = 0
    opened: int = 0
    searched: int = 0  # how often an entry was looked for
    fails: Callable[[], None] = lambda: None  # raises what the reader is to raise

    def put(
        self,
        data: bytes,
        stream: str = "stdout",
        offset: int | None = None,
        source: Source = SOURCE,
        time_usec: int | None = None,
        **fields: bytes | None,
    ) -> Entry:
        """What a supervisor would have sent; offsets run on by themselves unless given."""
        if offset is None:
            offset = self.at[stream]
            self.at[stream] += len(data)
        self.count += 1
        known: dict[str, bytes | None] = {
            "MESSAGE": data,
            "JOBSVC_ID": source.id.encode(),
            "JOBSVC_RUN": b"%d" % source.run,
            "JOBSVC_STREAM": stream.encode(),
            "JOBSVC_OFFSET": b"%d" % offset,
            "_UID": b"%d" % source.uid,
            "_PID": b"%d" % (source.main_pid or 0),
            "_BOOT_ID": source.boot_id.encode(),
        }
        kept = {name: value for name, value in (known | fields).items() if value is not None}
        time_usec = self.count * 1000 if time_usec is None else time_usec
        self.entries.append(Entry(self.count, time_usec, kept))
        return self.entries[-1]

    def reader(self) -> PaperReader:
        self.opened += 1
        return PaperReader(self)

    def vacuum(self, keep: int) -> None:
        del self.entries[: len(self.entries) - keep]


class PaperReader:
    """One open reader. As in sd-journal, a seek only says where the next step starts from."""

    def __init__(self, paper: Paper) -> None:
        self.data_threshold = 0
        self.closed = False
        self._paper = paper
        self._matches: list[str] = []
        self._low = 0  # the next entry has at least this number,
        self._high = -1  # the previous one at most this
        self._here: Entry | None = None

    def add_match(self, match: str, /) -> None:
        self._matches.append(match)

    def flush_matches(self) -> None:
        self._matches.clear()

    def seek_head(self) -> None:
        self._low, self._high = 0, -1

    def seek_tail(self) -> None:
        self._low, self._high = self._paper.count + 1, 1 << 62

    def seek_cursor(self, cursor: str, /) -> None:
        self._low = self._high = int(cursor)

    def seek_realtime(self, usec: int, /) -> None:
        entries = self._paper.entries
        late = (entry.number for entry in entries if entry.time_usec >= usec)
        self._low = next(late, self._paper.count + 1)
        self._high = max((entry.number for entry in entries if entry.time_usec <= usec), default=-1)

    def test_cursor(self, cursor: str, /) -> bool:
        return self._get_cursor() == cursor

    def _next(self) -> bool:
        self._paper.fails()
        return self._step(next((entry for entry in self._matching() if entry.number >= self._low), None))

    def _previous(self) -> bool:
        self._paper.fails()
        found = (entry for entry in reversed(self._matching()) if entry.number <= self._high)
        return self._step(next(found, None))

    def _get(self, name: str, /) -> bytes:
        assert self._here
        if self._here.damaged:
            raise OSError(74, "Bad message")
        return self._here.fields[name]

    def _get_cursor(self) -> str:
        assert self._here
        return str(self._here.number)

    def _get_realtime(self) -> int:
        assert self._here
        return self._here.time_usec

    def fileno(self) -> int:
        return 0

    def process(self) -> int:
        assert not self.closed
        return 0

    def has_persistent_files(self) -> bool:
        return bool(self._paper.entries)

    def has_runtime_files(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def _step(self, entry: Entry | None) -> bool:
        self._paper.searched += 1
        if entry:
            self._here = entry
            self._low, self._high = entry.number + 1, entry.number - 1
        return entry is not None

    def _matching(self) -> list[Entry]:
        wanted = [match.encode().split(b"=", 1) for match in self._matches]
        return [
            entry
            for entry in self._paper.entries
            if all(entry.fields.get(name.decode()) == value for name, value in wanted)
        ]
