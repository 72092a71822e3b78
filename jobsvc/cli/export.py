"""export: a job with all it wrote, as a tar archive."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
from typing import IO, Any

import click

from jobsvc.chunks import Stream
from jobsvc.cli.command import command, job_to_read
from jobsvc.cli.jobs import resolve
from jobsvc.cli.session import Session
from jobsvc.client import FINISHED, Client, Status
from jobsvc.client_logs import LogStream
from jobsvc.errors import AccessDenied, InvalidArgs, WrongState
from jobsvc.formats import Trailer
from jobsvc.model import oldest_run
from jobsvc.quantity import SEC
from jobsvc.render import as_json, dumps, spec_json

COMPRESSION = {".gz": "gz", ".tgz": "gz", ".xz": "xz", ".txz": "xz", ".bz2": "bz2"}


@command("export")
@job_to_read
@click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
def export_(session: Session, job: str, file: str) -> int:
    """Write JOB, which has ended, into the tar archive FILE: what it was, what it wrote, how each run went.

    job.json is what 'status' says, spec.json and script what was asked for; runs/N has stdout,
    stderr and run.json, which also names missing bytes. FILE may end in .gz, .xz or .bz2. Exits 1
    if bytes are missing.
    """
    if file == "-":
        _no_terminal(1)
    with session.client(fds=True) as client:
        status = client.status(resolve(client, job, reading=True))
        if status.get("State") not in FINISHED:
            state, job_id = status.get("State"), status["Id"]
            raise WrongState(f"job {job_id} is {state}; export it when it has ended: 'jobctl wait {job_id}'")
        if file == "-":
            sys.stdout.flush()
            with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
                missing = Export(client, archive, status).write()
        elif os.path.islink(file) or (os.path.exists(file) and not os.path.isfile(file)):
            missing = _into(client, status, file)
        else:
            missing = _to_file(client, status, file)
    for run, gap in missing:
        session.say(f"bytes {gap.start} to {gap.end} of {gap.stream} of run {run} are missing ({gap.why})")
    return 1 if missing else 0


def _no_terminal(fd: int) -> None:
    if os.isatty(fd):
        raise click.UsageError("a tar archive is nothing for a terminal; give a FILE")


def _mode(file: str) -> Any:
    return "w|" + COMPRESSION.get(os.path.splitext(file)[1], "")


def _into(client: Client, status: Status, file: str) -> list[Any]:
    """A device, a FIFO, a link, /dev/stdout: it stays what it is."""
    with open(file, "wb") as there:
        _no_terminal(there.fileno())
        with tarfile.open(fileobj=there, mode=_mode(file)) as archive:
            return Export(client, archive, status).write()


def _to_file(client: Client, status: Status, file: str) -> list[Any]:
    """It has its name only when it is whole."""
    folder, name = os.path.split(os.path.abspath(file))
    fd, begun = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(fd, "wb") as kept:
            with tarfile.open(fileobj=kept, mode=_mode(file)) as archive:
                missing = Export(client, archive, status).write()
            os.fchmod(kept.fileno(), 0o666 & ~_umask())
        os.replace(begun, file)
    except BaseException:
        os.unlink(begun)
        raise
    return missing


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class Export:
    """One job on its way into an archive."""

    def __init__(self, client: Client, archive: tarfile.TarFile, status: Status) -> None:
        self._client = client
        self._archive = archive
        self._status = status
        self._folder = f"job-{status['Id']}"
        self._missing: list[tuple[int, Any]] = []

    def write(self) -> list[tuple[int, Any]]:
        """All of it; the gaps, with their run."""
        self._text("job.json", as_json(self._status))
        self._spec()
        newest = int(self._status.get("Run", 1))
        for number in range(oldest_run(newest), newest + 1):
            self._run(number)
        return self._missing

    def _spec(self) -> None:
        """As far as it is ours to see: who may only look at a job gets the rest."""
        try:
            spec = self._client.status(self._status["Id"], {"Spec": ("b", True)})["Spec"]
        except (AccessDenied, InvalidArgs):  # the latter from a service of the release before
            return
        script = spec.pop("Script", None)
        self._text("spec.json", spec_json(spec))
        if script is not None:
            self._member("script", io.BytesIO(script), self._status)

    def _run(self, number: int) -> None:
        """Streams are gathered on the disk first: an archive says how long each is before it comes."""
        status = self._client.status(self._status["Id"], {"Run": ("u", number)})
        trailer: Trailer | None = None
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            files: dict[Stream, IO[bytes]] = {"stdout": stdout, "stderr": stderr}
            for thing in LogStream(self._client, self._status["Id"], {"Run": ("u", number)}):
                if isinstance(thing, Trailer):
                    trailer = thing
                else:
                    files[thing.stream].write(thing.data)
            gaps = trailer.missing if trailer else ()
            self._missing += [(number, gap) for gap in gaps]
            facts = as_json(status)
            facts["missing"] = [
                {"stream": gap.stream, "from": gap.start, "to": gap.end, "why": gap.why} for gap in gaps
            ]
            self._text(f"runs/{number}/run.json", facts)
            for stream, file in files.items():
                self._member(f"runs/{number}/{stream}", file, status)

    def _text(self, name: str, value: Any) -> None:
        self._member(name, io.BytesIO((dumps(value, indent=2) + "\n").encode()), self._status)

    def _member(self, name: str, content: IO[bytes], status: Status) -> None:
        member = tarfile.TarInfo(f"{self._folder}/{name}")
        member.size = content.seek(0, os.SEEK_END)
        content.seek(0)
        member.mtime = int(status.get("FinishedTimestamp") or status.get("CreatedTimestamp") or 0) // SEC
        member.mode = 0o644
        self._archive.addfile(member, content)
