"""Open files and directories of this mount."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from node.wire.limits import BLOCK_BYTES_MAX

if TYPE_CHECKING:
    from fusefs.client.files import File


class Stream:
    """Whether someone reads in order, and so how far ahead to fetch. Pure.

    The window doubles while reads continue one another; the kernel's own read-ahead may send them a little out of
    order, so what lies within one block of the expected place counts as in order.
    """

    __slots__ = ("_next", "_window")

    def __init__(self) -> None:
        self._next = 0
        self._window = 0

    def reading(self, offset: int, length: int, window_max: int) -> int:
        """Note a read and return how many chunks beyond it to fetch; 0: a random read."""
        if abs(offset - self._next) <= (BLOCK_BYTES_MAX if self._window else 0):
            self._window = min(max(1, 2 * self._window), window_max)
            self._next = max(self._next, offset + length)
        else:
            self._window = 0
            self._next = offset + length
        return self._window


class Handle:
    """One open file description: ``ino`` and the flags it was opened with. Opaque to the mount otherwise, but for
    what is the mount's own: ``direct``, the kernel caches nothing that is read or written with it; ``uid``, who opened
    it."""

    __slots__ = ("ino", "flags", "append", "direct", "uid", "file", "seen", "stream", "closed")

    def __init__(self, file: File, flags: int) -> None:
        self.ino = file.ino
        self.flags = flags
        self.append = bool(flags & os.O_APPEND)
        self.direct = False
        self.uid = 0
        self.file = file
        self.seen = file.ledger.mark()  # errors of write-back that this handle has been told of
        self.stream = Stream()
        self.closed = False

    def placed(self) -> Handle:
        """This; where it appends, one of the same file that writes where it is told to: pages of a shared mapping have
        their place. What becomes of those is told by fsync and close of this one."""
        if not self.append:
            return self
        placed = Handle(self.file, self.flags & ~os.O_APPEND)
        placed.seen = self.seen
        return placed
