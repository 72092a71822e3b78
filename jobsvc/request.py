"""What jobsvcd asks of one run, as it stands in the run directory."""

from __future__ import annotations

from jobsvc import control, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


FOREVER: Final = 2**62  # µs


class Request:
    """The request file. Absent keys have the defaults given here."""

    # A plain class: dataclasses would cost every supervisor a megabyte of imports.
    def __init__(self, facts: dict[str, Any]) -> None:
        self.boot_id: str = facts["boot_id"]
        self.id: str = facts["id"]
        self.run: int = facts["run"]
        self.unit: str = facts["unit"]
        self.name: str = facts["name"]
        self.uid: int = facts["uid"]
        self.user: str = facts["user"]
        self.gid: int = facts["gid"]
        self.group_override: bool = facts.get("group_override", False)
        self.group_granted: bool = facts.get("group_granted", True)  # whether or not the user is in it
        self.root_allowed: bool = facts.get("root_allowed", False)
        self.limits_allowed: bool = facts.get("limits_allowed", False)
        self.command: list[str] = facts["command"]
        self.script: str | None = facts.get("script")  # instead of the command
        self.shell: str = facts.get("shell") or "/bin/sh"
        self.arguments: list[str] = facts.get("arguments") or []
        self.working_directory: str | None = facts.get("working_directory")
        self.environment: list[str] = facts.get("environment", [])
        self.sandbox: list[str] = facts.get("sandbox") or []
        self.no_new_privileges: bool = facts.get("no_new_privileges", False)
        self.terminal: list[int] | None = facts.get("terminal")  # rows and columns
        self.standard_input: str | None = facts.get("standard_input")  # the socket of the porter that keeps it
        self.standard_output: str | None = facts.get("standard_output")
        self.standard_error: str | None = facts.get("standard_error")
        self.runtime_max_usec: int | None = facts.get("runtime_max_usec")
        stop_after: int | None = facts.get("timeout_stop_usec", 90_000_000)
        self.timeout_stop_usec = FOREVER if stop_after is None else stop_after
        self.kill_signal: int = facts.get("kill_signal", 15)
        self.exit_type: str = facts.get("exit_type", "main")
        self.oom_policy: str = facts.get("oom_policy", "stop")
        self.nice: int | None = facts.get("nice")
        self.umask: int | None = facts.get("umask")
        self.rlimits: dict[str, int] = facts.get("rlimits", {})
        self.io_paths: list[str] = facts.get("io_paths", [])
        self.pam: str = facts.get("pam", "session")
        self.start_timeout_usec: int = facts.get("start_timeout_usec", 60_000_000)
        self.log_size_max: int | None = facts.get("log_size_max")
        self.output_left: int | None = facts.get("output_left")  # bytes of the journal that it may take
        self.output_step: int | None = facts.get("output_step")  # of them, after which to tell how far it is
        self.quiet: bool = facts.get("quiet", False)  # no life events
        self.sample_memory: bool = facts.get("sample_memory", False)
        self.request_id: str = facts.get("request", "")

    @classmethod
    def read(cls, path: str) -> Request:
        """Raises OSError, or ProtocolError for a file this release does not understand."""
        facts = control.parse(linux.read_whole(path))
        try:
            request = cls(facts)
        except KeyError as error:
            raise control.ProtocolError(f"{path} lacks {error}") from None
        words = request.command if request.script is None else [request.script, *request.arguments]
        if not words or not all(isinstance(word, str) for word in words):
            raise control.ProtocolError(f"{path} has no command")
        return request
