"""Which jobs of jobs.db: the terms of a list, as SQL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jobsvc.model import User


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs: every given term must hold."""

    visible_to: User | None = None  # owned by or running as; None: all
    id_prefix: str | None = None  # hexadecimal digits
    states: frozenset[str] | None = None
    user: str | None = None  # name of owner or user
    owner_uid: int | None = None
    name: str | None = None  # a glob
    queue: str | None = None
    array: str | None = None  # the id of an array that it is a task of
    since: int | None = None  # created then or later, µs
    until: int | None = None  # created before
    finished_before: int | None = None
    changed_since: int | None = None  # a seq
    labels: dict[str, str] = field(default_factory=dict)
    hooks: bool | None = None  # what follows from the end of another; None: either
    after: str | None = None  # the id the last page ended with
    reverse: bool = False

    @property
    def order(self) -> str:
        """Newest first unless it says otherwise."""
        return f"ORDER BY jobs.number {'ASC' if self.reverse else 'DESC'}"

    def where(self, unsure: Iterable[str] = ()) -> tuple[str, list[Any]]:
        """The condition and its values. Jobs whose state in the table is out of date are `unsure`: their ids."""
        terms: list[tuple[str, list[Any]]] = [("1", [])]
        if self.visible_to is not None:
            who = self.visible_to
            plus = "+" if self.id_prefix else ""  # no index for these then: that of ids is the narrowest
            terms.append(
                (
                    f"({plus}owner_uid = ? AND owner_name = ? OR {plus}uid = ? AND user_name = ?)",
                    [who.uid, who.name, who.uid, who.name],
                )
            )
        if self.states is not None:
            marks = ",".join("?" * len(self.states))
            whatever = "".join(f" OR jobs.id = '{job_id}'" for job_id in unsure)
            terms.append((f"(state IN ({marks}){whatever})", sorted(self.states)))
        if self.id_prefix is not None:  # a range, so that the index of ids finds it
            terms.append(("jobs.id >= ? AND jobs.id < ?", [self.id_prefix, self.id_prefix + "g"]))
        for name, value in self.labels.items():
            term = "EXISTS (SELECT 1 FROM json_each(jobs.body, '$.spec.Labels') WHERE key = ? AND value = ?)"
            terms.append((term, [name, value]))
        if self.hooks is not None:
            terms.append((f"json_extract(jobs.body, '$.spec.HookOf') IS {'NOT ' * self.hooks}NULL", []))
        further = ">" if self.reverse else "<"
        plain: tuple[tuple[str, Any], ...] = (
            (f"jobs.number {further} (SELECT number FROM jobs WHERE id = ?)", self.after),
            ("(owner_name = ? OR user_name = ?)", self.user),
            ("jobs.name GLOB ?", self.name),
            ("queue = ?", self.queue),
            ("owner_uid = ?", self.owner_uid),
            ("json_extract(jobs.body, '$.spec.ArrayId') = ?", self.array),
            ("created_at >= ?", self.since),
            ("created_at < ?", self.until),
            ("finished_at < ?", self.finished_before),
            ("seq > ?", self.changed_since),
        )
        terms += [(term, [value] * term.count("?")) for term, value in plain if value is not None]
        return " AND ".join(term for term, _ in terms), [value for _, values in terms for value in values]
