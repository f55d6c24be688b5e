"""A log on a full disk: what it has can be read."""

from __future__ import annotations

import pytest

from metadata.raft.messages import ConfState, Entry
from metadata.store.log import LogStore
from node.wire.errors import Code, FsError
from tests.sim.disk import FaultDisk

CLUSTER = b"c" * 16


def test_old_entries_are_read_while_new_ones_find_no_room() -> None:
    disk = FaultDisk()
    LogStore.create(disk, "/log", cluster_id=CLUSTER, conf=ConfState((1, 2, 3)))
    log = LogStore.open(disk, "/log", cluster_id=CLUSTER, sole_voter=False, segment_bytes=2048, cache_bytes=1)
    entries = [Entry(index, 1, 0, b"x" * size) for index, size in enumerate((30, 30, 30, 3000), 1)]
    for entry in entries[:3]:
        log.append(None, [entry])
        log.sync()
    log.regain()
    disk.capacity_bytes = 0
    log.append(None, entries[3:])
    with pytest.raises(FsError) as caught:
        log.sync()
    assert caught.value.code == Code.NO_SPACE
    assert log.entries(1, 4, 1 << 20) == entries[:3]
    disk.capacity_bytes = 1 << 40
    log.sync()
    assert log.entries(1, 5, 1 << 20) == entries
