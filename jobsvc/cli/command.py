"""How a command is declared: global options anywhere, JOB arguments, the session at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from jobsvc.cli.session import FORMATS, Session

F = TypeVar("F", bound=Callable[..., Any])

pass_session: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Session)


def _set(name: str, value: Any) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, given: Any) -> None:
        if given:
            setattr(ctx.ensure_object(Session), name, given if value is None else value)

    return callback


def global_options(hidden: bool = True) -> Callable[[F], F]:
    """The options that mean the same for every command; they may stand after it as well."""

    def decorate(function: F) -> F:
        for flag, name, value, text in (
            ("--debug", "debug", True, "Show where an error comes from."),
            ("--no-ask-password", "ask_password", False, "Never ask for a password."),
            ("--no-pager", "pager", False, "Do not page long output."),
        ):
            function = click.option(
                flag, is_flag=True, hidden=hidden, expose_value=False, help=text,
                callback=_set(name, value), is_eager=True,
            )(function)  # fmt: skip
        return function if hidden else format_option(function)

    return decorate


def format_option(function: F) -> F:
    """-o, for commands that answer with data."""
    return click.option(
        "-o", "--output", type=click.Choice(FORMATS), expose_value=False,
        callback=_set("format", None), help="How to answer; table is the default.",
    )(function)  # fmt: skip


def command(name: str, settings: dict[str, Any] | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a subcommand; its function returns the exit code (None is 0)."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        context = {"help_option_names": ["-h", "--help"], **(settings or {})}
        declared: Callable[..., Any] = global_options()(pass_session(function))
        made: click.Command = click.command(name, click.Command, context_settings=context)(declared)
        return made

    return decorate


def _completing(reading: bool) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def items(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from jobsvc.cli.jobs import complete

        return [CompletionItem(word, help=text) for word, text in complete(incomplete, reading)]

    return items


def job_arguments(required: bool = True, reading: bool = False) -> Callable[[F], F]:
    """JOB...; `reading` as for jobs.resolve_all."""
    metavar, items = "JOB..." if required else "[JOB]...", _completing(reading)
    return click.argument("jobs", metavar=metavar, nargs=-1, required=required, shell_complete=items)


job_argument = click.argument("job", metavar="JOB", shell_complete=_completing(reading=False))
job_to_read = click.argument("job", metavar="JOB", shell_complete=_completing(reading=True))
