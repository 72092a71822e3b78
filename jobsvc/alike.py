"""What waits by the thousand is mostly alike: equal specs are kept once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobsvc.model import Job

MOST = 128  # of each kind; then it begins anew
LONG = 4096  # characters of a value that is not kept for others: it would stay when its job has gone


class Alike:
    """Takes a job and gives it back with the parts of others before it, where they are equal."""

    def __init__(self) -> None:
        self._specs: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._values: dict[tuple[str, str], Any] = {}
        self._requests: dict[str, str] = {}

    def same(self, job: Job) -> Job:
        return replace(job, spec=self._spec(job.spec), request=_kept(self._requests, job.request, job.request))

    def _spec(self, spec: dict[str, Any]) -> dict[str, Any]:
        if "Script" in spec:  # long, and rarely twice
            return spec
        parts = tuple((name, repr(value)) for name, value in spec.items())
        if sum(len(text) for _, text in parts) > LONG:
            return spec
        if parts not in self._specs:
            spec = {name: _kept(self._values, (name, text), spec[name]) for name, text in parts}
        whole: dict[str, Any] = _kept(self._specs, parts, spec)
        return whole


def _kept(known: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(known) >= MOST:
        known.clear()
    return known.setdefault(key, value)
