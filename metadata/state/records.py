"""The values of the key schema: msgpack arrays, which grow by appending fields with defaults.

``Inode`` is mutable and lives in a cache while entries are applied; nobody changes one before everything that can
fail has been checked. All others are replaced, not changed.
"""

from __future__ import annotations

import msgspec

from metadata.api import Attr, Extent


class Purge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Chunks [low, high) were cut away when the data version became ``version``; older rows there are dead."""

    low: int
    high: int
    version: int


class Inode(msgspec.Struct, array_like=True, gc=False):
    """An inode. ``ino`` to ``data_version`` are what Attr says."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int  # of a directory: how many entries it has
    stored: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    version: int
    data_version: int
    parent: int = 0  # of a directory always, of others while nlink is 1; else 0 and the L rows have it
    name: bytes = b""  # likewise: the entry in ``parent``
    extents: tuple[Extent, ...] = ()  # all of them while ``rows`` is 0
    target: bytes = b""  # of a symlink
    rows: int = 0  # how many X rows this generation has, dead ones included
    generation: int = 0  # of the X rows; a new one leaves the old to a job
    purges: tuple[Purge, ...] = ()
    xattr_count: int = 0
    xattr_bytes: int = 0
    holders: int = 0  # O rows of this inode; only while nlink is 0
    quota: int = 0  # inherited from the directory; 0: none
    acl: int = 0  # Attr.flags: which access control lists are among the extended attributes


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The extents of one chunk, in order, as of one data version of the file."""

    version: int
    extents: tuple[Extent, ...]


class Session(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A mount's registration. Results exist only for sequences from ``lowest`` up."""

    id: int
    nonce: bytes
    host: str
    mount: str
    version: str
    opened_ns: int
    fence: int = 0
    lowest: int = 1
    result_bytes: int = 0
    unused: int = 0  # inode numbers given and not used
    process: str = ""  # as in OpenSession


class Server(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A chunk server, as far as it is replicated; the rest is the leader's memory."""

    server: int
    uuid: bytes
    name: str
    address: str
    host: str
    rack: str
    weight: float
    capacity_bytes: int
    state: str
    note: str = ""  # why it is out: "lost" (its data is gone) or "drained" (it holds nothing that counts)
    public_key: str = ""


class Introduced(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A chunk server that was added after the processes that run had read their configuration: whom to let in."""

    name: str
    address: str
    public_key: str


class Group(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A placement group: ordered servers, and the table's epoch that brought them.

    ``filling``: of these, who does not yet have what was written before it joined. ``leaving``: whose place another has
    taken; no write counts on it any more, and it goes when enough others have read from it (``metadata.rows``)."""

    servers: tuple[int, ...]
    changed: int
    filling: tuple[int, ...] = ()
    leaving: tuple[int, ...] = ()


class RootRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the root machine counts. ``format`` 0: the volume is not formatted yet."""

    format: int = 0
    cluster: bytes = b""
    replicas: int = 0
    gc_epoch: int = 1
    pg_epoch: int = 0
    groups: int = 0  # how many placement groups there are
    next_session: int = 1
    next_server: int = 1
    strategy: str = ""  # of placement; empty: the usual one


class ShardRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a shard counts: the next inode sequence, inodes that exist, bytes that their extents cover."""

    next_sequence: int = 1
    files: int = 0
    bytes: int = 0


class LoggedRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many blocks are in the state with their bytes, and what they count together (``state.logged``)."""

    blocks: int = 0
    cost: int = 0


class Applied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last applied entry. ``time_ns`` strictly rises from entry to entry."""

    index: int = 0
    term: int = 0
    time_ns: int = 0


class Audited(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last AUDIT entry: its index, the digest of the slice, where the next one begins (empty: at the beginning),
    and how often the whole state was gone through."""

    index: int = 0
    digest: bytes = b""
    following: bytes = b""
    rounds: int = 0


encode = msgspec.msgpack.Encoder().encode

decode_inode = msgspec.msgpack.Decoder(Inode).decode
decode_row = msgspec.msgpack.Decoder(Row).decode
decode_session = msgspec.msgpack.Decoder(Session).decode
decode_server = msgspec.msgpack.Decoder(Server).decode
decode_introduced = msgspec.msgpack.Decoder(tuple[Introduced, ...]).decode
decode_group = msgspec.msgpack.Decoder(Group).decode
decode_root = msgspec.msgpack.Decoder(RootRecord).decode
decode_shard = msgspec.msgpack.Decoder(ShardRecord).decode
decode_logged = msgspec.msgpack.Decoder(LoggedRecord).decode
decode_applied = msgspec.msgpack.Decoder(Applied).decode
decode_audited = msgspec.msgpack.Decoder(Audited).decode


def attr_of(inode: Inode) -> Attr:
    """What the inode shows to others, as of now."""
    return Attr(
        inode.ino,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.size,
        inode.stored,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.btime_ns,
        inode.version,
        inode.data_version,
        inode.acl,
    )
