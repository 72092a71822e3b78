"""The options that describe a job on the command line, and the spec they make."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from jobsvc.cli.rows import NOTICES, POLICIES, ROWS, here
from jobsvc.errors import InvalidSpec

if TYPE_CHECKING:
    from jobsvc.client import Client

F = TypeVar("F", bound=Callable[..., Any])
Spec = dict[str, tuple[str, Any]]
UNSET = "Unset"  # keys that Duplicate does not take over; for a new job they are just not said

# What -p cannot set: the command itself, and what comes with descriptors, terminals and arrays.
ELSEWHERE = frozenset(
    "Command Script Arguments StandardInput Pty TTYRows TTYColumns ArrayId ArrayIndex ArrayMaxRunning".split()
)
# What goes together with anything.
ALONE = frozenset("Command Name WorkingDirectory Environment RequestId".split())
# What the shell completes by itself, by what the manual calls the value.
COMPLETED = {"DIR": "dir", "FILE": "file", "USER": "user", "GROUP": "group", "[PATH:]RATE": "file"}
WORDS = {"POLICY": POLICIES, "WHEN": NOTICES}


class Word(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """An option's value, read by a function that raises ValueError with a text for people."""

    def __init__(self, name: str, parse: Callable[[str], Any], words: Sequence[str] = ()) -> None:
        self.name = name
        self.parse = parse
        self.words = words or WORDS.get(name, ())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except (ValueError, InvalidSpec) as error:
            flag = param.opts[0] if param else self.name
            raise click.UsageError(f"{flag}: {error}", ctx) from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if self.name.startswith("JOB") or self.name == "QUEUE":
            from jobsvc.cli import jobs

            found = jobs.complete(incomplete) if self.name.startswith("JOB") else jobs.complete_queue(incomplete)
            return [CompletionItem(word, help=text) for word, text in found]
        if self.words:
            return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]
        kind = COMPLETED.get(self.name)
        return [CompletionItem(incomplete, type=kind)] if kind else []


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """KEY= as unit files spell it; of its value nothing is known."""
    from jobsvc import spec as keys

    names = sorted(key.spelling or name for name, key in keys.KEYS.items() if name not in ELSEWHERE)
    return [CompletionItem(f"{name}=") for name in names if name.startswith(incomplete)]


