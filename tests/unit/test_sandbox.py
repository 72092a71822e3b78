"""What bubblewrap is asked for."""

from pathlib import Path

import pytest

from jobsvc import sandbox


def test_everything_stays_that_is_not_taken_away() -> None:
    assert sandbox.options([]) == ["--dev-bind", "/", "/"]
    assert sandbox.options(["PrivateTmp"])[3:] == ["--tmpfs", "/tmp", "--tmpfs", "/var/tmp"]
    assert sandbox.options(["PrivateNetwork"])[3:] == ["--unshare-net"]
    read_only = sandbox.options(["ReadOnlyRoot"])
    assert read_only[:3] == ["--ro-bind", "/", "/"]
    assert read_only[3:] == ["--dev-bind", "/dev", "/dev", "--dev-bind", "/proc", "/proc"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "BWRAP", str(tmp_path / "bwrap"))
    assert sandbox.missing([]) == ""
    assert sandbox.missing(["ReadOnlyRoot", "PrivateTmp"]) == "PrivateTmp"
    with pytest.raises(OSError, match="not installed"):
        sandbox.enter(["PrivateTmp"])
    (tmp_path / "bwrap").touch()
    assert sandbox.missing(["PrivateTmp"]) == ""
