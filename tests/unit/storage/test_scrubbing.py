"""Scrubbing finds every byte that went bad, once, whatever stops it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from node.wire.errors import Code
from node.wire.limits import SCRUB_BYTES_PER_S, SCRUB_INTERVAL_S
from storage import api
from storage.catalog import MemoryCatalog
from storage.cleaning import Cleaner
from storage.entry import Entry
from storage.records import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from storage.scrubbing import Scrubber
from storage.segments import segment_name
from storage.server.scrubbing import Scrubbing
from storage.store import BlockStore
from tests.unit.storage.faultdisk import FaultDisk
from tests.unit.storage.stores import commit, delete, open_store, outcome, plain, put, read, store_all, touch
from tests.unit.storage.test_cleaning import Clock, clean, cleaner_of

SIZE = 3000


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.scrubbing.SCRUB_STEP_BYTES", 20_000)


def fill(store: BlockStore, count: int = 100) -> list[bytes]:
    """Blocks in several segments."""
    return [store_all(store, [plain(seed, SIZE)])[0] for seed in range(1, count + 1)]


def scrub(store: BlockStore, scrubber: Scrubber | None = None) -> Scrubber:
    """One pass over everything."""
    scrubber = scrubber or Scrubber(store, clock=Clock())
    scrubber.restart()
    passes = store.journal.at.scrub.passes
    for _ in range(1000):
        scrubber.step()
        if store.journal.at.scrub.passes > passes:
            return scrubber
    raise AssertionError("the pass has no end")


def flip(disk: FaultDisk, entry: Entry, at: int) -> None:
    disk.flip(segment_name(entry.segment), 8 * (entry.offset + at))


def test_nothing_is_wrong() -> None:
    store = open_store(FaultDisk())
    names = fill(store)
    scrubber = scrub(store)
    assert scrubber.statistics()["verified"] == len(names)
    assert scrubber.state.damaged == 0
    assert scrubber.state.done_bytes == store.used_bytes - len(store.journal.segments.numbers) * SEGMENT_HEADER_BYTES
    assert store.bad_blocks(10) == ()


@pytest.mark.parametrize("seed", range(3))
def test_every_flipped_payload_is_found(seed: int) -> None:
    disk, chance = FaultDisk(), Random(seed)
    store = open_store(disk)
    names = fill(store)
    told: list[bytes] = []
    store.on_damage = told.append
    bad = chance.sample(names, 10)
    for name in bad:
        entry = store.locate(name)
        flip(disk, entry, chance.randrange(entry.stored))
    scrubber = scrub(store)
    assert sorted(told) == sorted(bad) == sorted(store.bad_blocks(100))
    assert scrubber.state.damaged == 10
    assert {outcome(store, name) for name in bad} == {Code.CORRUPT_BLOCK}
    for name in set(names) - set(bad):
        read(store, name)
    assert scrub(store, scrubber).state.damaged == 0, "what is known is not found again"


def test_a_block_that_hashes_to_another_name_is_found() -> None:
    """Checksums that fit do not help."""
    store = open_store(FaultDisk())
    fill(store, 2)
    operation = put(plain(7, SIZE))
    operation.block = bytes(32 * [9])  # the store trusts its caller to have verified
    assert commit(store, operation) == [0]
    scrub(store)
    assert store.bad_blocks(10) == (operation.block,)


def test_a_replaced_block_is_whole_again_and_its_old_record_garbage() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    names = fill(store)
    flip(disk, store.locate(names[3]), 100)
    before = store.journal.dead(store.locate(names[3]).segment)
    number = store.locate(names[3]).segment
    scrub(store)
    assert store.journal.dead(number) > before
    assert commit(store, put(plain(4, SIZE), 2)) == [0]
    assert read(store, names[3]) == plain(4, SIZE)
    assert store.bad_blocks(10) == (), "mended before anybody was told"
    assert scrub(store).state.damaged == 0
    assert open_store(disk, MemoryCatalog()).locate(names[3]).epoch == 2


def test_damage_in_quarantine_is_forgotten() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    names = fill(store, 5)
    entry = store.locate(names[2])
    assert commit(store, delete(names[2], 5)) == [0]
    flip(disk, entry, 50)
    scrub(store)
    assert outcome(store, names[2]) == Code.MISSING_BLOCK
    assert commit(store, touch(names[2], 9)) == [Code.MISSING_BLOCK], "it cannot be brought back"
    assert store.bad_blocks(10) == ()


def test_a_bad_header_has_its_block_written_anew() -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    names = fill(store)
    entry = store.locate(names[10])
    flip(disk, entry, -RECORD_HEADER_BYTES + 5)
    both = store.locate(names[51])
    flip(disk, both, -3)
    flip(disk, both, 200)
    scrubber = scrub(store)
    assert scrubber.statistics()["rewritten"] == 1
    assert store.locate(names[10])[:2] != entry[:2]
    assert store.bad_blocks(10) == (names[51],)
    again = open_store(disk, MemoryCatalog())
    assert read(again, names[10]) == plain(11, SIZE)
    assert again.locate(names[10]).epoch == store.locate(names[10]).epoch


def test_a_segment_whose_headers_are_bad_is_written_anew() -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    names = fill(store)
    store.checkpoint()
    for at in (20, 84):
        disk.flip(segment_name(1), 8 * at)
    store = open_store(disk, catalog)
    inside = [name for name in names if store.locate(name).segment == 1]
    assert inside
    scrub(store)
    assert all(store.locate(name).segment != 1 for name in inside)
    again = open_store(disk, MemoryCatalog())
    assert all(read(again, name) for name in names)


def test_a_disk_that_cannot_read_a_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FaultDisk()
    store = open_store(disk)
    names = fill(store)
    lost = store.locate(names[21])
    real = type(store.journal.segments).read

    def sector(segments: Any, number: int, length: int, offset: int) -> bytes:
        if number == lost.segment and offset <= lost.offset + 500 < offset + length:
            raise OSError(5, "Input/output error")
        return real(segments, number, length, offset)

    monkeypatch.setattr(type(store.journal.segments), "read", sector)
    scrub(store)
    assert store.bad_blocks(10) == (names[21],)


def test_it_goes_on_where_a_crash_stopped_it() -> None:
    """Cursor and marks come together: nothing between them is skipped, nothing that is done is done again."""
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    names = fill(store, 300)
    store.checkpoint()
    chance = Random(5)
    bad = chance.sample(names, 30)
    for name in bad:
        flip(disk, store.locate(name), 30)
    restarts = 0
    while True:
        scrubber = Scrubber(store, clock=Clock())
        for _ in range(chance.randrange(1, 5)):
            scrubber.step()
        if chance.random() < 0.7:
            assert store.checkpoint_wanted
            store.checkpoint()
        if store.journal.at.scrub.passes:
            break
        catalog.crash()
        store = open_store(disk, catalog)
        restarts += 1
    assert restarts > 5
    assert {name for name in names if outcome(store, name) == Code.CORRUPT_BLOCK} == set(bad)


def test_damage_is_reported_after_a_restart() -> None:
    disk, catalog = FaultDisk(), MemoryCatalog()
    store = open_store(disk, catalog)
    names = fill(store)
    flip(disk, store.locate(names[4]), 10)
    scrub(store)
    store.reported([names[4]])
    store.checkpoint()
    catalog.crash()
    store = open_store(disk, catalog)
    assert store.bad_blocks(10) == (names[4],)
    store.reported([names[4]])
    scrub(store)
    assert store.bad_blocks(10) == (names[4],), "and by each pass that finds it still damaged"


def test_compaction_in_the_middle_of_a_pass() -> None:
    disk = FaultDisk()
    store = open_store(disk)
    names = fill(store, 200)
    scrubber = Scrubber(store, clock=Clock())
    for _ in range(3):
        scrubber.step()
    commit(store, *[delete(name, 9) for name in names if name not in names[::7]])
    cleaner, clock = cleaner_of(store)
    assert isinstance(cleaner, Cleaner)
    clock.now_s += 1e6
    clean(store, cleaner)
    for _ in range(1000):
        scrubber.step()
        if scrubber.state.passes:
            break
    assert scrubber.state.damaged == 0
    assert {outcome(store, name) for name in names[::7]} == {plain(seed, SIZE) for seed in range(1, 201, 7)}


def test_writes_during_a_pass_do_not_prolong_it() -> None:
    store = open_store(FaultDisk())
    fill(store, 50)
    scrubber = Scrubber(store, clock=Clock())
    for seed in range(1000, 1100):
        scrubber.step()
        store_all(store, [plain(seed, SIZE)])
        if scrubber.state.passes:
            break
    assert scrubber.state.passes == 1


def test_a_pass_a_day() -> None:
    store = open_store(FaultDisk())
    fill(store)
    clock = Clock()
    scrubber = scrub(store, Scrubber(store, clock=clock))
    assert scrubber.step() == 0
    clock.now_s += SCRUB_INTERVAL_S + 1
    assert scrubber.step() > 0


async def test_rate_and_orders(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def here(work: Callable[[], int]) -> int:
        await trio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(trio.to_thread, "run_sync", here)  # the clock does not wait for threads
    store = open_store(FaultDisk())
    fill(store, 40)
    ended: list[float] = []
    scrubber = Scrubber(store, clock=Clock())
    first = trio.Event()

    def end() -> None:
        ended.append(trio.current_time())
        first.set()

    scrubbing = Scrubbing(scrubber, finished=end)
    scrubbing.take(api.Scrub(1, bytes_per_s=10_000))
    total = store.used_bytes
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(scrubbing.run)
        with trio.fail_after(1000):
            await first.wait()
        assert ended[0] - begun >= (total - 40_000) / 10_000
        report = scrubbing.report()
        assert report is not None
        assert (report.order, report.number, report.passes, report.damaged, report.bytes_per_s) == (1, 1, 1, 0, 10_000)
        assert report.done_bytes <= report.total_bytes
        scrubbing.acknowledged(report)
        assert scrubbing.report() is None
        await trio.sleep(100)
        assert len(ended) == 1
        for _ in range(3):
            scrubbing.take(api.Scrub(2, restart=True))
            await trio.sleep(100)
        assert len(ended) == 2, "one pass for one order"
        report = scrubbing.report()
        assert report is not None
        assert (report.order, report.passes, report.bytes_per_s) == (2, 2, SCRUB_BYTES_PER_S)
        nursery.cancel_scope.cancel()
