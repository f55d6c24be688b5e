"""Everything that others may know of the storage service. From outside, import only this module.

A block is immutable bytes named by the BLAKE3 of its plaintext. It travels and rests *encoded* (see
``storage.block``): pieces of 64 KiB, lz4 or raw, each with a checksum.
"""

from __future__ import annotations

from typing import Optional, Union

import msgspec

from node.wire.catalogue import Catalogue, Method
from storage.block import decode as decode_block
from storage.block import encode as encode_block
from storage.block import name as name_block
from storage.block import partial as partial_block
from storage.block import verify as verify_block
from storage.order import group_of
from storage.order import key_of as order_key
from storage.shortcircuit import SegmentReader
from storage.table import GroupRow, Place, PlacementTable, TableDifference, place_of

__all__ = [
    "decode_block", "encode_block", "group_of", "name_block", "order_key", "partial_block", "place_of", "verify_block",
    "BlockInfo", "BlockRange", "CATALOGUE", "Delete", "DeleteReply", "DropGroup", "DropReport", "FORMAT_VERSION",
    "FindBlocks", "FindBlocksReply", "Get", "GetReply", "GetServerStatus", "GroupBlock", "GroupBlocks", "GroupDigest",
    "GroupDigests", "GroupDigestsReply", "GroupReport", "GroupRow", "Heartbeat", "HeartbeatReply", "ListBlocks",
    "ListBlocksReply", "ListGroup", "ListUnconfirmed", "Locate", "LocateReply", "Located", "METADATA_FOR_SERVERS",
    "MemberAddress", "Order", "Place", "PlacementTable", "Put", "PutReply", "Report", "Scrub", "ScrubReport",
    "SegmentReader", "ServerAddress", "ServerStatus", "StoredBlock", "Suspect", "SuspectReply", "SyncGroup",
    "TableDifference", "Touch", "TouchReply", "Unconfirmed",
]

FORMAT_VERSION = 1


class BlockInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One block of a put; the encoded bytes are the payload frame at the same position."""

    block: bytes  # 32 bytes, BLAKE3 of the plaintext
    length: int  # of the plaintext


class Put(msgspec.Struct, frozen=True, array_like=True):
    """Store blocks durably, or touch them where they are already stored.

    One payload frame a block, in order. The reply comes after the records (data or touches) are fdatasynced.
    Each frame is verified (bounds, piece checksums, BLAKE3 of the plaintext) before it is stored.

    ``pg_epoch`` is of the placement table that the sender knows, 0: he does not say. A block whose group changed since
    then, as far as the server knows, is not stored: its code is STALE_EPOCH.
    """

    blocks: tuple[BlockInfo, ...]
    touch_epoch: int
    pg_epoch: int = 0
    forward: tuple[int, ...] = ()  # chunk servers still to come in the pipeline, in order


class PutReply(msgspec.Struct, frozen=True, array_like=True):
    """``codes[i]`` is 0 where block i is durable here, else an errors.Code. ``copies`` counts servers reached.

    ``table``, here and in other replies: what the sender's table lacks, where it lacks something, and not too much."""

    codes: tuple[int, ...]
    copies: tuple[int, ...]  # per block: how many servers hold it durably, this one included
    failed: tuple[int, ...] = ()  # servers of the pipeline that did not answer
    table: Optional[TableDifference] = None


class Touch(msgspec.Struct, frozen=True, array_like=True):
    """Durably raise the touch epoch of blocks that are stored here; names those that are not."""

    blocks: tuple[bytes, ...]
    touch_epoch: int
    pg_epoch: int = 0


class TouchReply(msgspec.Struct, frozen=True, array_like=True):
    """Positions in the request of the blocks that are not here, and of those whose group changed since the sender's
    ``pg_epoch``; the others are touched durably."""

    missing: tuple[int, ...]
    stale: tuple[int, ...] = ()
    table: Optional[TableDifference] = None


