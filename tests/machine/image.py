"""Root directories of Debian, built once and kept outside the tree.

base   a bare machine with systemd: none of what our package depends on is installed, all of it
       waits in apt's cache, so that `apt-get install ./jobsvc.deb` works without a network and a
       forgotten dependency shows
tools  what builds the package and runs the tests that need no machine
vm     base with a kernel
"""

import contextlib
import fcntl
import hashlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from machine import cgroups
from machine.host import CACHE, TREE, quietly, say

_BASE = [
    "cron",
    "dbus",
    "libpam-systemd",
    "nq",
    "polkitd",
    "procps",
    "strace",
    "systemd",
    "systemd-sysv",
    "task-spooler",
    "udev",
    "xz-utils",
]
_KERNEL = ["initramfs-tools", "linux-image-cloud-amd64"]
# An emulated processor takes long to unpack what it will never load.
_SMALL_INITRD = [
    '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"',
    '--essential-hook=echo MODULES=list > "$1/etc/initramfs-tools/conf.d/vm"',
    '--essential-hook=printf "%s\\n" virtio_pci virtio_blk ext4 > "$1/usr/share/initramfs-tools/modules.d/vm"',
]
_TOOLS = [
    "bash-completion",
    "dbus-daemon",
    "dpkg-dev",
    "fish",
    "lintian",
    "make",
    "man-db",
    "mypy",
    "python3-hypothesis",
    "python3-pytest",
    "python3-pytest-timeout",
    "systemd",
    "zsh",
]

# Rises when this file builds something else from the same inputs.
_EDITION = 3

_CONTROL = TREE / "packaging" / "debian" / "control"


def control_names(field: str) -> list[str]:
    """The package names in a dependency field of our debian/control."""
    match = re.search(rf"^{field}:((?:.*\n)(?:[ \t].*\n)*)", _CONTROL.read_text(), re.MULTILINE)
    if match is None:
        return []
    words = [re.sub(r"\(.*?\)", "", word).strip() for word in match[1].split(",")]
    return sorted(word for word in words if word and not word.startswith("${"))


def base(suite: str) -> Path:
    return _root("base", suite, _BASE, cached=_wanted())


def vm(suite: str) -> Path:
    return _root("vm", suite, _BASE + _KERNEL, cached=_wanted(), extra=_SMALL_INITRD)


def _wanted() -> list[str]:
    return control_names("Depends") + control_names("Recommends")


def tools(suite: str) -> Path:
    names = {
        re.sub("^debhelper-compat$", "debhelper", name)
        for name in control_names("Build-Depends")
        if not name.startswith("dh-sequence-")
    }
    return _root("tools", suite, sorted({*_TOOLS, *names, "dh-python", *control_names("Depends")}))


def _root(
    kind: str,
    suite: str,
    include: list[str],
    cached: list[str] | None = None,
    extra: Sequence[str] = (),
) -> Path:
    inputs = repr((_EDITION, suite, include, cached, extra))
    key = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    place = CACHE / "images" / f"{kind}-{suite}-{key}"
    with _locked(CACHE / f"{kind}-{suite}.lock"):
        if not place.is_dir():
            for stale in place.parent.glob(f"{kind}-{suite}-*"):
                if f"lowerdir={stale}," not in Path("/proc/mounts").read_text():
                    discard(stale)
            say(f"building the {kind} image of Debian {suite} (once, kept in {CACHE})")
            building = CACHE / "images" / f".{place.name}"
            discard(building)
            _build(building, suite, include, cached, extra)
            building.rename(place)
            say(f"built the {kind} image of Debian {suite}")
    return place


