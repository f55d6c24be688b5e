"""Which chunk servers hold a block, by the cluster map, and the connections to them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Optional

import trio

from fusefs.client.caller import Answer, Caller
from fusefs.client.session import Session
from metadata.api import ClusterMap, GetClusterMap, ServerRecord, TableRow
from node.wire.errors import Code, FsError

log = logging.getLogger(__name__)

GROUP_BYTES = 8  # of a block's name
PAUSE_S_MAX = 0.5


def group_of(block: bytes, groups: int) -> int:
    """Return the placement group of a block in a table of so many groups."""
    return int.from_bytes(block[:GROUP_BYTES], "big") % groups


class Placement:
    """The newest cluster map that is known. ``dial`` makes a connection to a server and starts it."""

    def __init__(self, session: Session, dial: Callable[[ServerRecord], Awaitable[Caller]]) -> None:
        self._session = session
        self._dial = dial
        self._map: Optional[ClusterMap] = None
        self._table: list[tuple[int, ...]] = []
        self._marked: dict[int, TableRow] = {}  # groups where somebody is filling or leaving
        self._records: dict[int, ServerRecord] = {}
        self._callers: dict[int, tuple[str, Caller]] = {}
        self._refresh_lock = trio.Lock()
        self._dial_lock = trio.Lock()
        self._refreshes = 0

    @property
    def pg_epoch(self) -> int:
        return self._map.pg_epoch if self._map is not None else 0

    @property
    def durable_min(self) -> int:
        """How many servers must hold a block durably before it may be committed."""
        return (self._map.replicas if self._map is not None else 1) // 2 + 1

    def servers_of(self, block: bytes) -> Sequence[int]:
        """The servers to read a block from, those that may lack it last; empty while no server is known."""
        if not self._table:
            return ()
        number = group_of(block, len(self._table))
        row, marked = self._table[number], self._marked.get(number)
        if marked is None or not marked.filling:
            return row
        return (*(server for server in row if server not in marked.filling), *marked.filling)

    def writers_of(self, block: bytes) -> Sequence[int]:
        """The servers whose durable copies of a block count, first the head of its pipeline."""
        if not self._table:
            return ()
        number = group_of(block, len(self._table))
        row, marked = self._table[number], self._marked.get(number)
        if marked is None or not marked.leaving:
            return row
        return tuple([server for server in row if server not in marked.leaving])

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
        """Fetch the map anew; tasks that ask at the same time share the answer."""
        seen = self._refreshes
        async with self._refresh_lock:
            if self._refreshes != seen:
                return
            answer = await self._session.call(GetClusterMap(self.pg_epoch), deadline)
            self._refreshes += 1
            self._take(answer.body)

    def _take(self, new: ClusterMap) -> None:
        late = new.base and new.base != self.pg_epoch  # the answer to a question of long ago
        if (new.table or new.servers) and not late:
            self._take_table(new)
            self._map = new
            self._records = {record.server: record for record in new.servers}
        self._session.take_epochs(new.gc_epoch, new.pg_epoch)

    def _take_table(self, new: ClusterMap) -> None:
        """A whole table, or the groups that changed since the epoch that is known; those change nothing else."""
        if new.table or not new.base:
            self._table = list(new.table)
            self._marked = {}
        for row in new.rows:
            self._table[row.group] = row.servers
            self._marked.pop(row.group, None)
            if row.filling or row.leaving:
                self._marked[row.group] = row

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
            "durable_min": self.durable_min,
        }
