"""One suite for every catalog, and one for every disk and catalog that a block store may stand on."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from node.host.disk import Disk, FatalDiskError, SystemDisk
from node.wire.errors import Code
from storage.catalog import Catalog, Entry, LmdbCatalog, MemoryCatalog, State, Summary
from storage.order import BUCKETS, bucket_of, buckets_of, group_of, key_of
from storage.store import BlockStore, StoreOptions
from storage.tally import Tally
from tests.unit.storage.faultdisk import FaultDisk, PowerLoss
from tests.unit.storage.stores import CLUSTER, clock, commit, delete, outcome, plain, put, randomness, read, store_all
from tests.unit.storage.stores import touch

OpenCatalog = Callable[[], Catalog]


@pytest.fixture(params=["memory", "lmdb"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenCatalog]:
    """Return what opens the catalog as it is after a crash: with what was flushed and nothing else."""
    memory = MemoryCatalog()
    opened: list[Catalog] = []

    def open_catalog() -> Catalog:
        if request.param == "memory":
            memory.crash()
            return memory
        if opened:
            opened.pop().close()
        opened.append(LmdbCatalog(tmp_path / "catalog", map_bytes=1 << 24))
        return opened[0]

    yield open_catalog
    for catalog in opened:
        catalog.close()


def name(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


def entry(number: int, epoch: int = 1) -> Entry:
    return Entry(number, 2, 3, 4, epoch, 1_700_000_000, 1)


def summary(sequence: int) -> Summary:
    return Summary(store=b"s" * 16, segment=3, offset=4, sequence=sequence, segments={1: 100, 3: 4})


# -- catalogs


def test_an_empty_catalog(reopen: OpenCatalog) -> None:
    catalog = reopen()
    assert catalog.summary() == Summary()
    assert catalog.get(name(1)) is None
    assert catalog.pending() == 0
    assert list(catalog.scan()) == []
    catalog.flush()


def test_what_is_set_is_got(reopen: OpenCatalog) -> None:
    catalog = reopen()
    for number in range(100):
        catalog.set(name(number), entry(number))
    catalog.set(name(5), None)
    catalog.set(name(6), entry(6, epoch=9))
    assert catalog.pending() == 100
    for _ in range(2):
        assert catalog.get(name(5)) is None
        assert catalog.get(name(6)) == entry(6, epoch=9)
        assert catalog.get(name(99)) == entry(99)
        catalog.freeze(summary(1))
        catalog.flush()
        assert catalog.pending() == 0


def test_only_what_was_flushed_survives(reopen: OpenCatalog) -> None:
    catalog = reopen()
    catalog.set(name(1), entry(1))
    catalog.set(name(2), entry(2))
    catalog.freeze(summary(7))
    catalog.set(name(1), None)
    catalog.set(name(2), entry(2, epoch=5))
    catalog.set(name(3), entry(3))
    catalog.flush()
    assert (catalog.get(name(1)), catalog.get(name(2)), catalog.get(name(3))) == (None, entry(2, epoch=5), entry(3))
    assert catalog.pending() == 3
    catalog = reopen()
    assert catalog.summary() == summary(7)
    assert (catalog.get(name(1)), catalog.get(name(2)), catalog.get(name(3))) == (entry(1), entry(2), None)


def test_forgetting_survives(reopen: OpenCatalog) -> None:
    catalog = reopen()
    catalog.set(name(1), entry(1))
    catalog.freeze(summary(1))
    catalog.flush()
    catalog.set(name(1), None)
    catalog.set(name(2), None)  # was never there
    catalog.freeze(summary(2))
    catalog.flush()
    assert reopen().get(name(1)) is None
    assert reopen().summary() == summary(2)


def test_clear(reopen: OpenCatalog) -> None:
    catalog = reopen()
    catalog.set(name(1), entry(1))
    catalog.freeze(summary(1))
    catalog.flush()
    catalog.set(name(2), entry(2))
    catalog.clear()
    for _ in range(2):
        assert catalog.summary() == Summary()
        assert (catalog.get(name(1)), catalog.get(name(2))) == (None, None)
        catalog = reopen()


def test_scan_walks_in_order(reopen: OpenCatalog) -> None:
    catalog = reopen()
    for number in Random(1).sample(range(300), 300):
        catalog.set(name(number), entry(number))
    catalog.freeze(summary(1))
    catalog.flush()
    order = sorted([name(number) for number in range(300)], key=key_of)
    assert [found for found, _ in catalog.scan()] == order
    assert [found for found, _ in catalog.scan(order[297])] == order[298:]
    assert next(iter(catalog.scan(order[4])))[0] == order[5]
    assert dict(catalog.scan())[name(5)] == entry(5)


def test_scan_sees_what_is_not_yet_flushed(reopen: OpenCatalog) -> None:
    catalog = reopen()
    now: dict[bytes, Entry] = {}
    chance = Random(2)
    for step in range(600):
        block = name(chance.randrange(200))
        if chance.random() < 0.3:
            catalog.set(block, None)
            now.pop(block, None)
        else:
            catalog.set(block, entry(step))
            now[block] = entry(step)
        if step in (150, 300, 301):
            catalog.freeze(summary(step))
        if step in (200, 301):
            catalog.flush()
    catalog.freeze(summary(600))
    catalog.set(name(7), entry(7000))
    now[name(7)] = entry(7000)
    for _ in range(2):
        order = sorted(now, key=key_of)
        assert list(catalog.scan()) == [(block, now[block]) for block in order]
        assert list(catalog.scan(order[50])) == [(block, now[block]) for block in order[51:]]
        for group in range(8):
            mine = [block for block in order if group_of(block, 8) == group]
            assert [found for found, _ in catalog.scan(buckets=buckets_of(group, 8))] == mine
            assert [found for found, _ in catalog.scan(mine[1], buckets_of(group, 8))] == mine[2:]
        catalog.flush()


def test_the_tally_is_that_of_the_entries(reopen: OpenCatalog) -> None:
    catalog = reopen()
    chance = Random(3)
    for step in range(5):
        for number in chance.sample(range(200), 80):
            state = chance.choice([State.LIVE, State.LIVE, State.QUARANTINED, State.DAMAGED])
            gone = chance.random() < 0.2
            catalog.set(name(number), None if gone else entry(number, epoch=step)._replace(state=int(state)))
        catalog.freeze(summary(step))
        if step != 1:
            catalog.flush()
    catalog = reopen()
    tally, expected = catalog.tally(), Tally()
    for block, found in catalog.scan():
        expected.change(block, bucket_of(key_of(block)), None, found)
    for group in range(16):
        assert tally.sum(buckets_of(group, 16)) == expected.sum(buckets_of(group, 16))
    whole = tally.sum(range(BUCKETS))
    assert (whole.blocks, whole.damaged) == tuple(
        sum(found.state == state for _, found in catalog.scan()) for state in (State.LIVE, State.DAMAGED)
    )
    catalog.clear()
    assert catalog.tally().sum(range(BUCKETS)) == Tally().sum(range(BUCKETS))


def test_two_freezes_before_a_flush(reopen: OpenCatalog) -> None:
    catalog = reopen()
    catalog.set(name(1), entry(1))
    catalog.freeze(summary(1))
    catalog.set(name(2), entry(2))
    catalog.freeze(summary(2))
    assert catalog.get(name(1)) == entry(1)
    catalog.flush()
    after = reopen()
    assert (after.summary(), after.get(name(1)), after.get(name(2))) == (summary(2), entry(1), entry(2))


def test_readers_beside_a_flush(reopen: OpenCatalog) -> None:
    """Whatever was set is found at every moment, whichever of the places it is in."""
    catalog = reopen()
    missed: list[int] = []
    stop = threading.Event()
    newest = [-1]

    def look() -> None:
        random = Random(2)
        while not stop.is_set():
            if newest[0] >= 0:
                number = random.randint(0, newest[0])
                if catalog.get(name(number)) != entry(number):
                    missed.append(number)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(600):
        catalog.set(name(number), entry(number))
        newest[0] = number
        if number % 20 == 0:
            catalog.freeze(summary(number))
            flusher = threading.Thread(target=catalog.flush)
            flusher.start()
            flusher.join()
    stop.set()
    for reader in readers:
        reader.join()
    assert not missed


@pytest.mark.parametrize("damage", ["garbage", "empty", "version", "cut"])
def test_an_unusable_lmdb_catalog_begins_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "catalog"
    catalog = LmdbCatalog(path, map_bytes=1 << 24)
    for number in range(1000):
        catalog.set(name(number), entry(number))
    catalog.freeze(summary(1) if damage != "version" else Summary(version=99))
    catalog.flush()
    catalog.close()
    if damage == "garbage":
        (path / "data.mdb").write_bytes(os.urandom(20_000))
    elif damage == "empty":
        (path / "data.mdb").write_bytes(b"")
    elif damage == "cut":
        os.truncate(path / "data.mdb", 3 * 4096)
    catalog = LmdbCatalog(path, map_bytes=1 << 24)
    assert catalog.summary() == Summary()
    assert catalog.get(name(1)) is None
    catalog.close()


def test_an_lmdb_catalog_found_damaged_is_not_used_again(tmp_path: Path) -> None:
    path = tmp_path / "catalog"
    catalog = LmdbCatalog(path, map_bytes=1 << 24)
    with catalog._environment.begin(write=True) as transaction:
        transaction.put(key_of(name(1)), b"no entry", db=catalog._blocks)
    with pytest.raises(FatalDiskError, match="the next start builds it anew"):
        catalog.get(name(1))
    catalog.close()
    assert not (path / "data.mdb").exists()


def test_a_catalog_that_is_full_keeps_everything(tmp_path: Path) -> None:
    catalog = LmdbCatalog(tmp_path / "catalog", map_bytes=1 << 16)
    for number in range(3000):
        catalog.set(name(number), entry(number))
    catalog.freeze(summary(1))
    with pytest.raises(OSError, match="MDB_MAP_FULL"):
        catalog.flush()
    assert all(catalog.get(name(number)) == entry(number) for number in range(3000))
    catalog.close()


def test_a_start_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The catalog stays in memory, and all that is stored is served."""
    disk = FaultDisk()
    options = StoreOptions(reserve_bytes=0, commit_entries=500)
    first = BlockStore(disk, MemoryCatalog(), CLUSTER, clock=clock(), random=randomness(), options=options)
    names = store_all(first, [plain(seed, 20) for seed in range(2000)])
    catalog = LmdbCatalog(tmp_path / "catalog", map_bytes=1 << 16)
    store = BlockStore(disk, catalog, CLUSTER, clock=clock(), random=randomness(), options=options)
    assert "catalog not committed" in caplog.text
    assert [read(store, each) for each in names] == [plain(seed, 20) for seed in range(2000)]
    assert store.block_count == 2000
    store.close()


