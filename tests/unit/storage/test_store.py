"""The block store: what it acknowledges, refuses, finds again and reports."""

from __future__ import annotations

import logging
from random import Random

import pytest

from node.host.disk import FatalDiskError
from node.wire.errors import Code, FsError
from node.wire.limits import PIECE_BYTES
from storage.catalog import MemoryCatalog, State
from storage.records import RECORD_HEADER_BYTES, SEGMENT_COPY_BYTES, SEGMENT_HEADER_BYTES
from storage.segments import segment_name
from tests.unit.storage.faultdisk import FaultDisk
from tests.unit.storage.stores import (
    CLUSTER, commit, delete, open_store, outcome, plain, put, read, store_all, touch
)


def test_a_group_costs_one_sync() -> None:
    disk = FaultDisk()
    store = open_store(disk, segment_bytes=1 << 26)
    before = disk.syncs
    store_all(store, [plain(seed) for seed in range(500)])
    assert disk.syncs == before + 1
    assert store.block_count == 500


def test_nothing_is_written_for_what_is_there() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    store_all(store, [plain(1)], epoch=5)
    used, syncs = store.used_bytes, disk.syncs
    store_all(store, [plain(1), plain(1)], epoch=5)
    store_all(store, [plain(1)], epoch=4)
    assert (store.used_bytes, disk.syncs) == (used, syncs)
    store_all(store, [plain(1)], epoch=6)  # a later epoch is a durable touch
    assert store.used_bytes == used + RECORD_HEADER_BYTES
    assert disk.syncs == syncs + 1
    assert store.block_count == 1


def test_the_same_block_twice_in_a_group() -> None:
    store = open_store(FaultDisk())
    first = store_all(store, [plain(1), plain(1), plain(2)])
    assert first[0] == first[1]
    assert store.block_count == 2
    assert read(store, first[0]) == plain(1)


def test_touch() -> None:
    store = open_store(FaultDisk())
    name, = store_all(store, [plain(1)], epoch=3)
    assert commit(store, touch(name, 9), touch(b"?" * 32, 9)) == [0, Code.MISSING_BLOCK]
    assert store.locate(name).epoch == 9
    assert commit(store, touch(name, 4)) == [0]
    assert store.locate(name).epoch == 9


def test_put_and_touch_in_one_group() -> None:
    store = open_store(FaultDisk())
    operation = put(plain(1), 1)
    assert commit(store, touch(operation.block, 7), operation, touch(operation.block, 8)) == [Code.MISSING_BLOCK, 0, 0]
    assert store.locate(operation.block).epoch == 8


def test_delete_only_what_nobody_touched() -> None:
    store = open_store(FaultDisk())
    name, = store_all(store, [plain(1)], epoch=5)
    assert commit(store, delete(name, 4)) == [Code.STALE_EPOCH]
    assert commit(store, delete(name, 5)) == [0]
    assert store.block_count == 0
    assert store.locate(name).state == State.QUARANTINED
    assert read(store, name) == plain(1)  # quarantine still serves whoever was late
    assert commit(store, delete(name, 9)) == [Code.MISSING_BLOCK]
    assert commit(store, touch(name, 6)) == [0]  # and a touch brings it back
    assert store.locate(name).state == State.LIVE
    assert store.block_count == 1
    assert commit(store, delete(name, 6), put(plain(1), 6)) == [0, 0]
    assert store.locate(name).state == State.LIVE


def test_deletion_can_be_off() -> None:
    store = open_store(FaultDisk(), deletion=False)
    name, = store_all(store, [plain(1)])
    assert commit(store, delete(name, 9)) == [Code.NOT_SUPPORTED]
    assert read(store, name) == plain(1)


def test_operations_with_a_code_are_left_alone() -> None:
    store = open_store(FaultDisk())
    bad, good = put(plain(1)), put(plain(2))
    bad.code = Code.CORRUPT_BLOCK
    assert commit(store, bad, good) == [Code.CORRUPT_BLOCK, 0]
    assert outcome(store, bad.block) == Code.MISSING_BLOCK


