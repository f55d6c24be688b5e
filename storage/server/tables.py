"""The placement table at a chunk server: who tells it, and what it says of a request's epoch (rule 16).

Only the leader tells a chunk server of the table, with answers to heartbeats. A client that knows a newer one makes the
server ask at once. A put or touch of a group that changed since the client's epoch is refused, and every answer to a
client that is behind carries what it lacks, so that it goes on with the right replicas. What a *newer* client puts is
taken: its commit is checked against the table of the metadata service anyway. But what deletes has to know: a delete
waits for the table that it was made from, and a group is not dropped while somebody knows a newer table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

import trio

from node.wire.limits import TABLE_REPLY_ROWS_MAX
from storage.table import PlacementTable, TableDifference, place_of


class KnownTable:
    """What this server knows. ``behind`` is called when a request shows that there is a newer table."""

    def __init__(self, behind: Callable[[], None] = lambda: None) -> None:
        self.table = PlacementTable()
        self.behind = behind
        self.server = 0  # this one's number, 0: not yet registered
        self._told = 0  # the newest epoch that anybody told of
        self._changed = trio.Event()
        self._counts = {"stale_blocks": 0, "differences_sent": 0, "differences_taken": 0}

    def take(self, difference: Optional[TableDifference]) -> bool:
        """Take what came with the answer to a heartbeat; whether there is more to ask for."""
        if difference is None or not self.table.take(difference):
            return False
        self._counts["differences_taken"] += 1
        self._changed.set()
        self._changed = trio.Event()
        return not difference.last

    def heard(self, pg_epoch: int) -> None:
        """A request was made by this table."""
        if pg_epoch > self._told:
            self._told = pg_epoch
            if pg_epoch > self.table.epoch:
                self.behind()

    def stale(self, blocks: Sequence[bytes], pg_epoch: int) -> frozenset[int]:
        """Return the positions of blocks whose group changed since the requester's table."""
        found = self.table.stale(blocks, pg_epoch)
        self._counts["stale_blocks"] += len(found)
        return frozenset(found)

    def news(self, pg_epoch: int) -> Optional[TableDifference]:
        """Return what one who knows the table of ``pg_epoch`` lacks, None where he lacks nothing, or too much."""
        if not 0 < pg_epoch < self.table.epoch:
            return None
        found = self.table.difference(place_of(pg_epoch), TABLE_REPLY_ROWS_MAX)
        if found is None or not found.last:
            return None
        self._counts["differences_sent"] += 1
        return found

    async def wait_for(self, pg_epoch: int, timeout_s: float) -> bool:
        """Return whether this server knows that table, or a newer one, within the time."""
        with trio.move_on_after(timeout_s):
            while self.table.epoch < pg_epoch:
                await self._changed.wait()
        return self.table.epoch >= pg_epoch

    def is_member(self, block: bytes) -> bool:
        """Whether this server belongs to a block's group, as far as it knows."""
        row = self.table.row_of(block)
        return row is None or not row.changed or not self.server or self.server in row.servers

    def may_drop(self, group: int, groups: int, pg_epoch: int) -> bool:
        """Whether the order of a table of ``pg_epoch`` to drop a group still holds: nobody knows a newer table than
        this server, and in this one it is no member of the group. While no table is known the order is believed."""
        table = self.table
        if max(self._told, pg_epoch) > table.epoch:
            return table.reached == (0, 0) and self._told <= pg_epoch
        return groups == len(table) and self.server not in table.rows[group].servers

    async def wait_changed(self) -> None:
        """Return when a difference was taken."""
        await self._changed.wait()

    def statistics(self) -> dict[str, int]:
        """Return the epoch that is known, and counters since the start."""
        return {"pg_epoch": self.table.epoch, **self._counts}
