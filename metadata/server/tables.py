"""The placement table as the leader tells it to chunk servers: each gets what changed since it last heard."""

from __future__ import annotations

from typing import Optional

from metadata.state.machine import Machine
from node.wire.limits import TABLE_ROWS_MAX
from storage.api import GroupRow, Place, PlacementTable, TableDifference, place_of


class Tables:
    """Differences of the table of a machine. A change of it is looked at once, not once for each server."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._table = PlacementTable()

    def behind(self, reached: Place) -> Optional[TableDifference]:
        """Return what one who has reached that place lacks, at most TABLE_ROWS_MAX rows of it; None: nothing."""
        machine, known = self._machine, self._table.epoch
        if known != machine.pg_epoch:
            rows = tuple([
                GroupRow(number, group.changed, group.servers, group.filling, group.leaving)
                for number, group in enumerate(machine.groups) if group.changed > known
            ])
            epoch = machine.pg_epoch
            self._table.take(TableDifference(place_of(known), place_of(epoch), epoch, len(machine.groups), rows))
        return self._table.difference(reached, TABLE_ROWS_MAX)
