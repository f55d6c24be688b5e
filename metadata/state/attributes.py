"""Operations on attributes and extended attributes."""

from __future__ import annotations

import stat

from metadata.api import TIME_NOW, XATTR_CREATE, XATTR_REPLACE, AttrResult, RemoveXattr, SetAttr, SetXattr
from metadata.state import acl, keys
from metadata.state.files import Files
from metadata.state.inodes import Inodes, touch
from metadata.state.records import Inode, attr_of
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from metadata.state.validate import PERMISSIONS, check_owner, check_size, clamp_time
from node.wire.errors import Code, FsError
from node.wire.limits import XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX

_ACLS = {acl.ACCESS: acl.HAS_ACCESS, acl.DEFAULT: acl.HAS_DEFAULT}


class Attributes:
    """Attribute operations of one shard."""

    def __init__(self, tables: Tables, inodes: Inodes, files: Files) -> None:
        self._tables = tables
        self._inodes = inodes
        self._files = files

    def set_attr(self, op: SetAttr, turn: Turn) -> AttrResult:
        inode = self._inodes.load(op.ino)
        self._check(op)
        if op.size is not None:
            wanted = turn.time_ns if op.mtime_ns is None else _time(op.mtime_ns, turn)
            self._files.truncate(self._files.regular(op.ino), op.size, wanted, turn)
        elif op.mtime_ns is not None:
            inode.mtime_ns = _time(op.mtime_ns, turn)
        if op.atime_ns is not None:
            inode.atime_ns = _time(op.atime_ns, turn)
        self._own(inode, op)
        if op.mode is not None and inode.acl & acl.HAS_ACCESS:
            key = keys.xattr(inode.ino, acl.ACCESS)
            value = self._tables.get(key)
            assert value is not None, "an inode is said to have an access control list"
            self._tables.put(key, acl.encode(acl.with_bits(acl.decode(value), op.mode)))
        if op == SetAttr(op.ino):
            return AttrResult(attr_of(inode))
        ctime_ns = inode.ctime_ns
        touch(inode, turn.time_ns)
        if op.ctime_ns is not None and op.ctime_ns != TIME_NOW:
            inode.ctime_ns = max(ctime_ns, clamp_time(op.ctime_ns))
        self._inodes.save(inode)
        return AttrResult(attr_of(inode))

    @staticmethod
    def _check(op: SetAttr) -> None:
        if op.mode is not None and not 0 <= op.mode <= 0o177777:
            raise FsError(Code.INVALID, f"mode {op.mode:#o}")
        for owner in (op.uid, op.gid):
            if owner is not None:
                check_owner(owner)
        if op.size is not None:
            check_size(op.size)

    @staticmethod
    def _own(inode: Inode, op: SetAttr) -> None:
        """Mode and owners. A file that changes hands loses setuid and setgid unless a mode is set with it."""
        if op.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | (op.mode & PERMISSIONS)
        elif (op.uid is not None or op.gid is not None or op.drop_setid) and stat.S_ISREG(inode.mode):
            inode.mode &= ~stat.S_ISUID
            if inode.mode & stat.S_IXGRP:
                inode.mode &= ~stat.S_ISGID
        if op.uid is not None:
            inode.uid = op.uid
        if op.gid is not None:
            inode.gid = op.gid

    def set_xattr(self, op: SetXattr, turn: Turn) -> AttrResult:
        inode = self._inodes.load(op.ino)
        _check_xattr_name(op.name)
        if len(op.value) > XATTR_VALUE_BYTES_MAX:
            raise FsError(Code.TOO_BIG, f"a value of {len(op.value)} bytes")
        if op.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
            raise FsError(Code.INVALID, f"xattr flags {op.flags:#x}")
        if op.name in _ACLS:
            return self._set_acl(inode, op, turn)
        return self._put_xattr(inode, op, turn)

    def _set_acl(self, inode: Inode, op: SetXattr, turn: Turn) -> AttrResult:
        """An access list sets the mode's bits; where they say it all, and where it is empty, no list is kept."""
        entries = acl.decode(op.value)
        kept = bool(entries)
        if op.name == acl.DEFAULT:
            if not stat.S_ISDIR(inode.mode):
                raise FsError(Code.ACCESS, f"inode {op.ino} is no directory, and hands down nothing")
        elif stat.S_ISLNK(inode.mode):
            raise FsError(Code.NOT_SUPPORTED, "an access control list of a symlink")
        else:
            kept = kept and not acl.is_mode(entries)
        had = bool(inode.acl & _ACLS[op.name])
        if kept:
            self._put_xattr(inode, op, turn)
            inode.acl |= _ACLS[op.name]
        elif had:
            self._drop_xattr(inode, op.name, turn)
        if entries and op.name == acl.ACCESS:
            inode.mode = inode.mode & ~0o777 | acl.bits_of(entries)
        if op.drop_setgid and op.name == acl.ACCESS:
            inode.mode &= ~stat.S_ISGID
        touch(inode, turn.time_ns)
        self._inodes.save(inode)
        return AttrResult(attr_of(inode))

    def _put_xattr(self, inode: Inode, op: SetXattr, turn: Turn) -> AttrResult:
        key = keys.xattr(op.ino, op.name)
        old = self._tables.get(key)
        if old is not None and op.flags == XATTR_CREATE:
            raise FsError(Code.EXISTS, repr(op.name))
        if old is None and op.flags == XATTR_REPLACE:
            raise FsError(Code.NO_ATTRIBUTE, repr(op.name))
        total = inode.xattr_bytes + len(op.value) - (len(old) if old is not None else -len(op.name))
        if total > XATTRS_BYTES_MAX:
            raise FsError(Code.NO_SPACE, f"{total} bytes of extended attributes")
        inode.xattr_bytes = total
        inode.xattr_count += old is None
        touch(inode, turn.time_ns)
        self._inodes.save(inode)
        self._tables.put(key, op.value)
        return AttrResult(attr_of(inode))

    def remove_xattr(self, op: RemoveXattr, turn: Turn) -> AttrResult:
        inode = self._inodes.load(op.ino)
        _check_xattr_name(op.name)
        self._drop_xattr(inode, op.name, turn)
        return AttrResult(attr_of(inode))

    def _drop_xattr(self, inode: Inode, name: bytes, turn: Turn) -> None:
        key = keys.xattr(inode.ino, name)
        old = self._tables.get(key)
        if old is None:
            raise FsError(Code.NO_ATTRIBUTE, repr(name))
        self._tables.delete(key)
        inode.xattr_bytes -= len(name) + len(old)
        inode.xattr_count -= 1
        inode.acl &= ~_ACLS.get(name, 0)
        touch(inode, turn.time_ns)
        self._inodes.save(inode)

    def inherit(self, parent: Inode, mode: int) -> tuple[int, dict[bytes, bytes]]:
        """What a directory with a default list hands down to a file or directory: the mode that it is made with, and
        its lists."""
        value = self._tables.get(keys.xattr(parent.ino, acl.DEFAULT))
        assert value is not None, "an inode is said to have a default access control list"
        access = acl.inherited(acl.decode(value), mode)
        lists = {} if acl.is_mode(access) else {acl.ACCESS: acl.encode(access)}
        if stat.S_ISDIR(mode):
            lists[acl.DEFAULT] = value
        return mode & ~0o777 | acl.bits_of(access), lists

    def hand_down(self, inode: Inode, lists: dict[bytes, bytes]) -> None:
        """Give a new inode, which has its number by now, its lists."""
        for name, value in lists.items():
            self._tables.put(keys.xattr(inode.ino, name), value)
            inode.xattr_count += 1
            inode.xattr_bytes += len(name) + len(value)
            inode.acl |= _ACLS[name]

    def get_xattr(self, ino: int, name: bytes) -> bytes:
        """Return a value. STALE or NO_ATTRIBUTE."""
        self._inodes.load(ino)
        _check_xattr_name(name)
        value = self._tables.get(keys.xattr(ino, name))
        if value is None:
            raise FsError(Code.NO_ATTRIBUTE, repr(name))
        return value

    def list_xattr(self, ino: int) -> tuple[bytes, ...]:
        """Return the names, in order. STALE."""
        if not self._inodes.load(ino).xattr_count:
            return ()
        return tuple([key[keys.NUMBERED_NAME_AT:] for key, _ in self._tables.range(*keys.xattrs(ino))])


def _time(asked_ns: int, turn: Turn) -> int:
    return turn.time_ns if asked_ns == TIME_NOW else clamp_time(asked_ns)


def _check_xattr_name(name: bytes) -> None:
    if not 0 < len(name) <= XATTR_NAME_BYTES_MAX:
        raise FsError(Code.RANGE, f"an attribute name of {len(name)} bytes")
    if b"\0" in name:
        raise FsError(Code.INVALID, f"the attribute name {name!r}")
