"""The one family of errors: each has a public code, raised where the fact is known, translated once per door.

The text is for people: what happened, why, and what to try. The code is what programs match on.
"""

from __future__ import annotations

from typing import ClassVar

PREFIX = "org.jobsvc1.Error."
FREEDESKTOP = "org.freedesktop.DBus.Error."


class JobsvcError(Exception):
    """Whatever the service or a client of it refuses, with one code each."""

    code: ClassVar[str] = "Internal"
    exit_code: ClassVar[int] = 1

    @property
    def bus_name(self) -> str:
        """The D-Bus error name this code travels under."""
        return PREFIX + self.code


class NoSuchJob(JobsvcError):
    """There is no such job, or the caller may not know that there is."""

    code = "NoSuchJob"
    exit_code = 4

    @classmethod
    def of(cls, job: str) -> NoSuchJob:
        return cls(f"no job {job!r}; 'jobctl list' shows the jobs there are")


class InvalidSpec(JobsvcError):
    """A job or an option as asked for cannot be: names the key, the value and what is allowed."""

    code = "InvalidSpec"
    exit_code = 2


class WrongState(JobsvcError):
    """The job is not in a state in which this can be done."""

    code = "WrongState"


class QueueFull(JobsvcError):
    """MaxQueued is reached."""

    code = "QueueFull"


class Quota(JobsvcError):
    """One user's share of something is used up."""

    code = "Quota"


class Maintenance(JobsvcError):
    """The service takes nothing new for now."""

    code = "Maintenance"


class InvalidConfig(JobsvcError):
    """The configuration cannot be used: names file, key, value and what is allowed."""

    code = "InvalidConfig"


class Internal(JobsvcError):
    """Something unforeseen; the details are in the journal of jobsvc.service, never on the bus."""

    code = "Internal"


class AccessDenied(JobsvcError):
    """polkit said no."""

    code = "AccessDenied"
    exit_code = 5

    @property
    def bus_name(self) -> str:
        return FREEDESKTOP + self.code


class InteractiveAuthorizationRequired(AccessDenied):
    """polkit would say yes after a password; the call did not allow it to ask."""

    code = "InteractiveAuthorizationRequired"


class InvalidArgs(JobsvcError):
    """The call itself is malformed: an unknown method, option or type."""

    code = "InvalidArgs"
    exit_code = 2

    @property
    def bus_name(self) -> str:
        return FREEDESKTOP + self.code


class LimitsExceeded(InvalidArgs):
    """The call is too big, or too many are under way."""

    code = "LimitsExceeded"
    exit_code = 1


class ServiceUnavailable(JobsvcError):
    """Nobody answers for org.jobsvc1 (a client's own error; it never travels)."""

    code = "ServiceUnavailable"
    exit_code = 6


FAMILY: dict[str, type[JobsvcError]] = {
    kind.code: kind
    for kind in (
        NoSuchJob,
        InvalidSpec,
        WrongState,
        QueueFull,
        Quota,
        Maintenance,
        InvalidConfig,
        Internal,
        AccessDenied,
        InteractiveAuthorizationRequired,
        InvalidArgs,
        LimitsExceeded,
    )
}

# What PID 1 says when it was asked to start the service and will not: masked, not installed, shutting down, …
SYSTEMD = "org.freedesktop.systemd1."
UNAVAILABLE = frozenset(
    FREEDESKTOP + name
    for name in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "TimedOut", "Spawn.ServiceNotFound")
)


def from_bus(name: str, text: str) -> JobsvcError:
    """The error a D-Bus error name and text stand for, as a client of the service sees it."""
    if name in UNAVAILABLE or name.startswith((FREEDESKTOP + "Spawn.", SYSTEMD)):
        return ServiceUnavailable(text)
    return FAMILY.get(name.rpartition(".")[2], Internal)(text)


def nearest(word: str, known: list[str]) -> str:
    """What to say after an unknown word: the known one it most resembles, or nothing."""
    from difflib import get_close_matches

    lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), lower, cutoff=0.6)
    found.sort(key=lambda name: sorted(name) != sorted(word.lower()))  # letters in the wrong order are typed most
    return f"; did you mean {lower[found[0]]}?" if found else ""
