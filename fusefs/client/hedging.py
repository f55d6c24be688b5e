"""When a read that takes long is asked a second time, of another replica. Pure.

A request is slow when it takes longer than 95 of 100 did lately. Asking twice is paid from a budget that each request
fills by a twentieth, so the extra load stays below 5 %: when everything is slow, because the servers are busy, nothing
is asked twice for long. A server that was silent several times in a row is asked last for a while.
"""

from __future__ import annotations

from collections import deque

from node.wire.limits import KIB

SHARE = 0.05  # of requests that may be asked again
BUDGET_MAX = 16.0
SAMPLES = 256
SAMPLES_MIN = 32  # before that nobody knows what is slow
RENEW_EVERY = 32  # samples, until the percentile is computed anew
QUANTILE = 0.95
PATIENCE_S_FIRST = 0.5
PATIENCE_S_MIN = 0.002  # below, timers and threads are what is slow
PATIENCE_S_MAX = 2.0
SMALL_BYTES = 128 * KIB
SILENT_MAX = 3  # times in a row, then a server is asked last
AVOIDED_S = 2.0


class _Latencies:
    """Of one class of requests."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._new = 0
        self.patience_s = PATIENCE_S_FIRST

    def add(self, elapsed_s: float) -> None:
        self._samples.append(elapsed_s)
        self._new += 1
        if self._new < RENEW_EVERY or len(self._samples) < SAMPLES_MIN:
            return
        self._new = 0
        ordered = sorted(self._samples)
        at = min(len(ordered) - 1, int(len(ordered) * QUANTILE))
        self.patience_s = min(max(ordered[at], PATIENCE_S_MIN), PATIENCE_S_MAX)


class Hedging:
    """Latencies, the budget and the servers to avoid, of one mount. Times come in as arguments."""

    def __init__(self) -> None:
        self._small = _Latencies()
        self._large = _Latencies()
        self._budget = BUDGET_MAX
        self._silent: dict[int, int] = {}
        self._avoided: dict[int, float] = {}
        self.asked = 0
        self.hedged = 0

    def ask(self) -> None:
        """A first request goes out."""
        self.asked += 1
        self._budget = min(self._budget + SHARE, BUDGET_MAX)

    def spend(self, requests: int = 1) -> bool:
        """Whether so many requests may be asked again; then they count."""
        if self._budget < requests:
            return False
        self._budget -= requests
        self.hedged += requests
        return True

    def patience_s(self, size_bytes: int) -> float:
        """How long to wait for an answer of this size before it counts as slow."""
        return self._class(size_bytes).patience_s

    def answered(self, server: int, size_bytes: int, elapsed_s: float) -> None:
        """A server answered, whatever it said."""
        self._class(size_bytes).add(elapsed_s)
        self._silent.pop(server, None)
        self._avoided.pop(server, None)

    def silent(self, server: int, size_bytes: int, elapsed_s: float, now_s: float) -> None:
        """A server had not answered for so long when nobody waited any more, or it is down."""
        self._class(size_bytes).add(elapsed_s)  # it would have taken at least this long
        count = self._silent[server] = self._silent.get(server, 0) + 1
        if count >= SILENT_MAX:
            self._avoided[server] = now_s + AVOIDED_S

    def order(self, servers: list[int], now_s: float) -> list[int]:
        """The servers, those to avoid behind the others."""
        if not self._avoided:
            return servers
        return sorted(servers, key=lambda server: self._avoided.get(server, 0.0) > now_s)

    def _class(self, size_bytes: int) -> _Latencies:
        return self._small if size_bytes <= SMALL_BYTES else self._large

    def statistics(self) -> dict[str, float]:
        return {
            "asked": self.asked,
            "hedged": self.hedged,
            "patience_small_ms": round(self._small.patience_s * 1000, 3),
            "patience_large_ms": round(self._large.patience_s * 1000, 3),
            "avoided": len(self._avoided),
        }
