"""A password is asked for in the terminal, when the service wants one, and only there."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeService, Jobctl, Refusal, job

from jobsvc.cli.agent import TerminalAgent

ID = job()["Id"]


@pytest.fixture
def agent(tmp_path: Path, jobctl: Jobctl) -> Path:
    """A pkttyagent that notes that it was started and ended."""
    notes = tmp_path / "notes"
    program = tmp_path / "pkttyagent"
    program.write_text(
        f'#!/bin/bash\necho "$1 $3" >> {notes}\ntrap "echo ended >> {notes}; exit" TERM\n'
        'eval "exec $2>&-"\nwhile :; do sleep 0.02; done\n'
    )
    program.chmod(0o755)
    jobctl.environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    return notes


def strict(service: FakeService) -> None:
    """Stopping needs a password."""

    def stop(job_id: str, options: Any) -> Any:
        if not service.flags[-1] & 4:
            raise Refusal("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "a password")
        return FakeService.Stop(service, job_id, options)

    service.jobs[ID] = job()
    service.on["Stop"] = stop


def test_the_agent_comes_and_goes(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{agent.parent}:{os.environ['PATH']}")
    asker = TerminalAgent()
    asker.open()
    asker.open()
    assert agent.read_text() == "--notify-fd --fallback\n"
    asker.close()
    assert agent.read_text() == "--notify-fd --fallback\nended\n"


def _asker(after: str) -> str:
    """A script that opens an agent, says its pid, and goes on."""
    return (
        "import os, signal, time\nfrom jobsvc.cli.agent import TerminalAgent\nasker = TerminalAgent()\nasker.open()\n"
        f"print(asker._pid, flush=True)\n{after}\n"
    )


def test_an_agent_that_is_stopped_ends_all_the_same(jobctl: Jobctl, agent: Path) -> None:
    jobctl.command = ["-c", _asker("os.kill(asker._pid, signal.SIGSTOP)\nasker.close()")]
    process = jobctl.start()
    try:
        process.communicate(timeout=120)
    finally:
        subprocess.run(["pkill", "-CONT", "-P", str(process.pid)], check=False)
        process.kill()
    assert agent.read_text().endswith("ended\n")


def test_an_agent_does_not_outlive_jobctl(jobctl: Jobctl, agent: Path) -> None:
    jobctl.command = ["-c", _asker("os.kill(os.getpid(), signal.SIGKILL)")]
    assert jobctl().code == -9
    deadline = time.monotonic() + 60
    while not agent.read_text().endswith("ended\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_an_agent_the_call_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    asker = TerminalAgent()
    asker.open()
    asker.close()


def be(jobctl: Jobctl, uid: int) -> None:
    """Who runs the tests does not matter: jobctl is told who it is."""
    jobctl.command = ["-c", f"import os; os.geteuid = lambda: {uid}\nfrom jobsvc.cli import main\nmain()"]


@pytest.mark.parametrize(("uid", "options"), [(0, []), (1000, ["--no-ask-password"])])
def test_nobody_is_asked(service: FakeService, jobctl: Jobctl, agent: Path, uid: int, options: list[str]) -> None:
    strict(service)
    be(jobctl, uid)
    done = jobctl.on_terminal("stop", ID, *options)
    assert (done.code, done.out) == (5, "jobctl: a password\r\n")
    assert not agent.exists()


def test_on_a_terminal_a_user_is_asked(service: FakeService, jobctl: Jobctl, agent: Path) -> None:
    strict(service)
    be(jobctl, 1000)
    done = jobctl.on_terminal("stop", ID)
    assert (done.code, done.out) == (0, "")
    assert agent.read_text() == "--notify-fd --fallback\nended\n"
    agent.unlink()
    strict(service)
    assert jobctl("stop", ID).code == 5  # no terminal
    assert not agent.exists()


@pytest.mark.parametrize("command", ["logs", "status"])
def test_a_pager_comes_after_the_question(
    service: FakeService, jobctl: Jobctl, agent: Path, command: str, tmp_path: Path
) -> None:
    def strictly(member: str) -> Any:
        def read(job_id: str, options: Any) -> Any:
            if not service.flags[-1] & 4:
                raise Refusal("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "a password")
            return getattr(FakeService, member)(service, job_id, options)

        return read

    service.jobs[ID] = job()
    service.on |= {"Logs": strictly("Logs"), "ReadLogs": strictly("ReadLogs")}
    service.write("stdout", b"hello\n")
    pager = tmp_path / "less"
    pager.write_text(f"#!/bin/sh\necho pager >> {agent}\nexec sed s/hello/paged/\n")
    pager.chmod(0o755)
    be(jobctl, 1000)
    done = jobctl.on_terminal(command, ID)
    assert "paged\r\n" in done.out
    assert agent.read_text() == "--notify-fd --fallback\npager\nended\n"


def test_the_agent_holds_no_output_of_ours(jobctl: Jobctl, agent: Path) -> None:
    """A pager, or whoever else reads what we write, would wait for its end."""
    links = "print(*(os.readlink(f'/proc/{asker._pid}/fd/{fd}') for fd in (1, 2)), flush=True)"
    jobctl.command = ["-c", _asker(f"{links}\nasker.close()")]
    assert jobctl().out.splitlines()[1:] == ["/dev/null /dev/null"]
