"""What the kernel knows of us: how often it looked each inode up, and which data its page cache was filled from."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from fusefs.mount.crossing import Crossings
from metadata.api import Attr
from node.wire.types import ROOT_INO

MARGIN_S = 0.5  # between the end of what the kernel believes and the end of our leases


class _Known:
    """One inode in the kernel. ``pages`` is the data version that its page cache holds at oldest, 0: not known.
    ``doubted``: another mount may have changed it since attributes were last sent. ``opened``: it may have pages.
    ``shown``: where it lets the file end at most. ``owed``: its pages have to go, unless the next answer makes
    the kernel drop them."""

    __slots__ = ("count", "version", "pages", "mtime_ns", "size", "shown", "doubted", "opened", "owed")

    def __init__(self) -> None:
        self.count = 0
        self.version = 0  # data version that the kernel was told last
        self.pages = 0
        self.mtime_ns = 0  # told last; with size all that the kernel compares to drop pages by itself
        self.size = 0
        self.shown = 0
        self.doubted = False
        self.opened = False
        self.owed = False


class KernelView:
    """Lookup counts and page-cache versions of one mount.

    Invariants: an inode is here, with a count above 0, from the reply that names it until the FORGET that takes the
    last reference (the root: from its first use). ``pages`` is not 0 only while no reply told the kernel of another
    data version: then pages that were read under it are still right.
    """

    def __init__(self, crossings: Crossings | None = None) -> None:
        self._inodes: dict[int, _Known] = {}
        self._crossings = crossings or Crossings()

    def __len__(self) -> int:
        return len(self._inodes)

    def oldest(self, count: int) -> list[int]:
        """Those that have been here for longest, but not the root; asked again, others come first."""
        inos = [ino for ino in islice(self._inodes, count) if ino != ROOT_INO]
        for ino in inos:
            self._inodes[ino] = self._inodes.pop(ino)
        return inos

    def looked_up(self, attr: Attr) -> bool:
        """A reply hands this inode to the kernel, which now holds one reference more. Returns what ``told`` does."""
        known = self._inodes.get(attr.ino)
        if known is None:
            known = self._inodes[attr.ino] = _Known()
        known.count += 1
        return self._told(known, attr, compared=True, crossed=True)

    def told(self, attr: Attr, *, compared: bool = True, crossed: bool = True) -> bool:
        """A reply carries these attributes. Return whether pages must be dropped that the kernel would not drop itself:

        the data changed, but mtime and size, which are all it compares, are as before (somebody set mtime back). In
        the reply to a setattr it does not even compare mtime (``compared`` false). Or it may take no notice of the
        reply, because it was made to forget something after it had asked (``crossed``: that may be). Where it was not,
        dropping pages would be what makes the reply void.
        """
        known = self._inodes.get(attr.ino)
        return known is not None and self._told(known, attr, compared=compared, crossed=crossed)

    def doubt(self, inos: Iterable[int]) -> None:
        """Another mount may have changed these. The next reply that tells of new data must not rely on the kernel to
        drop pages: it ignores attributes that were asked for before it was made to forget others."""
        for ino in inos:
            known = self._inodes.get(ino)
            if known is not None:
                known.doubted = True

    def paged(self, inos: Iterable[int]) -> list[int]:
        """Those of which the kernel may have pages."""
        return [ino for ino in inos if (known := self._inodes.get(ino)) is not None and known.opened]

    def outdate(self, inos: Iterable[int]) -> None:
        """Nobody has these open, and their pages may be old: they go when the kernel opens them next."""
        for ino in inos:
            known = self._inodes.get(ino)
            if known is not None:
                known.pages = 0

    def dropped(self, inos: Iterable[int]) -> None:
        """The pages of these are gone, and what is read from now on is asked for: there is nothing to doubt."""
        for ino in inos:
            known = self._inodes.get(ino)
            if known is not None:
                known.doubted = known.owed = False

    def owe(self, ino: int) -> None:
        """Another mount may have changed this: if the kernel is told of new data next, it drops pages by itself."""
        known = self._inodes.get(ino)
        if known is not None:
            known.owed = True

    def owes(self, ino: int) -> bool:
        """Whether it was not, so that the pages have to go."""
        known = self._inodes.get(ino)
        return known is not None and known.owed

    def _told(self, known: _Known, attr: Attr, *, compared: bool, crossed: bool) -> bool:
        unseen = known.doubted and crossed and known.version != attr.data_version
        known.doubted = False
        if known.opened and known.version != attr.data_version:
            known.pages = 0
            known.owed = False
            seen = known.size != attr.size or (compared and known.mtime_ns != attr.mtime_ns)
            unseen = unseen or not seen
        known.version = attr.data_version
        known.mtime_ns = attr.mtime_ns
        known.size = attr.size
        if attr.size > known.shown or (attr.size < known.shown and not self._crossings.lately(attr.ino)):
            known.shown = attr.size  # lately it may not take that
        return unseen

    def grown(self, ino: int, end: int) -> None:
        """A change was answered that lets the kernel believe that a file reaches up to here."""
        known = self._inodes.get(ino)
        if known is not None and known.shown < end:
            known.shown = end

    def cut(self, ino: int, size: int) -> None:
        """The kernel makes a file so long, for a program here: that answer it takes whatever has crossed it."""
        known = self._inodes.get(ino)
        if known is not None:
            known.shown = size

    def refuses(self, ino: int, offset: int, end: int, length: int, came_s: float) -> bool:
        """Whether the answer of so many bytes to a read of [offset, end) would be filled up with zeros."""
        known = self._inodes.get(ino)
        if known is None or min(known.shown, end) <= offset + length:
            return False
        return self._crossings.refuses(ino, offset, end, came_s)

    def untouched(self, ino: int) -> tuple[int, int] | None:
        """Data version and size that the kernel was told of a file that it never opened since it knows it: so it has no
        pages, and none is being read. None: it may have."""
        known = self._inodes.get(ino)
        return None if known is None or known.opened else (known.version, known.size)

    def opened(self, ino: int) -> bool:
        """The kernel opens a file; return whether its pages may be kept (FOPEN_KEEP_CACHE).

        Where not, it drops them, and what it reads from now on belongs to the version it was told last or to one
        that it will be told.
        """
        known = self._inodes.get(ino)
        if known is None:
            return False
        known.opened = True
        keep = known.pages != 0 and known.pages == known.version
        known.pages = known.version
        return keep

    def knows(self, ino: int) -> bool:
        """Whether the kernel holds a reference to this inode; the root always."""
        return ino in self._inodes or ino == ROOT_INO

    def forget(self, counts: Iterable[tuple[int, int]]) -> list[int]:
        """Take references away; return the inodes that the kernel no longer knows."""
        gone = []
        for ino, count in counts:
            known = self._inodes.get(ino)
            if known is not None and known.count > count:
                known.count -= count
                continue
            self._inodes.pop(ino, None)
            gone.append(ino)
        return gone

    def clear(self) -> list[int]:
        """The mount is gone and every reference with it. Return the inodes that were still known."""
        known = list(self._inodes)
        self._inodes.clear()
        return known

    def statistics(self) -> dict[str, int]:
        return {
            "inodes": len(self._inodes),
            "references": sum(known.count for known in self._inodes.values()),
            "cached": sum(1 for known in self._inodes.values() if known.pages),
        }
