"""Real machines with the real package: one of each suite for all tests, booted when first asked for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from story import assert_nothing_left

from machine import build, nspawn
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


@pytest.fixture(scope="session", params=_SUITES)
def machine(request: pytest.FixtureRequest, deb: Path) -> Iterator[Machine]:
    """A machine of each suite with the package and alice, bob, carol (viewer), dave (admin)."""
    with nspawn.installed(request.param, deb) as machine:
        yield machine


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
    """Mark what uses a virtual machine; keep what shares a machine in one process of xdist.

    What takes long and does not depend on the suite runs in the default one.
    """
    once = [item for item in items if item.get_closest_marker("one_suite")]
    items[:] = [item for item in items if item not in once or f"[{DEFAULT_SUITE}" in item.name]
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        if "vm" in fixtures:
            item.add_marker(pytest.mark.vm)
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            for name, value in item.callspec.params.items():
                if name in {"machine", "vm", "suite"}:
                    group = f"vm-{value}" if "vm" in fixtures else str(value)
                    item.add_marker(pytest.mark.xdist_group(group))
