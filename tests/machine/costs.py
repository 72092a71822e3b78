"""About how long the tests of a file take on one suite of a quick machine, in seconds.

What takes longest begins first, so that nothing long is left for the end, and the time left can be estimated. Only
the order depends on it: a file that is not here, or a figure that is off, costs a minute at worst.
"""

_SECONDS = {
    "test_queue": 25,
}
_A_TEST = 0.5


def of_file(path: str, count: int) -> float:
    """What `count` tests of a file will take together."""
    return _SECONDS.get(path.rpartition("/")[2].removesuffix(".py"), _A_TEST * count)


def of(nodeid: str) -> float:
    return _A_TEST
