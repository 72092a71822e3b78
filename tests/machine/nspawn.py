"""A Debian machine in systemd-nspawn: native speed, boots in a second, has no kernel of its own.

Where this host runs cgroup v1, the machine has the unified hierarchy without controllers: units
work, limits are set and not enforced (`Machine.controllers` says which there are).
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import cgroups, image
from machine.host import SLOW, HostError, asks_systemd, say

# The image's own programs by their full path: what we enter must not depend on our PATH.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"

# As udev has it where it runs: for everybody (/usr/lib/udev/rules.d/50-udev-default.rules).
_FUSE = "rm -f /dev/fuse && mknod -m 666 /dev/fuse c 10 229"

USERS = {"alice": (1000, []), "bob": (1001, []), "carol": (1002, ["jobsvc-viewer"])}
USERS |= {"dave": (1003, ["jobsvc-admin"])}


class Failed(Exception):
    """A command in a machine did not exit with 0."""

    def __init__(self, done: "subprocess.CompletedProcess[bytes]") -> None:
        self.done = done
        super().__init__(
            f"{done.args} exited with {done.returncode}\n"
            f"stdout: {done.stdout[-4000:]!r}\nstderr: {done.stderr[-4000:]!r}"
        )


class Guest:
    """What machines and virtual machines have in common: commands, users, files, packages."""

    suite: str

    def run(
        self,
        *argv: str,
        user: str = "root",
        input: bytes | None = None,
        check: bool = True,
        timeout: float | None = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        login: bool = False,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command as this user, in the home directory, and return what it said.

        With `login` it gets a PAM session, and so logind's, like somebody who has logged in.
        Raises Failed if `check` and the status is not 0, subprocess.TimeoutExpired when late: after `timeout`
        seconds of a usual machine, which a slow one has more of (SLOW).
        """
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return self.run("cat", "--", path).stdout

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Create or replace a file of root's and the directories above it."""
        data = content.encode() if isinstance(content, str) else content
        script = 'mkdir -p -- "$(dirname -- "$1")" && cat > "$1" && chmod "$2" -- "$1"'
        self.run("sh", "-c", script, "sh", path, f"{mode:o}", input=data)

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path, check=False).returncode == 0

    def controllers(self) -> set[str]:
        """The resource controllers this machine was lent."""
        return set(self.read("/sys/fs/cgroup/cgroup.controllers").decode().split())

    def limits_hold(self) -> bool:
        """Can limits be enforced in here?"""
        return {"cpu", "io", "memory", "pids"} <= self.controllers()

    def install(self, deb: Path) -> None:
        """Install a package as an administrator does: with apt, which finds what it depends on."""
        self.write(f"/var/tmp/{deb.name}", deb.read_bytes())
        self.run(
            "apt-get",
            "install",
            "-y",
            "--reinstall",
            "-o",
            "APT::Sandbox::User=root",
            f"/var/tmp/{deb.name}",
            env={"DEBIAN_FRONTEND": "noninteractive"},
            timeout=900,
        )

    def add_users(self) -> None:
        """alice and bob, ordinary users; carol may view, dave may all."""
        for name, (uid, groups) in USERS.items():
            options = ["--groups", ",".join(groups)] if groups else []
            self.run(
                *("useradd", "--create-home", "--shell", "/bin/bash", "--uid", str(uid)),
                *(*options, name),
            )

    def wait_until(self, condition: Callable[[], Any], *, timeout: float = 30, what: str = "a condition") -> Any:
        """Ask until the answer is true and return it; the one place that sleeps."""
        deadline = time.monotonic() + timeout * SLOW
        pause = 0.005
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout * SLOW:.0f} s for {what}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
        return answer


