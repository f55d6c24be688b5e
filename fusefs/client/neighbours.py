"""Small files of one directory, read one after the other: the next ones come before they are asked for.

Whoever reads a tree reads the files of a directory in the order in which it lists them. Where a directory is known
completely under its lease, two files read in that order have the extents of the next ones asked for in one question,
and their blocks in a few requests; the window doubles while the reader goes on. What was fetched on suspicion is as
true as anything else that is known: extents under their leases, blocks for ever.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import trio

from fusefs.client.blocks import Blocks
from fusefs.client.session import Session
from metadata.api import Attr, Extents, GetExtents
from node.wire.errors import FsError
from node.wire.limits import KIB, MIB

FILE_BYTES_MAX = 256 * KIB  # larger files have a read-ahead of their own
NEAR = 8  # names that a reader may leave out and still read in order
RUN_MIN = 2  # files in order, before anything is fetched
WINDOW_MIN, WINDOW_MAX = 8, 128  # files
WINDOW_BYTES_MAX = 2 * MIB
PLACES_MAX = 4096
WALKS_MAX = 64


@dataclass(slots=True)
class _Walk:
    """How far somebody has read in one directory."""

    last: bytes
    run: int = 1
    window: int = WINDOW_MIN
    fetched: bytes = b""  # up to this name files were fetched
    left: int = 0  # of them, not read yet
    left_bytes: int = 0
    fetching: bool = False


class Neighbours:
    """Watches which files are read first time. Fetching runs in ``nursery``, nobody waits for it."""

    def __init__(self, session: Session, blocks: Blocks, nursery: trio.Nursery) -> None:
        self._session = session
        self._blocks = blocks
        self._nursery = nursery
        self._places: OrderedDict[int, tuple[int, bytes, int]] = OrderedDict()  # inode -> where it was found last; size
        self._walks: OrderedDict[int, _Walk] = OrderedDict()  # by directory
        self._files = 0

    def found(self, parent: int, name: bytes, attr: Attr) -> None:
        """A name was looked up."""
        if 0 < attr.size <= FILE_BYTES_MAX and stat.S_ISREG(attr.mode):
            self._places[attr.ino] = parent, name, attr.size
            self._places.move_to_end(attr.ino)
            if len(self._places) > PLACES_MAX:
                self._places.popitem(last=False)

    def reading(self, ino: int) -> None:
        """A file is read from its beginning."""
        place = self._places.pop(ino, None)
        if place is None or not self._session.leases.on:
            return
        parent, name, size_bytes = place
        walk = self._walks.get(parent)
        if walk is None:
            self._walks[parent] = _Walk(name)
            if len(self._walks) > WALKS_MAX:
                self._walks.popitem(last=False)
            return
        self._walks.move_to_end(parent)
        self._step(parent, walk, name, size_bytes)

    def _step(self, parent: int, walk: _Walk, name: bytes, size_bytes: int) -> None:
        page = self._session.leases.listing(parent, walk.last, NEAR, self._session.now_s())
        walk.last = name
        if page is None or all(other != name for other, _ in page[0]):
            self._walks[parent] = _Walk(name)
            return
        walk.run += 1
        walk.left = max(0, walk.left - 1)
        walk.left_bytes = max(0, walk.left_bytes - size_bytes)
        low = 2 * walk.left <= walk.window and 2 * walk.left_bytes <= WINDOW_BYTES_MAX
        if walk.run >= RUN_MIN and low and not walk.fetching:
            walk.fetching = True
            self._nursery.start_soon(self._fetch, parent, walk)

    async def _fetch(self, parent: int, walk: _Walk) -> None:
        try:
            after = max(walk.last, walk.fetched)
            page = self._session.leases.listing(parent, after, walk.window, self._session.now_s())
            if page is None or not page[0]:
                return
            chosen: list[Attr] = []
            size_bytes = 0
            for name, attr in page[0]:
                if stat.S_ISREG(attr.mode) and 0 < attr.size <= FILE_BYTES_MAX:
                    if chosen and size_bytes + attr.size > WINDOW_BYTES_MAX:
                        break
                    size_bytes += attr.size
                    chosen.append(attr)
                walk.fetched = name
            walk.left += len(chosen)
            walk.left_bytes += size_bytes
            walk.window = min(2 * walk.window, WINDOW_MAX)
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
        return {"files": self._files, "walks": len(self._walks), "places": len(self._places)}
