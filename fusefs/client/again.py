"""What was known of inodes when they were recalled: whoever asks for some of it soon is likely to want all of it again.

A program that watches a file or a name that others change asks for the directory's attributes, the name, the file's
extents, one after the other, and each is a question to the service. So the first one brings the others along. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional, TypeVar

from fusefs.client.facts import Record
from metadata import api
from node.wire.limits import READ_QUERIES_MAX, READDIR_PAGE_MAX

T = TypeVar("T")

SOON_S = 1.0
WATCHED_S = 0.5
INODES_MAX = 1024
NAMES_MAX = 8  # who knows more of a directory does not wait for a certain one
LISTED_MAX = 128  # names of a directory that is listed again
LAST = 2  # names, the newest, and extended attributes
EXTENTS_MAX = 64
GROWN_BYTES = 65_536  # a file may be longer by now
LITTLE_BYTES = 65_536  # of a file whose name is looked up where files are read


class _Noted(NamedTuple):
    until_s: float
    queries: tuple[api.Query, ...]


class Again:
    """Questions by the inode that was recalled."""

    def __init__(self) -> None:
        self._noted: OrderedDict[int, _Noted] = OrderedDict()
        self._visited: OrderedDict[int, float] = OrderedDict()  # when others were known to look at an inode last
        self._readers: OrderedDict[int, None] = OrderedDict()  # directories whose files are read

    def __len__(self) -> int:
        return len(self._noted)

    def recalled(self, ino: int, record: Record, now_s: float) -> None:
        """This is known of an inode, and about to be forgotten."""
        self.visited((ino,), now_s)
        queries = tuple(_questions(ino, record))
        if not queries:
            return
        _keep(self._noted, ino, _Noted(now_s + SOON_S, queries))

    def visited(self, inos: Iterable[int], now_s: float) -> None:
        """Others look at these too, as the service says."""
        for ino in inos:
            _keep(self._visited, ino, now_s)

    def watched(self, ino: int, now_s: float) -> bool:
        """Whether others have looked at this lately; they may have been asked back for a change since."""
        at_s = self._visited.get(ino)
        return at_s is not None and now_s < at_s + WATCHED_S

    def reading(self, parent: int) -> None:
        """A file of this directory is read: who looks up others is likely to read them too."""
        _keep(self._readers, parent, None)

    def along(self, queries: Sequence[api.Query], now_s: float) -> tuple[api.Query, ...]:
        """What to ask for together with ``queries``, where that is one about one inode."""
        if len(queries) != 1 or not (self._noted or self._readers):
            return ()
        ino = _subject(queries[0])
        noted = None if ino is None else self._noted.pop(ino, None)
        along = list(self._content_of(queries[0]))
        if noted is not None and now_s < noted.until_s:
            for query in noted.queries:
                if query != queries[0]:
                    along += query, *self._content_of(query)
        return tuple(along)[: READ_QUERIES_MAX - 1]

    def _content_of(self, query: api.Query) -> tuple[api.Query, ...]:
        if isinstance(query, api.Lookup) and query.parent in self._readers and query.name not in (b".", b".."):
            return (api.GetExtents(api.FOUND, 0, LITTLE_BYTES),)
        return ()


def _keep(known: OrderedDict[int, T], ino: int, value: T) -> None:
    """Remember this as the newest; the oldest go."""
    known[ino] = value
    known.move_to_end(ino)
    if len(known) > INODES_MAX:
        known.popitem(last=False)


def _subject(query: api.Query) -> Optional[int]:
    if isinstance(query, api.Lookup):
        return query.parent
    if isinstance(query, (api.GetAttr, api.ReadDir, api.GetExtents, api.GetXattr, api.ListXattr)):
        return query.ino
    return None


def _questions(ino: int, record: Record) -> list[api.Query]:
    names = list(record.names) if len(record.names) <= NAMES_MAX else []
    if record.missed:
        names = [name for name in names if name != record.missed] + [record.missed]
    found: list[api.Query] = [api.Lookup(ino, name) for name in names[-LAST:]]
    if record.shown and len(record.names) <= LISTED_MAX:
        found = [api.ReadDir(ino, b"", READDIR_PAGE_MAX, True)]
    layout = record.layout
    if layout is not None and not layout.start and len(layout.extents) <= EXTENTS_MAX:
        size = max((extent.offset + extent.length for extent in layout.extents), default=0)
        found.append(api.GetExtents(ino, 0, 2 * size + GROWN_BYTES))
    found += [api.GetXattr(ino, name) for name, value in list(record.xattrs.items())[-LAST:] if value is not None]
    if found and record.attr is not None:
        found.append(api.GetAttr(ino))
    return found
