"""Whether a thread has looked at what has woken it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Optional

import trio

from fusefs.mount.arrival import LOOK_S, LOOKS_MAX, looked, run_ns
from tests.harness import wait_for


async def test_who_sleeps_has_looked(autojump_clock: object) -> None:
    began = trio.current_time()
    await looked([1, 2], lambda thread: None)
    await looked([])
    assert trio.current_time() == began


async def test_who_wants_to_run_is_waited_for_until_he_has(autojump_clock: object) -> None:
    began = trio.current_time()

    def running_ns(thread: int) -> Optional[int]:
        looks = round((trio.current_time() - began) / LOOK_S)
        if thread == 1:
            return 500 if looks < 3 else 501
        return 500 if looks < 7 else None

    await looked([1], running_ns)
    assert round((trio.current_time() - began) / LOOK_S) == 3
    began = trio.current_time()
    await looked([1, 2], running_ns)
    assert round((trio.current_time() - began) / LOOK_S) == 7


async def test_nobody_is_waited_for_for_ever(autojump_clock: object) -> None:
    began = trio.current_time()
    await looked([1], lambda thread: 500)
    assert round((trio.current_time() - began) / LOOK_S) == LOOKS_MAX


def test_threads_of_the_kernel() -> None:
    assert run_ns(threading.get_native_id()), "it runs"
    before = run_ns(threading.get_native_id())
    time.sleep(0.002)
    assert run_ns(threading.get_native_id()) != before
    asleep = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1)
    try:
        assert asleep.stdout is not None and asleep.stdout.readline()
        assert wait_for(lambda: run_ns(asleep.pid) is None, 10, "it to sleep")
    finally:
        asleep.kill()
        asleep.wait()
        assert asleep.stdout is not None
        asleep.stdout.close()
    assert run_ns(asleep.pid) is None or os.path.exists(f"/proc/{asleep.pid}")
