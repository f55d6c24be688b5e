"""Tell the kernel to drop pages, from a thread: the call waits for page locks that a READ in flight may hold."""

from __future__ import annotations

import errno

import pyfuse3
import trio

from fusefs.mount.crossing import Crossings
from node.host.logging import get_logger

log = get_logger(__name__)


class PageDropper:
    """Inodes whose cached pages must go. ``drop`` never waits; ``run`` is the task that tells the kernel."""

    def __init__(self, crossings: Crossings | None = None) -> None:
        self._crossings = crossings or Crossings()
        self._pending: set[int] = set()
        self._wake = trio.Event()
        self._dropped = 0

    def drop(self, ino: int) -> None:
        """Ask for the pages of one inode to be dropped soon. Bounded by the inodes that the kernel knows."""
        self._pending.add(ino)
        self._wake.set()

    async def drop_now(self, ino: int) -> None:
        """Have the pages of one inode dropped; returns when they are gone.

        For handlers of lookup and getattr only, which the kernel calls without holding a page.
        """
        await trio.to_thread.run_sync(self._drop_all, [ino], abandon_on_cancel=True)
        self._dropped += 1

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            inos, self._pending = self._pending, set()
            await trio.to_thread.run_sync(self._drop_all, sorted(inos), abandon_on_cancel=True)
            self._dropped += len(inos)

    def statistics(self) -> dict[str, int]:
        return {"pending": len(self._pending), "dropped": self._dropped}

    def _drop_all(self, inos: list[int]) -> None:
        for ino in inos:
            try:
                with self._crossings.invalidating(ino):
                    pyfuse3.invalidate_inode(ino)
            except OSError as error:
                if error.errno != errno.ENOENT:  # the kernel has forgotten it, so there is nothing to drop
                    log.warning("dropping pages failed", ino=ino, error=str(error))
