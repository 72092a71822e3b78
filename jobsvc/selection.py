"""Which jobs of jobs.db: the terms of a list, as SQL.

A query is a compound of SELECTs without a job in common, each of which finds its jobs by one index in the order of
their numbers: newest first costs what is wanted, not what is remembered. A term that an index is not to be used for
has a + before its column (SQLite, "The SQLite Query Optimizer Overview", 2.1).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from jobsvc.model import FINISHED, User

Terms = list[tuple[str, list[Any]]]
Mark = tuple[str, str]  # name and value of a row of marks

_JSON = {"array": "$.spec.ArrayId", "hook": "$.spec.HookOf"}


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
        return f"ORDER BY number {'ASC' if self.reverse else 'DESC'}"

    @property
    def marks(self) -> list[Mark]:
        """What the index of marks can find it by."""
        marks = [(f"label {name}", value) for name, value in self.labels.items()]
        marks += [("array", self.array)] if self.array is not None else []
        return marks + ([("hook", "")] if self.hooks else [])

    def select(
        self,
        *columns: str,
        indexed: int | None = None,
        mark: Mark | None = None,
        unsure: Collection[str] = (),
    ) -> tuple[str, list[Any]]:
        """A compound SELECT of the number and these columns of `jobs`, and its values.

        `indexed` is the number up to which jobs are in the index of marks, None if there is none; `mark` the one to go
        by. Jobs whose state in the table is out of date are `unsure`: their ids.
        """
        arms = self._arms(indexed, mark, unsure)
        texts = (
            f"SELECT {', '.join((f'{source.split()[0]}.number AS number', *columns))} FROM {source}"
            f" WHERE {' AND '.join(term for term, _ in terms)}"
            for source, terms in arms
        )
        return "\nUNION ALL ".join(texts), [value for _, terms in arms for _, values in terms for value in values]

    def _arms(self, indexed: int | None, mark: Mark | None, unsure: Collection[str]) -> list[tuple[str, Terms]]:
        who = self.visible_to
        if self.id_prefix is not None:  # a range, so that the index of ids finds it
            prefix: Terms = [("jobs.id >= ? AND jobs.id < ?", [self.id_prefix, self.id_prefix + "g"])]
            return [("jobs", prefix + self._visible() + self._rest(indexed, unsure))]
        if mark is not None and indexed is not None:
            return self._by_mark(indexed, mark, unsure)
        if self.changed_since is not None:
            return [("jobs INDEXED BY jobs_seq", self._visible() + self._rest(indexed, unsure, by="seq"))]
        if self.states is not None and not unsure and (who is None or not self.states & FINISHED):
            return [("jobs INDEXED BY jobs_state", self._visible() + self._rest(indexed, unsure, by="state"))]
        if who is not None:
            owned = "{0}owner_uid = ? AND owner_name = ?"
            rest = self._rest(indexed, unsure)
            used = ("uid = ? AND user_name = ? AND NOT (" + owned.format("+") + ")", [who.uid, who.name] * 2)
            return [("jobs", [(owned.format(""), [who.uid, who.name]), *rest]), ("jobs", [used, *rest])]
        if self.owner_uid is not None:
            return [("jobs", self._rest(indexed, unsure, by="owner_uid"))]
        return [("jobs", self._rest(indexed, unsure, by="name"))]

    def _by_mark(self, indexed: int, mark: Mark, unsure: Collection[str]) -> list[tuple[str, Terms]]:
        """What the index has, and what came after it."""
        uid = self.owner_uid if self.visible_to is None else self.visible_to.uid
        whose: Terms = [("marks.uid = jobs.owner_uid", [])] if uid is None else [("marks.uid = ?", [uid])]
        if uid is not None and self.visible_to is None:
            whose.append(("jobs.owner_uid = ?", [uid]))
        entered: Terms = [
            ("marks.name = ? AND marks.value = ?", [*mark]),
            *whose,
            ("marks.number <= ?", [indexed]),
        ]
        rest = self._rest(indexed, unsure, by="marks", led=mark)
        late: Terms = [("jobs.number > ?", [indexed]), *self._visible(), *self._rest(indexed, unsure)]
        source = "marks CROSS JOIN jobs ON jobs.number = marks.number"
        return [(source, entered + self._visible() + rest), ("jobs", late)]

    def _visible(self) -> Terms:
        if (who := self.visible_to) is None:
            return [("1", [])]
        term = "(+owner_uid = ? AND owner_name = ? OR +jobs.uid = ? AND user_name = ?)"
        return [(term, [who.uid, who.name, who.uid, who.name])]

    def _rest(self, indexed: int | None, unsure: Collection[str], by: str = "", led: Mark | None = None) -> Terms:
        """All terms but whose jobs, and the mark that was gone by; `by` is what an index is to be used for."""
        terms: Terms = [("1", [])]
        if self.states is not None:
            term = f"{'' if by == 'state' else '+'}state IN ({','.join('?' * len(self.states))})"
            whatever = " OR jobs.id IN (SELECT value FROM json_each(?))" if unsure else ""
            terms.append((f"({term}{whatever})", [*sorted(self.states), *([json.dumps([*unsure])] if unsure else [])]))
        terms += [_marked(name, value, indexed) for name, value in self.marks if (name, value) != led]
        if self.hooks is False:
            term, values = _marked("hook", "", indexed)
            terms.append((f"NOT {term}", values))
        place = "marks.number" if by == "marks" else "jobs.number" if by != "seq" else "+jobs.number"
        further = ">" if self.reverse else "<"
        plus = {name: "" if by == name else "+" for name in ("owner_uid", "name", "seq")}
        plain: tuple[tuple[str, Any], ...] = (
            (f"{place} {further} (SELECT number FROM jobs WHERE id = ?)", self.after),
            ("(owner_name = ? OR user_name = ?)", self.user),
            (f"{plus['name']}jobs.name GLOB ?", self.name),
            ("queue = ?", self.queue),
            (f"{plus['owner_uid']}owner_uid = ?", self.owner_uid),
            ("created_at >= ?", self.since),
            ("created_at < ?", self.until),
            ("+finished_at < ?", self.finished_before),
            (f"{plus['seq']}seq > ?", self.changed_since),
        )
        return terms + [(term, [value] * term.count("?")) for term, value in plain if value is not None]


def _marked(name: str, value: str, indexed: int | None) -> tuple[str, list[Any]]:
    """Whether the job at hand has this mark: the index says it, or, if the job is not in it yet, its body."""
    if name.startswith("label "):
        path, given = "$.spec.Labels", [name.removeprefix("label "), value]
        said = f"EXISTS (SELECT 1 FROM json_each(jobs.body, '{path}') WHERE key = ? AND value = ?)"
    elif name == "hook":
        said, given = f"json_extract(jobs.body, '{_JSON[name]}') IS NOT NULL", []
    else:
        said, given = f"json_extract(jobs.body, '{_JSON[name]}') IS ?", [value]
    if indexed is None:
        return f"({said})", given
    entered = (
        "EXISTS (SELECT 1 FROM marks AS other WHERE other.name = ? AND other.value = ?"
        " AND other.uid = jobs.owner_uid AND other.number = jobs.number)"
    )
    return f"(CASE WHEN jobs.number > ? THEN {said} ELSE {entered} END)", [indexed, *given, name, value]
