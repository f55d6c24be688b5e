"""Files that are known to have no capabilities, which the kernel asks for before each write to them.

The extension answers that without waking Python, for as long as a lease says so and nobody takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fusefs.client.fileio import CAPABILITY
from fusefs.mount.kernel import MARGIN_S


class Table(Protocol):
    """Where it is kept: fusefs.mount._fuseops."""

    def set_incapable(self, ino: int, left_s: float, /) -> None: ...

    def none_incapable(self) -> None: ...


class Incapable:
    """``lacks_s`` tells for how long it is certain that an inode lacks an extended attribute."""

    def __init__(self, table: Table, lacks_s: Callable[[int, bytes], float]) -> None:
        self._table = table
        self._lacks_s = lacks_s

    def look(self, ino: int) -> None:
        """It may be known by now."""
        left_s = self._lacks_s(ino, CAPABILITY) - MARGIN_S
        if left_s > 0:
            self._table.set_incapable(ino, left_s)

    def forget(self, inos: Iterable[int]) -> None:
        for ino in inos:
            self._table.set_incapable(ino, 0.0)

    def forget_all(self) -> None:
        self._table.none_incapable()
