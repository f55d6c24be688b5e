"""Queries: read only, all of a batch from one state, each bounded and the batch too."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from metadata.api import (
    FOUND,
    Attr,
    AttrResult,
    DirEntry,
    Entries,
    Extents,
    Failed,
    GetAttr,
    GetBlock,
    GetExtents,
    GetLock,
    GetXattr,
    ListXattr,
    Lookup,
    Names,
    Query,
    ReadDir,
    ReadLink,
    Result,
    StatVolume,
    Target,
    Value,
    VolumeStat,
    Walk,
)
from metadata.state import keys
from metadata.state.records import Inode, attr_of
from metadata.state.shard import Shard
from metadata.state.tables import Tables
from metadata.state.validate import check_name
from node.wire.errors import Code, FsError
from node.wire.limits import (
    BODY_BYTES_MAX,
    EXTENT_PAGE_MAX,
    FILE_BYTES_MAX,
    KIB,
    LOG_DATA_COMMIT_BYTES,
    LOG_DATA_PAGE_BYTES,
    LOOKUP_PATH_DEPTH_MAX,
    READ_QUERIES_MAX,
    READDIR_PAGE_BYTES_MAX,
    READDIR_PAGE_MAX,
)
from node.wire.types import BLOCK_ID_BYTES

# Upper bounds of what a thing takes in an encoded reply
_ATTR_BYTES = 15 * 9 + 8
_ENTRY_BYTES = 9 + 9 + 8  # beside its name
_EXTENT_BYTES = 80
_NAME_BYTES = 16  # and what finding it costs
_STEP_BYTES = 64  # a step of a path takes none, but time
_RESULT_BYTES = _ATTR_BYTES + 64

_REPLY_BYTES_MAX = BODY_BYTES_MAX - 512 * KIB  # the largest single result may begin just below this
assert READ_QUERIES_MAX * (_RESULT_BYTES + 256) < 512 * KIB
assert EXTENT_PAGE_MAX * _EXTENT_BYTES + LOG_DATA_PAGE_BYTES + LOG_DATA_COMMIT_BYTES < 512 * KIB


class Queries:
    """Answers queries from the tables as they are."""

    def __init__(self, tables: Tables, shard: Shard) -> None:
        self._tables = tables
        self._shard = shard
        self._found = FOUND  # by the last Lookup
        self._budget = 0  # bytes of reply that are left for what varies in size
        self._answers: dict[type[msgspec.Struct], Callable[[Any], Result]] = {
            Lookup: self.lookup,
            GetAttr: self.get_attr,
            ReadDir: self.read_dir,
            ReadLink: self.read_link,
            GetXattr: self.get_xattr,
            ListXattr: self.list_xattr,
            GetExtents: self.get_extents,
            StatVolume: self.stat_volume,
            Walk: self.walk,
            GetBlock: self.get_block,
            GetLock: shard.locks.get,
        }

    def answer(self, queries: Sequence[Query]) -> tuple[Result, ...]:
        """Answer each query. What does not fit into one reply any more is Failed OVERLOADED: ask for it again alone.

        Raises TOO_BIG for more than READ_QUERIES_MAX.
        """
        if len(queries) > READ_QUERIES_MAX:
            raise FsError(Code.TOO_BIG, f"{len(queries)} queries in one Read")
        self._budget = _REPLY_BYTES_MAX
        self._found = FOUND
        results: list[Result] = []
        for query in queries:
            try:
                results.append(self._answers[type(query)](query))
            except FsError as error:
                results.append(Failed(error.code, error.detail[:200]))
        self._shard.inodes.trim()
        return tuple(results)

    def _spend(self, size: int) -> None:
        self._budget -= size

    def _check_budget(self) -> None:
        if self._budget <= 0:
            raise FsError(Code.OVERLOADED, "the reply is full: ask again in another Read")

    def _step(self, directory: Inode, name: bytes) -> Inode:
        """The inode one name further; directory checks included."""
        if directory.mode & 0o170000 != stat.S_IFDIR:
            raise FsError(Code.NOT_DIRECTORY, f"inode {directory.ino}")
        if name == b".":
            return directory
        if name == b"..":
            return self._shard.inodes.load(directory.parent)
        check_name(name)
        entry = self._shard.names.entry(directory.ino, name)
        if entry is None:
            raise FsError(Code.NOT_FOUND)
        return self._shard.inodes.load(entry[0])

    def lookup(self, query: Lookup) -> AttrResult:
        self._found = FOUND
        inode = self._step(self._shard.inodes.load(query.parent), query.name)
        if stat.S_ISREG(inode.mode):
            self._found = inode.ino
        return AttrResult(attr_of(inode))

    def walk(self, query: Walk) -> AttrResult:
        if len(query.names) > LOOKUP_PATH_DEPTH_MAX:
            raise FsError(Code.NAME_TOO_LONG, f"a path of {len(query.names)} names")
        self._check_budget()
        self._spend(len(query.names) * _STEP_BYTES)
        inode = self._shard.inodes.load(query.parent)
        for name in query.names:
            inode = self._step(inode, name)
        return AttrResult(attr_of(inode))

    def get_attr(self, query: GetAttr) -> AttrResult:
        return AttrResult(attr_of(self._shard.inodes.load(query.ino)))

    def read_dir(self, query: ReadDir) -> Entries:
        directory = self._shard.names.directory(query.ino)
        if query.limit < 1:
            raise FsError(Code.INVALID, f"a page of {query.limit} entries")
        self._check_budget()
        limit = min(query.limit, READDIR_PAGE_MAX)
        room = min(READDIR_PAGE_BYTES_MAX, self._budget)
        low, high = keys.dentries(directory.ino)
        if query.after:
            low = keys.dentry(directory.ino, query.after[:256]) + b"\0"
        rows = self._tables.range(low, high, limit + 1)
        entries: list[DirEntry] = []
        for key, value in rows[:limit]:
            name = key[keys.DENTRY_NAME_AT:]
            size = len(name) + _ENTRY_BYTES + (_ATTR_BYTES if query.plus else 0)
            if entries and size > room:
                break
            room -= size
            self._spend(size)
            entries.append(self._entry(name, value, query.plus))
        return Entries(tuple(entries), len(entries) == len(rows))

    def _entry(self, name: bytes, value: bytes, plus: bool) -> DirEntry:
        ino, kind = keys.DENTRY_VALUE.unpack(value)
        attr: Attr | None = attr_of(self._shard.inodes.load(ino)) if plus else None
        return DirEntry(name, ino, kind << 12 if attr is None else attr.mode, attr)

    def read_link(self, query: ReadLink) -> Target:
        inode = self._shard.inodes.load(query.ino)
        if not stat.S_ISLNK(inode.mode):
            raise FsError(Code.INVALID, f"inode {query.ino} is no symlink")
        self._check_budget()
        self._spend(len(inode.target))
        return Target(inode.target)

    def get_xattr(self, query: GetXattr) -> Value:
        self._check_budget()
        value = self._shard.attributes.get_xattr(query.ino, query.name)
        self._spend(len(value))
        return Value(value)

    def list_xattr(self, query: ListXattr) -> Names:
        self._check_budget()
        names = self._shard.attributes.list_xattr(query.ino)
        self._spend(sum([len(name) + _NAME_BYTES for name in names]))
        return Names(names)

    def get_extents(self, query: GetExtents) -> Extents:
        ino = self._found if query.ino == FOUND else query.ino
        if ino == FOUND:
            raise FsError(Code.NOT_FOUND)
        inode = self._shard.files.regular(ino)
        if query.offset < 0 or query.length < 0:
            raise FsError(Code.INVALID, f"range of {query.length} bytes at {query.offset}")
        self._check_budget()
        low, high = query.offset, min(query.offset + query.length, inode.size, FILE_BYTES_MAX)
        if low >= high:
            return Extents(attr_of(inode), (), False)
        found, more = self._shard.data.read(inode, low, high, EXTENT_PAGE_MAX)
        if not self._shard.logged.blocks:
            self._spend(len(found) * _EXTENT_BYTES)
            return Extents(attr_of(inode), tuple(found), more)
        count, plain = self._shard.logged.among(found, LOG_DATA_PAGE_BYTES)
        self._spend(count * _EXTENT_BYTES + sum([len(part) + _NAME_BYTES + BLOCK_ID_BYTES for _, part in plain]))
        return Extents(attr_of(inode), tuple(found[:count]), more or count < len(found), tuple(plain))

    def get_block(self, query: GetBlock) -> Value:
        self._check_budget()
        plain = self._shard.logged.get(query.block)
        if plain is None:
            raise FsError(Code.MISSING_BLOCK, query.block.hex())
        self._spend(len(plain))
        return Value(plain)

    def stat_volume(self, query: StatVolume) -> VolumeStat:
        """Files and bytes; capacities are the leader's to fill in."""
        return VolumeStat(0, 0, self._shard.inodes.files, self._shard.inodes.bytes)
