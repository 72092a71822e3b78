"""What one user may take of what all share, so that nobody's flood is somebody else's drought. Root is not counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator

from jobsvc.errors import Quota


class Count:
    """How many of something each user has. `key` is the one of jobsvc.conf that bounds it."""

    def __init__(self, key: str, what: str) -> None:
        self._key = key
        self._what = what
        self._have: Counter[int] = Counter()

    def take(self, uid: int, limit: int) -> None:
        """One more for this user, or Quota."""
        if uid and self._have[uid] >= limit:
            raise Quota(f"you have {limit} {self._what}; {self._key}={limit} is reached")
        self._have[uid] += 1

    def give_back(self, uid: int) -> None:
        self._have[uid] -= 1
        if not self._have[uid]:
            del self._have[uid]

    @contextlib.contextmanager
    def one(self, uid: int, limit: int) -> Iterator[None]:
        self.take(uid, limit)
        try:
            yield
        finally:
            self.give_back(uid)


class Turns:
    """One at a time. Of those who wait users take turns, however many of one user's wait."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    async def take(self, uid: int) -> None:
        if not self._busy:
            self._busy = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(uid, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had come already
                self.pass_on()
            raise

    def pass_on(self) -> None:
        """This turn is over: the next user's."""
        while self._waiting:
            uid = next(iter(self._waiting))
            line = self._waiting.pop(uid)
            turn = line.popleft()
            if line:
                self._waiting[uid] = line  # behind everybody else
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False

    async def begin(self, uid: int) -> None:
        """Go on in a turn of the loop in which nobody else does: what follows, up to its first wait, is the turn."""
        await self.take(uid)
        asyncio.get_running_loop().call_soon(self.pass_on)

    @contextlib.asynccontextmanager
    async def of(self, uid: int) -> AsyncIterator[None]:
        await self.take(uid)
        try:
            yield
        finally:
            self.pass_on()


class Pace:
    """Lets others have their turns while one call does the same thing many times."""

    SLICE = 0.01  # seconds

    def __init__(self, turns: Turns, uid: int) -> None:
        self._turns = turns
        self._uid = uid
        self._begin = time.monotonic()

    async def step(self) -> None:
        """Before each of them."""
        if time.monotonic() - self._begin > self.SLICE:
            await self._turns.begin(self._uid)
            self._begin = time.monotonic()


class Shares:
    """So many at a time, one of each user. Of those who wait the user goes first that has lately used least time."""

    HALF_LIFE = 30.0  # seconds
    MANY = 1000  # users remembered; beyond that those who have used next to nothing are not

    def __init__(self, places: int, now: Callable[[], float] = time.monotonic) -> None:
        self._free = places
        self._now = now
        self._busy: dict[int, float] = {}  # since when
        self._used: dict[int, tuple[float, float]] = {}  # seconds, as of when
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    async def take(self, uid: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(uid, deque()).append(turn)
        self._pass_on()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had come already
                self.give_back(uid)
            else:
                self._pass_on()
            raise

    def give_back(self, uid: int) -> None:
        """Its turn is over: what it took counts."""
        now = self._now()
        self._used[uid] = self.used(uid) + now - self._busy.pop(uid), now
        self._free += 1
        if len(self._used) > self.MANY:
            self._used = {one: self._used[one] for one in self._used if self.used(one) > 0.001}
        self._pass_on()

    def used(self, uid: int) -> float:
        """Seconds, of which what is long past counts less."""
        seconds, at = self._used.get(uid, (0.0, 0.0))
        return float(seconds * 0.5 ** ((self._now() - at) / self.HALF_LIFE))

    @contextlib.asynccontextmanager
    async def of(self, uid: int) -> AsyncIterator[None]:
        await self.take(uid)
        try:
            yield
        finally:
            self.give_back(uid)

    def _pass_on(self) -> None:
        while self._free:
            uid = min((one for one in self._waiting if one not in self._busy), key=self.used, default=None)
            if uid is None:
                return
            turn = self._waiting[uid].popleft()
            if not self._waiting[uid]:
                del self._waiting[uid]
            if not turn.done():
                self._free -= 1
                self._busy[uid] = self._now()
                turn.set_result(None)


class Budget:
    """How much of something each user has had within the last day, hour by hour."""

    DAY = 24  # hours

    def __init__(self) -> None:
        self._had: dict[int, deque[tuple[int, int]]] = {}
        self._counted: dict[str, int] = {}

    def count(self, key: str, uid: int, total: int, seconds: float) -> None:
        """Something of this user's has had so much in all by now."""
        before = self._counted.get(key, 0)
        if total > before:
            self._counted[key] = total
            self.add(uid, total - before, seconds)

    def pass_over(self, key: str, total: int) -> None:
        """What it has had so far was had before the day that counts, or may have been."""
        self._counted[key] = max(total, self._counted.get(key, 0))

    def close(self, key: str) -> None:
        """It will not have more."""
        self._counted.pop(key, None)

    def add(self, uid: int, amount: int, seconds: float) -> None:
        """`seconds` are of a clock that never jumps."""
        hours = self._had.setdefault(uid, deque())
        hour = int(seconds // 3600)
        if hours and hours[-1][0] == hour:
            hours[-1] = (hour, hours[-1][1] + amount)
        else:
            hours.append((hour, amount))

    def had(self, uid: int, seconds: float) -> int:
        hours = self._had.get(uid)
        while hours and hours[0][0] <= seconds // 3600 - self.DAY:
            hours.popleft()
        if not hours:
            self._had.pop(uid, None)
            return 0
        return sum(amount for _, amount in hours)