class BlockRange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes ``offset`` up to ``offset + length`` of a block's plaintext; length 0 means all of it."""

    block: bytes
    offset: int = 0
    length: int = 0


class Get(msgspec.Struct, frozen=True, array_like=True):
    """Read blocks or parts of them. The reply carries one payload frame a range, empty where its code is not 0."""

    ranges: tuple[BlockRange, ...]
    pg_epoch: int = 0


class GetReply(msgspec.Struct, frozen=True, array_like=True):
    """``codes[i]``: 0, MISSING_BLOCK or CORRUPT_BLOCK; STALE_EPOCH where the block is not here and need not be, because
    the server is in its group no more. A frame is an encoded block or encoded partial block; ``storage.block.decode``
    checks it and cuts out the range."""

    codes: tuple[int, ...]
    table: Optional[TableDifference] = None


class Delete(msgspec.Struct, frozen=True, array_like=True):
    """Delete each block whose touch epoch is at most ``epoch`` (rule 15: a durable record, quarantined first).

    Only where its group is as it was at ``pg_epoch`` (rule 16). A server that does not know that table yet answers
    STALE_EPOCH, after it has waited for it a little."""

    blocks: tuple[bytes, ...]
    epoch: int
    pg_epoch: int = 0


class DeleteReply(msgspec.Struct, frozen=True, array_like=True):
    """``kept``: positions of the blocks that are still here because they were touched after ``epoch``, or their group
    changed since ``pg_epoch``."""

    deleted: int
    kept: tuple[int, ...] = ()


class ListUnconfirmed(msgspec.Struct, frozen=True, array_like=True):
    """List blocks that may be known to nobody (rule 17): put, touched or brought back since the last confirmed place,
    and not touched after ``epoch``. ``store`` must be this one's identity, else STALE."""

    store: bytes
    epoch: int
    limit: int
    confirm: tuple[int, int] = (0, 0)  # first: all that was listed up to here is known now (Unconfirmed.place)


class Unconfirmed(msgspec.Struct, frozen=True, array_like=True):
    """``more``: ask again at once. ``left_bytes``: about how much was written since the confirmed place, 0 when nothing
    is left; what is too young stays for a later epoch."""

    blocks: tuple[bytes, ...]
    place: tuple[int, int]
    more: bool
    left_bytes: int


class ListBlocks(msgspec.Struct, frozen=True, array_like=True):
    """List all blocks that the store lists behind ``after`` (empty: from the start). For auditors; what is put
    meanwhile may lack. The order is the store's own."""

    after: bytes
    limit: int


class StoredBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    block: bytes
    epoch: int  # of the last touch
    state: int  # 1 live, 2 in quarantine, 3 damaged


class ListBlocksReply(msgspec.Struct, frozen=True, array_like=True):
    blocks: tuple[StoredBlock, ...]
    more: bool


class FindBlocks(msgspec.Struct, frozen=True, array_like=True):
    """Ask about these blocks."""

    blocks: tuple[bytes, ...]


class FindBlocksReply(msgspec.Struct, frozen=True, array_like=True):
    """Those of them that are here, in whatever state, in the order asked."""

    blocks: tuple[StoredBlock, ...]


# -- groups: group g of a table of ``groups`` rows (a power of two) holds the blocks whose first eight bytes, read as a
# -- big-endian number, are g modulo ``groups``. The length of the table travels in every message.


class GroupDigests(msgspec.Struct, frozen=True, array_like=True):
    """Ask what is here of some groups, without a scan. At most GROUP_DIGESTS_MAX at once.

    ``server`` is who is meant, 0: whoever answers. Another one answers STALE: a new, empty store where an old one was
    must not count as having been read."""

    groups: int
    wanted: tuple[int, ...]
    server: int = 0


