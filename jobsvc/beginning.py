"""From a forked process to an open barrier: whom it runs as, PAM, I/O paths, its scope."""

from __future__ import annotations

import os

from jobsvc import cgroup, disk, linux, pam, script, terminal
from jobsvc.account import Account
from jobsvc.capture import Source
from jobsvc.outfile import OutFiles
from jobsvc.verdict import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jobsvc.capture import Capture
    from jobsvc.process import MainProcess
    from jobsvc.request import Request


class Beginning:
    """The steps, in order. Each raises StartError if the job cannot be begun."""

    def __init__(self, request: Request, main: MainProcess) -> None:
        self.request = request
        self.main = main
        self.account: Account
        self.session: pam.Session | None = None
        self.files: OutFiles | None = None
        self.gifts: dict[str, Any] | None = None  # what PAM adds to the job; None until asked

    def look_up(self) -> None:
        """The user, as the system knows them now."""
        self.account = Account(self.request)
        self.main.give_pipes(self.account.uid, self.account.gid)
        if paths := self.request.io_paths:
            self.main.ask_devices(self.account.uid, self.account.gid, self.account.groups, paths)

    def resolve(self) -> dict[str, str]:
        """The disks that the I/O limits are about, once the child has found the devices."""
        disks: dict[str, str] = {}
        for path, (major, minor) in self.main.devices.items():
            try:
                disks[path] = disk.whole_disk(major, minor)
            except OSError as error:
                reason = f"cannot find the disk of {path}: {error.strerror}"
                raise StartError("io-path", reason, error.errno) from None
        return disks

    def open_session(self) -> None:
        """PAM's part, while PID 1 makes the scope."""
        gifts: dict[str, Any] = {}
        if self.request.pam != "no":
            session = self.request.pam == "session"
            try:
                self.session, gifts = pam.begin(self.account.name, self.account.groups, session)
            except (pam.PamError, OSError) as error:
                raise StartError("pam", str(error)) from None
        self.gifts = gifts

    def close_session(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    def enter(self, mount: str, path: str | None) -> cgroup.Scope | None:
        """The scope to look after. Believes the kernel rather than a message about where the process is."""
        try:
            scope = cgroup.Scope(mount, path) if path else None
        except OSError as error:
            raise _not_begun(error) from None
        if scope is not None and not scope.holds(self.main.pid):
            raise StartError("scope", f"the process is not in its scope {path}")
        return scope

    def open_files(self) -> OutFiles | None:
        """Have the output files opened, if there are any; their `door` says when they are."""
        outputs = {"stdout": self.request.standard_output, "stderr": self.request.standard_error}
        wanted = {stream: where for stream, where in outputs.items() if where is not None}
        if wanted:
            try:
                self.files = OutFiles(wanted, self._user())
            except OSError as error:
                raise _not_begun(error) from None
        return self.files

    def release(self, capture: Capture, directory: str) -> None:
        """Open the barrier, and have the output captured.

        `begun` is in the run's directory first: without it the run has not begun, whoever of us was killed.
        """
        try:
            wanted, ends = self._wanted(directory), None
            if self.request.terminal is not None:
                ends = terminal.open_terminal(self.account.uid, *self.request.terminal)
            who = (self.main.pid, self.account.uid, self.account.gid)
            mine = [self.main.stdout, self.main.stderr, *(ends or ())]
            mine += capture.start(Source(self.main.stdout, self.main.stderr, who, ends), self.files)
            os.close(os.open(f"{directory}/begun", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.main.release(wanted, [ends[1]] if ends else [])
            for fd in mine:  # what is the capture's now: here nothing that the job can touch stays open
                os.close(fd)
        except OSError as error:
            raise _not_begun(error) from None
        except RuntimeError as error:
            raise StartError("scope", f"no thread for its output: {error}") from None

    def _command(self, directory: str) -> list[str]:
        request = self.request
        if request.script is None:
            return request.command
        reader = script.interpreter(request.script, request.shell)
        return [*reader, script.place(directory, request.script, self.account), *request.arguments]

    def _user(self) -> dict[str, Any]:
        """The ids and limits of the job."""
        request, account, gifts = self.request, self.account, self.gifts or {}
        limits = dict(gifts.get("limits", {}))
        for name, value in request.rlimits.items():
            hard = limits.get(name, linux.limits_given.get(name, (0, 0)))[1]
            limit = linux.rlimit(value)
            if not request.limits_allowed and linux.above(limit, hard):
                shown = "infinity" if limit < 0 else limit
                raise StartError("limits", f"Limit{name}={shown} is beyond the user's own hard limit, {hard}")
            limits[name] = (limit, limit)
        return {
            "uid": account.uid,
            "gid": account.gid,
            "groups": gifts.get("groups", account.groups),
            "limits": linux.limit_changes(limits),
            "umask": gifts.get("umask", 0o022) if request.umask is None else request.umask,
        }

    def _wanted(self, directory: str) -> dict[str, Any]:
        """Everything the child needs to become the job."""
        request, gifts = self.request, self.gifts or {}
        return {
            **self._user(),
            "loginuid": gifts.get("loginuid"),
            "nice": gifts.get("nice", 0) if request.nice is None else request.nice,
            "stdin": request.standard_input,
            "sandbox": request.sandbox,
            "no_new_privileges": request.no_new_privileges,
            "directory": request.working_directory,
            "home": self.account.home,
            "command": self._command(directory),
            "environment": self._environment(gifts.get("environment", [])),
        }

    def _environment(self, from_pam: list[str]) -> dict[str, str]:
        """Built from nothing: as login has it, then PAM's, then the job's own."""
        environment = self.account.environment()
        if self.request.terminal is not None:
            environment["TERM"] = "vt220"  # as systemd has it for a terminal it knows nothing of
        for pair in (*from_pam, *self.request.environment):
            name, equals, value = pair.partition("=")
            if name and equals:
                environment[name] = value
        environment["JOBSVC_ID"] = self.request.id
        environment["JOBSVC_RUN"] = str(self.request.run)
        environment["JOBSVC_NAME"] = self.request.name
        return environment


def _not_begun(error: OSError) -> StartError:
    return StartError("scope", f"cannot begin in its scope: {error.strerror}", error.errno)
