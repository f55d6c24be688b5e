"""Inodes: loading, saving, numbering, freeing, and the totals of the shard.

Inodes are cached. One that changed is saved once, at the end of the entry, however many operations changed it; so
whoever reads an inode reads it here and never in the tables. The cache is dropped between entries, never within one.
"""

from __future__ import annotations

from metadata.state import keys
from metadata.state.blocks import Blocks
from metadata.state.records import Inode, ShardRecord, decode_inode, decode_shard, encode
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from node.wire.errors import Code, FsError
from node.wire.limits import INODE_CACHE_MAX
from node.wire.types import SEQUENCE_BITS

SLOT = 0  # every inode number belongs to slot 0 until directories are spread over slots
INO_MAX = (1 << 64) - 2
XATTRS_AT_ONCE = 16  # a freed inode's extended attributes are deleted with it, up to so many


class Inodes:
    """The inodes of one shard. Numbers are slot << 44 | sequence and are never given twice."""

    def __init__(self, tables: Tables, blocks: Blocks) -> None:
        self._tables = tables
        self._blocks = blocks
        self._cache: dict[int, Inode] = {}
        self._dirty: dict[int, Inode] = {}
        self._saved = ShardRecord()
        self.next_sequence = 1
        self.files = 0  # inodes that exist, removed and held ones included
        self.bytes = 0  # that their extents cover
        self.reload()

    def reload(self) -> None:
        """Forget what is cached: the tables were replaced."""
        assert not self._dirty
        self._cache.clear()
        value = self._tables.get(keys.SHARD_KEY)
        self._saved = ShardRecord() if value is None else decode_shard(value)
        self.next_sequence = self._saved.next_sequence
        self.files = self._saved.files
        self.bytes = self._saved.bytes

    def flush(self) -> None:
        """Write what the entry changed. The end of an entry."""
        put = self._tables.put
        for ino, inode in self._dirty.items():
            put(keys.inode(ino), encode(inode))
        self._dirty.clear()
        saved = self._saved
        if (self.next_sequence, self.files, self.bytes) != (saved.next_sequence, saved.files, saved.bytes):
            self._saved = ShardRecord(self.next_sequence, self.files, self.bytes)
            put(keys.SHARD_KEY, encode(self._saved))
        self.trim()

    def changed(self) -> tuple[int, ...]:
        """The inodes that this entry changed and did not free."""
        return tuple(self._dirty)

    def trim(self) -> None:
        """Bound the cache. Between entries only: within one, the cache is the truth."""
        assert not self._dirty
        if len(self._cache) > INODE_CACHE_MAX:
            self._cache.clear()

    def statistics(self) -> dict[str, int]:
        """Counters for people and metrics."""
        return {"inode_cache": len(self._cache), "next_sequence": self.next_sequence}

    def find(self, ino: int) -> Inode | None:
        """Return the inode, or None where there is none."""
        inode = self._cache.get(ino)
        if inode is None:
            if not 0 < ino <= INO_MAX:
                return None
            value = self._tables.get(keys.inode(ino))
            if value is None:
                return None
            inode = self._cache[ino] = decode_inode(value)
        return inode

    def load(self, ino: int) -> Inode:
        """Return the inode. STALE where there is none (any more)."""
        inode = self.find(ino)
        if inode is None:
            raise FsError(Code.STALE, f"inode {ino} does not exist")
        return inode

    def save(self, inode: Inode) -> None:
        """Have the inode written at the end of the entry."""
        self._dirty[inode.ino] = inode

    def add(self, inode: Inode) -> None:
        """Bring a new inode into being."""
        self.files += 1
        self.bytes += inode.stored
        self._cache[inode.ino] = inode
        self._dirty[inode.ino] = inode

    def allocate(self, count: int = 1) -> int:
        """Return the first of ``count`` inode numbers that nobody ever had. NO_SPACE when the slot's are used up."""
        if (self.next_sequence + count) >> SEQUENCE_BITS:
            raise FsError(Code.NO_SPACE, "the inode numbers of this slot are used up")
        first = SLOT << SEQUENCE_BITS | self.next_sequence
        self.next_sequence += count
        return first

    def orphan(self, inode: Inode, turn: Turn, vouched: bool) -> bool:
        """The last name is gone: keep the inode for every session that may have it open, else free it.

        ``vouched``: the session of this entry does not hold it. Returns whether that session does.
        """
        assert inode.nlink == 0 and inode.holders == 0
        ino = inode.ino
        for session in turn.live:
            if vouched and session == turn.session:
                continue
            self._tables.put(keys.orphan(session, ino), b"")
            inode.holders += 1
            turn.orphaned.setdefault(session, []).append(ino)
        if inode.holders:
            self.save(inode)
            return not vouched and turn.session in turn.live
        self.free(inode, turn)
        return False

    def release(self, session: int, ino: int, turn: Turn) -> None:
        """``session`` does not hold this removed inode; where it was no orphan of it nothing happens."""
        if not 0 < ino <= INO_MAX or not self._tables.delete(keys.orphan(session, ino)):
            return
        inode = self.load(ino)
        inode.holders -= 1
        if inode.holders:
            self.save(inode)
        else:
            self.free(inode, turn)

    def free(self, inode: Inode, turn: Turn) -> None:
        """End an inode without names and holders. Rows that it has many of are left to jobs."""
        ino = inode.ino
        self.files -= 1
        self.bytes -= inode.stored
        self._cache.pop(ino, None)
        self._dirty.pop(ino, None)
        self._tables.delete(keys.inode(ino))
        if inode.rows:
            self._tables.put(keys.job(keys.JOB_DATA, ino, inode.generation), b"")
        elif inode.extents:
            deltas: dict[bytes, int] = {}
            for extent in inode.extents:
                deltas[extent.block] = deltas.get(extent.block, 0) - 1
            self._blocks.adjust(deltas, turn.gc_epoch)
        if inode.xattr_count > XATTRS_AT_ONCE:
            self._tables.put(keys.job(keys.JOB_XATTRS, ino), b"")
        elif inode.xattr_count:
            for key, _ in self._tables.range(*keys.xattrs(ino)):
                self._tables.delete(key)
        turn.freed.append(ino)


def touch(inode: Inode, time_ns: int) -> None:
    """Attributes changed."""
    inode.ctime_ns = time_ns
    inode.version += 1


def touch_names(directory: Inode, time_ns: int) -> None:
    """A directory's names changed."""
    directory.mtime_ns = directory.ctime_ns = time_ns
    directory.version += 1
    directory.data_version += 1
