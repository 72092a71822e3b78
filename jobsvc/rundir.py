"""A run's directory, from jobsvcd's side: the request for its supervisor, and tidying up after it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobsvc import __version__, control, inputs, sandbox, spec
from jobsvc.config import Config
from jobsvc.model import Job, Run, Starting, User

RUNS = Path("/run/jobsvc/runs")
TICKET = "ticket"  # the launcher takes it away before it forks: one request, one supervisor
BEGUN = "begun"
FLOCK = "hhqqi4x"  # struct flock of 64-bit offsets: type, whence, start, length, process
NEWER = ("Script", "Pty", "NoNewPrivileges", "StandardInput", *sandbox.KEYS)  # keys that 0.1.0 did not know


def path(key: str) -> Path:
    return RUNS / key


def build(job: Job, config: Config, sample_memory: bool) -> dict[str, Any]:
    """The request of the job's current run. Shapes and units as the spec has them."""
    wanted = job.spec
    return {
        # A supervisor of 0.1.0 must not run without it what was asked for with it.
        "version": control.NEWER if any(map(wanted.get, NEWER)) else control.VERSION,
        "version_of_service": __version__,
        "boot_id": job.run.boot_id,
        "id": job.id,
        "run": job.run.number,
        "unit": job.unit,
        "name": job.name,
        "request": job.request,
        "owner_uid": job.owner.uid,
        "owner": job.owner.name,
        "uid": job.user.uid,
        "user": job.user.name,
        "gid": job.gid,
        "group_override": job.group_override,
        "group_granted": job.group_granted,
        "root_allowed": job.root_allowed,
        "limits_allowed": job.limits_allowed,
        "command": wanted.get("Command", []),
        "script": wanted["Script"].decode("utf-8", "surrogateescape") if "Script" in wanted else None,
        "shell": wanted.get("Shell"),
        "arguments": wanted.get("Arguments", []),
        "working_directory": wanted.get("WorkingDirectory"),
        "environment": [*wanted.get("Environment", []), *_marks(job)],
        "terminal": [wanted.get("TTYRows", 24), wanted.get("TTYColumns", 80)] if wanted.get("Pty") else None,
        "sandbox": [name for name in sandbox.KEYS if wanted.get(name)],
        "no_new_privileges": wanted.get("NoNewPrivileges", False),
        "standard_input": str(inputs.FOLDER / job.id) if wanted.get("StandardInput") else None,
        "standard_output": job.output_file("StandardOutput"),
        "standard_error": job.output_file("StandardError"),
        "runtime_max_usec": finite(wanted.get("RuntimeMaxUSec")),
        "timeout_stop_usec": finite(wanted["TimeoutStopUSec"]),
        "kill_signal": wanted.get("KillSignal", 15),
        "exit_type": wanted.get("ExitType", "main"),
        "oom_policy": wanted.get("OOMPolicy", "stop"),
        "nice": wanted.get("Nice"),
        "umask": wanted.get("UMask"),
        "rlimits": {name: wanted[f"Limit{name}"] for name in spec.RLIMITS if f"Limit{name}" in wanted},
        "io_paths": sorted({path for name in spec.IO_PATHS for path, _ in wanted.get(name, [])}),
        "pam": config.pam,
        "start_timeout_usec": config.start_timeout_usec,
        "log_size_max": finite(wanted.get("LogSizeMax", config.log_size_max)),
        "sample_memory": sample_memory,
    }


def _marks(job: Job) -> list[str]:
    """By what a job knows itself, besides its id and run."""
    array = {name: job.spec[name] for name in ("ArrayId", "ArrayIndex") if name in job.spec}
    marks = {
        "NAME": job.name,
        **{f"ARRAY_{name.removeprefix('Array').upper()}": value for name, value in array.items()},
    }
    return [f"JOBSVC_{name}={value}" for name, value in marks.items()]


def finite(value: int | None) -> int | None:
    return None if value == spec.INFINITY else value


