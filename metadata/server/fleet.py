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
from metadata.balance import ideal
from metadata.placement import WEIGHTED, Candidate, Table, group_count
from metadata.state.command import SetTable, TableItem
from node.wire.limits import SERVER_SILENT_S, TABLE_ITEMS_MAX, TABLE_SETTLE_S
from storage.api import ServerStatus

TAKES_NEW = frozenset({"joining", "serving", "suspect"})  # suspect: its groups are not taken away for that
GONE = frozenset({"out"})


@dataclass(slots=True)
class Beat:
    """The last heartbeat of one server."""

    status: ServerStatus
    heard_s: float
    alive: bool = True
    file_bytes: int = 0  # of the volume, when it was heard


class Fleet:
    """All chunk servers of one leadership."""

    def __init__(
        self, now_s: float, *, replicas: int, expected: int, silent_after_s: float = SERVER_SILENT_S,
        strategy: str = WEIGHTED,
    ) -> None:
        self.replicas = replicas
        self.silent_after_s = silent_after_s
        self.strategy = strategy
        self.expected = expected  # servers that the configuration names: the first table waits a little for them
        self.beats: dict[int, Beat] = {}
        self._since_s = now_s

    def heard(self, server: int, status: ServerStatus, now_s: float, file_bytes: int = 0) -> bool:
        """Note a heartbeat; return whether the server was silent or unknown before."""
        known = self.beats.get(server)
        self.beats[server] = Beat(status, now_s, file_bytes=file_bytes)
        return known is None or not known.alive

    def lapse(self, now_s: float) -> list[int]:
        """Return the servers that have just become silent."""
        lapsed = []
        for server, beat in self.beats.items():
            if beat.alive and now_s - beat.heard_s > self.silent_after_s:
                beat.alive = False
                lapsed.append(server)
        return lapsed

    def alive(self, server: int) -> bool:
        beat = self.beats.get(server)
        return beat is not None and beat.alive

    def silent_s(self, server: int, now_s: float) -> float:
        """For how long a server was not heard; one that this leader never heard has had its time since the election."""
        beat = self.beats.get(server)
        return now_s - (self._since_s if beat is None else beat.heard_s)

    def takes(self, server: int) -> bool:
        """Whether a server is alive and has room."""
        beat = self.beats.get(server)
        return beat is not None and beat.alive and beat.status.state == "serving"

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
        that this leader has not heard of yet counts by its share of the volume. What was written since a heartbeat
        counts as if it did not shrink, until the next one.
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
                written = max(stat.bytes - beat.file_bytes, 0) * self.replicas // len(counted)
                free += max(beat.status.capacity_bytes - beat.status.used_bytes - written, 0)
        return msgspec.structs.replace(
            stat, total_bytes=total // self.replicas, free_bytes=min(free, total) // self.replicas
        )

    def stored_bytes(self) -> int:
        return sum(beat.status.used_bytes for beat in self.beats.values())

    # --- placement -------------------------------------------------------------------------------------------

    def table_change(
        self, servers: Sequence[ServerRecord], table: Table, epoch: int, now_s: float, strategy: str = ""
    ) -> Optional[SetTable]:
        """Return the next step towards the ideal table of a volume that holds nothing and that nobody writes to, None
        where there is none. The first one waits TABLE_SETTLE_S for all servers that are expected. ``strategy``: the
        volume's, empty while it has none; then it gets that of the configuration."""
        strategy = strategy or self.strategy
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
        wanted = ideal(candidates, self.replicas, groups, strategy)
        current = table or ((),) * groups
        items = [TableItem(group, row) for group, row in enumerate(wanted) if row != current[group]]
        if not items:
            return None
        return SetTable(epoch, tuple(items[:TABLE_ITEMS_MAX]), 0 if table else groups, strategy=strategy)
