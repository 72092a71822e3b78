"""What the shells are told when TAB is pressed: our own lines, the same for each shell and version of click.

The words up to the cursor come in COMP_WORDS, each ended by a newline; out go `type TAB word TAB text` lines.
Besides click's types (plain, file, dir) there are command, user and group: the shell knows those best.
"""

from __future__ import annotations

import os

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class


class Lines(ShellComplete):
    """Used with _JOBCTL_COMPLETE=lines_complete."""

    name = "lines"
    source_template = ""  # the scripts are files of the package

    def get_completion_args(self) -> tuple[list[str], str]:
        words = os.environ.get("COMP_WORDS", "").removesuffix("\n").split("\n")
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        text = (item.help or "").partition("\n")[0]
        return f"{item.type}\t{item.value}\t{text}"


def register() -> None:
    add_completion_class(Lines)
