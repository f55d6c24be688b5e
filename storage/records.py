"""What stands in a segment file: its header and its records. Pure; ``FORMAT.md`` describes every byte.

A record's header checksum is seeded by a random salt that only the segment's own header holds, and covers the record's
offset. So when a damaged stretch has to be searched for the next good record, nothing that a client stored inside a
block (an image of a segment, say) can pass for one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional, Union

from xxhash import xxh3_64_intdigest

from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, BLOCK_STORED_BYTES_MAX, KIB
from node.wire.types import Buffer

SEGMENT_MAGIC = b"fusefsSG"
RECORD_MAGIC = b"fsRc"
VERSION = 1

_SEGMENT = struct.Struct("<8sIIQ16s16s")  # magic, version, number, salt, cluster, store; then a checksum
_RECORD = struct.Struct("<4sBBHIIIIQQ32s")  # magic, kind, flags, 0, the other fields; then a checksum
_CHECKSUM = struct.Struct("<Q")
SEGMENT_COPY_BYTES = _SEGMENT.size + _CHECKSUM.size
SEGMENT_HEADER_BYTES = 2 * SEGMENT_COPY_BYTES
RECORD_HEADER_BYTES = _RECORD.size + _CHECKSUM.size
FIRST_OF_GROUP = 1  # flag: all records before this one were durable before it was written
_WINDOW_BYTES = 4 * BLOCK_BYTES_MAX
_HEADERS_WINDOW_BYTES = 32 * KIB


class Kind(enum.IntEnum):
    """What a record says about its block. Numbers are part of the format: append, never renumber."""

    DATA = 1  # here are its encoded bytes; it lives with this touch epoch
    TOUCH = 2  # its touch epoch is at least this; it lives again when it was in quarantine
    DELETE = 3  # to quarantine; the epoch is the highest touch epoch that the deletion allowed
    PURGE = 4  # out of quarantine, its space may be used again
    MOVE = 5  # compaction copied its encoded bytes here; the state does not change


class SegmentHeader(NamedTuple):
    """The beginning of a segment file. Written twice, so that one damaged sector does not cost the segment."""

    number: int
    salt: int  # random, never leaves this host
    cluster: bytes  # 16 bytes
    store: bytes  # 16 bytes, the identity of the store on this disk

    def pack(self) -> bytes:
        """Return both copies."""
        copy = _SEGMENT.pack(SEGMENT_MAGIC, VERSION, self.number, self.salt, self.cluster, self.store)
        return 2 * (copy + _CHECKSUM.pack(xxh3_64_intdigest(copy)))


def unpack_segment_header(data: bytes, where: str) -> Optional[SegmentHeader]:
    """Return the header from either copy, None when both are damaged. Raises UNSUPPORTED_VERSION for a newer format."""
    newer = 0
    for at in (0, SEGMENT_COPY_BYTES):
        copy = data[at : at + _SEGMENT.size]
        if len(copy) < _SEGMENT.size or not copy.startswith(SEGMENT_MAGIC):
            continue
        magic, version, number, salt, cluster, store = _SEGMENT.unpack(copy)
        if version > VERSION:
            newer = version
        elif data[at + _SEGMENT.size : at + SEGMENT_COPY_BYTES] == _CHECKSUM.pack(xxh3_64_intdigest(copy)):
            return SegmentHeader(number, salt, cluster, store)
    if newer:
        detail = f"{where} has format version {newer}, this program reads up to {VERSION}: use a newer fusefs"
        raise FsError(Code.UNSUPPORTED_VERSION, detail)
    return None


class Record(NamedTuple):
    """A record's header. Lengths and checksum are of the payload: the encoded block of DATA and MOVE, else empty."""

    kind: int
    block: bytes
    stored: int
    plain: int
    epoch: int
    time_s: int  # when it was written, seconds since the Unix epoch
    sequence: int  # rises by one from record to record through all segments
    checksum: int  # of the payload
    flags: int = 0

    def pack(self, salt: int, offset: int) -> bytes:
        """Return the header as it stands at this offset of the segment with this salt."""
        fields = _RECORD.pack(
            RECORD_MAGIC, self.kind, self.flags, 0, self.stored, self.plain, self.epoch, self.time_s, self.sequence,
            self.checksum, self.block,
        )
        return fields + _seal(fields, salt, offset)


def payload_checksum(payload: Buffer) -> int:
    """Return the checksum of a payload for its record's header."""
    checksum: int = xxh3_64_intdigest(payload)
    return checksum


