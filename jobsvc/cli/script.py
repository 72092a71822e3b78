"""script: the text of a file is the job."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from jobsvc import spec
from jobsvc.cli.command import command
from jobsvc.cli.options import Spec, Word, completed, dry_run_option, merge, spec_options, stdin_option, wanted
from jobsvc.cli.rows import program_path
from jobsvc.cli.run import SUBMIT, array_option, quiet_option, submit
from jobsvc.cli.session import Session

MARK = "#JOBCTL"
LONGEST = 1024 * 1024

shell_option = click.option(
    "--shell", metavar="PROGRAM", type=Word("PROGRAM", program_path),
    help="What runs it if it has no #! line; /bin/sh by default.",
)  # fmt: skip


@command("script", settings=SUBMIT)
@quiet_option
@array_option
@shell_option
@stdin_option
@dry_run_option
@spec_options
@click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
@click.argument("arguments", metavar="[ARG]...", nargs=-1, type=click.UNPROCESSED)
def script_(session: Session, file: str, arguments: tuple[str, ...], **given: Any) -> int:
    """Submit the text of FILE as a job, print its id and return.

    The text is kept: FILE may change or go. Lines '#JOBCTL --memory 1G' before the first command
    hold options, as sbatch has them; those on the command line win.
    """
    if file == "-" and given["stdin"]:
        raise click.UsageError("the text comes from standard input already; leave out -i")
    text = _text(file)
    asked = _directives(file, text)
    made: Spec = {"Script": ("ay", text)}
    if file != "-":
        made["Name"] = ("s", os.path.basename(file))
    merge(made, wanted(asked))
    merge(made, wanted(given))
    if arguments:
        made["Arguments"] = ("as", list(arguments))
    if shell := given["shell"] or asked["shell"]:
        made["Shell"] = ("s", shell)
    given["array"] = given["array"] or asked["array"]
    return submit(session, completed(made, bool(given["array"])), given)


def _text(file: str) -> bytes:
    if file == "-":
        text = sys.stdin.buffer.read(LONGEST + 1) if sys.stdin else b""
    else:
        try:
            with open(file, "rb") as script:
                text = script.read(LONGEST + 1)
        except OSError as error:
            raise click.UsageError(f"cannot read {file}: {error.strerror}") from None
    if len(text) > LONGEST:
        raise click.UsageError(f"{file} is longer than {LONGEST // 1024} KiB; start a program instead")
    if not text.strip():
        raise click.UsageError(f"{file} is empty; there is nothing to run")
    if b"\0" in text:
        raise click.UsageError(f"{file} is no text; 'jobctl start -- {file}' runs a program")
    try:
        spec.KEYS["Script"].check(text)
    except ValueError as error:
        raise click.UsageError(f"{file} {error}") from None
    return text


@click.command(MARK, add_help_option=False)
@array_option
@shell_option
@spec_options
def _line() -> None:
    """What may stand after #JOBCTL."""


def _directives(file: str, text: bytes) -> dict[str, Any]:
    """The options in the comments before the first command."""
    import shlex

    words: list[str] = []
    for number, line in enumerate(text.decode(errors="surrogateescape").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            break
        if not line.startswith(MARK) or line[len(MARK) :][:1].strip():
            continue
        try:
            more = shlex.split(line[len(MARK) :], comments=True)
            with _line.make_context(MARK, list(more), resilient_parsing=False):
                words += more
        except (ValueError, click.UsageError) as error:
            told = error.format_message() if isinstance(error, click.UsageError) else str(error)
            if isinstance(error, click.NoSuchOption):
                told = f"no option {error.option_name}"
            raise click.UsageError(f"{file}, line {number}: {told.rstrip('.')}") from None
    with _line.make_context(MARK, words) as context:
        return dict(context.params)
