"""Reports appear whole, or in the run directory; what is over is cleared away."""

from __future__ import annotations

import os
from pathlib import Path

from jobsvc import control, report


def test_a_report_is_where_reports_belong(tmp_path: Path) -> None:
    assert report.write(str(tmp_path), "/nowhere", "run-1", {"result": "success"})
    assert os.listdir(tmp_path) == ["run-1"]
    assert control.parse((tmp_path / "run-1").read_bytes())["result"] == "success"
    assert (tmp_path / "run-1").stat().st_mode & 0o777 == 0o600


def test_else_it_is_in_the_run_directory(tmp_path: Path) -> None:
    assert not report.write("/no/such", str(tmp_path), "run-1", {"result": "success"})
    assert os.listdir(tmp_path) == ["report"]


def test_what_is_over_is_cleared_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in report.OWN_FILES:
        (run / name).touch()
    report.clear(str(run), keep=True)
    assert set(os.listdir(run)) == set(report.OWN_FILES) - {"control"}
    report.clear(str(run), keep=False)
    assert not run.exists()
    report.clear(str(run), keep=False)


def test_an_intent_says_what_and_why(tmp_path: Path) -> None:
    report.write_intent(str(tmp_path), "stop", "enough", 7)
    facts = control.parse((tmp_path / "intent").read_bytes())
    assert facts == {"version": 1, "readable_by": 1, "intent": "stop", "reason": "enough", "usec": 7}
