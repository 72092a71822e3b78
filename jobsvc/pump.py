"""Copies a job's two pipes to the journal (and to files): exact bytes, sensible entries.

One entry carries what one read gave, cut after its last newline; the rest of the line is held back
for a moment, because it usually comes. While journald is behind, the pipes are not read: the job
waits in write(2), and nothing piles up here.
"""

from __future__ import annotations

import fcntl
import os

from jobsvc import linux, loop, native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from jobsvc.outfile import OutFiles
    from jobsvc.request import Request

ENTRY: Final = 64 * 1024
HOLD: Final = 0.045  # seconds a part of a line may wait for the rest of it: "within about 50 ms"

# A job that writes line by line as fast as it can would get an entry per line, which costs journald
# twenty times what it costs the job. After so many reads in a row, each that soon after the last,
# its pipe is left alone for a moment and grows meanwhile.
QUICK: Final = 0.002
QUICK_READS: Final = 8
GATHER: Final = 0.003
BIG_READ: Final = 32 * 1024
TERMINAL_READS: Final = 64  # of 4 KiB, and what waits is less; somebody who left the scope may write on and on
WIDE_PIPE: Final = 1024 * 1024
LOOK: Final = 1.0  # seconds; as often does journald look what a process is


class Stream:
    """One pipe and how far it has come."""

    def __init__(self, name: str, fd: int, priority: int, terminal: bool = False) -> None:
        self.name = name
        self.terminal = terminal  # nothing is held back from somebody who sits there
        self.fd = fd
        self.priority = priority
        self.open = True
        self.watched = False
        self.read = 0  # bytes the job wrote and we have
        self.sent = 0  # byte after the last that journald was handed
        self.held = b""  # the beginning of a line whose end has not come
        self.prefix = b""
        self.place: int | None = None  # its file's among all, if it has one
        self.last_read = 0.0
        self.quick_reads = 0
        self.gathering = False


