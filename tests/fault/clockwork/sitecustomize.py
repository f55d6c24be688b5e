"""A machine's clocks, set by a test: found on PYTHONPATH by every Python program that is started with it.

The file that FUSEFS_TEST_CLOCK names holds two numbers, nanoseconds that are added to CLOCK_REALTIME and to
CLOCK_BOOTTIME, and may change at any moment. This is what ``date --set`` and a suspended machine do to a program; the
monotonic clock, which neither can move, is given another origin by a time namespace instead.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

_OFFSETS = struct.Struct("<qq")


def _install(path: str) -> None:
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), _OFFSETS.size, access=mmap.ACCESS_READ)
    wall_ns, clock_ns = time.time_ns, time.clock_gettime_ns
    which = {time.CLOCK_REALTIME: 0, time.CLOCK_BOOTTIME: 1}

    def clock_gettime_ns(clock: int) -> int:
        place = which.get(clock)
        return clock_ns(clock) + (_OFFSETS.unpack_from(shared)[place] if place is not None else 0)

    time.clock_gettime_ns = clock_gettime_ns
    time.clock_gettime = lambda clock: clock_gettime_ns(clock) / 1e9
    time.time_ns = lambda: wall_ns() + int(_OFFSETS.unpack_from(shared)[0])
    time.time = lambda: time.time_ns() / 1e9


if "FUSEFS_TEST_CLOCK" in os.environ:
    _install(os.environ["FUSEFS_TEST_CLOCK"])
