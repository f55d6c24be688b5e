"""What one entry brings to the operations in it: its time, its session, who else lives, and what it caused."""

from __future__ import annotations

from collections.abc import Sequence

from metadata.api import Extent
from metadata.placement import group_of
from metadata.state.records import Group
from node.wire.errors import Code, FsError


class Turn:
    """One entry being applied. The epochs are those before the entry; ``live`` are all registered sessions."""

    __slots__ = (
        "time_ns", "session", "live", "gc_epoch", "groups", "work", "orphaned", "freed", "ended", "granted", "fenced",
    )  # fmt: skip

    def __init__(
        self, time_ns: int, session: int, live: Sequence[int], gc_epoch: int, groups: Sequence[Group]
    ) -> None:
        self.time_ns = time_ns
        self.session = session
        self.live = live
        self.gc_epoch = gc_epoch
        self.groups = groups
        self.work = 0  # rows and extents touched so far, where an operation may touch many
        self.orphaned: dict[int, list[int]] = {}  # session -> removed inodes it may hold, for the leader to ask
        self.freed: list[int] = []  # inodes that ceased to exist
        self.ended: list[int] = []  # sessions that ceased to exist
        self.granted: list[tuple[int, int]] = []  # (session, ticket) of locks whose turn has come
        self.fenced: list[int] = []  # sessions whose leases are broken from here on

    def check_blocks(self, extents: Sequence[Extent], touch_epoch: int, pg_epoch: int) -> None:
        """Refuse references to blocks whose touch is too old, or whose placement changed since (rule 16)."""
        if not extents:
            return
        self.check_touch(touch_epoch)
        if pg_epoch and self.groups:
            for extent in extents:
                if self.changed(extent.block, pg_epoch):
                    group = group_of(extent.block, len(self.groups))
                    raise FsError(Code.STALE_EPOCH, f"placement group {group} changed since epoch {pg_epoch}")

    def changed(self, block: bytes, pg_epoch: int) -> bool:
        """Whether a block's placement group changed after that epoch."""
        return bool(self.groups) and self.groups[group_of(block, len(self.groups))].changed > pg_epoch

    def check_touch(self, touch_epoch: int) -> None:
        """Refuse a touch that a delete may have overtaken."""
        if touch_epoch < self.gc_epoch - 1:
            raise FsError(Code.STALE_EPOCH, f"touched in epoch {touch_epoch}, now it is {self.gc_epoch}")
        if touch_epoch > self.gc_epoch:
            raise FsError(Code.INVALID, f"touch epoch {touch_epoch} has not begun, it is {self.gc_epoch}")