@pytest.mark.parametrize("size", [1, 1000, PIECE_BYTES, 2 * PIECE_BYTES + 5, 700_000, 1 << 20])
def test_ranges(size: int) -> None:
    data = plain(1, size)
    store = open_store(FaultDisk())
    name, = store_all(store, [data])
    assert read(store, name) == data
    for offset, length in ((0, 1), (size - 1, 1), (size // 2, 0), (size // 3, size // 3 or 1), (0, size)):
        assert read(store, name, offset, length) == (data[offset : offset + length] if length else data[offset:])
    for offset, length in ((size, 0), (0, size + 1), (-1, 1)):
        with pytest.raises(FsError) as failure:
            store.fetch(name, offset, length)
        assert failure.value.code == Code.INVALID
    assert store.locate(name).state == State.LIVE


def test_a_range_of_a_large_block_reads_only_its_pieces() -> None:
    store = open_store(FaultDisk())
    name, = store_all(store, [plain(1, 1 << 20)])
    assert len(store.fetch(name, 500_000, 100)) < 2 * PIECE_BYTES


@pytest.mark.parametrize("shrinks", [False, True])
def test_the_disk_is_told_which_pieces_come_after_the_table(shrinks: bool) -> None:
    disk = FaultDisk()
    store = open_store(disk)
    name, = store_all(store, [plain(3 if shrinks else 1, 1 << 20)])
    entry = store.locate(name)
    part = store.fetch(name, 500_000, 100)
    start = len(part) - PIECE_BYTES
    told = [] if shrinks else [(entry.offset + start + 500_000 // PIECE_BYTES * PIECE_BYTES, PIECE_BYTES)]
    assert disk.fetched == told


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("keep_catalog", [False, True])
def test_reopen(checkpoint: bool, keep_catalog: bool) -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    datas = [plain(seed, 5000) for seed in range(100)]
    names = store_all(store, datas, epoch=3)
    if checkpoint:
        store.checkpoint()
    commit(store, touch(names[0], 8), delete(names[1], 3), delete(names[2], 3), touch(names[2], 9))
    identity = store.identity
    catalog.crash()
    again = open_store(disk, catalog if keep_catalog else None, seed=2)
    assert again.identity == identity
    assert again.recovery.rebuilt is (not keep_catalog)
    assert again.block_count == 99
    assert [read(again, name) for name in names] == datas
    assert again.locate(names[0]).epoch == 8
    assert again.locate(names[1]).state == State.QUARANTINED
    assert again.locate(names[2]).epoch == 9
    assert not again.recovery.damaged
    if keep_catalog and checkpoint:
        assert again.recovery.records == 4  # only the tail was read


def test_sequence_goes_on() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    store_all(store, [plain(1), plain(2)])
    again = open_store(disk)
    store_all(again, [plain(3)])
    assert open_store(disk)._at.sequence == 3


def test_an_older_catalog_is_completed() -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    names = store_all(store, [plain(seed, 9000) for seed in range(5)])
    store.checkpoint()
    for seed in range(5, 60):  # several segments further
        names += store_all(store, [plain(seed, 9000)])
    assert len(disk.list()) > 5
    catalog.crash()
    again = open_store(disk, catalog)
    assert not again.recovery.rebuilt
    assert again.recovery.records == 55
    assert [read(again, name) for name in names] == [plain(seed, 9000) for seed in range(60)]


def test_recovery_in_small_steps() -> None:
    """The catalog is committed many times during a scan, and each commit is a state that a start may find."""
    disk, catalog = FaultDisk(), MemoryCatalog()
    names = store_all(open_store(disk, catalog), [plain(seed) for seed in range(200)])
    for fresh in (catalog, MemoryCatalog()):
        fresh.crash()
        again = open_store(disk, fresh, commit_entries=7)
        assert again.block_count == 200
        assert [read(again, name) for name in names] == [plain(seed) for seed in range(200)]


def test_a_missing_segment_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    names = [store_all(store, [plain(seed, 30_000)])[0] for seed in range(1, 9)]
    lost = {name for name in names if store.locate(name).segment == 2}
    assert 0 < len(lost) < 8
    store.close()
    disk.remove(segment_name(2))
    again = open_store(disk, catalog)
    assert again.recovery.rebuilt
    assert "does not fit the segments" in caplog.text
    assert {name for name in names if outcome(again, name) == Code.MISSING_BLOCK} == lost
    assert again.block_count == 8 - len(lost)


# -- damage


def damage_payload(disk: FaultDisk, store: object, name: bytes, at: int = 50) -> None:
    entry = store.locate(name)  # type: ignore[attr-defined]
    disk.flip(segment_name(entry.segment), 8 * (entry.offset + at))


def test_a_damaged_block_is_an_error_and_named(caplog: pytest.LogCaptureFixture) -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    bad, good = store_all(store, [plain(1), plain(2)])
    damage_payload(disk, store, bad)
    assert outcome(store, bad) == Code.CORRUPT_BLOCK
    assert f"corrupt block {bad.hex()}" in caplog.text
    assert segment_name(1) in caplog.text
    assert read(store, good) == plain(2)
    assert store.bad_blocks(10) == (bad,)
    assert store.corrupt_count == 1
    assert outcome(store, bad) == Code.CORRUPT_BLOCK
    assert commit(store, touch(bad, 9)) == [Code.MISSING_BLOCK]  # so that the client puts it again
    store_all(store, [plain(1)], epoch=9)
    assert read(store, bad) == plain(1)
    store.reported([bad])
    assert store.bad_blocks(10) == ()
    catalog.crash()
    again = open_store(disk, catalog)  # also from the records alone, in which the bad copy comes first
    assert read(again, bad) == plain(1)
    assert again.block_count == 2


def test_only_the_damaged_piece_is_lost() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    name, = store_all(store, [plain(1, 5 * PIECE_BYTES)])
    damage_payload(disk, store, name, at=3 * PIECE_BYTES)
    assert read(store, name, 0, 100) == plain(1, 5 * PIECE_BYTES)[:100]
    with pytest.raises(FsError) as failure:
        store.fetch(name)
    assert failure.value.code == Code.CORRUPT_BLOCK


def test_a_medium_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    disk = FaultDisk()
    store = open_store(disk)
    name, = store_all(store, [plain(1)])
    disk.broken_reads = True
    assert outcome(store, name) == Code.CORRUPT_BLOCK
    assert name.hex() in caplog.text


def test_damage_found_at_a_start_is_named(caplog: pytest.LogCaptureFixture) -> None:
    disk = FaultDisk()
    store = open_store(disk)
    names = [store_all(store, [plain(seed)], epoch=4)[0] for seed in range(1, 6)]
    damage_payload(disk, store, names[1])
    header = store.locate(names[3]).offset - RECORD_HEADER_BYTES
    disk.flip(segment_name(1), 8 * header)
    again = open_store(disk)
    assert f"segment 00000001.seg: damaged record at offset {header}" in caplog.text
    assert names[1].hex() in caplog.text
    assert [outcome(again, name) for name in names] == [
        plain(1), Code.CORRUPT_BLOCK, plain(3), Code.MISSING_BLOCK, plain(5)
    ]
    # A lost record may have been a touch, so nothing seen so far may be deleted by an epoch that is not later.
    assert commit(again, delete(names[0], 4)) == [Code.STALE_EPOCH]
    assert commit(again, delete(names[0], 5)) == [0]


def test_a_torn_tail_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    disk = FaultDisk()
    store = open_store(disk)
    names = store_all(store, [plain(seed) for seed in range(1, 4)])
    data = disk.contents(segment_name(1))
    end = store.locate(names[1]).offset + store.locate(names[1]).stored
    for length in (end + 1, end + RECORD_HEADER_BYTES, len(data) - 1):
        disk.overwrite(segment_name(1), data[:length])
        again = open_store(disk)
        assert again.recovery.cut_bytes == length - end
        assert not again.recovery.damaged
        assert len(disk.contents(segment_name(1))) == end
        assert [outcome(again, name) for name in names] == [plain(1), plain(2), Code.MISSING_BLOCK]
    assert "the last group was not finished" in caplog.text
    assert "bytes cut" in caplog.text


def test_a_segment_that_was_hardly_begun() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    names = store_all(store, [plain(1)])
    for length in (0, 17, SEGMENT_COPY_BYTES - 1):
        disk.open(segment_name(2), create=True)
        disk.overwrite(segment_name(2), bytes(length))
        again = open_store(disk)
        assert disk.list() == [segment_name(1)]
        assert read(again, names[0]) == plain(1)


def test_both_headers_of_a_segment_damaged(caplog: pytest.LogCaptureFixture) -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    names = [store_all(store, [plain(seed, 30_000)])[0] for seed in range(1, 6)]
    lost = {name for name in names if store.locate(name).segment == 1}
    assert 0 < len(lost) < 5
    store.close()
    disk.flip(segment_name(1), 8 * 20)
    disk.flip(segment_name(1), 8 * (20 + SEGMENT_COPY_BYTES))
    with_catalog = open_store(disk, catalog)
    assert "both headers are damaged" in caplog.text
    assert [read(with_catalog, name) for name in names] == [plain(seed, 30_000) for seed in range(1, 6)]
    without = open_store(disk)
    assert {name for name in names if outcome(without, name) == Code.MISSING_BLOCK} == lost


def test_bit_flips_anywhere_never_give_wrong_bytes() -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    datas = [plain(seed, 40 + 7 * seed) for seed in range(1, 8)]
    names = store_all(store, datas)
    commit(store, touch(names[0], 5), delete(names[1], 3))
    places = {name: store.locate(name) for name in names}
    store.close()
    clean = disk.contents(segment_name(1))
    for bit in range(0, 8 * len(clean), 3):
        disk.flip(segment_name(1), bit)
        for kept in (catalog, MemoryCatalog()):
            again = open_store(disk, kept)
            byte = bit // 8
            for name, data in zip(names, datas):
                entry = places[name]
                hit = entry.offset - RECORD_HEADER_BYTES <= byte < entry.offset + entry.stored
                result = outcome(again, name)
                assert result == data or (hit and result in (Code.CORRUPT_BLOCK, Code.MISSING_BLOCK)), (bit, result)
            catalog._now = dict(catalog._durable[1])  # what the reads found is not part of the next round
            disk.overwrite(segment_name(1), clean)
            disk.flip(segment_name(1), bit)
        disk.overwrite(segment_name(1), clean)


# -- full disks and failing ones


def test_configured_capacity() -> None:
    disk = FaultDisk()
    store = open_store(disk, capacity_bytes=SEGMENT_HEADER_BYTES + 5 * 1100 + 50)
    codes = commit(store, *(put(plain(seed)) for seed in (1, 2, 4, 5, 7, 8, 10)))
    assert codes[:4] == [0] * 4
    assert codes[5:] == [Code.NO_SPACE] * 2
    assert store.used_bytes <= store.options.capacity_bytes
    assert store.full
    name = put(plain(1)).block
    assert commit(store, touch(name, 9), put(plain(1), 10)) == [0, 0]  # touching goes on
    assert commit(store, delete(name, 10)) == [0]
    again = open_store(disk, capacity_bytes=store.options.capacity_bytes)
    assert read(again, put(plain(2)).block) == plain(2)


def test_a_disk_that_fills_up() -> None:
    disk = FaultDisk(capacity_bytes=20_000)
    store = open_store(disk)
    stored: dict[bytes, bytes] = {}
    refused = 0
    for seed in range(1, 40):
        operation = put(plain(seed, 900))
        code, = commit(store, operation)
        if code:
            assert code == Code.NO_SPACE
            refused += 1
        else:
            stored[operation.block] = plain(seed, 900)
    assert refused > 5
    assert all(read(store, name) == data for name, data in stored.items())
    again = open_store(disk)
    assert again.block_count == len(stored)
    assert again.recovery.cut_bytes == 0
    assert all(read(again, name) == data for name, data in stored.items())


def test_a_disk_that_is_fuller_than_it_said() -> None:
    """The kernel refuses in the middle of a group: what was begun is cut, and touches still get through."""
    disk = FaultDisk()
    store = open_store(disk)
    name, = store_all(store, [plain(1)])
    used = store.used_bytes
    disk.claimed_free_bytes = 1 << 30
    disk.capacity_bytes = used + RECORD_HEADER_BYTES
    operations = [put(plain(2)), touch(name, 7), put(plain(4)), put(plain(2))]
    assert commit(store, *operations) == [Code.NO_SPACE, 0, Code.NO_SPACE, Code.NO_SPACE]
    assert store.used_bytes == used + RECORD_HEADER_BYTES == len(disk.contents(segment_name(1)))
    assert commit(store, touch(name, 8)) == [Code.NO_SPACE]
    assert store.locate(name).epoch == 7
    again = open_store(disk)
    assert again.recovery.cut_bytes == 0
    assert again.locate(name).epoch == 7


def test_the_reserve_is_for_touches() -> None:
    disk = FaultDisk(capacity_bytes=10_000)
    store = open_store(disk, reserve_bytes=3_000)
    codes = commit(store, *(put(plain(seed)) for seed in (1, 2, 4, 5, 7, 8, 10, 11)))
    assert codes.count(0) == 6
    assert disk.free_bytes() >= 3_000
    assert commit(store, touch(put(plain(1)).block, 9)) == [0]


def test_a_new_segment_that_does_not_fit() -> None:
    disk = FaultDisk(capacity_bytes=66_000)
    store = open_store(disk, segment_bytes=33_000)
    commit(store, *(put(plain(seed, 1000)) for seed in range(1, 31)))
    disk.capacity_bytes = store.used_bytes + 100  # room for a header and a little
    assert commit(store, put(plain(77, 1000))) == [Code.NO_SPACE]
    assert commit(store, put(plain(77, 1000))) == [Code.NO_SPACE]
    disk.capacity_bytes = 1 << 20
    assert commit(store, put(plain(77, 1000))) == [0]
    assert read(open_store(disk), put(plain(77, 1000)).block) == plain(77, 1000)


def test_a_failed_sync_acknowledges_nothing_and_ends_everything() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    disk.broken_syncs = True
    operation = put(plain(1))
    with pytest.raises(FatalDiskError, match="fdatasync"):
        store.commit([operation])
    assert outcome(store, operation.block) == Code.MISSING_BLOCK


def test_a_group_that_cannot_be_cut_ends_everything() -> None:
    disk = FaultDisk(capacity_bytes=1000)
    store = open_store(disk)
    disk.broken_truncates = True
    disk.claimed_free_bytes = 1 << 30
    with pytest.raises(FatalDiskError, match="could not cut"):
        store.commit([put(plain(1))])


def test_other_write_errors_end_everything() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    disk.broken_writes = True
    with pytest.raises(OSError, match="Input/output error"):
        store.commit([put(plain(1))])


# -- whose data


def test_foreign_cluster() -> None:
    disk = FaultDisk()
    store_all(open_store(disk), [plain(1)])
    with pytest.raises(FsError, match="belongs to cluster 4343.*, not to 5858") as failure:
        open_store(disk, cluster=b"X" * 16)
    assert failure.value.code == Code.FOREIGN_CLUSTER


def test_a_segment_of_another_store() -> None:
    one, two = FaultDisk(), FaultDisk()
    open_store(one, seed=1)
    store_all(open_store(two, seed=2, segment_bytes=200), [plain(1)])
    store_all(open_store(two, seed=2, segment_bytes=200), [plain(2)])
    one.open(segment_name(2), create=True)
    one.overwrite(segment_name(2), two.contents(segment_name(2)))
    with pytest.raises(FsError, match="another store") as failure:
        open_store(one)
    assert failure.value.code == Code.FOREIGN_CLUSTER


def test_a_copied_segment() -> None:
    disk = FaultDisk()
    store_all(open_store(disk), [plain(1)])
    disk.open(segment_name(9), create=True)
    disk.overwrite(segment_name(9), disk.contents(segment_name(1)))
    with pytest.raises(FsError, match="00000009.seg was written as 00000001.seg"):
        open_store(disk)


def test_newer_format() -> None:
    disk = FaultDisk()
    open_store(disk)
    data = bytearray(disk.contents(segment_name(1)))
    data[8] = data[8 + SEGMENT_COPY_BYTES] = 2
    disk.overwrite(segment_name(1), bytes(data))
    with pytest.raises(FsError, match="format version 2.*use a newer fusefs") as failure:
        open_store(disk)
    assert failure.value.code == Code.UNSUPPORTED_VERSION


def test_a_wiped_store_is_another_one() -> None:
    catalog = MemoryCatalog()
    store = open_store(FaultDisk(), catalog, seed=1)
    name, = store_all(store, [plain(1)])
    store.close()
    wiped = open_store(FaultDisk(), catalog, seed=2)
    assert wiped.identity != store.identity
    assert outcome(wiped, name) == Code.MISSING_BLOCK
    assert wiped.block_count == 0


def test_strangers_in_the_directory_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    disk = FaultDisk()
    for name in ("lost+found", "notes.txt", "00000001.seg.bak"):
        disk.open(name, create=True)
    with caplog.at_level(logging.WARNING):
        store_all(open_store(disk), [plain(1)])
    assert set(disk.list()) == {"lost+found", "notes.txt", "00000001.seg.bak", "00000001.seg"}
    assert CLUSTER in disk.contents("00000001.seg")


def test_checkpoints_become_due() -> None:
    store = open_store(FaultDisk(), commit_entries=10)
    store_all(store, [plain(seed) for seed in range(9)])
    before = (store.checkpoint_due, store.checkpoint_wanted)
    store_all(store, [plain(100)])
    due = (store.checkpoint_due, store.checkpoint_wanted)
    store.checkpoint()
    after = (store.checkpoint_due, store.checkpoint_wanted)
    assert (before, due, after) == ((False, True), (True, True), (False, False))
    assert store.statistics()["blocks"] == 10


def test_a_checkpoint_in_the_middle_of_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog never stands for bytes that are written but not yet durable."""
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    first, = store_all(store, [plain(1)])
    monkeypatch.setattr(store._segments, "sync", store.checkpoint)
    store.commit([put(plain(2))])  # written, not synced, when the catalog is committed
    disk.crash(Random(3))
    catalog.crash()
    again = open_store(disk, catalog)
    assert not again.recovery.rebuilt
    assert read(again, first) == plain(1)
    assert outcome(again, put(plain(2)).block) in (plain(2), Code.MISSING_BLOCK)
    assert catalog.summary().offset == len(disk.contents(segment_name(1)))


def test_a_leader_with_an_older_table_is_told_apart() -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    assert store.current(5) and store.current(5) and store.current(7)
    assert not store.current(6)
    assert store.checkpoint_wanted
    store.checkpoint()
    assert not store.checkpoint_wanted
    catalog.crash()
    again = open_store(disk, catalog)
    assert not again.current(6)
    assert again.current(7)


def test_what_was_written_long_ago_leaves_the_kernels_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of it once, the latest not, across segments."""
    monkeypatch.setattr("storage.segments.WRITTEN_CACHED_BYTES", 50_000)
    monkeypatch.setattr("storage.segments.WRITTEN_STEP_BYTES", 8_000)
    disk = FaultDisk()
    store = open_store(disk, segment_bytes=65_536)
    names = [store_all(store, [plain(seed, 3_000)])[0] for seed in range(1, 100)]
    gone = sum(length for _, length in disk.let_go)
    written = store.used_bytes - SEGMENT_HEADER_BYTES * len(store.journal.segments.numbers)
    assert written - 50_000 - 12_000 <= gone <= written - 40_000
    by_segment: dict[int, int] = {}
    for offset, length in disk.let_go:
        number = len(by_segment) + (offset == SEGMENT_HEADER_BYTES)
        assert offset == by_segment.get(number, SEGMENT_HEADER_BYTES)
        by_segment[number] = offset + length
    assert len(by_segment) > 1
    assert all(read(store, name) for name in names)
