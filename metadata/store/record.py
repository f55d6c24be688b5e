"""How the log rests in a segment file: bytes in, records out. Pure.

A segment is a 64-byte file header and then records, each at a multiple of 8, in the order in which they were
written; what is not written yet is zero. A record is::

    checksum u64    XXH3-64 of the rest, seeded with segment number and offset: valid at its own place only
    length u32      of the payload
    magic u16       finds the next record behind an illegible one
    kind u8, flags u8 (0)
    group u32
    stable u32      everything below this offset of the segment was durable when this record was written
    last u64, last_term u64         the log's last entry after this record
    term u64, vote u64, commit u64  the hard state after this record
    payload, zeros to a multiple of 8

Two choices carry the rest. Each record repeats the newest hard state and the end of the log, so that whoever reads
the last legible record knows them, whatever was lost before it. And ``stable`` tells a torn write from loss: an
illegible record below a ``stable`` that somebody wrote later had been durable, so it was lost; above it, it was
never acknowledged.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from metadata.raft.messages import Entry, HardState, SnapshotMeta
from node.wire.errors import Code, FsError
from node.wire.limits import KIB, RAFT_ENTRY_BYTES_MAX

FORMAT_VERSION = 1
SECTOR_BYTES = 512
RECORD_PAYLOAD_BYTES_MAX = 2 * RAFT_ENTRY_BYTES_MAX

_FILE = struct.Struct("<8sIQ16s20xQ")
_FILE_MAGIC = b"fusefslg"
FILE_HEADER_BYTES = _FILE.size
_RECORD = struct.Struct("<QIHBBIIQQQQQ")
_BODY = struct.Struct("<IHBBIIQQQQQ")
_SUM = struct.Struct("<Q")
ENDING = struct.Struct("<QQQQ")
RECORD_HEADER_BYTES = _RECORD.size
BASE_BYTES_MAX = 256 * KIB  # file header and base
_MAGIC = 0xF5E1
_MAGIC_BYTES = _MAGIC.to_bytes(2, "little")
_MAGIC_OFFSET = 12
_PAD = tuple(bytes(n) for n in range(8))

assert FILE_HEADER_BYTES == 64 and RECORD_HEADER_BYTES == 64
assert FILE_HEADER_BYTES < SECTOR_BYTES  # written at once or not at all


class RecordKind(enum.IntEnum):
    """What a record's payload is."""

    BASE = 1  # the first two records of a segment, alike: a Base
    APPEND = 2  # entries, perhaps none; they replace what the log had from the first one's index on
    MARK = 3  # a Mark


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Where the log begins, and why it may.

    ``snapshot``: the state through this index is durable outside the log. Entries before ``first_index`` are gone;
    ``before_term`` is the term of the entry before it. ``reset``: this record also dropped every entry. The lost
    fields are not 0 while entries that this member may have acknowledged, at most through that index and term, have
    been lost and not been fetched again.
    """

    snapshot: SnapshotMeta
    first_index: int
    before_term: int
    reset: bool = False
    lost_index: int = 0
    lost_term: int = 0


class Base(msgspec.Struct, frozen=True, array_like=True):
    """A segment continues segment ``previous`` (0: none) at offset ``previous_end``; what follows there is void.

    ``ending`` tells, like the header of the last record that the segment was published with, how the log ended then:
    last, last term, term, vote (u64 each, so that its length does not depend on them).
    """

    previous: int
    previous_end: int
    mark: Mark
    ending: bytes


class Record(NamedTuple):
    """A legible record. ``end`` is where the next one begins."""

    offset: int
    end: int
    kind: int
    stable: int
    last: int
    last_term: int
    hard: HardState
    payload: memoryview


entries_encoder = msgspec.msgpack.Encoder()
entries_decoder = msgspec.msgpack.Decoder(list[Entry])
base_decoder = msgspec.msgpack.Decoder(Base)
mark_decoder = msgspec.msgpack.Decoder(Mark)


def encode_file_header(number: int, cluster_id: bytes) -> bytes:
    """Return the 64 bytes that a segment begins with."""
    body = _FILE.pack(_FILE_MAGIC, FORMAT_VERSION, number, cluster_id, 0)[:-8]
    return body + _SUM.pack(xxh3_64_intdigest(body))


def check_file_header(data: bytes, path: str, number: int, cluster_id: bytes) -> bool:
    """Return whether the header is legible. UNSUPPORTED_VERSION or FOREIGN_CLUSTER where it is, and not for us."""
    if len(data) < FILE_HEADER_BYTES:
        return False
    magic, version, found_number, found_cluster, checksum = _FILE.unpack_from(data)
    if magic != _FILE_MAGIC or checksum != xxh3_64_intdigest(data[: FILE_HEADER_BYTES - 8]):
        return False
    if version > FORMAT_VERSION:
        raise FsError(
            Code.UNSUPPORTED_VERSION, f"{path}: log format {version}; this release reads up to {FORMAT_VERSION}"
        )
    if found_cluster != cluster_id:
        raise FsError(Code.FOREIGN_CLUSTER, f"{path}: belongs to cluster {found_cluster.hex()}, not {cluster_id.hex()}")
    return bool(found_number == number)


def encode_record(
    number: int,
    offset: int,
    kind: int,
    stable: int,
    last: int,
    last_term: int,
    hard: HardState,
    payload: bytes,
    group: int = 0,
) -> bytes:
    """Return the bytes of one record for this place in this segment."""
    length = len(payload)
    body = _BODY.pack(
        length, _MAGIC, kind, 0, group, stable, last, last_term, hard.term, hard.vote, hard.commit
    ) + payload
    return _SUM.pack(xxh3_64_intdigest(body, number << 32 | offset)) + body + _PAD[-length % 8]


def record_bytes(length: int) -> int:
    """Return what a record with a payload of ``length`` takes in a segment."""
    return RECORD_HEADER_BYTES + length + -length % 8


def position_of(number: int, offset: int) -> int:
    """Return a place in a segment as one number."""
    return number << 32 | offset


def payload_length(header: bytes) -> int:
    """Return the length that a record header names, -1 where this is no record header."""
    if len(header) < RECORD_HEADER_BYTES:
        return -1
    fields = _RECORD.unpack_from(header)
    length: int = fields[1]
    return length if fields[2] == _MAGIC and length <= RECORD_PAYLOAD_BYTES_MAX else -1


def decode_record(data: memoryview, at: int, number: int, offset: int) -> Record | None:
    """Return the record at ``data[at:]``, which belongs at ``offset`` of its segment, or None where it is illegible."""
    stop = at + RECORD_HEADER_BYTES
    if stop > len(data):
        return None
    (checksum, length, magic, kind, _flags, _group, stable, last, last_term, term, vote, commit) = _RECORD.unpack_from(
        data, at
    )
    end = stop + length
    if magic != _MAGIC or length > RECORD_PAYLOAD_BYTES_MAX or end > len(data):
        return None
    if checksum != xxh3_64_intdigest(data[at + 8:end], number << 32 | offset):
        return None
    hard = HardState(term, vote, commit)
    return Record(offset, offset + record_bytes(length), kind, stable, last, last_term, hard, data[stop:end])


def find_record(data: memoryview, start: int, number: int) -> Record | None:
    """Return the first legible record at or behind ``start`` in a whole segment, or None."""
    whole = data.obj
    assert isinstance(whole, bytes)
    at = whole.find(_MAGIC_BYTES, start + _MAGIC_OFFSET)
    while at >= 0:
        offset = at - _MAGIC_OFFSET
        if offset % 8 == 0:
            record = decode_record(data, offset, number, offset)
            if record is not None:
                return record
        at = whole.find(_MAGIC_BYTES, at + 1)
    return None


def has_unwritten_sector(data: memoryview, start: int, end: int) -> bool:
    """Return whether [start, end) touches a sector that shows only zeros there: a write that never arrived."""
    at = start
    while at < end:
        stop = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if not any(data[at:stop]):
            return True
        at = stop
    return False
