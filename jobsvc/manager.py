"""The manager: every job there is, from acceptance to removal. It knows no D-Bus and asks nobody's permission.

Unfinished jobs are held in memory and in the store, finished ones in the store only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from jobsvc import changes, ending, formats, hooks, model, rundir, spec
from jobsvc.allowance import Allowance
from jobsvc.chunks import Missing
from jobsvc.clock import realtime_usec
from jobsvc.commits import Commits
from jobsvc.config import Config
from jobsvc.errors import Internal, Maintenance, NoSuchJob, WrongState
from jobsvc.guard import guarded
from jobsvc.history import History
from jobsvc.inhibitor import Inhibitor
from jobsvc.inputs import Inputs
from jobsvc.intake import Intake, held_by
from jobsvc.journal_events import Events
from jobsvc.launch import Launcher
from jobsvc.leftovers import Leftovers
from jobsvc.live import Live
from jobsvc.model import Finished, Job, Paused, Queued, Running, Starting, Stopping
from jobsvc.reconcile import reconcile
from jobsvc.roster import Roster
from jobsvc.rounds import Rounds
from jobsvc.runner import Runner
from jobsvc.store import Store
from jobsvc.systemd import ScopeError, Systemd
from jobsvc.turnstile import Turnstile

log = logging.getLogger(__name__)

MAINTENANCE = "maintenance"
SLICE = 0.01  # seconds of the loop


def boot_id() -> str:
    """32 hex digits. PID 1 says it (jobsvc.service): in a container our sandbox may show the host's instead."""
    return os.environ.get("BOOT_ID") or Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


