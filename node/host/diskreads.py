"""Reading files from trio without a thread, where the kernel can (``node.host.uring``)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Optional

import trio

from node.host.disk import SystemFile
from node.host.uring import Done, Ring, open_ring
from node.wire.limits import DISK_READ_SLOW_S, DISK_READS_MAX
from node.wire.types import Buffer

# Not the disk's: the kernel does not do it this way, or not now.
_OTHERWISE = frozenset({errno.EAGAIN, errno.EINTR, errno.ECANCELED, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOMEM})


class _Waiting:
    """A task that waits for some reads."""

    __slots__ = ("done", "left", "task")

    def __init__(self, tokens: Sequence[int]) -> None:
        self.left = set(tokens)
        self.done: dict[int, Done] = {}
        self.task: Optional[trio.lowlevel.Task] = None


class DiskReads:
    """Reads of one trio loop. ``nursery`` outlives them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ring: Optional[Ring] = None
        self._opened = False
        self._waiting: dict[int, _Waiting] = {}

    async def read(self, file: SystemFile, ranges: Sequence[tuple[int, int]]) -> Optional[list[Buffer]]:
        """Read these (length, offset) side by side. None where it does not work in this way, or where they reach beyond
        the end of the file: then it is for a thread. OSError is what the disk says.

        When cancelled, it returns at once; the kernel reads to the end, into memory that nobody looks at."""
        ring = self._open()
        if ring is None:
            return None
        try:
            tokens = ring.begin(file, ranges)
        except OSError:
            return None
        waiting = _Waiting(tokens)
        for token in tokens:
            self._waiting[token] = waiting
        self._hear(ring)  # what was in memory is here by now
        if waiting.left:

            def abandon(_: object) -> trio.lowlevel.Abort:
                for token in waiting.left:
                    del self._waiting[token]
                return trio.lowlevel.Abort.SUCCEEDED

            waiting.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abandon)
        if waiting.left:
            return None  # the loop ends
        return _data([waiting.done[token] for token in tokens])

    def _open(self) -> Optional[Ring]:
        if not self._opened:
            self._opened = True
            self._ring = open_ring(DISK_READS_MAX, DISK_READ_SLOW_S)
            if self._ring is not None:
                self._nursery.start_soon(self._listen, self._ring)
        return self._ring

    async def _listen(self, ring: Ring) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(ring)
                self._hear(ring)
        finally:
            self._ring = None
            ring.close()
            for waiting in set(self._waiting.values()):
                assert waiting.task is not None
                trio.lowlevel.reschedule(waiting.task)
            self._waiting.clear()

    def _hear(self, ring: Ring) -> None:
        for done in ring.done():
            waiting = self._waiting.pop(done.token, None)
            if waiting is None:
                continue  # given up
            waiting.left.remove(done.token)
            waiting.done[done.token] = done
            if not waiting.left and waiting.task is not None:
                trio.lowlevel.reschedule(waiting.task)


def _data(reads: Sequence[Done]) -> Optional[list[Buffer]]:
    for one in reads:
        if one.result < 0 and -one.result not in _OTHERWISE:
            raise OSError(-one.result, errno.errorcode.get(-one.result, "read failed"))
    if any(one.result != len(one.data) for one in reads):
        return None
    return [one.data for one in reads]
