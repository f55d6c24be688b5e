"""Deleted blocks give their space back, and no step of that loses anything, whatever stops it."""

from __future__ import annotations

from random import Random

import pytest

from node.wire.errors import Code
from storage.catalog import MemoryCatalog
from storage.cleaning import Cleaner
from storage.entry import State
from storage.order import bucket_of, buckets_of, key_of
from storage.records import SEGMENT_HEADER_BYTES
from storage.segments import segment_name
from storage.store import BlockStore
from storage.tally import Tally
from tests.unit.storage.faultdisk import FaultDisk, PowerLoss
from tests.unit.storage.stores import commit, delete, open_store, outcome, plain, put, read, store_all, touch

SIZE = 3000


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def cleaner_of(store: BlockStore) -> tuple[Cleaner, Clock]:
    clock = Clock()
    return Cleaner(store, clock=clock), clock


def confirm_all(store: BlockStore, epoch: int = 1 << 30) -> list[bytes]:
    found: list[bytes] = []
    more = True
    while more:
        names, place, more = store.unconfirmed(epoch, 100)
        found += names
        store.confirm(place)
    return found


def check_tally(store: BlockStore) -> None:
    """Whatever moved or went, the sums by group are those of what is there."""
    expected = Tally()
    for name, entry in store.listed(b"", 1 << 30):
        expected.change(name, bucket_of(key_of(name)), None, entry)
    for group in range(4):
        assert store.group_sum(group, 4) == expected.sum(buckets_of(group, 4))


def clean(store: BlockStore, cleaner: Cleaner) -> None:
    for _ in range(1000):
        confirm_all(store)
        if not cleaner.step():
            check_tally(store)
            return
    raise AssertionError("the cleaner finds no end")


def fill(store: BlockStore, count: int, first: int = 0, epoch: int = 1) -> list[bytes]:
    names: list[bytes] = []
    for seed in range(first, first + count):
        names += store_all(store, [plain(seed + 1, SIZE)], epoch)
    return names


def test_everything_deleted_leaves_nothing() -> None:
    disk = FaultDisk()
    store = open_store(disk, quarantine_s=0)
    cleaner, _ = cleaner_of(store)
    names = fill(store, 100)
    before = store.stored_bytes
    assert not any(commit(store, *[delete(name, 1) for name in names]))
    assert store.stored_bytes < before // 10
    assert store.quarantined_bytes > before // 2
    clean(store, cleaner)
    assert store.used_bytes < 66_000, "one segment too short to be worth rolling may stay"
    assert store.quarantined_bytes == 0
    assert [outcome(store, name) for name in names] == [Code.MISSING_BLOCK] * 100


def test_quarantine_lasts_as_long_as_there_is_room() -> None:
    store = open_store(FaultDisk(), quarantine_s=3600)
    cleaner, clock = cleaner_of(store)
    names = fill(store, 50)
    clock.now_s = store._clock()
    commit(store, *[delete(name, 1) for name in names])
    clean(store, cleaner)
    assert read(store, names[7]) == plain(8, SIZE)
    assert commit(store, touch(names[7], 2), put(plain(9, SIZE), 2)) == [0, 0]
    clock.now_s += 3700
    clean(store, cleaner)
    assert [outcome(store, name) for name in names[:7]] == [Code.MISSING_BLOCK] * 7
    assert (read(store, names[7]), read(store, names[8])) == (plain(8, SIZE), plain(9, SIZE))
    assert store.block_count == 2


def test_quarantine_yields_under_pressure_oldest_first() -> None:
    store = open_store(FaultDisk(), quarantine_s=3600, capacity_bytes=260_000, segment_bytes=20_000)
    cleaner, clock = cleaner_of(store)
    clock.now_s = store._clock()
    names = fill(store, 110)
    assert store.used_bytes > 0.85 * 260_000
    for name in names[:60]:
        commit(store, delete(name, 1))
    clean(store, cleaner)
    gone = [name for name in names if outcome(store, name) == Code.MISSING_BLOCK]
    assert 0 < len(gone) < 60
    assert gone == names[: len(gone)], "the oldest deletions go first"
    assert store.used_bytes <= 0.85 * 260_000
    assert [read(store, name) for name in names[60:]] == [plain(seed + 1, SIZE) for seed in range(60, 110)]


