"""Who may do what to which job: which polkit actions a request needs, asked and answered."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from jobsvc import spec
from jobsvc.callers import Caller, Callers
from jobsvc.config import DEFAULT_QUEUE, Config
from jobsvc.errors import AccessDenied, InteractiveAuthorizationRequired, InvalidSpec, NoSuchJob, Quota
from jobsvc.model import Job
from jobsvc.polkit import Action, Polkit, showable
from jobsvc.quantity import format_limit
from jobsvc.userdb import Account

STOP_CEILING = "TimeoutStopUSec"
STOP_AFTER = 90_000_000  # µs, systemd's DefaultTimeoutStopSec
NORMAL_WEIGHT = 100  # what a cgroup has that nobody weighed
WEIGHTS = ("CPUWeight", "IOWeight")
FILES = ("StandardOutput", "StandardError")
OURS = frozenset({"CORE"})  # 0 for jobsvc.service; of NOFILE it has what everybody has


def is_system_user(uid: int) -> bool:
    """Users of services, which must not leave their sandboxes through us (systemd's UIDS-GIDS)."""
    return 0 < uid < 1000 or 61184 <= uid <= 65534


@dataclass(frozen=True, slots=True)
class Subject:
    """As whom a job is to run, and whether that is more than its owner could do alone."""

    account: Account
    gid: int
    group_override: bool
    foreign: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights of a job beyond those of its user: to higher limits, and to a group that the user need not be in."""

    limits: bool
    group: bool

    def to(self, job: Job) -> Job:
        """The job with these rights instead of those it had."""
        return replace(job, limits_allowed=self.limits, priority_allowed=self.limits, group_granted=self.group)


class Authority:
    """Answers by returning or raising. Root is asked nothing."""

    def __init__(self, polkit: Polkit, callers: Callers, config: Config) -> None:
        self._polkit = polkit
        self._callers = callers
        self.use(config)

    def use(self, config: Config) -> None:
        """Go by this configuration from now on."""
        self.config = self._polkit.config = config

    async def subject(self, caller: Caller, values: spec.Values) -> Subject:
        """Resolve User= and Group= for this caller; says what is not there before anyone is asked."""
        own = await self._own(caller)
        await self._queue(caller, own, values.get("Queue", DEFAULT_QUEUE))
        account = await self._callers.user(values["User"], caller.user.uid) if "User" in values else own
        gid = await self._callers.group(values["Group"], caller.user.uid) if "Group" in values else account.gid
        stranger = account.user.uid != caller.user.uid
        foreign = stranger or gid not in account.groups
        return Subject(account, gid, gid != account.gid, foreign)

    async def _queue(self, caller: Caller, own: Account, name: str) -> None:
        """AllowedGroups= of a queue is about who submits."""
        queue = self.config.queues.get(name)
        if queue is None:
            raise InvalidSpec(
                f"Queue={name}: there is no queue {name!r}; jobsvc.conf has {', '.join(sorted(self.config.queues))}"
            )
        if caller.is_root or queue.allowed_groups is None:
            return
        for group in queue.allowed_groups:
            try:
                if await self._callers.group(group, asker=0) in own.groups:
                    return
            except InvalidSpec:
                continue  # no such group, nobody in it
        raise AccessDenied(f"queue {name!r} is for the groups {', '.join(queue.allowed_groups) or 'of nobody'}")

    async def _own(self, caller: Caller) -> Account:
        try:
            return await self._callers.account(caller.user.uid)
        except InvalidSpec:
            raise AccessDenied(f"uid {caller.user.uid} is not in the user database") from None

    async def start(self, caller: Caller, job: Job, values: spec.Values, subject: Subject) -> Grant:
        """May this caller have the job, with this spec, executed as this subject?

        Grants whether resource limits may be beyond what PAM gives the user, which is not known here, and
        whether a priority above 0 counts against the jobs of other users. A group that nobody was asked about
        is one of the user's own, and has to be one when the job starts.
        """
        if caller.is_root:
            return Grant(limits=True, group=True)
        job = replace(job, spec=values, user=subject.account.user, gid=subject.gid)
        uid, name = caller.user.uid, caller.user.name
        if is_system_user(uid) and not {name, str(uid)} & set(self.config.allowed_system_users):
            raise AccessDenied(
                f"{name} is a system user; to let it run jobs, add it to AllowedSystemUsers= in jobsvc.conf"
            )
        await self._ask(caller, Action.START, job)
        if subject.foreign:
            await self._ask(caller, Action.START_AS_USER, job)
        return Grant(await self._beyond(caller, job), subject.foreign)

    async def _beyond(self, caller: Caller, job: Job) -> bool:
        """Whether what the job is to have may be beyond the limits; asked for only if it already is."""
        if why := excess(job.spec, await self.bounds(caller)):
            await self._ask(caller, Action.EXCEED_LIMITS, job, why)
            return True
        if job.priority <= 0 and not any(name.startswith("Limit") for name in job.spec):
            return False
        return await self._would(caller, Action.EXCEED_LIMITS, job)

    async def change(self, caller: Caller, job: Job, values: spec.Values) -> bool:
        """May this caller, who manages the job, give it these bounds?

        Returns whether a priority above 0 among them counts against the jobs of other users.
        """
        if not caller.is_root and (why := excess(values, await self.bounds(caller), values)):
            await self._ask(caller, Action.EXCEED_LIMITS, job, why)
            return True
        if caller.is_root or values.get("Priority", 0) <= 0:
            return caller.is_root
        return await self._would(caller, Action.EXCEED_LIMITS, job)

    async def bounds(self, caller: Caller) -> Config:
        """The configuration as it is for this caller, with the ceilings of its groups."""
        if not self.config.group_ceilings:
            return self.config
        account = await self._own(caller)
        return self.config.of(await self._callers.member_of(account, self.config.group_ceilings))

    async def view(self, caller: Caller, job: Job, action: Action = Action.VIEW) -> None:
        """May this caller know of the job, or read its output? If not, it does not exist for it."""
        if caller.is_root or caller.owns(job):
            return
        try:
            await self._ask(caller, action, job)
        except (AccessDenied, Quota):
            if action is not Action.VIEW:
                await self.view(caller, job)  # who may know of it may know why not
                raise
            raise NoSuchJob.of(job.id) from None

    async def manage(self, caller: Caller, job: Job) -> None:
        """May this caller stop, kill, restart, remove the job?"""
        if caller.is_root:
            return
        if caller.user == job.owner:  # the user a job runs as sees it, but it is not that user's to stop
            await self._ask(caller, Action.MANAGE_OWN, job)
            return
        await self.view(caller, job)
        await self._ask(caller, Action.MANAGE, job)

    async def administer(self, caller: Caller) -> None:
        """May this caller switch maintenance, and have the configuration read anew?"""
        if not caller.is_root:
            await self._ask(caller, Action.ADMINISTER)

    async def sees_all(self, caller: Caller) -> bool:
        """Whether lists and signals show this caller everybody's jobs; nobody is asked for a password for it."""
        if caller.is_root:
            return True
        return await self._would(caller, Action.VIEW)

    async def _would(self, caller: Caller, action: Action, job: Job | None = None) -> bool:
        """Whether polkit says yes without a password."""
        try:
            await self._polkit.check(caller, action, _details(job) if job else {}, interactive=False)
        except AccessDenied:
            return False
        return True

    async def _ask(self, caller: Caller, action: Action, job: Job | None = None, why: str = "") -> None:
        """Ask about each set of details once in a call, and a person about each set of patterns of files.

        A refusal names the job, then `why` the action is needed, then the action.
        """
        details = _details(job) if job else {}
        question = _question(action, details)
        if question in caller.allowed:
            return
        alike = _question(action, details | ({"job.output": _output(job, filled=False)} if job else {}))
        confirmed = alike in caller.confirmed
        try:
            if await self._polkit.check(caller, action, details, caller.interactive and not confirmed):
                caller.confirmed.add(alike)
        except InteractiveAuthorizationRequired as error:
            if not confirmed:
                raise _told(error, job, why) from None
        except AccessDenied as error:
            raise _told(error, job, why) from None
        caller.allowed.add(question)


def _told(error: AccessDenied, job: Job | None, why: str) -> AccessDenied:
    """The refusal with its job named: by the name, and by the id once the job is stored."""
    if job is None:
        return error
    name = showable(job.name)
    about = f"job {job.id} ({name})" if job.seq else f"job {name}"
    return type(error)(f"{about}: {why}; {error}" if why else f"{about}: {error}")


def _question(action: Action, details: dict[str, str]) -> object:
    return (action, frozenset(one for one in details.items() if one[0] not in ("job.id", "job.unit")))


def _details(job: Job) -> dict[str, str]:
    return {
        "job.id": job.id,
        "job.owner": job.owner.name,
        "job.user": job.user.name,
        "job.name": job.name,
        "job.group": str(job.gid),
        "job.unit": job.unit,
        **_executed(job),
    }


def _executed(job: Job) -> dict[str, str]:
    """What a rule has to see to know what would be executed: a command means little without its environment."""
    values = job.spec
    return {
        "job.command": shlex.join(values.get("Command", ())),
        # Not to be taken for a command of that name.
        "job.script": values["Script"].decode("utf-8", "replace") if "Script" in values else "",
        "job.arguments": shlex.join(values.get("Arguments", ())),
        "job.shell": values.get("Shell", ""),
        "job.working-directory": values.get("WorkingDirectory", ""),
        "job.environment": " ".join(text.partition("=")[0] for text in values.get("Environment", [])),
        "job.input": "terminal" if values.get("Pty") else "descriptor" if values.get("StandardInput") else "",
        "job.umask": f"{values['UMask']:04o}" if "UMask" in values else "",
        "job.output": _output(job),
        "job.array": values.get("ArrayId", ""),
        **{f"job.label.{name}": text for name, text in values.get("Labels", {}).items()},
    }


def _output(job: Job, *, filled: bool = True) -> str:
    """The files that the present run opens. With Retries= it may be any run, and %r stays as it is written."""
    unknown = "r" if job.spec.get("Retries") else ""
    named = [name for name in FILES if job.spec.get(name)]
    return shlex.join((job.output_file(name, unknown) or "") if filled else job.spec[name] for name in named)


def files_of(job: Job) -> list[str | None]:
    """The output files of a job, whatever its id, which no caller chooses."""
    return [replace(job, id="").output_file(name) for name in FILES]


def excess(values: spec.Values, config: Config, named: Collection[str] | None = None) -> str:
    """Describe a value of a spec beyond what everybody may have, with that bound; "" if there is none.

    With `named` only these of the ceilings are looked at.
    """
    everybody = {"Nice": 0, **dict.fromkeys(WEIGHTS, NORMAL_WEIGHT)}
    everybody |= {name: hard for name in values if (hard := _hard_limit(name)) is not None}
    for name, most in everybody.items():
        if name in values and (values[name] < most if name == "Nice" else values[name] > most):
            return f"{format_limit(name, values[name])} is beyond what everybody may have, {format_limit(name, most)}"
    for name, ceiling in config.ceilings.items():
        if (named is None or name in named) and _over(values.get(name), ceiling):
            value = spec.INFINITY if values.get(name) is None else values[name]
            return f"{format_limit(name, value)} is beyond the ceiling, {format_limit(name, ceiling)}"
    return ""


def _hard_limit(name: str) -> int | None:
    """The hard rlimit everybody has here, as far as it bounds anything.

    The supervisor holds every job to the hard limit of its own user.
    """
    import resource

    kind = name.removeprefix("Limit")
    if kind == name or kind not in spec.RLIMITS or kind in OURS:
        return None
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{kind}"))[1]
    return spec.INFINITY if hard == resource.RLIM_INFINITY else hard


def _over(value: Any, ceiling: Any) -> bool:
    if isinstance(value, bytes):
        return any(have & ~allowed for have, allowed in itertools.zip_longest(value, ceiling, fillvalue=0))
    if isinstance(value, list):
        bounds = dict(ceiling)
        return any(amount > bounds.get(path, amount) for path, amount in value)
    return value is None or bool(value > ceiling)  # none at all: accepted before there was a ceiling


def complete(values: spec.Values, config: Config) -> spec.Values:
    """A spec with the configured defaults; a ceiling is the default of what is not named at all."""
    whole = {**config.ceilings, **config.defaults, **values}
    whole["TimeoutStopUSec"] = values.get("TimeoutStopUSec", min(_stop_after(config), config.ceilings[STOP_CEILING]))
    for name in spec.IO_PATHS:
        named = dict(values.get(name, ()))
        # Last, so that another path to the same disk does not lift them.
        rest = [(path, amount) for path, amount in config.ceilings.get(name, ()) if path not in named]
        if name in values and rest:
            whole[name] = [*values[name], *rest]
    return whole


def _stop_after(config: Config) -> int:
    return int(config.defaults.get(STOP_CEILING, STOP_AFTER))
