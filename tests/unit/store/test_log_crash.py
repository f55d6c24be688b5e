"""Random lives of a log on a disk that forgets: what was synced is there, nothing is invented, order is kept."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata.raft.messages import ConfState, Entry, HardState, SnapshotMeta
from metadata.store.disk import FatalDiskError
from metadata.store.log import LogStore
from node.wire.errors import Code, FsError
from node.wire.limits import LOG_RESERVE_BYTES
from tests.sim.disk import FaultDisk, PowerCut

CLUSTER = bytes(16)
CONF = ConfState(voters=(1, 2, 3))
SEGMENT_BYTES = 6000


class Seen(NamedTuple):
    """What a log shows."""

    hard: HardState
    snapshot: SnapshotMeta
    first: int
    entries: tuple[Entry, ...]


def seen(log: LogStore) -> Seen:
    first, last = log.first_index(), log.last_index()
    entries = log.entries(first, last + 1, 1 << 40) if last >= first else []
    return Seen(log.initial_state()[0], log.snapshot(), first, tuple(entries))


def forgets_commit(state: Seen) -> Seen:
    """``commit`` is kept lazily: it may be older than the rest."""
    return state._replace(hard=HardState(state.hard.term, state.hard.vote, 0))


class Life:
    """A log, the states it may show after a crash now (the newest last), and a disk that fails as told."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = FaultDisk()
        self.disk.random = self.random
        LogStore.create(self.disk, "/log", cluster_id=CLUSTER, conf=CONF)
        self.log = self.open()
        self.possible = [seen(self.log)]
        self.counter = 0

    def open(self) -> LogStore:
        return LogStore.open(
            self.disk, "/log", cluster_id=CLUSTER, sole_voter=True, segment_bytes=SEGMENT_BYTES, cache_bytes=2000
        )

    def act(self) -> None:
        """Do one random thing to the log and note the state it leads to."""
        log, random = self.log, self.random
        hard, last = log.initial_state()[0], log.last_index()
        way = random.random()
        if way < 0.6:
            first = max(last + 1 - random.choice((0, 0, 0, 1, 3)), hard.commit + 1, log.first_index())
            term = max(hard.term + (first <= last), 1)
            self.counter += 1
            data = b"%d" % self.counter * random.choice((1, 20, 400))
            entries = [Entry(first + i, term, 0, data) for i in range(random.randrange(1, 6))]
            log.append(HardState(term, random.choice((0, 1)) if term > hard.term else hard.vote, hard.commit), entries)
        elif way < 0.7:
            log.append(HardState(hard.term + 1, random.randrange(3), hard.commit), [])
        elif way < 0.8:
            log.append(HardState(hard.term, hard.vote, last), [])
        elif way < 0.9 and hard.commit > log.snapshot().index:
            self.compact(hard.commit)
        elif way > 0.97:
            log.install(SnapshotMeta(last + 3, hard.term + 1, CONF))
        disk = self.disk
        faults = disk.cut_at, disk.fail_sync_at
        disk.cut_at = disk.fail_sync_at = None  # looking may flush, but is not part of the story
        self.possible.append(seen(log))
        disk.cut_at, disk.fail_sync_at = faults

    def compact(self, index: int) -> None:
        """Compaction syncs in the middle, so its state has to be foretold."""
        log, trailing = self.log, self.random.randrange(4)
        before = seen(log)
        meta = SnapshotMeta(index, log.term(index), CONF)
        first = max(before.first, index + 1 - trailing)
        self.possible.append(before._replace(snapshot=meta, first=first, entries=before.entries[first - before.first:]))
        log.compact(meta, trailing)
        self.settle()

    def settle(self) -> None:
        del self.possible[:-1]

    def sync(self) -> None:
        self.log.sync()
        self.settle()

    def restart(self, *, power: bool) -> None:
        """Die, with or without the power, come back, and compare."""
        if power:
            self.disk.crash(self.random)
        self.disk.cut_at = self.disk.fail_sync_at = None
        self.log = self.open()
        state = seen(self.log)
        assert not self.log.damaged
        allowed = [forgets_commit(possible) for possible in self.possible]
        assert forgets_commit(state) in allowed, (state, self.possible)
        assert state.hard.commit >= min(possible.hard.commit for possible in self.possible)
        assert state.hard.commit <= max(self.log.last_index(), 0)
        self.possible = [state]  # it may have been told to others by now: it must not vanish any more

    def live(self, steps: int) -> None:
        """Act and sync; where the disk fails, die of it."""
        try:
            for _ in range(steps):
                self.act()
                if self.random.random() < 0.4:
                    self.sync()
        except (PowerCut, FatalDiskError) as death:
            self.restart(power=isinstance(death, PowerCut) or self.random.random() < 0.5)