def unpack_record(data: Buffer, salt: int, offset: int) -> Optional[Record]:
    """Return the record header at the beginning of ``data``, None when it is none or damaged."""
    if len(data) < RECORD_HEADER_BYTES:
        return None
    fields = bytes(memoryview(data)[:RECORD_HEADER_BYTES])
    if not fields.startswith(RECORD_MAGIC) or fields[_RECORD.size :] != _seal(fields[: _RECORD.size], salt, offset):
        return None
    _, kind, flags, _, stored, plain, epoch, time_s, sequence, checksum, block = _RECORD.unpack_from(fields)
    if stored > BLOCK_STORED_BYTES_MAX:
        return None
    return Record(kind, block, stored, plain, epoch, time_s, sequence, checksum, flags)


class Found(NamedTuple):
    """A record whose header is good; ``good`` tells whether its payload is."""

    offset: int  # of the record's header in the segment
    record: Record
    good: bool


class Damage(NamedTuple):
    """A stretch of a segment in which there is no good record header. It may reach to the end."""

    offset: int
    length: int


def scan(read: Callable[[int, int], bytes], salt: int, start: int, end: int) -> Iterator[Union[Found, Damage]]:
    """Walk the records between two offsets of a segment; ``read(length, offset)`` returns its bytes.

    Never stops early: behind damage it goes on at the next good header. Holds a few MiB.
    """
    for item, _ in scan_payloads(read, salt, start, end):
        yield item


def scan_payloads(
    read: Callable[[int, int], bytes], salt: int, start: int, end: int, window_bytes: int = _WINDOW_BYTES
) -> Iterator[tuple[Union[Found, Damage], memoryview]]:
    """As ``scan``, each record with its payload; the view keeps a stretch of ``window_bytes`` alive."""
    window = _Window(read, end, window_bytes)
    at = start
    while at < end:
        record = unpack_record(window.get(at, RECORD_HEADER_BYTES), salt, at)
        behind = at + RECORD_HEADER_BYTES + record.stored if record else 0
        if record is None or behind > end:
            found = _search(window, salt, at + 1, end)
            yield Damage(at, found - at), memoryview(b"")
            at = found
            continue
        payload = window.get(at + RECORD_HEADER_BYTES, record.stored)
        good = len(payload) == record.stored and payload_checksum(payload) == record.checksum
        yield Found(at, record, good), payload
        at = behind


def headers(read: Callable[[int, int], bytes], salt: int, start: int, end: int) -> Iterator[tuple[int, Record]]:
    """Walk the records between two offsets as (offset, record) without reading payloads; damage is passed over."""
    window = _Window(read, end, _HEADERS_WINDOW_BYTES)
    at = start
    while at < end:
        record = unpack_record(window.get(at, RECORD_HEADER_BYTES), salt, at)
        if record is None or at + RECORD_HEADER_BYTES + record.stored > end:
            at = _search(window, salt, at + 1, end)
            continue
        yield at, record
        at += RECORD_HEADER_BYTES + record.stored


def _search(window: _Window, salt: int, at: int, end: int) -> int:
    """Return the offset of the next good record header that fits, ``end`` when there is none."""
    while end - at >= RECORD_HEADER_BYTES:
        hit = window.find(RECORD_MAGIC, at)
        if hit is None:
            at = max(at + 1, window.end - len(RECORD_MAGIC) + 1)
            continue
        record = unpack_record(window.get(hit, RECORD_HEADER_BYTES), salt, hit)
        if record is not None and hit + RECORD_HEADER_BYTES + record.stored <= end:
            return hit
        at = hit + 1
    return end


class _Window:
    """A stretch of the file in memory, moved forward as the scan goes."""

    def __init__(self, read: Callable[[int, int], bytes], end: int, size_bytes: int = _WINDOW_BYTES) -> None:
        self._read = read
        self._limit = end
        self._size_bytes = size_bytes
        self._start = 0
        self._data = b""

    def get(self, offset: int, length: int) -> memoryview:
        """Return these bytes, fewer where the file ends."""
        self._load(offset, length)
        at = offset - self._start
        return memoryview(self._data)[at : at + length]

    @property
    def end(self) -> int:
        """Where the stretch ends that is in memory."""
        return self._start + len(self._data)

    def find(self, wanted: bytes, offset: int) -> Optional[int]:
        """Return where these bytes are next in memory, having loaded at least a header's worth from the offset."""
        self._load(offset, RECORD_HEADER_BYTES)
        hit = self._data.find(wanted, offset - self._start)
        return None if hit < 0 else self._start + hit

    def _load(self, offset: int, length: int) -> None:
        if offset < self._start or min(offset + length, self._limit) > self.end:
            self._start = offset
            self._data = self._read(min(max(length, self._size_bytes), self._limit - offset), offset)


def _seal(fields: bytes, salt: int, offset: int) -> bytes:
    return _CHECKSUM.pack(xxh3_64_intdigest(fields + _CHECKSUM.pack(offset), salt))
