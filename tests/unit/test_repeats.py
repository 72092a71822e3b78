"""A line that callers can bring about is said twenty times a minute, and the last of them says so."""

import logging

from jobsvc.repeats import MOST, WITHIN, Repeats


def record(name: str, line: int, number: int) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "x.py", line, "number %d", (number,), None)


def said(repeats: Repeats, name: str, line: int, times: int) -> list[str]:
    records = [record(name, line, number) for number in range(times)]
    return [one.getMessage() for one in records if repeats.filter(one)]


def test_the_first_of_a_minute_are_said() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)
    lines = said(repeats, "jobsvc.methods.output", 68, 1000)
    assert lines[:2] == ["number 0", "number 1"]
    assert lines[MOST - 1 :] == [f"number {MOST - 1} (more of this is left out for a minute)"]
    assert said(repeats, "jobsvc.methods.output", 70, 1) == ["number 0"]  # another thing that happens
    now = WITHIN - 0.1
    assert said(repeats, "jobsvc.methods.output", 68, 1) == []
    now = WITHIN
    assert len(said(repeats, "jobsvc.methods.output", 68, 1000)) == MOST


def test_what_happens_to_jobs_is_always_said() -> None:
    assert len(said(Repeats(), "jobsvc.manager", 1, 1000)) == 1000
