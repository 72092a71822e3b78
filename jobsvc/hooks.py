"""What follows when a job has ended: OnFinish= of the configuration, and mail for those who asked for it.

Each is a job of its own, of the same owner and user, whose spec says HookOf: it has no hook itself.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from jobsvc import cgroup
from jobsvc.authority import complete
from jobsvc.config import Config
from jobsvc.errors import InvalidSpec
from jobsvc.model import Finished, Job, Queued, Result, Run, State
from jobsvc.spec import Values

SENDMAIL = Path("/usr/sbin/sendmail")
OF = "HookOf"  # the key in the spec; nobody can set it
SCOPE = re.compile(r"/jobsvc\.slice/jobsvc-u[0-9]+\.slice/jobsvc-([0-9a-f]{16})-[0-9]+\.scope(?:/|$)")
LONGEST = 600 * 1_000_000  # µs a hook may run
PRIORITY = 1000  # it is about what has ended, and not behind what has yet to begin
MAIL = f'printf "%s" "$JOBSVC_MAIL" | {SENDMAIL} -oi -t'


def check(values: Values) -> None:
    """Refuse a job that wants a mail which nobody could send."""
    if values.get("Notify", "no") != "no" and not SENDMAIL.exists():
        raise InvalidSpec(f"Notify={values['Notify']} needs {SENDMAIL}, which is not there; install a mail transport")


def wanted(values: Values) -> Values:
    """What of a spec somebody asks for who runs it again: not what it has for being a hook."""
    return {name: value for name, value in values.items() if name not in (OF, "Priority")} if OF in values else values


def job_of(group: str | None, jobs: Mapping[str, Job]) -> Job | None:
    """The job in whose scope a control group is.

    The name of a scope alone says nothing: below a service manager of one's own (systemd --user) it is free. So the
    whole path has to be that in which the job's main process was put.
    """
    found = SCOPE.search(group or "")
    job = jobs.get(found[1]) if found else None
    if group is None or job is None or job.run.control_group is None:
        return None
    return job if cgroup.within(group, job.run.control_group) else None


def after(job: Job, config: Config, at: int, began: Callable[[], bool] = lambda: False) -> list[Job]:
    """The jobs that follow the end of this one; none for what never had its turn, and none for a hook.

    `began` is asked of a run that was canceled: whether an earlier run had its turn.
    """
    end = job.run.phase
    if not isinstance(end, Finished) or OF in job.spec:
        return []
    specs: list[Values] = []
    if config.on_finish:
        specs.append({"Name": "on-finish", "Command": list(config.on_finish), "Environment": environment(job, end)})
    notify = job.spec.get("Notify", "no")
    if notify == "mail" or (notify == "failure-mail" and job.state is State.FAILED):
        mail = f"JOBSVC_MAIL={message(job, end)}"
        specs.append({"Name": "mail", "Command": ["/bin/sh", "-c", MAIL], "Environment": [mail]})
    if specs and end.result is Result.CANCELED and not began():
        return []
    return [_hook(job, one, config, at) for one in specs]


def _hook(job: Job, values: Values, config: Config, at: int) -> Job:
    whole = complete({**values, "Priority": PRIORITY, OF: job.id}, config)
    whole["RuntimeMaxUSec"] = min(LONGEST, whole.get("RuntimeMaxUSec", LONGEST))
    return Job(
        id=secrets.token_hex(8),
        owner=job.owner,
        user=job.user,
        gid=job.gid,
        spec=whole,
        created_at=at,
        request=f"{OF}:{job.key}",
        run=Run(1, Queued(""), queued_at=at),
        root_allowed=job.root_allowed,
        group_override=job.group_override,
        group_granted=job.group_granted,
        priority_allowed=True,
    )


def environment(job: Job, end: Finished) -> list[str]:
    """The variables of the hook, NAME=VALUE; what is unknown is not there."""
    run = job.run
    facts = {
        "ID": job.id,
        "RUN": run.number,
        "NAME": _line(job.name),
        "OWNER": job.owner.name,
        "USER": job.user.name,
        "QUEUE": job.queue,
        "ARRAY_ID": _line(job.spec.get("ArrayId", "")) or None,
        "ARRAY_INDEX": job.spec.get("ArrayIndex"),
        "STATE": job.state,
        "RESULT": end.result,
        "EXIT_CODE": end.exit_code,
        "SIGNAL": end.signal,
        "REASON": _line(end.reason) or None,
        "CREATED_USEC": job.created_at,
        "STARTED_USEC": run.started_at,
        "FINISHED_USEC": end.at,
    }
    return [f"JOBSVC_FINISHED_{name}={value}" for name, value in facts.items() if value is not None]


def message(job: Job, end: Finished) -> str:
    """The mail to the owner, with its header."""
    from email.message import EmailMessage  # nobody who sends no mail waits for it

    host = socket.gethostname()
    how = f"exit code {end.exit_code}" if end.exit_code is not None else f"signal {end.signal}" if end.signal else ""
    begun = _time(job.run.started_at) if job.run.started_at else "never"
    mail = EmailMessage()
    mail["To"] = _header(job.owner.name)
    mail["Subject"] = f"{_header(job.name)} on {host}: {end.result}"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(
        f"Job {job.id} ({_line(job.name)}), run {job.run.number}, of {job.owner.name} on {host}\n"
        f"ended as {job.state}: {', '.join(part for part in (end.result, how, _line(end.reason)) if part)}.\n\n"
        f"Accepted: {_time(job.created_at)}\nStarted:  {begun}\nFinished: {_time(end.at)}\n\n"
        f"Its output: jobctl logs {job.id}\nAll about it: jobctl status {job.id}\n"
    )
    return mail.as_string()


def _header(text: str) -> str:
    """Without encoded words (RFC 2047): they are decoded when a header is set, and could hold anything, NUL too."""
    return _line(text).replace("=?", "= ?")


def _line(text: str) -> str:
    """On one line, not too long, and nothing that is not for the eye."""
    return "".join(char if char.isprintable() else "�" for char in text[:1000])


def _time(usec: int) -> str:
    return datetime.fromtimestamp(usec / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
