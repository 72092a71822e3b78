"""Who calls: what the bus and the user database say of a sender. Any doubt is a refusal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobsvc import userdb
from jobsvc.bus import DBUS, Bus, BusError, Call
from jobsvc.errors import AccessDenied, InvalidSpec
from jobsvc.model import Job, User
from jobsvc.userdb import NAMES_FOR, NOBODY, Account, UserDatabase


@dataclass(frozen=True, slots=True)
class Caller:
    """A peer on the bus: its unique name, whose process it is, and whether polkit may ask a person."""

    sender: str
    user: User
    interactive: bool
    # What polkit has allowed during this one call: the same question about many jobs is one.
    allowed: set[object] = field(default_factory=set, compare=False, repr=False)
    # What a person has allowed during it: jobs that differ in nothing but what fills the paths of their files.
    confirmed: set[object] = field(default_factory=set, compare=False, repr=False)

    @property
    def is_root(self) -> bool:
        return self.user.uid == 0

    def owns(self, job: Job) -> bool:
        """Owner or user of the job, by number and by name: a uid that was given to somebody else is nobody's."""
        return self.user in (job.owner, job.user)


class Callers:
    """Credentials by sender, kept until the sender leaves the bus; unique names are never used twice."""

    def __init__(self, bus: Bus, aside: Bus | None = None) -> None:
        """`aside` is another connection to the same bus, to ask by: also while nothing is read from the first.

        It takes no descriptors: to one that does the bus sends that of the process along (dbus 1.15.8 and later).
        """
        self._bus = aside or bus
        self._uids: dict[str, int] = {}
        self._pids: dict[str, int] = {}
        self._users = UserDatabase()
        self._groups: dict[str, tuple[float, int | None]] = {}  # those the configuration names

    async def identify(self, call: Call, interactive: bool) -> Caller:
        """The caller, as the bus knows it. AccessDenied if the bus does not."""
        sender = call.sender or ""
        if sender not in self._uids:
            uid, pid = await self._ask(sender)
            self._uids[sender] = uid
            if pid is not None:
                self._pids[sender] = pid
        uid = self._uids[sender]
        try:
            user = (await self.account(uid)).user
        except InvalidSpec:
            user = User(uid, str(uid))
        return Caller(sender, user, interactive)

    async def uid(self, call: Call) -> int:
        """The caller's uid, which is not kept: nobody may hear that the caller has left. AccessDenied as above."""
        sender = call.sender or ""
        return self._uids[sender] if sender in self._uids else (await self._ask(sender))[0]

    async def _ask(self, sender: str) -> tuple[int, int | None]:
        """Uid and process of a sender, as the bus knows them."""
        try:
            (facts,) = await self._bus.ask_bus("GetConnectionCredentials", "s", (sender,))
            uid: int = facts["UnixUserID"].value
        except (BusError, TimeoutError, KeyError):
            raise AccessDenied("the bus does not know who you are (any more)") from None
        if uid in NOBODY:
            raise AccessDenied(f"uid {uid} is nobody")
        return uid, facts["ProcessID"].value if "ProcessID" in facts else None

    def left(self, call: Call) -> str | None:
        """Forget a sender that NameOwnerChanged says is gone; returns its name."""
        if call.member == "NameOwnerChanged" and call.sender == DBUS and not call.body[2]:
            name: str = call.body[0]
            self._uids.pop(name, None)
            self._pids.pop(name, None)
            return name
        return None

    def pid(self, sender: str) -> int | None:
        """The process that opened the connection: not for deciding what anybody may do, numbers are used again."""
        return self._pids.get(sender)

    async def account(self, uid: int) -> Account:
        """The account of a caller; InvalidSpec if there is none."""
        return await self._users.known(uid)

    async def user(self, text: str, asker: int) -> Account:
        """The user a spec names, by name or decimal number; `asker` is the caller's uid."""
        return await self._users.account(userdb.number(text, "User"), asker)

    async def member_of(self, account: Account, names: Iterable[str]) -> list[str]:
        """Which of these groups, given by name or number, an account is in; one that is not there has no members."""
        return [name for name in names if await self._known_group(name) in account.groups]

    async def _known_group(self, name: str) -> int | None:
        known = self._groups.get(name)
        if known is None or time.monotonic() - known[0] >= NAMES_FOR:
            gid = None
            with contextlib.suppress(InvalidSpec):
                gid = await self.group(name, asker=0)
            known = self._groups[name] = (time.monotonic(), gid)
        return known[1]

    async def group(self, text: str, asker: int) -> int:
        """The gid a spec names, by name or decimal number."""
        return await self._users.group(userdb.number(text, "Group"), asker)