class Pump:
    """Both streams of a run."""

    def __init__(self, events: loop.Loop, request: Request, stdout: int, stderr: int, terminal: bool) -> None:
        self.events = events
        self.streams = (Stream("stdout", stdout, 6, terminal), Stream("stderr", stderr, 4))
        for stream in self.streams:
            stream.prefix = (
                native.field("JOBSVC_ID", request.id)
                + native.field("JOBSVC_RUN", str(request.run))
                + native.field("JOBSVC_STREAM", stream.name)
                + native.field("SYSLOG_IDENTIFIER", request.name)
                + native.field("PRIORITY", str(stream.priority))
            )
        self.room: int | None = request.log_size_max
        self.quiet = request.quiet
        self.taken = 0  # bytes of the journal that its entries take
        self.most: int | None = request.output_left  # that they may take
        self.budget_is_used_up = False
        self.cut: dict[str, list[int]] = {}
        self.sender: native.Sender
        self.on_end: Callable[[], None]
        self.pid = 0
        self.credentials = b""
        self.arguments = (0, 0)
        self.look_at = 0.0
        self.files: OutFiles | None = None
        self.begun = False

    def begin(self, sender: native.Sender, who: tuple[int, int, int], on_end: Callable[[], None]) -> None:
        """Start reading: the job runs, as this process, user and group.

        `on_end` is called when both pipes have come to their end while it runs.
        """
        self.sender = sender
        self.on_end = on_end
        self.pid = who[0]
        self.credentials = native.credentials(*who)
        self.begun = True
        self.resume()

    def tee(self, files: OutFiles) -> None:
        """Streams go to files as well."""
        self.files = files
        files.on_room = self._file_room
        for stream in self.streams:
            if stream.name in files.streams:
                stream.place = files.streams.index(stream.name)

    def _file_room(self) -> None:
        if not self.sender.busy:
            self.resume()

    def _file_behind(self, stream: Stream) -> bool:
        return stream.place is not None and self.files is not None and self.files.busy

    def resume(self) -> None:
        """Read (again) what may be read."""
        for stream in self.streams:
            if stream.open and not stream.watched and not stream.gathering and not self._file_behind(stream):
                stream.watched = True
                self.events.watch(stream.fd, loop.READ, self._reader(stream))

    def _reader(self, stream: Stream) -> Callable[[int], None]:
        return lambda _events: self.read(stream)

    def pause(self) -> None:
        """journald is behind: let the job wait."""
        for stream in self.streams:
            self._unwatch(stream)

    def _unwatch(self, stream: Stream) -> None:
        if stream.watched:
            stream.watched = False
            self.events.forget(stream.fd)

    def read(self, stream: Stream) -> None:
        """One read, which never waits: the pipe has something, or its writers are gone."""
        try:
            data = os.read(stream.fd, ENTRY - len(stream.held))
        except BlockingIOError:
            return
        if not data:
            self.close(stream)
            if not any(stream.open for stream in self.streams):
                self.on_end()
            return
        self.take(stream, data)
        if self.sender.busy:
            self.pause()
        elif self._file_behind(stream):
            self._unwatch(stream)
        else:
            self._gather(stream, len(data))

    def _gather(self, stream: Stream, count: int) -> None:
        """Leave a busy writer of small pieces alone for a moment."""
        present = loop.now()
        quick = present - stream.last_read < QUICK and count < BIG_READ
        stream.last_read = present
        stream.quick_reads = stream.quick_reads + 1 if quick else 0
        if stream.quick_reads < QUICK_READS:
            return
        stream.quick_reads = 0
        stream.gathering = True
        self._unwatch(stream)
        try:
            fcntl.fcntl(stream.fd, fcntl.F_SETPIPE_SZ, WIDE_PIPE)
        except OSError:
            pass  # pipe-max-size is smaller here: then it is as wide as it is

        def resume() -> None:
            stream.gathering = False
            if not self.sender.busy:
                self.resume()

        self.events.at(f"gather {stream.name}", present + GATHER, resume)

    def take(self, stream: Stream, data: bytes) -> None:
        """Account for what was read and send what is ready."""
        stream.read += len(data)
        if stream.place is not None and self.files is not None:
            self.files.write(stream.place, data)
        if stream.held:
            waiting = True
            data = stream.held + data
            stream.held = b""
        else:
            waiting = False
        end = data.rfind(b"\n") + 1
        if end == len(data) or len(data) - end >= ENTRY or stream.terminal:
            end = len(data)
        if end:
            self.emit(stream, data[:end] if end < len(data) else data, stream.read - len(data))
            waiting = False
        if end < len(data):
            stream.held = data[end:]
            if not waiting:
                self.events.at(f"line {stream.name}", loop.now() + HOLD, lambda: self.release(stream))
        elif self.events.deadlines:
            self.events.cancel(f"line {stream.name}")

    def release(self, stream: Stream) -> None:
        """The rest of the line did not come in time."""
        held, stream.held = stream.held, b""
        if held:
            self.emit(stream, held, stream.read - len(held))
        if self.sender.busy:
            self.pause()

    def emit(self, stream: Stream, data: bytes, offset: int) -> None:
        """One entry, as far as LogSizeMax= and the owner's budget have room."""
        cost = native.ENTRY_COST + self._new_arguments()
        if self.quiet and not self.taken:
            cost += native.ENTRY_COST  # of the entry that marks the end of output
        kept = self._fitting(len(data), cost)
        if kept < len(data):
            self._cut(stream, offset + kept, offset + len(data))
            data = data[:kept]
        if not data:
            return
        self.taken += cost + kept
        if self.room is not None:
            self.room -= kept
        head = b"%bJOBSVC_OFFSET=%d\nMESSAGE\n%b" % (
            stream.prefix,
            offset,
            len(data).to_bytes(8, "little"),
        )
        output = (stream.name, offset, offset + len(data))
        self.sender.send(native.Entry([head, data, b"\n"], self.credentials, output))

    def _fitting(self, count: int, cost: int) -> int:
        """How many bytes of a next entry there is room for, if it takes so many besides."""
        if self.room is not None:
            count = min(count, self.room)
        if self.budget_is_used_up:
            return 0  # a next one may cost less, but what was cut ends only with the output
        if self.most is not None and count > (left := max(0, self.most - self.taken - cost)):
            self.budget_is_used_up = True
            return left
        return count

    def _new_arguments(self) -> int:
        """How long the command line is that journald will note with a next entry; 0 if it has noted it before.

        Where it is tells one from another. Its text is not looked at: who reads another's memory may have to wait.
        """
        present = loop.now()
        if present < self.look_at:
            return 0
        self.look_at = present + LOOK
        before, self.arguments = self.arguments, linux.arguments(self.pid)
        begin, end = self.arguments
        return end - begin if self.arguments != before else 0

    def bound(self, left: int) -> None:
        """Its entries may take no more of the journal than that from now on."""
        if self.most is None or self.taken + left < self.most:
            self.most = self.taken + left

    def notes(self) -> list[str]:
        """What is to be told beside the result."""
        notes = list(self.files.failures) if self.files is not None else []
        if self.cut and self.budget_is_used_up:
            notes.append("its output was cut: MaxOutputPerUser= is reached")
        return notes

    def _cut(self, stream: Stream, start: int, end: int) -> None:
        self.cut.setdefault(stream.name, [start, end])[1] = end

    def sent(self, output: native.Range) -> None:
        """journald was handed that."""
        stream = self.streams[0] if output[0] == "stdout" else self.streams[1]
        stream.sent = output[2]

    def finish(self) -> None:
        """Take what is in the pipes now and close them.

        Without insisting on end-of-file: a process that left the scope may hold them, and write.
        """
        for stream in self.streams:
            if stream.open and stream.terminal:
                self._drain(stream)
            elif stream.open:
                waiting = linux.unread(stream.fd)
                while waiting > 0:
                    data = os.read(stream.fd, min(waiting, ENTRY - len(stream.held)))
                    waiting -= len(data)
                    self.take(stream, data)
            if stream.open:
                self.close(stream)

    def _drain(self, stream: Stream) -> None:
        """A terminal does not say how much waits, but when nothing does."""
        for _ in range(TERMINAL_READS):
            try:
                data = os.read(stream.fd, ENTRY)
            except OSError:
                return
            if not data:
                return
            self.take(stream, data)

    def close(self, stream: Stream) -> None:
        """The end of one stream: what is held goes out."""
        self.events.cancel(f"line {stream.name}")
        self.events.cancel(f"gather {stream.name}")
        self._unwatch(stream)
        os.close(stream.fd)
        stream.open = False
        self.release(stream)

    def ranges(self) -> list[list[str | int]]:
        """What was cut: stream, first byte, byte after the last."""
        return [[name, start, end] for name, (start, end) in self.cut.items()]
