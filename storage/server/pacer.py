"""Keeps background work below so many bytes a second."""

from __future__ import annotations

import trio


class Pacer:
    """``spend`` returns when the bytes before these have had their time. Any number of tasks share the rate; what was
    not used is not saved up."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_s = 0.0  # on trio's clock: when all that was spent is paid for

    async def spend(self, size_bytes: int) -> None:
        """Pay for this many bytes. Cancelled, they are paid for all the same."""
        now_s = trio.current_time()
        wait_s = self._free_s - now_s
        self._free_s = max(self._free_s, now_s) + size_bytes / self.bytes_per_s
        await trio.sleep(max(0.0, wait_s))
