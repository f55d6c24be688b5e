"""Bugs that stores of real Raft implementations had, played against ours. Numbers are those of the catalogue."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from metadata.raft.messages import ConfState, Entry, EntryKind, HardState, SnapshotMeta
from metadata.store.disk import FatalDiskError, RealDisk
from metadata.store.engine_lmdb import LmdbEngine
from metadata.store.engine_memory import MemoryEngine
from metadata.store.log import LogStore, reconcile
from metadata.store.replay import Damaged
from metadata.store.snapshot import SnapshotName, SnapshotSource, SnapshotSpool
from node.wire.errors import Code, FsError
from tests.sim.disk import SECTOR_BYTES, FaultDisk, PowerCut

CLUSTER = bytes(16)
CONF = ConfState(voters=(1, 2, 3))


def create(disk: FaultDisk) -> LogStore:
    LogStore.create(disk, "/log", cluster_id=CLUSTER, conf=CONF)
    return reopen(disk)


def reopen(disk: FaultDisk, *, sole_voter: bool = True) -> LogStore:
    return LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=sole_voter)


def entries(first: int, count: int, term: int, size: int = 100) -> list[Entry]:
    return [Entry(first + i, term, 0, bytes([first + i & 255]) * size) for i in range(count)]


def shown(log: LogStore) -> list[Entry]:
    return log.entries(log.first_index(), log.last_index() + 1, 1 << 30) if log.last_index() else []


def test_bug_07_term_and_vote_survive_a_crash() -> None:
    for seed in range(20):
        disk = FaultDisk()
        log = create(disk)
        log.append(HardState(5, 2, 0), [])
        log.sync()
        disk.crash(Random(seed))
        assert reopen(disk).initial_state() == (HardState(5, 2, 0), CONF)


def test_bug_08_term_and_vote_change_together_or_not_at_all() -> None:
    found = set()
    for cut, seed in itertools.product(range(1, 5), range(30)):
        disk = FaultDisk()
        log = create(disk)
        log.append(HardState(5, 2), [])
        log.sync()
        disk.cut_at, disk.random = disk.operations + cut, Random(seed)
        try:
            log.append(HardState(6, 3), [])
            log.sync()
        except PowerCut:
            pass
        disk.crash(Random(seed))
        hard = reopen(disk).initial_state()[0]
        found.add((hard.term, hard.vote))
    assert found == {(5, 2), (6, 3)}


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_bug_19_the_applied_index_changes_with_the_state(kind: str, tmp_path: Path) -> None:
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state") if kind == "lmdb" else MemoryEngine()
    for index in range(1, 20):
        engine.put(b"data", b"%d" % index)
        engine.put(b"applied", b"%d" % index)
        if index % 7 == 0:
            engine.commit()
        if index % 5 == 0:
            engine.put(b"data", b"half of the next entry")
            engine.close()
            engine = LmdbEngine(RealDisk(), f"{tmp_path}/state") if isinstance(engine, LmdbEngine) else engine
            assert engine.get(b"data") == engine.get(b"applied") == (b"%d" % (index // 7 * 7) if index >= 7 else None)
    engine.close()


def test_bug_20_what_a_start_shows_cannot_vanish_after_a_failed_sync() -> None:
    for seed in range(20):
        disk = FaultDisk()
        log = create(disk)
        log.append(HardState(1, 1), entries(1, 3, 1))
        log.sync()
        log.append(None, entries(4, 3, 1))
        disk.fail_sync_at = disk.syncs + 1
        with pytest.raises(FatalDiskError):
            log.sync()
        disk.fail_sync_at = None
        before = shown(reopen(disk))  # the page cache still shows what never got to disk
        assert before == entries(1, 6, 1)
        disk.crash(Random(seed))
        assert shown(reopen(disk)) == before


def test_bug_21_sectors_that_arrived_out_of_order_do_not_block_the_start() -> None:
    disk = FaultDisk()
    log = create(disk)
    log.append(HardState(1, 1), entries(1, 2, 1))
    log.sync()
    writer = log._writer
    assert writer is not None
    path, start = "/log/0000000000000002.log", writer.end
    durable = disk.read(path)
    for index in range(3, 8):
        log.append(None, entries(index, 1, 1, 300))
    writer.flush()
    full = disk.read(path)
    first, last = start // SECTOR_BYTES, (writer.end - 1) // SECTOR_BYTES
    kept = set()
    for arrived in itertools.product((False, True), repeat=last - first + 1):
        content = bytearray(durable.ljust(len(full), b"\0"))
        for sector, there in zip(range(first, last + 1), arrived):
            at = slice(max(start, sector * SECTOR_BYTES), (sector + 1) * SECTOR_BYTES)
            if there:
                content[at] = full[at]
        again = FaultDisk()
        LogStore.create(again, "/log", cluster_id=CLUSTER, conf=CONF)
        again.write(path, bytes(content))
        log = reopen(again)
        assert not log.damaged
        found = shown(log)
        assert found == (entries(1, 2, 1) + [entries(i, 1, 1, 300)[0] for i in range(3, 8)])[: len(found)]
        kept.add(len(found))
    assert min(kept) == 2 and max(kept) == 7


def test_bug_34_a_membership_can_be_rolled_back_behind_compaction() -> None:
    disk = FaultDisk()
    log = create(disk)
    later = ConfState(voters=(1, 2, 3, 4))
    log.append(HardState(1, 1, 8), entries(1, 10, 1))
    log.append(None, [Entry(11, 1, EntryKind.CONF, b"add a voter")])
    log.compact(SnapshotMeta(8, 1, later), trailing=0)
    log.append(HardState(2, 2, 8), entries(11, 1, 2))  # another leader: the change never happened
    log.sync()
    disk.crash(Random(1))
    log = reopen(disk)
    assert log.initial_state() == (HardState(2, 2, 8), later)
    assert (log.first_index(), log.term(8), log.last_index(), log.term(11)) == (9, 1, 11, 2)


def test_bug_35_no_gap_between_snapshot_and_log_after_a_crash() -> None:
    ends = set()
    for cut, seed in itertools.product(range(0, 14), range(6)):
        disk = FaultDisk()
        log = create(disk)
        log.append(HardState(1, 1, 3), entries(1, 5, 1))
        log.sync()
        applied = SnapshotMeta(3, 1, CONF)
        received = SnapshotMeta(100, 4, ConfState(voters=(1, 2, 3, 4)))
        if cut:
            disk.cut_at = disk.operations + cut
        try:
            applied = received  # engine.replace has returned: the state is durable
            log.install(received)
            log.append(HardState(4, 2, 100), entries(101, 2, 4))
            log.sync()
        except PowerCut:
            pass
        disk.crash(Random(seed))
        log = reopen(disk)
        reconcile(log, applied)
        assert log.first_index() == 101 and log.term(100) == 4
        assert log.initial_state()[0].commit >= 100 and log.initial_state()[1] == received.conf
        ends.add(log.last_index())
        disk.crash(Random(seed))
        log = reopen(disk)
        assert log.first_index() == 101 and log.snapshot() == received
    assert ends == {100, 102}


def test_bug_35_a_state_behind_the_beginning_of_the_log_is_refused() -> None:
    log = create(FaultDisk())
    log.append(HardState(1, 1, 9), entries(1, 9, 1))
    log.compact(SnapshotMeta(9, 1, CONF), trailing=2)
    reconcile(log, SnapshotMeta(7, 1, CONF))
    with pytest.raises(FsError) as caught:
        reconcile(log, SnapshotMeta(6, 1, CONF))
    assert caught.value.code == Code.IO


def test_bug_36_a_corrupt_snapshot_replaces_nothing() -> None:
    sender, receiver = MemoryEngine(), MemoryEngine()
    for index in range(50):
        sender.put(b"key%02d" % index, bytes([index]) * 40)
    sender.commit()
    receiver.put(b"old", b"state")
    receiver.commit()
    name = SnapshotName(SnapshotMeta(9, 2, CONF), bytes(16))
    with sender.snapshot() as view:
        source = SnapshotSource(view, name, chunk_bytes=200)
        good = list(chunks_of(source))
    for number in (0, 3, len(good) - 1):
        for bit in range(0, len(good[number]) * 8, 37):
            disk = FaultDisk()
            spool = SnapshotSpool(disk, "/incoming", name)
            for data in good[:number]:
                spool.add(data)
            bad = bytearray(good[number])
            bad[bit // 8] ^= 1 << bit % 8
            try:
                assert spool.add(bytes(bad)) == number  # its number was hit: not the one that is wanted
            except FsError as error:
                assert error.code in (Code.CORRUPT_BLOCK, Code.PROTOCOL)
            assert not spool.complete
    for data in good[number:]:
        spool.add(data)
    assert spool.complete
    disk.flip("/incoming", 700)
    with pytest.raises(FsError):
        receiver.replace(spool.items())
    assert receiver.range(b"", b"\xff") == [(b"old", b"state")]
    disk.flip("/incoming", 700)
    receiver.replace(spool.items())
    assert receiver.range(b"", b"\xff") == sender.range(b"", b"\xff")


def damaged(log: LogStore) -> bool:
    return log.damaged


def chunks_of(source: SnapshotSource) -> Iterator[bytes]:
    number = 0
    while source.chunks is None or number < source.chunks:
        yield source.chunk(number)
        number += 1


def damaged_disk(flip: int) -> FaultDisk:
    """Three batches, each synced; one bit flipped in the second."""
    disk = FaultDisk()
    log = create(disk)
    for first in (1, 6, 11):
        log.append(HardState(first, 2, 0), entries(first, 5, first))
        log.sync()
    log.append(HardState(12, 3, 14), [])
    log.close()
    path = "/log/0000000000000002.log"
    at = disk.read(path).index(bytes([6]) * 100) + flip
    disk.flip(path, at)
    disk.crash(Random(0))
    return disk


@pytest.mark.parametrize("flip", [-70, -65, -60, -30, 0, 50, 300, 500])
def test_bug_37_a_flipped_bit_in_the_middle_is_loss_not_the_end(flip: int) -> None:
    disk = damaged_disk(flip)
    with pytest.raises(Damaged) as caught:
        reopen(disk)
    assert caught.value.file == "/log/0000000000000002.log" and caught.value.first_lost_index == 6
    assert caught.value.offset < disk.read(caught.value.file).index(bytes([7]) * 100)

    log = reopen(disk, sole_voter=False)
    assert log.damage is not None and damaged(log)
    assert shown(log) == entries(1, 5, 1)
    assert log.initial_state()[0] == HardState(13, 0, 0)  # the newest term was behind the loss; a new one has no vote
    for seed in range(3):
        disk.crash(Random(seed))
        log = reopen(disk, sole_voter=True)  # nothing more is lost, but it stays marked
        assert damaged(log) and shown(log) == entries(1, 5, 1)
    log.append(HardState(13, 3, 0), entries(6, 5, 6))
    log.sync()
    assert damaged(log)
    log.append(HardState(13, 3, 0), entries(11, 5, 11))
    assert damaged(log), "fetched, but not durable"
    log.sync()
    assert not damaged(log)
    disk.crash(Random(9))
    log = reopen(disk)
    assert not damaged(log) and shown(log) == entries(1, 5, 1) + entries(6, 5, 6) + entries(11, 5, 11)


def test_bug_37_the_mark_of_loss_needs_the_term_too() -> None:
    """A longer log of an older term does not make good what was acknowledged in a newer one."""
    log = reopen(damaged_disk(0), sole_voter=False)
    log.append(HardState(13, 3, 0), entries(6, 40, 6))
    log.sync()
    assert damaged(log)
    log.append(HardState(13, 3, 0), entries(7, 1, 13))  # a later leader, who has everything committed before
    log.sync()
    assert not damaged(log)


def test_bug_37_loss_below_a_snapshot_does_not_matter() -> None:
    disk = damaged_disk(0)
    log = reopen(disk, sole_voter=False)
    reconcile(log, SnapshotMeta(14, 11, CONF))  # the applied state reaches beyond the loss
    assert damaged(log) and log.first_index() == 15
    log.append(None, entries(15, 1, 11))
    log.sync()
    assert not damaged(log)
    log.close()
    assert not damaged(reopen(disk))