def test_quarantine_yields_to_garbage_behind_it() -> None:
    """Garbage after the oldest deletion in quarantine cannot be compacted before that is over."""
    store = open_store(FaultDisk(), quarantine_s=3600, capacity_bytes=260_000, segment_bytes=20_000)
    cleaner, clock = cleaner_of(store)
    clock.now_s = store._clock()
    names = fill(store, 30)
    assert not any(commit(store, *[delete(name, 1) for name in names[:20]]))
    epoch = 2
    while store.used_bytes < 0.95 * 260_000:
        commit(store, touch(names[25], epoch))
        epoch += 1
    assert store.stored_bytes + store.quarantined_bytes < 0.5 * 260_000
    clean(store, cleaner)
    assert store.used_bytes <= 0.85 * 260_000
    assert [read(store, name) for name in names[20:]] == [plain(seed + 1, SIZE) for seed in range(20, 30)]
    assert fill(store, 10, first=5000)


def test_deletion_works_on_a_full_store_and_makes_room() -> None:
    disk = FaultDisk(700_000)
    store = open_store(disk, quarantine_s=3600, reserve_bytes=100_000, segment_bytes=40_000)
    cleaner, _ = cleaner_of(store)
    names: list[bytes] = []
    while True:
        operation = put(plain(len(names) + 1, SIZE))
        if commit(store, operation) == [Code.NO_SPACE]:
            break
        names.append(operation.block)
    assert store.full or len(names) > 100
    assert not any(commit(store, *[delete(name, 1) for name in names[::2]]))
    clean(store, cleaner)
    added = fill(store, len(names) // 3, first=5000)
    assert all(outcome(store, name) == plain(at + 1, SIZE) for at, name in enumerate(names) if at % 2)
    assert all(isinstance(outcome(store, name), bytes) for name in added)


def test_compaction_keeps_epochs_and_quarantine(caplog: pytest.LogCaptureFixture) -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog, quarantine_s=1 << 30)
    cleaner, clock = cleaner_of(store)
    names = fill(store, 60)
    keep, held = names[3], names[4]
    commit(store, touch(keep, 9))
    commit(store, delete(held, 1))
    store.options.quarantine_s = 0
    gone = [name for name in names[:20] if name not in (keep, held)]
    for name in gone:
        commit(store, delete(name, 1))
    when_s = store.locate(held).time_s
    # only `held` stays in quarantine: its deletion is made young again
    commit(store, touch(held, 1), delete(held, 1))
    store.options.quarantine_s = 1 << 29
    clock.now_s = store.locate(held).time_s + (1 << 29) - 1
    clean(store, cleaner)
    assert outcome(store, gone[0]) == Code.MISSING_BLOCK
    assert store.locate(keep).segment != 1, "the first segment was compacted"
    assert segment_name(1) not in disk.list()
    assert store.locate(keep).epoch == 9
    entry = store.locate(held)
    assert (entry.state, entry.segment != 1) == (State.QUARANTINED, True)
    assert entry.time_s >= when_s
    store.close()
    again = open_store(disk, catalog)
    assert (again.locate(keep).epoch, again.locate(held).state) == (9, State.QUARANTINED)
    assert not again.recovery.rebuilt


def test_a_lost_catalog_after_compaction_keeps_late_deletes_off() -> None:
    disk = FaultDisk()
    store = open_store(disk, quarantine_s=0)
    cleaner, _ = cleaner_of(store)
    names = fill(store, 60)
    old = names[59]
    fill(store, 40, first=200, epoch=7)
    commit(store, touch(old, 8))
    commit(store, *[delete(name, 7) for name in names[:59]])
    fill(store, 80, first=400, epoch=7)
    commit(store, *[delete(put(plain(seed + 1, SIZE)).block, 7) for seed in range(200, 240)])
    commit(store, *[delete(put(plain(seed + 1, SIZE)).block, 7) for seed in range(400, 480)])
    clean(store, cleaner)
    assert store.statistics()["segments"] < 5
    store.close()
    again = open_store(disk, MemoryCatalog())
    assert again.recovery.rebuilt
    assert read(again, old) == plain(60, SIZE)
    assert commit(again, delete(old, 7)) == [Code.STALE_EPOCH]
    assert old in confirm_all(again), "everything is reported anew"
    assert commit(again, delete(old, 20)) == [0]


