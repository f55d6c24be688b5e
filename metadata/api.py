"""Everything that others may know of the metadata service. From outside, import only this module.

Two ways in: ``Submit`` carries mutations, which become one log entry and are executed exactly once; ``Read``
carries queries, answered linearizably from applied state. Both carry batches.
"""

from __future__ import annotations

from typing import Optional

import msgspec

from metadata import lockset
from metadata.garbage import CollectGarbage, FindReferences, GarbageReply, ListReferences, References
from metadata.lockset import Held, LockRow
from metadata.operations import (
    ATTR_ACCESS_ACL,
    ATTR_DEFAULT_ACL,
    FOUND,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    TIME_NOW,
    XATTR_CREATE,
    XATTR_REPLACE,
    AllocateInos,
    Attr,
    AttrResult,
    CancelLock,
    CloneRange,
    Commit,
    Committed,
    DirEntry,
    Done,
    Entries,
    Extent,
    Extents,
    Failed,
    GetAttr,
    GetBlock,
    GetExtents,
    GetLock,
    GetXattr,
    InoRange,
    Link,
    ListXattr,
    Lock,
    Locked,
    LockState,
    Lookup,
    Made,
    Make,
    Names,
    Op,
    PunchHole,
    PutLocks,
    Query,
    ReadDir,
    ReadLink,
    Release,
    Remove,
    RemoveXattr,
    Removed,
    Rename,
    Renamed,
    Result,
    SetAttr,
    SetXattr,
    StatVolume,
    Target,
    Unlock,
    Value,
    VolumeStat,
    Walk,
)
from metadata.placement import STRATEGIES
from metadata.results import changed, shown, told
from node.wire.catalogue import Catalogue, Method
from storage.api import Heartbeat, HeartbeatReply, MemberAddress

FORMAT_VERSION = 1

__all__ = [  # what the outside may use
    "ATTR_ACCESS_ACL",
    "ATTR_DEFAULT_ACL",
    "FOUND",
    "RENAME_EXCHANGE",
    "STRATEGIES",
    "RENAME_NOREPLACE",
    "TIME_NOW",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "AllocateInos",
    "Attr",
    "AttrResult",
    "CancelLock",
    "CloneRange",
    "Commit",
    "Committed",
    "DirEntry",
    "Done",
    "Entries",
    "Extent",
    "Extents",
    "Failed",
    "GetAttr",
    "GetBlock",
    "GetExtents",
    "GetLock",
    "GetXattr",
    "Held",
    "InoRange",
    "Link",
    "ListXattr",
    "Lock",
    "Locked",
    "LockRow",
    "LockState",
    "Lookup",
    "Made",
    "Make",
    "Names",
    "Op",
    "PunchHole",
    "PutLocks",
    "Query",
    "ReadDir",
    "ReadLink",
    "Release",
    "Remove",
    "RemoveXattr",
    "Removed",
    "Rename",
    "Renamed",
    "Result",
    "SetAttr",
    "SetXattr",
    "StatVolume",
    "Target",
    "Unlock",
    "Value",
    "VolumeStat",
    "Walk",
    "lockset",
    "FORMAT_VERSION",
    "Submit",
    "SubmitReply",
    "Read",
    "ReadReply",
    "OpenSession",
    "OpenSessionReply",
    "RenewSession",
    "RenewSessionReply",
    "Recall",
    "Recalled",
    "RecalledReply",
    "LocksGranted",
    "CloseSession",
    "CloseSessionReply",
    "ServerRecord",
    "TableRow",
    "GetClusterMap",
    "ClusterMap",
    "GetStatus",
    "MemberStatus",
    "SessionStatus",
    "StatusReply",
    "ChangeMembers",
    "ChangeMembersReply",
    "ChangeServer",
    "CollectGarbage",
    "FindReferences",
    "ListReferences",
    "References",
    "GetHealing",
    "HealingReply",
    "ServerHealing",
    "SetStrategy",
    "StartScrub",
    "GarbageReply",
    "CATALOGUE",
    "Heartbeat",
    "HeartbeatReply",
    "MemberAddress",
    "changed",
    "shown",
    "told",
]


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

    ``journal``: operations that the session has answered already, under exclusive leases on all that they touch. They
    wait for no recall and no grace: whoever else wants to see these inodes waits for them. ``times_ns`` (one for each
    operation, or none) says when they happened, instead of the entry's time. ``bases``: (directory, data version) as
    they were before; where one is not so, VERSION_MISMATCH, nothing executed (rule 1).

    ``settled``: inodes of which the session shows nothing that it remembers from before it sent this until it has the
    answer, nor does its kernel. So nobody who looks at them meanwhile has to wait for it.

    ``gives``: inodes on which the session gives its leases back with this ``journal``, as if it had acknowledged a
    recall of them: it has forgotten them, and once this is executed nothing of them is left to bring. Where an
    operation fails, or all of this is refused, they are recalled after all.
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
    journal: bool = False
    times_ns: tuple[int, ...] = ()
    bases: tuple[tuple[int, int], ...] = ()
    settled: tuple[int, ...] = ()
    gives: tuple[int, ...] = ()


