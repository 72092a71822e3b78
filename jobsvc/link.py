"""jobsvcd's end of one run's control socket: what its supervisor is told, and what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from jobsvc import control, rundir
from jobsvc.errors import WrongState
from jobsvc.launch import Packets

ANSWER_WITHIN = 15.0  # seconds for a supervisor to do what it is asked
STAT_WITHIN = 1.0  # seconds

_numbers = itertools.count(1)


class Link:
    """`about` names the job in what people are told. While nobody listens, what is told is not heard."""

    def __init__(self, about: str) -> None:
        self.can: frozenset[str] = frozenset()  # what the supervisor knows beyond the first release's
        self._about = about
        self._packets: Packets | None = None
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._counting: asyncio.Future[None] | None = None

    @property
    def up(self) -> bool:
        return self._packets is not None and not self._packets.closed

    def connect(self, key: str) -> None:
        """Raises OSError if nobody listens there."""
        self._packets = Packets(str(rundir.path(key) / "control"))
        self._packets.send(control.pack_first("hello", looks=True))

    def packets(self) -> AsyncIterator[dict[str, Any]]:
        """What the supervisor says, until it has gone."""
        assert self._packets is not None
        return aiter(self._packets)

    def close(self) -> None:
        """It has gone: nobody is to wait for it any longer."""
        assert self._packets is not None
        self._packets.close()
        self.counted()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result({"error": "its supervisor went away"})

    def tell(self, kind: str, **facts: Any) -> None:
        if self._packets:
            self._packets.send(control.pack(kind, **facts))

    async def ask(self, what: str, fds: list[int] | None = None, **facts: Any) -> dict[str, Any]:
        """Have the supervisor do something, and hear how it went. Raises WrongState with its reason."""
        assert self._packets is not None
        if "ask" not in self.can:
            raise WrongState(
                f"{self._about} was started by an older release of jobsvc, which cannot do this; restart the job"
            )
        number = next(_numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._packets.send(control.pack("ask", ask=number, what=what, **facts), fds)
            packet: dict[str, Any] = await asyncio.wait_for(answer, ANSWER_WITHIN)
        except TimeoutError:
            raise WrongState(f"{self._about}: its supervisor does not answer; try again") from None
        finally:
            del self._asked[number]
        if packet.get("error"):
            raise WrongState(f"{self._about}: {packet['error']}")
        return packet

    def answered(self, packet: dict[str, Any]) -> None:
        if (answer := self._asked.get(packet["ask"])) and not answer.done():
            answer.set_result(packet)

    async def stat(self) -> None:
        """Have the supervisor say how many bytes of output there are by now. All who ask share one answer."""
        if self._counting is None or self._counting.done():
            self._counting = asyncio.get_running_loop().create_future()
            self.tell("stat")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._counting), STAT_WITHIN)

    def counted(self) -> None:
        """It has said so, or will not."""
        if self._counting and not self._counting.done():
            self._counting.set_result(None)
