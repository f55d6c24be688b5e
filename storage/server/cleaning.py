"""Runs the cleaner beside the service: a step at a time in a thread, at a bounded rate, at leisure when idle."""

from __future__ import annotations

import trio

from node.wire.limits import COMPACTION_BYTES_PER_S
from storage.cleaning import Cleaner

_IDLE_S = 1.0


class Cleaning:
    """Keeps one store clean. ``idle_s``: how long it rests when nothing is due."""

    def __init__(self, cleaner: Cleaner, *, idle_s: float = _IDLE_S) -> None:
        self._cleaner = cleaner
        self._idle_s = idle_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Clean until cancelled; a step that has begun is finished. Raises FatalDiskError, OSError."""
        task_status.started()
        while True:
            written = await trio.to_thread.run_sync(self._cleaner.step)
            await trio.sleep(written / COMPACTION_BYTES_PER_S if written else self._idle_s)

    def statistics(self) -> dict[str, int]:
        """Return counters since the start."""
        return self._cleaner.statistics()
