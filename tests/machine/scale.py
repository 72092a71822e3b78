"""How much a test does: what proves a promise once in `make check`, as much as there is time for in `make soak`."""

import os
from typing import TypeVar

_T = TypeVar("_T")

# Which round of a soak this is, from 1; none in a check.
ROUND = int(os.environ.get("JOBSVC_SOAK", "0"))


def times(check: _T, soak: _T) -> _T:
    """The one of these that is wanted now: a number of repetitions, a size, a list of cases."""
    return soak if ROUND else check


def seed(first: int) -> int:
    """Always the same in a check; another one in each round of a soak, which says which round failed."""
    return first + ROUND
