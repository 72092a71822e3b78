"""A busy machine begins nothing: what counts as busy, and what the kernel may not tell."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from jobsvc import load
from jobsvc.config import Config, Queue
from jobsvc.load import Load

GIB = 2**30
BOTH = replace(Config(), start_when_load_below=1.5, start_when_memory_available=GIB)


@pytest.mark.parametrize(
    ("look", "says"),
    [
        (Load(1.49, GIB, None), None),
        (Load(1.5, GIB, None), "the load is 1.50; StartWhenLoadBelow=1.5"),
        (Load(0, GIB - 2**20, None), "1023M of memory are available; StartWhenMemoryAvailable=1G"),
        (Load(0, GIB, 9.9), None),
        (Load(0, GIB, 23.4), "memory is short: tasks waited for it 23% of the last 10 s"),
    ],
)
def test_what_is_too_busy(look: Load, says: str | None) -> None:
    why = load.hindrance(look, *load.bounds("default", BOTH))
    assert (why or "").startswith(says or "")
    assert bool(why) is bool(says)
    assert load.hindrance(look, *load.bounds("default", Config())) is None


def test_a_queue_may_have_bounds_of_its_own() -> None:
    assert load.watched(Config()) == set()
    assert load.watched(BOTH) == {"default", "serial"}
    batch = replace(Config(), queues={"default": Queue(), "batch": Queue(start_when_load_below=2.0)})
    assert (load.watched(batch), load.bounds("batch", batch)) == ({"batch"}, (2.0, 0))
    spared = {"default": Queue(start_when_load_below=math.inf, start_when_memory_available=0), "batch": Queue()}
    assert load.watched(replace(BOTH, queues=spared)) == {"batch"}


def test_tasks_that_want_to_run_now_count_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PROC", tmp_path)
    assert load.look().stalled is None  # a kernel without PSI
    (tmp_path / "loadavg").write_text("0.10 0.20 0.30 5001/6000 4711\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/memory").write_text("some avg10=12.34 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00\n")
    seen = load.look()
    assert (seen.average, seen.stalled) == (5000, 12.34)
    assert seen.available > 0
