"""The supervisor of one run: root, outside the job's scope, alive from before it to after it.

It holds the main process at the barrier until it is told to go, has the output captured, decides why
the run ended, and leaves a report. It needs nobody for that: files are the truth, its control socket is
the nudge. No descriptor that the job can touch is open in it: those are the other thread's (capture).
"""

from __future__ import annotations

import os
import signal
import sys

from jobsvc import cgroup, control, linux, loop, native, report, script
from jobsvc.beginning import Beginning
from jobsvc.capture import Capture
from jobsvc.clock import realtime_usec
from jobsvc.closing import Closing
from jobsvc.orders import Orders
from jobsvc.outfile import DEATH_WITHIN
from jobsvc.peers import Peers
from jobsvc.process import MainProcess
from jobsvc.record import Phase, Record
from jobsvc.request import Request
from jobsvc.story import Story
from jobsvc.verdict import StartError
from jobsvc.warden import Warden

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any, Final

    from jobsvc.cgroup import Scope
    from jobsvc.outfile import OutFiles

REPORTS = "/var/lib/jobsvc/reports"
NAMESPACE = "/run/systemd/journal.jobsvc/socket"
CGROUPS = "/sys/fs/cgroup"
SHUTDOWN = "/run/jobsvc/shutdown"  # there from before the first scope is stopped (jobsvc-shutdown.service)

NEVER_BEGUN: Final = "never begun"
FIRST_PEER: Final = 0.05  # seconds to wait for jobsvcd before PAM, so that it hears of the pid
PATIENCE: Final = 60.0  # seconds for anybody to connect at all
NUDGE: Final = 0.003  # seconds between two nudges to followers
HURRY_KILL: Final = 0.7  # seconds: SIGTERM to the supervisor means be done within two
HURRY_DRAIN: Final = 0.3  # of them from the last file to the report
HURRY_END: Final = 1.7
MOST_LEFT: Final = 16  # that are told of
REAP_WITHIN: Final = 5.0  # seconds for a main process that was killed
LAST_WORDS: Final = 1.0  # seconds for peers to come and hear the end
DRAIN_WITHIN: Final = 5.0  # seconds for the last output: longer than files are waited for