def write(key: str, request: dict[str, Any]) -> None:
    """Make the run's directory with its request: from here on the run can be found again."""
    directory = path(key)
    directory.mkdir(mode=0o700, exist_ok=True)
    temporary = directory / "request.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(json.dumps(request, ensure_ascii=False))
    temporary.rename(directory / "request")
    (directory / TICKET).touch(0o600)


def claim(key: str) -> bool:
    """Take the ticket that one launch needs: True if from now on nobody else can launch this request."""
    try:
        (path(key) / TICKET).unlink()
    except FileNotFoundError:
        return path(key).is_dir() and not (path(key) / "request").exists()  # not even written
    return True


def mark_begun(key: str) -> None:
    """About to say go: from here on the run may have begun, whoever of us is killed next."""
    (path(key) / BEGUN).touch(0o600)


def begun(key: str) -> bool:
    return (path(key) / BEGUN).exists()


def supervised(key: str) -> bool:
    """Whether the run's supervisor lives: it holds a record lock all its life."""
    try:
        with open(path(key) / "lock", "r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # locked; or we cannot know, and what may be alive is not to be killed
    return False


def supervisor(key: str) -> int | None:
    """The process that holds the lock of a run; None if there is none."""
    wanted = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with open(path(key) / "lock", "r+b") as lock:
            kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, wanted))
    except OSError:
        return None
    return pid if kind != fcntl.F_UNLCK else None


def keys() -> Iterator[str]:
    """The runs that have a directory."""
    return (entry.name for entry in RUNS.iterdir() if control.is_run_key(entry.name))


def discard(key: str) -> None:
    """Remove what no supervisor will remove. One that is just going may do so at the same time, or add to it."""
    directory = path(key)
    with contextlib.suppress(FileNotFoundError):
        for file in directory.iterdir():
            file.unlink(missing_ok=True)
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
    (RUNS.parent / "scripts" / key).unlink(missing_ok=True)


def forget(key: str) -> None:
    """The job has been removed. Its supervisor may still be there: without a request it brings nothing back."""
    (path(key) / "request").unlink(missing_ok=True)


def _program(facts: dict[str, Any]) -> dict[str, Any]:
    """What is run, and in what, as the spec had it."""
    if (text := facts.get("script")) is None:
        program = {"Command": facts["command"]}
    else:
        program = {"Script": text.encode("utf-8", "surrogateescape"), "Arguments": facts["arguments"]}
        program |= {"Shell": facts["shell"]} if facts["shell"] else {}
    within = [*facts.get("sandbox", ()), *(["NoNewPrivileges"] if facts.get("no_new_privileges") else ())]
    if size := facts.get("terminal"):
        program |= {"Pty": True, "TTYRows": size[0], "TTYColumns": size[1]}
    return program | dict.fromkeys(within, True)


def recover(key: str) -> Job | None:
    """The job of a run that jobs.db does not know (any more), as far as its request tells."""
    try:
        facts = json.loads((path(key) / "request").read_bytes().decode("utf-8", "surrogateescape"))
        names = {"Name": "name", "Environment": "environment", "TimeoutStopUSec": "timeout_stop_usec"}
        names |= {"WorkingDirectory": "working_directory", "RuntimeMaxUSec": "runtime_max_usec"}
        known = {name: facts[fact] for name, fact in names.items() if facts.get(fact) is not None}
        return Job(
            id=facts["id"],
            owner=User(facts["owner_uid"], facts.get("owner") or facts["user"]),
            user=User(facts["uid"], facts["user"]),
            gid=facts["gid"],
            spec=_program(facts) | known,
            created_at=int((path(key) / "request").stat().st_mtime * 1_000_000),
            request=facts["request"],
            root_allowed=facts["root_allowed"],
            group_override=facts["group_override"],
            group_granted=facts.get("group_granted", True),
            run=Run(facts["run"], Starting(), boot_id=facts["boot_id"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
