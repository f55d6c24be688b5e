"""Which groups are written on the loop and which in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import cast

import pytest
import trio
import trio.testing

from node.wire.limits import STORE_GROUP_BYTES_MAX
from storage.records import Kind
from storage.server.committer import Committer
from storage.store import BlockStore, Operation


class Store:
    """Stands in for a BlockStore: notes who commits what."""

    def __init__(self) -> None:
        self.groups: list[tuple[bool, int]] = []  # on the loop, operations
        self.pause_s = 0.0
        self.checkpoint_due = self.checkpoint_wanted = False
        self.checkpoints = 0
        self._loop = threading.get_ident()

    def commit(self, operations: Sequence[Operation]) -> None:
        time.sleep(self.pause_s)  # noqa: ASYNC101
        self.groups.append((threading.get_ident() == self._loop, len(operations)))

    def checkpoint(self) -> None:
        assert threading.get_ident() != self._loop
        self.checkpoints += 1
        self.checkpoint_due = self.checkpoint_wanted = False


def operation(size_bytes: int) -> Operation:
    return Operation(Kind.DATA, b"n" * 32, 1, size_bytes, bytes(size_bytes))


async def commit(committer: Committer, size_bytes: int) -> None:
    done = trio.Event()
    committer.submit([operation(size_bytes)], done.set)
    await done.wait()


async def test_small_groups_on_the_loop_large_ones_in_a_thread(nursery: trio.Nursery) -> None:
    store = Store()
    committer = Committer(cast(BlockStore, store))
    await nursery.start(committer.run)
    await commit(committer, 1000)
    await commit(committer, 1 << 20)
    await commit(committer, 1000)
    assert store.groups == [(True, 1), (False, 1), (True, 1)]


async def test_a_slow_disk_leaves_the_loop(nursery: trio.Nursery) -> None:
    """And comes back when it is fast again."""
    store = Store()
    committer = Committer(cast(BlockStore, store))
    await nursery.start(committer.run)
    store.pause_s = 0.03
    for _ in range(3):
        await commit(committer, 1000)
    assert [inline for inline, _ in store.groups] == [True, False, False]
    store.pause_s = 0.0
    for _ in range(60):
        await commit(committer, 1000)
    assert store.groups[-1] == (True, 1)


async def test_what_waits_is_grouped_up_to_a_bound(nursery: trio.Nursery) -> None:
    store = Store()
    committer = Committer(cast(BlockStore, store))
    half = STORE_GROUP_BYTES_MAX // 2
    done: list[int] = []
    for at, size_bytes in enumerate((10, 10, half, half, 10, STORE_GROUP_BYTES_MAX + 5, 10)):
        committer.submit([operation(size_bytes)], lambda at=at: done.append(at))  # type: ignore[misc]
    await nursery.start(committer.run)
    await committer.flush()
    assert [count for _, count in store.groups] == [3, 2, 1, 1]
    assert done == list(range(7))
    await committer.flush()


@pytest.mark.parametrize("due", [False, True])
async def test_the_catalog_is_committed(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, due: bool
) -> None:
    # The commit runs in a thread, for which a clock that jumps at once does not wait.
    autojump_clock.autojump_threshold = 0.5 if due else 0
    store = Store()
    committer = Committer(cast(BlockStore, store))
    await nursery.start(committer.run)
    store.checkpoint_wanted, store.checkpoint_due = True, due
    await commit(committer, 10)
    begun = trio.current_time()
    while store.checkpoints == 0:  # noqa: ASYNC110  # a clock that jumps needs somebody who sleeps
        await trio.sleep(0.25)
    assert (trio.current_time() - begun < 1) is due
    await trio.sleep(60)
    assert store.checkpoints == 1
