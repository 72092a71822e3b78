"""Giving out output: to many readers, each at its own speed, every byte or its absence."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from typing import Any

import pytest
from listening import Listener, Run, now, parts, told
from paper import SOURCE

from jobsvc import feed, linux, logs, patience
from jobsvc.chunks import Missing
from jobsvc.logs import Logs, Selection


async def settled(run: Run) -> int:
    """How often it has been looked for entries, when nobody looks any more."""
    before = -1
    while run.paper.searched != before:
        before = run.paper.searched
        await asyncio.sleep(0.2)
    return before


def test_a_finished_run_is_given_out_exactly() -> None:
    async def story(service: Logs, run: Run) -> None:
        out = b"".join(b"line %d\n" % number for number in range(3000))
        for at in range(0, len(out), 1000):
            run.write(out[at : at + 1000])
            run.write(b"e", "stderr")
        run.finish()
        listener = Listener(service, run, Selection(format="export"))
        got, trailer = parts(await listener.rest())
        assert got == {"stdout": out, "stderr": b"e" * run.written[1]}
        assert (trailer.end.result, trailer.missing) == ("success", ())
        assert await listener.task == ()
        raw = Listener(service, run, Selection(stream="stdout"))
        assert await raw.rest() == out
        await raw.task

    told(story)


def test_a_follower_hears_each_piece_when_it_is_written_and_then_the_end() -> None:
    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        for number in range(20):
            run.write(b"tick %02d\n" % number)
            assert await listener.hear(8) == b"tick %02d\n" % number
        run.finish()
        assert await listener.rest() == b""
        assert await listener.task == ()
        assert run.watched == [True, False]

    told(story)


def test_bytes_that_come_in_long_after_they_were_sent_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that hung for a while: nothing tells us when it has caught up."""
    for name, seconds in (("_PATIENCE", 0.02), ("_RARELY", 0.05), ("_SLOWEST", 0.01)):
        monkeypatch.setattr(feed, name, seconds)

    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        run.tell(written=(5, 0))
        await asyncio.sleep(0.2)
        run.paper.put(b"later")
        assert await listener.hear(5) == b"later"
        run.finish()
        await listener.rest()

    told(story)


def test_many_small_entries_do_not_pile_up_for_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_WINDOW", 100 * 1024)
    monkeypatch.setattr(feed, "_KEPT", 100.0)

    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        run.write(b"x\n")
        await listener.hear(2)
        (use,) = service._uses.values()
        for number in range(10):
            for _ in range(50):
                run.paper.put(b"x\n")
            run.tell(written=(2 + 100 * (number + 1), 0))
            await listener.hear(100)
        assert 100 < len(use.feed._window) <= 200
        run.finish()
        await listener.rest()

    told(story)


def test_nothing_is_looked_at_while_nothing_happens() -> None:
    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        run.write(b"x")
        await listener.hear(1)
        before = await settled(run)
        await asyncio.sleep(0.2)
        assert run.paper.searched == before
        run.finish()
        await listener.task
        await listener.rest()

    told(story)


def test_what_the_journal_shows_late_is_waited_for() -> None:
    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        run.tell(written=(5, 0))
        await asyncio.sleep(0.05)
        run.paper.put(b"hello")
        assert await listener.hear(5) == b"hello"
        run.finish()
        await listener.rest()
        await listener.task

    told(story)


def test_a_lost_end_is_named_once_the_last_entry_is_there() -> None:
    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        run.write(b"hello")
        run.tell(written=(9, 0))
        run.finish()
        async with asyncio.timeout(8):  # a journal that stands still is given ten
            assert await listener.rest() == b"hello"
        assert await listener.task == (Missing("stdout", 5, 9, "lost"),)

    told(story)


def test_a_journal_that_is_behind_is_waited_for_while_it_takes_anything_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_STALLED", 1.0)
    monkeypatch.setattr(patience, "_PAUSE", 0.05)

    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run, Selection())
        run.tell(written=(5, 0))
        run.finish(last=False)
        for _ in range(15):  # somebody else's, for longer than a stall
            await asyncio.sleep(0.1)
            run.paper.put(b"x", source=replace(SOURCE, id="f" * 16))
        run.paper.put(b"hello", offset=0)
        assert await listener.rest() == b"hello"
        assert await listener.task == ()

    told(story)


def test_what_a_journal_that_stands_still_does_not_show_is_late_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_STALLED", 0.1)
    monkeypatch.setattr(patience, "_PAUSE", 0.02)

    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        run.write(b"hello")
        run.tell(written=(9, 0))
        run.finish(last=False)
        assert await listener.rest() == b"hello"
        assert await listener.task == (Missing("stdout", 5, 9, "late"),)

    told(story)


