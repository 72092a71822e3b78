"""How a run of the checks went: counts as pytest counts, and where the time went."""

import json
import os
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from machine.host import TREE, HostError, say
from machine.progress import clock, folder

_printing = threading.Lock()


class Outcome:
    """Grows with each part; nothing in here makes a run fail but a part that did."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []
        self._files: defaultdict[str, float] = defaultdict(float)
        self._parts: dict[str, tuple[float, float | None]] = {}
        self._tests: list[tuple[float, str]] = []
        self._folders: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str, budget: float | None = None) -> Iterator[None]:
        """Go on after a part that failed: one run shows everything there is to mend."""
        say(f"{name} …")
        before, began = self._bad(), time.monotonic()
        try:
            yield
        except HostError as error:
            self.failed.append(name)
            if self._bad() == before:
                self.counts["error"] += 1
            say(f"{name}: FAILED\n{error}")
        else:
            say(f"{name}: ok")
        self._parts[name] = (time.monotonic() - began, budget)

    def count(self, output: str) -> None:
        """Add up what pytest's closing line says."""
        last = output.strip().rpartition("\n")[2]
        for number, word in re.findall(r"(\d+) (passed|failed|errors?|xfailed|xpassed)", last):
            self.counts[word.replace("errors", "error")] += int(number)

    def add(self, suite: str, seconds: dict[str, float]) -> None:
        """Take in how long each test of a run took; the suite is that of the run, or of each test."""
        for name, took in seconds.items():
            where = suite or next((one for one in ("bookworm", "trixie") if f"[{one}" in name), "")
            self._files[name.partition("::")[0]] += took
            self._tests.append((took, f"{name.partition('@')[0]} {where if suite else ''}".rstrip()))
            self._folders[f"{folder(name)} {where}".rstrip()].append(took)

    def _bad(self) -> int:
        return self.counts["failed"] + self.counts["error"]

    # -- the end -------------------------------------------------------------------------------------

    def tables(self) -> str:
        """The slowest tests, the sum of each folder on each suite, and the parts beside their budgets."""
        lines = []
        if self._tests:
            lines += ["", "slowest tests"]
            lines += [f"{took:8.1f} s  {name}" for took, name in sorted(self._tests, reverse=True)[:10]]
            lines += ["", "tests of         number  seconds, added up"]
            lines += [f"{name:15} {len(took):7}  {sum(took):7.0f}" for name, took in sorted(self._folders.items())]
        lines += ["", f"{'part':42} seconds  budget on a quick machine with warm images"]
        for name, (took, budget) in self._parts.items():
            over = "  over" if budget is not None and took > budget else ""
            lines.append(f"{name:42} {took:7.0f}  {'' if budget is None else f'{budget:6.0f}'}{over}")
        return "\n".join(lines)

    def keep(self) -> None:
        """Write down how long each file of tests took, beside the package of the same tree."""
        if self._files and os.access(TREE, os.W_OK):
            (TREE / "build").mkdir(exist_ok=True)
            rounded = {name: round(took, 1) for name, took in sorted(self._files.items())}
            (TREE / "build" / "seconds.json").write_text(json.dumps(rounded, indent=1) + "\n")

    def closing(self, seconds: float) -> str:
        """One line as pytest's, of all its runs together."""
        words = [
            f"{self.counts[word]} {word}"
            for word in ("failed", "passed", "xfailed", "xpassed", "error")
            if self.counts[word]
        ]
        text = f"{', '.join(words) or 'no tests ran'} in {seconds:.2f}s"
        return f" {text} ".center(100, "=")


class Repeats:
    """What a soak did: how often each test ran, for how long, and in which rounds it failed."""

    def __init__(self) -> None:
        self._took: defaultdict[str, list[float]] = defaultdict(list)
        self._failed: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, number: int, seconds: dict[str, float], failed: list[str]) -> None:
        """Take in a round."""
        for name, took in seconds.items():
            self._took[name.partition("@")[0]].append(took)
        for name in dict.fromkeys(failed):
            self._failed[name.partition("@")[0]].append(number)

    def table(self, rounds: int, seconds: float) -> str:
        """A line a test."""
        lines = ["", f"{rounds} rounds in {clock(seconds)}", "   times  failed  seconds each"]
        for name, took in self._took.items():
            bad = self._failed.get(name, [])
            where = f"  (in round {', '.join(map(str, bad))})" if bad else ""
            lines.append(f"{len(took):8} {len(bad):7} {sum(took) / len(took):13.1f}  {name}{where}")
        return "\n".join(lines)


def show(text: str) -> None:
    """A block of text, whole, whatever else is printed at the same time."""
    with _printing:
        sys.stdout.write(text)
        sys.stdout.flush()