class SubmitReply(msgspec.Struct, frozen=True, array_like=True):
    """``lease_term``: as in ReadReply, for the inodes whose attributes are in the results.

    ``touched``: every inode that the operations changed, told where ``lease`` was asked for; what the session caches of
    one is old, but for the attributes in the results. Empty in the answer to a repetition: then drop all of it.
    """

    results: tuple[Result, ...]
    lease_term: int = 0
    touched: tuple[int, ...] = ()
    shared: Optional[tuple[int, ...]] = None  # as in ReadReply
    locked: tuple[int, ...] = ()


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
    fence: Optional[int] = None  # the session's; FENCED where it has been raised since
    journal: bool = False  # to bring what it changed of inodes that it has exclusively: answered in grace too, no lease


class ReadReply(msgspec.Struct, frozen=True, array_like=True):
    """``lease_term``: 0, or the results may be cached until they are recalled, and no longer than SESSION_LEASE_S
    from when the request was sent; a later grant or renewal of the same term prolongs all of them alike.

    ``shared``: of the inodes that were leased, those that others may hold too. The others are *exclusive*: nobody sees
    or changes them before the session has acknowledged a recall, or was fenced. So it may change them by itself, as
    long as the lease lasts, and bring the changes later (Submit.journal). None: nothing is exclusive.

    ``locked``: of the inodes that were leased, those on which anybody holds or wants a lock. About the locks of another
    exclusive one the session decides by itself, and brings them before it acknowledges a recall (PutLocks).
    """

    results: tuple[Result, ...]
    lease_term: int = 0
    shared: Optional[tuple[int, ...]] = None
    locked: tuple[int, ...] = ()


class OpenSession(msgspec.Struct, frozen=True, array_like=True):
    """Register a mount through the log. ``nonce`` makes a repeated request return the same session."""

    nonce: bytes  # 16 random bytes
    host: str
    mount: str
    version: str
    process: str = ""  # node.host.identity: whoever sees that it is gone may have the session ended


class OpenSessionReply(msgspec.Struct, frozen=True, array_like=True):
    session: int
    lease_s: float
    gc_epoch: int
    pg_epoch: int
    fence: int = 0


class RenewSession(msgspec.Struct, frozen=True, array_like=True):
    """Keep a session alive; sent every SESSION_RENEW_S. UNKNOWN_SESSION when it has expired.

    ``keeps``, with the term of a new leader: inodes that were leased exclusively under an earlier one, were changed by
    the session and are not brought yet. They are leased exclusively from then on. FENCED where ``fence``, the
    session's, has been raised since.
    """

    session: int
    orphans_after: int = 0  # page: removed inodes above this number
    lease_term: int = 0  # as in Read
    keeps: tuple[int, ...] = ()
    fence: Optional[int] = None


class RenewSessionReply(msgspec.Struct, frozen=True, array_like=True):
    """``orphans``: removed inodes that this session may still hold; it answers with Release for those it does not."""

    lease_s: float
    gc_epoch: int
    pg_epoch: int
    orphans: tuple[int, ...] = ()
    lease_term: int = 0  # the leader's term; where the request named it too, its leases are prolonged, from sending
    room_bytes: int = 0  # what this session may acknowledge before it is durable (rule 13)
    log_room_bytes: int = -1  # what commits may bring along at the moment (Commit.data); -1: a service that cannot


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