class Manager:
    """Accepts, queues, runs, stops, remembers. `changed` is told of every change of a job."""

    def __init__(
        self, config: Config, store: Store, systemd: Systemd, launcher: Launcher, events: Events, inputs: Inputs
    ) -> None:
        self.config = config
        self.store = store
        self.systemd = systemd
        self.launcher = launcher
        self.events = events
        self.inputs = inputs
        self.inhibitor = Inhibitor()
        self.inhibitor.on_shutdown.append(self._shutdown)
        self.roster = Roster()
        self.jobs = self.roster.jobs
        self.leftovers = Leftovers(self._left)
        self.runners: dict[str, Runner] = {}  # by run key, until their output is complete
        self.rounds = Rounds(self.runners)
        self.changed: Callable[[Job | None, Job | None], None] = lambda old, new: None
        self._intake = Intake(self.roster, self.look, store.request)
        self._lives: dict[str, Live] = {}
        self._paused: set[str] = set()
        self.boot_id = boot_id()
        self._tasks: set[asyncio.Task[None]] = set()
        self.allowance = Allowance(lambda: self.config, self._cut_output)
        events.room = self.allowance.event
        self.commits = Commits(store, self.hold_off)
        self.maintenance = store.fact(MAINTENANCE) == "on"
        self._turnstile = Turnstile(self.roster, realtime_usec, lambda: self.config, self._begin, self._shut)
        self._ended: deque[tuple[str, Job]] = deque()  # what waits for a job that has ended
        self._settling = False
        self.history = History(self, realtime_usec)

    # Looking up

    def get(self, job_id: str) -> Job:
        job = self.look(job_id)
        if job is None:
            raise NoSuchJob.of(job_id)
        return job

    def knows(self, job_id: str) -> bool:
        return self.look(job_id) is not None

    def look(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id) or self.store.get(job_id)

    def live(self, job: Job, number: int) -> Live:
        """One run of a job as those see it who read or follow its output."""
        if number == job.run.number and not job.run.finished:
            return self._lives.setdefault(job.key, Live(job))
        key = f"{job.id}-{number}"
        if key in self._lives:
            return self._lives[key]
        run = self.store.run(job.id, number)
        if run is None:
            newest = job.run.number
            raise NoSuchJob(f"job {job.id} has no run {number}; its runs are {model.oldest_run(newest)} to {newest}")
        return Live(replace(job, run=run), closed=True)

    @property
    def running(self) -> int:
        """Jobs that hold a slot: all that have left the queue and are not finished."""
        return self.roster.busy

    @property
    def queued(self) -> int:
        return len(self.roster.queue)

    # Taking in

    def accept(self, jobs: list[Job], digests: list[str]) -> list[str]:
        """Take new jobs, all or none; their ids, or those of the jobs their RequestIds stand for already."""
        plan = self._intake.plan(jobs, digests, self.config, realtime_usec())
        if plan.fresh:
            self._not_in_maintenance()
        try:
            noted = self.store.accept(plan.fresh, plan.requests)
        except sqlite3.Error as error:
            self.store.examine(error)
            raise Internal(f"the job cannot be recorded, so it was not accepted: {error}") from None
        for job in noted:
            self._enter(job)
        requests = {job.id: job.request for job in noted}
        for old, new_id in reversed(plan.replaced):  # what depends on another comes after it, and is to say the same
            self._replace(old.id, new_id, requests[new_id])
        for job_id, other in plan.broken:
            if job_id in self.jobs:
                self.dependency_ended(self.jobs[job_id], other)
        self.admit()
        return plan.ids

    def _enter(self, job: Job) -> None:
        """A new job, noted, takes its place."""
        self.place(job)
        self.events.queued(job)
        self._tell(None, job)

    def _replace(self, job_id: str, new_id: str, request_id: str) -> None:
        """Stop a job if the stop of another has not ended it; whatever comes of that, the new one is accepted."""
        if job := self.jobs.get(job_id):
            try:
                self.stop(job, f"replaced by job {new_id}", request_id)
            except Exception:
                log.exception("job %s, which is to be replaced by job %s", job_id, new_id)

    def _not_in_maintenance(self) -> None:
        if self.maintenance:
            raise Maintenance("the service is in maintenance and takes nothing new; 'jobctl maintenance status'")

    # Changing

    def change(self, job: Job, transition: Callable[[Job], Job]) -> Job:
        """Apply a transition to a run, note it, tell of it, and do what follows from it."""
        new = transition(job)
        if new == job:
            return job
        current = self.jobs.get(job.id)
        if current is None or current.run.number != job.run.number:
            if current is None and not self.knows(job.id):
                return new  # removed meanwhile: nothing of it is to come back
            self.store.put_run(new)  # an earlier run, or one of a finished job: its last facts
            self.commits.soon()
            self._show(new)
            return new
        following = None if isinstance(job.run.phase, Stopping) else model.retry(new, realtime_usec())
        if following:
            self._over(new)
            self.store.put_run(new)
            new = following
        new = self.store.put(new)
        self.commits.soon()
        self.place(new)
        self._show(new)
        if new.run.finished:
            self._finished(job, new)
        else:
            self._tell(job, new)
            if following:
                self.events.queued(new)
            elif isinstance(new.run.phase, Queued):
                self.mind_input(new)
            elif isinstance(new.run.phase, Running):
                self.inputs.discard(new.id)  # it has it by now
        if isinstance(job.run.phase, Starting) or isinstance(new.run.phase, Queued | Finished):
            self.admit()
        return new

    def _tell(self, old: Job | None, new: Job | None) -> None:
        """A subscriber's trouble is not the job's."""
        try:
            self.changed(old, new)
        except Exception:
            log.exception("telling of a change")

    def _show(self, job: Job) -> None:
        """Tell those who watch this run."""
        if live := self._lives.get(job.key):
            live.job = job
            live.notify()

    def place(self, job: Job) -> None:
        self.roster.put(job, realtime_usec())
        (self._paused.add if isinstance(job.run.phase, Paused) else self._paused.discard)(job.id)
        self.hold_shutdown()

    def _cut_output(self, owner: int) -> None:
        """Its jobs have written what they may."""
        for runner in self.runners.values():
            if runner.job.owner.uid == owner:
                runner.cut_output()

    def _left(self, uid: int, count: int) -> None:
        """So many processes of ended jobs of this user hang in the kernel."""
        self.roster.queue.slots.left[uid] = count
        self.admit()

    def _over(self, job: Job) -> None:
        """The run has ended: nobody waits for more of it than its supervisor still has."""
        self._show(job)
        self.inputs.discard(job.id)
        self.allowance.ended(job)
        if job.key not in self.runners and (live := self._lives.pop(job.key, None)):
            live.closed = True
            live.notify()

    def _finished(self, old: Job, new: Job) -> None:
        self._over(new)
        if isinstance(old.run.phase, Stopping) and old.run.phase.again:
            self._tell(old, new)
            waits, broken = self._intake.waits_again(new)
            again = self._line_up(new, old.run.phase.again, waits)
            if broken:
                self.cancel(again, f"job {broken.id}, on which it depends, is {broken.state}")
            return
        self.history.ended(new)
        # Noted in one transaction with the end that they follow, they follow it once.
        follow = [
            self.store.put(job) for job in hooks.after(new, self.config, realtime_usec(), lambda: self._began(new))
        ]
        self._tell(old, new)
        if follow:
            # Only what is committed may be launched: else the next life of the service, which has the end yet to
            # note, finds a hook that it does not know, and makes another.
            self.commits.then(lambda: self._follow(follow))
            self.commits.flush()
        self._settle(new)

    def _follow(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._enter(job)
        self.admit()

    def _began(self, job: Job) -> bool:
        """Whether a run before the present one had its turn."""
        newest = job.run.number
        runs = (self.store.run(job.id, number) for number in reversed(range(model.oldest_run(newest), newest)))
        ends = (run.phase for run in runs if run)
        return any(isinstance(end, Finished) and end.result is not model.Result.CANCELED for end in ends)

    def _settle(self, job: Job) -> None:
        """A job has ended for good: whoever waits for it goes on, or never will. Chains may be long: no recursion."""
        self._ended.extend((waiting.id, job) for waiting in self.roster.dependents(job.id))
        if not self._settling:
            self._go_on_settling()

    def _go_on_settling(self) -> None:
        """A thousand may wait for one: others have their turns in between. What is left at our end, the next life
        of the service finds."""
        self._settling = True
        end = time.monotonic() + SLICE
        try:
            while self._ended and time.monotonic() < end:
                job_id, ended = self._ended.popleft()
                if waiting := self.jobs.get(job_id):
                    self.dependency_ended(waiting, ended)
        finally:
            self._settling = bool(self._ended)
            if self._settling:
                asyncio.get_running_loop().call_soon(self._go_on_settling)

    def dependency_ended(self, job: Job, other: Job) -> None:
        self.change(job, lambda job: model.dependency_ended(job, other, realtime_usec()))

    def _line_up(self, job: Job, request_id: str, waits: model.Waits) -> Job:
        """A further run of a finished job."""
        new = self.store.put(model.restart(job, request_id, realtime_usec(), waits))
        self.commits.soon()
        self.place(new)
        self.events.queued(new)
        self._tell(job, new)
        return new

    def cancel(self, job: Job, reason: str) -> None:
        self.change(job, lambda job: model.finish(job, Finished(model.Result.CANCELED, realtime_usec(), reason)))

    def note_missing(self, live: Live, gaps: Iterable[Missing]) -> None:
        """A reader of a run that is over did not find these: the status counts them from now on."""
        lost = [gap for gap in gaps if gap.why == "lost"]
        if lost and live.closed and live.job.run.finished:
            job = live.job
            run = self.store.run(job.id, job.run.number)
            if run and (missing := ending.with_lost(run.missing, lost)) != run.missing:
                log.warning("output of run %s is missing: %s", job.key, ", ".join(map(formats.show, lost)))
                self.change(replace(job, run=run), lambda job: replace(job, run=replace(job.run, missing=missing)))

    # Running

    def admit(self) -> None:
        """Begin the runs whose turn it is."""
        self._turnstile.admit()

    def queue_reason(self, job: Job) -> str | None:
        """Why a queued job waits; None for any other."""
        return self._turnstile.reason(job)

    def hold_off(self, seconds: float) -> None:
        """Nothing can begin just now: let the queue wait a little."""
        self._turnstile.hold_off(seconds)

    def _begin(self, job: Job) -> None:
        job = self.change(job, lambda job: model.begin(job, self.boot_id))
        if job.run.number > 1:
            # Only what is committed may be launched: of a run it knows nothing of, the next life of the service takes
            # away the files, and leaves a supervisor that waits for nobody. A first run was committed with its job.
            self.commits.flush()
        self.drive(job, adopt=False)

    def _shut(self) -> str | None:
        """Why nothing may begin."""
        if self.maintenance:
            return "maintenance; 'jobctl maintenance status' says more"
        return "the machine is shutting down" if self.inhibitor.shutting_down else None

    def hold_shutdown(self) -> None:
        """InhibitShutdown=: while anything runs, logind is asked not to go on without us."""
        mode = self.config.inhibit_shutdown
        why = "jobs run" if self.roster.busy and mode != "no" else None
        self.inhibitor.want("running", why, mode)
        self.inhibitor.want("paused", "paused jobs have to go on before they can end" if self._paused else None)

    def _shutdown(self, down: bool) -> None:
        """Processes that are frozen would not hear that they are to end."""
        for job_id in self._paused if down else ():
            if runner := self.runners.get(self.jobs[job_id].key):
                runner.thaw()
        self.admit()  # it may have been called off

    def drive(self, job: Job, *, adopt: bool) -> None:
        runner = self.runners[job.key] = Runner(self, self._lives.setdefault(job.key, Live(job)))
        run = guarded(lambda: self._run(runner, adopt), f"run {job.key}", self.store.examine)
        task = asyncio.create_task(run, name=job.key)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.rounds.begin()

    async def _run(self, runner: Runner, adopt: bool) -> None:
        try:
            await self._see_through(runner, adopt)
        finally:
            if self.runners.get(runner.key) is runner:  # not yet begun again
                del self.runners[runner.key]
                if runner.job.run.finished:
                    self._lives.pop(runner.key, None)

    async def _see_through(self, runner: Runner, adopt: bool) -> None:
        """A fault of ours must not leave a job in limbo: look at it again, ever more rarely."""
        for attempt in itertools.count():
            try:
                await (runner.adopt() if adopt or attempt else runner.begin())
            except Exception as error:
                log.exception("run %s", runner.key)
                self.store.examine(error)
                if runner.job.run.finished:
                    runner.release()
                    return
                await asyncio.sleep(min(2**attempt, 60))
            else:
                return

    def mind_input(self, job: Job) -> None:
        """What waits again has its place in the queue, unless nobody keeps its input any more."""
        if job.spec.get("StandardInput") and job.id not in self.inputs:
            self.cancel(job, "its standard input is gone: the process that kept it has ended")

    # What people ask for

    def stop(self, job: Job, reason: str, request_id: str) -> Job:
        """Ask for the end of a job: a queued one is canceled, a running one gets TERM and, in time, KILL."""
        new = self.change(job, lambda job: model.stop(job, reason, realtime_usec()))
        self.events.stop_requested(new, request_id)
        if runner := self.runners.get(new.key):
            runner.stop(reason)
        return new

    def restart(self, job: Job, request_id: str) -> int:
        """A new run of the same spec, after the present one has been stopped; returns its number."""
        self._not_in_maintenance()
        if job.run.finished:
            self._intake.room([job], self.config)
            if holders := self.roster.holders(job):
                raise held_by(holders[0])
            waits, broken = self._intake.waits_again(job)
            if broken:
                raise WrongState(f"job {broken.id}, on which it depends, is {broken.state}; restart that one first")
            new = self._line_up(job, request_id, waits)
            self.admit()
            return new.run.number
        new = self.change(job, lambda job: model.restart(job, request_id, realtime_usec()))
        if isinstance(new.run.phase, Queued):
            return new.run.number
        self.events.stop_requested(new, request_id)
        if runner := self.runners.get(new.key):
            # If nobody remembers that it is wanted again, it must not be stopped either.
            self.commits.then(lambda: runner.stop("restart"))
        return new.run.number + 1

    def hold(self, job: Job) -> None:
        """It begins no sooner than it is released."""
        self.change(job, lambda job: model.hold(job, True))

    def release(self, job: Job) -> None:
        self.change(job, lambda job: model.hold(job, False))

    def set_maintenance(self, on: bool) -> None:
        """Nothing new is accepted and nothing begins while it is on; what runs goes on."""
        try:
            self.store.note_fact(MAINTENANCE, "on" if on else "off")
        except sqlite3.Error as error:
            raise Internal(f"maintenance cannot be recorded: {error}") from None
        self.maintenance = on
        self.admit()

    async def kill(self, job: Job, whom: str, number: int) -> None:
        """Send a signal to the main process, by its supervisor, or to all processes of the scope."""
        runner = self._runner(job, "sent a signal")
        if whom == "main":
            runner.signal(number)
        else:
            try:
                await self.systemd.kill(job.unit, number)
            except ScopeError as error:
                raise WrongState(f"job {job.id} is just ending: {error}") from None
            runner.thaw()

    async def pause(self, job: Job) -> None:
        """Freeze all of its processes, and the run's clock. Asking twice is harmless."""
        runner = self._runner(job, "paused")
        if self.inhibitor.shutting_down:
            raise WrongState("the machine is going down; nothing is paused any more")
        await runner.ask("pause")

    async def resume(self, job: Job) -> None:
        await self._runner(job, "resumed").ask("resume")

    async def attach(self, job: Job) -> int:
        """A socket to type into the job's terminal, the caller's to close; the other end is the supervisor's."""
        runner = self._runner(job, "attached to")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            await runner.ask("attach", [theirs.fileno()])
            return ours.detach()

    async def set(self, job: Job, new: spec.Values, request_id: str) -> None:
        """Change a queued spec, or bounds of what runs; of the job as it was looked at, with what is allowed to it."""
        current = self.get(job.id)
        if current.spec != job.spec or current.run.number != job.run.number:
            raise WrongState(f"job {job.id} was changed by somebody else meanwhile; try again")
        changes.check(current, new)
        if isinstance(current.run.phase, Queued):
            allowed = {name: getattr(job, name) for name in ("limits_allowed", "priority_allowed", "group_granted")}
            whole = replace(current, spec=changes.applied(current.spec, new), **allowed)
            respecced = self._intake.respec(current, whole)
            current = self.change(current, lambda job: respecced)
        elif new:
            await self._runner(current, "changed").set(new)
            current = self.get(job.id)
        self.events.changed(current, ", ".join(sorted(new)), request_id)

    def _runner(self, job: Job, verb: str) -> Runner:
        """What drives a run whose processes are there."""
        runner = self.runners.get(job.key)
        if runner is None or not isinstance(job.run.phase, Running | Paused | Stopping):
            raise WrongState(f"job {job.id} is {job.state}; only a running job can be {verb}")
        return runner

    def removable(self, job: Job) -> None:
        if not job.run.finished:
            raise WrongState(f"job {job.id} is {job.state}; stop it first ('jobctl stop {job.id}')")

    def remove(self, jobs: Iterable[Job], why: str, request_id: str) -> None:
        """Forget finished jobs; the journal keeps that they were there, and why they are not any more."""
        jobs = list(jobs)
        for job in jobs:
            self.removable(job)
        self.store.remove((job.id for job in jobs), realtime_usec())
        for job in jobs:
            with contextlib.suppress(OSError):
                rundir.forget(job.key)
            self.events.removed(job, why, request_id)
            self._tell(job, None)

    def configure(self, config: Config) -> None:
        """Go by another configuration from now on; what runs goes on with what it was begun with."""
        self.config = config
        self.history.look_again()
        self.hold_shutdown()
        self.admit()

    # From one life of the service to the next

    async def reconcile(self) -> None:
        """Take up every run that an earlier life left unfinished, then open the queue."""
        await self.allowance.recall(self.store)
        self.leftovers.recall()
        self.inputs.recall()
        reconcile(self)
        self.inputs.keep_only(self.jobs)
        self._turnstile.open = True
        self.admit()

    async def drain(self, seconds: float) -> None:
        """At the end of our life: wait for the reports of the runs that are ending; at shutdown that is all."""
        self._turnstile.open = False
        ending = [task for task in self._tasks if (runner := self.runners.get(task.get_name())) and runner.is_ending()]
        if ending:
            await asyncio.wait(ending, timeout=seconds)

    async def close(self) -> None:
        """Leave the runs to their supervisors."""
        self._turnstile.open = False
        self.leftovers.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.commits.close()