class GroupDigest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a server has of a group: the blocks that live, none in quarantine, none known to be damaged.

    Two servers have the same blocks where ``blocks`` and ``digest`` are equal, and have them with the same touch epochs
    where ``touches`` is equal as well.
    """

    group: int
    blocks: int
    stored_bytes: int  # as they rest, records' headers not counted
    digest: bytes  # 16 bytes: of the names, in whatever order
    touches: int  # 64 bits: of the names with their touch epochs


class GroupDigestsReply(msgspec.Struct, frozen=True, array_like=True):
    """One for each group wanted, in that order."""

    digests: tuple[GroupDigest, ...]


class ListGroup(msgspec.Struct, frozen=True, array_like=True):
    """List the blocks of a group that live here, behind ``after`` (empty: from the start), ordered by ``order_key``.
    All that were here when the request came and still are when the reply goes."""

    groups: int
    group: int
    after: bytes
    limit: int
    server: int = 0  # as in GroupDigests


class GroupBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    block: bytes
    epoch: int  # of the last touch
    length: int  # of the plaintext
    stored: int  # length encoded


class GroupBlocks(msgspec.Struct, frozen=True, array_like=True):
    blocks: tuple[GroupBlock, ...]
    more: bool


class Suspect(msgspec.Struct, frozen=True, array_like=True):
    """A reader found these missing or damaged here, and intact on another server. Each is looked at, and reported by
    the next heartbeat where that is so. At most SUSPECTS_MAX."""

    blocks: tuple[bytes, ...]


class SuspectReply(msgspec.Struct, frozen=True, array_like=True):
    """How many of them are bad."""

    bad: int


class Locate(msgspec.Struct, frozen=True, array_like=True):
    """Ask in which files of the server these blocks lie, at most LOCATE_BLOCKS_MAX: for a process that can read the
    files itself (``storage.shortcircuit``). NOT_SUPPORTED where they are no files."""

    blocks: tuple[bytes, ...]


class Located(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where an encoded block of ``length`` bytes of plaintext lies. ``stored`` 0: it is not here, or damaged."""

    segment: int = 0
    offset: int = 0
    stored: int = 0
    length: int = 0


class LocateReply(msgspec.Struct, frozen=True, array_like=True):
    """True when it was sent: compaction moves blocks, and removes the file where one was. ``store`` is the identity
    that each of the files in ``directory`` begins with."""

    directory: str
    store: bytes
    places: tuple[Located, ...]


class GetServerStatus(msgspec.Struct, frozen=True, array_like=True):
    """Ask a chunk server about itself."""


class ServerStatus(msgspec.Struct, frozen=True, array_like=True):
    """A chunk server's own view; also the body of a heartbeat."""

    server: int
    uuid: bytes  # identity of the store on disk, 16 bytes; a wiped server has a new one
    address: str
    used_bytes: int  # on disk, for blocks that nobody deleted; the rest of it comes back when it is needed
    capacity_bytes: int
    blocks: int
    state: str = "serving"  # serving, full, damaged
    host: str = ""
    rack: str = ""
    corrupt_blocks: int = 0
    name: str = ""  # as in the cluster's configuration
    weight: float = 1.0
    quarantined_bytes: int = 0  # deleted blocks that could still be brought back; not in used_bytes
    unconfirmed_bytes: int = 0  # as Unconfirmed.left_bytes


# -- orders to a chunk server, in replies to its heartbeats, and its reports, in heartbeats


