"""What can be done to the filesystem and asked of it: operations, queries and their results.

``metadata.api`` shows these to the outside; requests carry them in batches.
"""

from __future__ import annotations

from typing import Optional, Union

import msgspec

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
XATTR_CREATE = 1
XATTR_REPLACE = 2
ATTR_ACCESS_ACL = 1  # in Attr.flags: more than the mode decides who may what
ATTR_DEFAULT_ACL = 2  # a directory that hands down an access control list to what is made in it
TIME_NOW = -(1 << 63)  # in SetAttr: the time of the log entry; no file can have this one


class Attr(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An inode's attributes. ``stored`` counts the bytes that extents cover, so st_blocks is true for holes.

    Of a directory: ``size`` is how many names it has, ``data_version`` rises with each change of them. After a truncate
    or punch of very many chunks ``stored`` falls (and ``version`` rises) as the space is reclaimed.
    """

    ino: int
    mode: int  # file type and permissions
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    stored: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    version: int  # raised by each change of attributes or data; never repeats
    data_version: int  # raised by each change of data (commit, truncate)
    flags: int = 0  # ATTR_*


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """File bytes [offset, offset + length) are block bytes [block_offset, block_offset + length).

    An extent never crosses a multiple of BLOCK_BYTES_MAX in the file. What no extent covers is a hole.
    """

    offset: int
    length: int
    block: bytes
    block_offset: int
    block_length: int  # plaintext length of the whole block


# --- mutations ------------------------------------------------------------------------------------------------


class Make(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Create a name with a new inode: file, directory, symlink or special file, by the type in ``mode``.

    With ``exclusive`` false an existing non-directory is returned instead (open with O_CREAT of a regular file), and
    nothing of this operation is applied to it; a directory there is IS_DIRECTORY.
    ``extents`` and ``size`` create and fill a file in one entry, by the rules of Commit. A directory with the setgid
    bit hands down its group, and the bit to directories; one with a default ACL
    hands down that. ``ino`` must come from AllocateInos of this session and counts
    once, in any order; else INVALID. Result: Made.

    Failed: EXISTS; NOT_FOUND where the parent was removed, STALE where it is gone, NOT_DIRECTORY; INVALID for a mode
    without a known type or a name that is empty, ".", ".." or has "/" or NUL; NAME_TOO_LONG.
    """

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""
    exclusive: bool = True
    ino: int = 0  # from a range this session was given, or 0: assigned in apply
    size: int = 0
    extents: tuple[Extent, ...] = ()
    touch_epoch: int = 0
    pg_epoch: int = 0
    mtime_ns: int = 0  # 0: the time of the entry
    umask: int = 0  # taken from the mode, unless the directory has a default ACL


class Link(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Give an existing inode, not a directory (PERMISSION), another name. NOT_FOUND for a removed inode,
    TOO_MANY_LINKS above LINKS_MAX. Result: AttrResult."""

    ino: int
    parent: int
    name: bytes


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """unlink(2) or, with ``directory``, rmdir(2).

    When the last name goes, the inode stays for each session that may have it open, except that this session
    vouches with ``not_held`` for inodes it does not hold. Directories likewise. Result: Removed.

    Failed: NOT_FOUND, NOT_EMPTY; IS_DIRECTORY without ``directory``, NOT_DIRECTORY with it.
    """

    parent: int
    name: bytes
    directory: bool = False
    not_held: tuple[int, ...] = ()


class Rename(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """rename(2) with RENAME_NOREPLACE or RENAME_EXCHANGE, decided wholly in apply. ``not_held`` as in Remove, of the
    inode that is replaced. Two names of one inode: nothing happens. Result: Renamed.

    Failed: INVALID for a directory into itself or below, and for other flags; EXISTS, NOT_FOUND, NOT_EMPTY,
    IS_DIRECTORY, NOT_DIRECTORY as rename(2).
    """

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int = 0
    not_held: tuple[int, ...] = ()


class SetAttr(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Change attributes; None leaves one as it is, TIME_NOW takes the entry's time. ``size`` truncates or extends.

    Only the permission bits of ``mode`` count. A change of owner without ``mode`` takes setuid and setgid from a
    regular file, and so does ``drop_setid`` (setgid only where the group may execute). With ``size`` mtime becomes
    max(mtime_ns or the entry's time, old mtime + 1). A given ctime never goes backwards. Times out of 64 bits are
    clamped. BUSY: too many large truncates of this file are still being reclaimed, try again. Result: AttrResult.
    """

    ino: int
    mode: Optional[int] = None
    uid: Optional[int] = None
    gid: Optional[int] = None
    size: Optional[int] = None
    atime_ns: Optional[int] = None
    mtime_ns: Optional[int] = None
    ctime_ns: Optional[int] = None
    drop_setid: bool = False


class Commit(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Make written data visible: ``extents`` replace what they cover, the size grows to at least ``size`` and the
    end of the last extent. Extents are in order, do not overlap and do not cross chunks (INVALID); at most
    COMMIT_EXTENTS_MAX here and SUBMIT_EXTENTS_MAX in a Submit (TOO_BIG).

    With ``append`` offsets and size count from ``expected_size``; where the file's true size differs, apply moves
    them all to the true end (rule 9). mtime becomes max(mtime_ns, old mtime + 1) (rule 6).
    With ``base_version`` not 0 the commit is refused (VERSION_MISMATCH) unless data_version equals it.
    A commit whose touch_epoch is older than the current epoch - 1 is refused (STALE_EPOCH): put or touch its blocks
    again. So is, with pg_epoch not 0, one with a block whose placement group changed after that epoch. One without
    extents needs neither. TOO_BIG where a chunk would have more than CHUNK_EXTENTS_MAX extents: commit the chunk as one
    block instead (better from EXTENTS_PER_CHUNK_MAX on). A removed inode is written like any other. Result: Committed.

    With ``merge`` the extents hold the same bytes as those that they replace, only in fewer blocks: size and times
    stay, data_version rises. INVALID without a base_version, with ``append``, or where a hole or the end is filled.

    With ``data`` the bytes of all its blocks come along, one after the other, instead of having been put before:
    each extent is one whole block, and the epochs do not count. The service keeps them until it has put them on chunk
    servers. INVALID where they are not the blocks that are named, or with ``merge``; TOO_BIG above
    LOG_DATA_COMMIT_BYTES here or LOG_DATA_ENTRY_BYTES in the Submit; LOG_FULL where too many wait there already: put
    the blocks, and commit without.
    """

    ino: int
    extents: tuple[Extent, ...]
    size: int
    mtime_ns: int
    touch_epoch: int
    append: bool = False
    expected_size: int = 0
    base_version: int = 0
    pg_epoch: int = 0
    merge: bool = False
    data: bytes = b""


class SetXattr(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """setxattr(2) with XATTR_CREATE (EXISTS) or XATTR_REPLACE (NO_ATTRIBUTE). RANGE: name too long; TOO_BIG: value
    too long; NO_SPACE: all of the inode's together above XATTRS_BYTES_MAX. Result: AttrResult.

    ``system.posix_acl_access`` sets the permission bits of the mode too, and is not kept where they say it all;
    ``drop_setgid`` takes setgid with it. ``system.posix_acl_default`` is for directories (ACCESS). INVALID: no ACL.
    """

    ino: int
    name: bytes
    value: bytes
    flags: int = 0
    drop_setgid: bool = False


class RemoveXattr(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """NO_ATTRIBUTE where it is not set. Result: AttrResult."""

    ino: int
    name: bytes


class Release(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """This session no longer holds these removed inodes, at most RELEASE_INOS_MAX. Unknown ones, and inodes that
    still have a name, are ignored. Result: Done."""

    inos: tuple[int, ...]


class AllocateInos(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Give this session a range of 1 to INO_RANGE_MAX inode numbers for Make.ino. OVERLOADED where it would have
    more than INO_UNUSED_MAX unused ones. Result: InoRange."""

    count: int


class PunchHole(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Remove data in [offset, offset + length), length at least 1; the size stays. BUSY as in SetAttr.
    Result: AttrResult."""

    ino: int
    offset: int
    length: int


class CloneRange(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Share extents: target bytes become source bytes, no data moves. The size grows as needed (rule 20: in apply
    only, from references live there and then). Result: Committed.

    What lies beyond the source's size is not copied. Holes become holes. INVALID where both are one file and the
    ranges overlap. TOO_BIG where the source has more than COMMIT_EXTENTS_MAX extents in the range: clone it in parts.
    """

    source: int
    source_offset: int
    target: int
    target_offset: int
    length: int


class Lock(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Lock bytes [low, high] for an owner of this session (fcntl), or the whole file (``flock``); what the owner has
    there is replaced. Where another's lock is in the way: with a ``ticket`` the owner waits, and the session is pushed
    LocksGranted with that number when its turn has come; without (0) nothing happens. Result: Locked.

    Failed: STALE; DEADLOCK where fcntl owners would wait for one another in a circle; NO_LOCKS above
    LOCKS_PER_INODE_MAX or LOCKS_PER_SESSION_MAX. Locks end with the session, also when its fence is raised.
    Converting a flock gives up the old one first, as on Linux.
    """

    ino: int
    owner: int
    flock: bool
    low: int
    high: int
    exclusive: bool
    pid: int = 0  # for GetLock of others
    ticket: int = 0  # of the session's own choosing, for this one wait only


class Unlock(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """The owner holds nothing in [low, high] any more, or no flock. Result: Done, also where it held nothing."""

    ino: int
    owner: int
    flock: bool
    low: int
    high: int


class CancelLock(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Stop waiting. Result: Locked; ``granted`` where the turn had come before: the lock is held then."""

    ino: int
    ticket: int


class PutLocks(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """The session had the inode exclusively and nobody any lock on it, so it decided about its locks by itself: these
    are held (``ticket`` 0), and those wait for their turn, in order. They replace what the session has there.
    At most LOCAL_LOCKS_MAX. Result: Done, also where the inode is gone.

    Failed: LOCKED where they are in the way of one another or of another session's.
    """

    ino: int
    locks: tuple[Lock, ...]


Op = Union[
    Make,
    Link,
    Remove,
    Rename,
    SetAttr,
    Commit,
    SetXattr,
    RemoveXattr,
    Release,
    AllocateInos,
    PunchHole,
    CloneRange,
    Lock,
    Unlock,
    CancelLock,
    PutLocks,
]


# --- results of mutations and queries -------------------------------------------------------------------------


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """One operation of a batch failed; ``code`` is an errors.Code."""

    code: int
    detail: str = ""


class Done(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Nothing to say."""


class AttrResult(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    attr: Attr


class Made(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    attr: Attr
    existed: bool
    parent: Optional[Attr] = None


class Removed(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """``nlink`` is what is left. ``held``: the last name went, but this session must still Release the inode."""

    ino: int
    nlink: int
    held: bool
    parent: Optional[Attr] = None


class Renamed(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    ino: int
    replaced: int = 0  # the inode that lost this name, 0: none
    replaced_nlink: int = 0
    held: bool = False  # as in Removed, of ``replaced``


class Committed(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """``offset`` is where an append landed, or where what was cloned ends."""

    attr: Attr
    offset: int = 0


class InoRange(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    first: int
    count: int


class Entries(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A page of a directory in name order (bytes), without "." and "..". ``end``: nothing follows."""

    entries: tuple["DirEntry", ...]
    end: bool


class Target(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    target: bytes


class Value(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    value: bytes


class Names(msgspec.Struct, frozen=True, array_like=True, tag=12):
    names: tuple[bytes, ...]


class Extents(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Extents that meet the asked range, in order, whole (not clipped). ``more``: ask again from the last one's end.

    ``data``: names and bytes of those of their blocks that are not on chunk servers yet (Commit.data)."""

    attr: Attr
    extents: tuple[Extent, ...]
    more: bool
    data: tuple[tuple[bytes, bytes], ...] = ()


class VolumeStat(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """What statfs(2) tells, plaintext terms: capacities are divided by the replica count."""

    total_bytes: int
    free_bytes: int
    files: int
    bytes: int  # logical bytes that extents cover


class Locked(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    granted: bool


class LockState(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """``waiting``: the ticket still waits. ``held``: the owner has what was asked about. ``taken``: a lock is in the
    way, and the rest says which."""

    waiting: bool
    taken: bool = False
    exclusive: bool = False
    low: int = 0
    high: int = 0
    session: int = 0
    pid: int = 0
    held: bool = False


class DirEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    name: bytes
    ino: int
    mode: int  # at least the file type
    attr: Optional[Attr] = None


Result = Union[
    Failed,
    Done,
    AttrResult,
    Made,
    Removed,
    Renamed,
    Committed,
    InoRange,
    Entries,
    Target,
    Value,
    Names,
    Extents,
    VolumeStat,
    Locked,
    LockState,
]


# --- queries --------------------------------------------------------------------------------------------------


class Lookup(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Find a name; ``..`` and ``.`` work. Result: AttrResult, or Failed NOT_FOUND, NOT_DIRECTORY, STALE (the parent
    is gone), INVALID or NAME_TOO_LONG."""

    parent: int
    name: bytes


class GetAttr(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Result: AttrResult, or Failed STALE where the inode is gone."""

    ino: int


class ReadDir(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A page of names greater than ``after``; with ``plus`` each entry carries its attributes. ``limit`` at least 1;
    a page also ends at READDIR_PAGE_MAX entries and READDIR_PAGE_BYTES_MAX. Result: Entries."""

    ino: int
    after: bytes
    limit: int
    plus: bool = True


class ReadLink(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Result: Target."""

    ino: int


class GetXattr(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Result: Value, or Failed NO_ATTRIBUTE."""

    ino: int
    name: bytes


class ListXattr(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Result: Names."""

    ino: int


FOUND = 0


class GetExtents(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Extents of a file that meet [offset, offset + length), at most EXTENT_PAGE_MAX. Result: Extents.

    ``ino`` FOUND: of the file that the last Lookup before it in the same Read found; NOT_FOUND where that found none.
    """

    ino: int
    offset: int
    length: int


class StatVolume(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Result: VolumeStat."""


class Walk(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Look up a path in one go, symlinks not followed. Result: AttrResult of the last name."""

    parent: int
    names: tuple[bytes, ...]


class GetBlock(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """The bytes of a block that came with a Commit and is not on chunk servers yet. Result: Value, or Failed
    MISSING_BLOCK: it is there by now, or nothing references it any more."""

    block: bytes


class GetLock(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """What is in the way of a lock, and whether a ticket still waits. Result: LockState."""

    session: int
    ino: int
    owner: int
    flock: bool
    low: int
    high: int
    exclusive: bool
    ticket: int = 0


Query = Union[Lookup, GetAttr, ReadDir, ReadLink, GetXattr, ListXattr, GetExtents, StatVolume, Walk, GetBlock, GetLock]