class Machine(Guest):
    """One machine: a layer over the base image of a suite, booted, entered and thrown away."""

    def __init__(self, suite: str, place: Path | None = None) -> None:
        self.suite = suite
        self.place = place or image.scratch(suite)
        self._layer = image.Layer(image.base(suite), self.place)
        self.root = self._layer.root
        self.leader: int | None = None
        self._nspawn: subprocess.Popen[bytes] | None = None

    # -- life --------------------------------------------------------------------------------------

    def boot(self, timeout: float = 60) -> None:
        """Start it and wait until it is up."""
        self._layer.mount()
        name = f"jobsvc-{self.place.name}".replace("_", "-").rstrip("-")
        argv = ["/usr/bin/systemd-nspawn", "--quiet", "-D", str(self.root), "--boot"]
        argv += ["--register=no", "--private-network", f"--machine={name}"]
        argv += ["--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        if asks_systemd():
            argv.append("--property=DeviceAllow=/dev/fuse rw")
        else:
            # Nobody to ask for a unit of its own: it stays where we are.
            argv.append("--keep-unit")
        console = (self.place / "console.log").open("ab")
        with console:
            self._nspawn = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
                preexec_fn=cgroups.joining(self.place.name),
            )
        (self.place / "nspawn.pid").write_text(str(self._nspawn.pid))
        self._reach(timeout)

    def attach(self) -> bool:
        """Take over a machine that an earlier process has booted; False if it is not running."""
        try:
            pid = int((self.place / "nspawn.pid").read_text())
            if os.fsencode(str(self.root)) not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return False
        except (OSError, ValueError):
            return False
        self.leader = _only_child(pid)
        return self.leader is not None

    def _reach(self, timeout: float) -> None:
        assert self._nspawn is not None
        deadline = time.monotonic() + timeout * SLOW
        state = "not there"
        while time.monotonic() < deadline:
            if self._nspawn.poll() is not None:
                break
            self.leader = _only_child(self._nspawn.pid)
            if self.leader is not None:
                asked = self.run("systemctl", "is-system-running", "--wait", check=False)
                state = asked.stdout.decode().strip() or asked.stderr.decode().strip()
                if state in {"running", "degraded"}:
                    self.run("sh", "-c", _FUSE)
                    return
            time.sleep(0.02)
        console = (self.place / "console.log").read_text(errors="replace")
        raise HostError(f"{self.suite} does not boot (it is {state}):\n{console[-4000:]}")

    def poweroff(self, timeout: float = 120) -> None:
        """Shut it down in good order; the layer stays, boot() starts it again."""
        if self.leader is None:
            return
        # The request may not be answered any more: what counts is that it goes away.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("systemctl", "poweroff", "--no-block", check=False, timeout=10)
        self._gone(timeout)

    def reboot(self) -> None:
        """Down and up again, with what is on its disk."""
        self.poweroff()
        self.boot()

    def kill(self) -> None:
        """Pull the plug."""
        if self.leader is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.leader, signal.SIGKILL)
        self._gone(30)

    def _gone(self, timeout: float) -> None:
        if self._nspawn is not None:
            self._nspawn.wait(timeout * SLOW)
        else:
            self.wait_until(lambda: not self.attach(), timeout=timeout, what="the machine's end")
        self._nspawn = None
        self.leader = None
        (self.place / "nspawn.pid").unlink(missing_ok=True)
        cgroups.remove(self.place.name)

    def remove(self) -> None:
        """Kill it and forget everything."""
        self.kill()
        self._layer.remove()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # -- commands ----------------------------------------------------------------------------------

    def argv(
        self, argv: Sequence[str], *, user: str = "root", cwd: str | None = None, login: bool = False
    ) -> list[str]:
        """The command line on this host that runs `argv` in there."""
        if self.leader is None:
            raise HostError(f"{self.place.name} is not running")
        uid, gid, home = self._account(user)
        enter = ["/usr/bin/nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C"]
        enter += ["-r", "-w", "--"]
        if login:
            # What has been set for the command must be named to get through PID 1.
            return [
                *enter,
                *("/usr/bin/systemd-run", "--quiet", "--pipe", "--wait", "--collect"),
                *("-p", "PAMName=login", "-p", f"User={user}", "-p", f"WorkingDirectory={cwd or home}"),
                *("--", *argv),
            ]
        if uid or gid:
            enter += ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid}", "--init-groups", "--"]
        return [*enter, "/usr/bin/env", "-C", cwd or home, "--", *argv]

    def environment(self, user: str, env: Mapping[str, str] | None) -> dict[str, str]:
        """What a shell of this user would have, and `env`."""
        _, _, home = self._account(user)
        return {
            "HOME": home,
            "LANG": "C.UTF-8",
            "LOGNAME": user,
            "PATH": _PATH if user == "root" else _USER_PATH,
            "SHELL": "/bin/bash",
            "USER": user,
            **(env or {}),
        }

    def run(
        self,
        *argv: str,
        user: str = "root",
        input: bytes | None = None,
        check: bool = True,
        timeout: float | None = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        login: bool = False,
    ) -> "subprocess.CompletedProcess[bytes]":
        with self.popen(*argv, user=user, env=env, cwd=cwd, login=login, stdin=_source(input)) as process:
            try:
                stdout, stderr = process.communicate(input, timeout and timeout * SLOW)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)
        if check and done.returncode:
            raise Failed(done)
        return done

    def popen(
        self,
        *argv: str,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        login: bool = False,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = subprocess.PIPE,
        **options: Any,
    ) -> "subprocess.Popen[bytes]":
        """Start a command in the background. A signal sent to it reaches nsenter's child alone."""
        if login:
            argv = ("/usr/bin/env", *(f"{key}={value}" for key, value in (env or {}).items()), *argv)
        return subprocess.Popen(
            self.argv(argv, user=user, cwd=cwd, login=login),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=self.environment(user, env),
            **options,
        )

    def _account(self, user: str) -> tuple[int, int, str]:
        if user == "root":
            return 0, 0, "/root"
        for line in (self.root / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, _, home, _ = line.split(":")
            if name == user:
                return int(uid), int(gid), home
        raise KeyError(f"{self.place.name} has no user {user}")


def _source(input: bytes | None) -> int:
    return subprocess.DEVNULL if input is None else subprocess.PIPE


def _only_child(pid: int) -> int | None:
    """nspawn's child is the machine's PID 1."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            # Its helper that sets up the mounts is there for a moment, in our PID namespace.
            if os.readlink(f"/proc/{child}/ns/pid") != os.readlink("/proc/self/ns/pid"):
                return int(child)
    except OSError:
        pass
    return None


@contextlib.contextmanager
def installed(suite: str, deb: Path) -> Iterator[Machine]:
    """A booted machine with our package and the test users."""
    with Machine(suite) as machine:
        machine.boot()
        prepare(machine, deb)
        yield machine


def prepare(machine: Machine, deb: Path) -> None:
    """Install the package and add the users. Where limits cannot hold, jobs run without them."""
    if not machine.limits_hold():
        say(
            "this host lends the machine no cgroup controllers: LimitEnforcement=best-effort there,"
            " limits are set but not enforced, and status shows limits_not_in_force"
        )
        machine.write(
            "/etc/jobsvc/jobsvc.conf.d/50-no-controllers.conf",
            "[Manager]\nLimitEnforcement=best-effort\n",
        )
    say(f"installing {deb.name} on Debian {machine.suite}")
    machine.install(deb)
    machine.add_users()
