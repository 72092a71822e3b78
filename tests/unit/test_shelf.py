"""The journal's readers: who walks far keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import threading

from paper import Paper

from jobsvc.journal import Reader
from jobsvc.shelf import Shelf


def test_one_user_has_one_question_at_a_time_and_others_are_answered() -> None:
    async def scenario() -> None:
        shelf, begun, gate, asked = Shelf(Paper().reader), threading.Event(), threading.Event(), 0

        def walk(reader: Reader) -> None:
            nonlocal asked
            asked += 1
            begun.set()
            gate.wait(180)

        walking = [asyncio.create_task(shelf.catch_up(1000, walk)) for _ in range(20)]
        assert await asyncio.to_thread(begun.wait, 30)
        async with asyncio.timeout(120):
            assert await shelf.catch_up(1001, lambda reader: "answer") == "answer"
            assert await shelf.ask(lambda reader: "live") == "live"
        assert asked == 1
        gate.set()
        await asyncio.gather(*walking)
        assert asked == 20
        shelf.close()

    asyncio.run(scenario())
