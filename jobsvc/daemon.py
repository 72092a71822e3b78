"""jobsvcd: opens everything in order, serves, and closes in reverse. Jobs do not notice its comings and goings."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from pystemd import daemon as notify

from jobsvc import __version__, config, ending, linux, rundir, salvage, service, watcher
from jobsvc.authority import Authority
from jobsvc.bus import DBUS, Bus, BusError
from jobsvc.callers import Callers
from jobsvc.errors import Internal, InvalidConfig, JobsvcError
from jobsvc.guard import for_ever, guarded
from jobsvc.inputs import Inputs
from jobsvc.journal_events import Events
from jobsvc.launch import Launcher
from jobsvc.logs import Logs
from jobsvc.manager import Manager
from jobsvc.polkit import Polkit
from jobsvc.porters import Porters
from jobsvc.repeats import Repeats
from jobsvc.service import Service
from jobsvc.subscribers import hear_polkit
from jobsvc.systemd import Systemd

log = logging.getLogger(__name__)

STATE = Path("/var/lib/jobsvc")
DRAIN = 5.0  # seconds at our end for runs that are ending
PAUSE = 1.0  # seconds before the next try where the state cannot be opened (systemd 252 has no RestartSteps=)
SWITCH = 0.001  # seconds for which a thread may keep the loop from going on
EXIT_CONFIG = 78  # sysexits.h EX_CONFIG


async def serve(settings: config.Config) -> Exception | None:
    """Run the service until SIGTERM; or until it cannot go on, and why."""
    loop = asyncio.get_running_loop()
    lock = alone()
    ended: asyncio.Future[Exception | None] = loop.create_future()

    def end(error: Exception | None = None) -> None:
        if not ended.done():
            ended.set_result(error)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    launcher = Launcher()
    porters = Porters(launcher)
    public = await Bus(fds=True, cap=service.cap, carrier=porters).open()
    to_polkit = await Bus().open()
    aside = await Bus().open()  # asks who calls: public may read nothing meanwhile, and polkit may hang
    to_systemd = await Bus(fds=True, carrier=porters).open()  # logind answers with one
    for bus in (public, to_polkit, aside, to_systemd):
        bus.on_disconnect(lambda: end(ConnectionError("the system bus went away")))
    systemd = Systemd(to_systemd)
    await systemd.connect()
    await public.match(f"type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg2=''")
    porters.prepare()
    used = ending.REPORTS.exists()  # made after the first database
    rundir.RUNS.mkdir(mode=0o700, exist_ok=True)
    callers = Callers(public, aside)
    store, events, logs = salvage.open_store(STATE / "jobs.db", used), Events(), Logs()
    ending.REPORTS.mkdir(mode=0o700, exist_ok=True)
    store.on_damage = end
    manager = Manager(settings, store, systemd, launcher, events, Inputs(porters))
    logs.on_missing = manager.note_missing
    authority = Authority(Polkit(to_polkit, settings), callers, settings)
    await manager.inhibitor.connect(to_systemd)
    try:
        async with asyncio.TaskGroup() as tasks:
            door = Service(public, callers, authority, manager, logs, tasks)
            await hear_polkit(to_polkit, door.subscribers)
            await manager.reconcile()
            await public.own("org.jobsvc1")
            kept = (watchdog, manager.history.keep, manager.rounds.keep, store.marks.keep)
            loops = [tasks.create_task(for_ever(each, each.__qualname__, store.examine)) for each in kept]
            loop.add_signal_handler(signal.SIGUSR1, lambda: describe(manager))
            loop.add_signal_handler(
                signal.SIGHUP, lambda: tasks.create_task(guarded(lambda: reload(door), "SIGHUP", store.examine))
            )
            notify.notify(False, ready=1, status=f"{manager.running} jobs run, {manager.queued} wait")
            try:
                await ended
            finally:
                notify.notify(False, stopping=1)
                door.close()
                await manager.drain(DRAIN)
                await manager.close()
                for task in loops:
                    task.cancel()
                for task in list(asyncio.all_tasks() - {asyncio.current_task()}):
                    task.cancel()
    finally:
        manager.inhibitor.close()
        logs.close()
        porters.close()
        launcher.close()
        events.close()
        store.close()
        lock.close()
    return ended.result() if ended.done() else None


def alone() -> BinaryIO:
    """A lock on the state for as long as it is open: two services would each run the queue."""
    lock = open(STATE / "lock", "wb")  # noqa: SIM115
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"jobsvcd: another one is at work in {STATE}")
    return lock


async def watchdog() -> None:
    """Tell systemd that the loop turns, twice as often as it wants to hear it."""
    usec = int(os.environ.get("WATCHDOG_USEC", "0"))
    while usec:
        notify.notify(False, watchdog=1)
        await asyncio.sleep(usec / 2_000_000)


async def reload(door: Service) -> None:
    """SIGHUP: the configuration anew, or, if there is anything wrong with it, as it was."""
    with contextlib.suppress(InvalidConfig):
        await door.reload("SIGHUP", "SIGHUP")


def describe(manager: Manager) -> None:
    """SIGUSR1: what we are doing, for the journal."""
    import psutil  # 40 ms that no start needs to wait for

    process = psutil.Process()
    with process.oneshot():
        fds, memory = process.num_fds(), process.memory_info().rss // 2**20
    log.warning("%d jobs run, %d wait; %d fds, %d MiB", manager.running, manager.queued, fds, memory)
    slots = manager.roster.queue.slots
    for name, count in sorted(Counter(job.queue for job in manager.jobs.values()).items()):
        running = slots.by_queue[name]
        log.warning("queue %s: %d run, %d wait", name, running, count - running)
    for task in asyncio.all_tasks():
        for frame in task.get_stack(limit=1):
            log.warning("task %s at %s:%d", task.get_name(), frame.f_code.co_qualname, frame.f_lineno)


class _Formatter(logging.Formatter):
    """Each line with its priority in front, as journald takes it from a service (sd-daemon(3))."""

    PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))

    def format(self, record: logging.LogRecord) -> str:
        priority = next(p for level, p in self.PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(prog="jobsvcd", description="The job service; systemd starts it.")
    parser.add_argument("--check-config", action="store_true", help="read the configuration, say what is wrong, exit")
    parser.add_argument("--version", action="version", version=f"jobsvcd {__version__}")
    options = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    handler.addFilter(Repeats())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    try:
        settings = config.load()
    except JobsvcError as error:
        print(f"jobsvcd: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    if options.check_config:
        return
    linux.undumpable()
    sys.setswitchinterval(SWITCH)
    watcher.begin()
    try:
        why = asyncio.run(serve(settings))
    except Internal as error:  # a state of a later release
        log.error("%s", error)
        sys.exit(EXIT_CONFIG)
    except (sqlite3.Error, OSError, BusError) as error:  # PID 1 and polkit may be new on the bus themselves
        why = error
        time.sleep(PAUSE)
    if why is not None:
        log.error("the service ends: %s", why)
        sys.exit(1)


if __name__ == "__main__":
    main()
