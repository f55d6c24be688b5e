"""Keeps what happens a thousand times from writing a thousand lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Optional

_SUBJECTS_MAX = 1024


class Sparing:
    """Says whether to speak of a subject now: the first time, and then once every ``interval_s``."""

    def __init__(self, interval_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._spoken: dict[Hashable, tuple[float, int]] = {}  # when last, and how often asked since

    def ask(self, subject: Hashable) -> Optional[int]:
        """Return how often the answer was None since the last time it was not; None for: not now."""
        now_s = self._clock()
        said_s, silent = self._spoken.get(subject, (float("-inf"), 0))
        if now_s - said_s < self._interval_s:
            self._spoken[subject] = said_s, silent + 1
            return None
        if len(self._spoken) >= _SUBJECTS_MAX:
            self._spoken.clear()
        self._spoken[subject] = now_s, 0
        return silent


def and_more(silent: int) -> str:
    """Return the end of such a line."""
    return f" (and {silent} more since the last such line)" if silent else ""
