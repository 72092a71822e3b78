"""The user database, asked aside: behind NSS there may be a directory server that does not answer.

Nothing can interrupt such a look-up. Each has a thread of its own that is left behind when it takes
too long, and nobody but who asked waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import grp
import os
import pwd
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from jobsvc.errors import AccessDenied, InvalidSpec
from jobsvc.model import User
from jobsvc.share import Count

T = TypeVar("T")
_libc = ctypes.CDLL(None)

NOBODY = frozenset({65535, 2**32 - 1})  # (uid_t) -1 in 16 and 32 bits: setresuid() takes them for "keep"
NAMES_FOR = 5.0  # seconds that a look-up is believed
FILES = ("/etc/passwd", "/etc/group")  # unless one of these has changed
ANSWER_WITHIN = 10.0
KNOWN_WITHIN = 1.0  # where an older answer will do
OLDER = 300.0
PER_USER = 4  # look-ups under way of the names that one user asks for
IN_ALL = 64


@dataclass(frozen=True, slots=True)
class Account:
    """One entry of the user database, with the groups it gives."""

    user: User
    gid: int
    home: str
    groups: frozenset[int]


class UserDatabase:
    """Accounts by name or number, and groups."""

    def __init__(self) -> None:
        self._accounts: dict[int | str, tuple[float, Account]] = {}
        self._files: list[tuple[int, int]] = []  # what tells the present passwd and group from others
        self._under_way: dict[object, asyncio.Future[Any]] = {}
        self._asked = Count("", "look-ups in the user database that have no answer yet")

    async def known(self, uid: int) -> Account:
        """The account of somebody who calls; while nobody answers, as it was a moment ago."""
        self._notice_changes()
        known = self._accounts.get(uid)
        age = time.monotonic() - known[0] if known else OLDER
        if known and age < NAMES_FOR:
            return known[1]
        try:
            return await self._ask(uid, _account, KNOWN_WITHIN if age < OLDER else ANSWER_WITHIN)
        except AccessDenied:
            if known and age < OLDER:
                return known[1]
            raise

    async def account(self, who: int | str, asker: int) -> Account:
        """A user that somebody named, by name or number; InvalidSpec if there is none."""
        self._notice_changes()
        known = self._accounts.get(who)
        if known and time.monotonic() - known[0] < NAMES_FOR:
            return known[1]
        with self._asked.one(asker, PER_USER):
            return await self._ask(who, _account, ANSWER_WITHIN)

    async def group(self, who: int | str, asker: int) -> int:
        """A gid by name or number; InvalidSpec if there is none."""
        with self._asked.one(asker, PER_USER):
            return await self._ask(("group", who), lambda key: _group(key[1]), ANSWER_WITHIN)

    def _notice_changes(self) -> None:
        """A number may be given to somebody else at any moment: the files that can be looked at decide."""
        files = []
        for path in FILES:
            with contextlib.suppress(OSError):
                found = os.stat(path)
                files.append((found.st_ino, found.st_mtime_ns))
        if files != self._files:
            self._files = files
            self._accounts.clear()

    async def _ask(self, key: Any, question: Callable[[Any], T], within: float) -> T:
        answer = self._under_way.get(key) or self._begin(key, question)
        try:
            async with asyncio.timeout(within):
                found: T = await asyncio.shield(answer)
        except TimeoutError:
            raise AccessDenied("the user database (NSS) does not answer; try again later") from None
        if isinstance(found, Account):
            if len(self._accounts) > 1000:
                self._accounts.clear()
            self._accounts[key] = (time.monotonic(), found)
        return found

    def _begin(self, key: object, question: Callable[[Any], T]) -> asyncio.Future[T]:
        if len(self._under_way) >= IN_ALL:
            raise AccessDenied("the user database (NSS) does not answer; try again later")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits any more
        self._under_way[key] = answer

        def settle(found: T | None, error: Exception | None) -> None:
            del self._under_way[key]
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found)  # type: ignore[arg-type]

        def work() -> None:
            found, error = None, None
            try:
                found = question(key)
            except Exception as caught:  # noqa: BLE001 (it is the asker's)
                error = caught
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, found, error)

        # A daemon: at our end nobody waits for it either.
        threading.Thread(target=work, name=f"NSS {key}", daemon=True).start()
        return answer


def number(text: str, key: str) -> int | str:
    """A number if it is written as one; anything that merely resembles one is refused."""
    if not text.isdecimal():
        return text
    number = int(text) if text.isascii() and len(text) <= 10 else 2**32
    if number >= 2**32 - 1 or number in NOBODY or str(number) != text:
        raise InvalidSpec(f"{key} {text!r} is not a user or group id")
    return number


def _account(who: int | str) -> Account:
    try:
        entry = pwd.getpwuid(who) if isinstance(who, int) else pwd.getpwnam(who)
    except (KeyError, ValueError):
        raise InvalidSpec(f"there is no user {who!r}; 'getent passwd' lists them") from None
    if entry.pw_uid in NOBODY:
        raise InvalidSpec(f"user {who!r} has uid {entry.pw_uid}, which is nobody's")
    return Account(User(entry.pw_uid, entry.pw_name), entry.pw_gid, entry.pw_dir, _groups(entry.pw_name, entry.pw_gid))


def _groups(name: str, gid: int) -> frozenset[int]:
    """The groups of a user. os.getgrouplist() keeps all other threads waiting for as long as NSS takes."""
    room = ctypes.c_int(64)
    while True:
        size, gids = room.value, (ctypes.c_uint32 * room.value)()
        if _libc.getgrouplist(os.fsencode(name), ctypes.c_uint32(gid), gids, ctypes.byref(room)) >= 0:
            return frozenset(gids[: room.value])
        room.value = max(room.value, 2 * size)


def _group(who: int | str) -> int:
    try:
        gid = grp.getgrgid(who).gr_gid if isinstance(who, int) else grp.getgrnam(who).gr_gid
    except (KeyError, ValueError):
        raise InvalidSpec(f"there is no group {who!r}; 'getent group' lists them") from None
    if gid in NOBODY:
        raise InvalidSpec(f"group {who!r} has gid {gid}, which is nobody's")
    return gid
