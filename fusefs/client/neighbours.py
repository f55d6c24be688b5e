"""Small files of one directory, read one after the other: others come before they are asked for.

Whoever reads a tree reads most files of a directory, in the order in which it lists them or in that of their inodes.
Where a directory is known completely under its lease, two files read have some others asked for, those that follow
in the listing first: their extents in one question, and their blocks in a few requests. What is then read decides how
it goes on: the window doubles when half of it was used, and after a useless one it takes longer until the next. Who
uses what is fetched in directory after directory has files fetched as soon as he reads the first one of another.

What was fetched on suspicion is as true as anything else that is known: extents under their leases, blocks for ever.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import trio

from fusefs.client.blocks import Blocks
from fusefs.client.session import Session
from metadata.api import Attr, Extents, GetExtents
from node.wire.errors import FsError
from node.wire.limits import KIB, MIB

FILE_BYTES_MAX = 256 * KIB  # larger files have a read-ahead of their own
RUN_MIN = 2  # files, before anything is fetched
WINDOW_MIN, WINDOW_MAX = 8, 128  # files
WINDOW_BYTES_MAX = 2 * MIB
LITTLE_MAX, LITTLE_BYTES_MAX = 24, 512 * KIB  # a directory with so little in it is fetched as a whole
LOOK_AT = 4  # times as many names are looked at for a window
CREDIT_MAX = 256
SEEN_MAX = 16_384  # files of one directory; who comes back to those before may have them fetched again
PLACES_MAX = 16_384
WALKS_MAX = 64


class _Walk:
    """What somebody has read in one directory."""

    __slots__ = (
        "last", "reads", "misses", "patience", "window", "size", "used", "seen", "waiting", "earlier", "fetching",
        "rest",
    )  # fmt: skip

    def __init__(self) -> None:
        self.last = b""  # the name that was read last
        self.reads = 0
        self.misses = 0  # read without having been fetched, since the last window
        self.patience = WINDOW_MIN  # misses until the next window, where the last one was of no use
        self.window = WINDOW_MIN
        self.size = 0  # of the last window
        self.used = 0  # how many of it were read
        self.seen: set[int] = set()  # read or fetched
        self.waiting: dict[int, int] = {}  # fetched with the last window and not read -> their bytes
        self.earlier: set[int] = set()  # fetched before that, and not read then
        self.fetching = False
        self.rest = 0  # there was nothing to fetch: not looked again before so many reads

    def read(self, ino: int, name: bytes) -> bool:
        """This file is read now; return whether it was fetched."""
        self.last = name
        self.reads += 1
        self.seen.add(ino)
        if ino in self.earlier:  # the next window is asked for while the last one is still read
            self.earlier.remove(ino)
            return True
        hit = self.waiting.pop(ino, None) is not None
        self.used += hit
        self.misses += not hit
        return hit

    def wants(self, eager: bool) -> bool:
        """Whether to fetch now."""
        if self.fetching or self.reads < self.rest:
            return False
        if not self.size:
            return eager or self.reads >= RUN_MIN
        if 2 * self.used >= self.size:
            return 2 * len(self.waiting) <= self.size and 2 * sum(self.waiting.values()) <= WINDOW_BYTES_MAX
        return self.misses >= self.patience

    def choose(self, around: list[Attr]) -> list[Attr]:
        """Of what is around the last one that to fetch; it is waited for from now on."""
        if self.size:
            useful = 2 * self.used >= self.size
            self.window = min(2 * self.window, WINDOW_MAX) if useful else WINDOW_MIN
            self.patience = WINDOW_MIN if useful else 2 * self.patience
        self.earlier.update(self.waiting)
        if len(self.seen) > SEEN_MAX:
            self.seen, self.earlier = set(self.waiting), set(self.waiting)
        few = len(around) <= LITTLE_MAX and sum(attr.size for attr in around if _is_small(attr)) <= LITTLE_BYTES_MAX
        window = LITTLE_MAX if few else self.window
        chosen: list[Attr] = []
        size_bytes = 0
        for attr in around:
            if attr.ino in self.seen or not _is_small(attr):  # also what is around twice
                continue
            if chosen and (len(chosen) == window or size_bytes + attr.size > WINDOW_BYTES_MAX):
                break
            size_bytes += attr.size
            chosen.append(attr)
            self.seen.add(attr.ino)
        self.size, self.used, self.misses = len(chosen), 0, 0
        self.waiting = {attr.ino: attr.size for attr in chosen}
        if around and not chosen:
            self.rest = self.reads + WINDOW_MIN
        return chosen


def _is_small(attr: Attr) -> bool:
    return 0 < attr.size <= FILE_BYTES_MAX and stat.S_ISREG(attr.mode)


class Neighbours:
    """Watches which files are read first time. Fetching runs in ``nursery``, nobody waits for it."""

    def __init__(self, session: Session, blocks: Blocks, nursery: trio.Nursery) -> None:
        self._session = session
        self._blocks = blocks
        self._nursery = nursery
        self._places: OrderedDict[int, tuple[int, bytes]] = OrderedDict()  # inode -> where it was found last
        self._walks: OrderedDict[int, _Walk] = OrderedDict()  # by directory
        self._credit = 0  # what was of use, less what was fetched for the first file of a directory
        self._files = 0
        self._hits = 0

    def found(self, parent: int, entries: Iterable[tuple[bytes, Attr]]) -> None:
        """Names were looked up or listed."""
        places = self._places
        for name, attr in entries:
            if _is_small(attr):
                places[attr.ino] = parent, name
                places.move_to_end(attr.ino)
        while len(places) > PLACES_MAX:
            places.popitem(last=False)

    def reading(self, ino: int) -> None:
        """A file is read from its beginning."""
        place = self._places.pop(ino, None)
        if place is None or not self._session.leases.on:
            return
        parent, name = place
        self._session.leases.again.reading(parent)
        walk = self._walks.get(parent)
        if walk is None:
            walk = self._walks[parent] = _Walk()
            if len(self._walks) > WALKS_MAX:
                self._walks.popitem(last=False)
        self._walks.move_to_end(parent)
        if walk.read(ino, name):
            self._hits += 1
            self._credit = min(self._credit + 2, CREDIT_MAX)
        if walk.wants(self._credit >= WINDOW_MIN):
            self._fetch_for(parent, walk)

    def _fetch_for(self, parent: int, walk: _Walk) -> None:
        chosen = walk.choose(self._around(parent, walk.last, LOOK_AT * walk.window))
        if chosen:
            if walk.reads < RUN_MIN:
                self._credit -= len(chosen)
            walk.fetching = True
            self._nursery.start_soon(self._fetch, walk, chosen)

    def _around(self, parent: int, name: bytes, limit: int) -> list[Attr]:
        """What follows a name in the listing of its directory, and then what comes at its beginning."""
        leases, now_s = self._session.leases, self._session.now_s()
        page = leases.listing(parent, name, limit, now_s)
        if page is None:
            return []
        entries, end = page
        if end and len(entries) < limit:
            entries += (leases.listing(parent, b"", limit - len(entries), now_s) or ([], True))[0]
        return [attr for _, attr in entries]

    async def _fetch(self, walk: _Walk, chosen: list[Attr]) -> None:
        try:
            await self._bring(chosen)
        except FsError:
            pass  # whoever reads a file asks for it
        finally:
            walk.fetching = False

    async def _bring(self, files: list[Attr]) -> None:
        """Learn the extents of these files and have their blocks fetched."""
        leases = self._session.leases
        blocks: list[tuple[bytes, int]] = []
        unknown: list[Attr] = []
        for attr in files:
            layout = leases.layout(attr.ino, 0, attr.size, self._session.now_s())
            if layout is None:
                unknown.append(attr)
            else:
                blocks += [(extent.block, extent.block_length) for extent in layout[1]]
        if unknown:
            queries = [GetExtents(attr.ino, 0, max(attr.size, 1)) for attr in unknown]
            for result in await self._session.read(*queries):
                if isinstance(result, Extents):
                    blocks += [(extent.block, extent.block_length) for extent in result.extents]
        self._files += len(files)
        self._blocks.bring(blocks)

    def statistics(self) -> dict[str, Any]:
        return {
            "files": self._files,
            "hits": self._hits,
            "walks": len(self._walks),
            "places": len(self._places),
        }
