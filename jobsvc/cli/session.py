"""What every command shares: how to answer, and how to reach the service."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jobsvc.errors import JobsvcError

if TYPE_CHECKING:
    from jobsvc.cli.agent import TerminalAgent
    from jobsvc.client import Client, Outcome

FORMATS = ("table", "json", "jsonl")


class Session:
    """The global options, and the doors to terminal and service."""

    def __init__(self) -> None:
        self.format = "table"
        self.pager = True
        self.ask_password = True
        self.debug = False
        self.failure = 1  # exit code for what nobody has foreseen
        self._agent: TerminalAgent | None = None

    def client(self, fds: bool = False) -> Client:
        """A connection to the service; polkit may ask here for a password if that is wanted."""
        from jobsvc.client import Client

        client = Client(fds=fds)
        if self.ask_password and os.geteuid() != 0 and _is_terminal(sys.stdin):
            from jobsvc.cli.agent import TerminalAgent

            client.agent = self._agent = TerminalAgent()
        client.on_wait = lambda: self.say("the job service is gone; waiting for it to come back")
        return client

    def close(self) -> None:
        """End what was begun for the terminal."""
        if self._agent:
            self._agent.close()

    def say(self, text: str) -> None:
        """One line to the user, on standard error."""
        from jobsvc.render import escape

        try:
            print(f"jobctl: {escape(text)}", file=sys.stderr, flush=True)
        except OSError:  # nobody is listening there
            pass

    def put(self, text: str) -> None:
        """Text for standard output, escaped already."""
        if sys.stdout:
            sys.stdout.write(text)

    def put_json(self, values: Iterable[Any], single: bool = False) -> None:
        """Objects as the format says: one list, or the one object, or one a line."""
        from jobsvc.render import dumps

        if self.format == "jsonl":
            for value in values:
                self.put(dumps(value) + "\n")
            return
        listed = list(values)
        self.put(dumps(listed[0] if single and len(listed) == 1 else listed, indent=2) + "\n")

    def hint(self, text: str) -> None:
        """A line that only a person at a terminal wants."""
        if sys.stderr and sys.stderr.isatty():
            self.say(text)

    def report(self, outcomes: Sequence[Outcome], done: str, listed: bool = False) -> int:
        """An answer per job, or none for a single one that was named; and the exit code they make together."""
        listed = listed or len(outcomes) > 1
        failed = [outcome.error for outcome in outcomes if outcome.error]
        if self.format != "table":
            self.put_json(_outcome(outcome) for outcome in outcomes)
        for outcome in outcomes:
            if outcome.error:
                self.complain(outcome.error, outcome.job if listed else "")
            elif self.format == "table" and listed:
                self.put(f"{outcome.id} {done}\n")
        if not failed:
            return 0
        codes = {error.exit_code for error in failed}
        return codes.pop() if len(failed) == len(outcomes) and len(codes) == 1 else 1

    def complain(self, error: JobsvcError, about: str = "") -> None:
        if self.debug:
            import traceback

            traceback.print_exception(error)
        text = str(error) or error.code
        self.say(f"{about}: {text}" if about and about not in text else text)


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "job": outcome.job,
        "id": outcome.id or None,
        "error": outcome.error.code if outcome.error else None,
        "text": str(outcome.error) if outcome.error else None,
    }


def _is_terminal(stream: Any) -> bool:
    return bool(stream) and stream.isatty()
