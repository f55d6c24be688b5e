"""What a system costs while a workload runs on it: CPU seconds and anonymous memory of all its processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from tests.bench.systems import Plain
from tests.harness import rss_anon_bytes

EVERY_S = 0.5
TICKS = os.sysconf("SC_CLK_TCK")


def _cpu_s(pid: int) -> tuple[int, float] | None:
    """When a process began, in ticks, and how much CPU it has taken since. None: it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return int(words[19]), (int(words[11]) + int(words[12])) / TICKS


class Meter:
    """Between enter and exit: ``cpu_s`` and ``rss_bytes``, the highest sum seen. Processes come and go meanwhile."""

    def __init__(self, system: Plain) -> None:
        self._system = system
        self._first: dict[tuple[int, int], float] = {}
        self._last: dict[tuple[int, int], float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.rss_bytes = 0

    @property
    def cpu_s(self) -> float:
        return sum(last - self._first[key] for key, last in self._last.items())

    def _sample(self, *, begin: bool = False) -> None:
        rss = 0
        for pid in self._system.pids():
            seen = _cpu_s(pid)
            if seen is None:
                continue
            key = pid, seen[0]
            self._first.setdefault(key, seen[1] if begin else 0.0)
            self._last[key] = seen[1]
            rss += rss_anon_bytes(pid)
        self.rss_bytes = max(self.rss_bytes, rss)

    def _watch(self) -> None:
        while not self._end.wait(EVERY_S):
            self._sample()

    def __enter__(self) -> Meter:
        self._sample(begin=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self._sample()
