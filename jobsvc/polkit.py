"""polkit: one question per call, asked about the caller's bus name, never about a pid.

Any error is a no. Details are for rules and for the text of a dialog, so they are made safe to show.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import unicodedata
from collections.abc import Iterator
from enum import StrEnum

from dbus_next.signature import Variant

from jobsvc.bus import Bus, BusError
from jobsvc.callers import Caller
from jobsvc.config import Config
from jobsvc.errors import AccessDenied, InteractiveAuthorizationRequired, Quota
from jobsvc.share import Count

log = logging.getLogger(__name__)

NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERACTIVE = 1
ANSWER_WITHIN = 25.0  # seconds, where no person is asked
PASSWORD_WITHIN = 300.0  # seconds for a person to type one
UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # Unicode's general categories
AT_ONCE = 8  # questions of one user that polkit has to answer, so that others wait for no more than these
SHOWN = frozenset({"job.name", "job.owner", "job.user"})  # in the messages of org.jobsvc1.policy
LONGEST = 8192  # characters of any other detail: a rule should see all that is executed
MAX_QUESTIONS = 32  # open at one time: unanswered dialogs must not use up the bus' pending replies


class Action(StrEnum):
    """What polkit decides; org.jobsvc1.policy has the defaults."""

    START = "org.jobsvc1.start"
    START_AS_USER = "org.jobsvc1.start-as-user"
    EXCEED_LIMITS = "org.jobsvc1.exceed-limits"
    MANAGE_OWN = "org.jobsvc1.manage-own"
    MANAGE = "org.jobsvc1.manage"
    VIEW = "org.jobsvc1.view"
    LOGS = "org.jobsvc1.logs"
    ADMINISTER = "org.jobsvc1.administer"


def showable(text: str, size: int = 256) -> str:
    """Text for a dialog: no control, format or bidi characters, no line breaks, and not too long."""
    clean = "".join("�" if unicodedata.category(char) in UNSHOWN else char for char in text)
    return clean if len(clean) <= size else clean[: size - 1] + "…"


class Polkit:
    """polkit's authority on a connection of its own."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self._bus = bus
        self.config = config
        self._serial = itertools.count(1)
        self._open = Count("MaxQuestionsPerUser", "password questions open")
        self._questions = 0
        self._lines: dict[int, asyncio.Semaphore] = {}

    async def check(self, caller: Caller, action: Action, details: dict[str, str], interactive: bool) -> bool:
        """Return whether a person was asked, if the caller may; else AccessDenied or InteractiveAuthorizationRequired.

        Quota, if it takes a password and too many of this user's questions for one are open.
        """
        asked = False
        async with self._lines.setdefault(caller.user.uid, asyncio.Semaphore(AT_ONCE)):
            authorized, challenge = await self._ask(caller, action, details)
        if challenge and interactive and not authorized:
            with self._open.one(caller.user.uid, self.config.max_questions_per_user), self._place():
                authorized, _ = await self._ask(caller, action, details, f"jobsvc-{next(self._serial)}")
            challenge, asked = False, True
        if authorized:
            return asked
        if challenge:
            raise InteractiveAuthorizationRequired(
                f"{action} needs a password; ask where one can be typed, as root, or have a polkit rule allow it"
            )
        raise AccessDenied(f"polkit does not allow {action} here; a polkit rule can (see jobsvcd(8))")

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._questions >= MAX_QUESTIONS:
            raise Quota(f"{MAX_QUESTIONS} password questions are open already; try again later")
        self._questions += 1
        try:
            yield
        finally:
            self._questions -= 1

    async def _ask(
        self, caller: Caller, action: Action, details: dict[str, str], cancellation: str = ""
    ) -> tuple[bool, bool]:
        """Authorized, or would a password help? With a cancellation id a person is asked for it."""
        subject = ["system-bus-name", {"name": Variant("s", caller.sender)}]
        safe = {name: showable(text) if name in SHOWN else showable(text, LONGEST) for name, text in details.items()}
        body = [subject, str(action), safe, INTERACTIVE if cancellation else 0, cancellation]
        try:
            answer = await self._bus.ask(
                *(NAME, PATH, f"{NAME}.Authority.CheckAuthorization", "(sa{sv})sa{ss}us", body),
                timeout=PASSWORD_WITHIN if cancellation else ANSWER_WITHIN,
            )
        except (BusError, TimeoutError) as error:
            log.warning("polkit did not answer about %s for %s: %s", action, caller.sender, error)
            await self._cancel(cancellation)
            raise AccessDenied("polkit does not answer, so nothing is allowed; see 'systemctl status polkit'") from None
        except asyncio.CancelledError:
            await self._cancel(cancellation)
            raise
        authorized, challenge, _ = answer[0]
        return bool(authorized), bool(challenge)

    async def _cancel(self, cancellation: str) -> None:
        if cancellation:
            member = f"{NAME}.Authority.CancelCheckAuthorization"
            try:
                await self._bus.ask(NAME, PATH, member, "s", (cancellation,), timeout=5)
            except (BusError, TimeoutError):
                log.debug("polkit had nothing left to cancel")
