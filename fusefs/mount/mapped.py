"""Files whose pages programs may have mapped, and requests for which the kernel has pages locked.

The kernel tells us nothing of mappings, nor of what is written to them before it writes the pages back. Mapping a file
takes a descriptor that is open for reading, and for a shared writable mapping one that is open for writing too; the
kernel releases that one only when the last mapping has gone. So what is open in that way may be mapped, and nothing
else.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Optional, Protocol

import trio

from fusefs.mount.mappings import mapped
from fusefs.mount.names import Busy

if TYPE_CHECKING:
    from fusefs.client.handles import Handle


ASKS_S = 1.0  # who reads a file that others change reads it again within so much time, or seldom
ASKED_MAX = 4096
MAPS_S = 0.1  # to look at lists of mappings


class Dropper(Protocol):
    """Tells the kernel to drop the pages of an inode: soon, or before it returns."""

    def drop(self, ino: int) -> None: ...

    async def drop_now(self, ino: int) -> None: ...


class Held:
    """Pages from ``start`` to ``end`` that the kernel may have locked until a request is answered, which ``fills`` them
    or writes to a part of them. ``overtaken``: a recall has gone on without them, so others may have changed them."""

    __slots__ = ("start", "end", "fills", "overtaken")

    def __init__(self, start: int, end: int, fills: bool) -> None:
        self.start = start - start % mmap.PAGESIZE
        self.end = end + -end % mmap.PAGESIZE
        self.fills = fills
        self.overtaken = False


class Piece(NamedTuple):
    """A part of a file; ``end`` None: to its end. ``held``: some of it may be locked."""

    start: int
    end: Optional[int]
    held: bool


class Mappable:
    """Files that are open, so that programs may have mapped them."""

    def __init__(self) -> None:
        self.device = ""  # of the mount, as in a process's list of mappings; "": not known
        self._open: dict[int, int] = {}  # inode -> handles for reading and writing
        self._readable: dict[int, dict[Handle, int]] = {}  # inode -> handles for reading, and who has opened them
        self._held: dict[int, list[Held]] = {}
        self._filled: set[int] = set()  # open inodes of which the kernel may have pages
        self._truncating = Busy()  # inodes by requests while which the kernel writes no pages back
        self.asking = Busy()  # and by questions for their size, of who reads them by read(2)
        self._asked: OrderedDict[int, float] = OrderedDict()  # inode -> when it was asked about last

    def opened(self, handle: Handle, thread: int, *, kept: bool = True) -> None:
        """``kept``: the kernel keeps the pages that it has."""
        mode = handle.flags & os.O_ACCMODE
        if mode != os.O_WRONLY:
            self._readable.setdefault(handle.ino, {})[handle] = thread
        if kept:
            self.fill(handle.ino)
        if mode == os.O_RDWR:
            self._open[handle.ino] = self._open.get(handle.ino, 0) + 1

    def released(self, handle: Handle) -> None:
        mode = handle.flags & os.O_ACCMODE
        if mode != os.O_WRONLY:
            del self._readable[handle.ino][handle]
            if not self._readable[handle.ino]:
                del self._readable[handle.ino]
        if mode == os.O_RDWR:
            self._open[handle.ino] -= 1
            if not self._open[handle.ino]:
                del self._open[handle.ino]
        if handle.ino not in self._readable:
            self.empty(handle.ino)  # what is kept of it is told at the next opening

    def fill(self, ino: int) -> None:
        """The kernel is about to have pages of this, or has some still."""
        if ino in self._readable:
            self._filled.add(ino)

    def empty(self, ino: int) -> None:
        """It is about to have none, but for what it fills from now on."""
        self._filled.discard(ino)

    def filled(self, inos: Collection[int]) -> list[int]:
        """Those of these open inodes of which it may have some."""
        return [ino for ino in inos if ino in self._filled]

    def asked(self, ino: int, now_s: float) -> None:
        """Somebody who reads an inode has had the kernel ask for its size."""
        if ino in self._readable:
            self._asked[ino] = now_s
            self._asked.move_to_end(ino)
            if len(self._asked) > ASKED_MAX:
                self._asked.popitem(last=False)

    def asks(self, ino: int, now_s: float) -> bool:
        """Whether that is likely to happen again soon."""
        return self.asking.any_of((ino,)) or now_s < self._asked.get(ino, now_s - ASKS_S) + ASKS_S

    def among(self, inos: Collection[int]) -> list[int]:
        """Those of these inodes whose pages programs may have changed."""
        return [ino for ino in inos if ino in self._open] if self._open else []

    def readable(self, ino: int) -> bool:
        """Whether programs have it open for reading."""
        return ino in self._readable

    def changeable(self) -> list[int]:
        """All inodes whose pages programs may have changed."""
        return list(self._open)

    def read_only(self, inos: Optional[Collection[int]] = None) -> list[int]:
        """Those of these inodes, or of all, that may be mapped for reading, and whose pages no program can have
        changed."""
        return [ino for ino in (self._readable if inos is None else inos) if self._reads(ino)]

    def _reads(self, ino: int) -> bool:
        return ino in self._readable and ino not in self._open

    async def mapped(self, inos: Collection[int]) -> list[int]:
        """Those of these open inodes that are mapped, as far as it can be told."""
        if not inos or not self.device:
            return list(inos)
        openers = {ino: frozenset(self._readable[ino].values()) for ino in inos if ino in self._readable}
        found = list(inos)
        with trio.move_on_after(MAPS_S):  # what a process waits for may hold its list up, and may be us
            found = await trio.to_thread.run_sync(mapped, openers, self.device, abandon_on_cancel=True)
        return found

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

    def holds(self, ino: int, start: int, end: int, *, fills: bool) -> Held:
        """A request comes for which the kernel has these pages locked, until ``gives``."""
        held = Held(start, end, fills)
        self.fill(ino)
        self._held.setdefault(ino, []).append(held)
        return held

    def gives(self, ino: int, held: Held) -> None:
        """It is answered."""
        all_held = self._held[ino]
        all_held.remove(held)
        if not all_held:
            del self._held[ino]

    def read(self, ino: int) -> bool:
        """Whether pages of the inode are being read."""
        return any(held.fills for held in self._held.get(ino, ()))

    def locked(self, ino: int) -> bool:
        """Whether another request is under way for which the kernel may hold pages of it back, and which may wait for a
        recall."""
        return self._truncating.any_of((ino,)) or not all(held.fills for held in self._held.get(ino, ()))

    def overtake(self, ino: int) -> list[Piece]:
        """A recall goes on without what is locked now. Return the file in pieces, each of them locked or not."""
        all_held = self._held.get(ino, ())
        for held in all_held:
            held.overtaken = True
        cuts = sorted({0}.union(*((held.start, held.end) for held in all_held)))
        return [
            Piece(start, end, any(held.start <= start < held.end for held in all_held))
            for start, end in zip(cuts, [*cuts[1:], None])
        ]
