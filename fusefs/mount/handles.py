"""The numbers that the kernel knows our open files and directories by."""

from __future__ import annotations

from typing import Generic, TypeVar

from node.wire.errors import Code, FsError
from node.wire.limits import OPEN_HANDLES_MAX

T = TypeVar("T")


class HandleTable(Generic[T]):
    """Handles by number. A number is not used again while the table lives, so a stray late request finds nothing."""

    def __init__(self, handles_max: int = OPEN_HANDLES_MAX) -> None:
        self._handles: dict[int, T] = {}
        self._max = handles_max
        self._next = 1

    def __len__(self) -> int:
        return len(self._handles)

    def check_room(self) -> None:
        """Raise OVERLOADED when no further handle may be opened; asked before the file is."""
        if len(self._handles) >= self._max:
            raise FsError(Code.OVERLOADED, f"{self._max} files are open on this mount")

    def add(self, handle: T, mark: int = 0) -> int:
        """Return the number that the kernel is given, with ``mark`` in it."""
        number = self._next | mark
        self._next += 1
        self._handles[number] = handle
        return number

    def __getitem__(self, number: int) -> T:
        """Raise BAD_HANDLE for a number that is not open."""
        try:
            return self._handles[number]
        except KeyError:
            raise FsError(Code.BAD_HANDLE, f"handle {number} is not open") from None

    def remove(self, number: int) -> T:
        """Take a handle out, for release. Raises BAD_HANDLE."""
        handle = self[number]
        del self._handles[number]
        return handle
