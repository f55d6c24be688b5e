"""How far the log may reach back: not further than so many bytes, however few entries they are. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from metadata.raft.messages import Entry
from node.wire.limits import LOG_TRAILING_BYTES, MIB

_STEP_BYTES = 4 * MIB  # sizes are summed up in such steps
SLACK = 4  # a quarter of the bound beyond it: compaction costs a sync, so it is not for less


class Trail:
    """Sizes of the entries that were appended by this process; what was there before counts nothing, and goes first."""

    def __init__(self, bytes_max: int = LOG_TRAILING_BYTES) -> None:
        self._bytes_max = bytes_max
        self._step_bytes = min(_STEP_BYTES, bytes_max // 16)
        self._steps: deque[tuple[int, int]] = deque()  # (index of the last entry, bytes) of each step
        self._bytes = 0  # of all steps
        self._open_bytes = 0  # since the last step

    def appended(self, entries: Sequence[Entry]) -> None:
        """Entries were appended; those of their index and above that were there before are gone."""
        if not entries:
            return
        while self._steps and self._steps[-1][0] >= entries[0].index:
            self._bytes -= self._steps.pop()[1]
        self._open_bytes += sum([len(entry.data) for entry in entries])
        if self._open_bytes >= self._step_bytes:
            self._steps.append((entries[-1].index, self._open_bytes))
            self._bytes += self._open_bytes
            self._open_bytes = 0

    def droppable(self) -> int:
        """The index up to which entries should go, where they have become too large together; 0: nowhere."""
        if self._bytes <= self._bytes_max + self._bytes_max // SLACK:
            return 0
        index, size = 0, self._bytes
        for last, step in self._steps:
            if size <= self._bytes_max:
                break
            index, size = last, size - step
        return index

    def dropped(self, index: int) -> None:
        """Entries up to ``index`` are gone."""
        while self._steps and self._steps[0][0] <= index:
            self._bytes -= self._steps.popleft()[1]
