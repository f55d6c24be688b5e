"""Reading directories: pages in name order, and offsets that stay good while names come and go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from fusefs.client.files import Files
from fusefs.client.session import Session
from fusefs.client.subdirectories import Subdirectories
from metadata.api import Attr, Entries, ReadDir
from node.wire.errors import Code, FsError
from node.wire.limits import READDIR_PAGE_MAX

MARKS_MAX = 64  # pages whose names an open directory remembers, for seekdir


class DirHandle:
    """One open directory. An offset counts the entries handed out before it since the reader began.

    Reading on continues after the last *name*, so that names which come or go elsewhere neither hide nor repeat
    others. To go back, the names of the last pages are kept.
    """

    __slots__ = ("ino", "whole", "kept", "_start", "_page", "_end", "_marks")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.whole = False
        self.kept = False  # the mount's own: the kernel keeps what it is told
        self.restart()

    def restart(self) -> None:
        """Forget what was read: rewinddir(3)."""
        self._start = 0  # offset of the first entry of the page
        self._page: list[tuple[bytes, Attr]] = []
        self._end = False  # nothing follows the page
        self._marks: OrderedDict[int, list[bytes]] = OrderedDict()  # page offset -> its names

    def remember(self, names: list[bytes]) -> None:
        """These are all there is now: whoever has them can read on after any of them."""
        self.whole = True
        self._marks[0] = names

    @property
    def stop(self) -> int:
        """The offset after the page."""
        return self._start + len(self._page)

    def ends(self, offset: int) -> bool:
        """Whether nothing follows this offset, as far as was read."""
        return self._end and offset == self.stop

    def rest(self, offset: int) -> list[tuple[bytes, Attr, int]]:
        """What the page holds from ``offset`` on."""
        skip = offset - self._start
        if not 0 <= skip < len(self._page):
            return []
        return [(name, attr, offset + index + 1) for index, (name, attr) in enumerate(self._page[skip:])]

    def before(self, offset: int) -> bytes:
        """The name of the entry before ``offset``. INVALID where it was read too long ago."""
        if offset == 0:
            return b""
        if self._start < offset <= self.stop:
            return self._page[offset - 1 - self._start][0]
        for start, names in self._marks.items():
            if start < offset <= start + len(names):
                return names[offset - 1 - start]
        raise FsError(Code.INVALID, f"offset {offset} of directory {self.ino} is not one that was handed out lately")

    def turn(self, offset: int, page: list[tuple[bytes, Attr]], end: bool) -> None:
        """Put the page that begins at ``offset``."""
        if self._page:
            self._marks[self._start] = [name for name, _ in self._page]
            if len(self._marks) > MARKS_MAX:
                self._marks.popitem(last=False)
        self._start, self._page, self._end = offset, page, end


WHOLE_MAX = 128  # entries of a directory of which a handle learns all when it is opened


class Directories:
    """Reads directories."""

    def __init__(
        self,
        session: Session,
        files: Files,
        ahead: Subdirectories,
        found: Callable[[int, Iterable[tuple[bytes, Attr]]], None] = lambda parent, entries: None,
    ) -> None:
        """``found`` is told the entries of each page."""
        self._found = found
        self._session = session
        self._files = files
        self._ahead = ahead
        self._pages = 0

    def open(self, ino: int) -> DirHandle:
        """A handle; ``whole`` where all that is in a directory, of few entries, is known under its lease."""
        handle = DirHandle(ino)
        leases, now_s = self._session.leases, self._session.now_s()
        attr = leases.attr(ino, now_s)
        if attr is None or attr.size > WHOLE_MAX:
            return handle
        known = leases.listing(ino, b"", WHOLE_MAX + 1, now_s)
        if known is not None and known[1] and len(known[0]) <= WHOLE_MAX:
            handle.remember([name for name, _ in known[0]])
        return handle

    async def read(self, handle: DirHandle, offset: int) -> list[tuple[bytes, Attr, int]]:
        """A page from ``offset`` on; empty at the end, also of a directory that was removed."""
        if offset == 0:
            handle.restart()
        rest = handle.rest(offset)
        if rest:
            return rest
        if handle.ends(offset):
            return []
        before = handle.before(offset)
        if offset == 0:
            self._ahead.listing(handle.ino)
        known = self._session.leases.listing(handle.ino, before, READDIR_PAGE_MAX, self._session.now_s())
        if known is not None:
            self._turn(handle, offset, [(name, self._files.overlay(attr)) for name, attr in known[0]], known[1])
            return handle.rest(offset)
        query = ReadDir(handle.ino, before, READDIR_PAGE_MAX, True)
        try:
            page = await self._session.query(query, Entries)
        except FsError as error:
            if error.code is Code.STALE:
                return []
            raise
        self._pages += 1
        entries = []
        for entry in page.entries:
            if entry.attr is None:
                raise FsError(Code.PROTOCOL, "a directory entry without its attributes")
            entries.append((entry.name, self._files.overlay(entry.attr)))
        self._turn(handle, offset, entries, page.end)
        return handle.rest(offset)

    def _turn(self, handle: DirHandle, offset: int, page: list[tuple[bytes, Attr]], end: bool) -> None:
        self._ahead.seen(handle.ino, [attr for _, attr in page])
        self._found(handle.ino, page)
        handle.turn(offset, page, end)
        if end:
            self._session.leases.read_out(handle.ino)

    def statistics(self) -> dict[str, Any]:
        return {"pages": self._pages, "ahead": self._ahead.statistics()}
