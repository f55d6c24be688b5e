"""Files whose pages programs may have changed by themselves, through a shared writable mapping.

The kernel tells us nothing of mappings, nor of what is written to them before it writes the pages back. Mapping a file
for writing takes a descriptor that is open for reading and writing, and the kernel releases that one only when the last
mapping has gone: so what is open in that way may be mapped, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from fusefs.mount.names import Busy

if TYPE_CHECKING:
    from fusefs.client.handles import Handle


class Dropper(Protocol):
    """Tells the kernel to drop the pages of an inode: soon, or before it returns."""

    def drop(self, ino: int) -> None: ...

    async def drop_now(self, ino: int) -> None: ...


class Mappable:
    """Files that are open for reading and writing, so that programs may have mapped them and changed their pages."""

    def __init__(self, dropper: Dropper, committing: Callable[[int], bool]) -> None:
        """``committing`` tells whether writes to an inode wait for the service."""
        self._dropper = dropper
        self._committing = committing
        self._open: dict[int, int] = {}  # inode -> handles
        self.reading = Busy()  # inodes by requests for which the kernel has pages locked
        self._truncating = Busy()  # and by those while which it writes none back

    def opened(self, handle: Handle) -> None:
        if handle.flags & os.O_ACCMODE == os.O_RDWR:
            self._open[handle.ino] = self._open.get(handle.ino, 0) + 1

    def released(self, handle: Handle) -> None:
        if handle.flags & os.O_ACCMODE == os.O_RDWR:
            self._open[handle.ino] -= 1
            if not self._open[handle.ino]:
                del self._open[handle.ino]

    def among(self, inos: Collection[int]) -> list[int]:
        return [ino for ino in inos if ino in self._open] if self._open else []

    def all(self) -> list[int]:
        return list(self._open)

    @contextmanager
    def truncating(self, ino: int, really: bool) -> Iterator[None]:
        """While a request is answered that may truncate a file: the kernel writes no pages of it back."""
        if not really:
            yield
            return
        self._truncating.enter(ino)
        try:
            yield
        finally:
            self._truncating.leave(ino)

    def read(self, ino: int) -> bool:
        return self.reading.any_of((ino,))

    def locked(self, ino: int) -> bool:
        return self._truncating.any_of((ino,)) or self._committing(ino)

    async def drop(self, inos: list[int]) -> None:
        for ino in inos:
            await self._dropper.drop_now(ino)
