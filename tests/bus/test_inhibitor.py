"""Shutdown is held up while there is a reason to; a logind on the private bus is played."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from dbus_next import Message
from house import until

from jobsvc import inhibitor
from jobsvc.bus import Bus, Call
from jobsvc.inhibitor import Inhibitor


class Logind:
    """Gives a pipe's end for every lock; the other end tells when it was let go."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.locks: list[tuple[list[Any], int]] = []
        bus.on_call = self._inhibit

    def _inhibit(self, call: Call) -> None:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        self.locks.append((call.body, ours))
        sent = self.bus.send(Message.new_method_return(call, "h", [0], [theirs]))
        sent.add_done_callback(lambda _: os.close(theirs))

    def held(self) -> list[str]:
        """The modes of the locks that are held."""
        return [body[3] for body, fd in self.locks if _is_open(fd)]

    async def prepare(self, down: bool, to: str | None = None) -> None:
        signal = Message.new_signal(inhibitor.PATH, inhibitor.MANAGER, "PrepareForShutdown", "b", [down])
        signal.destination = to
        await self.bus.send(signal)


def _is_open(fd: int) -> bool:
    try:
        return bool(os.read(fd, 1))
    except BlockingIOError:
        return True


Story = Callable[[Inhibitor, Bus, Logind], Awaitable[None]]


def told(address: str, story: Story, early: bool = True) -> None:
    async def scenario() -> None:
        ours, theirs = await Bus(address, fds=True).open(), await Bus(address, fds=True).open()
        logind, subject = Logind(theirs), Inhibitor()
        try:
            if early:
                await theirs.own(inhibitor.NAME)
            await subject.connect(ours)
            await story(subject, ours, logind)
        finally:
            subject.close()
            for _, fd in logind.locks:
                os.close(fd)
            for bus in (ours, theirs):
                bus.disconnect()

    asyncio.run(scenario())


def test_a_lock_is_held_as_long_as_anybody_wants_it(address: str) -> None:
    async def story(subject: Inhibitor, ours: Bus, logind: Logind) -> None:
        subject.want("paused", "a job is paused")
        subject.want("running", "jobs run")
        await until(lambda: logind.held() == ["delay"])
        assert logind.locks[0][0] == ["shutdown", "jobsvc", "a job is paused", "delay"]
        subject.want("paused", None)
        subject.want("other", "may not be", "block")
        await until(lambda: logind.held() == ["delay", "block"])
        subject.want("running", None)
        subject.want("running", "again")  # within the moment a lock outlives its reason
        subject.want("other", None)
        await until(lambda: logind.held() == ["delay"])
        assert len(logind.locks) == 2

    told(address, story)


def test_the_way_is_free_at_once_when_the_machine_waits_for_us(address: str) -> None:
    async def story(subject: Inhibitor, ours: Bus, logind: Logind) -> None:
        heard: list[bool] = []
        subject.on_shutdown.append(heard.append)
        subject.want("running", "jobs run")
        await until(lambda: logind.held() == ["delay"])
        await logind.prepare(True)
        await until(lambda: heard == [True])
        assert logind.held() == ["delay"]
        subject.want("running", None)
        assert logind.held() == []
        await logind.prepare(False)
        await until(lambda: heard == [True, False])

    told(address, story)


def test_nobody_but_logind_is_believed(address: str) -> None:
    async def story(subject: Inhibitor, ours: Bus, logind: Logind) -> None:
        stranger = await Bus(address).open()
        for to in (None, ours.unique_name):
            await Logind(stranger).prepare(True, to)
        await stranger.ask_bus("GetId")
        await ours.ask_bus("GetId")
        assert not subject.shutting_down
        stranger.disconnect()

    told(address, story)


def test_a_logind_that_comes_later_is_asked_then(address: str) -> None:
    async def story(subject: Inhibitor, ours: Bus, logind: Logind) -> None:
        subject.want("running", "jobs run")
        await ours.ask_bus("GetId")
        assert not logind.locks
        await logind.bus.own(inhibitor.NAME)
        await until(lambda: logind.held() == ["delay"])

    told(address, story, early=False)
