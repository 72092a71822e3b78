"""PAM: what a session adds reaches the job, stays out of the supervisor, and is closed at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import Stage, needs_root, staged

pytestmark = needs_root

# A mount namespace of the launcher's own, where /etc/pam.d is what the test says.
PRIVATE = (
    "unshare",
    "-m",
    "sh",
    "-c",
    'mount -t tmpfs none /etc/pam.d && cp "$0"/pam/* /etc/pam.d && exec "$@"',
)

OPEN = """
account  required  pam_permit.so
session  required  pam_env.so conffile={place}/pam_env.conf envfile={place}/environment
session  required  pam_limits.so conf={place}/limits.conf
session  optional  pam_umask.so umask=0027
session  required  pam_exec.so type=close_session {place}/closing
"""
SHUT = """
account  required  pam_deny.so
"""
NO_SESSION = """
account  required  pam_permit.so
session  required  pam_deny.so
"""


def stage_with(place: Path, service: str) -> Iterator[Stage]:
    (place / "pam").mkdir()
    (place / "pam_env.conf").touch()
    (place / "environment").write_text("FROM_PAM=yes\nOVER=pam\n")
    (place / "limits.conf").write_text("* soft nofile 321\n* hard nofile 432\n* - nice 0\n")
    (place / "closing").write_text(f"#!/bin/sh\necho $PAM_USER $PAM_TYPE > {place}/closed\n")
    (place / "closing").chmod(0o755)
    (place / "pam" / "jobsvc").write_text(service.format(place=place))
    with staged(*PRIVATE, str(place)) as stage:
        yield stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    yield from stage_with(tmp_path, OPEN)


def test_a_session_gives_environment_limits_and_umask(stage: Stage, tmp_path: Path) -> None:
    report = stage.run(
        "sh",
        "-c",
        "echo $FROM_PAM $OVER $HOME; ulimit -n; ulimit -Hn; umask",
        pam="session",
        environment=["OVER=job", "HOME=/x"],
    )
    assert report["result"] == "success", report
    assert stage.journal.output() == b"yes job /x\n321\n432\n0027\n"
    assert (tmp_path / "closed").read_text() == "nobody close_session\n"


def test_the_jobs_own_limits_and_umask_win(stage: Stage) -> None:
    stage.run("sh", "-c", "ulimit -n; umask", pam="session", rlimits={"NOFILE": 400}, umask=0o77)
    assert stage.journal.output() == b"400\n0077\n"


def test_the_supervisor_keeps_what_it_had(stage: Stage, tmp_path: Path) -> None:
    run = stage.start("sleep", "100", pam="session")
    pid = run.go()
    run.hear("started")
    status = Path(f"/proc/{run.supervisor}/status").read_text()
    fields = {k: v.strip() for k, _, v in (line.partition(":") for line in status.splitlines())}
    assert fields["Uid"].split() == ["0"] * 4
    assert fields["Groups"] == ""
    assert fields["Umask"] == "0177"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max open files            321                  432" in limits
    assert os.getpriority(os.PRIO_PROCESS, run.supervisor) == 0
    assert not (tmp_path / "closed").exists()
    run.tell("stop")
    run.end()
    assert (tmp_path / "closed").exists()


def test_account_alone_opens_no_session(stage: Stage, tmp_path: Path) -> None:
    stage.run("sh", "-c", "echo $FROM_PAM; umask", pam="account")
    assert stage.journal.output() == b"\n0022\n"
    assert not (tmp_path / "closed").exists()


def test_a_session_is_closed_when_the_job_never_begins(stage: Stage, tmp_path: Path) -> None:
    run = stage.start("true", pam="session")
    run.hold()
    run.tell("abort", text="no")
    run.end()
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("service", "mode", "step"),
    [(SHUT, "account", "PAM account: "), (NO_SESSION, "session", "PAM session: ")],
)
def test_a_refusal_is_a_start_failed(tmp_path: Path, service: str, mode: str, step: str) -> None:
    for stage in stage_with(tmp_path, service):
        run = stage.start("true", pam=mode)
        report = run.end()
        assert (report["result"], report["step"], report["begun"]) == ("start-failed", "pam", False)
        assert report["reason"].startswith(step)
        assert stage.run("true", pam="no")["result"] == "success"
        assert os.listdir(stage.runs) == []
