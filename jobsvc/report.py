"""The files a supervisor leaves: its intent before it acts, and the report at the end."""

from __future__ import annotations

import os

from jobsvc import control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

OWN_FILES: Final = ("request", "ticket", "begun", "intent", "control", "lock")


def write_intent(directory: str, intent: str, reason: str, usec: int) -> None:
    """Why the run is about to be ended, for whoever finds it if we do not live to report it."""
    facts = {"intent": intent, "reason": reason, "usec": usec}
    _write(directory, "intent", control.dump(facts))


def write(reports: str, directory: str, run: str, report: dict[str, Any]) -> bool:
    """Put the report on disk; True if it is where reports belong.

    Otherwise, with the disk full or gone, it is in the run directory, which then stays.
    """
    data = control.dump(report)
    try:
        _write(reports, run, data)
    except OSError:
        _write(directory, "report", data)
        return False
    return True


def _write(directory: str, name: str, data: bytes) -> None:
    """Appear under the name whole or not at all. A power cut may take it back: the run is lost then, and says so."""
    temporary = f"{directory}/.{name}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, f"{directory}/{name}")


def clear(directory: str, keep: bool) -> None:
    """Remove the run directory, or only what nobody needs any more if a report is in it."""
    for name in ("control",) if keep else OWN_FILES:
        try:
            os.unlink(f"{directory}/{name}")
        except OSError:
            pass
    if not keep:
        try:
            os.rmdir(directory)
        except OSError:
            pass