@given(st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_what_was_synced_survives_any_crash(seed: int) -> None:
    life = Life(seed)
    for _ in range(6):
        life.live(life.random.randrange(1, 12))
        life.restart(power=life.random.random() < 0.7)


@given(st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_what_was_synced_survives_a_crash_within_an_operation(seed: int) -> None:
    life = Life(seed)
    for _ in range(8):
        if life.random.random() < 0.7:
            life.disk.cut_at = life.disk.operations + life.random.randrange(1, 25)
        else:
            life.disk.fail_sync_at = life.disk.syncs + life.random.randrange(1, 8)
        life.live(15)
    life.restart(power=True)


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_a_start_that_is_cut_short_loses_nothing(seed: int) -> None:
    life = Life(seed)
    life.live(12)
    synced, possible = life.possible[0], life.possible
    for _ in range(6):
        life.disk.crash(life.random)
        life.disk.cut_at = life.disk.operations + life.random.randrange(1, 8)
        try:
            life.open()
        except PowerCut:
            continue
        break
    life.possible = possible
    life.restart(power=True)
    assert synced.first <= life.log.first_index()


def test_closing_makes_everything_durable() -> None:
    life = Life(1)
    life.log.append(HardState(1, 2), [Entry(1, 1, 0, b"x")])
    life.possible = [seen(life.log)]
    life.log.close()
    life.restart(power=True)


def test_restarts_do_not_pile_up_segments() -> None:
    life = Life(2)
    life.log.append(HardState(1, 1), [Entry(1, 1)])
    life.log.sync()
    life.possible = [seen(life.log)]
    for _ in range(20):
        life.restart(power=True)
        assert life.log.statistics()["segments"] <= 3


def test_a_full_disk_loses_nothing_and_compaction_makes_room() -> None:
    disk = FaultDisk(capacity_bytes=3 * LOG_RESERVE_BYTES)
    LogStore.create(disk, "/log", cluster_id=CLUSTER, conf=CONF)
    log = LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=True, segment_bytes=1 << 20)
    assert disk.exists("/log/reserve")
    disk.capacity_bytes = disk.used_bytes() + (3 << 20)
    index = 0
    while disk.exists("/log/reserve"):
        index += 1
        log.append(None, [Entry(index, 1, 0, bytes([index & 255]) * 200_000)])
        log.sync()
    assert log.full
    disk.capacity_bytes = disk.used_bytes() + 100_000  # the reserve is used up as well
    log.append(None, [Entry(index + 1, 1, 0, b"z" * 1_300_000)])
    for _ in range(2):
        with pytest.raises(FsError) as caught:
            log.sync()
        assert caught.value.code == Code.NO_SPACE
    disk.capacity_bytes += 2 << 20
    log.sync()
    log.append(HardState(1, 0, index + 1), [])
    log.compact(SnapshotMeta(index + 1, 1, CONF), trailing=1)
    assert disk.used_bytes() < 3 << 20
    disk.capacity_bytes = 3 * LOG_RESERVE_BYTES
    assert log.regain() and disk.exists("/log/reserve")
    log.close()
    disk.crash(Random(3))
    log = LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=True)
    assert log.entries(index + 1, index + 2, 0) == [Entry(index + 1, 1, 0, b"z" * 1_300_000)]


def test_after_a_failed_sync_the_log_refuses_everything() -> None:
    life = Life(4)
    life.log.append(HardState(1, 1), [Entry(1, 1)])
    life.disk.fail_sync_at = life.disk.syncs + 1
    with pytest.raises(FatalDiskError):
        life.log.sync()
    life.disk.fail_sync_at = None
    with pytest.raises(FatalDiskError):
        life.log.sync()
    with pytest.raises(FatalDiskError):
        life.log.append(None, [Entry(2, 1)])


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_what_a_start_shows_is_durable_whatever_failed_in_the_start_before(failing: int) -> None:
    """Not only the content of a file: also its name may be shown without being durable."""
    for seed in range(20):
        life = Life(seed)
        life.log.append(HardState(1, 1), [Entry(1, 1, 0, b"x")])
        life.log.close()
        life.log = life.open()  # leaves no segment to remove, and so no other reason to sync names
        life.log.append(None, [Entry(2, 1, 0, b"y")])
        life.log.sync()
        life.log.append(None, [Entry(3, 1, 0, b"z")])
        writer = life.log._writer
        assert writer is not None
        writer.flush()  # in the page cache only; the process dies
        life.disk.fail_sync_at = life.disk.syncs + failing
        try:
            life.open()
        except FatalDiskError:
            pass
        life.disk.fail_sync_at = None
        assert life.open().last_index() == 3  # from here on it may be acknowledged
        life.disk.crash(Random(seed))
        assert life.open().last_index() == 3
