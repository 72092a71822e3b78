"""A run's directory is tidied up by its supervisor and by the service, perhaps at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobsvc import report, rundir

KEY = "0123456789abcdef-1"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rundir, "RUNS", tmp_path)
    directory = tmp_path / KEY
    directory.mkdir()
    for name in report.OWN_FILES:
        (directory / name).touch()
    return directory


def meanwhile(monkeypatch: pytest.MonkeyPatch, method: str, happens: Callable[[], None]) -> None:
    """Between two steps of ours something happens, once."""
    real = getattr(Path, method)

    def step(self: Path, **options: bool) -> None:
        monkeypatch.setattr(Path, method, real)
        happens()
        real(self, **options)

    monkeypatch.setattr(Path, method, step)


@pytest.mark.parametrize("step", ["unlink", "rmdir"])
def test_a_supervisor_may_tidy_up_at_the_same_time(directory: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    meanwhile(monkeypatch, step, lambda: report.clear(str(directory), keep=False))
    rundir.discard(KEY)
    assert not directory.exists()
    rundir.discard(KEY)


def test_what_a_supervisor_adds_meanwhile_is_its_own_to_remove(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, "rmdir", (directory / "report").touch)
    rundir.discard(KEY)
    assert [path.name for path in directory.iterdir()] == ["report"]
