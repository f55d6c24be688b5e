"""What this mount knows of inodes, by the right of its leases. Pure; bounded by bytes: the least recently used goes.

One record holds all that is known of an inode, so a recall is the removal of one record. That something is not here
means only that it is not known: whoever asks has to ask the service. Whether something may be put here, and whether
what is here may be believed now, is decided by ``fusefs.client.leases``.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Optional

from msgspec.structs import replace

from metadata.api import Attr, Commit, Committed, Extent, Op, PunchHole, Result, SetAttr

NO_END = 1 << 63
ABSENT = 0  # instead of an inode number: there is no such name

_RECORD_BYTES = 700
_NAME_BYTES = 130
_EXTENT_BYTES = 220


class Layout(NamedTuple):
    """All extents of a file that meet [start, end), of one version of its data."""

    data_version: int
    start: int
    end: int
    extents: tuple[Extent, ...]


class Record:
    """What is known of one inode. None: not known."""

    __slots__ = (
        "attr", "names", "complete", "shown", "missed", "layout", "target", "xattrs", "xattrs_complete", "weight",
        "listed", "exclusive", "unlocked", "_order",
    )  # fmt: skip

    def __init__(self) -> None:
        self.attr: Optional[Attr] = None
        self.names: dict[bytes, int] = {}  # of a directory; ABSENT where there is no such name
        self.complete = False  # a name that is not in ``names`` does not exist
        self.shown = False  # its names were read out
        self.missed = b""  # the name that was asked for last and is not there
        self.layout: Optional[Layout] = None
        self.target: Optional[bytes] = None
        self.xattrs: dict[bytes, Optional[bytes]] = {}  # None: the file has no such attribute
        self.xattrs_complete = False
        self.weight = _RECORD_BYTES
        self.listed: Optional[bytes] = None  # all names up to this one are in ``names``, or absent
        self.exclusive = False  # nobody else sees or changes the inode before we are asked
        self.unlocked = False  # nobody had a lock on it when it was leased exclusively, so we decide about its locks
        self._order: Optional[list[bytes]] = None

    def ordered(self) -> list[bytes]:
        """The names that exist, in order."""
        if self._order is None:
            self._order = sorted(name for name, ino in self.names.items() if ino)
        return self._order

    def reorder(self) -> None:
        """The names changed."""
        self._order = None


class Facts:
    """Records by inode number."""

    def __init__(self, bytes_max: int) -> None:
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._max = bytes_max
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, ino: int) -> bool:
        return ino in self._records

    def find(self, ino: int) -> Optional[Record]:
        """What is known of an inode, which is used now."""
        record = self._records.get(ino)
        if record is not None:
            self._records.move_to_end(ino)
        return record

    def peek(self, ino: int) -> Optional[Record]:
        """What is known of an inode, without using it."""
        return self._records.get(ino)

    def take(self, ino: int) -> Record:
        """The record of an inode, a new one where there is none."""
        record = self._records.get(ino)
        if record is None:
            record = self._records[ino] = Record()
            self.bytes += record.weight
            self._evict()
        else:
            self._records.move_to_end(ino)
        return record

    def drop(self, ino: int) -> None:
        """Forget an inode."""
        record = self._records.pop(ino, None)
        if record is not None:
            self.bytes -= record.weight

    def clear(self) -> None:
        """Forget all."""
        self._records.clear()
        self.bytes = 0

    # --- filling ------------------------------------------------------------------------------------------------

    def put_attr(self, attr: Attr) -> None:
        """Attributes, unless newer ones are known."""
        record = self.take(attr.ino)
        if record.attr is None or attr.version >= record.attr.version:
            record.attr = attr
            if record.layout is not None and record.layout.data_version != attr.data_version:
                self.put_layout(attr.ino, None)
            if not attr.size and not record.complete and attr.nlink and stat.S_ISDIR(attr.mode):
                self._empty(record)

    def _empty(self, record: Record) -> None:
        """A directory of size 0 has no names; the size is of the same lease and the same version as they."""
        self._weigh(record, -sum(_NAME_BYTES + len(name) for name in record.names))
        record.names.clear()
        record.complete = True
        record.listed = None
        record.reorder()

    def put_name(self, parent: int, name: bytes, ino: int) -> None:
        """What a name means; ABSENT: nothing."""
        record = self.take(parent)
        if not ino and record.complete:  # what is not there does not exist
            if record.names.pop(name, None) is not None:
                record.reorder()
                self._weigh(record, -_NAME_BYTES - len(name))
            return
        if name not in record.names:
            self._weigh(record, _NAME_BYTES + len(name))
        record.names[name] = ino
        record.reorder()

    def put_stored(self, ino: int, stored: int) -> None:
        """How much of a file is stored, which could not be foretold."""
        record = self._records.get(ino)
        if record is not None and record.attr is not None and record.attr.stored != stored:
            record.attr = replace(record.attr, stored=stored)

    def drop_name(self, parent: int, name: bytes) -> None:
        """It is not known any more what a name means."""
        record = self._records.get(parent)
        if record is None:
            return
        record.complete = False
        record.listed = None
        record.reorder()
        if record.names.pop(name, None) is not None:
            self._weigh(record, -_NAME_BYTES - len(name))

    def listed(self, ino: int, after: bytes, last: bytes, end: bool) -> None:
        """All names after one and up to ``last`` were put; with ``end`` there are no others behind."""
        record = self.take(ino)
        if not after or record.listed == after:
            record.listed = None if end else last
            record.complete = record.complete or end

    def put_layout(self, ino: int, layout: Optional[Layout]) -> None:
        """Where the data of a file is; None: not known."""
        record = self.take(ino)
        old = 0 if record.layout is None else _EXTENT_BYTES * len(record.layout.extents)
        new = 0 if layout is None else _EXTENT_BYTES * len(layout.extents)
        record.layout = layout
        self._weigh(record, new - old)

    def brought(self, op: Op, result: Result, *, foretold: bool) -> None:
        """A part of the journal was executed: where data is now. ``foretold``: but for extents that was known."""
        if isinstance(op, Commit) and isinstance(result, Committed):
            moved = op.append and result.offset != op.expected_size
            self._put_extents(op.ino, op.extents, moved=moved)
        elif isinstance(op, (SetAttr, PunchHole)) and not foretold and op.ino in self._records:
            self.put_layout(op.ino, None)

    def _put_extents(self, ino: int, extents: Sequence[Extent], *, moved: bool) -> None:
        """Data of a file was committed: where it is now, as far as that can be told simply."""
        record = self._records.get(ino)
        if record is None or record.layout is None or not extents:
            return
        if moved:
            self.put_layout(ino, None)
            return
        layout = record.layout
        end = layout.extents[-1].offset + layout.extents[-1].length if layout.extents else 0
        known = layout.start == 0 and layout.end == NO_END
        if known and extents[0].offset >= end:
            self.put_layout(ino, layout._replace(extents=layout.extents + tuple(extents)))
        else:
            self.put_layout(ino, None)

    def put_target(self, ino: int, target: bytes) -> None:
        """The target of a symbolic link."""
        record = self.take(ino)
        if record.target is None:
            self._weigh(record, len(target))
        record.target = target

    def put_xattr(self, ino: int, name: bytes, value: Optional[bytes]) -> None:
        """An extended attribute; None: it is not set."""
        record = self.take(ino)
        if name in record.xattrs:
            return
        record.xattrs[name] = value
        self._weigh(record, _NAME_BYTES + len(name) + len(value or b""))

    def drop_xattrs(self, ino: int) -> None:
        """The extended attributes are not known any more."""
        record = self._records.get(ino)
        if record is not None:
            record.xattrs_complete = False
            self._weigh(
                record, -sum(_NAME_BYTES + len(name) + len(value or b"") for name, value in record.xattrs.items())
            )
            record.xattrs.clear()

    def _weigh(self, record: Record, change: int) -> None:
        record.weight += change
        self.bytes += change
        if change > 0:
            self._evict()

    def _evict(self) -> None:
        """The newest record stays, whatever it weighs, until another one comes."""
        while self.bytes > self._max and len(self._records) > 1:
            _, record = self._records.popitem(last=False)
            self.bytes -= record.weight
            self.evicted += 1


def meeting(extents: Sequence[Extent], offset: int, end: int) -> list[Extent]:
    """The extents that meet [offset, end); they are in order."""
    low, high = 0, len(extents)
    while low < high:
        middle = (low + high) // 2
        if extents[middle].offset + extents[middle].length <= offset:
            low = middle + 1
        else:
            high = middle
    found = []
    for extent in extents[low:]:
        if extent.offset >= end:
            break
        found.append(extent)
    return found
