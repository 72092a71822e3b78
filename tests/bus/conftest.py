"""Fixtures of the tests on a private bus."""

from house import address, house_fixture

__all__ = ["address", "house_fixture"]
