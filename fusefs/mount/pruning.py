"""Bounds what a mount remembers for the kernel: it has to know each inode that the kernel may name, until the kernel
forgets it, and the kernel forgets nothing while memory is free. So beyond a number of them the kernel is asked to let
go of the oldest that nobody uses (``FUSE_NOTIFY_PRUNE``, Linux 6.18 and later). An older kernel cannot be asked.
"""

from __future__ import annotations

import trio

from fusefs.mount.kernel import KernelView
from fusefs.mount.notify import Notifier

INODE_BYTES = 200  # of memory for one inode that the kernel knows
EVERY_S = 0.5
SLACK = 16  # asked for beyond what is too many: this part of the limit
BATCH = 256  # in one call, which may wait for pages that are read, and so for us: from a thread


class Pruner:
    """Has the kernel forget inodes. ``run`` is a task that it needs."""

    def __init__(self, view: KernelView, notifier: Notifier, bytes_max: int) -> None:
        self._view = view
        self._notifier = notifier
        self._max = max(bytes_max // INODE_BYTES, 1)
        self._asked = 0

    async def run(self) -> None:
        """Serve until cancelled, or until the kernel turns out to be too old."""
        while True:
            await trio.sleep(EVERY_S)
            excess = len(self._view) - self._max
            if excess <= 0:
                continue
            inos = self._view.oldest(excess + self._max // SLACK)
            for at in range(0, len(inos), BATCH):
                batch = inos[at : at + BATCH]
                if not await trio.to_thread.run_sync(self._notifier.prune, batch, abandon_on_cancel=True):
                    return
                self._asked += len(batch)

    def statistics(self) -> dict[str, int]:
        return {"asked": self._asked, "bytes": len(self._view) * INODE_BYTES, "bytes_max": self._max * INODE_BYTES}