class SyncGroup(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Have every block of the group that any of ``sources`` has, with the highest touch epoch among them (rule 16).

    Repeat it until the report says ``complete``; another ``order`` number has the work done anew (after damage, say).
    An order of an older ``pg_epoch`` than one known for the group is ignored. ``sources`` may name the server itself.
    """

    order: int
    group: int
    groups: int
    pg_epoch: int
    sources: tuple[int, ...]


class DropGroup(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The server is not in the group's row since ``pg_epoch``: its blocks of the group go to quarantine.

    Ignored where a SyncGroup of the same or a later epoch is known. Reported by DropReport.
    """

    order: int
    group: int
    groups: int
    pg_epoch: int


class Scrub(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Scrub at this rate until told otherwise (or restarted); 0 means the usual one.

    With ``restart`` the pass begins anew, once for each ``order`` number."""

    order: int
    bytes_per_s: int = 0
    restart: bool = False


Order = Union[SyncGroup, DropGroup, Scrub]


class GroupReport(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """How far a SyncGroup is. ``complete``: every source answered after the order came, and every block that they
    listed is durable here, with the highest touch epoch that they listed. Then ``missing`` is 0."""

    order: int
    group: int
    groups: int
    pg_epoch: int
    complete: bool
    missing: int  # blocks known to lack
    missing_bytes: int
    pulled: int  # blocks stored for this order so far
    blocks: int  # what is here now, as in GroupDigest
    stored_bytes: int
    digest: bytes
    touches: int
    failed: tuple[int, ...] = ()  # sources that did not answer when last asked


class DropReport(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """``left`` blocks of the group are not yet in quarantine; 0: done."""

    order: int
    group: int
    groups: int
    pg_epoch: int
    left: int


class ScrubReport(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The pass under way. Passes are counted through restarts of the server."""

    order: int  # the last Scrub order that was taken, 0 for none since the start
    number: int  # of the pass, from 1
    done_bytes: int
    total_bytes: int
    damaged: int  # blocks found damaged in this pass
    passes: int  # finished so far
    bytes_per_s: int


Report = Union[GroupReport, DropReport, ScrubReport]


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """Chunk server to metadata leader, every few seconds. Registers the server when it is new."""

    status: ServerStatus
    bad_blocks: tuple[bytes, ...] = ()  # found damaged since the last acknowledged heartbeat
    pg_epoch: int = 0  # when it last took lists
    reports: tuple[Report, ...] = ()  # what changed since the last acknowledged heartbeat, at most REPORTS_MAX
    reached: Place = (0, 0)  # of the placement table (storage.table)
    lists: int = 0  # HeartbeatReply.lists of those that this server has taken


class ServerAddress(msgspec.Struct, frozen=True, array_like=True):
    """Where a chunk server is, for the others that forward to it."""

    server: int
    address: str
    public_key: str = ""


class MemberAddress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a metadata member serves."""

    member: int
    name: str
    address: str
    public_key: str = ""


class HeartbeatReply(msgspec.Struct, frozen=True, array_like=True):
    """Orders for a chunk server. ``server`` is its id, assigned at registration."""

    server: int
    gc_epoch: int
    pg_epoch: int
    interval_s: float
    clients: Optional[tuple[str, ...]] = None  # reserved: allow-list difference
    servers: Optional[tuple[ServerAddress, ...]] = None  # all of them; None: as in Heartbeat.lists
    members: tuple[MemberAddress, ...] = ()  # all of the metadata service, where ``servers`` is told
    orders: tuple[Order, ...] = ()  # at most ORDERS_MAX; the others come with later replies
    table: Optional[TableDifference] = None  # what lies behind Heartbeat.reached, at most TABLE_ROWS_MAX rows of it
    lists: int = 0  # a number for what ``servers`` and ``members`` say, or would say; any other answer has another


CATALOGUE = Catalogue(
    "storage",
    [
        Method(0x100, Put, PutReply),
        Method(0x101, Touch, TouchReply),
        Method(0x102, Get, GetReply),
        Method(0x103, Delete, DeleteReply),
        Method(0x104, GetServerStatus, ServerStatus),
        Method(0x108, ListUnconfirmed, Unconfirmed),
        Method(0x109, ListBlocks, ListBlocksReply),
        Method(0x10A, FindBlocks, FindBlocksReply),
        Method(0x10B, GroupDigests, GroupDigestsReply),
        Method(0x10C, ListGroup, GroupBlocks),
        Method(0x10D, Suspect, SuspectReply),
        Method(0x10E, Locate, LocateReply),
    ],
)

METADATA_FOR_SERVERS = Catalogue(
    "metadata, as chunk servers use it",
    [Method(0x207, Heartbeat, HeartbeatReply)],  # the same number as in the metadata service's own catalogue
)
