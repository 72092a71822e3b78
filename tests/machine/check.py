"""`make check`: every part of it, each saying what it does, and one line at the end that counts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from machine import build, image
from machine.host import CACHE, DEFAULT_SUITE, SLOW, SUITES, TREE, HostError, need, quietly, say
from machine.outcome import Outcome, Repeats, show
from machine.progress import MARK

# Debian has no ruff. A fixed version, so that what is clean today is clean tomorrow.
_RUFF = "0.12.12"
# That of Debian 13, which `make types` runs; the one of Debian 12 finds other things.
_MYPY = "1.15.0"
_PYTEST = ("-p", "machine.strict", "-p", "machine.progress", "-p", "no:cacheprovider", "-q") + (
    *("-o", "console_output_style=classic"),
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Part:
    """What a part needs: programs and packages of this machine, images of Debian; and how long it may take."""

    budget: float | None = None
    programs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    @property
    def root(self) -> bool:
        """Only root can enter an image."""
        return bool(self.images)


_IMAGES = ("mmdebstrap", "unshare", "git")
_HOST = ("python3-pytest", "python3-pytest-timeout", "python3-pytest-xdist")
_FUZZ = ("python3-dbus-next", "python3-hypothesis", "python3-jeepney")
_OURS = ("python3-click", "python3-psutil", "python3-pystemd", "python3-systemd")
_MACHINES = (*_IMAGES, "systemd-nspawn")
_VIRTUAL = (*_IMAGES, "qemu-system-x86_64", "mke2fs")

# Seconds, on a quick machine of two processors with its images there: 12 minutes together.
PARTS = {
    "lint": Part(10, packages=("python3-venv",)),
    "types": Part(15, _IMAGES, images=("tools",)),
    "unit": Part(100, _IMAGES, images=("tools",)),
    "package": Part(20, _IMAGES, images=("tools",)),
    "machines": Part(540, (*_MACHINES, *_VIRTUAL), (*_HOST, *_FUZZ), ("tools", "base", "vm")),
    "system": Part(None, _MACHINES, (*_HOST, *_FUZZ), ("tools", "base")),
    "vm": Part(None, _VIRTUAL, (*_HOST, *_FUZZ), ("tools", "vm")),
    "soak": Part(None, (*_MACHINES, *_VIRTUAL), (*_HOST, *_FUZZ), ("tools", "base", "vm")),
    "quick": Part(60, ("git",), ("python3-venv", *_HOST, *_FUZZ, *_OURS)),
}
CHECK = ("lint", "types", "unit", "package", "machines")


class Checks:
    """The parts that were asked for; each adds to the outcome."""

    def __init__(self, options: Sequence[str]) -> None:
        self.options = list(options)
        self.outcome = Outcome()

    # -- the parts -----------------------------------------------------------------------------------

    def lint(self) -> None:
        with self.outcome.part("lint", PARTS["lint"].budget):
            ruff = _tool("ruff", _RUFF)
            _run([ruff, "format", "--diff", "--no-cache", "."], [ruff, "check", "--no-cache", "."])

    def types(self) -> None:
        name = f"types on Debian {DEFAULT_SUITE}"
        with self.outcome.part(name, PARTS["types"].budget), build.Tools(DEFAULT_SUITE) as tools:
            _show(tools.run(["mypy", "--cache-dir=/tmp/mypy"], capture=True))

    def unit(self) -> None:
        """Unit tests and tests on a private bus, where no machine is needed: both suites at once."""

        def one(suite: str) -> None:
            name = f"unit and bus tests on Debian {suite}"
            with self.outcome.part(name, PARTS["unit"].budget), build.Tools(suite) as tools:
                command = ["env", "PYTHONPATH=/src/tests", "python3", "-m", "pytest", *_PYTEST]
                command += ["--timeout", str(100 * SLOW), "-m", "not soak", "tests/unit", "tests/bus", *self.options]
                self._told(suite, tools.start(command))

        _each(one, SUITES)

    def package(self) -> None:
        """A package from each suite; the default one, which is for both, passes both lintians."""
        for suite in sorted(SUITES, key=lambda suite: suite == DEFAULT_SUITE):
            with self.outcome.part(f"package and lintian on Debian {suite}", PARTS["package"].budget):
                deb = build.package(suite)
                _each(partial(build.lint, deb), SUITES if suite == DEFAULT_SUITE else [suite])

    def machines(self) -> None:
        """Both kinds at once, as in each there is much waiting: two processes for machines, one for virtual ones."""
        with self.outcome.part("tests in machines and virtual machines", PARTS["machines"].budget):
            self._system(3, "not soak")

    def system(self) -> None:
        with self.outcome.part("tests in machines"):
            self._system(2, "not vm and not soak")

    def vm(self) -> None:
        with self.outcome.part("tests in virtual machines"):
            self._system(1, "vm and not soak")

    def soak(self) -> None:
        """What is repeated a few times in a check, often, and what takes too long for one: in rounds."""
        minutes, repeats, began = float(os.environ.get("MINUTES") or "60"), Repeats(), time.monotonic()
        number = 0
        while (time.monotonic() - began) / 60 < minutes:
            number += 1
            with self.outcome.part(f"round {number}"):
                self._system(3, "soak or scaled", {"JOBSVC_SOAK": str(number)}, partial(repeats.add, number))
        show(repeats.table(number, time.monotonic() - began) + "\n")

    def quick(self) -> None:
        """What needs neither root nor an image, with this machine's own Python."""
        self.lint()
        with self.outcome.part("types"):
            python = "--python-executable=/usr/bin/python3"
            _run([_tool("mypy", _MYPY), python, f"--cache-dir={CACHE}/mypy-cache"])
        with self.outcome.part("unit tests that need no root, bus or process"):
            self._told("", _pytest(f"--timeout={100 * SLOW}", "-n", "2", "-m", "pure", "tests/unit", *self.options))

    # -- pytest ----------------------------------------------------------------------------------------

    def _system(
        self,
        at_once: int,
        which: str,
        env: Mapping[str, str] | None = None,
        also: Callable[[dict[str, float], list[str]], None] | None = None,
    ) -> None:
        argv = (f"--timeout={900 * SLOW}", "-n", str(at_once), "--dist", "loadgroup", "-m", which, "tests/system")
        self._told("", _pytest(*argv, *self.options, env=env), also)

    def _told(
        self,
        suite: str,
        process: "subprocess.Popen[bytes]",
        also: Callable[[dict[str, float], list[str]], None] | None = None,
    ) -> None:
        """Say where a pytest is while it runs; show its report, and count, when it has ended."""
        assert process.stdout is not None
        report: list[str] = []
        with process:
            for line in (raw.decode(errors="replace") for raw in process.stdout):
                _, mark, told = line.partition(MARK)
                if not mark:
                    report.append(line)
                elif told.startswith("{"):
                    facts = json.loads(told)
                    self.outcome.add(suite, facts["seconds"])
                    if also is not None:
                        also(facts["seconds"], facts["failed"])
                else:
                    say(f"{suite or 'tests'}: {told.rstrip()}")
        text = "".join(report)
        self.outcome.count(text)
        show(text)
        if process.returncode:
            raise HostError(f"pytest exited with {process.returncode}")