# -- stores


Open = Callable[[], BlockStore]


@pytest.fixture(params=["memory", "files"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Return what opens a store again, with its catalog as it was flushed."""
    opened: list[BlockStore] = []
    disk: Disk = FaultDisk() if request.param == "memory" else SystemDisk(tmp_path / "segments")
    memory = MemoryCatalog()
    options = StoreOptions(segment_bytes=1 << 20, reserve_bytes=0, deletion=True)

    def make() -> BlockStore:
        catalog: Catalog = memory
        if opened:
            opened[-1]._catalog.close()
            opened[-1]._segments.close()
        memory.crash()
        if request.param == "files":
            catalog = LmdbCatalog(tmp_path / "catalog", map_bytes=1 << 26)
        opened.append(BlockStore(disk, catalog, CLUSTER, clock=clock(), random=randomness(), options=options))
        return opened[-1]

    yield make
    opened[-1].close()


def test_store_and_find_again(open_store: Open) -> None:
    store = open_store()
    datas = [plain(seed, size) for seed in range(40) for size in (1, 4096, 70_000)]
    names = store_all(store, datas)
    for _ in range(2):
        assert [read(store, each) for each in names] == datas
        assert read(store, names[2], 65_000, 1000) == datas[2][65_000:66_000]
        assert outcome(store, b"?" * 32) == Code.MISSING_BLOCK
        assert store.block_count == len(set(names))
        store = open_store()


def test_touches_and_deletions_outlive_the_catalog(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    one, two = store_all(store, [plain(1), plain(2)], epoch=2)
    store.checkpoint()
    assert commit(store, touch(one, 8), delete(two, 2)) == [0, 0]
    shutil.rmtree(tmp_path / "catalog", ignore_errors=True)
    store = open_store()
    assert store.locate(one).epoch == 8
    assert store.block_count == 1
    assert commit(store, delete(one, 7), touch(two, 3)) == [Code.STALE_EPOCH, 0]
    assert store.block_count == 2


def test_reads_beside_writes_and_checkpoints(open_store: Open) -> None:
    store = open_store()
    names = store_all(store, [plain(seed, 3000) for seed in range(50)])
    wrong: list[bytes] = []
    stop = threading.Event()

    def look() -> None:
        random = Random(3)
        while not stop.is_set():
            at = random.randrange(50)
            if read(store, names[at]) != plain(at, 3000):
                wrong.append(names[at])

    def keep() -> None:
        while not stop.is_set():
            store.checkpoint()

    threads = [threading.Thread(target=work) for work in (look, look, keep)]
    for thread in threads:
        thread.start()
    for seed in range(50, 150):
        store.commit([put(plain(seed, 3000))])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert open_store().block_count == 150


def test_a_crash_between_the_steps_of_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries newer than the position change nothing when the records behind it are applied again."""
    monkeypatch.setattr("storage.catalog._STEP_ENTRIES", 7)
    disk = FaultDisk()

    def start() -> tuple[BlockStore, LmdbCatalog]:
        catalog = LmdbCatalog(tmp_path / "catalog", map_bytes=1 << 26)
        options = StoreOptions(reserve_bytes=0, deletion=True)
        return BlockStore(disk, catalog, CLUSTER, clock=clock(), random=randomness(), options=options), catalog

    store, catalog = start()
    names = store_all(store, [plain(seed) for seed in range(40)])
    store.checkpoint()
    commit(store, *(delete(each, 1) for each in names[::2]))
    commit(store, *(touch(each, 5) for each in names[::3]), *(put(plain(seed)) for seed in range(40, 60)))
    expected = {each: store.locate(each) for each in names}
    count = store.block_count
    real, steps = LmdbCatalog._write, []

    def crash(self: LmdbCatalog, order: list[bytes], summary: Summary) -> None:
        half = len(order) // 2
        steps.append(half)
        real(self, order[:half], self._summary)  # the old position, half of the new entries
        with self._environment.begin(db=self._blocks) as transaction:
            blocks = sum(value[-1] != 2 for _, value in transaction.cursor())
        with self._environment.begin(write=True) as transaction:
            about = msgspec.structs.replace(self._summary, blocks=blocks)
            transaction.put(b"summary", msgspec.msgpack.encode(about), db=self._about)
        raise PowerLoss

    monkeypatch.setattr(LmdbCatalog, "_write", crash)
    with pytest.raises(PowerLoss):
        store.checkpoint()
    monkeypatch.setattr(LmdbCatalog, "_write", real)
    catalog.close()
    store, catalog = start()
    assert steps[0] > 7
    assert not store.recovery.rebuilt
    assert store.recovery.records > 0
    assert {each: store.locate(each) for each in names} == expected
    assert store.block_count == count == sum(entry.state != 2 for _, entry in catalog.scan())
    store.close()


def test_the_steps_of_a_flush_count_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.catalog._STEP_ENTRIES", 3)
    catalog = LmdbCatalog(tmp_path / "catalog", map_bytes=1 << 24)
    seen: list[tuple[int, int]] = []
    for number in range(10):
        catalog.set(name(number), entry(number))
    catalog.freeze(replace(summary(1), blocks=10))
    catalog.flush()
    for number in range(0, 10, 2):
        catalog.set(name(number), None)
    real = catalog._environment

    class Watched:
        def begin(self, **options: Any) -> Any:
            seen.append((catalog._summary.sequence, catalog._summary.blocks))
            return real.begin(**options)

    monkeypatch.setattr(catalog, "_environment", Watched())
    catalog.freeze(replace(summary(2), blocks=5))
    catalog.flush()
    monkeypatch.setattr(catalog, "_environment", real)
    assert seen == [(1, 10), (1, 7)]
    assert catalog.summary() == replace(summary(2), blocks=5)
    catalog.close()


# -- space set aside


def test_space_set_aside_does_not_show_and_is_given_back(tmp_path: Path) -> None:
    disk = SystemDisk(tmp_path / "segments")
    file = disk.open("x", create=True)
    file.pwrite([b"abc"], 0)
    end = file.reserve(1 << 20)
    assert file.size() == 3 and file.pread(10, 0) == b"abc"
    allocated = (tmp_path / "segments" / "x").stat().st_blocks * 512
    assert end == 3 or (end == 1 << 20 and allocated >= 1 << 20)
    assert file.reserve(2) == 3
    file.truncate(3)
    assert (tmp_path / "segments" / "x").stat().st_blocks * 512 <= 65_536
    file.close()


def test_segments_give_back_what_they_do_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a segment, at the end of the process, and after a crash."""
    monkeypatch.setattr("storage.segments.SEGMENT_AHEAD_SHARE", 0)

    def start() -> BlockStore:
        options = StoreOptions(segment_bytes=1 << 24, reserve_bytes=0)
        disk = SystemDisk(tmp_path / "segments")
        return BlockStore(disk, MemoryCatalog(), CLUSTER, clock=clock(), random=randomness(), options=options)

    def wasted() -> int:
        files = [path.stat() for path in (tmp_path / "segments").iterdir()]
        return sum(max(0, stat.st_blocks * 512 - stat.st_size) for stat in files)

    store = start()
    names = store_all(store, [plain(seed) for seed in range(100)])
    assert store.journal.segments.free_bytes() >= SystemDisk(tmp_path / "segments").free_bytes()
    store.journal.segments._files.clear()  # killed
    store = start()
    assert wasted() < 1 << 20
    assert all(read(store, each) for each in names)
    store_all(store, [plain(200)])
    store.journal.roll()
    assert wasted() < 1 << 20
    store_all(store, [plain(201)])
    store.close()
    assert wasted() < 1 << 20
