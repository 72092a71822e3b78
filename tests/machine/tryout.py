"""`make try`: jobsvc in a throwaway Debian machine, which stays until `make try-clean`."""

import hashlib
import shlex
import subprocess
import sys
from pathlib import Path

from machine import build, image
from machine.host import CACHE, DEFAULT_SUITE, HostError, need, say
from machine.nspawn import Machine, prepare

_USER = "alice"

# Real work on real input, with something to watch: tar says how far it is.
_WORK = (
    "tar cf - --checkpoint=4000 --checkpoint-action='echo=%u records read' /usr"
    " | xz -1 -T1 > usr.tar.xz && ls -l usr.tar.xz"
)
_TOUR = (
    ["run", "--name", "usr", "--cpu", "80%", "--memory", "256M", "--", "sh", "-c", _WORK],
    ["status", "usr"],
    ["list"],
    ["logs", "usr", "-n", "3"],
)


def machine_with(deb: Path) -> Machine:
    """The machine that was kept, or a new one, with this package installed."""
    place = CACHE / "try"
    machine = Machine(DEFAULT_SUITE, place)
    fresh = place / "machine"
    if not machine.attach():
        base = str(image.base(DEFAULT_SUITE))
        if not fresh.exists() or fresh.read_text() != base:
            machine.remove()
        place.mkdir(parents=True, exist_ok=True)
        say(f"booting a machine with Debian {DEFAULT_SUITE}")
        machine.boot()
        fresh.write_text(base)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    mark = place / "package"
    if not mark.exists():
        prepare(machine, deb)
    elif mark.read_text() != digest:
        say(f"installing the new {deb.name}")
        machine.install(deb)
    mark.write_text(digest)
    return machine


def jobctl(machine: Machine, argv: list[str]) -> int:
    """Run it there as an ordinary user, on our own terminal."""
    print(f"{_USER}$ jobctl {shlex.join(argv)}", flush=True)
    # This process started the session of the terminal's interrupts; they are jobctl's to handle.
    with machine.popen("jobctl", *argv, user=_USER, stdin=None, stdout=None, stderr=None) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def main(argv: list[str]) -> int:
    """Run one jobctl command there, or show a job from its start to its log."""
    need("mmdebstrap", "systemd-nspawn", "unshare", "git")
    if argv == ["--clean"]:
        machine = Machine(DEFAULT_SUITE, CACHE / "try")
        machine.attach()
        machine.remove()
        return 0
    machine = machine_with(build.package(DEFAULT_SUITE))
    if argv:
        return jobctl(machine, argv)
    for command in _TOUR:
        status = jobctl(machine, command)
        # 3 is what `jobctl status` answers when a job is not running any more.
        if status not in ({0, 3} if command[0] == "status" else {0}):
            return status
    print("\nThe machine is kept: make try ARGS='run -- ls -l'. make try-clean removes it.", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (HostError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
