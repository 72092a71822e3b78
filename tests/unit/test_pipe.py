"""What is written for a user to read: it goes one way, and its end is seen."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable

import pytest

from jobsvc import pipe
from jobsvc.pipe import Pipe


def told(story: Callable[[Pipe, int], Awaitable[None]]) -> None:
    async def whole() -> None:
        before = len(os.listdir("/proc/self/fd"))
        read, write = pipe.pair()
        with Pipe(write) as ours:
            await story(ours, read)
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(whole())


def test_nothing_can_be_sent_back() -> None:
    """Least of all a descriptor: closing our end would close it."""

    async def story(ours: Pipe, read: int) -> None:
        assert stat.S_ISSOCK(os.fstat(read).st_mode)
        with socket.socket(fileno=read) as theirs:
            with pytest.raises(BrokenPipeError):
                theirs.send(b"x")
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))
            with pytest.raises(BrokenPipeError):
                theirs.sendmsg([b"x"], [rights])
            assert await ours.write(b"still there") == 11
            assert theirs.recv(99) == b"still there"

    told(story)


@pytest.mark.parametrize("unread", [False, True])
def test_a_reader_that_is_gone_is_seen(unread: bool) -> None:
    async def story(ours: Pipe, read: int) -> None:
        gone = asyncio.create_task(ours.hung_up())
        if unread:
            await ours.write(b"x")
        await asyncio.sleep(0.05)
        assert not gone.done()
        os.close(read)
        async with asyncio.timeout(10):
            await gone
        with pytest.raises(BrokenPipeError):
            await ours.write(b"x")

    told(story)


def test_two_are_told_apart() -> None:
    async def story(ours: Pipe, read: int) -> None:
        other_read, other_write = pipe.pair()
        with Pipe(other_write) as other:
            os.close(other_read)
            async with asyncio.timeout(10):
                await other.hung_up()
        assert not ours._hung_up.is_set()
        os.close(read)
        async with asyncio.timeout(10):
            await ours.hung_up()

    told(story)


def test_a_reader_that_is_slow_is_waited_for() -> None:
    async def story(ours: Pipe, read: int) -> None:
        took = await ours.write(bytes(10_000_000), patience=0.05)
        assert pipe.ROOM // 2 < took < 8 * pipe.ROOM
        writing = asyncio.create_task(ours.write(bytes(1_000_000)))
        left = took + 1_000_000
        while left:
            left -= len(await asyncio.to_thread(os.read, read, 1 << 20))
        assert await writing == 1_000_000
        os.close(read)

    told(story)
