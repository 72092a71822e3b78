"""Real machines with the real package: one of each suite for all tests, booted when first asked for."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from story import assert_nothing_left

from machine import build, costs, nspawn, scale
from machine import vm as vms
from machine.host import DEFAULT_SUITE, SUITES, need
from machine.nspawn import Machine
from machine.vm import VM

# JOBSVC_SUITES=trixie for a quicker look; `make check` runs all.
_SUITES = os.environ.get("JOBSVC_SUITES", " ".join(SUITES)).split()


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package under test: JOBSVC_DEB, or built from the tree as it is."""
    need("mmdebstrap", "systemd-nspawn", "unshare", "git")
    given = os.environ.get("JOBSVC_DEB")
    return Path(given).resolve() if given else build.package(DEFAULT_SUITE)


@pytest.fixture(scope="session")
def machines(deb: Path) -> Iterator[Callable[[str], Machine]]:
    """The machine of each suite: booted when first asked for, kept until all tests are done."""
    booted: dict[str, Machine] = {}
    with ExitStack() as stack:

        def machine_of(suite: str) -> Machine:
            if suite not in booted:
                booted[suite] = stack.enter_context(nspawn.installed(suite, deb))
            return booted[suite]

        yield machine_of


@pytest.fixture(scope="session", params=_SUITES)
def machine(request: pytest.FixtureRequest, machines: Callable[[str], Machine]) -> Machine:
    """A machine of each suite with the package and alice, bob, carol (viewer), dave (admin)."""
    return machines(request.param)


@pytest.fixture
def nothing_left(machine: Machine) -> Iterator[None]:
    """After the test: no job, no scope, no run directory, and nothing that surprised the service."""
    yield
    assert_nothing_left(machine)


@pytest.fixture(scope="session", params=_SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """The name of each suite, for tests that boot machines of their own."""
    return str(request.param)


@pytest.fixture
def fresh(suite: str) -> Iterator[Machine]:
    """A bare machine of each suite, booted, without the package: for this test alone."""
    need("mmdebstrap", "systemd-nspawn", "unshare")
    with Machine(suite) as machine:
        machine.boot()
        yield machine


@pytest.fixture(scope="session", params=_SUITES)
def vm(request: pytest.FixtureRequest, deb: Path) -> Iterator[VM]:
    """A virtual machine of each suite with the package and the users; limits hold there."""
    need("mmdebstrap", "qemu-system-x86_64", "mke2fs", "unshare", "git")
    with vms.installed(request.param, deb) as machine:
        yield machine


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its marks and its group, which runs in one process of xdist; the costliest groups come first.

    A group is a file on one suite. Those in virtual machines are one group: two emulators at once have the processors
    of this machine to themselves, and what else runs beside them is late.
    """
    suites = {item: _suite_of(item) for item in items}
    if not scale.ROUND:
        once = [item for item in items if item.get_closest_marker("one_suite")]
        items[:] = [item for item in items if item not in once or suites[item] in ("", DEFAULT_SUITE)]
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        name = f"{suites[item]}-{item.path.stem}"
        if "vm" in getattr(item, "fixturenames", []):
            item.add_marker(pytest.mark.vm)
            name = "vm"
        item.add_marker(pytest.mark.xdist_group(name))
        groups.setdefault(name, []).append(item)
    groups.get("vm", []).sort(key=lambda item: suites[item])
    items[:] = [item for group in sorted(groups.values(), key=_cost, reverse=True) for item in group]


def _suite_of(item: pytest.Item) -> str:
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        found = (item.callspec.params.get(name) for name in ("machine", "vm", "suite"))
        return next((str(suite) for suite in found if suite), "")
    return ""


def _cost(group: list[pytest.Item]) -> float:
    if group[0].get_closest_marker("vm"):
        return float("inf")
    return costs.of_file(group[0].path.stem, len(group))
