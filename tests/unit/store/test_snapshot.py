"""A whole state in chunks: cut the same each time, resumed anywhere, verified as a whole."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata.raft.messages import ConfState, SnapshotMeta
from metadata.store.engine_memory import MemoryEngine
from metadata.store.snapshot import SnapshotName, SnapshotSource, SnapshotSpool, decode_chunk
from node.wire.errors import Code, FsError
from tests.sim.disk import FaultDisk, PowerCut

NAME = SnapshotName(SnapshotMeta(7, 2, ConfState(voters=(1, 2, 3))), bytes(range(16)))
OTHER = SnapshotName(NAME.meta, bytes(16))


def engine_of(items: dict[bytes, bytes]) -> MemoryEngine:
    engine = MemoryEngine()
    engine.replace(sorted(items.items()))
    return engine


def all_chunks(source: SnapshotSource) -> list[bytes]:
    chunks: list[bytes] = []
    while source.chunks is None or len(chunks) < source.chunks:
        chunks.append(source.chunk(len(chunks)))
    return chunks


states = st.dictionaries(st.binary(min_size=1, max_size=5), st.binary(max_size=60), max_size=25)


@given(states, st.integers(1, 300), st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_chunks_arrive_in_any_order_with_repeats_and_restarts(
    items: dict[bytes, bytes], chunk_bytes: int, seed: int
) -> None:
    random = Random(seed)
    engine = engine_of(items)
    disk = FaultDisk()
    with engine.snapshot() as view:
        source = SnapshotSource(view, NAME, chunk_bytes=chunk_bytes)
        chunks = all_chunks(source)
        spool = SnapshotSpool(disk, "/incoming", NAME)
        while not spool.complete:
            number = random.choice((spool.next_chunk, random.randrange(len(chunks))))
            data = source.chunk(number)
            assert data == chunks[number]
            spool.add(data)
            if random.random() < 0.2:
                spool.close()
                spool = SnapshotSpool(disk, "/incoming", NAME)
            if random.random() < 0.1:
                disk.crash(random)
                spool = SnapshotSpool(disk, "/incoming", NAME)
    receiver = MemoryEngine()
    receiver.replace(spool.items())
    assert receiver.range(b"", b"\xff" * 9) == sorted(items.items())
    spool.discard()
    assert not disk.exists("/incoming")


def test_the_chunks_of_different_snapshots_do_not_mix() -> None:
    with engine_of({b"%03d" % i: b"x" * 50 for i in range(20)}).snapshot() as view:
        mine = all_chunks(SnapshotSource(view, NAME, chunk_bytes=200))
        others = all_chunks(SnapshotSource(view, OTHER, chunk_bytes=200))
    disk = FaultDisk()
    spool = SnapshotSpool(disk, "/incoming", NAME)
    spool.add(mine[0])
    with pytest.raises(FsError) as caught:
        spool.add(others[1])
    assert caught.value.code == Code.CORRUPT_BLOCK
    assert spool.add(mine[1]) == 2
    spool.close()
    assert SnapshotSpool(disk, "/incoming", OTHER).next_chunk == 0, "what is kept belongs to another snapshot"


def test_a_chunk_left_out_or_out_of_order_is_not_taken() -> None:
    with engine_of({b"%03d" % i: b"x" * 50 for i in range(20)}).snapshot() as view:
        chunks = all_chunks(SnapshotSource(view, NAME, chunk_bytes=200))
    assert len(chunks) > 4 and decode_chunk(chunks[-1]).last
    spool = SnapshotSpool(FaultDisk(), "/incoming", NAME)
    assert spool.add(chunks[1]) == 0
    assert spool.add(chunks[0]) == 1
    assert spool.add(chunks[0]) == 1
    assert spool.add(chunks[-1]) == 1
    assert not spool.complete


def test_a_source_gives_only_chunks_it_can_place() -> None:
    with engine_of({b"a": b"1"}).snapshot() as view:
        source = SnapshotSource(view, NAME)
        with pytest.raises(FsError):
            source.chunk(1)
        source.chunk(0)
        assert source.chunks == 1
        with pytest.raises(FsError):
            source.chunk(1)


def test_an_empty_state_is_a_state() -> None:
    with engine_of({}).snapshot() as view:
        chunks = all_chunks(SnapshotSource(view, NAME))
    spool = SnapshotSpool(FaultDisk(), "/incoming", NAME)
    assert spool.add(chunks[0]) == 1 and spool.complete
    assert list(spool.items()) == []


def test_a_spool_of_another_format_is_refused() -> None:
    with pytest.raises(FsError) as caught:
        SnapshotSpool(FaultDisk(), "/incoming", SnapshotName(NAME.meta, NAME.nonce, 2))
    assert caught.value.code == Code.UNSUPPORTED_VERSION


def test_a_full_disk_keeps_what_was_received() -> None:
    with engine_of({b"%03d" % i: b"x" * 50 for i in range(20)}).snapshot() as view:
        chunks = all_chunks(SnapshotSource(view, NAME, chunk_bytes=200))
    disk = FaultDisk(capacity_bytes=600)
    spool = SnapshotSpool(disk, "/incoming", NAME)
    with pytest.raises(FsError) as caught:
        for data in chunks:
            spool.add(data)
    assert caught.value.code == Code.NO_SPACE
    disk.capacity_bytes = 1 << 30
    for data in chunks[spool.next_chunk:]:
        spool.add(data)
    assert len(list(spool.items())) == 20


def test_power_cuts_while_receiving_cost_only_chunks() -> None:
    with engine_of({b"%03d" % i: b"x" * 50 for i in range(40)}).snapshot() as view:
        chunks = all_chunks(SnapshotSource(view, NAME, chunk_bytes=200))
    random, disk = Random(5), FaultDisk()
    for _ in range(200):
        spool = SnapshotSpool(disk, "/incoming", NAME)
        disk.cut_at = disk.operations + random.randrange(1, 30)
        try:
            while not spool.complete:
                spool.add(chunks[spool.next_chunk])
            break
        except PowerCut:
            disk.crash(random)
    assert len(list(spool.items())) == 40
