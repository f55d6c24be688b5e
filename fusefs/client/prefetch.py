"""Directories in which one name after the other is looked up are read whole, once.

Where that is of use in directory after directory, as for who looks at a whole tree by names, the listing of a small one
comes with the answer to the first question in it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import trio

from fusefs.client.session import Session
from metadata.api import Entries, ReadDir
from node.wire.errors import FsError
from node.wire.limits import READDIR_PAGE_MAX

MISSES = 3  # names that had to be asked for, in one directory
WITHIN_S = 1.0
PAGES_MAX = 16
WATCHED_MAX = 256
EAGER_ENTRIES_MAX = 128  # of a directory whose listing comes with the first answer
EAGER_COST = 4  # names that must be looked up in it then, or the credit for others ends
CREDIT_MAX = 64


class Prefetch:
    """Watches look-ups that had to be asked for. Reading runs in ``nursery``, nobody waits for it."""

    def __init__(self, session: Session, nursery: trio.Nursery) -> None:
        self._session = session
        self._nursery = nursery
        self._missed: OrderedDict[int, tuple[float, int]] = OrderedDict()  # directory -> since when, how often
        self._fetching: set[int] = set()
        self._fetched = 0
        self._whole: OrderedDict[int, None] = OrderedDict()  # directories that were read so lately
        self._credit = 0

    def found(self, ino: int) -> None:
        """A name in this directory did not have to be asked for."""
        if ino in self._whole:
            self._credit = min(self._credit + 1, CREDIT_MAX)

    def eager(self, ino: int) -> bool:
        """Whether to ask for all of a directory together with a name in it; then it counts as asked for."""
        if self._credit < EAGER_COST or not self._session.leases.on or ino in self._fetching:
            return False
        attr = self._session.leases.attr(ino, self._session.now_s())
        if attr is None or not 1 < attr.size <= EAGER_ENTRIES_MAX or ino in self._whole:
            return False  # what was read and is not known any more is being changed by others
        self._credit -= EAGER_COST
        self._read(ino)
        return True

    def _read(self, ino: int) -> None:
        self._whole[ino] = None
        if len(self._whole) > WATCHED_MAX:
            self._whole.popitem(last=False)
        self._fetched += 1

    def missed(self, ino: int) -> None:
        """A name in this directory had to be asked for."""
        if not self._session.leases.on or ino in self._fetching:
            return
        now = trio.current_time()
        since, count = self._missed.pop(ino, (now, 0))
        if now - since > WITHIN_S:
            since, count = now, 0
        if count + 1 < MISSES:
            self._missed[ino] = since, count + 1
            if len(self._missed) > WATCHED_MAX:
                self._missed.popitem(last=False)
            return
        self._fetching.add(ino)
        self._nursery.start_soon(self._fetch, ino)

    async def _fetch(self, ino: int) -> None:
        after = b""
        try:
            for _ in range(PAGES_MAX):
                page = await self._session.query(ReadDir(ino, after, READDIR_PAGE_MAX, True), Entries)
                if page.end or not page.entries:
                    break
                after = page.entries[-1].name
            self._read(ino)
        except FsError:
            pass  # whoever needs a name asks for it
        finally:
            self._fetching.discard(ino)

    def statistics(self) -> dict[str, Any]:
        return {"fetched": self._fetched, "fetching": len(self._fetching)}