def test_what_is_known_to_be_gone_is_named_at_once() -> None:
    async def story(service: Logs, run: Run) -> None:
        run.tell(written=(9, 4))
        run.finish(cut=(("stdout", 0, 9),), undelivered=(("stderr", 0, 4),))
        async with asyncio.timeout(8):
            listener = Listener(service, run)
            assert await listener.task == (
                Missing("stderr", 0, 4, "lost"),
                Missing("stdout", 0, 9, "cut"),
            )
        await listener.rest()
        run.finish(finished_usec=1)  # long ago, and vacuumed since
        async with asyncio.timeout(8):
            listener = Listener(service, run, Selection())
            assert {gap.why for gap in await listener.task} == {"lost"}
        await listener.rest()

    told(story)


def test_a_queued_job_can_be_followed() -> None:
    async def story(service: Logs, run: Run) -> None:
        run.it = replace(SOURCE, main_pid=None)
        listener = Listener(service, run, Selection(follow=True, lines=3))
        await asyncio.sleep(0.02)
        run.tell(it=SOURCE)
        run.write(b"started")
        assert await listener.hear(7) == b"started"
        run.finish()
        await listener.rest()
        await listener.task

    told(story)


def test_a_job_that_never_began_has_a_trailer_and_nothing_else() -> None:
    async def story(service: Logs, run: Run) -> None:
        run.it = replace(SOURCE, main_pid=None)
        listener = Listener(service, run, Selection(follow=True, format="json"))
        await asyncio.sleep(0.02)
        run.finish(state="stopped", result="canceled", exit_code=None)
        trailer = json.loads(await listener.rest())
        assert (trailer["end"], trailer["result"], trailer["missing"]) == (True, "canceled", [])
        await listener.task

    told(story)


def test_one_reading_feeds_all_who_keep_up() -> None:
    async def story(service: Logs, run: Run) -> None:
        listeners = [Listener(service, run) for _ in range(50)]
        run.write(b"first")
        await asyncio.gather(*(listener.hear(5) for listener in listeners))
        before = await settled(run)
        run.write(b"second")
        heard = await asyncio.gather(*(listener.hear(6) for listener in listeners))
        assert heard == [b"second"] * 50
        assert run.paper.searched - before < 20
        run.finish()
        await asyncio.gather(*(listener.rest() for listener in listeners))
        await asyncio.gather(*(listener.task for listener in listeners))
        assert run.watched == [True, False]

    told(story)


def test_who_does_not_read_slows_nobody_and_still_gets_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_PATIENCE", 0.02)
    monkeypatch.setattr(feed, "_WINDOW", 100_000)

    async def story(service: Logs, run: Run) -> None:
        lazy = [Listener(service, run, Selection(follow=True, format=style)) for style in ("raw", "json", "export")]
        quick = Listener(service, run)
        written = b""
        for number in range(60):
            piece = b"%07d\n" % number * 2500
            written += piece
            run.write(piece)
            assert await quick.hear(len(piece)) == piece
        run.finish()
        await quick.rest()
        await quick.task
        await asyncio.sleep(0.05)
        assert not any(listener.task.done() for listener in lazy)
        raw, lines, export = await asyncio.gather(*(listener.rest() for listener in lazy))
        assert raw == written
        assert "".join(json.loads(line)["data"] for line in lines.splitlines()[:-1]).encode() == written
        assert parts(export)[0]["stdout"] == written
        for listener in lazy:
            assert await listener.task == ()

    told(story)


