"""A user database that does not answer keeps nobody waiting but who asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from jobsvc import userdb
from jobsvc.errors import AccessDenied, InvalidSpec, Quota
from jobsvc.userdb import UserDatabase


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set it, and who is not root hangs until the end."""
    silent, over, ask = threading.Event(), threading.Event(), userdb._account

    def account(who: int | str) -> userdb.Account:
        if silent.is_set() and who != "root":
            over.wait()
        return ask(who)

    monkeypatch.setattr(userdb, "_account", account)
    yield silent
    over.set()


def test_accounts_and_groups_are_what_the_system_says() -> None:
    async def scenario() -> None:
        users = UserDatabase()
        root = await users.known(0)
        assert (root.user.name, root.gid, root.home) == ("root", 0, "/root")
        assert 0 in root.groups
        assert await users.account("root", 0) == root
        assert await users.group("root", 0) == 0
        for who in ("no-such-user", 54_321_000):
            with pytest.raises(InvalidSpec, match="there is no user"):
                await users.account(who, 0)

    asyncio.run(scenario())


def test_a_look_up_that_hangs_is_refused_in_time_and_holds_up_nobody(
    hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        users = UserDatabase()
        hung.set()
        monkeypatch.setattr(userdb, "ANSWER_WITHIN", 3)
        asked = [asyncio.create_task(users.account(f"ldap-{number}", 1000)) for number in range(6)]
        await asyncio.sleep(0)
        assert (await users.account("root", 1001)).gid == 0
        assert sum(not task.done() for task in asked) == 4
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in told] == [AccessDenied] * 4 + [Quota] * 2

    asyncio.run(scenario())


def test_who_is_known_is_known_while_nobody_answers(hung: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        users = UserDatabase()
        known = await users.known(1)
        hung.set()
        monkeypatch.setattr(userdb, "KNOWN_WITHIN", 0.1)
        monkeypatch.setattr(userdb, "ANSWER_WITHIN", 0.2)
        monkeypatch.setattr(userdb, "NAMES_FOR", 0.0)
        assert await users.known(1) == known
        monkeypatch.setattr(userdb, "OLDER", 0.0)  # but not for ever
        with pytest.raises(AccessDenied, match="does not answer"):
            await users.known(1)
        with pytest.raises(AccessDenied, match="does not answer"):
            await users.known(2)

    asyncio.run(scenario())


def test_the_number_of_threads_left_behind_is_bounded(hung: threading.Event) -> None:
    async def scenario() -> None:
        users = UserDatabase()
        hung.set()
        told = await asyncio.gather(*(users.known(50_000 + uid) for uid in range(100)), return_exceptions=True)
        assert {type(one) for one in told} == {AccessDenied}
        assert len(users._under_way) == userdb.IN_ALL

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "text", ["#0", " 0", "00", "+0", "0x0", "\u0660", "4294967295", "65535", "4294967296", "-1", "1e3"]
)
def test_what_merely_resembles_an_id_is_none(text: str) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidSpec):
            await UserDatabase().account(userdb.number(text, "User"), 0)

    asyncio.run(scenario())
