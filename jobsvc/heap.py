"""What the launcher has in memory when it forks: shared with all supervisors until somebody writes to it."""

from __future__ import annotations

import ctypes
import gc
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# CPython's small objects: multiples of 16 up to 512 bytes; what an empty bytes object takes; and how
# much of each size is enough (measured: more gains nothing).
SMALLEST: Final = 16
LARGEST: Final = 512
EMPTY: Final = 33
FILL: Final = 8192
_filling: list[bytes] = []


def settle() -> None:
    """What is in memory now is shared with all supervisors; see to it that little gets copied.

    New objects would fill the gaps between the old ones, and each page touched is a page of one's
    own (and 3 us). So the gaps are filled first: what comes then comes together, on new pages.
    """
    immortalize()
    gc.collect()
    for size in range(3 * SMALLEST, LARGEST + 1, SMALLEST):
        _filling.extend(bytes(size - EMPTY) for _ in range(FILL // size))
    gc.freeze()


def immortalize() -> None:
    """Give all objects there are the reference count of None, which CPython never writes to (PEP 683).

    Counting references copies pages of objects that nobody changes. Only where None has such a
    count and it is known to be 32 bits at the beginning of each object.
    """
    if not (sys.implementation.name == "cpython" and (3, 12) <= sys.version_info < (3, 14)):
        return
    immortal = ctypes.c_uint32.from_address(id(None)).value
    pending: list[object] = gc.get_objects()
    while pending:
        thing = pending.pop()
        count = ctypes.c_uint32.from_address(id(thing))
        if count.value != immortal and not isinstance(thing, types.FrameType):
            count.value = immortal
            pending += gc.get_referents(thing)
            if isinstance(thing, types.CodeType):  # not the collector's business
                pending += (thing.co_consts, thing.co_names, thing.co_name, thing.co_qualname, thing.co_filename)
