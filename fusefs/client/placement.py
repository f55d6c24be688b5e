"""Which chunk servers hold a block, by the cluster map, and the connections to them.

The map comes from the metadata service, whole at first, then what changed. A chunk server that knows a newer table
says what changed since ours with its answer, so that a writer learns of new replicas from whoever refused him.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Optional

import trio

from fusefs.client.caller import Answer, Caller
from fusefs.client.session import Session
from metadata.api import ClusterMap, GetClusterMap, ServerRecord
from node.wire.errors import Code, FsError
from storage.api import GroupRow, PlacementTable, TableDifference, place_of

log = logging.getLogger(__name__)

PAUSE_S_MAX = 0.5


class Placement:
    """The newest cluster map that is known. ``dial`` makes a connection to a server and starts it."""

    def __init__(self, session: Session, dial: Callable[[ServerRecord], Awaitable[Caller]]) -> None:
        self._session = session
        self._dial = dial
        self._map: Optional[ClusterMap] = None
        self._table = PlacementTable()
        self._records: dict[int, ServerRecord] = {}
        self._callers: dict[int, tuple[str, Caller]] = {}
        self._refresh_lock = trio.Lock()
        self._dial_lock = trio.Lock()
        self._refreshes = 0
        self._learned = 0

    @property
    def pg_epoch(self) -> int:
        return self._table.epoch

    @property
    def durable_min(self) -> int:
        """How many servers must hold a block durably before it may be committed."""
        return (self._map.replicas if self._map is not None else 1) // 2 + 1

    def servers_of(self, block: bytes) -> Sequence[int]:
        """The servers to read a block from, those that may lack it last; empty while no server is known."""
        row = self._table.row_of(block)
        if row is None or not row.filling:
            return row.servers if row is not None else ()
        return (*(server for server in row.servers if server not in row.filling), *row.filling)

    def complete_of(self, block: bytes) -> int:
        """How many of ``servers_of``, the first ones, should have all of the block's group."""
        row = self._table.row_of(block)
        return len(row.servers) - len(row.filling) if row is not None else 0

    def writers_of(self, block: bytes) -> Sequence[int]:
        """The servers whose durable copies of a block count, first the head of its pipeline."""
        row = self._table.row_of(block)
        if row is None or not row.leaving:
            return row.servers if row is not None else ()
        return tuple([server for server in row.servers if server not in row.leaving])

    def changed(self, block: bytes, pg_epoch: int) -> bool:
        """Whether a block's group has, or may have, changed since that epoch."""
        row = self._table.row_of(block)
        return row is not None and row.changed > pg_epoch

    def learn(self, difference: Optional[TableDifference]) -> None:
        """Take what a chunk server says that changed. Where that names servers that are not known here, the whole map
        is asked for before it is used again."""
        if difference is None or not difference.last:
            return
        if all(server in self._records for row in difference.rows for server in row.servers):
            self._learned += self._table.take(difference)
        self._session.take_epochs(0, difference.epoch)

    async def ready(self, deadline: float) -> None:
        """Return once the map is as new as the session knows of and names servers; UNREACHABLE at the deadline."""
        pause_s = 0.02
        while not self._table or self.pg_epoch < self._session.pg_epoch:
            before = self.pg_epoch
            await self.refresh(deadline)
            if self._table:
                return
            if trio.current_time() + pause_s >= deadline:
                raise FsError(Code.UNREACHABLE, f"no chunk server is registered (map epoch {before})")
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def refresh(self, deadline: float) -> None:
        """Fetch the map anew; tasks that ask at the same time share the answer. TIMEOUT at the deadline."""
        seen = self._refreshes
        with trio.move_on_at(deadline):
            async with self._refresh_lock:
                if self._refreshes == seen:
                    answer = await self._session.call(GetClusterMap(self.pg_epoch), deadline)
                    self._refreshes += 1
                    self._take(answer.body)
                return
        raise FsError(Code.TIMEOUT, "the cluster map did not come in time")

    def _take(self, new: ClusterMap) -> None:
        if new.table or new.servers:
            difference = difference_of(new, len(self._table))
            if difference.base <= self._table.reached:  # else an answer to nothing that this client asked
                self._table.take(difference)
                self._map = new
                self._records = {record.server: record for record in new.servers}
        self._session.take_epochs(new.gc_epoch, new.pg_epoch)

    async def call(self, server: int, request: Any, data: Sequence[Any], timeout_s: float) -> Answer:
        """Ask one chunk server. UNREACHABLE too when the map does not know it."""
        record = self._records.get(server)
        if record is None:
            raise FsError(Code.UNREACHABLE, f"chunk server {server} is not in the cluster map")
        known = self._callers.get(server)
        if known is None or known[0] != record.address:
            known = await self._connect(record)
        return await known[1].call(request, data, timeout_s=timeout_s)

    async def _connect(self, record: ServerRecord) -> tuple[str, Caller]:
        """Make the connection to a server, unless another task has just done so."""
        async with self._dial_lock:
            known = self._callers.get(record.server)
            if known is None or known[0] != record.address:
                if known is not None:
                    known[1].close()
                known = record.address, await self._dial(record)
                self._callers[record.server] = known
            return known

    def name_of(self, server: int) -> str:
        """What a person calls a server."""
        record = self._records.get(server)
        return record.name if record is not None else f"server {server}"

    def statistics(self) -> dict[str, Any]:
        return {
            "pg_epoch": self.pg_epoch,
            "servers": len(self._records),
            "refreshes": self._refreshes,
            "learned": self._learned,
            "durable_min": self.durable_min,
        }


def difference_of(new: ClusterMap, groups: int) -> TableDifference:
    """The table of a cluster map as a difference to the one of ``groups`` rows that it was asked for with. The map does
    not say when each row changed: at its own epoch at the latest."""
    epoch = new.pg_epoch
    if new.base:
        rows = [GroupRow(row.group, epoch, row.servers, row.filling, row.leaving) for row in new.rows]
        return TableDifference(place_of(new.base), place_of(epoch), epoch, groups, tuple(rows))
    marked = {row.group: row for row in new.rows}
    rows = []
    for number, servers in enumerate(new.table):
        row = marked.get(number)
        rows.append(GroupRow(number, epoch, servers, row.filling if row else (), row.leaving if row else ()))
    return TableDifference((0, 0), place_of(epoch), epoch, len(rows), tuple(rows))
