"""A graph of jobs in a TOML file, as `submit` takes it: which job has which spec, and which comes after which."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jobsvc import spec
from jobsvc.cli.array import Array, overwritten, parse_array, tasks
from jobsvc.cli.options import Spec, add, assign, completed
from jobsvc.cli.rows import ROWS, condition_of, program_path
from jobsvc.errors import InvalidSpec, nearest

MOST_JOBS = 1000  # what one StartMany takes
TABLES = ("defaults", "job")
# What a job may have besides the options of `start`.
OWN = ("command", "script", "arguments", "shell", "array", "properties")
OPTIONS = {row.flags.split()[0].removeprefix("--"): row for row in ROWS if row.flags.split()[0] != "--request-id"}


class Plan:
    """Jobs in an order in which each comes after those it waits for."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        for name in document:
            if name not in TABLES:
                raise InvalidSpec(
                    f"unknown table [{name}]{nearest(name, list(TABLES)) or '; there are [defaults] and [job.NAME]'}"
                )
        defaults = _table(document.get("defaults", {}), "[defaults]")
        for key in set(OWN) - {"shell", "properties"} | {"after", "name"}:
            if key in defaults:
                raise InvalidSpec(f"[defaults] {key}: this is for each job to say")
        jobs = _table(document.get("job", {}), "[job]")
        if not jobs:
            raise InvalidSpec("there is no job in it; each is a table [job.NAME] with a command")
        self._tables = {name: _merged(defaults, _table(one, f"[job.{name}]")) for name, one in jobs.items()}
        self._after = {name: self._waits_for(name, one) for name, one in jobs.items()}
        self.specs: list[Spec] = []
        self.names: list[str] = []
        self._places: dict[str, range] = {}
        for name in self._ordered():
            self._place(name)
        if len(self.specs) > MOST_JOBS:
            raise InvalidSpec(f"these are {len(self.specs)} jobs; {MOST_JOBS} is the most of one file")

    def _waits_for(self, name: str, one: Mapping[str, Any]) -> list[tuple[str, str]]:
        given = one.get("after", [])
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
            raise InvalidSpec(f'[job.{name}] after: must be names of jobs, as ["build", "test:any"]')
        return [_reading(f"[job.{name}] after", condition_of, word) for word in listed]

    def _ordered(self) -> list[str]:
        """Each after those it waits for, else as they were written."""
        from graphlib import CycleError, TopologicalSorter

        sorter = TopologicalSorter(
            {name: [job for job, _ in after if job in self._tables] for name, after in self._after.items()}
        )
        try:
            return list(sorter.static_order())
        except CycleError as error:
            raise InvalidSpec(f"these wait for each other: {' -> '.join(reversed(error.args[1]))}") from None

    def _place(self, name: str) -> None:
        """Put a job, or the tasks of its array, into the order."""
        where = f"[job.{name}]"
        made = self._spec(name, where)
        waits: list[tuple[str, str]] = []
        for job, condition in self._after[name]:
            if job not in self._tables and job[0] == "@" and job[1:].isdecimal():
                raise InvalidSpec(f"{where} after: no job {job!r}; write the name of one, or @~N")
            places = self._places.get(job)
            waits += [(job, condition)] if places is None else [(f"@{place}", condition) for place in places]
        if waits:
            made["Dependencies"] = ("a(ss)", waits)
        completed(made, "array" in self._tables[name])
        table = self._tables[name]
        array: Array | None = _reading(f"{where} array", parse_array, str(table["array"])) if "array" in table else None
        if array and (path := overwritten(made)):
            raise InvalidSpec(f"{where} every task would write {path} anew; put %a into its name, or append:")
        specs = tasks(made, array) if array else [made]
        self._places[name] = range(len(self.specs), len(self.specs) + len(specs))
        self.specs += specs
        self.names += [name] * len(specs)

    def _spec(self, name: str, where: str) -> Spec:
        table = self._tables[name]
        made: Spec = {"Name": ("s", name)}
        for key, value in table.items():
            _option(made, where, key, value)
        if ("command" in table) == ("script" in table):
            raise InvalidSpec(f"{where} must have either a command or a script")
        if "command" in table:
            made["Command"] = ("as", _words(where, "command", table["command"]))
            if "arguments" in table:
                raise InvalidSpec(f"{where} arguments: this is for a script; put them into command")
            return made
        if not isinstance(table["script"], str):
            raise InvalidSpec(f"{where} script: must be a text")
        made["Script"] = ("ay", _reading(f"{where} script", spec.KEYS["Script"].check, table["script"].encode()))
        if "arguments" in table:
            made["Arguments"] = ("as", _words(where, "arguments", table["arguments"]))
        if "shell" in table:
            made["Shell"] = ("s", _reading(f"{where} shell", program_path, str(table["shell"])))
        return made


def _merged(defaults: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """A job's own keys over the defaults; maps are put together."""
    merged = dict(defaults)
    for key, value in one.items():
        before = merged.get(key)
        merged[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _option(made: Spec, where: str, key: str, value: Any) -> None:
    if key in OWN or key == "after":
        if key == "properties":
            _properties(made, where, value)
        return
    row = OPTIONS.get(key)
    if row is None:
        raise InvalidSpec(f"{where} unknown key {key!r}{nearest(key, [*OPTIONS, *OWN])}")
    if not row.metavar:
        if not isinstance(value, bool):
            raise InvalidSpec(f"{where} {key}: must be true or false")
        if value:
            made[row.keys] = (row.signature, True)
        return
    for text in _texts(where, key, value, many=row.signature.startswith("a")):
        read = _reading(f"{where} {key}", row.read, text)
        for name in row.keys.split():
            add(made, name, row.signature, read)


def _texts(where: str, key: str, value: Any, many: bool) -> list[str]:
    """What the option would be given: NAME = VALUE tables become NAME=VALUE."""
    if isinstance(value, dict) and many:
        return [f"{name}={_text(where, key, each)}" for name, each in value.items()]
    if isinstance(value, list) and many:
        return [_text(where, key, each) for each in value]
    return [_text(where, key, value)]


def _text(where: str, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        if hasattr(value, "isoformat"):  # a date or a time, which TOML has without quotes
            return str(value).replace("+00:00", " UTC")
        raise InvalidSpec(f"{where} {key}: must be a text or a number, not {value!r}")
    return str(value)


def _properties(made: Spec, where: str, value: Any) -> None:
    for name, text in _table(value, f"{where} properties").items():
        _reading(f"{where} properties", partial(assign, made), f"{name}={_text(where, name, text)}")


def _words(where: str, key: str, value: Any) -> list[str]:
    if (
        not isinstance(value, list)
        or not all(isinstance(word, str) for word in value)
        or (key == "command" and not value)
    ):
        raise InvalidSpec(f'{where} {key}: must be a list of words, as ["make", "-j4"]; a script is a text')
    return value


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidSpec(f"{where} must be a table")
    return value


def _reading(where: str, parse: Any, text: Any) -> Any:
    import click

    try:
        return parse(text)
    except (ValueError, InvalidSpec) as error:
        raise InvalidSpec(f"{where}: {error}") from None
    except click.UsageError as error:
        raise InvalidSpec(f"{where}: {error.format_message()}") from None
