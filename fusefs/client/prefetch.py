"""Directories in which one name after the other is looked up are read whole, once."""

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


class Prefetch:
    """Watches look-ups that had to be asked for. Reading runs in ``nursery``, nobody waits for it."""

    def __init__(self, session: Session, nursery: trio.Nursery) -> None:
        self._session = session
        self._nursery = nursery
        self._missed: OrderedDict[int, tuple[float, int]] = OrderedDict()  # directory -> since when, how often
        self._fetching: set[int] = set()
        self._fetched = 0

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
            self._fetched += 1
        except FsError:
            pass  # whoever needs a name asks for it
        finally:
            self._fetching.discard(ino)

    def statistics(self) -> dict[str, Any]:
        return {"fetched": self._fetched, "fetching": len(self._fetching)}