class LocksGranted(msgspec.Struct, frozen=True, array_like=True):
    """Pushed by the leader: these tickets of Lock have come to their turn. It may be lost: ask GetLock now and then."""

    session: int
    tickets: tuple[int, ...]


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
    note: str = ""  # of one that is out: "lost", "drained"
    public_key: str = ""


class TableRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One placement group: its ordered servers. ``filling`` ones may lack what is older than their membership: read
    from them last. ``leaving`` ones are read like others, but a put on them does not count."""

    group: int
    servers: tuple[int, ...]
    filling: tuple[int, ...] = ()
    leaving: tuple[int, ...] = ()


class GetClusterMap(msgspec.Struct, frozen=True, array_like=True):
    """Chunk servers and placement: all of it for ``known_epoch`` 0, else what changed since that epoch."""

    known_epoch: int = 0


class ClusterMap(msgspec.Struct, frozen=True, array_like=True):
    """``table[pg]`` is the ordered servers of a placement group; a block's group is the first 8 bytes of its name,
    big-endian, modulo len(table).

    Where the asker's epoch was known, ``base`` is that epoch, ``table`` is empty and ``rows`` are the groups that
    changed since. Where it was not, ``base`` is 0 and ``rows`` are those of the table with somebody filling or leaving.
    """

    pg_epoch: int
    gc_epoch: int
    replicas: int
    servers: tuple[ServerRecord, ...]
    table: tuple[tuple[int, ...], ...]
    base: int = 0
    rows: tuple[TableRow, ...] = ()


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
    process: str = ""


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


class GetHealing(msgspec.Struct, frozen=True, array_like=True):
    """Ask the leader how far repair, drains, balancing and scrubbing are."""


class ServerHealing(msgspec.Struct, frozen=True, array_like=True):
    """A chunk server: how many groups it has, how many it should have by its weight if they were all alike, what it
    stores of its groups and should store, and its last word on scrubbing."""

    record: ServerRecord
    groups: int
    target: float
    stored_bytes: int  # of its groups, when it was last asked
    scrub_order: int = 0
    scrub_pass: int = 0
    scrub_passes: int = 0  # finished
    scrub_done_bytes: int = 0
    scrub_total_bytes: int = 0
    scrub_damaged: int = 0
    target_bytes: float = 0.0


class HealingReply(msgspec.Struct, frozen=True, array_like=True):
    """``changing``: groups where somebody is filling or leaving; ``waiting``: moves that will follow;
    ``lacking_bytes``: what filling members still lack. ``scrub_order``: the number of the last StartScrub."""

    servers: tuple[ServerHealing, ...]
    under_replicated_blocks: int
    changing: int
    waiting: int
    lacking_bytes: int
    orders: int
    pulled_blocks: int
    scrub_order: int = 0
    strategy: str = ""  # of placement


class StartScrub(msgspec.Struct, frozen=True, array_like=True):
    """Have every chunk server begin a pass over all it stores now, at this rate (0: the usual one)."""

    bytes_per_s: int = 0


class SetStrategy(msgspec.Struct, frozen=True, array_like=True):
    """Choose how chunk servers are chosen from now on: weighted, round-robin or random. Groups whose row should be
    another one change, some at a time: new members take the writes at once, and older data follow. INVALID: there is no
    such strategy."""

    strategy: str


class ChangeServer(msgspec.Struct, frozen=True, array_like=True):
    """Change what a chunk server is there for. ``action`` is one of

    drain      its groups move to others while it serves; then it is out. NO_SPACE where fewer others would be left than
               there are copies
    serve      a drained or draining one takes groups again
    remove     a drained one stays out for good. BUSY while it has groups
    lost       its data are gone and will not come back: nobody waits for it any more
    introduce  one that has not come yet is let in by everybody, by its ``public_key``, and reached with it at
               ``address``; remove and lost take that back. EXISTS where another one has the address

    NOT_FOUND: there is none of this name. Reply: its ServerRecord.
    """

    action: str
    name: str
    address: str = ""
    public_key: str = ""


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
        Method(0x210, LocksGranted, None),
        Method(0x220, CollectGarbage, GarbageReply),
        Method(0x230, GetHealing, HealingReply),
        Method(0x231, StartScrub, HealingReply),
        Method(0x232, ChangeServer, ServerRecord),
        Method(0x233, SetStrategy, HealingReply),
        Method(0x221, ListReferences, References),
        Method(0x222, FindReferences, References),
    ],
)
