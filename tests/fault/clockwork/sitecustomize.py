"""A machine's clocks, set by a test, and a look inside: found on PYTHONPATH by every Python program started with it.

The file that FUSEFS_TEST_CLOCK names holds two numbers, nanoseconds that are added to CLOCK_REALTIME and to
CLOCK_BOOTTIME, and may change at any moment. This is what ``date --set`` and a suspended machine do to a program; the
monotonic clock, which neither can move, is given another origin by a time namespace instead.

At SIGUSR2 a program writes what each of its trio tasks waits for into the file FUSEFS_TEST_CLOCK.PID.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from typing import Any

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


def _frames(coroutine: Any) -> list[str]:
    found = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        frame = frame or getattr(coroutine, "ag_frame", None)
        if frame is not None:
            found.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}")
        for link in ("cr_await", "gi_yieldfrom", "ag_await"):
            if hasattr(coroutine, link):
                coroutine = getattr(coroutine, link)
                break
        else:
            coroutine = None
    return found


def _tasks(path: str) -> None:
    import trio  # no program of this cluster runs without it, and others must not pay for it

    with open(path, "w") as file:
        todo = [trio.lowlevel.current_root_task()]
        while todo:
            task = todo.pop()
            if task is None:
                continue
            print(task.name, *_frames(task.coro), sep="\n    ", file=file)
            todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    os.rename(path, path + ".tasks")


if "FUSEFS_TEST_CLOCK" in os.environ:
    _install(os.environ["FUSEFS_TEST_CLOCK"])
    signal.signal(signal.SIGUSR2, lambda *_: _tasks(f"{os.environ['FUSEFS_TEST_CLOCK']}.{os.getpid()}"))
