"""Fixtures: a private bus, the service played on it, jobctl run against it; a stage for supervisors."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fake_service import FakeService, Jobctl, private_bus
from hypothesis import settings
from stage import Stage, staged

# Fixtures that start processes; all else is one module and nothing around it.
_WIDE = {"bus", "service", "jobctl", "stage", "shared"}

settings.register_profile("unhurried", deadline=None)  # the machine may stall in any example
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a private bus."""
    with private_bus(tmp_path_factory.mktemp("bus")) as address:
        yield address


@pytest.fixture
def service(bus: str) -> Iterator[FakeService]:
    """org.jobsvc1 on the private bus."""
    fake = FakeService(bus)
    yield fake
    fake.held.set()
    fake.leave()


@pytest.fixture
def jobctl(bus: str) -> Jobctl:
    """jobctl as a process of its own, talking to the private bus."""
    return Jobctl(bus)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="module")
def shared() -> Iterator[Stage]:
    """The stage of all tests of a file."""
    with staged() as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Stage:
    """The same, with nothing left of the test before."""
    shared.fresh()
    return shared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs nothing but Python."""
    for item in items:
        if not _WIDE.intersection(getattr(item, "fixturenames", [])) and not item.get_closest_marker("root"):
            item.add_marker(pytest.mark.pure)
