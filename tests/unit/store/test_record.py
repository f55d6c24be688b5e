"""The bytes of the log, and the index over them. What is pinned here is on people's disks."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from metadata.raft.messages import ConfState, Entry, HardState, SnapshotMeta
from metadata.store import record as rec
from metadata.store.index import LogIndex
from metadata.store.record import Base, Mark, RecordKind
from metadata.store.replay import Cut, encode_segment

MARK = Mark(SnapshotMeta(7, 2, ConfState(voters=(1, 2, 3))), 5, 1)
CUT = Cut(3, 4096, MARK, 9, 2, HardState(4, 2, 8))

# magic, format, number, cluster; zeros; checksum
FILE_HEADER = """
6675736566736c67 01000000 0400000000000000 000102030405060708090a0b0c0d0e0f
0000000000000000000000000000000000000000 f499a76ea789a765
"""
# checksum, length, magic, kind, flags, group, stable, last, last term, term, vote, commit, payload
BASE = """
1c87264715d63967 39000000 e1f5 01 00 00000000 40010000 0900000000000000 0200000000000000
0400000000000000 0200000000000000 0800000000000000 9403cd1000969307029593010203909090c20501c20000
c420 0900000000000000 0200000000000000 0400000000000000 0200000000000000 00000000000000
"""
BASE_CHECKSUM_AGAIN = "a9f9a9c17e80b479"  # the same record at the next place
APPEND = """
31efe0f8f016f30e 07000000 e1f5 02 00 00000000 40010000 0a00000000000000 0400000000000000
0400000000000000 0200000000000000 0800000000000000 7061796c6f6164 00
"""


def test_the_bytes_of_a_segment_do_not_change() -> None:
    base = bytes.fromhex(BASE)
    data = encode_segment(4, bytes(range(16)), CUT, [])
    assert data == bytes.fromhex(FILE_HEADER) + base + bytes.fromhex(BASE_CHECKSUM_AGAIN) + base[8:]
    record = rec.decode_record(memoryview(data), 64, 4, 64)
    assert record is not None
    assert rec.base_decoder.decode(record.payload) == Base(3, 4096, MARK, rec.ENDING.pack(9, 2, 4, 2))
    append = rec.encode_record(4, 320, RecordKind.APPEND, 320, 10, 4, HardState(4, 2, 8), b"payload")
    assert append == bytes.fromhex(APPEND)
    assert rec.entries_encoder.encode([Entry(3, 2, 1, b"xy"), Entry(4, 2)]).hex() == "9294030201c402787994040200c400"


def test_a_record_is_legible_at_its_own_place_only() -> None:
    data = memoryview(bytes.fromhex(APPEND))
    record = rec.decode_record(data, 0, 4, 320)
    assert record is not None and (bytes(record.payload), record.end) == (b"payload", 392)
    assert rec.decode_record(data, 0, 5, 320) is None
    assert rec.decode_record(data, 0, 4, 328) is None
    for bit in range((len(data) - 1) * 8):  # the padding behind the payload says nothing
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert rec.decode_record(memoryview(bytes(flipped)), 0, 4, 320) is None
    for length in range(len(data) - 1):
        assert rec.decode_record(data[:length], 0, 4, 320) is None


@given(st.integers(0, 1 << 32))
@settings(max_examples=100, deadline=None)
def test_the_index_finds_what_a_list_finds(seed: int) -> None:
    random = Random(seed)
    index, term, position = LogIndex(0, 0), 1, 0
    entries: dict[int, tuple[int, int]] = {}  # index -> (term, position of its batch)
    first, before_term = 1, 0
    for _ in range(30):
        if random.random() < 0.2 and entries:
            drop = random.randrange(first, index.last + 2)
            before_term = entries[drop - 1][0] if drop > first else before_term
            index.drop_before(drop, before_term)
            first, entries = drop, {i: e for i, e in entries.items() if i >= drop}
            continue
        start = max(first, index.last + 1 - random.choice((0, 0, 0, 1, 4)))
        term += start <= index.last or random.random() < 0.2
        batch = [Entry(start + i, term + (random.random() < 0.1 and i > 1)) for i in range(random.randrange(1, 5))]
        batch = [Entry(e.index, max(x.term for x in batch[: i + 1])) for i, e in enumerate(batch)]
        term, position = batch[-1].term, position + 1
        index.append(batch, position)
        entries = {i: e for i, e in entries.items() if i < start} | {e.index: (e.term, position) for e in batch}
        assert (index.first, index.last) == (first, batch[-1].index)
        assert index.term(first - 1) == before_term and index.last_term == term
        for i, (its_term, its_position) in entries.items():
            found, low, high = index.locate(i)
            assert index.term(i) == its_term and found == its_position and low <= i <= high
            assert all(entries[j][1] == found for j in range(max(low, first), high + 1))
        oldest = index.oldest_position()
        assert oldest is not None and oldest <= entries[first][1]  # a batch cut at both ends may be kept
