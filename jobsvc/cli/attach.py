"""Staying with a job: its output here, our interrupts there, and its end as our exit code."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
from collections.abc import Callable

from jobsvc.chunks import Chunk
from jobsvc.cli.interrupts import Interrupts
from jobsvc.cli.session import Session
from jobsvc.client import MANAGER, Client, Options
from jobsvc.client_bus import BusError
from jobsvc.client_logs import LogStream
from jobsvc.errors import Internal, JobsvcError, ServiceUnavailable
from jobsvc.formats import End, Trailer

READER_GONE = 128 + signal.SIGPIPE
LEFT = 128 + signal.SIGINT
TIMED_OUT = 124
OUR_FAILURE = 125
FAREWELL_SECONDS = 5.0

# What to say of an end that the exit code alone does not explain.
ENDS = {
    "signal": "was ended by {signal}",
    "core-dump": "crashed with {signal} and dumped core",
    "timeout": "ran into its time limit and was stopped",
    "oom-kill": "ran out of memory and was killed",
    "start-failed": "could not be started",
    "lost": "was lost: nobody saw how it ended",
    "stopped": "was stopped",
    "canceled": "was canceled before it began",
}


class Left(Exception):
    """Ctrl-C for the third time: the job is left to itself."""


class Attached:
    """One job with our terminal attached to it."""

    def __init__(self, session: Session, client: Client) -> None:
        self.session = session
        self.client = client
        self.job = ""
        self.asked = 0  # 1: to stop, 2: to die, 3: to be left alone
        self.told = 0
        self.interrupts = Interrupts(signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> Attached:
        self.interrupts.__enter__()
        self.client.bus.interrupt = self
        self.client.on_return = self.tell
        return self

    def __exit__(self, *_: object) -> None:
        self.client.bus.interrupt = None
        self.interrupts.__exit__()

    def follow(self, submit: Callable[[], str], renewed: bool = False, retries: bool = False) -> int:
        """Submit a job and follow it to its end. `renewed`: it may be there already, in any run.

        With `retries` its end is that of the last try.
        """
        try:
            self.job = submit()
            self.tell()
            run = self.client.status(self.job).get("Run", 1) if renewed else 1
            trailer = self.read(run)
            while retries and (again := self._again(trailer.end)):
                trailer = self.read(again)
            return self._end(trailer)
        except BrokenPipeError:
            self._abandon()
            return READER_GONE
        except OSError:  # no room for the output, or worse
            self._abandon()
            raise
        except Left:
            job = f"job {self.job}" if self.job else "the job, if there is one,"
            self.session.say(f"left {job} to itself; 'jobctl list' shows it")
            return LEFT

    def read(self, run: int, also: Options | None = None) -> Trailer:
        """Bring the output of a run here, to its end."""
        if sys.stderr and sys.stderr.isatty():
            self.client.while_queued(self.job, lambda why: self.session.say(f"job {self.job} waits: {why}"))
        options = {"Follow": ("b", True), "Run": ("u", run), **(also or {})}
        writers = {"stdout": Writer(1, self), "stderr": Writer(2, self)}
        for thing in LogStream(self.client, self.job, options):
            if isinstance(thing, Chunk):
                writers[thing.stream].write(thing.data)
                continue
            for gap in thing.missing:
                self.session.say(f"bytes {gap.start} to {gap.end} of {gap.stream} are missing ({gap.why})")
            return thing
        raise Internal("the output ended without an end")

    def _again(self, end: End) -> int | None:
        """The run that tries again after this one, if there is one."""
        if end.state != "failed":
            return None
        status = self.client.status(self.job)
        run = int(status.get("Run", end.run))
        if run <= end.run:
            return None
        self.session.say(f"run {end.run} of job {self.job} failed ({end.result}); run {run} follows")
        return run

    # Interrupts, at any moment of any wait

    def fileno(self) -> int:
        return self.interrupts.fileno()

    def handle(self) -> None:
        for number in self.interrupts.take():
            self.struck(number)
        if self.asked > (2 if self.job else 1):
            raise Left
        self.tell()

    def struck(self, number: int) -> None:
        self.asked = self.asked + 1 if number == signal.SIGINT else max(self.asked, 1)

    def tell(self) -> None:
        """Tell the service what it has not heard yet. Nobody waits for its answer."""
        if not self.job or self.asked <= self.told:
            return
        asked = self.told = self.asked

        def then(error: BusError | None) -> None:
            if error and not error.name.endswith((".WrongState", ".NoSuchJob")):
                self.told = min(self.told, asked - 1)  # said again when the service is back
                failed = self.client.error(error)
                if not isinstance(failed, ServiceUnavailable):
                    self.session.say(f"cannot {'stop' if asked == 1 else 'kill'} job {self.job}: {failed}")

        if asked == 1:
            self.client.bus.send(MANAGER, "Stop", "sa{sv}", (self.job, {}), then=then)
            self.session.say(f"stopping job {self.job}; Ctrl-C again kills it")
        else:
            kill: tuple[object, ...] = (self.job, "all", int(signal.SIGKILL), {})
            self.client.bus.send(MANAGER, "Kill", "ssia{sv}", kill, then=then)
            self.session.say(f"killing job {self.job}; Ctrl-C again leaves it to itself")

    def _abandon(self) -> None:
        """Nobody takes the output any more: the job is stopped, as SIGPIPE would have done."""
        self.client.bus.interrupt = None
        try:
            self.client.call("Stop", "sa{sv}", self.job, {}, timeout=FAREWELL_SECONDS)
        except JobsvcError:
            pass  # it has ended, or will when it is stopped by somebody else

    # The end

    def _end(self, trailer: Trailer) -> int:
        end = trailer.end
        if end.result in ENDS:
            self.session.say(self._explain(end))
        code = exit_code(end)
        if code == 0 and any(gap.why in ("lost", "late") for gap in trailer.missing):
            return OUR_FAILURE  # whoever goes on with the output must not take this for all of it
        return code

    def _explain(self, end: End) -> str:
        try:
            reason = self.client.status(self.job, {"Run": ("u", end.run)}).get("Reason")
        except JobsvcError:
            reason = None  # the end is known, only its story is not
        if reason:
            return f"job {self.job} ({end.result}): {reason}"
        return f"job {self.job} " + ENDS[end.result or ""].format(signal=signal_name(end.signal))


class Writer:
    """Writes to a descriptor without ever being deaf to an interrupt."""

    def __init__(self, fd: int, attached: Attached) -> None:
        self.fd = fd
        self._attached = attached
        # A pipe that polls writable takes a page without blocking (pipe(7)), more it might not.
        self._piece = 1 << 20 if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        poll.register(self._attached.fileno(), select.POLLIN)
        while view:
            ready = [fd for fd, _ in poll.poll()]
            if self._attached.fileno() in ready:
                self._attached.handle()
            if self.fd in ready:
                try:
                    view = view[os.write(self.fd, view[: self._piece]) :]
                except BlockingIOError:
                    pass  # somebody else has set it non-blocking, and filled it


def exit_code(end: End) -> int:
    """What `jobctl run` exits with for an end of the job."""
    match end.result:
        case "timeout":
            return TIMED_OUT
        case "lost" | "canceled":
            return OUR_FAILURE
        case "oom-kill" if end.signal is None:
            return end.exit_code or 128 + signal.SIGKILL
    if end.signal is not None:
        return 128 + end.signal
    return OUR_FAILURE if end.exit_code is None else end.exit_code


def signal_name(number: int | None) -> str:
    if number is None:
        return "a signal"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
