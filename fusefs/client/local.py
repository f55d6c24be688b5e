"""Changes of names and attributes that this mount makes by itself, under exclusive leases. Pure but for its clock.

Each method here executes one operation on the facts, with the very outcome that the service's apply will have: same
checks, same attributes, same versions. It returns None, and has changed nothing, where that cannot be told from what is
known and owned; then the caller asks the service. What was done is in the journal when a method returns.

The mirror of ``metadata.state.names`` and ``attributes``; a test compares the two on random operations.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import Optional

from msgspec.structs import replace

from fusefs.client.facts import ABSENT, NO_END, Layout, Record
from fusefs.client.journal import Journal
from fusefs.client.leases import Leases
from metadata import api
from metadata.api import Attr
from node.wire.errors import Code, FsError
from node.wire.limits import LINKS_MAX, NAME_BYTES_MAX

_TIME_MAX = (1 << 63) - 1
_PERMISSIONS = 0o7777
COUNTED_MAX = 1024  # extents and runs; beyond, what is stored is told when it is there


class Local:
    """Executes operations on owned inodes. ``now_ns`` stamps them."""

    def __init__(
        self, leases: Leases, journal: Journal, now_s: Callable[[], float], now_ns: Callable[[], int]
    ) -> None:
        self._leases = leases
        self._facts = leases.facts
        self._journal = journal
        self._now_s = now_s
        self._now_ns = now_ns
        self.done = 0
        self.changing: Callable[[int], bool] = lambda ino: False  # the service changes its data, nobody knows yet how

    # --- what is owned ------------------------------------------------------------------------------------------

    def owned(self, ino: int) -> Optional[Record]:
        """What is known of an inode that may be changed here; None: ask the service."""
        if not self._journal.open:
            return None
        return self._leases.owned(ino, self._now_s())

    def _settled(self, ino: int) -> Optional[Record]:
        """The same where it is known what the inode will be: what is made of it here is told from then on."""
        return None if self.changing(ino) else self.owned(ino)

    def _directory(self, ino: int) -> Optional[Record]:
        record = self.owned(ino)
        if record is None or record.attr is None or not stat.S_ISDIR(record.attr.mode) or not record.attr.nlink:
            return None
        return record

    @staticmethod
    def _child(directory: Record, name: bytes) -> Optional[int]:
        """What a name means, ABSENT where there is none; None: not known."""
        return directory.names.get(name, ABSENT if directory.complete else None)

    # --- operations ---------------------------------------------------------------------------------------------

    def make(self, op: api.Make) -> Optional[api.Made]:
        """Create a name, with a number from the session's range. Raises EXISTS."""
        parent = self._directory(op.parent)
        known = None if parent is None else self._child(parent, op.name)
        if parent is None or known is None or not _plain(op.name):
            return None
        assert parent.attr is not None
        if known != ABSENT:
            return self._existing(op, parent.attr, known)
        if parent.attr.flags & api.ATTR_DEFAULT_ACL:
            return None  # which hands down more than is known here
        ino = self._journal.take_ino()
        if not ino:
            return None
        now = self._now_ns()
        attr = _fresh(op, ino, parent.attr, now)
        self._name(parent, op.parent, op.name, ino, subdirectories=int(stat.S_ISDIR(op.mode)), entries=1, now=now)
        self._facts.put_attr(attr)
        record = self._facts.take(ino)
        record.exclusive = record.unlocked = record.xattrs_complete = True
        if stat.S_ISDIR(attr.mode):
            record.complete = True
        elif stat.S_ISREG(attr.mode):
            self._facts.put_layout(ino, Layout(attr.data_version, 0, NO_END, ()))
        elif stat.S_ISLNK(attr.mode):
            self._facts.put_target(ino, op.target)
        self._record(replace(op, ino=ino), now, op.parent, ino)
        return api.Made(attr, False, parent.attr)

    def _existing(self, op: api.Make, parent: Attr, ino: int) -> Optional[api.Made]:
        if op.exclusive or not stat.S_ISREG(op.mode):
            raise FsError(Code.EXISTS, repr(op.name))
        attr = self._leases.attr(ino, self._now_s())
        if attr is None:
            return None
        if stat.S_ISDIR(attr.mode):
            raise FsError(Code.IS_DIRECTORY, repr(op.name))
        return api.Made(attr, True, parent)

    def link(self, op: api.Link) -> Optional[api.AttrResult]:
        """Give a file another name. Raises EXISTS, TOO_MANY_LINKS."""
        parent, record = self._directory(op.parent), self._settled(op.ino)
        known = None if parent is None else self._child(parent, op.name)
        if record is None or record.attr is None or known is None or not _plain(op.name):
            return None
        if stat.S_ISDIR(record.attr.mode) or not record.attr.nlink:
            return None
        if known != ABSENT:
            raise FsError(Code.EXISTS, repr(op.name))
        if record.attr.nlink >= LINKS_MAX:
            raise FsError(Code.TOO_MANY_LINKS, f"inode {op.ino} has {record.attr.nlink} names")
        now = self._now_ns()
        attr = self._touch(record, now, nlink=record.attr.nlink + 1)
        assert parent is not None
        self._name(parent, op.parent, op.name, op.ino, entries=1, now=now)
        self._record(op, now, op.parent, op.ino)
        return api.AttrResult(attr)

    def remove(self, op: api.Remove) -> Optional[api.Removed]:
        """Take a name away. ``op.not_held`` says of the inode what it would to the service. Raises NOT_FOUND and the
        like."""
        parent = self._directory(op.parent)
        known = None if parent is None else self._child(parent, op.name)
        if parent is None or known is None or not _plain(op.name):
            return None
        if known == ABSENT:
            raise FsError(Code.NOT_FOUND, repr(op.name))
        record = self._settled(known)
        if record is None or record.attr is None:
            return None
        is_directory = stat.S_ISDIR(record.attr.mode)
        if op.directory and not is_directory:
            raise FsError(Code.NOT_DIRECTORY, repr(op.name))
        if not op.directory and is_directory:
            raise FsError(Code.IS_DIRECTORY, repr(op.name))
        if is_directory and record.attr.size:
            raise FsError(Code.NOT_EMPTY, repr(op.name))
        now = self._now_ns()
        self._name(parent, op.parent, op.name, ABSENT, subdirectories=-int(is_directory), entries=-1, now=now)
        nlink, held = self._unname(known, record, known in op.not_held, now)
        self._record(op, now, op.parent, known)
        return api.Removed(known, nlink, held, parent.attr)

    def rename(self, op: api.Rename) -> Optional[api.Renamed]:
        """rename(2) where no directory changes its parent. Raises EXISTS, NOT_FOUND, NOT_EMPTY and the like."""
        source, target = self._directory(op.parent), self._directory(op.new_parent)
        if source is None or target is None or op.flags not in (0, api.RENAME_NOREPLACE):
            return None
        ino, other = self._child(source, op.name), self._child(target, op.new_name)
        if ino is None or other is None or not _plain(op.name) or not _plain(op.new_name):
            return None
        if ino == ABSENT:
            raise FsError(Code.NOT_FOUND, repr(op.name))
        if other != ABSENT and op.flags & api.RENAME_NOREPLACE:
            raise FsError(Code.EXISTS, repr(op.new_name))
        if other == ino:
            return api.Renamed(ino)
        moved = self._settled(ino)
        victim = None if other == ABSENT else self._settled(other)
        if moved is None or moved.attr is None or (other != ABSENT and (victim is None or victim.attr is None)):
            return None
        is_directory = stat.S_ISDIR(moved.attr.mode)
        if is_directory and op.parent != op.new_parent:
            return None  # whether it would move below itself the service must say
        if victim is not None and victim.attr is not None:
            _check_replaced(op, is_directory, victim.attr)
        now = self._now_ns()
        replaced = int(victim is not None)
        subdirectories = replaced * int(is_directory)
        self._name(
            target, op.new_parent, op.new_name, ino, subdirectories=-subdirectories, entries=1 - replaced, now=now
        )
        if op.parent == op.new_parent:
            self._facts.put_name(op.parent, op.name, ABSENT)
            assert source.attr is not None
            source.attr = replace(source.attr, size=source.attr.size - 1)
        else:
            self._name(source, op.parent, op.name, ABSENT, entries=-1, now=now)
        self._touch(moved, now)
        nlink, held = 0, False
        if victim is not None:
            nlink, held = self._unname(other, victim, other in op.not_held, now)
        self._record(op, now, op.parent, op.new_parent, ino, *([other] if other else []))
        return api.Renamed(ino, other, nlink, held)

    def set_attr(self, op: api.SetAttr) -> Optional[api.AttrResult]:
        """Change attributes; of the size only 0 and growth. The file has nothing dirty, or ``op`` no size."""
        record = self.owned(op.ino)
        if record is None or record.attr is None:
            return None
        if op == api.SetAttr(op.ino):
            return api.AttrResult(record.attr)
        attr, now = record.attr, self._now_ns()
        if op.mode is not None and attr.flags & api.ATTR_ACCESS_ACL:
            return None  # the list changes with it
        if op.size is not None and (not stat.S_ISREG(attr.mode) or 0 < op.size < attr.size or record.layout is None):
            return None
        changes: dict[str, int] = {}
        if op.size is not None:
            wanted = now if op.mtime_ns is None else _time(op.mtime_ns, now)
            changes["size"] = op.size
            changes["mtime_ns"] = min(max(wanted, attr.mtime_ns + 1), _TIME_MAX)
            changes["data_version"] = attr.data_version + 1
            changes["version"] = attr.version + 2
            if op.size == 0:
                changes["stored"] = 0
        elif op.mtime_ns is not None:
            changes["mtime_ns"] = _time(op.mtime_ns, now)
        if op.atime_ns is not None:
            changes["atime_ns"] = _time(op.atime_ns, now)
        _own(attr, op, changes)
        ctime_ns = now
        if op.ctime_ns is not None and op.ctime_ns != api.TIME_NOW:
            before = attr.ctime_ns if op.size is None else now
            ctime_ns = max(before, _time(op.ctime_ns, now))
        changes.setdefault("version", attr.version + 1)
        record.attr = attr = replace(attr, ctime_ns=ctime_ns, **changes)
        if op.size is not None and record.layout is not None:
            extents = () if op.size == 0 else record.layout.extents
            self._facts.put_layout(op.ino, record.layout._replace(data_version=attr.data_version, extents=extents))
            if op.size == 0:
                self._facts.put_layout(op.ino, Layout(attr.data_version, 0, NO_END, ()))
        self._record(op, now, op.ino)
        return api.AttrResult(attr)

    def data(self, ino: int, runs: Sequence[tuple[int, int]], mtime_ns: int) -> Optional[int]:
        """Dirty bytes of a file (``runs``: from, to, in order) are about to be committed by the journal: what is told
        of it from now on is what the commit will make of it. Returns the time of the commit; None where the inode is
        not owned."""
        record = self.owned(ino)
        if record is None or record.attr is None or not stat.S_ISREG(record.attr.mode):
            return None
        attr, now = record.attr, self._now_ns()
        record.attr = replace(
            attr,
            size=max(attr.size, runs[-1][1] if runs else 0),
            stored=_stored(record, runs),
            mtime_ns=min(max(mtime_ns, attr.mtime_ns + 1), _TIME_MAX),
            ctime_ns=now,
            version=attr.version + 1,
            data_version=attr.data_version + 1,
        )
        if record.layout is not None:
            self._facts.put_layout(ino, record.layout._replace(data_version=attr.data_version + 1))
        self._leases.changed(ino)
        return now

    # --- parts --------------------------------------------------------------------------------------------------

    def _touch(self, record: Record, now: int, **changes: int) -> Attr:
        assert record.attr is not None
        record.attr = replace(record.attr, ctime_ns=now, version=record.attr.version + 1, **changes)
        return record.attr

    def _name(
        self,
        record: Record,
        parent: int,
        name: bytes,
        ino: int,
        *,
        entries: int,
        now: int,
        subdirectories: int = 0,
    ) -> None:
        """A name of an owned directory means something else."""
        attr = record.attr
        assert attr is not None
        self._journal.base(parent, attr.data_version)
        record.attr = replace(
            attr,
            nlink=attr.nlink + subdirectories,
            size=attr.size + entries,
            mtime_ns=now,
            ctime_ns=now,
            version=attr.version + 1,
            data_version=attr.data_version + 1,
        )
        self._facts.put_name(parent, name, ino)

    def _unname(self, ino: int, record: Record, vouched: bool, now: int) -> tuple[int, bool]:
        """An inode loses a name; returns how many it has left, and whether this session still holds it."""
        assert record.attr is not None
        nlink = 0 if stat.S_ISDIR(record.attr.mode) else record.attr.nlink - 1
        self._touch(record, now, nlink=nlink)
        if not nlink and vouched:
            self._facts.drop(ino)
        return nlink, not nlink and not vouched

    def _record(self, op: api.Op, now: int, *inos: int) -> None:
        self.done += 1
        self._leases.changed(*inos)
        self._journal.add(op, now, inos)


