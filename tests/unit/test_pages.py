"""ReadLogs: output in pages, for those who cannot take a descriptor."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from listening import FOLLOW, Run, parts, told

from jobsvc.chunks import Missing
from jobsvc.formats import parse_missing
from jobsvc.logs import PAGE, Logs, Selection


def _next(options: dict[str, Any]) -> Selection:
    """What the service makes of the options a client passes back."""
    return Selection(
        stream=options.get("Stream"),
        from_stdout=options["FromStdout"],
        from_stderr=options["FromStderr"],
        until_usec=options.get("UntilUSec"),
        format=options["Format"],
        follow=options.get("Follow", False),
        missing=tuple(parse_missing(text) for text in options.get("Missing", [])),
    )


@pytest.mark.parametrize("style", ["raw", "json", "export"])
def test_pages_make_up_the_whole_and_none_is_too_big(style: str) -> None:
    async def story(service: Logs, run: Run) -> None:
        run.write(b"text\n" * 13_000)
        run.paper.at["stdout"] += 100
        for number in range(12):
            run.write(bytes([number]) * 65_536)
            run.write(b"e", "stderr")
        run.finish()
        pages, selection = [], Selection(format=style)
        while True:
            page, options = await service.read(run, selection)
            assert len(page) <= PAGE
            pages.append(page)
            if not options:
                break
            assert page
            selection = _next(options)
        whole = b"".join(pages)
        if style == "raw":
            assert len(whole) == 65_000 + 12 * 65_537
        elif style == "json":
            assert json.loads(whole.splitlines()[-1])["missing"] == [
                {"stream": "stdout", "from": 65_000, "to": 65_100, "why": "lost"}
            ]
        else:
            got, trailer = parts(whole)
            assert got["stdout"] == b"text\n" * 13_000 + b"".join(bytes([number]) * 65_536 for number in range(12))
            assert trailer.missing == (Missing("stdout", 65_000, 65_100, "lost"),)

    told(story)


def test_a_page_waits_for_output_only_when_it_has_none() -> None:
    async def story(service: Logs, run: Run) -> None:
        began = time.monotonic()
        page, options = await service.read(run, Selection(), wait_usec=100_000)
        assert (page, options["WaitUSec"], options["Follow"]) == (b"", 100_000, True)
        assert time.monotonic() - began > 0.09
        waiting = asyncio.create_task(service.read(run, _next(options), wait_usec=20_000_000))
        await asyncio.sleep(0.05)
        run.write(b"hello")
        async with asyncio.timeout(15):
            page, options = await waiting
        assert (page, options["FromStdout"]) == (b"hello", 5)
        run.finish()
        page, options = await service.read(run, _next(options), wait_usec=20_000_000)
        assert (page, options) == (b"", {})

    told(story)


def test_a_page_of_a_running_job_is_all_there_is_unless_it_is_followed() -> None:
    async def story(service: Logs, run: Run) -> None:
        run.write(b"hello")
        page, options = await service.read(run, Selection())
        assert (page, options["FromStdout"]) == (b"hello", 5)  # to go on with, perhaps waiting
        assert await service.read(run, _next(options)) == (b"", {})
        page, options = await service.read(run, FOLLOW)
        assert (page, options["FromStdout"]) == (b"hello", 5)

    told(story)


def test_what_a_reader_says_is_missing_is_not_taken_for_true() -> None:
    async def story(service: Logs, run: Run) -> None:
        noted: list[Missing] = []
        service.on_missing = lambda _, gaps: noted.extend(gaps)
        run.write(b"one")
        run.paper.at["stdout"] += 7
        run.write(b"two")
        run.finish()
        said = Missing("stdout", 50, 10_000, "lost")
        page, options = await service.read(run, Selection(missing=(said,), format="json"))
        assert (json.loads(page.splitlines()[-1])["missing"][0]["to"], options) == (10_000, {})
        assert noted == [Missing("stdout", 3, 10, "lost")]

    told(story)


@pytest.mark.parametrize(
    "text",
    ["stdout 0 10", "stdout 5 5 lost", "stdout 9 1 lost", f"stdout 0 {2**63} lost", "x 0 1 lost", "stdout 0 1 x"],
)
def test_a_range_that_cannot_be_missing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="missing range|unpack"):
        parse_missing(text)
