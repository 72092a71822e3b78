"""jobsvcd's side of the porters: one is always there before it is needed, and each is known until it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from jobsvc import control
from jobsvc.errors import JobsvcError
from jobsvc.launch import Launcher, Packets
from jobsvc.porter import NOBODY

log = logging.getLogger(__name__)

LONGEST: Final = 5.0  # seconds; a porter reads at once, and closes nothing before it has said so
MOST_UNWANTED: Final = 100_000  # descriptors that one porter has yet to close, before another is given more
AGAIN: Final = 1.0  # seconds between two tries to get a porter


class PorterGone(Exception):
    """It has ended, or does not answer."""


class Porter:
    """One porter: as a fresh one, as the parcel of a message, or as the keeper of an input."""

    def __init__(self, pid: int, channel: socket.socket | None = None) -> None:
        """ProcessLookupError if there is no such process."""
        self.count = 0
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._packets = Packets(channel) if channel else None
        self._said: AsyncIterator[dict[str, Any]] | None = aiter(self._packets) if self._packets else None
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._ended)

    async def ask(self, kind: str, fd: int, seconds: float, **facts: Any) -> dict[str, Any]:
        """Have it do something with a descriptor of ours. PorterGone if nothing is heard of that."""
        assert self._packets
        assert self._said
        self._packets.send(control.pack(kind, **facts), [fd])
        try:
            async with asyncio.timeout(seconds):
                return await anext(self._said)
        except (TimeoutError, StopAsyncIteration):
            raise PorterGone from None

    @property
    def waits(self) -> bool:
        """Whether it can still be asked."""
        return self._packets is not None and not self._packets.closed and not self.gone.done()

    def dismiss(self) -> None:
        """It needs us no more, nor we it: let it live."""
        self._said = None
        if self._packets:
            self._packets.close()

    def close(self) -> None:
        """End it. It may take its time, alone."""
        self.dismiss()
        if not self.gone.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def forget(self) -> None:
        """Watch it no longer."""
        if not self.gone.done():
            self._ended()

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.dismiss()
        self.gone.set_result(None)


class Porters:
    """The spare one, and those that have something of a user's."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._spare: asyncio.Future[Porter] | None = None
        self._of: defaultdict[int, set[Porter]] = defaultdict(set)
        self._bins: dict[int | None, Porter] = {}  # by user: where what nobody wants is closed
        self._closed = False

    def number(self, uid: int) -> int:
        """How many of that user's there are, those included that cannot end."""
        return len(self._of[uid]) if uid in self._of else 0

    def count(self, porter: Porter, uid: int) -> None:
        """It has something of that user's for as long as it lives."""
        self._of[uid].add(porter)
        porter.gone.add_done_callback(lambda _: self._forget(porter, uid))

    def _forget(self, porter: Porter, uid: int) -> None:
        self._of[uid].discard(porter)
        if not self._of[uid]:
            del self._of[uid]

    def prepare(self) -> None:
        """See to it that one is there."""
        if self._spare is None and not self._closed:
            self._spare = asyncio.create_task(self._fetch(), name="porter")

    async def carry(
        self, sock: socket.socket, unread: Callable[[], bool], uid: int | None, wanted: bool
    ) -> Porter | None:
        """Have the beginning of a message read from the bus. None if its descriptors are not wanted, or lost."""
        while True:
            porter = (None if wanted else self._bin(uid)) or await self._take()
            try:
                if not wanted or uid is None:
                    await self._throw_away(porter, sock, uid)
                    return None
                self.count(porter, uid)
                said = await porter.ask("take", sock.fileno(), LONGEST, uid=uid)
                porter.count = said["count"]
                return porter
            except PorterGone:
                porter.close()
                # One that does not end by SIGKILL waits for what it has read to go.
                await asyncio.wait([porter.gone], timeout=LONGEST)
                if not unread():
                    return None
            except asyncio.CancelledError:
                porter.close()
                raise
            finally:
                self.prepare()

    def _bin(self, uid: int | None) -> Porter | None:
        """That of this user, if there is one that can still be asked."""
        porter = self._bins.get(uid)
        return porter if porter and porter.waits else None

    async def _throw_away(self, porter: Porter, sock: socket.socket, uid: int | None) -> None:
        """One process of each user hangs over what that user sends in vain, however much it is."""
        if self._bins.get(uid) is not porter:
            self._bins[uid] = porter
            porter.gone.add_done_callback(lambda _: self._empty(porter, uid))
        said = await porter.ask("drop", sock.fileno(), LONGEST, uid=NOBODY if uid is None else uid)
        if said.get("left", 0) > MOST_UNWANTED:
            self._empty(porter, uid)
            if uid is not None:
                self.count(porter, uid)

    def _empty(self, porter: Porter, uid: int | None) -> None:
        if self._bins.get(uid) is porter:
            del self._bins[uid]

    async def _take(self) -> Porter:
        while True:
            self.prepare()
            assert self._spare
            spare = self._spare
            porter = await asyncio.shield(spare)
            if spare is self._spare:  # nobody else who waited for it was first
                self._spare = None
                if porter.waits:
                    return porter
                porter.close()

    async def _fetch(self) -> Porter:
        """A new one, as soon as the launcher is there."""
        while True:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    pid = await self._launcher.porter(theirs.fileno())
                porter = Porter(pid, ours)
                if not hung_up(ours):  # it lives, so the number is its own
                    return porter
                porter.forget()
            except (JobsvcError, OSError) as error:
                log.warning("no process to read file descriptors with: %s", error)
            except Exception:
                log.exception("no process to read file descriptors with")
            ours.close()
            await asyncio.sleep(AGAIN)

    def close(self) -> None:
        """The spare one ends. Keepers stay."""
        self._closed = True
        if self._spare is not None:
            if self._spare.done() and not self._spare.cancelled():
                self._spare.result().close()
            else:
                self._spare.cancel()
            self._spare = None
        for porter in list(self._bins.values()):
            porter.close()
            porter.forget()
        for porter in [porter for of in self._of.values() for porter in of]:
            porter.forget()


def hung_up(end: socket.socket) -> bool:
    """Whether nobody has the other end."""
    poll = select.poll()
    poll.register(end, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
