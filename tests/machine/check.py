"""`make check`: every part of it, each saying what it does, and one line at the end that counts."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from machine import build, image
from machine.host import CACHE, DEFAULT_SUITE, SUITES, TREE, HostError, need, quietly, say

# Debian has no ruff. A fixed version, so that what is clean today is clean tomorrow.
_RUFF = "0.12.12"
# What the tests that run on this machine itself need; the last three are for the fuzzer.
_PYTHON = ("pytest", "pytest-timeout", "pytest-xdist", "venv", "dbus-next", "hypothesis", "jeepney")

_T = TypeVar("_T")


class Checks:
    """The parts that were asked for, how the tests went, and which parts failed."""

    def __init__(self, options: Sequence[str]) -> None:
        self.options = list(options)
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Go on after a part that failed: one run shows everything there is to mend."""
        say(f"{name} …")
        before = self.counts["failed"] + self.counts["error"]
        try:
            yield
        except HostError as error:
            self.failed.append(name)
            if self.counts["failed"] + self.counts["error"] == before:
                self.counts["error"] += 1
            say(f"{name}: FAILED\n{error}")
        else:
            say(f"{name}: ok")

    # -- the parts -----------------------------------------------------------------------------------

    def lint(self) -> None:
        with self.part("lint"):
            ruff = _ruff()
            _run([ruff, "format", "--diff", "--no-cache", "."], [ruff, "check", "--no-cache", "."])

    def types(self) -> None:
        with self.part(f"types on Debian {DEFAULT_SUITE}"), build.Tools(DEFAULT_SUITE) as tools:
            done = tools.run(["mypy", "--cache-dir=/tmp/mypy"], capture=True)
            _show(done)

    def unit(self) -> None:
        """Unit tests and tests on a private bus, where no machine is needed: both suites at once."""

        def one(suite: str) -> None:
            with self.part(f"unit and bus tests on Debian {suite}"), build.Tools(suite) as tools:
                done = tools.run(
                    ["env", "PYTHONPATH=/src/tests", "python3", "-m", "pytest"]
                    + [*_PYTEST, "-q", "--timeout=120", "tests/unit", "tests/bus", *self.options],
                    capture=True,
                )
                self._count(done.stdout)
                _show(done)

        _each(one, SUITES)

    def package(self) -> None:
        """A package from each suite; the default one, which is for both, passes both lintians."""
        for suite in sorted(SUITES, key=lambda suite: suite == DEFAULT_SUITE):
            with self.part(f"package and lintian on Debian {suite}"):
                deb = build.package(suite)
                _each(partial(build.lint, deb), SUITES if suite == DEFAULT_SUITE else [suite])

    def machines(self) -> None:
        """Both kinds at once, as in each there is much waiting: two machines, and the virtual ones in turn."""
        with self.part("tests in machines and virtual machines"):
            self._pytest(3, "tests/system")

    def system(self) -> None:
        with self.part("tests in machines"):
            self._pytest(2, "tests/system", "-m", "not vm")

    def vm(self) -> None:
        with self.part("tests in virtual machines"):
            self._pytest(2, "tests/system", "-m", "vm")

    def _pytest(self, at_once: int, *argv: str) -> None:
        command = ["/usr/bin/python3", "-m", "pytest", *_PYTEST, "-v", "--timeout=900"]
        command += ["-n", str(at_once), "--dist", "loadgroup"]
        environment = {**os.environ, "PYTHONPATH": str(TREE / "tests"), "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            [*command, *argv, *self.options],
            cwd=TREE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            last = b""
            for line in process.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
                last = line
        self._count(last)
        if process.returncode:
            raise HostError(f"pytest exited with {process.returncode}")

    # -- the end -------------------------------------------------------------------------------------

    def _count(self, output: bytes) -> None:
        """Add up what pytest's closing line says."""
        last = output.decode(errors="replace").strip().rpartition("\n")[2]
        for number, word in re.findall(r"(\d+) (passed|failed|errors?|xfailed|xpassed)", last):
            self.counts[word.replace("errors", "error")] += int(number)

    def closing(self, seconds: float) -> str:
        """One line as pytest's, of all its runs together."""
        words = [
            f"{self.counts[word]} {word}"
            for word in ("failed", "passed", "xfailed", "xpassed", "error")
            if self.counts[word]
        ]
        text = f"{', '.join(words) or 'no tests ran'} in {seconds:.2f}s"
        return f" {text} ".center(100, "=")


_PYTEST = ["-p", "machine.strict", "-p", "no:cacheprovider", "--durations=10"]


def _each(one: Callable[[str], _T], suites: Sequence[str]) -> list[_T]:
    with ThreadPoolExecutor(len(suites)) as pool:
        return list(pool.map(one, suites))


def _run(*commands: Sequence[str]) -> None:
    """Run all of them; one that fails does not hide what the next has to say."""
    done = [subprocess.run(argv, cwd=TREE, check=False) for argv in commands]
    bad = [one for one in done if one.returncode]
    if bad:
        raise HostError(f"{' '.join(bad[0].args)} exited with {bad[0].returncode}")


def _show(done: "subprocess.CompletedProcess[bytes]") -> None:
    sys.stdout.write(done.stdout.decode(errors="replace"))
    sys.stdout.flush()
    if done.returncode:
        raise HostError(f"it exited with {done.returncode}")


def _ruff() -> str:
    place = CACHE / f"ruff-{_RUFF}"
    if not (place / "bin/ruff").exists():
        say(f"installing ruff {_RUFF} (once, kept in {CACHE})")
        quietly("/usr/bin/python3", "-m", "venv", "--clear", place)
        quietly(place / "bin/pip", "install", "--quiet", "--only-binary=:all:", f"ruff=={_RUFF}")
    return str(place / "bin/ruff")


_PARTS = ("lint", "types", "unit", "package", "machines")
_IMAGES = {
    "types": ["tools"],
    "unit": ["tools"],
    "package": ["tools"],
    "machines": ["tools", "base", "vm"],
    "system": ["tools", "base"],
    "vm": ["tools", "vm"],
}


def main(argv: list[str]) -> int:
    """Run the parts named (all without a name); what follows `--` is for pytest."""
    # A shell's background command ignores Ctrl-C, and so would all that are tested for what they do then.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    split = argv.index("--") if "--" in argv else len(argv)
    parts = argv[:split] or list(_PARTS)
    checks = Checks(argv[split + 1 :])
    started = time.monotonic()
    need(
        *("mmdebstrap", "systemd-nspawn", "unshare", "git", "qemu-system-x86_64", "mke2fs"),
        packages=[f"python3-{name}" for name in _PYTHON],
    )
    wanted = sorted({kind for part in parts for kind in _IMAGES.get(part, [])})

    def images(suite: str) -> None:
        for kind in wanted:
            {"base": image.base, "tools": image.tools, "vm": image.vm}[kind](suite)

    if "lint" in parts:
        checks.lint()
    _each(images, SUITES)
    for part in parts:
        if part != "lint":
            getattr(checks, part)()
    if checks.failed:
        say(f"failed: {', '.join(checks.failed)}")
    print(checks.closing(time.monotonic() - started), flush=True)
    return 1 if checks.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"error: {error}")
