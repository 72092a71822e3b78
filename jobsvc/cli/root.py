"""The `jobctl` command itself: commands imported when needed, errors in one line."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from typing import Any

import click

from jobsvc import __version__
from jobsvc.cli.command import global_options
from jobsvc.cli.session import Session
from jobsvc.errors import JobsvcError, nearest

# Each command and its module, imported when it is used: that keeps `jobctl start` quick.
FAMILIES = {
    "run": "run",
    "start": "run",
    "script": "script",
    "submit": "submit",
    "duplicate": "duplicate",
    "stop": "stop",
    "restart": "stop",
    "remove": "stop",
    "kill": "kill",
    "pause": "hold",
    "resume": "hold",
    "hold": "hold",
    "release": "hold",
    "set": "set",
    "status": "status",
    "list": "listing",
    "logs": "logs",
    "wait": "wait",
    "attach": "terminal",
    "top": "top",
    "stats": "stats",
    "export": "export",
    "maintenance": "maintenance",
}
SENTENCE = re.compile("(Missing|Invalid|Got|No|Option|Argument|Could|Value) ")  # how click begins its own
READER_GONE = 128 + 13  # what a shell shows for a program that SIGPIPE ended


class Jobctl(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(FAMILIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in FAMILIES:
            return None
        command: click.Command = getattr(import_module(f"jobsvc.cli.{FAMILIES[cmd_name]}"), cmd_name + "_")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in FAMILIES and not ctx.resilient_parsing:
            hint = nearest(name, list(FAMILIES)) or "; 'jobctl --help' lists the commands"
            raise click.UsageError(f"no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            return READER_GONE
        return code


@click.group(
    cls=Jobctl,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@global_options(hidden=False)
@click.version_option(__version__, prog_name="jobctl", message="%(prog)s %(version)s")
def jobctl() -> None:
    """Run commands as jobs of this machine: queued, limited, logged, each in its own systemd scope.

    JOB is an id, a unique beginning of one, a name (the newest job of that name), @ for your last
    job, or @~N for the Nth before it.
    """


def execute(argv: list[str] | None = None) -> int:
    """Run jobctl to the last byte of its output and return its exit code."""
    _open_standard()
    session = Session()
    if "_JOBCTL_COMPLETE" in os.environ:
        from jobsvc.cli.completion import register

        register()
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run(session, argv)
    finally:
        session.close()
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        return _failed(session, error, str(error.strerror or error))
    return code


def _run(session: Session, argv: list[str] | None) -> int:
    """No exception leaves this, and no traceback is seen unless --debug is given."""
    try:
        return jobctl.main(argv, prog_name="jobctl", standalone_mode=False, obj=session) or 0
    except click.UsageError as error:
        session.say(_usage(error))
        return 2
    except click.ClickException as error:
        session.say(error.format_message())
        return 1
    except JobsvcError as error:
        session.complain(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OSError as error:
        return _failed(session, error, str(error.strerror or error))
    except Exception as error:  # noqa: BLE001 - the last door: people get a line, not a traceback
        return _failed(session, error, f"unexpected {type(error).__name__}: {error}; see --debug")


def _failed(session: Session, error: Exception, text: str) -> int:
    if session.debug:
        import traceback

        traceback.print_exception(error)
    session.say(text)
    _discard_output()  # what could not be written now cannot be at exit either
    return session.failure


def _usage(error: click.UsageError) -> str:
    """What was wrong with the command line, in one line with the nearest right thing."""
    path = error.ctx.command_path if error.ctx else "jobctl"
    if isinstance(error, click.NoSuchOption):
        known = [name for p in error.ctx.command.params for name in p.opts] if error.ctx else []
        hint = nearest(error.option_name, known)
        return f"no option {error.option_name}{hint or f'; see {path} --help'}"
    text = error.format_message().rstrip(".")
    if SENTENCE.match(text):
        text = text[:1].lower() + text[1:]
    return text if ";" in text else f"{text}; see {path} --help"


def _open_standard() -> None:
    """Fill what is closed of 0, 1 and 2: else the bus would get one of them, and the job's output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def _discard_output() -> None:
    """Let the interpreter's last flush go nowhere instead of failing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