def test_unconfirmed_lists_what_is_old_and_stops_at_what_is_young() -> None:
    store = open_store(FaultDisk())
    first, second = fill(store, 2, epoch=1)
    (third,) = fill(store, 1, first=2, epoch=3)
    (fourth,) = fill(store, 1, first=3, epoch=1)
    assert store.unconfirmed_bytes > 0
    names, place, more = store.unconfirmed(2, 10)
    assert (names, more) == ([first, second], False)
    store.confirm(place)
    assert store.unconfirmed(2, 10)[0] == []
    assert store.unconfirmed_bytes > 0
    assert store.unconfirmed(3, 1)[::2] == ([third], True)
    assert confirm_all(store) == [third, fourth]
    assert store.unconfirmed_bytes == 0
    commit(store, delete(first, 1), delete(second, 1))
    commit(store, touch(first, 1))
    names, place, _ = store.unconfirmed(3, 10)
    assert names == [first], "what comes back counts anew, however old its touch is"
    commit(store, delete(first, 3))
    store.confirm(place)
    assert confirm_all(store) == []
    store.confirm((99, 0))
    fill(store, 1, first=9)
    assert len(confirm_all(store)) == 1, "a place that was never told confirms nothing"


def test_a_confirmation_of_what_was_listed_before_the_catalog_was_lost_is_not_taken() -> None:
    """It may still be on its way when the server is back, and blocks have come back that nobody was told of since."""
    disk = FaultDisk()
    store = open_store(disk, MemoryCatalog())
    old, other = fill(store, 2)
    confirm_all(store)
    commit(store, delete(old, 5))
    fill(store, 1, first=5)
    _, place, _ = store.unconfirmed(9, 10)
    store.close()
    again = open_store(disk, MemoryCatalog())
    again.confirm(place)
    assert other in again.unconfirmed(9, 10)[0]
    again.confirm(place)
    assert again.unconfirmed(9, 10)[0] == [], "it was listed now"


def test_a_block_that_is_always_touched_is_listed_once_it_rests() -> None:
    store = open_store(FaultDisk())
    hot, cold = fill(store, 2)
    for epoch in range(2, 6):
        commit(store, touch(hot, epoch))
        names, place, _ = store.unconfirmed(epoch - 2, 10)
        store.confirm(place)
        assert hot not in names
    assert confirm_all(store, 5) == [hot]
    assert read(store, cold) == plain(2, SIZE)


def test_a_damaged_block_is_not_copied_and_its_deletion_forgets_it() -> None:
    disk = FaultDisk()
    store = open_store(disk, quarantine_s=0)
    cleaner, _ = cleaner_of(store)
    names = fill(store, 60)
    entry = store.locate(names[0])
    assert entry.segment == 1
    disk.flip(segment_name(1), (entry.offset + 500) * 8)
    commit(store, *[delete(name, 1) for name in names[1:20]])
    clean(store, cleaner)
    assert segment_name(1) not in disk.list()
    assert outcome(store, names[0]) == Code.CORRUPT_BLOCK
    assert commit(store, delete(names[0], 1)) == [0]
    assert commit(store, put(plain(1, SIZE), 2)) == [0]
    assert read(store, names[0]) == plain(1, SIZE), "stored anew, not merely touched"


def test_a_power_cut_at_every_step() -> None:
    """The disk stops after each possible number of steps; nothing that lives is lost or wrong, nothing returns."""
    for limit in range(0, 400):
        disk, catalog = FaultDisk(), MemoryCatalog()
        options = {"segment_bytes": 12_000, "quarantine_s": 0}
        store = open_store(disk, catalog, **options)
        names = fill(store, 24)
        dead, living = names[: 18 : 2] + names[1:9:4], [n for n in names if n not in names[: 18 : 2] + names[1:9:4]]
        commit(store, *[delete(name, 1) for name in dead])
        store.checkpoint()
        cleaner, _ = cleaner_of(store)
        disk.step_limit = limit
        try:
            clean(store, cleaner)
            done = True
        except PowerLoss:
            done = False
        disk.crash(Random(limit))
        catalog.crash()
        if limit % 3 == 2:
            catalog = MemoryCatalog()  # and the catalog is lost
        store = open_store(disk, catalog, **options)
        for at, name in enumerate(names):
            if name in living:
                assert outcome(store, name) == plain(at + 1, SIZE), (limit, at)
        assert store.recovery.rebuilt == (limit % 3 == 2), limit
        cleaner, _ = cleaner_of(store)
        listed = confirm_all(store, 1)
        codes = commit(store, *[delete(name, 3) for name in listed if name in dead])
        assert not any(codes)
        clean(store, cleaner)
        for at, name in enumerate(names):
            expected = plain(at + 1, SIZE) if name in living else Code.MISSING_BLOCK
            assert outcome(store, name) == expected, (limit, at)
        assert store.block_count == len(living)
        assert store.used_bytes < 2.5 * store.stored_bytes + 12_000 + SEGMENT_HEADER_BYTES
        if done:
            return
    raise AssertionError("more steps than thought")
