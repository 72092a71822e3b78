"""Jobs and runs as rows of jobs.db: columns for what is searched by, one JSON text for the rest.

So a new fact needs no migration, and what a newer release has noted besides does no harm.
"""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any

from jobsvc import model
from jobsvc.model import Job, Run, User

UPSERT = """
INSERT INTO jobs
    (id, seq, owner_uid, owner_name, uid, user_name, name, state, queue, created_at, finished_at, run, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET seq=excluded.seq, name=excluded.name, state=excluded.state, queue=excluded.queue,
    finished_at=excluded.finished_at, run=excluded.run, body=excluded.body
"""
SELECT = (
    "SELECT jobs.id, seq, owner_uid, owner_name, uid, user_name, created_at, jobs.body, runs.body"
    " FROM jobs JOIN runs ON runs.id = jobs.id AND runs.number = jobs.run"
)
BODIES = slice(-2, None)

_RUN_FACTS = tuple(field.name for field in fields(Run) if field.name not in ("number", "phase"))
_JOB_FACTS = frozenset(field.name for field in fields(Job))
_UNSAID = Run(0, model.Starting())  # what need not be written
_PHASES = {
    kind.__name__: kind
    for kind in (model.Queued, model.Starting, model.Running, model.Paused, model.Stopping, model.Finished)
}
_ENCODED = "ScriptBase64"  # instead of Script, for what is not UTF-8

encode = json.JSONEncoder(separators=(",", ":")).encode


def pack_job(job: Job) -> tuple[Any, ...]:
    """The values of UPSERT."""
    body = {
        "gid": job.gid,
        "spec": pack_spec(job.spec),
        "request": job.request,
        "root_allowed": job.root_allowed,
        "limits_allowed": job.limits_allowed,
        "group_override": job.group_override,
        "group_granted": job.group_granted,
        "priority_allowed": job.priority_allowed,
    }
    phase = job.run.phase
    finished_at = phase.at if isinstance(phase, model.Finished) else None
    return (
        *(job.id, job.seq, job.owner.uid, job.owner.name, job.user.uid, job.user.name),
        *(job.name, str(job.state), job.queue, job.created_at, finished_at, job.run.number),
        encode(body),
    )


def unpack_job(row: tuple[Any, ...]) -> Job:
    """A row of SELECT."""
    job_id, seq, owner_uid, owner_name, uid, user_name, created_at, body, run = row
    facts = {known: value for known, value in json.loads(body).items() if known in _JOB_FACTS}
    facts["spec"] = _unpack_spec(facts["spec"])
    facts.setdefault("priority_allowed", True)  # with the releases that do not say it, one above 0 took a right
    return Job(
        id=job_id,
        seq=seq,
        owner=User(owner_uid, owner_name),
        user=User(uid, user_name),
        created_at=created_at,
        run=unpack_run(run),
        **facts,
    )


def pack_run(run: Run) -> str:
    facts = {name: value for name in _RUN_FACTS if (value := getattr(run, name)) != getattr(_UNSAID, name)}
    phase = {name: getattr(run.phase, name) for name in run.phase.__slots__}
    name = type(run.phase).__name__
    if isinstance(run.phase, model.Paused):  # a release that knows no pause sees a running job
        name, facts["paused"] = "Running", True
    return encode({"number": run.number, **facts, "phase": [name, phase]})


def unpack_run(text: str) -> Run:
    facts = json.loads(text)
    name, phase = facts["phase"]
    if facts.get("paused"):
        name = "Paused"
    if name == "Finished":
        phase["result"] = model.Result(phase["result"])
    facts["phase"] = _PHASES[name](**phase)
    facts["missing"] = tuple(tuple(hole) for hole in facts.get("missing", ()))
    facts["limits_not_in_force"] = tuple(facts.get("limits_not_in_force", ()))
    facts["waiting_for"] = tuple(tuple(one) for one in facts.get("waiting_for", ()))
    return Run(facts["number"], facts["phase"], **{known: facts[known] for known in _RUN_FACTS if known in facts})


def pack_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec as JSON can hold it: of the values of bytes the CPU mask as hex, a script as text."""
    packed = dict(spec)
    if "AllowedCPUs" in spec:
        packed["AllowedCPUs"] = spec["AllowedCPUs"].hex()
    if "Script" in spec:
        try:
            packed["Script"] = spec["Script"].decode()
        except UnicodeDecodeError:  # JSON would take six characters for each such byte
            packed[_ENCODED] = base64.b64encode(packed.pop("Script")).decode()
        packed["Command"] = ["false"]  # a release that knows no scripts fails the job, not itself
    return packed


def _unpack_spec(spec: dict[str, Any]) -> dict[str, Any]:
    if "AllowedCPUs" in spec:
        spec["AllowedCPUs"] = bytes.fromhex(spec["AllowedCPUs"])
    if _ENCODED in spec:
        spec["Script"] = base64.b64decode(spec.pop(_ENCODED))
        del spec["Command"]
    elif "Script" in spec:
        spec["Script"] = spec["Script"].encode("utf-8", "surrogateescape")
        del spec["Command"]
    return spec