def _complete_command(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A program first, then most likely files."""
    begun = ctx.params.get(str(param.name))
    return [CompletionItem(incomplete, type="file" if begun or "/" in incomplete else "command")]


def command_argument(required: bool = True) -> Callable[[F], F]:
    """CMD and its arguments, as they stand."""
    return click.argument(
        "command", metavar="CMD [ARG]..." if required else "[-- CMD [ARG]...]", nargs=-1, required=required,
        type=click.UNPROCESSED, shell_complete=_complete_command,
    )  # fmt: skip


def spec_options(function: F) -> F:
    """All the options that describe a job."""
    function = click.option(
        "-p", "--property", "properties", metavar="KEY=VALUE", multiple=True, shell_complete=complete_key,
        help="Any property, as in unit files: MemoryMax=1G.",
    )(function)  # fmt: skip
    for row in reversed(ROWS):
        kind: dict[str, Any] = {"is_flag": True}
        if row.metavar:
            kind = {
                "metavar": row.metavar, "type": Word(row.metavar, row.read), "multiple": row.signature.startswith("a"),
            }  # fmt: skip
        function = click.option(*row.flags.split(), row.destination, help=row.help, **kind)(function)
    return function


stdin_option = click.option("-i", "--stdin", is_flag=True, help="Give it our standard input; else it reads nothing.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only check whether it would be accepted.")


def wanted(given: dict[str, Any]) -> Spec:
    """What was asked for. `given` are the options by destination; properties come last and win."""
    made: Spec = {}
    for row in ROWS:
        value = given[row.destination]
        for each in value if isinstance(value, tuple) else [value]:
            if each is not None and each is not False:
                for key in row.keys.split():
                    add(made, key, row.signature, each)
    for assignment in given["properties"]:
        _add_property(made, assignment)
    if given.get("stdin"):
        made["StandardInput"] = ("h", 0)
    _check_grown(made)
    if given["spec_at"] is not None and "RequestId" not in made:  # with one it may be an old submission again
        _check_ahead(given["spec_at"])
    return made


def _check_ahead(point: int) -> None:
    """As at(1): what is over is a mistake; the present minute is meant for now."""
    import time

    if point < time.time_ns() // 1000 - 60_000_000:
        from jobsvc.moment import format_time

        raise click.UsageError(f"--at: {format_time(point)} is over; without --at it begins when its turn comes")


def _check_grown(made: Spec) -> None:
    """Each value for itself can be; a list or map of them may have grown too long."""
    for row in ROWS:
        for key in row.keys.split():
            if key in made and row.signature.startswith("a") and key != "Dependencies":
                from jobsvc import spec as keys

                try:
                    keys.KEYS[key].check(made[key][1])
                except ValueError as error:
                    raise click.UsageError(f"{row.flags.split()[0]} {error}") from None


def program(command: tuple[str, ...]) -> Spec:
    """The command of a job."""
    if not command[0]:
        raise click.UsageError("an empty command; give the program to run")
    return {"Command": ("as", list(command))}


def completed(made: Spec, array: bool = False) -> Spec:
    """With what a new job has even if nobody says so. InvalidSpec when its parts do not go together."""
    made.pop(UNSET, None)
    if made.keys() - ALONE:
        from jobsvc import spec as keys

        values = {key: value for key, (_, value) in made.items()}
        values |= {"StandardInput": "StandardInput" in made} | ({"ArrayId": "", "ArrayIndex": 0} if array else {})
        keys.check_together(values)
    if "WorkingDirectory" not in made:
        made["WorkingDirectory"] = ("s", here())
    return identified(made)


def identified(made: Spec) -> Spec:
    """With a RequestId: the service may go away between taking the job and telling us, then we ask again."""
    if "RequestId" not in made:
        made["RequestId"] = ("s", os.urandom(16).hex())
    return made


def settle(client: Client, made: Spec) -> Spec:
    """With the ids of the jobs that --after means."""
    if "Dependencies" in made:
        from jobsvc import kinds
        from jobsvc.cli.jobs import resolve_tasks

        waits: dict[str, str] = {}
        for job, condition in made["Dependencies"][1]:
            waits |= dict.fromkeys(resolve_tasks(client, job), condition)
        if len(waits) > kinds.DEPENDENCIES_MAX:
            raise InvalidSpec(f"--after: these are {len(waits)} jobs; {kinds.DEPENDENCIES_MAX} are the most of one job")
        made["Dependencies"] = ("a(ss)", list(waits.items()))
    return made


def merge(made: Spec, more: Spec) -> Spec:
    """`more` wins; lists and maps grow."""
    for key in more.get(UNSET, ("as", ()))[1]:
        unset(made, key)
    for key, (signature, value) in more.items():
        if key != UNSET:
            add(made, key, signature, value)
    return made


def add(made: Spec, key: str, signature: str, value: Any) -> None:
    """Lists and maps grow, as in unit files; anything else is replaced."""
    if key in made and isinstance(value, list | dict):
        from jobsvc import spec as keys

        if key not in keys.WHOLE:
            value = keys.combined(made[key][1], value)
    made[key] = (signature, value)


def unset(made: Spec, key: str) -> None:
    """As if nothing had been said of it so far."""
    made.pop(key, None)
    made[UNSET] = ("as", [*made.get(UNSET, ("as", ()))[1], key])


def assign(made: Spec, assignment: str) -> str:
    """Add KEY=VALUE as in a unit file; without a value what was said before is forgotten. Its key on the bus."""
    from jobsvc import spec as keys

    name, equals, text = assignment.partition("=")
    if equals and not text.strip():
        key = keys.bus_name(name.strip())
        unset(made, key)
        return key
    key, value = keys.from_unit_file(assignment)
    add(made, key, keys.KEYS[key].signature, value)
    return key


def _add_property(made: Spec, assignment: str) -> None:
    try:
        key = assign(made, assignment)
    except InvalidSpec as error:
        raise click.UsageError(f"-p {error}") from None
    if key in ELSEWHERE:
        raise click.UsageError(f"-p {key}: this comes from the command line itself")
