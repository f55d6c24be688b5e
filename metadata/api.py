"""Everything that others may know of the metadata service. From outside, import only this module.

Two ways in: ``Submit`` carries mutations, which become one log entry and are executed exactly once; ``Read``
carries queries, answered linearizably from applied state. Both carry batches.
"""

from __future__ import annotations

from typing import Optional, Union

import msgspec

from node.wire.catalogue import Catalogue, Method
from storage.api import Heartbeat, HeartbeatReply
from storage.api import MemberAddress as MemberAddress

FORMAT_VERSION = 1

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
XATTR_CREATE = 1
XATTR_REPLACE = 2
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
    bit hands down its group, and the bit to directories. ``ino`` must come from AllocateInos of this session and counts
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


class SetXattr(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """setxattr(2) with XATTR_CREATE (EXISTS) or XATTR_REPLACE (NO_ATTRIBUTE). RANGE: name too long; TOO_BIG: value
    too long; NO_SPACE: all of the inode's together above XATTRS_BYTES_MAX. Result: AttrResult."""

    ino: int
    name: bytes
    value: bytes
    flags: int = 0


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


Op = Union[
    Make, Link, Remove, Rename, SetAttr, Commit, SetXattr, RemoveXattr, Release, AllocateInos, PunchHole, CloneRange
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
    """``offset`` is where an append landed."""

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
    """Extents that meet the asked range, in order, whole (not clipped). ``more``: ask again from the last one's end."""

    attr: Attr
    extents: tuple[Extent, ...]
    more: bool


class VolumeStat(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """What statfs(2) tells, plaintext terms: capacities are divided by the replica count."""

    total_bytes: int
    free_bytes: int
    files: int
    bytes: int  # logical bytes that extents cover


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


class GetExtents(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Extents of a file that meet [offset, offset + length), at most EXTENT_PAGE_MAX. Result: Extents."""

    ino: int
    offset: int
    length: int


class StatVolume(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Result: VolumeStat."""


class Walk(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Look up a path in one go, symlinks not followed. Result: AttrResult of the last name."""

    parent: int
    names: tuple[bytes, ...]


Query = Union[Lookup, GetAttr, ReadDir, ReadLink, GetXattr, ListXattr, GetExtents, StatVolume, Walk]


# --- requests -------------------------------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, array_like=True):
    """Execute ``ops`` in order as one log entry, exactly once. The reply comes after the entry is durable on a
    quorum and applied.

    ``after`` names the predecessor's sequence (0: none): where that has no result yet, the answer is RETRY and nothing
    is recorded (rule 12). ``lowest_unacked``: results below it may be forgotten; a request below it is answered
    STALE_SEQUENCE. ``stop_on_error``: after the first Failed the rest is Failed SKIPPED.

    Sequences begin at 1; requests may arrive in any order within RESULT_WINDOW of the lowest unacknowledged. A sequence
    that has a result is answered with it, whatever else the request says. Refused whole, nothing executed or recorded:
    UNKNOWN_SESSION; FENCED (``fence`` is not the session's); RETRY; OVERLOADED (the window, or SESSION_RESULT_BYTES_MAX
    of results: raise ``lowest_unacked``); TOO_BIG (SUBMIT_OPS_MAX, SUBMIT_EXTENTS_MAX); INVALID (numbers that make no
    sense). Else each operation stands alone: one that Failed left no trace, the others count. What is left of a Submit
    after SUBMIT_WORK_MAX rows and extents were touched (by clones, truncates, releases) is Failed OVERLOADED.
    """

    session: int
    sequence: int
    lowest_unacked: int
    ops: tuple[Op, ...]
    after: int = 0
    stop_on_error: bool = False
    fence: int = 0
    lease: bool = False  # this and the next as in Read
    lease_term: int = 0


class SubmitReply(msgspec.Struct, frozen=True, array_like=True):
    """``lease_term``: as in ReadReply, for the inodes whose attributes are in the results.

    ``touched``: every inode that the operations changed, told where ``lease`` was asked for; what the session caches of
    one is old, but for the attributes in the results. Empty in the answer to a repetition: then drop all of it.
    """

    results: tuple[Result, ...]
    lease_term: int = 0
    touched: tuple[int, ...] = ()


class Read(msgspec.Struct, frozen=True, array_like=True):
    """Answer ``queries``, all from one state that is at least as new as any mutation acknowledged before.

    At most READ_QUERIES_MAX, else TOO_BIG. A query whose answer does not fit into this reply any more is Failed
    OVERLOADED: ask it again in another Read.

    With ``lease`` the session asks for read leases on the inodes that the answers speak of (of a directory: its names
    too). ``lease_term`` is the leader's term as the session knows it, 0 when it does not. It is a promise: the session
    holds no lease of any other term and will take none of an earlier one, however late the answer comes. So a session
    drops everything before it adopts a term, which it learns from RenewSessionReply or from LEASES_GONE, the answer to
    a term that has passed (the error's ``hint``). A grant of another term than the adopted one is not taken.
    """

    session: int
    queries: tuple[Query, ...]
    lease: bool = False
    lease_term: int = 0


class ReadReply(msgspec.Struct, frozen=True, array_like=True):
    """``lease_term``: 0, or the results may be cached until they are recalled, and no longer than SESSION_LEASE_S
    from when the request was sent; a later grant or renewal of the same term prolongs all of them alike."""

    results: tuple[Result, ...]
    lease_term: int = 0


class OpenSession(msgspec.Struct, frozen=True, array_like=True):
    """Register a mount through the log. ``nonce`` makes a repeated request return the same session."""

    nonce: bytes  # 16 random bytes
    host: str
    mount: str
    version: str


class OpenSessionReply(msgspec.Struct, frozen=True, array_like=True):
    session: int
    lease_s: float
    gc_epoch: int
    pg_epoch: int
    fence: int = 0


class RenewSession(msgspec.Struct, frozen=True, array_like=True):
    """Keep a session alive; sent every SESSION_RENEW_S. UNKNOWN_SESSION when it has expired."""

    session: int
    orphans_after: int = 0  # page: removed inodes above this number
    lease_term: int = 0  # as in Read


class RenewSessionReply(msgspec.Struct, frozen=True, array_like=True):
    """``orphans``: removed inodes that this session may still hold; it answers with Release for those it does not."""

    lease_s: float
    gc_epoch: int
    pg_epoch: int
    orphans: tuple[int, ...] = ()
    lease_term: int = 0  # the leader's term; where the request named it too, its leases are prolonged, from sending


class Recall(msgspec.Struct, frozen=True, array_like=True):
    """Pushed by the leader: another session changed these inodes, and waits until nobody sees them as they were.

    The session drops what it and its kernel cache of their attributes, data and (of directories) names, and then
    sends Recalled. An answer to a request that it sent before the recall came must not be cached (rule 4).
    """

    session: int
    number: int
    inos: tuple[int, ...]


class Recalled(msgspec.Struct, frozen=True, array_like=True):
    """The session caches nothing of recall ``number`` any more."""

    session: int
    number: int


class RecalledReply(msgspec.Struct, frozen=True, array_like=True):
    pass


class CloseSession(msgspec.Struct, frozen=True, array_like=True):
    """End a session through the log; its orphans are freed."""

    session: int


class CloseSessionReply(msgspec.Struct, frozen=True, array_like=True):
    pass


class ServerRecord(msgspec.Struct, frozen=True, array_like=True):
    """A chunk server in the cluster map."""

    server: int
    uuid: bytes
    name: str
    address: str
    host: str
    rack: str
    weight: float
    capacity_bytes: int
    state: str  # joining, serving, suspect, out, draining
    used_bytes: int = 0  # leader memory, from heartbeats
    blocks: int = 0
    alive: bool = False


class GetClusterMap(msgspec.Struct, frozen=True, array_like=True):
    """Chunk servers and placement, whole when ``known_epoch`` is older."""

    known_epoch: int = 0


class ClusterMap(msgspec.Struct, frozen=True, array_like=True):
    """``table[pg]`` is the ordered servers of a placement group; a block's group is the first 8 bytes of its name,
    big-endian, modulo len(table)."""

    pg_epoch: int
    gc_epoch: int
    replicas: int
    servers: tuple[ServerRecord, ...]
    table: tuple[tuple[int, ...], ...]


class GetStatus(msgspec.Struct, frozen=True, array_like=True):
    """Ask a member about itself; any member answers, leader or not. ``brief``: without sessions, servers and volume."""

    brief: bool = False


class MemberStatus(msgspec.Struct, frozen=True, array_like=True):
    member: int
    name: str
    address: str
    role: str  # leader, follower, candidate, learner
    term: int
    leader: int
    commit: int
    applied: int
    last: int
    match: int = 0  # what the leader knows it has durably; 0 from anybody else
    state: str = ""  # how the leader supplies it: probe, replicate, snapshot


class SessionStatus(msgspec.Struct, frozen=True, array_like=True):
    id: int
    host: str
    mount: str
    leases: int


class StatusReply(msgspec.Struct, frozen=True, array_like=True):
    """A member's own view; ``sessions``, ``servers`` and ``volume`` only from a leader."""

    status: MemberStatus
    members: tuple[MemberStatus, ...] = ()
    sessions: tuple[SessionStatus, ...] = ()
    servers: tuple[ServerRecord, ...] = ()
    volume: Optional[VolumeStat] = None
    stored_bytes: int = 0
    replicas: int = 0
    under_replicated_blocks: int = 0
    roster: tuple[MemberAddress, ...] = ()  # all members, as far as the answering one knows


class ChangeMembers(msgspec.Struct, frozen=True, array_like=True):
    """Change who belongs to the metadata service, or who leads it. ``action`` is one of

    add        as a learner, under a number that nobody ever had; the addresses (and with tcp the key) are required
    promote    a learner that has caught up becomes a voter. BUSY while it lags
    remove     a learner or a voter, dead or alive. NO_QUORUM where too few of the remaining voters live; the leader
               hands over first (RETRY)
    transfer   leadership to a voter. TIMEOUT where it does not take it

    What is so already is answered as done. NOT_FOUND: there is no such member; EXISTS: the name is taken; RETRY: an
    earlier change is under way. The answer comes when the change has taken effect.
    """

    action: str
    name: str
    address: str = ""
    peer_address: str = ""
    public_key: str = ""


class ChangeMembersReply(msgspec.Struct, frozen=True, array_like=True):
    member: int


class CollectGarbage(msgspec.Struct, frozen=True, array_like=True):
    """Ask the leader about its garbage collector; with ``advance`` it takes a round first, which moves the epoch where
    something waits for that. Two or three rounds delete what nothing references."""

    advance: bool = False


class GarbageReply(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """``candidates``: blocks that nothing references; ``due``: of these, old enough to be deleted. ``deleted`` and the
    rest of the counts are of the round that was asked for. ``waiting``: another round will do more."""

    gc_epoch: int
    candidates: int
    due: int
    more_candidates: bool  # than were counted
    quarantined_bytes: int  # of all copies, as the last heartbeats told
    unconfirmed_bytes: int
    deleted: int = 0
    kept: int = 0  # touched again, or a server could not be asked
    adopted: int = 0  # blocks of writers that died
    waiting: bool = False


CATALOGUE = Catalogue(
    "metadata",
    [
        Method(0x200, Submit, SubmitReply),
        Method(0x201, Read, ReadReply),
        Method(0x202, OpenSession, OpenSessionReply),
        Method(0x203, RenewSession, RenewSessionReply),
        Method(0x204, CloseSession, CloseSessionReply),
        Method(0x205, GetClusterMap, ClusterMap),
        Method(0x206, GetStatus, StatusReply),
        Method(0x207, Heartbeat, HeartbeatReply),
        Method(0x208, Recall, None),
        Method(0x209, Recalled, RecalledReply),
        Method(0x20A, ChangeMembers, ChangeMembersReply),
        Method(0x220, CollectGarbage, GarbageReply),
    ],
)
