"""jobctl: the command line of the job service."""

from __future__ import annotations

import os


def main() -> None:
    """What the `jobctl` program runs. It has written and closed all it has when `execute` returns.

    Taking the interpreter apart would cost 10 ms more, a tenth of what `jobctl start` takes.
    """
    from jobsvc.cli.root import execute

    os._exit(execute())
