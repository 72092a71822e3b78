"""A Debian virtual machine in qemu: slow, but with a kernel of its own, which holds the limits.

Commands go through an agent (agent.py) on a virtio-serial port. What is written to its disk stays
from one boot to the next.
"""

import base64
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import image
from machine.host import SLOW, HostError, quietly, say
from machine.nspawn import USERS, Failed, Guest

# A plain one: what Debian needs, and nothing that an emulator has learned only lately. Not cmpxchg16b
# either: after one, qemu 7.2 has had the flags of something else, single step among them, and the kernel died.
_PROCESSOR = "Nehalem,-cx16"

_UNIT = """\
[Unit]
Description=Hands of the tests
DefaultDependencies=no
After=sysinit.target dbus.socket
[Service]
ExecStart=/usr/bin/python3 -I /usr/local/lib/agent.py
Restart=always
[Install]
WantedBy=multi-user.target
"""

# Everything that needs no running system, done before the first boot and at native speed.
_SETUP = """
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -o APT::Sandbox::User=root /src/{deb}
{users}
systemctl enable jobsvc-test-agent.service
systemctl mask e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer
apt-get clean
rm -rf /var/lib/apt/lists/*
"""


class Command:
    """A command that runs in a virtual machine."""

    def __init__(self, vm: "VM", number: int, argv: tuple[str, ...]) -> None:
        self.argv = argv
        self._vm = vm
        self._number = number
        self.answer: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it and its children a signal."""
        self._vm._send({"id": self._number, "signal": int(number)})

    def result(self, timeout: float | None = None) -> "subprocess.CompletedProcess[bytes]":
        """Wait for its end. It is killed, and subprocess.TimeoutExpired raised, when late."""
        try:
            answer = self.answer.get(timeout=timeout and timeout * SLOW)
        except queue.Empty:
            self.signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(self.argv), timeout or 0) from None
        if answer is None:
            raise HostError(f"{self._vm.last_words()}\nwhile it ran {self.argv}")
        stdout, stderr = (base64.b64decode(answer[key]) for key in ("stdout", "stderr"))
        return subprocess.CompletedProcess(list(self.argv), answer["status"], stdout, stderr)


class VM(Guest):
    """One virtual machine with our package installed and the test users."""

    def __init__(self, suite: str, deb: Path) -> None:
        self.suite = suite
        self.deb = deb
        self.place = image.scratch(f"vm-{suite}")
        self._layer = image.Layer(image.vm(suite), self.place / "layer")
        self._disk = self.place / "disk"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._commands: dict[int, Command] = {}
        self._count = 0

    # -- life --------------------------------------------------------------------------------------

    def make_disk(self) -> None:
        """Install everything and put it on a disk."""
        root = self._layer.mount()
        agent = root / "usr/local/lib/agent.py"
        agent.write_bytes((Path(__file__).parent / "agent.py").read_bytes())
        (root / "etc/systemd/system/jobsvc-test-agent.service").write_text(_UNIT)
        (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
        users = "\n".join(
            f"useradd --create-home --shell /bin/bash --uid {uid} --groups '{','.join(groups)}' {name}"
            for name, (uid, groups) in USERS.items()
        )
        script = _SETUP.format(deb=self.deb.name, users=users)
        done = self._layer.enter(["sh", "-c", script], tree=self.deb.parent, capture=True)
        if done.returncode:
            raise HostError(f"the {self.suite} disk cannot be made:\n{done.stdout.decode(errors='replace')}")
        (root / "src").rmdir()
        for name in ("vmlinuz", "initrd.img"):
            (self.place / name).write_bytes((root / name).resolve().read_bytes())
        quietly("mke2fs", "-q", "-t", "ext4", "-d", root, self._disk, "3G")
        self._layer.remove()

    def boot(self, timeout: float = 300) -> None:
        """Start it and wait until its services are up."""
        if not self._disk.exists():
            self.make_disk()
        for again in (True, True, False):
            if self._switch_on(timeout):
                break
            words = self.last_words()
            self.kill()
            # An emulator that breaks or hangs the kernel before anything of ours runs is not what is tested.
            if not again or not ("start_kernel+" in words or "soft lockup" in words):
                raise HostError(f"the {self.suite} VM does not boot: {words}")
            say(f"the kernel of the {self.suite} VM did not come up; once more:\n{words}")
        state = self.run("systemctl", "is-system-running", "--wait", check=False, timeout=timeout)
        if state.stdout.strip() not in {b"running", b"degraded"}:
            raise HostError(f"the {self.suite} VM is {state.stdout!r}")

    def _switch_on(self, timeout: float) -> bool:
        """Whether its agent can be spoken to in that time."""
        path = self.place / "agent"
        argv = ["/usr/bin/qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", _PROCESSOR]
        argv += ["-m", "2G", "-smp", "2", "-display", "none", "-no-reboot", "-nic", "none"]
        argv += ["-serial", f"file:{self.place}/console.log"]
        argv += ["-kernel", f"{self.place}/vmlinuz", "-initrd", f"{self.place}/initrd.img"]
        argv += ["-append", "root=/dev/vda rw console=ttyS0 panic=-1 quiet"]
        argv += ["-drive", f"file={self._disk},if=virtio,format=raw,cache=unsafe"]
        argv += ["-device", "virtio-serial"]
        argv += ["-chardev", f"socket,path={path},server=on,wait=off,id=agent"]
        argv += ["-device", "virtserialport,chardev=agent,name=org.jobsvc.agent"]
        path.unlink(missing_ok=True)
        with open(self.place / "qemu.log", "ab") as log:
            self._qemu = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = self._socket = socket.socket(socket.AF_UNIX)
        self.wait_until(lambda: end.connect_ex(os.fspath(path)) == 0, what="qemu's socket")
        hello: queue.SimpleQueue[bool] = queue.SimpleQueue()
        reader = threading.Thread(target=self._listen, args=(self._socket, hello), daemon=True)
        reader.start()
        try:
            return hello.get(timeout=timeout * SLOW)
        except queue.Empty:
            return False

    def poweroff(self, timeout: float = 240) -> None:
        """Shut it down in good order; boot() starts it again."""
        if self._qemu is None:
            return
        with contextlib.suppress(HostError):
            self.run("systemctl", "poweroff", "--no-block", check=False)
        self._gone(timeout)

    def reboot(self) -> None:
        """Down and up again, with what is on its disk."""
        self.poweroff()
        self.boot()

    def kill(self) -> None:
        """Pull the plug."""
        if self._qemu is None:
            return
        self._qemu.kill()
        self._gone(30)

    def last_words(self) -> str:
        """How qemu ended, what it said, and the end of the console."""
        with contextlib.suppress(AttributeError, subprocess.TimeoutExpired):
            self._qemu.wait(5)  # type: ignore[union-attr]
        status = self._qemu and self._qemu.returncode
        logs = [(self.place / name).read_text(errors="replace")[-4000:] for name in ("qemu.log", "console.log")]
        return f"qemu of the {self.suite} VM exited with {status}\n{logs[0]}\n{logs[1]}"

    def _gone(self, timeout: float) -> None:
        assert self._qemu is not None
        assert self._socket is not None
        self._qemu.wait(timeout * SLOW)
        self._socket.close()
        self._qemu = self._socket = None

    def remove(self) -> None:
        """Kill it and forget everything."""
        self.kill()
        image.discard(self.place)

    def __enter__(self) -> "VM":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # -- commands ----------------------------------------------------------------------------------

    def start(
        self,
        *argv: str,
        user: str = "root",
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Command:
        """Start a command in the background."""
        with self._lock:
            self._count += 1
            command = self._commands[self._count] = Command(self, self._count, argv)
            number = self._count
        self._send(
            {
                "id": number,
                "argv": argv,
                "user": user,
                "env": dict(env or {}),
                "cwd": cwd,
                "stdin": base64.b64encode(input or b"").decode(),
            }
        )
        return command

    def run(
        self,
        *argv: str,
        user: str = "root",
        input: bytes | None = None,
        check: bool = True,
        timeout: float | None = 120,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        login: bool = False,
    ) -> "subprocess.CompletedProcess[bytes]":
        if login:
            place = cwd or self.run("sh", "-c", 'printf %s "$HOME"', user=user).stdout.decode()
            argv = (
                *("systemd-run", "--quiet", "--pipe", "--wait", "--collect"),
                *("-p", "PAMName=login", "-p", f"User={user}", "-p", f"WorkingDirectory={place}"),
                *("--", "env", *(f"{key}={value}" for key, value in (env or {}).items()), *argv),
            )
            user, cwd = "root", None
        done = self.start(*argv, user=user, input=input, env=env, cwd=cwd).result(timeout)
        if check and done.returncode:
            raise Failed(done)
        return done

    def _send(self, packet: dict[str, Any]) -> None:
        if self._socket is None:
            raise HostError(f"the {self.suite} VM is not running")
        with self._lock:
            self._socket.sendall(json.dumps(packet).encode() + b"\n")

    def _listen(self, connection: socket.socket, hello: "queue.SimpleQueue[bool]") -> None:
        """Hand each answer to whoever waits for it, until the machine goes away."""
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                packet = json.loads(line)
                if "hello" in packet:
                    hello.put(True)
                    continue
                command = self._commands.pop(packet["id"], None)
                if command is not None:
                    command.answer.put(packet)
        hello.put(False)
        for number in list(self._commands):
            self._commands.pop(number).answer.put(None)


def installed(suite: str, deb: Path) -> VM:
    """A booted virtual machine with our package and the test users."""
    say(f"booting a virtual machine with Debian {suite}")
    vm = VM(suite, deb)
    try:
        vm.boot()
    except BaseException:
        vm.remove()
        raise
    say(f"the virtual machine with Debian {suite} is up")
    return vm