def _build(place: Path, suite: str, include: list[str], cached: list[str] | None, extra: Sequence[str]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    argv: list[str | Path] = [
        # What it mounts goes away with it, however it ends.
        *("/usr/bin/unshare", "--mount", "--propagation", "private", "--"),
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(include)}",
        # No machine of ours needs documentation, and copying it costs seconds in each run.
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        # Not the name of the machine it was built on.
        f'--customize-hook=echo {suite} > "$1/etc/hostname"',
        *extra,
    ]
    if cached is not None:
        # apt runs as in the booted machine later (Recommends and all), so that it then finds
        # exactly what it asks for.
        argv += [
            "--skip=cleanup/apt",
            '--customize-hook=chroot "$1" env -u APT_CONFIG apt-get clean',
            '--customize-hook=chroot "$1" env -u APT_CONFIG DEBIAN_FRONTEND=noninteractive'
            f" apt-get install -y --download-only -o APT::Install-Recommends=true {' '.join(cached)}",
        ]
    quietly(*argv, suite, place, progress=f"  {place.name[1:]}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two runs must not build the same image at once, nor two threads of one, which share what lockf() locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def discard(place: Path) -> None:
    """Remove a directory, but nothing of what is mounted in it: that may be this machine's own."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{place}/"):
            # Lazily: the last process of a machine that was killed may take a moment to go.
            quietly("umount", "--lazy", point)
    quietly("rm", "-rf", "--one-file-system", place)


def scratch(prefix: str) -> Path:
    """A directory for something that lives as long as this process, outside the tree.

    What processes that were killed have left behind goes first.
    """
    runs = CACHE / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / "runs.lock"):
        for stale in runs.iterdir():
            _sweep(stale)
        place = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=runs))
        (place / "owner").write_text(_identity(os.getpid()) or "")
    return place


def _sweep(place: Path) -> None:
    try:
        owner = (place / "owner").read_text()
    except FileNotFoundError:
        return
    if _identity(int(owner.split()[0])) == owner:
        return
    say(f"removing {place}, which was left behind")
    for process in Path("/proc").glob("[0-9]*"):
        # A machine's or virtual machine's own process names the directory it runs from.
        with contextlib.suppress(OSError):
            if os.fsencode(f"{place}/") in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    cgroups.remove(place.name)
    Layer(place, place / "layer").remove()
    Layer(place, place).remove()


def _identity(pid: int) -> str | None:
    """The number and the start time of a process; numbers are used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return f"{pid} {stat.rpartition(')')[2].split()[19]}"


# A mount namespace of its own makes what is mounted here vanish with the last process in it.
_ENTER = """
set -eu
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys" 2>/dev/null || true
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
if [ -n "$2" ]; then
    mkdir -p "$1/src"
    mount --bind "$2" "$1/src"
fi
root=$1
directory=${2:+/src}
shift 2
exec chroot "$root" env -C "${directory:-/}" "$@"
"""


class Layer:
    """A writable copy of an image: an overlay, or a plain copy where that does not work.

    What is written is kept in `place` until `remove`; `mount` may be called again after a reboot of
    this machine.
    """

    def __init__(self, image: Path, place: Path) -> None:
        self.image = image
        self.place = place
        self.root = place / "root"

    def mount(self) -> Path:
        """Make the root directory usable and return it."""
        if (self.root / "usr").exists():
            return self.root
        for part in ("root", "upper", "work"):
            (self.place / part).mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={self.image},upperdir={self.place}/upper,workdir={self.place}/work"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, self.root],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if mounted.returncode:
            # Overlays do not stack everywhere: this machine may run from one itself.
            quietly("cp", "-a", "--reflink=auto", f"{self.image}/.", self.root)
        return self.root

    def enter(
        self,
        argv: Sequence[str],
        *,
        tree: Path | None = None,
        capture: bool = False,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command in it without booting it, without a network, with `tree` at /src."""
        with self.start(argv, tree=tree, capture=capture) as process:
            try:
                stdout, _ = process.communicate()
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout)

    def start(
        self, argv: Sequence[str], *, tree: Path | None = None, capture: bool = True
    ) -> "subprocess.Popen[bytes]":
        """The same in the background."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TERM": os.environ.get("TERM", "dumb"),
        }
        return subprocess.Popen(
            ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--cgroup"]
            + ["--", "/bin/sh", "-c", _ENTER, "sh", self.root, tree or "", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture else None,
            env=environment,
        )

    def remove(self) -> None:
        """Unmount and forget everything."""
        discard(self.place)
