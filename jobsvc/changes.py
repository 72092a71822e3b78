"""What of a job may be changed after it was accepted, when, and who is asked."""

from __future__ import annotations

from jobsvc import spec
from jobsvc.errors import InvalidSpec, WrongState
from jobsvc.model import Job, Paused, Queued, Running, Stopping

# Of a job that runs: what the kernel holds, and what its supervisor counts.
LIVE = frozenset(spec.LIMITS) | {"RuntimeMaxUSec", "TimeoutStopUSec"}
# What says nothing of what is executed, nor that it is: whoever manages the job may change it within the ceilings.
# Anything else is authorized like a start of what comes out. The name fills the paths of output files and is in the
# environment of the job; and what lets a job begin that would not yet, or once more, is what a start is asked about.
BOUNDS = LIVE | set("LogSizeMax Priority RetryDelayUSec ArrayMaxRunning Unique UniquePolicy OnBehalfOf".split())
# What a job is, or what others know it by.
FIXED = frozenset("User Group StandardInput RequestId ArrayId ArrayIndex".split())


def check(job: Job, changes: spec.Values) -> None:
    """Raises if any of it cannot be changed now: then nothing is."""
    for name in changes:
        if name == "Hold":
            raise InvalidSpec(f"a job is held with 'jobctl hold {job.id}' and let go on with 'jobctl release {job.id}'")
        if name in FIXED:
            raise InvalidSpec(f"{name} of a job cannot be changed; start a new one ('jobctl duplicate {job.id}')")
    match job.run.phase:
        case Queued():
            return
        case Running() | Paused() | Stopping():
            for name in changes:
                if name not in LIVE:
                    known = ", ".join(sorted(LIVE))
                    raise WrongState(f"{name} cannot be changed while job {job.id} runs; these can: {known}")
        case _:
            raise WrongState(f"job {job.id} is {job.state}; only a queued or running job can be changed")


def applied(values: spec.Values, changes: spec.Values) -> spec.Values:
    """The spec with the changes: a script takes the place of a command, and a command that of a script."""
    kept = dict(values)
    if "Script" in changes:
        kept.pop("Command", None)
    if "Command" in changes:
        for name in ("Script", "Shell", "Arguments"):
            kept.pop(name, None)
    return kept | changes
