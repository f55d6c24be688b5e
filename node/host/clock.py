"""Clocks as arguments: nothing that decides reads the time by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """``monotonic_s`` never goes back and counts while the machine sleeps; ``wall_ns`` may jump either way."""

    def monotonic_s(self) -> float: ...

    def wall_ns(self) -> int: ...


class SystemClock:
    """The real ones: CLOCK_BOOTTIME and CLOCK_REALTIME."""

    # In C as a whole: a mount asks a dozen times for each file that it makes
    monotonic_s: Callable[[], float] = staticmethod(partial(time.clock_gettime, time.CLOCK_BOOTTIME))

    def wall_ns(self) -> int:
        return time.time_ns()


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, monotonic_s: float = 0.0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._monotonic_s = monotonic_s
        self._wall_ns = wall_ns

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        assert seconds >= 0, seconds
        self._monotonic_s += seconds
        self._wall_ns += round(seconds * 1e9)

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, forward or back, while no time passes."""
        self._wall_ns += round(seconds * 1e9)