class Supervisor:
    """One run, from its request to its report. Methods are in the order in which things happen."""

    def __init__(self, directory: str, listener: _socket.socket, main: MainProcess) -> None:
        self.directory = directory
        self.main = main
        self.request = Request.read(f"{directory}/request")
        self.record = Record(self.request, main.pid)
        self.facts = self.record.facts
        self.events = loop.Loop()
        self.orders = Orders(self)
        self.peers = Peers(self.events, listener, self.orders)
        self.capture = Capture(self.events, self.request, NAMESPACE, self)
        self.record.capture = self.capture
        self.beginning = Beginning(self.request, main)
        self.early_go: str | None = None
        self.warden: Warden | None = None
        self.opening = False  # its output files
        self.sender: native.Sender | None = None  # of our own, if the capture has none any more
        self.closing: Closing | None = None
        self.on_disk = False
        self.end_by: float | None = None
        self.nudged = 0.0
        self.told = 0  # bytes of the journal of which everybody knows

    def run(self) -> None:
        """The whole life."""
        self.events.on_term(self.hurry)
        self.events.at("patience", loop.now() + PATIENCE, self.nobody)
        self.main.watch_end(self.events, self.main_ended)
        try:
            self.prepare()
        except StartError as error:
            self.fail(error)
        while self.record.phase is not Phase.CLOSED:
            self.events.turn()
        until = loop.now() + LAST_WORDS
        while not (self.peers.met and self.peers.all_told()) and loop.now() < until:
            self.events.turn(until)
        self.events.turn(0)  # what a peer sent meanwhile unread would reach it as a reset
        self.main.reap(REAP_WITHIN)
        if self.request.script is not None:
            script.remove(self.directory)
        report.clear(self.directory, keep=not self.on_disk)
        self.beginning.close_session()

    def ask(self, question: Callable[[], None], whom: str) -> None:
        """NSS and PAM may hang, and nothing can interrupt them: then this is all there is of the run."""
        seconds = self.request.start_timeout_usec / 1e6

        def overdue() -> None:
            self.capture.fails = True  # no thread is begun in the midst of a call of libc, nor waited for at our end
            self.fail(StartError("start", f"{whom} did not answer within {seconds:g} s (StartTimeoutSec=)"))
            self.main.signal(signal.SIGKILL)
            os._exit(1)

        linux.set_alarm(seconds, overdue)
        try:
            question()
        finally:
            linux.set_alarm(0, None)

    def prepare(self) -> None:
        """Whom to run as, and what the limits are about."""
        self.ask(self.beginning.look_up, "the user database (NSS)")
        wanted = loop.READ if self.request.io_paths else loop.HUNG_UP
        self.events.watch(self.main.gate.fileno(), wanted, self.hear_gate)
        if not self.request.io_paths:
            self.hold()

    def hear_gate(self, _events: int = 0) -> None:
        """Devices before the barrier; after it files, exec or a failed step."""
        over = self.main.listen()
        if not over and self.main.devices and self.record.phase is Phase.PREPARING:
            try:
                self.record.io_devices = self.beginning.resolve()
                self.events.watch(self.main.gate.fileno(), loop.HUNG_UP, self.hear_gate)
                self.hold()
            except StartError as error:
                self.fail(error)
        elif over and not self.main.gate_closed:
            self.main.close_gate(self.events)
            self.facts.failure = self.facts.failure or self.main.failure
            if self.main.executing:
                self.started()

    def hold(self) -> None:
        """The process waits at the barrier: time for PAM, while PID 1 makes the scope."""
        self.record.phase = Phase.HELD
        devices = self.record.io_devices
        self.peers.tell(control.pack("held", main_pid=self.main.pid, io_devices=devices))
        if self.request.pam != "no":
            until = loop.now() + FIRST_PEER
            while not self.peers.met and loop.now() < until:
                self.events.turn(until)
        if self.record.phase is Phase.HELD:
            self.ask(self.beginning.open_session, "PAM (/etc/pam.d/jobsvc)")
            if self.early_go is not None:
                self.go(self.early_go)

    def go(self, control_group: str) -> None:
        """The scope is there and its limits are in force: open the barrier."""
        if self.record.phase is not Phase.HELD:
            return
        if self.beginning.gifts is None:
            self.early_go = control_group
            return
        if self.opening:
            return
        try:
            scope = self.beginning.enter(CGROUPS, control_group)
            files = self.beginning.open_files()
        except StartError as error:
            self.fail(error)
            return
        if files is None:
            self.begin(scope)
        else:
            self.await_files(files, scope)

    def await_files(self, files: OutFiles, scope: Scope | None) -> None:
        """A process of their own opens the output files; that may hang."""
        self.opening = True
        door = files.door.fileno()
        seconds = self.request.start_timeout_usec / 1e6
        late = StartError(files.streams[0], f"its output files could not be opened within {seconds:g} s")

        def refuse(problem: StartError) -> None:
            self.facts.failure = problem
            self.main.close_gate(self.events)  # it exits as a shell does that cannot open a file

        def opened(_events: int) -> None:
            self.events.cancel("files")
            self.events.forget(door)
            problem = files.opened()
            files.door.close()
            if self.record.phase is not Phase.HELD or self.main.gate_closed:
                return
            if problem is not None:
                refuse(problem)
            else:
                self.begin(scope)

        self.events.watch(door, loop.READ, opened)
        self.events.at("files", loop.now() + seconds, lambda: refuse(late))

    def begin(self, scope: Scope | None) -> None:
        """Everything is there."""
        try:
            self.beginning.release(self.capture, self.directory)
        except StartError as error:
            self.fail(error)
            return
        present = loop.now()
        self.record.begun = True
        self.record.phase = Phase.RUNNING
        self.record.clock.begin(present)
        self.events.cancel("patience")
        self.warden = Warden(self.events, self.record, self.directory, self.main, scope, self.finish, self.paused)
        self.warden.begin()
        self.attend()

    def attend(self) -> None:
        """See to what no peer sees to."""
        if self.warden is not None:
            self.warden.guard(not any(peer.looks for peer in self.peers.all.values()))

    def paused(self, on: bool) -> None:
        self.peers.tell(control.pack("paused" if on else "resumed"))

    def started(self) -> None:
        """exec succeeded: from here on there is output."""
        self.record.started_usec = realtime_usec()
        self.capture.post(self.capture.on_started)
        self.peers.tell(control.pack("started", started_usec=self.record.started_usec))

    def main_ended(self, _events: int = 0) -> None:
        """It is a zombie now, and stays one until journald has its output."""
        status = self.main.ended()
        if status is None:
            return
        self.events.forget(self.main.fd)
        self.hear_gate()
        self.facts.status = status
        self.facts.shutdown = os.path.exists(SHUTDOWN)
        self.record.rusage = self.main.usage()
        if self.warden is not None:
            self.warden.main_ended()
        else:
            self.fail(StartError("barrier", "the process was killed before the job began"))

    def nobody(self) -> None:
        """Nobody is there to say go: somebody may queue the run again."""
        if not self.record.begun and not self.record.over and not self.peers.all:
            self.fail(StartError("barrier", NEVER_BEGUN))

    def call_off(self, reason: str) -> None:
        """Asked to stop before there was anything to stop."""
        self.facts.stop = reason
        self.finish()

    def fail(self, failure: StartError) -> None:
        """The job cannot be begun."""
        if self.facts.failure is None:
            self.facts.failure = failure
        self.finish()

    def finish(self) -> None:
        """Everything of the run has ended: the last output; files are waited for, though not long."""
        if self.record.over:
            return
        self.record.note_end(loop.now())
        if not self.record.begun:
            self.main.close_gate(self.events)
            self.main.signal(signal.SIGKILL)  # it may hang where it looks for the disk of a path
            self.main.wait(DEATH_WITHIN)
        self.events.cancel("files")
        if self.capture.runs:
            started = self.record.started_usec is not None
            files_by = None if self.end_by is None else self.end_by - HURRY_DRAIN
            self.capture.post(lambda: self.capture.on_finish(started, files_by))
            self.drain_by(loop.now() + DRAIN_WITHIN)
            return
        if self.beginning.files is not None:
            self.beginning.files.discard()
            self.beginning.files.hangs = self.beginning.files.outlives_sigkill()
        self.conclude()

    def drain_by(self, limit: float) -> None:
        """The capture may hang: the run ends all the same."""

        def overdue() -> None:
            self.capture.hangs = True
            self.conclude()

        self.events.at("drain", limit if self.end_by is None else min(limit, self.end_by), overdue)

    def conclude(self) -> None:
        """The verdict, the report."""
        self.events.cancel("drain")
        facts = self.record.end(self.left())
        self.record.phase = Phase.ENDED
        self.write_report()
        self.peers.tell(control.pack("ended", report=facts))
        self.tell_end(facts, told=facts["reason"] != NEVER_BEGUN)

    def left(self) -> list[list[int | str]]:
        """Processes that hang in the kernel and outlive the run: this one, that of its files, those of the job."""
        left = [os.getpid()] if self.capture.hangs else []
        files, warden = self.beginning.files, self.warden
        if files is not None and files.hangs:
            left.append(files.pid)
        left += [one.pid for one in self.orders.hanging()]
        if not self.record.begun and self.main.ended() is None:
            left.append(self.main.pid)
        if self.facts.stuck and warden is not None and warden.scope is not None:
            left += warden.scope.pids()[:MOST_LEFT]
        return [[pid, group] for pid in left if (group := cgroup.of_process(pid)) is not None]

    def tell_end(self, facts: dict[str, Any], *, told: bool) -> None:
        """The last entries in the journal, after the output."""
        end_by = self.end_by
        if not (self.capture.runs or self.capture.fails):
            try:
                self.capture.start(None, None)
            except (OSError, RuntimeError):  # what kept it from starting before, as a limit of threads
                self.capture.fails = True
        if not (self.capture.hangs or self.capture.fails):
            self.capture.post(lambda: self.capture.on_end(facts, told, end_by))
            return
        self.sender = native.Sender(self.events, NAMESPACE, self.room, lambda _: None)
        story = Story(self.request, self.sender)
        if told:
            story.finished(facts)
            story.end_of_output(facts)
        self.closing = Closing(self.events, self.sender, self.closed)
        if end_by is not None:
            self.closing.hurry(end_by)
        self.closing.check()

    def write_report(self) -> None:
        assert self.record.report is not None
        run = os.path.basename(self.directory)
        try:
            self.on_disk = report.write(REPORTS, self.directory, run, self.record.report)
        except OSError as error:
            # Nowhere to write: peers hear it, and the journal has the finished event, if it has any.
            sys.stderr.write(f"jobsvc: no report of {run}: {error}\n")
            sys.stderr.flush()

    def closed(self) -> None:
        """journald has processed the output, or is not going to."""
        if self.record.phase is not Phase.ENDED:
            return
        lost = self.undelivered()
        if lost and self.record.report is not None:
            self.record.undelivered = self.record.report["undelivered"] = lost
            self.write_report()
        self.record.phase = Phase.CLOSED
        self.nudge()
        self.peers.tell(control.pack("closed", undelivered=self.record.undelivered))

    def undelivered(self) -> list[list[str | int]]:
        """The output that journald was never handed."""
        capture = self.capture
        if not (capture.hangs or capture.fails):
            return [list(output) for output in capture.sender.unsent()]
        cut = {name: start for name, start, _ in capture.pump.ranges()} if capture.pump is not None else {}
        ends = ((one, cut.get(one.name, one.read)) for one in capture.streams or ())
        return [[one.name, one.sent, int(end)] for one, end in ends if one.sent < int(end)]

    def hurry(self) -> None:
        """SIGTERM: the machine goes down, or somebody wants us gone."""
        self.end_by = loop.now() + HURRY_END
        if self.record.phase is Phase.ENDED:
            present = loop.now()
            if self.closing is not None:
                self.closing.hurry(present)
            else:
                self.capture.post(lambda: self.capture.on_hurry(present))
        elif self.record.over:
            limit = loop.now() + HURRY_KILL
            self.capture.post(lambda: self.capture.on_hurry(limit))
            self.drain_by(limit + HURRY_DRAIN)
        elif self.warden is not None:
            self.warden.stop("the supervisor was told to end", HURRY_KILL)
        else:
            self.fail(StartError("barrier", NEVER_BEGUN))

    # What the capture tells

    def moved(self) -> None:
        self.events.at("nudge", max(loop.now(), self.nudged + NUDGE), self.nudge)

    def silent(self) -> None:
        """Nobody has the pipes open: the job is about to end, and its cgroup is gone soon after."""
        if self.warden is not None and not self.record.over:
            self.warden.note_usage()

    def drained(self) -> None:
        if self.record.phase is Phase.ENDED:
            if self.capture.fails:
                self.closed()
        elif self.record.over:
            self.conclude()
        elif self.capture.fails:  # it goes on without anybody who takes its output: it would wait for that
            assert self.warden is not None
            self.warden.stop("its output cannot be captured any more: this is a fault of jobsvc")

    def nudge(self) -> None:
        """There is more output: tell those who follow, and, of much, everybody."""
        self.nudged = loop.now()
        self.capture.moves()
        if self.request.output_step and self.record.journal_bytes >= self.told + self.request.output_step:
            self.told = self.record.journal_bytes
            self.peers.count()
        self.peers.nudge()

    def room(self) -> None:
        if self.closing is not None:
            self.closing.check()
