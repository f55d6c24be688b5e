"""What small files have, on its way to the chunk servers before the journal commits it: much of it in few requests.

Nobody waits for it yet when it comes: a file was closed, and its commit goes with a batch of the journal later. So it
may wait a moment for others. Each request costs its sender and the server as much as several small blocks do, and a
sync (measured: a file alone in its request costs a third more of the mount's time, and three times the server's).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import trio

from fusefs.client.commit import Committer, Group
from fusefs.client.files import File
from node.wire.errors import Code, FsError
from node.wire.limits import KIB

log = logging.getLogger(__name__)

LINGER_S = 0.02  # for others to come along; less than the journal waits
PARCEL_BYTES = 256 * KIB  # as many, or so many groups, do not wait
PARCEL_GROUPS = 64


class Item(NamedTuple):
    """A group of a file, of which nothing else is under way but what the journal has taken."""

    file: File
    group: Group


class Parcels:
    """Puts groups. ``step`` gives the deadline of a step that begins now, by file. Each group is ``done`` in the end,
    put or with its error."""

    def __init__(self, committer: Committer, nursery: trio.Nursery, step: Callable[[File], float]) -> None:
        self._committer = committer
        self._nursery = nursery
        self._step = step
        self._waiting: list[Item] = []
        self._bytes = 0

    def add(self, file: File, group: Group) -> None:
        """Have a group put, soon. Does not wait."""
        if group.carrying or self._committer.unsure(file, group):
            self._nursery.start_soon(self._put_alone, file, group)
            return
        self._waiting.append(Item(file, group))
        self._bytes += group.bytes
        if self._bytes >= PARCEL_BYTES or len(self._waiting) >= PARCEL_GROUPS:
            self.hasten()
        elif len(self._waiting) == 1:
            self._nursery.start_soon(self._linger, self._waiting)

    def hasten(self, *, carry: bool = False) -> None:
        """What is here waits for no others. With ``carry`` somebody waits until it is committed: a small group travels
        with its commit."""
        parcel, self._waiting, self._bytes = self._waiting, [], 0
        parcel = [item for item in parcel if not (carry and self.carry(item.file, item.group))]
        if parcel:
            self._nursery.start_soon(self._put, parcel)

    def carry(self, file: File, group: Group) -> bool:
        """Have a group travel with its commit, where that can be: then there is nothing to put."""
        carried = self._committer.carry(file, group)
        if carried:
            group.done.set()
        return carried

    async def _linger(self, parcel: list[Item]) -> None:
        await trio.sleep(LINGER_S)
        if parcel is self._waiting:
            self.hasten()

    async def _put(self, parcel: Sequence[Item]) -> None:
        """All or none: after an error each is brought by itself."""
        groups = [item.group for item in parcel]
        with _ending(groups):
            deadline = min([self._step(item.file) for item in parcel])
            await self._committer.put_together(groups, deadline)

    async def _put_alone(self, file: File, group: Group) -> None:
        with _ending([group]):
            await self._committer.put(file, group, self._step(file))
            if group.crowded and file.exclusive and file.reserved == 1:  # else not all is there that a chunk will have
                await self._committer.merge(file, group, self._step(file))


@contextmanager
def _ending(groups: Sequence[Group]) -> Iterator[None]:
    """However this ends, they are done, and have its error."""
    try:
        yield
    except FsError as error:
        for group in groups:
            group.error = error
    except Exception:  # a bug costs this attempt, not the mount
        log.exception("a put of %d groups failed unexpectedly", len(groups))
        for group in groups:
            group.error = FsError(Code.IO, "a put failed unexpectedly")
    finally:
        for group in groups:
            group.done.set()
