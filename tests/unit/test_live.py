"""A run as its readers see it: how much output is believed."""

from __future__ import annotations

import pytest

from jobsvc.live import Live
from jobsvc.model import Finished, Job, Phase, Result, Run, Running, User

ALICE = User(1000, "alice")


def source(phase: Phase, **facts: int | None) -> tuple[int, int] | None:
    run = Run(1, phase, main_pid=7, **facts)  # type: ignore[arg-type]
    job = Job(id="0" * 16, owner=ALICE, user=ALICE, gid=1000, spec={}, created_at=1, request="", run=run)
    return Live(job).source().written


def test_of_a_run_whose_end_is_known_so_many_bytes_are_believed_as_it_wrote() -> None:
    assert source(Finished(Result.SUCCESS, 1), stdout_bytes=5, stderr_bytes=0) == (5, 0)


@pytest.mark.parametrize("phase", [Running(), Finished(Result.LOST, 1)])
def test_while_it_runs_or_if_its_supervisor_was_killed_nobody_knows_the_last_byte(phase: Phase) -> None:
    assert source(phase, stdout_bytes=5, stderr_bytes=0) is None
