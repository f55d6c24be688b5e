"""Directories of one directory, listed one after the other: the next listings come before they are asked for.

Whoever walks a tree lists the directories of a directory in the order of its own listing, or backwards. Two listed in
order have the next ones asked for in one question; the window doubles while the walk goes on.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import trio

from fusefs.client.session import Session
from metadata.api import Attr, Query, ReadDir
from node.wire.errors import FsError
from node.wire.limits import READDIR_PAGE_MAX

NEAR = 4  # directories that a walk may leave out
RUN_MIN = 2  # listed in order, before anything is fetched
WINDOW_MIN, WINDOW_MAX = 8, 128  # directories
ENTRIES_MAX = 2048  # in one question, as far as their sizes tell
SIBLINGS_MAX = 4096  # of one walk
PLACES_MAX = 16_384
WALKS_MAX = 64


class _Walk:
    """How far somebody has listed the directories of one."""

    def __init__(self, order: list[Attr]) -> None:
        self.order = order  # those with something in them
        self.places = {attr.ino: place for place, attr in enumerate(order)}
        self.last = -NEAR - 1
        self.step = 1  # or -1: backwards
        self.run = 0
        self.window = WINDOW_MIN
        self.edge = 0  # what comes before this, in the order of the walk, was fetched
        self.fetching = False

    def reach(self, place: int) -> None:
        """The directory at a place is listed now."""
        distance = (place - self.last) * self.step
        if 0 < distance <= NEAR:
            self.run += 1
        elif 0 < -distance <= NEAR:
            self.step, self.run, self.edge = -self.step, 2, place
        elif distance:
            self.run, self.edge, self.window = 1, place, WINDOW_MIN
        self.last = place
        if (self.edge - place) * self.step <= 0:
            self.edge = place + self.step

    def next(self) -> list[Attr]:
        """What to fetch now, nearest first."""
        ahead = (self.edge - self.last) * self.step
        if self.run < RUN_MIN or self.fetching or 2 * ahead > self.window:
            return []
        stop = max(-1, min(len(self.order), self.edge + self.step * self.window))
        chosen: list[Attr] = []
        entries = 0
        for place in range(self.edge, stop, self.step):
            entries += self.order[place].size
            if chosen and entries > ENTRIES_MAX:
                break
            chosen.append(self.order[place])
            self.edge = place + self.step
        self.window = min(2 * self.window, WINDOW_MAX)
        return chosen


class Subdirectories:
    """Watches which directories are listed. Fetching runs in ``nursery``, nobody waits for it."""

    def __init__(self, session: Session, nursery: trio.Nursery) -> None:
        self._session = session
        self._nursery = nursery
        self._parents: OrderedDict[int, int] = OrderedDict()  # directory -> the one in whose listing it was seen last
        self._walks: OrderedDict[int, _Walk] = OrderedDict()  # by directory
        self._fetched = 0

    def seen(self, parent: int, attrs: Iterable[Attr]) -> None:
        """These were in a listing."""
        parents = self._parents
        for attr in attrs:
            if stat.S_ISDIR(attr.mode):
                parents[attr.ino] = parent
                parents.move_to_end(attr.ino)
        while len(parents) > PLACES_MAX:
            parents.popitem(last=False)

    def listing(self, ino: int) -> None:
        """A directory is listed from its beginning."""
        parent = self._parents.pop(ino, None)
        if parent is None or not self._session.leases.on:
            return
        walk = self._walks.get(parent)
        if walk is None or ino not in walk.places:
            walk = self._begin(parent)
        if walk is None or ino not in walk.places:
            return
        self._walks.move_to_end(parent)
        walk.reach(walk.places[ino])
        chosen = walk.next()
        if chosen:
            walk.fetching = True
            self._nursery.start_soon(self._fetch, walk, chosen)

    def _begin(self, parent: int) -> _Walk | None:
        page = self._session.leases.listing(parent, b"", SIBLINGS_MAX, self._session.now_s())
        if page is None:
            return None
        walk = self._walks[parent] = _Walk([attr for _, attr in page[0] if stat.S_ISDIR(attr.mode) and attr.size])
        if len(self._walks) > WALKS_MAX:
            self._walks.popitem(last=False)
        return walk

    async def _fetch(self, walk: _Walk, chosen: list[Attr]) -> None:
        leases, now_s = self._session.leases, self._session.now_s()
        queries: list[Query] = [
            ReadDir(attr.ino, b"", READDIR_PAGE_MAX, True)
            for attr in chosen
            if leases.listing(attr.ino, b"", 1, now_s) is None
        ]
        try:
            if queries:
                self._fetched += len(queries)
                await self._session.read(*queries)  # what the answers say is remembered under its leases
        except FsError:
            pass  # whoever lists a directory asks for it
        finally:
            walk.fetching = False

    def statistics(self) -> dict[str, Any]:
        return {"fetched": self._fetched, "walks": len(self._walks), "places": len(self._parents)}
