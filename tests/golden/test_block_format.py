"""The bytes on disk and on the wire, read here by hand as storage/FORMAT.md describes them.

A vector never changes: what it holds was written by some release, and every later one has to read it.
"""

from __future__ import annotations

import struct
from pathlib import Path

import lmdb
import lz4.block
import pytest
from blake3 import blake3
from msgspec import msgpack
from xxhash import xxh3_64_intdigest

from storage import block
from storage.catalog import LmdbCatalog, MemoryCatalog, State
from tests.unit.storage.faultdisk import FaultDisk
from tests.unit.storage.stores import commit, delete, open_store, read, store_all, touch

VECTORS = Path(__file__).parent / "blocks"
RAW = bytes((at * at * 7 + at // 3) % 251 for at in range(100))
TEXT = b"All work and no play makes Jack a dull boy. " * 70
MIXED = bytes(65_536) + RAW
PLAIN = {"raw": RAW, "lz4": TEXT, "mixed": MIXED}
CLUSTER = bytes(range(16))


def by_hand(data: bytes) -> tuple[int, int, bytes]:
    """Return (first piece, plaintext length, plaintext of the pieces here), following FORMAT.md."""
    magic, version, algorithm, first, count, length, _ = struct.unpack_from("<4sBBBBIQ", data)
    assert (magic, version, algorithm) == (b"fsBk", 1, 1)
    pieces = -(-length // 65_536)
    at, plain = 20 + 12 * pieces, b""
    for index in range(first, first + count):
        stored, checksum = struct.unpack_from("<IQ", data, 20 + 12 * index)
        packed, stored = stored >> 31, stored & 0x7FFFFFFF
        piece = data[at : at + stored]
        assert xxh3_64_intdigest(piece, index) == checksum
        size = min(65_536, length - 65_536 * index)
        plain += lz4.block.decompress(piece, uncompressed_size=size) if packed else piece
        at += stored
    assert at == len(data)
    return first, length, plain


def header_checksum(data: bytes, name: bytes) -> int:
    pieces = -(-struct.unpack_from("<I", data, 8)[0] // 65_536)
    return xxh3_64_intdigest(name + data[:6] + data[8:12] + data[20 : 20 + 12 * pieces])


@pytest.mark.parametrize("which", sorted(PLAIN))
def test_blocks(which: str) -> None:
    data, plain = (VECTORS / f"{which}.block").read_bytes(), PLAIN[which]
    name = blake3(plain).digest()
    assert by_hand(data) == (0, len(plain), plain)
    assert struct.unpack_from("<Q", data, 12)[0] == header_checksum(data, name)
    assert bytes(block.decode(data, name)) == plain
    block.verify(data, name, len(plain))


def test_a_raw_block_is_written_like_this() -> None:
    """Not asked of lz4 pieces: another release of lz4 may pack better."""
    assert block.encode(RAW) == (blake3(RAW).digest(), (VECTORS / "raw.block").read_bytes())


def test_a_partial_block() -> None:
    data, name = (VECTORS / "partial.block").read_bytes(), blake3(MIXED).digest()
    assert by_hand(data) == (1, len(MIXED), RAW)
    assert struct.unpack_from("<Q", data, 12)[0] == header_checksum(data, name)
    assert bytes(block.decode(data, name, 65_546, 5)) == RAW[10:15]
    assert block.partial((VECTORS / "mixed.block").read_bytes(), name, 65_546, 5) == data


def test_a_segment() -> None:
    data = (VECTORS / "00000001.seg").read_bytes()
    assert data[:64] == data[64:128]
    magic, version, number, salt, cluster, store, checksum = struct.unpack_from("<8sIIQ16s16sQ", data)
    assert (magic, version, number, cluster) == (b"fusefsSG", 1, 1, CLUSTER)
    assert checksum == xxh3_64_intdigest(data[:56])
    raw, text = (VECTORS / "raw.block").read_bytes(), (VECTORS / "lz4.block").read_bytes()
    one, two = blake3(RAW).digest(), blake3(TEXT).digest()
    expected = [  # kind, first of a group, epoch, time, block, payload, plaintext
        (1, 1, 3, 0, one, raw, RAW), (1, 0, 3, 0, two, text, TEXT), (2, 1, 5, 1, one, b"", b""),
        (3, 0, 4, 1, two, b"", b""), (2, 1, 6, 2, two, b"", b""),
    ]
    at = 128
    for sequence, (kind, first, epoch, time_s, name, payload, plain) in enumerate(expected, 1):
        fields = struct.unpack_from("<4sBBHIIIIQQ32sQ", data, at)
        seal = xxh3_64_intdigest(data[at : at + 72] + at.to_bytes(8, "little"), salt)
        assert fields == (
            b"fsRc", kind, first, 0, len(payload), len(plain), epoch, 1_700_000_000 + time_s, sequence,
            xxh3_64_intdigest(payload), name, seal,
        )
        assert data[at + 80 : at + 80 + len(payload)] == payload
        at += 80 + len(payload)
    assert at == len(data)


def test_a_store_of_this_segment() -> None:
    disk = FaultDisk()
    disk.open("00000001.seg", create=True)
    disk.overwrite("00000001.seg", (VECTORS / "00000001.seg").read_bytes())
    store = open_store(disk, MemoryCatalog(), cluster=CLUSTER)
    one, two = blake3(RAW).digest(), blake3(TEXT).digest()
    assert (read(store, one), read(store, two)) == (RAW, TEXT)
    assert [store.locate(name).epoch for name in (one, two)] == [5, 6]
    assert [store.locate(name).state for name in (one, two)] == [State.LIVE, State.LIVE]
    assert store.block_count == 2
    assert not store.recovery.damaged
    assert not store.recovery.unfinished


def test_a_catalog(tmp_path: Path) -> None:
    """What a store writes beside its segments, read as FORMAT.md describes it."""
    catalog = LmdbCatalog(tmp_path / "catalog", map_bytes=1 << 24)
    store = open_store(FaultDisk(), catalog, cluster=CLUSTER)
    names = store_all(store, [RAW, TEXT, MIXED], epoch=7)
    assert commit(store, touch(names[0], 9), delete(names[1], 8)) == [0, 0]
    store.damaged(names[2], store.locate(names[2]), "as a test wants it")
    expected = {name: store.find(name) for name in names}
    store.close()
    with lmdb.open(str(tmp_path / "catalog"), max_dbs=3, readonly=True) as environment:
        databases = {name: environment.open_db(name) for name in (b"blocks", b"groups", b"about")}
        with environment.begin() as transaction:
            raw = {name: dict(transaction.cursor(db=db)) for name, db in databases.items()}
    keys = {}
    for name in names:
        bits = "".join(f"{byte:08b}" for byte in name[:8])
        keys[name] = bytes(int(bits[::-1][at : at + 8], 2) for at in range(0, 64, 8)) + name[8:]
    assert raw[b"blocks"].keys() == set(keys.values())
    for name, key in keys.items():
        segment, offset, stored, plain, epoch, time_s, state = struct.unpack("<IIIIIIB", raw[b"blocks"][key])
        assert expected[name] == (segment, offset, stored, plain, epoch, time_s, state)
    live, quarantined, damaged = names
    rows = {key: struct.unpack("<IIQQQQ", row) for key, row in raw[b"groups"].items()}
    words = struct.unpack("<QQQ", live[8:])
    stored = len(block.encode(RAW)[1])
    assert rows[keys[live][:2]] == (1, 0, stored, words[0], words[1], words[2] * 9 % (1 << 64))
    assert rows[keys[damaged][:2]] == (0, 1, 0, 0, 0, 0)
    assert rows[keys[quarantined][:2]] == (0, 0, 0, 0, 0, 0)
    summary = msgpack.decode(raw[b"about"][b"summary"])
    assert (summary["version"], summary["blocks"], summary["segment"]) == (3, 2, 1)
    zeros = {"passes": 0, "damaged": 0, "done_bytes": 0, "begun_s": 0}
    assert summary["scrub"] == {"place": [0, 0], "until": [0, 0], **zeros}
