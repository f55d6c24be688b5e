"""Raft's clock: real time in, ticks out, with the time that this process did not run taken out.

A process that was stopped (SIGSTOP, a suspended host, a long write) wakes up with a clock far ahead and its peers'
heartbeats still unread in its sockets. Were all those ticks delivered, it would believe its leader dead and campaign.
So at most one tick is due a turn, and the first turn after a stall has none: it reads the messages first.

``running_s`` counts the time that was not lost. It never runs faster than the machine's clock, which is the safe side
for whoever waits for others to lose something (a session, a lease).
"""

from __future__ import annotations


class Ticker:
    """Pure: every call is told the time, in seconds of one monotonic clock."""

    def __init__(self, interval_s: float, now_s: float) -> None:
        self.interval_s = interval_s
        self.next_s = now_s + interval_s
        self.ticks = 0
        self.stalls = 0
        self.lost_s = 0.0
        self.lag_s_max = 0.0
        self._start_s = now_s
        self._stalled = False

    def due(self, now_s: float) -> bool:
        """Return whether one tick is to be delivered now."""
        late_s = now_s - self.next_s
        if late_s < 0.0:
            return False
        self.lag_s_max = max(self.lag_s_max, late_s)
        if late_s < self.interval_s:
            self._stalled = False
            self.next_s += self.interval_s
            self.ticks += 1
            return True
        # The second late turn in a row is a busy process, not a stopped one: time passes, slowly.
        busy, self._stalled = self._stalled, True
        self.lost_s += late_s
        self.next_s = now_s + self.interval_s
        if not busy:
            self.stalls += 1
            return False
        self.ticks += 1
        return True

    def running_s(self, now_s: float) -> float:
        """Return the seconds since the start without the lost ones; never goes back."""
        return min(now_s, self.next_s) - self._start_s - self.lost_s

    def statistics(self) -> dict[str, float]:
        return {
            "ticks": self.ticks,
            "stalls": self.stalls,
            "lost_s": self.lost_s,
            "lag_s_max": self.lag_s_max,
        }
