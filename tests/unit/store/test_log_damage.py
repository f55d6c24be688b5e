"""One flipped bit anywhere in a log: never a wrong entry, never silence about a lost one."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metadata.raft.messages import ConfState, Entry, HardState, SnapshotMeta
from metadata.store.log import LogStore
from metadata.store.record import encode_file_header
from metadata.store.replay import Damaged
from metadata.store.scan import segment_numbers, segment_path
from node.wire.errors import Code, FsError
from tests.sim.disk import FaultDisk

CLUSTER = bytes(range(16))
CONF = ConfState(voters=(1, 2, 3))


def reopen(disk: FaultDisk, *, sole_voter: bool = True) -> LogStore:
    return LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=sole_voter, segment_bytes=3000, cache_bytes=0)


def written(seed: int) -> tuple[FaultDisk, list[list[Entry]], HardState]:
    """Return a disk with a log of several segments, the states it went through, and the last hard state."""
    random = Random(seed)
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER, conf=CONF)
    log = reopen(disk)
    states: list[list[Entry]] = [[]]
    for _ in range(random.randrange(3, 25)):
        term = log.initial_state()[0].term + random.choice((0, 1)) or 1
        first = log.last_index() + 1 - (random.choice((0, 0, 2)) if term > log.initial_state()[0].term else 0)
        first = max(first, log.first_index())
        batch = [Entry(first + i, term, 0, random.randbytes(random.choice((5, 60, 700)))) for i in range(3)]
        log.append(HardState(term, 1, 0), batch)
        states.append([entry for entry in states[-1] if entry.index < first] + batch)
        if random.random() < 0.7:
            log.sync()
        if random.random() < 0.1:
            log.close()
            log = reopen(disk)
    log.sync()
    hard = log.initial_state()[0]
    if random.random() < 0.5:
        log.close()
    return disk, states, hard


@given(st.integers(0, 1 << 32))
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_never_changes_or_silently_drops_what_was_durable(seed: int) -> None:
    disk, states, hard = written(seed)
    random = Random(seed + 1)
    path = segment_path("/log", random.choice(segment_numbers(disk, "/log")))
    content = disk.read(path).rstrip(b"\0")
    newest = path == segment_path("/log", segment_numbers(disk, "/log")[-1])
    disk.flip(path, random.randrange(len(content)), random.randrange(8))
    try:
        log = reopen(disk)
    except Damaged as damage:
        assert damage.file == path
        log = reopen(disk, sole_voter=False)
        found = log.entries(1, log.last_index() + 1, 1 << 40) if log.last_index() else []
        assert found in states  # a state that it once was in
        assert log.damaged
        assert log.initial_state()[0].term <= hard.term + 1
        assert newest or log.initial_state()[0] == HardState(hard.term + 1, 0, 0)
        assert damage.first_lost_index > len(found)
        return
    found = log.entries(1, log.last_index() + 1, 1 << 40) if log.last_index() else []
    # Not noticed: nothing was lost, or it was the last record and looks like a torn write.
    assert found == states[-1] or newest and found == states[-2]


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_loss_stays_marked_until_it_is_made_good(seed: int) -> None:
    disk, states, hard = written(seed)
    random = Random(seed + 1)
    older = segment_numbers(disk, "/log")[:-1]
    assume(older)
    path = segment_path("/log", random.choice(older))
    for offset in range(random.randrange(64, len(disk.read(path))), len(disk.read(path)), 97):
        disk.flip(path, offset)
    log = reopen(disk, sole_voter=False)
    if log.damage is None:
        return
    assert log.damaged
    hard = HardState(hard.term + 1, 0)  # newer than every leader that knew this log
    assert log.initial_state()[0] == hard
    last = states[-1][-1]
    for _ in range(3):
        log.append(HardState(hard.term, hard.vote), [])
        log.sync()
        disk.crash(random)
        log = reopen(disk)
        assert log.damage is None and log.damaged
    kept = log.entries(1, log.last_index() + 1, 1 << 40) if log.last_index() else []
    for entry in states[-1]:
        if entry not in kept:
            assert is_damaged(log)
            log.append(None, [entry])
            log.sync()
    assert log.last_index() == last.index and not is_damaged(log)
    disk.crash(random)
    log = reopen(disk)
    assert not log.damaged and log.entries(1, last.index + 1, 1 << 40) == states[-1]


def is_damaged(log: LogStore) -> bool:
    return log.damaged


def test_a_missing_segment_is_loss() -> None:
    disk, states, hard = next(it for it in map(written, range(100)) if len(segment_numbers(it[0], "/log")) > 4)
    numbers = segment_numbers(disk, "/log")
    disk.remove(segment_path("/log", numbers[-3]))
    with pytest.raises(Damaged):
        reopen(disk)
    log = reopen(disk, sole_voter=False)
    assert log.damaged and log.initial_state()[0].term == hard.term + 1


def test_damage_that_appears_while_running_is_an_error_not_an_entry() -> None:
    disk, states, _ = written(3)
    log = reopen(disk)
    path = segment_path("/log", segment_numbers(disk, "/log")[-2])
    for offset in range(400, len(disk.read(path)), 50):
        disk.flip(path, offset)
    with pytest.raises(Damaged) as caught:
        log.entries(1, log.last_index() + 1, 1 << 40)
    assert caught.value.file == path and caught.value.code == Code.IO


def test_a_log_of_another_cluster_is_refused() -> None:
    disk, _, _ = written(1)
    with pytest.raises(FsError) as caught:
        LogStore.open(disk, "/log", cluster_id=bytes(16), sole_voter=False)
    assert caught.value.code == Code.FOREIGN_CLUSTER


def test_a_log_of_a_newer_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, _, _ = written(1)
    number = segment_numbers(disk, "/log")[-1]
    path = segment_path("/log", number)
    with monkeypatch.context() as patch:
        patch.setattr("metadata.store.record.FORMAT_VERSION", 9)
        header = encode_file_header(number, CLUSTER)
    disk.write(path, header + disk.read(path)[len(header):])
    with pytest.raises(FsError) as caught:
        reopen(disk)
    assert caught.value.code == Code.UNSUPPORTED_VERSION
    assert caught.value.detail == f"{path}: log format 9; this release reads up to 1"


def test_no_log_is_not_an_empty_log() -> None:
    disk = FaultDisk()
    for _ in range(2):
        with pytest.raises(FsError) as caught:
            reopen(disk)
        assert caught.value.code == Code.NOT_FOUND
        disk.make_directory("/log")
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    with pytest.raises(FsError) as caught:
        LogStore.create(disk, "/log", cluster_id=CLUSTER)
    assert caught.value.code == Code.EXISTS


def test_a_large_append_is_split_and_kept_whole() -> None:
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    log = LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=True, cache_bytes=0)
    batch = [Entry(1 + i, 1, 0, bytes([i]) * 700_000) for i in range(5)]
    log.append(HardState(1, 1, 5), batch)
    log.sync()
    assert log.statistics()["batches"] == 5
    disk.crash(Random(0))
    log = LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=True, cache_bytes=0)
    assert log.entries(1, 6, 1 << 40) == batch and log.entries(2, 6, 0) == batch[1:2]
    assert log.initial_state()[0].commit == 5


def test_a_committed_entry_is_never_replaced() -> None:
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    log = reopen(disk)
    log.append(HardState(1, 1), [Entry(i, 1) for i in range(1, 5)])
    log.append(HardState(1, 1, 3), [])
    with pytest.raises(AssertionError, match="committed"):
        log.append(HardState(2, 1, 3), [Entry(3, 2)])
    with pytest.raises(AssertionError, match="gap"):
        log.append(None, [Entry(6, 1)])
    log.compact(SnapshotMeta(3, 1, CONF), trailing=0)
    log.append(None, [Entry(2, 1), Entry(3, 1), Entry(4, 1)])  # a late duplicate: only the new part counts
    assert (log.first_index(), log.last_index()) == (4, 4)


def test_a_flipped_bit_in_the_last_write_is_told_from_a_torn_one() -> None:
    """Several records in one write, no later record to vouch for them: every sector arrived, so it was not torn."""
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    log = reopen(disk)
    for index in range(1, 6):
        log.append(None, [Entry(index, 1, 0, b"x" * 600)])
    log.sync()
    path = segment_path("/log", segment_numbers(disk, "/log")[-1])
    content = disk.read(path)
    at = content.index(b"x" * 600, content.index(b"x" * 600) + 600) + 300
    disk.flip(path, at)
    with pytest.raises(Damaged) as caught:
        reopen(disk)
    assert caught.value.first_lost_index == 2
    disk.flip(path, at)
    start = (at // 512) * 512
    disk.write(path, content[:start] + bytes(512) + content[start + 512:])  # this sector never arrived
    assert reopen(disk).last_index() == 1


def test_what_a_segment_was_published_with_cannot_be_torn() -> None:
    """The repeated tail was durable before its segment had a name, though no record behind it says so."""
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    log = reopen(disk)
    log.append(HardState(1, 1), [Entry(1, 1, 0, b"x" * 600)])
    log.sync()
    log = reopen(disk)  # nobody vouches for the record, so the next segment repeats it
    path = segment_path("/log", segment_numbers(disk, "/log")[-1])
    disk.flip(path, disk.read(path).index(b"x" * 600))
    with pytest.raises(Damaged):
        reopen(disk)


def test_the_mark_of_loss_reaches_the_end_of_what_was_published() -> None:
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    log = reopen(disk)
    log.append(HardState(1, 1), [Entry(1, 1, 0, b"x" * 600)])
    log.append(None, [Entry(2, 1, 0, b"y" * 600)])
    log.sync()
    reopen(disk)
    path = segment_path("/log", segment_numbers(disk, "/log")[-1])
    disk.flip(path, disk.read(path).index(b"y" * 600))
    log = reopen(disk, sole_voter=False)
    for index in (1, 2):
        assert is_damaged(log)
        log.append(None, [Entry(index, 1)])
        log.sync()
    assert not is_damaged(log)


def test_a_commit_index_that_counts_torn_entries_is_cut_with_them() -> None:
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    log = LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=True)
    log.append(HardState(1, 1, 2), [Entry(1, 1, 0, b"x" * 700_000), Entry(2, 1, 0, b"y" * 700_000)])
    log.sync()
    path = segment_path("/log", segment_numbers(disk, "/log")[-1])
    disk.cut(path, disk.read(path).index(b"y" * 1000))
    log = reopen(disk)
    assert log.last_index() == 1 and log.initial_state()[0] == HardState(1, 1, 1)


def test_a_lost_base_does_not_resurrect_what_was_cut_before_it() -> None:
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER)
    log = reopen(disk)
    log.append(HardState(1, 1), [Entry(1, 1)])
    log.sync()
    log.append(None, [Entry(2, 1)])
    log.sync()
    log.append(None, [Entry(3, 1)])  # never synced; the next life puts another entry there
    log._writer.flush()  # type: ignore[union-attr]
    before = segment_numbers(disk, "/log")[-1]
    disk.write(segment_path("/log", before), disk.read(segment_path("/log", before)))
    log = reopen(disk)
    log.append(HardState(2, 1), [Entry(3, 2)])
    log.close()
    path = segment_path("/log", segment_numbers(disk, "/log")[-2])
    for offset in range(64, 400, 40):
        disk.flip(path, offset)
    log = reopen(disk, sole_voter=False)
    assert log.damaged and log.last_index() <= 2
    for seed in range(10):
        disk.crash(Random(seed))
        log = reopen(disk)
        assert log.damaged and log.last_index() <= 2
