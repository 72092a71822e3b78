"""The limits of a run's scope: from its spec, and others while it runs."""

from __future__ import annotations

from typing import Any

from jobsvc import systemd
from jobsvc.errors import InvalidSpec
from jobsvc.model import Job
from jobsvc.systemd import ScopeError, Systemd


def of_scope(values: dict[str, Any], devices: dict[str, str]) -> dict[str, Any]:
    """Those among the values, I/O paths replaced by the disks they lie on; of two for one disk the lower."""
    limits = {name: value for name, value in values.items() if name in systemd.LIMITS}
    for name, value in limits.items():
        if systemd.LIMITS[name] == "a(st)":
            lowest: dict[str, int] = {}
            for path, amount in value:
                disk = devices.get(path, path)
                lowest[disk] = min(amount, lowest.get(disk, amount))
            limits[name] = [[disk, amount] for disk, amount in lowest.items()]
    return limits


def properties(job: Job, limits: dict[str, Any]) -> dict[str, Any]:
    """All that PID 1 is to know of the scope."""
    return {
        **limits,
        "Description": f"Job {job.id} of {job.owner.name}",
        "Slice": job.slice,
        "TimeoutStopUSec": job.spec["TimeoutStopUSec"],
        # The supervisor acts on an out-of-memory kill and knows why the run ended.
        "OOMPolicy": "continue" if job.spec.get("OOMPolicy", "stop") != "kill" else "kill",
    }


async def change(pid_1: Systemd, job: Job, limits: dict[str, Any], *, strict: bool) -> list[tuple[str, str]]:
    """Have PID 1 set them and look whether they hold: those that do not, and why, which `strict` does not let pass."""
    group = job.run.control_group
    assert group is not None
    try:
        before = await pid_1.limits(job.unit, limits)
        await pid_1.set_limits(job.unit, limits)
        wrong = systemd.not_in_force(group, limits)
        if wrong and strict:
            await pid_1.set_limits(job.unit, before)
            name, reason = wrong[0]
            raise InvalidSpec(f"{name} cannot be put in force: {reason}; it stays as it was")
    except ScopeError as error:
        raise InvalidSpec(f"systemd refuses: {error}") from None
    return wrong
