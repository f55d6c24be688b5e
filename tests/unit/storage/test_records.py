"""Segment headers, record headers, and the scan that finds every good record."""

from __future__ import annotations

from random import Random

import pytest

from node.wire.errors import Code, FsError
from storage.records import (
    RECORD_HEADER_BYTES, RECORD_MAGIC, SEGMENT_COPY_BYTES, SEGMENT_HEADER_BYTES, VERSION, Damage, Found, Kind, Record,
    SegmentHeader, payload_checksum, scan, unpack_record, unpack_segment_header,
)

SALT = 0x1122334455667788
HEADER = SegmentHeader(7, SALT, b"c" * 16, b"s" * 16)


def record(seed: int, payload: bytes) -> Record:
    return Record(Kind.DATA, bytes([seed]) * 32, len(payload), 1000, 5, 1_700_000_000, seed, payload_checksum(payload))


def segment(payloads: list[bytes], start: int = SEGMENT_HEADER_BYTES, salt: int = SALT) -> tuple[bytes, list[int]]:
    """Return a segment's bytes and the offsets of its records."""
    data, offsets = bytearray(HEADER.pack().ljust(start, b"\0")), []
    for seed, payload in enumerate(payloads, 1):
        offsets.append(len(data))
        data += record(seed, payload).pack(salt, len(data)) + payload
    return bytes(data), offsets


def walk(data: bytes, start: int = SEGMENT_HEADER_BYTES) -> list[Found | Damage]:
    return list(scan(lambda length, offset: data[offset : offset + length], SALT, start, len(data)))


def test_segment_header() -> None:
    data = HEADER.pack()
    assert len(data) == SEGMENT_HEADER_BYTES
    assert unpack_segment_header(data, "s") == HEADER
    for bit in range(8 * len(data)):  # one copy may be damaged anywhere
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        assert unpack_segment_header(bytes(damaged), "s") == HEADER
    assert unpack_segment_header(data[:100], "s") == HEADER
    assert unpack_segment_header(data[:60], "s") is None
    assert unpack_segment_header(b"", "s") is None
    assert unpack_segment_header(bytes(SEGMENT_HEADER_BYTES), "s") is None


def test_newer_segment() -> None:
    data = bytearray(HEADER.pack())
    data[8] = data[8 + SEGMENT_COPY_BYTES] = VERSION + 1
    with pytest.raises(FsError, match="segment x has format version 2, this program reads up to 1") as failure:
        unpack_segment_header(bytes(data), "segment x")
    assert failure.value.code == Code.UNSUPPORTED_VERSION


def test_record_header() -> None:
    whole = record(3, b"payload")
    data = whole.pack(SALT, 640)
    assert len(data) == RECORD_HEADER_BYTES
    assert unpack_record(data, SALT, 640) == whole
    assert unpack_record(data, SALT, 641) is None  # it belongs to its place
    assert unpack_record(data, SALT + 1, 640) is None  # and to its segment
    assert unpack_record(data[:-1], SALT, 640) is None
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        assert unpack_record(damaged, SALT, 640) is None


def test_scan_finds_everything() -> None:
    payloads = [b"", b"x", Random(1).randbytes(5000), b"", b"y" * 100]
    data, offsets = segment(payloads)
    found = walk(data)
    assert [item.offset for item in found] == offsets
    assert all(isinstance(item, Found) and item.good for item in found)
    assert walk(data, offsets[2])[0].offset == offsets[2]
    assert walk(data[: SEGMENT_HEADER_BYTES]) == []


def test_scan_of_large_records_crosses_windows() -> None:
    payloads = [Random(seed).randbytes(900_000) for seed in range(12)]
    data, offsets = segment(payloads)
    assert [item.offset for item in walk(data)] == offsets
    broken = bytearray(data)
    broken[offsets[4] + 3] ^= 1
    items = walk(bytes(broken))
    assert Damage(offsets[4], offsets[5] - offsets[4]) in items
    assert len(items) == 12


@pytest.mark.parametrize("where", range(RECORD_HEADER_BYTES))
def test_damaged_header_costs_one_record(where: int) -> None:
    data, offsets = segment([b"a" * 200, b"b" * 200, b"c" * 200])
    broken = bytearray(data)
    broken[offsets[1] + where] ^= 0x40
    found = walk(bytes(broken))
    assert [item.offset for item in found if isinstance(item, Found) and item.good] == [offsets[0], offsets[2]]
    assert Damage(offsets[1], offsets[2] - offsets[1]) in found


def test_damaged_payload_names_its_block() -> None:
    data, offsets = segment([b"a" * 200, b"b" * 200, b"c" * 200])
    broken = bytearray(data)
    broken[offsets[1] + RECORD_HEADER_BYTES + 50] ^= 1
    found = walk(bytes(broken))
    assert [(item.offset, item.good) for item in found if isinstance(item, Found)] == [
        (offsets[0], True), (offsets[1], False), (offsets[2], True)
    ]


def test_torn_tail_at_every_length() -> None:
    data, offsets = segment([b"a" * 50, b"b" * 50])
    for length in range(offsets[1] + 1, len(data)):
        found = walk(data[:length])
        assert found == [walk(data)[0], Damage(offsets[1], length - offsets[1])]


def test_garbage_of_magics_is_searched_in_linear_time() -> None:
    data, _ = segment([])
    junk = RECORD_MAGIC * 500_000
    tail, offsets = segment([b"z" * 10], start=len(data) + len(junk))
    found = walk(data + junk + tail[len(data) + len(junk) :])
    assert found[0] == Damage(SEGMENT_HEADER_BYTES, len(junk))
    assert found[1].offset == offsets[0]


def test_records_inside_a_block_never_count() -> None:
    """A client may store an image of a segment, even one with our own salt's records at other offsets."""
    image, _ = segment([b"evil" * 20, b"evil" * 20])
    foreign, _ = segment([b"evil" * 20, b"evil" * 20], salt=SALT ^ 1)
    data, offsets = segment([b"a", image + foreign, b"c"])
    broken = bytearray(data)
    broken[offsets[1] + 8] ^= 1  # the record around the image is lost, so its inside is searched
    assert walk(bytes(broken)) == [walk(data)[0], Damage(offsets[1], offsets[2] - offsets[1]), walk(data)[2]]