def _pytest(*argv: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ["/usr/bin/python3", "-m", "pytest", *_PYTEST, *argv],
        cwd=TREE,
        env={**os.environ, "PYTHONPATH": str(TREE / "tests"), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


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
    show(done.stdout.decode(errors="replace"))
    if done.returncode:
        raise HostError(f"it exited with {done.returncode}")


def _tool(name: str, version: str) -> str:
    """A program from the Python Package Index."""
    place = CACHE / f"{name}-{version}"
    if not (place / "bin" / name).exists():
        say(f"installing {name} {version} (once, kept in {CACHE})")
        quietly("/usr/bin/python3", "-m", "venv", "--clear", place)
        quietly(place / "bin/pip", "install", "--quiet", "--only-binary=:all:", f"{name}=={version}")
    return str(place / "bin" / name)


def _prepare(parts: Sequence[str], outcome: Outcome) -> None:
    """Have what these parts need; the images of both suites at once."""
    wanted = [PARTS[name] for name in parts]
    need(
        *dict.fromkeys(program for part in wanted for program in part.programs),
        packages=list(dict.fromkeys(package for part in wanted for package in part.packages)),
        root=any(part.root for part in wanted),
    )
    kinds = sorted({kind for part in wanted for kind in part.images})

    def images(suite: str) -> None:
        for kind in kinds:
            {"base": image.base, "tools": image.tools, "vm": image.vm}[kind](suite)

    if kinds:
        with outcome.part("images"):
            _each(images, SUITES)


def main(argv: list[str]) -> int:
    """Run the parts named (all of a check without a name); what follows `--` is for pytest."""
    # A shell's background command ignores Ctrl-C, and so would all that are tested for what they do then.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    split = argv.index("--") if "--" in argv else len(argv)
    parts = argv[:split] or list(CHECK)
    checks = Checks(argv[split + 1 :])
    outcome, started = checks.outcome, time.monotonic()
    if parts[0] == "lint":
        # Before anything is built: most often it is this that fails.
        _prepare(["lint"], outcome)
        checks.lint()
        parts = parts[1:]
    _prepare(parts, outcome)
    for part in () if "images" in outcome.failed else parts:
        getattr(checks, part)()
    show(outcome.tables() + "\n")
    outcome.keep()
    if outcome.failed:
        say(f"failed: {', '.join(outcome.failed)}")
    print(outcome.closing(time.monotonic() - started), flush=True)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"error: {error}")
