"""One run, from its launch or its adoption to its end: the same function drives both.

Files are the truth (request, report), the control socket is the nudge. A supervisor that does not
need us goes on by itself; what it says of its run we take in.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from jobsvc import cgroup, ending, launch, limits, model, rundir, spec, systemd
from jobsvc.allowance import Allowance
from jobsvc.clock import realtime_usec
from jobsvc.commits import Commits
from jobsvc.config import Config
from jobsvc.errors import JobsvcError, Quota, WrongState
from jobsvc.leftovers import Leftovers
from jobsvc.link import Link
from jobsvc.live import Live
from jobsvc.model import Finished, Job, Paused, Result, Running, Starting, Stopping
from jobsvc.store import NotRecorded, Store
from jobsvc.systemd import ScopeError, ShuttingDownError, Systemd

log = logging.getLogger(__name__)

HOLD_OFF = 1.0  # seconds until the queue tries again
GOING_DOWN = 10.0  # and if the machine is being shut down, should that be called off
BOUNDS = ("RuntimeMaxUSec", "TimeoutStopUSec")  # the supervisor's to keep
IN_PAM = "its supervisor ended while PAM opened the session"
# Seconds beyond TimeoutStopSec= after which a supervisor has given up on what SIGKILL does not end, and has reported.
STOP_GRACE = 25.0
END_WITHIN = 10.0  # seconds for a supervisor to say that its scope, which systemd has stopped, is empty
# Of what its owner's jobs may still write a run says each time that it has written so much more.
SHARES, LEAST_STEP, LARGEST_STEP = 16, 1024 * 1024, 16 * 1024 * 1024
START_GRACE = 30.0  # seconds beyond StartTimeoutSec=, within which a supervisor has to have given up by itself


class Owner(Protocol):
    """What a runner needs of the manager."""

    config: Config
    systemd: Systemd
    launcher: launch.Launcher
    allowance: Allowance
    leftovers: Leftovers
    commits: Commits
    store: Store

    def change(self, job: Job, transition: Callable[[Job], Job]) -> Job: ...
    def hold_off(self, seconds: float) -> None: ...


class Runner:
    """Drives one run; `live` is what others see of it."""

    def __init__(self, owner: Owner, live: Live) -> None:
        self._owner = owner
        self.live = live
        self.key = live.job.key
        self._link = Link(f"job {live.job.id}")
        live.on_watch = lambda on: self._link.tell("follow", on=on)
        self._go = False
        self._unit_is_ours = False
        self._again = False  # it never began: back to the queue
        self._adopted = False  # launched by an earlier life of the service
        self._setting = asyncio.Lock()
        self._devices: dict[str, str] = {}  # I/O paths → the disks they are on
        self._cut = False
        self._stop_by: asyncio.TimerHandle | None = None
        self._forced: asyncio.Task[None] | None = None
        self._end_by: asyncio.TimerHandle | None = None
        self._overran = False  # and its supervisor did nothing about it

    @property
    def job(self) -> Job:
        return self.live.job

    # What the manager asks for

    def stop(self, reason: str) -> None:
        """Pass a stop on. Before the run has begun it begins no more; also if we die before we have noted it."""
        self._bound_stop()
        self._link.tell("stop", reason=reason)

    def _bound_stop(self) -> None:
        """A supervisor that hangs must not keep alive what was asked to stop."""
        self._unbind_stop()
        if (seconds := self._stop_within()) is not None:
            self._stop_by = asyncio.get_running_loop().call_later(seconds, self._stop_without_it)

    def _unbind_stop(self) -> None:
        if self._stop_by is not None:
            self._stop_by.cancel()
            self._stop_by = None

    def _stop_within(self) -> float | None:
        """Seconds after which nothing of the run lives that was asked to stop; None for what may take for ever."""
        timeout = self.job.spec["TimeoutStopUSec"]
        return None if timeout == spec.INFINITY else timeout / 1e6 + STOP_GRACE

    def _stop_without_it(self) -> None:
        if not self.job.run.finished and self._forced is None:
            log.warning("run %s: its supervisor does not stop it; systemd does", self.key)
            self._forced = asyncio.create_task(self._force())

    async def _force(self) -> None:
        """End a run whose supervisor does not, and then the supervisor."""
        await self._owner.systemd.thaw(self.job.unit)  # what is frozen would not hear of it
        await self._owner.systemd.stop(self.job.unit, self._stop_within())
        await asyncio.sleep(END_WITHIN)
        if not self.job.run.finished and (pid := rundir.supervisor(self.key)) is not None:
            log.error("run %s: its supervisor (process %d) does not answer and is killed", self.key, pid)
            os.kill(pid, signal.SIGKILL)

    def _bound_run(self) -> None:
        """RuntimeMaxSec= is the supervisor's to keep. One that hangs must not be what a job can run on by.

        Counted from when this is called, at the start, after a pause, at each change: never too early.
        """
        self._unbind_run()
        limit, stop = rundir.finite(self.job.spec.get("RuntimeMaxUSec")), self._stop_within()
        if limit is not None and stop is not None and isinstance(self.job.run.phase, Running):
            self._end_by = asyncio.get_running_loop().call_later(limit / 1e6 + stop, self._overrun)

    def _unbind_run(self) -> None:
        if self._end_by is not None:
            self._end_by.cancel()
            self._end_by = None

    def _overrun(self) -> None:
        self._overran = True
        self._stop_without_it()

    def cut_output(self) -> None:
        """Its owner's jobs have written what they may in a day: no more of it is kept."""
        if self._go and not self._cut and not self.job.run.finished:
            self._cut = True
            self._link.tell("ask", what="bounds", output_left=0)

    def signal(self, number: int) -> None:
        self._link.tell("signal", signal=number)

    def thaw(self) -> None:
        """Let a paused run go on, without waiting for it."""
        if "ask" in self._link.can:
            self._link.tell("ask", what="resume")

    def look_inside(self) -> None:
        """Its supervisor looks more closely whether the job has left its scope, and acts."""
        run = self.job.run
        if self._go and not run.finished and run.main_pid and run.control_group:
            group = cgroup.of_process(run.main_pid)
            if group is not None and not cgroup.within(group, run.control_group):
                self._link.tell("look")

    async def stat(self) -> None:
        """Have the supervisor say how many bytes there are by now."""
        if self._go and self._link.up and not self.job.run.finished:
            await self._link.stat()

    async def ask(self, what: str, fds: list[int] | None = None, **facts: Any) -> dict[str, Any]:
        """Have the supervisor do something, and hear how it went. Raises WrongState with its reason."""
        if not (self._go and self._link.up):
            raise WrongState(f"job {self.job.id} does not run yet")
        return await self._link.ask(what, fds, **facts)

    async def set(self, new: dict[str, Any]) -> None:
        """Other bounds for what runs. A value that cannot be put in force is InvalidSpec: all stays as it was."""
        async with self._setting:
            paths = [path for name in new if name in spec.IO_PATHS for path, _ in new[name]]
            if unknown := sorted(set(paths) - self._devices.keys()):
                self._devices |= (await self.ask("resolve", paths=unknown))["io_devices"]
            scope, bounds = limits.of_scope(new, self._devices), _bounds(new)
            strict = self._owner.config.limit_enforcement == "strict"
            if bounds:
                await self.ask("bounds", None, **bounds)
            try:
                wrong = await limits.change(self._owner.systemd, self.job, scope, strict=strict) if scope else []
            except JobsvcError:
                if bounds:
                    self._link.tell("ask", what="bounds", **_bounds({name: self.job.spec.get(name) for name in new}))
                raise
            not_in_force = tuple({*self.job.run.limits_not_in_force} - scope.keys() | {name for name, _ in wrong})
            self._change(
                lambda job: replace(
                    job, spec=job.spec | new, run=replace(job.run, limits_not_in_force=tuple(sorted(not_in_force)))
                )
            )
            if self._stop_by is not None:
                self._bound_stop()
            self._bound_run()

    def is_ending(self) -> bool:
        """Whether its end is near: asked to stop, over, or its scope empty (as at shutdown, before our turn)."""
        run = self.job.run
        if isinstance(run.phase, Stopping | Finished):
            return True
        return run.control_group is not None and not systemd.populated(run.control_group)

    # The life of the run

    async def begin(self) -> None:
        """Launch the run and see it through."""
        sample = not self._owner.systemd.remembers_memory_peak
        problem, gone = "its supervisor ended before the run began", False
        try:
            request = rundir.build(self.job, self._owner.config, sample)
            if request["standard_output"] or request["standard_error"]:
                self._owner.leftovers.check(self.job.owner.uid)
            left = self._owner.allowance.left(self.job.owner.uid)
            if left != spec.INFINITY:
                request |= {"output_left": left, "output_step": min(max(left // SHARES, LEAST_STEP), LARGEST_STEP)}
            request["quiet"] = not self._owner.allowance.events_of_run(self.job)
            rundir.write(self.key, request)
            await self._owner.launcher.launch(self.key)
        except (launch.LauncherGone, OSError) as error:
            log.warning("run %s waits: %s", self.key, error)
            self._owner.hold_off(HOLD_OFF)
            self._again, gone = rundir.claim(self.key), True  # without the ticket it may have been launched
        except Quota as error:
            problem = str(error)
        except JobsvcError as error:
            problem = f"no supervisor: {error}"
        if not self._again:
            await self._attend()
        if not self._over() and ending.read(self.key) is None and not rundir.begun(self.key):
            if isinstance(self.job.run.phase, Stopping):
                self._finish(Result.STOPPED, ending.CALLED_OFF)
            elif gone:
                self._again = True
            else:
                self._finish(Result.START_FAILED, IN_PAM if self._go and self._owner.config.pam != "no" else problem)
        await self._settle()

    async def adopt(self) -> None:
        """See a run through that an earlier life of the service launched."""
        self._adopted = True
        if isinstance(self.job.run.phase, Stopping):
            self._bound_stop()
        unclaimed = rundir.claim(self.key)
        if not unclaimed:
            await self._attend()
        if unclaimed or not (self._over() or ending.read(self.key) or rundir.begun(self.key)):
            if isinstance(self.job.run.phase, Stopping):
                self._finish(Result.STOPPED, ending.CALLED_OFF)
            elif isinstance(self.job.run.phase, Starting):
                self._again = True
        await self._settle()

    def _over(self) -> bool:
        return self._again or self.job.run.finished

    async def _attend(self) -> None:
        """Listen to the supervisor for as long as it lives."""
        for attempt in itertools.count():
            try:
                self._link.connect(self.key)
            except OSError:
                if attempt and not rundir.supervised(self.key):
                    return
                # On its way out, just coming up, or too busy to listen: while it lives the run is not ours to judge.
                await asyncio.sleep(0.02 * 2 ** min(attempt, 6))
                continue
            if self.live.watchers:
                self._link.tell("follow", on=True)
            try:
                await self._listen()
            finally:
                self._link.close()
            if self.live.closed:
                return
            await asyncio.sleep(0.02)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._owner.config.start_timeout_usec / 1e6 + START_GRACE, self._give_up)
        try:
            async for packet in self._link.packets():
                await self._take(packet)
                if self._go:
                    deadline.cancel()
        finally:
            deadline.cancel()

    async def _take(self, packet: dict[str, Any]) -> None:
        match packet["type"]:
            case "hello":
                await self._hello(packet)
            case "held":
                await self._admit(packet)
            case "started":
                self._started(packet)
            case "paused" | "resumed":
                self._change(lambda job: model.pause(job, packet["type"] == "paused"))
                self._bound_run()
            case "answer":
                self._link.answered(packet)
            case "offsets":
                self._count(packet)
                self._link.counted()
            case "ended":
                await self._ended(packet["report"])
                self._link.counted()
            case "closed":
                self._close(packet.get("undelivered") or [])
        self.live.notify()

    async def _hello(self, packet: dict[str, Any]) -> None:
        self._cut = False
        self._count(packet, by_then=self._adopted and not self._go)
        self._link.can = frozenset(packet.get("can") or ())
        match packet["phase"]:
            case "held":
                await self._admit(packet)
            case "running" | "stopping":
                self._go = True
                if not self._unit_is_ours:
                    self._unit_is_ours = await self._owner.systemd.hold(self.job.unit)
                self._devices = packet.get("io_devices") or {}
                self._started(packet)
                self._change(lambda job: model.pause(job, bool(packet.get("paused"))))
                self._bound_run()
                # As far as we have noted them: a change that was under way when we were killed did not come about.
                self._link.tell("ask", what="bounds", **_bounds(self.job.spec))
                if isinstance(self.job.run.phase, Stopping):
                    self.stop(self.job.run.phase.reason)
            case "ended" | "closed":
                await self._ended(packet["report"])
                if packet["phase"] == "closed":
                    self._close(packet.get("undelivered") or [])

    def _count(self, packet: dict[str, Any], *, by_then: bool = False) -> None:
        self.live.count(packet.get("stdout") or 0, packet.get("stderr") or 0)
        if not self.job.run.finished:
            took = packet.get("journal_bytes") or self.live.stdout + self.live.stderr
            self._owner.allowance.wrote(self.job, took, by_then=by_then)

    async def _admit(self, packet: dict[str, Any]) -> None:
        """The main process waits at its barrier: put it into its scope, see that the limits hold, go."""
        pid, self._devices = packet["main_pid"], packet.get("io_devices") or {}
        wanted = limits.of_scope(self.job.spec, self._devices)
        # That it is about to begin has to outlive a power cut, or it would begin again after it.
        noted = asyncio.ensure_future(self._owner.store.sync())
        try:
            await self._owner.systemd.start_scope(self.job.unit, pid, limits.properties(self.job, wanted))
            self._unit_is_ours = True
            await noted
        except ShuttingDownError:
            self._owner.hold_off(GOING_DOWN)
            self._link.tell("abort", text=ending.NEVER_BEGUN)
            return
        except NotRecorded as error:
            log.warning("run %s waits: %s", self.key, error)
            self._owner.hold_off(HOLD_OFF)
            self._link.tell("abort", text=ending.NEVER_BEGUN)
            return
        except ScopeError as error:
            self._link.tell("abort", text=f"systemd did not make the scope: {error}")
            return
        group = cgroup.of_process(pid)
        if group is None or not group.endswith("/" + self.job.unit):
            self._link.tell("abort", text="the process did not get into its scope")
            return
        wrong = systemd.not_in_force(group, wanted)
        if wrong and self._owner.config.limit_enforcement == "strict":
            name, reason = wrong[0]
            self._link.tell("abort", text=f"limit {name} is not in force: {reason}")
            return
        names = tuple(name for name, _ in wrong)
        facts = {"main_pid": pid, "control_group": group, "limits_not_in_force": names}
        self._change(lambda job: replace(job, run=replace(job.run, **facts)))
        if isinstance(self.job.run.phase, Stopping):
            self._link.tell("stop", reason=self.job.run.phase.reason)
            return
        if "begun" not in self._link.can:  # else it notes that itself, when it opens the barrier
            rundir.mark_begun(self.key)
        self._go = True
        self._link.tell("go", control_group=group)

    def _started(self, packet: dict[str, Any]) -> None:
        pid = packet.get("main_pid") or self.job.run.main_pid
        self._change(lambda job: model.started(job, pid, packet.get("started_usec")))
        self._bound_run()
        self._cut = False  # what was said before it had output was not heard
        self._count({})

    async def _ended(self, facts: ending.Report) -> None:
        """The report is there: take it in once, with what systemd knows of the scope."""
        if self.job.run.finished:
            return
        if ending.never_begun(facts) and isinstance(self.job.run.phase, Starting):
            self._again = True
            return
        usage = {}
        if self._unit_is_ours and facts.get("begun"):
            usage = await self._owner.systemd.usage(self.job.unit)
        self.release()
        self.live.count(facts.get("stdout_bytes") or 0, facts.get("stderr_bytes") or 0)
        self._owner.leftovers.note(self.job.owner.uid, facts.get("left") or ())
        self._change(lambda job: ending.take(job, facts, usage, realtime_usec()))

    def release(self) -> None:
        """What systemd knew of the scope is known."""
        if self._unit_is_ours:
            self._unit_is_ours = False
            self._owner.systemd.release(self.job.unit)

    def _close(self, undelivered: list[Any]) -> None:
        if undelivered:
            self._change(lambda job: ending.undelivered(job, undelivered))
        self.live.closed = True

    async def _settle(self) -> None:
        """No supervisor any more: the report, or the lack of one, has the last word."""
        if self._again and isinstance(self.job.run.phase, Stopping):  # it need not begin any more
            self._finish(Result.STOPPED, ending.CALLED_OFF)
        self._again &= isinstance(self.job.run.phase, Starting)
        facts = None if self.job.run.finished and self.live.closed else ending.read(self.key)
        if facts is not None:
            await self._ended(facts)
            self._close(facts.get("undelivered") or [])
        elif not self._over():
            await self._end_scope()
            self._finish(*self._lost())
        self._unbind_stop()
        self._unbind_run()
        if self._forced:
            self._forced.cancel()
            await asyncio.wait({self._forced})
        self.release()
        if self._again and not self.job.run.finished:
            _discard(self.key)  # the next start of the same run makes them anew
            self.live.closed = False
            if not self._adopted:  # whatever kept it from beginning may do so again: not in a circle
                self._owner.hold_off(HOLD_OFF)
            self._change(lambda job: model.requeue(job, "the service was restarted before it began"))
            return
        self.live.closed = True
        self._owner.commits.then(lambda: _discard(self.key))
        self.live.notify()

    def _lost(self) -> tuple[Result, str]:
        """How a run ended whose supervisor cannot say it any more."""
        killed = "its supervisor was killed; how it ended is not known"
        if self._overran:
            return Result.TIMEOUT, f"ran longer than allowed; {killed}"
        if self._forced and isinstance(self.job.run.phase, Stopping):
            return Result.STOPPED, f"{self.job.run.phase.reason}; {killed}"
        return Result.LOST, killed

    async def _end_scope(self) -> None:
        """Nothing of the run lives on without a supervisor: what follows from its end must not meet it."""
        pid_1, unit = self._owner.systemd, self.job.unit
        if isinstance(self.job.run.phase, Paused):
            with contextlib.suppress(ScopeError):  # frozen, it would not hear of a stop
                await pid_1.kill(unit, signal.SIGKILL)
        await pid_1.stop(unit, self._stop_within())

    def _finish(self, result: Result, reason: str) -> None:
        end = Finished(result, at=realtime_usec(), reason=reason)
        out, err = self.live.stdout, self.live.stderr
        self._change(lambda job: model.finish(job, end, stdout_bytes=out, stderr_bytes=err, journal_bytes=out + err))
        self.live.closed = True

    def _give_up(self) -> None:
        self._link.tell("abort", text="it was not ready to start in time (StartTimeoutSec=)")
        if self._forced is None:  # it may not hear that
            self._forced = asyncio.create_task(self._force())

    def _change(self, transition: Callable[[Job], Job]) -> None:
        """Apply to our own run, the job itself may have moved on; our view of it is kept up to date."""
        self._owner.change(self.job, transition)


def _discard(key: str) -> None:
    """What the store now holds need not lie about."""
    ending.discard(key)
    rundir.discard(key)


def _bounds(values: dict[str, Any]) -> dict[str, int | None]:
    """What the supervisor keeps, as the request has it."""
    return {model.snake(name): rundir.finite(values[name]) for name in BOUNDS if name in values}