@pytest.mark.parametrize("style", ["raw", "export"])
def test_what_is_vacuumed_under_a_sleeping_reader(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a framed chunk the stream can only end, without a trailer; raw goes on."""
    monkeypatch.setattr(logs, "_PATIENCE", 0.02)

    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run, Selection(follow=True, format=style))
        for number in range(10):
            run.write(b"%d" % number * 20_000)
        while linux.unread(listener.end) < 60_000:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # it is asleep
        run.paper.vacuum(2)
        run.finish()
        got = await listener.rest()
        if style == "raw":
            assert got.endswith(b"8" * 20_000 + b"9" * 20_000)
            assert await listener.task == (Missing("stdout", len(got) - 40_000, 160_000, "lost"),)
        else:
            assert b"JOBSVC_END" not in got
            with pytest.raises(OSError, match="not in the journal any more"):
                await listener.task

    told(story)


def test_a_reader_that_goes_away_ends_its_stream() -> None:
    async def story(service: Logs, run: Run) -> None:
        waiting, writing = Listener(service, run), Listener(service, run)
        run.write(b"x" * 200_000)
        await waiting.hear(200_000)
        os.close(waiting.end)
        os.close(writing.end)
        async with asyncio.timeout(60):
            await waiting.task
            await writing.task
        assert run.watched == [True, False]

    told(story)


def test_a_canceled_stream_leaves_nothing() -> None:
    async def story(service: Logs, run: Run) -> None:
        listener = Listener(service, run)
        await asyncio.sleep(0.02)
        listener.task.cancel()
        await asyncio.wait({listener.task})
        await listener.rest()

    told(story)


def test_an_unreadable_journal_is_opened_anew_and_then_an_error() -> None:
    async def story(service: Logs, run: Run) -> None:
        run.write(b"x")
        run.finish()
        failures = iter([OSError(116, "Stale file handle")])

        def once() -> None:
            if error := next(failures, None):
                raise error

        def always() -> None:
            raise OSError(5, "Input/output error")

        run.paper.fails = once
        listener = Listener(service, run)
        assert await listener.rest() == b"x"
        await listener.task
        run.paper.fails = always
        listener = Listener(service, run)
        assert await listener.rest() == b""
        with pytest.raises(OSError, match="Input/output"):
            await listener.task

    told(story)


def test_when_the_journal_breaks_while_all_wait_all_are_told() -> None:
    async def story(service: Logs, run: Run) -> None:
        def always() -> None:
            raise OSError(5, "Input/output error")

        listeners = [Listener(service, run, Selection(follow=True, format="json")) for _ in range(3)]
        await asyncio.sleep(0.05)
        run.paper.fails = always
        run.write(b"x")
        for listener in listeners:
            assert await listener.rest() == b""
            with pytest.raises(OSError, match="Input/output"):
                await listener.task

    told(story)


def test_without_follow_a_running_job_is_read_to_where_it_is() -> None:
    async def story(service: Logs, run: Run) -> None:
        for _ in range(50):
            run.write(b"x" * 50_000)
        listener = Listener(service, run, Selection(format="export"))
        flooding = asyncio.create_task(_flood(run))
        got, trailer = parts(await listener.rest())
        flooding.cancel()
        await asyncio.wait({flooding})
        assert 2_500_000 <= len(got["stdout"]) < 10_000_000
        assert (trailer.end.state, trailer.end.result) == ("running", None)
        await listener.task

    async def _flood(run: Run) -> None:
        while True:
            run.write(b"y" * 50_000)
            await asyncio.sleep(0.002)

    told(story)


def test_where_to_begin_and_to_end() -> None:
    async def story(service: Logs, run: Run) -> None:
        for number in range(10):
            run.write(b"out %d\n" % number)
        run.write(b"err\n", "stderr")
        run.finish()

        async def got(**wish: Any) -> bytes:
            listener = Listener(service, run, Selection(**wish))
            data = await listener.rest()
            assert await listener.task == ()
            return data

        assert await got(lines=2) == b"out 9\nerr\n"
        assert await got(lines=1, stream="stdout") == b"out 9\n"
        assert await got(from_stdout=52, from_stderr=1) == b" 8\nout 9\nrr\n"[1:]
        assert await got(since_usec=9000) == b"out 8\nout 9\nerr\n"
        assert await got(until_usec=2000) == b"out 0\nout 1\n"
        assert await got(since_usec=3000, until_usec=3000) == b"out 2\n"

    told(story)


def test_following_ends_at_the_time_asked_for() -> None:
    async def story(service: Logs, run: Run) -> None:
        run.write(b"x")
        listener = Listener(service, run, Selection(follow=True, until_usec=now() + 100_000))
        async with asyncio.timeout(60):
            assert await listener.rest() == b"x"
        await listener.task

    told(story)


def test_a_feed_that_lost_its_place_finds_it_again() -> None:
    """The entry everybody had come to is gone: nobody hears anything twice, or misses a thing."""

    async def story(service: Logs, run: Run) -> None:
        run.write(b"one")
        early = Listener(service, run)
        assert await early.hear(3) == b"one"
        await asyncio.sleep(0.05)
        run.write(b"two")
        assert await early.hear(3) == b"two"
        run.paper.vacuum(1)
        late = Listener(service, run, Selection(follow=True, from_stdout=3))
        assert await late.hear(3) == b"two"
        run.paper.vacuum(0)
        run.write(b"three")
        assert (await early.hear(5), await late.hear(5)) == (b"three", b"three")
        run.finish()
        assert [await early.rest(), await late.rest()] == [b"", b""]
        assert [await early.task, await late.task] == [(), ()]

    told(story)
