"""The chunk servers as the leader sees them: who is alive, how much room there is, who holds which group.

What a server is (identity, address, weight, state) goes through the log. Whether it answers, and how full it is, lives
here, in the leader's memory, from its heartbeats; a new leader knows nothing until it has heard. Pure: the time comes
in, what has to go into the log comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import msgspec

from metadata.api import ServerRecord, VolumeStat
from metadata.placement import Candidate, Table, group_count, plan, revise
from metadata.state.command import SetTable, TableItem
from node.wire.limits import SERVER_SILENT_S, TABLE_ITEMS_MAX, TABLE_SETTLE_S
from storage.api import ServerStatus

TAKES_NEW = frozenset({"serving", "suspect"})  # suspect: silent for a while; its groups are not taken away for that
GONE = frozenset({"out"})


@dataclass(slots=True)
class Beat:
    """The last heartbeat of one server."""

    status: ServerStatus
    heard_s: float
    alive: bool = True


class Fleet:
    """All chunk servers of one leadership."""

    def __init__(self, now_s: float, *, replicas: int, expected: int) -> None:
        self.replicas = replicas
        self.expected = expected  # servers that the configuration names: the first table waits a little for them
        self.beats: dict[int, Beat] = {}
        self._since_s = now_s

    def heard(self, server: int, status: ServerStatus, now_s: float) -> bool:
        """Note a heartbeat; return whether the server was silent or unknown before."""
        known = self.beats.get(server)
        self.beats[server] = Beat(status, now_s)
        return known is None or not known.alive

    def lapse(self, now_s: float) -> list[int]:
        """Return the servers that have just become silent."""
        lapsed = []
        for server, beat in self.beats.items():
            if beat.alive and now_s - beat.heard_s > SERVER_SILENT_S:
                beat.alive = False
                lapsed.append(server)
        return lapsed

    def alive(self, server: int) -> bool:
        beat = self.beats.get(server)
        return beat is not None and beat.alive

    # --- what others are told --------------------------------------------------------------------------------

    def records(self, servers: Sequence[ServerRecord]) -> tuple[ServerRecord, ...]:
        """The replicated records with what heartbeats tell filled in."""
        filled = []
        for record in servers:
            beat = self.beats.get(record.server)
            if beat is not None:
                record = msgspec.structs.replace(
                    record, used_bytes=beat.status.used_bytes, blocks=beat.status.blocks, alive=beat.alive
                )
            filled.append(record)
        return tuple(filled)

    def capacity(self, stat: VolumeStat, servers: Sequence[ServerRecord]) -> VolumeStat:
        """Volume terms: what a file may still take, given that each byte is stored ``replicas`` times.

        A server that is full offers nothing, nor does one that has fallen silent; what it holds counts as used. One
        that this leader has not heard of yet counts by its share of the volume.
        """
        total = free = 0
        counted = [record for record in servers if record.state not in GONE]
        for record in counted:
            beat = self.beats.get(record.server)
            if beat is None:
                total += record.capacity_bytes
                free += max(record.capacity_bytes - stat.bytes * self.replicas // len(counted), 0)
                continue
            total += beat.status.capacity_bytes
            if beat.alive and beat.status.state == "serving" and record.state in TAKES_NEW:
                free += max(beat.status.capacity_bytes - beat.status.used_bytes, 0)
        return msgspec.structs.replace(
            stat, total_bytes=total // self.replicas, free_bytes=min(free, total) // self.replicas
        )

    def stored_bytes(self) -> int:
        return sum(beat.status.used_bytes for beat in self.beats.values())

    # --- placement -------------------------------------------------------------------------------------------

    def table_change(
        self, servers: Sequence[ServerRecord], table: Table, epoch: int, stored: bool, now_s: float
    ) -> Optional[SetTable]:
        """Return the next change of the table that is due, None where there is none.

        ``stored``: the volume holds data. Then nobody who may stay is displaced (``placement.revise``). An empty
        volume gets the ideal table; the first one waits TABLE_SETTLE_S for all servers that are expected.
        """
        candidates = [
            Candidate(record.server, record.weight, record.host, record.rack)
            for record in servers
            if record.state in TAKES_NEW and (table or self.alive(record.server))
        ]
        if not candidates:
            return None
        if not table and len(candidates) < self.expected and now_s - self._since_s < TABLE_SETTLE_S:
            return None
        groups = len(table) or group_count(len(candidates))
        if stored:
            holders = {record.server for record in servers if record.state not in GONE}
            wanted = revise(table or ((),) * groups, candidates, self.replicas, holders)
        else:
            wanted = plan(candidates, self.replicas, groups)
        current = table or ((),) * groups
        items = [TableItem(group, row) for group, row in enumerate(wanted) if row != current[group]]
        if not items:
            return None
        return SetTable(epoch, tuple(items[:TABLE_ITEMS_MAX]), 0 if table else groups)
