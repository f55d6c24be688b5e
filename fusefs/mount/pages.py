"""Having the kernel write back and drop pages, for as long as that can be waited for.

The kernel drops the pages of a file one after the other, and waits for each that is locked: while it is being filled,
or while write(2) has a part of it written. The request that it is locked for may wait for another mount, which may wait
for this very recall (rule 5). So after a while the recall goes on without what is locked, and drops all around it. That
shows nobody anything old: what is locked is not shown before it was filled, and who fills it reads anew
(``Held.overtaken``).

What is left over are pages that programs have changed, while a truncation is under way: the kernel writes none of them
back then, and does not say which these are. They come later, with all that lie behind the first of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import trio

from fusefs.mount.kernel import KernelView
from fusefs.mount.mapped import Mappable, Piece
from fusefs.mount.notify import Notifier

PAGES_S = 1.0  # for the kernel to write back what programs have changed in mapped pages
READ_S = 0.05  # the same where pages are being read: who reads may wait for a mount that waits for such a one
LOCKED_S = 0.02  # and where requests are under way that may wait for us
READERS_S = 0.1  # for the kernel to drop pages that no program can have changed
UNLOCKED_S = 0.01  # until what still is not dropped of a locked piece is locked for certain
LOOK_S = 0.001  # how often to see what has come in between
TRIES_MAX = 5  # each time other pages may be locked
THREADS_MAX = 128  # each waits for a page; in them go at once all pieces of a file

WHOLE = Piece(0, None, False)


@dataclass
class Patience:
    """How long to wait, and how long while something is locked or read. Only time is counted in which the loop runs:
    on a busy machine, or one that was stopped, the thread has not run either."""

    all_s: float
    locked_s: float
    read_s: float

    def spend(self, took_s: float, *, locked: bool, read: bool) -> bool:
        """Return whether there is any left."""
        took_s = min(took_s, 2 * LOOK_S)
        self.all_s -= took_s
        if locked:
            self.locked_s -= took_s
        elif read:
            self.read_s -= took_s
        return min(self.all_s, self.locked_s, self.read_s) > 0


CHANGED = Patience(PAGES_S, LOCKED_S, READ_S)  # pages that programs may have changed
READ = Patience(READERS_S, READERS_S / 10, READERS_S / 10)  # and those that nobody can have


@dataclass(eq=False)
class _Drop:
    """One call of the kernel, in a thread."""

    piece: Piece
    done: bool = False


@dataclass
class _Drops:
    """All pieces of a file."""

    each: list[_Drop]
    all_done: trio.Event = field(default_factory=trio.Event)

    def ended(self, one: _Drop) -> None:
        one.done = True
        if all(each.done for each in self.each):
            self.all_done.set()

    @property
    def only_held(self) -> bool:
        """Whether all is done that is not held."""
        return all(one.done or one.piece.held for one in self.each)


class Pages:
    """The pages of one mount."""

    def __init__(self, view: KernelView, mapped: Mappable, notifier: Notifier) -> None:
        self._view = view
        self._mapped = mapped
        self._notifier = notifier
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self.counts = {"pages_around": 0, "pages_late": 0}

    async def drop(self, inos: Collection[int], patience: Patience) -> None:
        """Return when the pages of these are written back and dropped, as far as it can be waited for. What is not done
        stays in doubt. No file waits for another one."""
        if not inos:
            return
        async with trio.open_nursery() as nursery:
            for ino in inos:
                nursery.start_soon(self._drop, ino, patience)

    async def _drop(self, ino: int, patience: Patience) -> None:
        left = replace(patience)
        pieces = [WHOLE]
        self._mapped.empty(ino)
        for _ in range(TRIES_MAX):
            if await self._pieces(ino, pieces, left):
                self._view.dropped((ino,))
                if len(pieces) > 1:
                    self._mapped.fill(ino)  # with what is locked
                    self.counts["pages_around"] += 1
                return
            pieces = self._mapped.overtake(ino)
            if left.all_s <= 0 or (len(pieces) == 1 and self._mapped.locked(ino)):
                break
            if not self._notifier.pieces:
                pieces = [WHOLE]
            left = replace(patience, all_s=left.all_s)
        self._mapped.fill(ino)
        self.counts["pages_late"] += 1

    async def _pieces(self, ino: int, pieces: list[Piece], left: Patience) -> bool:
        """Drop all pieces at once; return whether what is not locked of them is gone."""
        drops = _Drops([_Drop(piece) for piece in sorted(pieces, key=lambda piece: piece.held)])
        held = Patience(UNLOCKED_S, UNLOCKED_S, UNLOCKED_S)
        async with trio.open_nursery() as nursery:
            for one in drops.each:
                nursery.start_soon(self._in_thread, ino, one, drops)
            while not drops.all_done.is_set():
                began = trio.current_time()
                with trio.move_on_after(LOOK_S):
                    await drops.all_done.wait()
                counted = held if drops.only_held else left
                locked, read = self._mapped.locked(ino), self._mapped.read(ino)
                if not counted.spend(trio.current_time() - began, locked=locked, read=read):
                    break
            nursery.cancel_scope.cancel()  # the threads go on, for nobody
        return drops.only_held

    async def _in_thread(self, ino: int, one: _Drop, drops: _Drops) -> None:
        piece = one.piece
        await trio.to_thread.run_sync(
            self._notifier.forget_pages, ino, piece.start, piece.end, abandon_on_cancel=True, limiter=self._threads
        )
        drops.ended(one)
