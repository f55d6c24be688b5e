"""Operations on the bytes of a file: commit, truncate, punch, clone."""

from __future__ import annotations

import stat

from metadata.api import AttrResult, CloneRange, Commit, Committed, Extent, PunchHole
from metadata.state import extents as algebra
from metadata.state.data import Change, Data
from metadata.state.inodes import Inodes
from metadata.state.logged import Logged
from metadata.state.records import Inode, attr_of
from metadata.state.turn import Turn
from metadata.state.validate import TIME_MAX, check_extents, check_range, check_size, clamp_time
from node.wire.errors import Code, FsError
from node.wire.limits import COMMIT_EXTENTS_MAX, FILE_BYTES_MAX


class Files:
    """Data operations of one shard."""

    def __init__(self, inodes: Inodes, data: Data, logged: Logged) -> None:
        self._inodes = inodes
        self._data = data
        self._logged = logged

    def regular(self, ino: int) -> Inode:
        """Return a regular file's inode. STALE, IS_DIRECTORY or INVALID."""
        inode = self._inodes.load(ino)
        kind = stat.S_IFMT(inode.mode)
        if kind != stat.S_IFREG:
            raise FsError(Code.IS_DIRECTORY if kind == stat.S_IFDIR else Code.INVALID, f"inode {ino} is no file")
        return inode

    def commit(self, op: Commit, turn: Turn) -> Committed:
        inode = self.regular(op.ino)
        check_size(op.size)
        check_extents(op.extents)
        if op.base_version and op.base_version != inode.data_version:
            raise FsError(Code.VERSION_MISMATCH, f"data version {inode.data_version}, not {op.base_version}")
        plain = None
        if op.data:
            plain = self._logged.check(op.extents, op.data)
        else:
            turn.check_blocks(op.extents, op.touch_epoch, op.pg_epoch)
        extents, size, offset = self._place(op, inode)
        if extents:
            size = max(size, extents[-1].offset + extents[-1].length)
        change = self._data.plan_overlay(inode, extents)
        if op.merge:
            return self._merge(op, change, size, turn)
        self._write(change, max(inode.size, size), clamp_time(op.mtime_ns), turn)
        if plain:
            self._logged.add(plain)
        return Committed(attr_of(inode), offset)

    def _merge(self, op: Commit, change: Change, size: int, turn: Turn) -> Committed:
        """The same bytes in other blocks. Only the version of the data rises: whoever knows the old extents must not
        go on using them, because their blocks may be deleted."""
        inode = change.inode
        if not op.base_version or op.append or op.data or change.stored or size > inode.size:
            raise FsError(Code.INVALID, "a merge that is not only one")
        inode.version += 1
        inode.data_version += 1
        self._data.carry_out(change, turn)
        return Committed(attr_of(inode), op.extents[0].offset if op.extents else 0)

    def _place(self, op: Commit, inode: Inode) -> tuple[list[Extent] | tuple[Extent, ...], int, int]:
        """Return the commit's extents and size where they belong, and where an append landed (rule 9)."""
        if not op.append:
            return op.extents, op.size, op.extents[0].offset if op.extents else op.size
        check_size(op.expected_size)
        if op.size < op.expected_size or (op.extents and op.extents[0].offset < op.expected_size):
            raise FsError(Code.INVALID, f"an append from {op.expected_size} that begins or ends before it")
        if op.extents:
            last = op.extents[-1]
            check_size(max(op.size, last.offset + last.length) - op.expected_size + inode.size)
        delta = inode.size - op.expected_size
        check_size(op.size + delta)
        extents = algebra.shift(op.extents, delta) if delta else op.extents
        return extents, op.size + delta, inode.size

    def truncate(self, inode: Inode, size: int, mtime_ns: int, turn: Turn) -> None:
        """Set the size; what is beyond goes, and reads as zeros should the file grow again."""
        if size < inode.size:
            change = self._data.plan_erase(inode, size, FILE_BYTES_MAX, turn)
        else:
            change = self._data.plan_overlay(inode, ())
        self._write(change, size, mtime_ns, turn)

    def punch(self, op: PunchHole, turn: Turn) -> AttrResult:
        inode = self.regular(op.ino)
        check_range(op.offset, op.length)
        change = self._data.plan_erase(inode, op.offset, op.offset + op.length, turn)
        self._write(change, inode.size, turn.time_ns, turn)
        return AttrResult(attr_of(inode))

    def clone(self, op: CloneRange, turn: Turn) -> Committed:
        source, target = self.regular(op.source), self.regular(op.target)
        check_range(op.source_offset, op.length)
        check_range(op.target_offset, op.length)
        distance = op.target_offset - op.source_offset
        if source is target and abs(distance) < op.length:
            raise FsError(Code.INVALID, "source and target overlap")
        end = min(op.source_offset + op.length, source.size)
        if end <= op.source_offset:
            return Committed(attr_of(target), op.target_offset)
        found, more = self._data.read(source, op.source_offset, end, COMMIT_EXTENTS_MAX)
        if more:
            raise FsError(Code.TOO_BIG, f"more than {COMMIT_EXTENTS_MAX} extents in one clone: take it in parts")
        pieces = algebra.shift(algebra.clip(found, op.source_offset, end), distance)
        change = self._data.plan_erase(target, op.target_offset, end + distance, turn, pieces)
        self._write(change, max(target.size, end + distance), turn.time_ns, turn)
        return Committed(attr_of(target), end + distance)

    def _write(self, change: Change, size: int, mtime_ns: int, turn: Turn) -> None:
        """Carry out a change of data: mtime strictly rises with each, to the end of what can be stored (rule 6)."""
        inode = change.inode
        inode.size = size
        inode.mtime_ns = min(max(mtime_ns, inode.mtime_ns + 1), TIME_MAX)
        inode.ctime_ns = turn.time_ns
        inode.version += 1
        inode.data_version += 1
        self._data.carry_out(change, turn)