def _stored(record: Record, runs: Sequence[tuple[int, int]]) -> int:
    """How many bytes of a file are stored when these are written. Where it is not known where the others are, as if
    these were new, which they mostly are; the service will say."""
    assert record.attr is not None
    layout = record.layout
    if layout is None or layout.start or layout.end != NO_END or len(layout.extents) + len(runs) > COUNTED_MAX:
        size = max(record.attr.size, runs[-1][1] if runs else 0)
        return min(record.attr.stored + sum(stop - start for start, stop in runs), max(size, record.attr.stored))
    stored = end = 0
    for start, stop in sorted([*runs, *[(extent.offset, extent.offset + extent.length) for extent in layout.extents]]):
        stored += max(stop - max(start, end), 0)
        end = max(end, stop)
    return stored


def _plain(name: bytes) -> bool:
    return 0 < len(name) <= NAME_BYTES_MAX and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def _fresh(op: api.Make, ino: int, parent: Attr, now: int) -> Attr:
    """The attributes of a new inode; a directory with the setgid bit hands down its group."""
    mode, gid = op.mode & ~(op.umask & 0o777), op.gid
    is_directory = stat.S_ISDIR(mode)
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if is_directory:
            mode |= stat.S_ISGID
    return Attr(
        ino=ino,
        mode=mode,
        nlink=2 if is_directory else 1,
        uid=op.uid,
        gid=gid,
        rdev=op.rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
        size=len(op.target),
        stored=0,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        btime_ns=now,
        version=1,
        data_version=1,
    )


