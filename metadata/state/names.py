"""Operations on names: make, link, remove, rename. Each is decided wholly here, from the state as it is now.

Who is whose parent is kept three times, so that each way is one look-up: the directory has the entry, a directory
or a file with one name has its parent and name in the inode, a file with several has them in L rows.
"""

from __future__ import annotations

import stat

from metadata.api import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AttrResult,
    Link,
    Made,
    Make,
    Remove,
    Removed,
    Rename,
    Renamed,
)
from metadata.state import keys
from metadata.state.acl import HAS_DEFAULT
from metadata.state.attributes import Attributes
from metadata.state.data import Data
from metadata.state.inodes import Inodes, touch, touch_names
from metadata.state.records import Inode, attr_of
from metadata.state.sessions import Sessions
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from metadata.state.validate import check_make, check_name, check_not_held, clamp_time
from node.wire.errors import Code, FsError
from node.wire.limits import DIRECTORY_DEPTH_MAX, LINKS_MAX
from node.wire.types import ROOT_INO

_DIRECTORY = stat.S_IFDIR >> 12


class Names:
    """Name operations of one shard."""

    def __init__(
        self, tables: Tables, inodes: Inodes, data: Data, sessions: Sessions, attributes: Attributes
    ) -> None:
        self._attributes = attributes
        self._tables = tables
        self._inodes = inodes
        self._data = data
        self._sessions = sessions

    # --- looking ----------------------------------------------------------------------------------------------

    def directory(self, ino: int) -> Inode:
        """Return a directory's inode. STALE or NOT_DIRECTORY."""
        inode = self._inodes.load(ino)
        if inode.mode & 0o170000 != stat.S_IFDIR:
            raise FsError(Code.NOT_DIRECTORY, f"inode {ino}")
        return inode

    def entry(self, parent: int, name: bytes) -> tuple[int, int] | None:
        """Return (ino, mode >> 12) of an entry, or None."""
        value = self._tables.get(keys.dentry(parent, name))
        return None if value is None else keys.DENTRY_VALUE.unpack(value)

    def _changeable(self, ino: int) -> Inode:
        """A directory that may get or lose names. NOT_FOUND where it was removed and is only held open."""
        inode = self.directory(ino)
        if not inode.nlink:
            raise FsError(Code.NOT_FOUND, f"directory {ino} was removed")
        return inode

    def _existing(self, parent: int, name: bytes) -> tuple[int, int]:
        entry = self.entry(parent, name)
        if entry is None:
            raise FsError(Code.NOT_FOUND, repr(name))
        return entry

    # --- make and link ----------------------------------------------------------------------------------------

    def make(self, op: Make, turn: Turn) -> Made:
        check_make(op)
        parent = self._changeable(op.parent)
        is_directory = op.mode & 0o170000 == stat.S_IFDIR
        entry = self.entry(op.parent, op.name)
        if entry is not None:
            if op.exclusive or not stat.S_ISREG(op.mode):
                raise FsError(Code.EXISTS, repr(op.name))
            if entry[1] == _DIRECTORY:
                raise FsError(Code.IS_DIRECTORY, repr(op.name))
            return Made(attr_of(self._inodes.load(entry[0])), True, attr_of(parent))
        turn.check_blocks(op.extents, op.touch_epoch, op.pg_epoch)
        inode = self._new_inode(op, parent, turn)
        lists: dict[bytes, bytes] = {}
        if parent.acl & HAS_DEFAULT and not stat.S_ISLNK(op.mode):
            inode.mode, lists = self._attributes.inherit(parent, inode.mode)
        elif op.umask:
            inode.mode &= ~(op.umask & 0o777)
        change = self._data.plan_overlay(inode, op.extents) if op.extents else None
        if op.ino:
            self._sessions.use(turn.session, op.ino)
            inode.ino = op.ino
        else:
            inode.ino = self._inodes.allocate()
        self._inodes.add(inode)
        if lists:
            self._attributes.hand_down(inode, lists)
        if change is not None:
            last = op.extents[-1]
            inode.size = max(inode.size, last.offset + last.length)
            self._data.carry_out(change, turn)
        self._enter(parent, op.name, inode)
        parent.nlink += is_directory
        touch_names(parent, turn.time_ns)
        return Made(attr_of(inode), False, attr_of(parent))

    def _new_inode(self, op: Make, parent: Inode, turn: Turn) -> Inode:
        """A new inode without a number yet; a directory with the setgid bit hands down its group."""
        mode, gid = op.mode, op.gid
        is_directory = mode & 0o170000 == stat.S_IFDIR
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if is_directory:
                mode |= stat.S_ISGID
        now = turn.time_ns
        inode = Inode(
            ino=0,
            mode=mode,
            nlink=2 if is_directory else 1,
            uid=op.uid,
            gid=gid,
            rdev=op.rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
            size=len(op.target) or op.size,
            stored=0,
            atime_ns=now,
            mtime_ns=clamp_time(op.mtime_ns) if op.mtime_ns else now,
            ctime_ns=now,
            btime_ns=now,
            version=1,
            data_version=1,
            parent=parent.ino,
            name=op.name,
            target=op.target,
            quota=parent.quota,
        )
        return inode

    def link(self, op: Link, turn: Turn) -> AttrResult:
        check_name(op.name)
        inode = self._inodes.load(op.ino)
        if stat.S_ISDIR(inode.mode):
            raise FsError(Code.PERMISSION, f"inode {op.ino} is a directory")
        parent = self._changeable(op.parent)
        if self.entry(op.parent, op.name) is not None:
            raise FsError(Code.EXISTS, repr(op.name))
        if not inode.nlink:
            raise FsError(Code.NOT_FOUND, f"inode {op.ino} was removed")
        if inode.nlink >= LINKS_MAX:
            raise FsError(Code.TOO_MANY_LINKS, f"inode {op.ino} has {inode.nlink} names")
        if inode.nlink == 1:
            self._tables.put(keys.link(inode.ino, inode.parent, inode.name), b"")
            inode.parent, inode.name = 0, b""
        inode.nlink += 1
        self._tables.put(keys.link(inode.ino, parent.ino, op.name), b"")
        touch(inode, turn.time_ns)
        self._inodes.save(inode)
        self._enter(parent, op.name, inode)
        touch_names(parent, turn.time_ns)
        return AttrResult(attr_of(inode))

    # --- remove -----------------------------------------------------------------------------------------------

    def remove(self, op: Remove, turn: Turn) -> Removed:
        check_name(op.name)
        check_not_held(op.not_held)
        parent = self._changeable(op.parent)
        ino, kind = self._existing(op.parent, op.name)
        if op.directory and kind != _DIRECTORY:
            raise FsError(Code.NOT_DIRECTORY, repr(op.name))
        if not op.directory and kind == _DIRECTORY:
            raise FsError(Code.IS_DIRECTORY, repr(op.name))
        inode = self._inodes.load(ino)
        if op.directory and inode.size:
            raise FsError(Code.NOT_EMPTY, repr(op.name))
        self._leave(parent, op.name)
        parent.nlink -= op.directory
        touch_names(parent, turn.time_ns)
        held = self._unname(inode, parent.ino, op.name, turn, ino in op.not_held)
        return Removed(ino, inode.nlink, held, attr_of(parent))

    def _unname(self, inode: Inode, parent: int, name: bytes, turn: Turn, vouched: bool) -> bool:
        """Take one name from an inode; returns whether the session of this entry still holds it afterwards."""
        touch(inode, turn.time_ns)
        if stat.S_ISDIR(inode.mode):
            inode.nlink = 0
        else:
            inode.nlink -= 1
        if inode.nlink:
            self._tables.delete(keys.link(inode.ino, parent, name))
            if inode.nlink == 1:
                ((key, _),) = self._tables.range(*keys.links(inode.ino))
                self._tables.delete(key)
                inode.parent, inode.name = keys.second(key), key[keys.LINK_NAME_AT:]
            self._inodes.save(inode)
            return False
        inode.parent, inode.name = (inode.parent if stat.S_ISDIR(inode.mode) else 0), b""
        return self._inodes.orphan(inode, turn, vouched)

    # --- rename -----------------------------------------------------------------------------------------------

    def rename(self, op: Rename, turn: Turn) -> Renamed:
        check_name(op.name)
        check_name(op.new_name)
        check_not_held(op.not_held)
        if op.flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FsError(Code.INVALID, f"rename flags {op.flags:#x}")
        source, target = self._changeable(op.parent), self._changeable(op.new_parent)
        ino, kind = self._existing(op.parent, op.name)
        other = self.entry(op.new_parent, op.new_name)
        if other is not None and op.flags & RENAME_NOREPLACE:
            raise FsError(Code.EXISTS, repr(op.new_name))
        if other is None and op.flags & RENAME_EXCHANGE:
            raise FsError(Code.NOT_FOUND, repr(op.new_name))
        if other is not None and other[0] == ino:
            return Renamed(ino)
        if kind == _DIRECTORY and source is not target:
            self._check_outside(ino, target, turn)
        if op.flags & RENAME_EXCHANGE:
            assert other is not None
            if other[1] == _DIRECTORY and source is not target:
                self._check_outside(other[0], source, turn)
            return self._exchange(op, source, target, ino, other[0], turn)
        return self._move(op, source, target, ino, other, turn)

    def _check_outside(self, moved: int, directory: Inode, turn: Turn) -> None:
        """Refuse to move a directory below itself: walk from ``directory`` up to the root."""
        at = directory
        for _ in range(DIRECTORY_DEPTH_MAX):
            if at.ino == moved:
                raise FsError(Code.INVALID, "a directory cannot move below itself")
            if at.ino == ROOT_INO:
                return
            at = self._inodes.load(at.parent)
            turn.work += 1
        raise FsError(Code.LOOP, f"more than {DIRECTORY_DEPTH_MAX} directories deep")

    def _move(
        self, op: Rename, source: Inode, target: Inode, ino: int, other: tuple[int, int] | None, turn: Turn
    ) -> Renamed:
        inode = self._inodes.load(ino)
        is_directory = stat.S_ISDIR(inode.mode)
        replaced = None
        if other is not None:
            replaced = self._inodes.load(other[0])
            if is_directory and other[1] != _DIRECTORY:
                raise FsError(Code.NOT_DIRECTORY, repr(op.new_name))
            if not is_directory and other[1] == _DIRECTORY:
                raise FsError(Code.IS_DIRECTORY, repr(op.new_name))
            if is_directory and replaced.size:
                raise FsError(Code.NOT_EMPTY, repr(op.new_name))
        if replaced is not None:
            self._leave(target, op.new_name)
            target.nlink -= is_directory
        self._leave(source, op.name)
        source.nlink -= is_directory
        target.nlink += is_directory
        self._enter(target, op.new_name, inode)
        self._renamed(inode, source.ino, op.name, target.ino, op.new_name, turn)
        self._touch_both(source, target, turn)
        if replaced is None:
            return Renamed(ino)
        held = self._unname(replaced, target.ino, op.new_name, turn, replaced.ino in op.not_held)
        return Renamed(ino, replaced.ino, replaced.nlink, held)

    def _exchange(self, op: Rename, source: Inode, target: Inode, ino: int, other: int, turn: Turn) -> Renamed:
        inode, counterpart = self._inodes.load(ino), self._inodes.load(other)
        change = stat.S_ISDIR(counterpart.mode) - stat.S_ISDIR(inode.mode)
        source.nlink += change
        target.nlink -= change
        self._tables.put(keys.dentry(source.ino, op.name), keys.DENTRY_VALUE.pack(other, counterpart.mode >> 12))
        self._tables.put(keys.dentry(target.ino, op.new_name), keys.DENTRY_VALUE.pack(ino, inode.mode >> 12))
        self._renamed(inode, source.ino, op.name, target.ino, op.new_name, turn)
        self._renamed(counterpart, target.ino, op.new_name, source.ino, op.name, turn)
        self._touch_both(source, target, turn)
        return Renamed(ino)

    def _renamed(
        self, inode: Inode, parent: int, name: bytes, new_parent: int, new_name: bytes, turn: Turn
    ) -> None:
        """An inode has another name in place of one it had."""
        if stat.S_ISDIR(inode.mode) or inode.nlink == 1:
            inode.parent, inode.name = new_parent, new_name
        else:
            self._tables.delete(keys.link(inode.ino, parent, name))
            self._tables.put(keys.link(inode.ino, new_parent, new_name), b"")
        touch(inode, turn.time_ns)
        self._inodes.save(inode)

    def _touch_both(self, source: Inode, target: Inode, turn: Turn) -> None:
        touch_names(source, turn.time_ns)
        self._inodes.save(source)
        if target is not source:
            touch_names(target, turn.time_ns)
            self._inodes.save(target)

    # --- entries ----------------------------------------------------------------------------------------------

    def _enter(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Put an entry; the caller accounts for nlink and times."""
        self._tables.put(keys.dentry(parent.ino, name), keys.DENTRY_VALUE.pack(inode.ino, inode.mode >> 12))
        parent.size += 1
        self._inodes.save(parent)

    def _leave(self, parent: Inode, name: bytes) -> None:
        """Delete an entry; the caller accounts for nlink and times."""
        self._tables.delete(keys.dentry(parent.ino, name))
        parent.size -= 1
        self._inodes.save(parent)
