"""Errors of write-back of one file, and who has been told of them. Pure.

Each open handle hears of each error once: at its next write, fsync or close. An error that a later attempt made good
is withdrawn, because nothing was lost; a loss never is.
"""

from __future__ import annotations

from typing import Optional

from node.wire.errors import FsError


class Ledger:
    """Numbers errors; a handle keeps the number that it has seen (``mark``)."""

    def __init__(self) -> None:
        self._count = 0
        self._error: Optional[FsError] = None
        self._lost: Optional[FsError] = None

    @property
    def last(self) -> Optional[FsError]:
        """The newest error that was not made good."""
        return self._error

    def mark(self) -> int:
        """Return what a handle that is opened now has seen: everything."""
        return self._count

    def record(self, error: FsError, *, lost: bool = False) -> None:
        """Note that write-back failed; ``lost``: the data is gone."""
        self._count += 1
        self._error = error
        if lost:
            self._lost = error

    def resolve(self) -> None:
        """Everything is written now."""
        self._error = self._lost

    def pending(self, seen: int) -> Optional[FsError]:
        """Return the error that a handle must still be told, or None. The caller then stores ``mark()``."""
        return self._error if seen < self._count else None
