"""Which removed inodes this mount still needs.

The service keeps an inode whose last name went for every session that may have it open. So a removal carries what
this mount does *not* hold, and what it was left with is released: at the last close, or at once. The other mounts'
removals arrive as the orphan list of a renewal.

A mount that vouches for an inode must not open it while the removal is under way: ``enter`` waits for the outcome.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from fusefs.client.files import File, Files
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from metadata.api import Release
from node.wire.errors import Code, FsError

log = logging.getLogger(__name__)

HINTS_MAX = 32_768
RELEASED_MAX = 65_536
RELEASE_BATCH = 4096


class Holds:
    """Removals and opens of one mount, kept apart."""

    def __init__(self, session: Session, files: Files, writeback: WriteBack, nursery: trio.Nursery) -> None:
        self._session = session
        self._files = files
        self._writeback = writeback
        self._nursery = nursery
        self._hints: OrderedDict[tuple[int, bytes], int] = OrderedDict()  # names as last seen; may be wrong
        self._removing: dict[int, trio.Event] = {}
        self._released: OrderedDict[int, None] = OrderedDict()  # gone for this mount
        self._queue: dict[int, None] = {}
        self._sending = False

    # --- names --------------------------------------------------------------------------------------------------

    def hint(self, parent: int, name: bytes, ino: int) -> None:
        """Remember what a name was last seen to mean."""
        self._hints[parent, name] = ino
        self._hints.move_to_end((parent, name))
        if len(self._hints) > HINTS_MAX:
            self._hints.popitem(last=False)

    def hinted(self, parent: int, name: bytes) -> int:
        """What a name was last seen to mean; 0: unknown."""
        return self._hints.get((parent, name), 0)

    def drop_hint(self, parent: int, name: bytes) -> None:
        """The name means something else now, or nothing."""
        self._hints.pop((parent, name), None)

    # --- removals -----------------------------------------------------------------------------------------------

    @contextmanager
    def removing(self, ino: int) -> Iterator[tuple[int, ...]]:
        """While a removal of ``ino`` (0: unknown) is under way; yields what to vouch for with ``not_held``."""
        if not ino or self.held(ino) or ino in self._removing:
            yield ()
            return
        event = self._removing[ino] = trio.Event()
        try:
            yield (ino,)
        finally:
            del self._removing[ino]
            event.set()

    def is_removing(self, ino: int) -> bool:
        """Whether a removal of the inode is under way."""
        return ino in self._removing

    def removed(self, ino: int, nlink: int, held: bool) -> None:
        """Take note of a removal's outcome."""
        if nlink:
            return
        if not held:
            self._gone(ino)
        elif self.held(ino):
            file = self._files.get(ino)
            assert file is not None
            file.removed = True
        else:
            self._release(ino)

    def orphans(self, inos: Sequence[int]) -> None:
        """The service says that this session may still hold these removed inodes."""
        for ino in inos:
            self.removed(ino, 0, True)

    def held(self, ino: int) -> bool:
        """Whether a handle of this mount keeps the inode."""
        file = self._files.get(ino)
        return file is not None and file.handles > 0

    # --- opens --------------------------------------------------------------------------------------------------

    async def enter(self, ino: int) -> File:
        """Return the file with one handle more. STALE where this mount has let go of the inode."""
        deadline = self._session.deadline()
        await self._session.ready(deadline)  # what is opened while there is no session would belong to the last one
        while (event := self._removing.get(ino)) is not None:
            with trio.move_on_at(deadline) as scope:
                await event.wait()
            if scope.cancelled_caught:
                raise FsError(Code.TIMEOUT, f"inode {ino} is being removed, without an answer in time")
            await self._session.ready(deadline)
        if ino in self._released:
            raise FsError(Code.STALE, f"inode {ino} was removed")
        return self._files.take(ino, self._session.incarnation)

    def leave(self, file: File) -> None:
        """One handle less."""
        file.handles -= 1
        if not file.handles:
            if file.removed and file.dead is None:
                self._release(file.ino)
            self._files.settle(file)

    def forgotten(self, ino: int) -> None:
        """The kernel does not know this inode any more, so it cannot ask for it."""
        self._released.pop(ino, None)

    # --- letting go ---------------------------------------------------------------------------------------------

    def _gone(self, ino: int) -> None:
        """Nobody here can open the inode from now on; what is dirty in it nobody can read."""
        self._released[ino] = None
        if len(self._released) > RELEASED_MAX:
            self._released.popitem(last=False)
        file = self._files.get(ino)
        if file is not None and file.dirty:
            self._writeback.drop(file)
            self._files.settle(file)

    def _release(self, ino: int) -> None:
        self._gone(ino)
        self._queue[ino] = None
        if not self._sending:
            self._sending = True
            self._nursery.start_soon(self._send)

    async def _send(self) -> None:
        """Release what waits; what fails is in the orphan list of a later renewal again."""
        try:
            while self._queue:
                inos = tuple(self._queue)[:RELEASE_BATCH]
                for ino in inos:
                    del self._queue[ino]
                await self._session.submit(Release(inos), incarnation=self._session.incarnation)
        except FsError as error:
            log.info("release of removed inodes: %s", error)
            self._queue.clear()
        finally:
            self._sending = False

    def statistics(self) -> dict[str, Any]:
        return {"hints": len(self._hints), "removing": len(self._removing), "released": len(self._released)}