def _check_replaced(op: api.Rename, is_directory: bool, victim: Attr) -> None:
    if is_directory and not stat.S_ISDIR(victim.mode):
        raise FsError(Code.NOT_DIRECTORY, repr(op.new_name))
    if not is_directory and stat.S_ISDIR(victim.mode):
        raise FsError(Code.IS_DIRECTORY, repr(op.new_name))
    if is_directory and victim.size:
        raise FsError(Code.NOT_EMPTY, repr(op.new_name))


def _own(attr: Attr, op: api.SetAttr, changes: dict[str, int]) -> None:
    """Mode and owners. A file that changes hands loses setuid and setgid unless a mode is set with it."""
    mode = attr.mode
    if op.mode is not None:
        changes["mode"] = stat.S_IFMT(mode) | (op.mode & _PERMISSIONS)
    elif (op.uid is not None or op.gid is not None or op.drop_setid) and stat.S_ISREG(mode):
        mode &= ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        changes["mode"] = mode
    if op.uid is not None:
        changes["uid"] = op.uid
    if op.gid is not None:
        changes["gid"] = op.gid


def _time(asked_ns: int, now: int) -> int:
    return now if asked_ns == api.TIME_NOW else min(max(asked_ns, 1 - (1 << 63)), _TIME_MAX)
