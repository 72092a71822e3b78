"""Commands in the tools image, and the Debian package they build."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import image
from machine.host import TREE, HostError, say


class Tools:
    """The tools image of a suite with a tree at /src; leaving it forgets what was written."""

    def __init__(self, suite: str, tree: Path = TREE) -> None:
        self.suite = suite
        self.tree = tree
        self._layer = image.Layer(image.tools(suite), image.scratch(f"tools-{suite}"))

    def __enter__(self) -> "Tools":
        self._layer.mount()
        return self

    def __exit__(self, *_: object) -> None:
        self._layer.remove()

    def run(self, argv: Sequence[str], *, capture: bool = False) -> "subprocess.CompletedProcess[bytes]":
        """Run a command in the tree, without a network, and return how it went."""
        return self._layer.enter(argv, tree=self.tree, capture=capture)

    def start(self, argv: Sequence[str]) -> "subprocess.Popen[bytes]":
        """The same in the background; what it says is there to be read."""
        return self._layer.start(argv, tree=self.tree)


def sources() -> list[Path]:
    """The files of the tree, those not committed yet included."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={TREE}", "-C", str(TREE), "ls-files", "-z"]
        + ["--cached", "--others", "--exclude-standard"],
        stdout=subprocess.PIPE,
        check=True,
    )
    names = {Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name}
    return sorted(name for name in names if (TREE / name).is_file())


def digest(suite: str) -> str:
    """What a package of this suite is made from."""
    sum_ = hashlib.sha256(suite.encode())
    for name in sources():
        if name.parts[0] in {"tests", ".ci"}:
            continue
        path = TREE / name
        sum_.update(f"{name}\0{path.stat().st_mode & 0o111:o}\0".encode())
        sum_.update(hashlib.sha256(path.read_bytes()).digest())
    return sum_.hexdigest()


def export(place: Path) -> None:
    """The source tree as dpkg wants it: packaging/debian is at debian/."""
    for name in sources():
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TREE / name, target, follow_symlinks=False)
    (place / "packaging" / "debian").rename(place / "debian")


def package(suite: str) -> Path:
    """Our package built on this suite, in dist/; built only when something has changed."""
    mark = TREE / "dist" / ".built"
    now = digest(suite)
    if mark.exists():
        was, name = mark.read_text().split()
        if was == now and (TREE / "dist" / name).exists():
            return TREE / "dist" / name
    say(f"building the package on Debian {suite}")
    with tempfile.TemporaryDirectory(prefix="jobsvc-build-") as directory:
        place = Path(directory)
        export(place / "jobsvc")
        with Tools(suite, place) as tools:
            built = tools.run(
                ["env", "-C", "/src/jobsvc", "dpkg-buildpackage", "-us", "-uc", "-b"]
                # Nothing is compiled here: the build needs no build-essential.
                + ["--ignore-builtin-builddeps"],
                capture=True,
            )
        if built.returncode:
            raise HostError(f"the package does not build:\n{built.stdout.decode(errors='replace')}")
        (TREE / "dist").mkdir(exist_ok=True)
        products = [path for path in place.iterdir() if path.suffix in {".deb", ".buildinfo", ".changes"}]
        for product in products:
            shutil.copy2(product, TREE / "dist" / product.name)
    (deb,) = (path.name for path in products if path.suffix == ".deb")
    mark.write_text(f"{now} {deb}\n")
    say(f"built dist/{deb}")
    return TREE / "dist" / deb


def lint(deb: Path, suite: str) -> None:
    """lintian of this suite has nothing to complain about."""
    with Tools(suite, deb.parent) as tools:
        done = tools.run(
            ["lintian", "--allow-root", "--fail-on", "error,warning", "--profile", "debian"]
            + ["--suppress-tags", "bad-distribution-in-changes-file", f"/src/{deb.name}"]
        )
    if done.returncode:
        raise HostError(f"lintian of Debian {suite} complains about {deb.name}")


def main() -> int:
    """Build the package of the suite named by the first argument."""
    from machine.host import DEFAULT_SUITE, need

    need("mmdebstrap", "git", "unshare")
    print(package(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_SUITE))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HostError as error:
        sys.exit(f"error: {error}")
