"""The log on disk is the same log as the one in memory that the core's tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata.raft.messages import ConfState, Entry, HardState, SnapshotMeta
from metadata.raft.storage import Compacted, MemoryStorage, Unavailable
from metadata.store.disk import Disk, RealDisk
from metadata.store.log import LogStore
from tests.sim.disk import FaultDisk

CLUSTER = bytes(16)
CONF = ConfState(voters=(1, 2, 3))


def make(disk: Disk, path: str, cache_bytes: int = 1 << 20) -> LogStore:
    LogStore.create(disk, path, cluster_id=CLUSTER, conf=CONF)
    return LogStore.open(disk, path, cluster_id=CLUSTER, sole_voter=True, segment_bytes=4096, cache_bytes=cache_bytes)


def reopen(disk: Disk, log: LogStore) -> LogStore:
    log.close()
    return LogStore.open(disk, log.path, cluster_id=CLUSTER, sole_voter=True, segment_bytes=4096, cache_bytes=0)


class Both:
    """Feeds a log store and the model with the same, and compares them."""

    def __init__(self, log: LogStore) -> None:
        self.log = log
        self.model = MemoryStorage(CONF)
        self.term = 1

    def append(self, back: int, count: int, size: int) -> None:
        first = max(self.model.last_index() + 1 - back, self.model.hard.commit + 1)
        if first <= self.model.last_index():
            self.term += 1
        entries = [Entry(first + i, self.term, 0, bytes([i]) * size) for i in range(count)]
        hard = HardState(self.term, 1, self.model.hard.commit)
        self.model.append(entries)
        self.model.set_hard_state(hard)
        self.log.append(hard, entries)

    def commit(self) -> None:
        self.model.set_hard_state(HardState(self.term, 1, self.model.last_index()))
        self.log.append(self.model.hard, [])

    def compact(self) -> None:
        index = self.model.hard.commit
        self.log.compact(SnapshotMeta(index, self.model.term(index), self.model.conf), trailing=0)
        self.model.compact(index, self.model.conf)

    def install(self) -> None:
        self.term += 1
        meta = SnapshotMeta(self.model.last_index() + 5, self.term, ConfState(voters=(1, 2, 3, self.term)))
        self.model.install(meta)
        self.model.set_hard_state(HardState(self.term, 0, meta.index))
        self.log.install(meta)
        self.log.sync()

    def compare(self) -> None:
        log, model = self.log, self.model
        assert log.initial_state() == model.initial_state()
        assert (log.first_index(), log.last_index()) == (model.first_index(), model.last_index())
        assert log.snapshot() == model.snapshot()
        for index in range(max(0, model.first_index() - 2), model.last_index() + 2):
            assert outcome(log.term, index) == outcome(model.term, index)
        high = model.last_index() + 1
        for low in range(model.first_index() - 1, model.last_index() + 2, 3):
            for limit in (0, 40, 1 << 20):
                assert outcome(log.entries, low, high, limit) == outcome(model.entries, low, high, limit)


def outcome(ask: Callable[..., object], *arguments: int) -> object:
    try:
        return ask(*arguments)
    except (Compacted, Unavailable) as error:
        return type(error)


steps = st.lists(
    st.tuples(st.just("append"), st.integers(0, 3), st.integers(1, 5), st.sampled_from([0, 10, 300]))
    | st.tuples(st.sampled_from(["commit", "compact", "install", "reopen", "sync"])),
    max_size=25,
)


@given(steps)
@settings(max_examples=60, deadline=None)
def test_log_store_behaves_like_the_memory_storage(todo: list[tuple[str, ...]]) -> None:
    disk = FaultDisk()
    both = Both(make(disk, "/log"))
    for name, *arguments in todo:
        if name == "sync":
            both.log.sync()
        elif name == "reopen":
            both.log = reopen(disk, both.log)
        else:
            getattr(both, name)(*arguments)
        both.compare()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_on_a_real_disk(tmp_path: Path, cache_bytes: int) -> None:
    disk = RealDisk()
    both = Both(make(disk, f"{tmp_path}/log", cache_bytes))
    for turn in range(40):
        both.append(turn % 3, 4, 200)
        if turn % 7 == 0:
            both.commit()
        both.log.sync()
    both.compare()
    assert both.log.statistics()["segments"] > 3
    both.log = reopen(disk, both.log)
    both.compare()
    both.commit()
    both.compact()
    assert both.log.statistics()["segments"] == 1
    both.install()
    both.append(0, 3, 10)
    both.log = reopen(disk, both.log)
    both.compare()
    both.log.close()
