"""Group commit: whatever waits while the disk is busy is written together and shares the next fdatasync."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from node.wire.limits import CATALOG_COMMIT_S, KIB, STORE_GROUP_BYTES_MAX
from storage.records import RECORD_HEADER_BYTES
from storage.store import BlockStore, Operation

INLINE_BYTES_MAX = 256 * KIB
INLINE_S_MAX = 0.002
_SMOOTHING = 0.2


@dataclass(slots=True)
class _Batch:
    operations: Sequence[Operation]
    size_bytes: int
    done: Callable[[], None]


class Committer:
    """Owns the writing side of a store. ``submit`` from the trio thread only.

    Large groups, and all groups while the disk is slow, are written in a worker thread, so that the loop goes on
    receiving what will be the next one. A small group on a fast disk is written on the loop: handing it to a thread
    costs as much as the disk takes (measured: 1.3 to 1.9 times as many small puts a second). The catalog is committed
    in a thread of its own. When the disk fails, ``run`` raises and nothing of the group is acknowledged.
    """

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._waiting: deque[_Batch] = deque()
        self._arrived = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._checkpoint = trio.Event()
        self._usual_s = 0.0  # how long small groups took lately
        self._counts = {"groups": 0, "inline": 0, "batches": 0, "operations": 0}

    def submit(self, operations: Sequence[Operation], done: Callable[[], None]) -> None:
        """Have these committed with the next group; ``done`` is called on the loop when their codes are set."""
        size_bytes = sum(RECORD_HEADER_BYTES + len(operation.payload) for operation in operations)
        self._waiting.append(_Batch(operations, size_bytes, done))
        self._arrived.set()
        if self._idle.is_set():
            self._idle = trio.Event()

    async def flush(self) -> None:
        """Return when everything submitted so far is committed."""
        await self._idle.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled; a group that has begun is finished. Raises FatalDiskError, OSError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_catalog)
            task_status.started()
            while True:
                if not self._waiting:
                    self._idle.set()
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                await self._commit(self._take())

    def _take(self) -> list[_Batch]:
        group: list[_Batch] = []
        size_bytes = 0
        while self._waiting:
            size_bytes += self._waiting[0].size_bytes
            if group and size_bytes > STORE_GROUP_BYTES_MAX:
                break
            group.append(self._waiting.popleft())
        return group

    async def _commit(self, group: list[_Batch]) -> None:
        operations = [operation for batch in group for operation in batch.operations]
        small = sum(batch.size_bytes for batch in group) <= INLINE_BYTES_MAX
        begun = time.perf_counter()
        if small and self._usual_s <= INLINE_S_MAX:
            self._counts["inline"] += 1
            self._store.commit(operations)
        else:
            await trio.to_thread.run_sync(self._store.commit, operations)
        if small:
            self._usual_s += _SMOOTHING * (time.perf_counter() - begun - self._usual_s)
        self._counts["groups"] += 1
        self._counts["batches"] += len(group)
        self._counts["operations"] += len(operations)
        for batch in group:
            batch.done()
        if self._store.checkpoint_due:
            self._checkpoint.set()
        await trio.lowlevel.checkpoint()

    async def _keep_catalog(self) -> None:
        """Commit the catalog when much has collected, and at leisure when little has."""
        while True:
            with trio.move_on_after(CATALOG_COMMIT_S):
                await self._checkpoint.wait()
            self._checkpoint = trio.Event()
            if self._store.checkpoint_wanted:
                await trio.to_thread.run_sync(self._store.checkpoint)

    def statistics(self) -> dict[str, int]:
        """Return how well grouping works: operations and requests by group commit."""
        return {**self._counts, "waiting": len(self._waiting)}
