"""About how long the tests of a file take on one suite of a quick machine, in seconds.

What takes longest begins first, so that nothing long is left for the end, and the time left can be estimated. Nothing
else depends on it: a figure that is off costs a minute at worst. `build/seconds.json` has those of the last run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

_SECONDS = {
    "test_accidents_around": 40,
    "test_accidents_crashes": 15,
    "test_accidents_disk": 25,
    "test_accidents_jobs": 15,
    "test_accidents_journal": 50,
    "test_accidents_package": 60,
    "test_accidents_shutdown": 15,
    "test_bus_live": 10,
    "test_bytes": 35,
    "test_ends": 20,
    "test_floods": 60,
    "test_foreign": 200,
    "test_foreign_files": 150,
    "test_fuzz": 15,
    "test_history": 20,
    "test_hooks": 12,
    "test_intruders": 20,
    "test_jobctl": 10,
    "test_live": 15,
    "test_others_output": 16,
    "test_permissions": 12,
    "test_questions": 10,
    "test_queue": 25,
    "test_quotas": 14,
    "test_restart": 25,
    "test_security": 30,
}
_A_TEST = 0.4
_A_TEST_IN_A_VM = 25.0


def of_file(name: str, count: int) -> float:
    """What so many tests of a file will take together, on one suite."""
    return _SECONDS.get(name, _A_TEST * count)


def of_tests(ids: Iterable[str]) -> dict[str, float]:
    """What each of these will take, as far as that is known."""
    costs: dict[str, float] = {}
    files: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in ids:
        if name.endswith("@vm"):
            costs[name] = _A_TEST_IN_A_VM
        else:
            path, _, test = name.partition("::")
            files[path, test.partition("[")[2].partition("-")[0].partition("]")[0]].append(name)
    several = Counter(path for path, _ in files)
    for (path, suite), names in files.items():
        file = path.rpartition("/")[2].removesuffix(".py")
        whole = of_file(file, len(names)) if several[path] == 1 or suite in {"bookworm", "trixie"} else 0.0
        costs.update(dict.fromkeys(names, whole / len(names) or _A_TEST))
    return costs
