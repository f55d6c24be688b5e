"""The placement table as those know it who put and who store, and how one that is behind catches up. Pure.

The metadata service makes the table; each change of it has an epoch, and each row the epoch that changed it last. So
what somebody lacks who knows the table of some epoch are the rows that changed later: a *difference*. One that lacks
much gets it in parts, ordered by (epoch of the last change, group), and goes on from the *place* that he has reached.
A row that changes meanwhile moves behind that place, so nothing is missed however long it takes. Only with the last
part is the new epoch known; until then the rows that came are true already, and make the others' requests stale.

Differences may come twice, late, in any order, and from several senders: one that does not follow what is known, or
brings nothing new, is left alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Optional

import msgspec

from node.wire.limits import PLACEMENT_GROUPS_MAX, ROW_SERVERS_MAX
from storage.order import group_of, is_table_length

Place = tuple[int, int]
"""All rows are known whose (epoch of the last change, group) is at most this."""

_END = PLACEMENT_GROUPS_MAX  # behind every group


def place_of(epoch: int) -> Place:
    """Return the place of one who knows the whole table of an epoch, 0: nothing."""
    return (epoch, _END) if epoch else (0, 0)


class GroupRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A placement group: its ordered servers since epoch ``changed``. ``filling`` ones may lack what is older;
    ``leaving`` ones are read like others, but a put on them does not count."""

    group: int
    changed: int
    servers: tuple[int, ...]
    filling: tuple[int, ...] = ()
    leaving: tuple[int, ...] = ()


class TableDifference(msgspec.Struct, frozen=True, array_like=True):
    """The rows of a table of ``epoch`` with ``groups`` rows that lie behind ``base`` and not behind ``reached``."""

    base: Place
    reached: Place
    epoch: int
    groups: int
    rows: tuple[GroupRow, ...]

    @property
    def last(self) -> bool:
        """Whether nothing of the table's changes is left behind this part."""
        return self.reached == place_of(self.epoch)


class PlacementTable:
    """What one process knows of the table. ``epoch`` 0: nothing yet."""

    def __init__(self) -> None:
        self.epoch = 0  # of which everything is known
        self.reached: Place = (0, 0)
        self._sender_epoch = 0  # of the parts that came since ``epoch`` was complete
        self._rows: list[GroupRow] = []
        self._order: list[Place] = []  # of the rows as they changed, sorted; with entries of rows that changed again

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Sequence[GroupRow]:
        """All rows by group."""
        return self._rows

    @property
    def complete(self) -> bool:
        """Whether no part of a difference is still to come."""
        return self.reached == place_of(self.epoch)

    def row_of(self, block: bytes) -> Optional[GroupRow]:
        """Return the row of a block's group, None while the table is empty."""
        return self._rows[group_of(block, len(self._rows))] if self._rows else None

    def take(self, difference: TableDifference) -> bool:
        """Take what another one knows; whether it brought anything. One that makes no sense changes nothing."""
        if not self._follows(difference) or not _is_sound(difference):
            return False
        for group in range(len(self._rows), difference.groups):
            self._rows.append(GroupRow(group, 0, ()))
        for row in difference.rows:
            if row.changed > self._rows[row.group].changed:
                self._rows[row.group] = row
                self._order.append((row.changed, row.group))
        if len(self._order) > 2 * len(self._rows):
            self._order = [(row.changed, row.group) for row in self._rows if row.changed]
        self._order.sort()
        self.reached = difference.reached
        self._sender_epoch = difference.epoch
        if difference.last:
            self.epoch = difference.epoch
        return True

    def _follows(self, difference: TableDifference) -> bool:
        """Whether it brings something new and leaves no gap. The parts of one difference come from the table of one
        epoch, or a later one: an older one may have rows before ``reached`` that a later one has behind it."""
        if not difference.base <= self.reached < difference.reached:
            return False
        if self._rows and difference.groups != len(self._rows):
            return False
        return self.complete or difference.epoch >= self._sender_epoch

    def difference(self, base: Place, rows_max: int) -> Optional[TableDifference]:
        """Return what one at ``base`` lacks, or the first part of it, at most ``rows_max`` rows; None where he lacks
        nothing, or this table is not complete itself."""
        if not self.complete or base >= self.reached or not self._rows:
            return None
        behind = self._order[bisect_right(self._order, base) :]
        places = [place for place in behind if self._rows[place[1]].changed == place[0]]
        reached = self.reached if len(places) <= rows_max else places[rows_max - 1]
        rows = tuple([self._rows[group] for _, group in places[:rows_max]])
        return TableDifference(base, reached, self.epoch, len(self._rows), rows)

    def stale(self, blocks: Sequence[bytes], pg_epoch: int) -> list[int]:
        """Return the positions of the blocks whose group changed since ``pg_epoch``. An epoch of 0 says nothing."""
        if not pg_epoch or not self._order or pg_epoch >= self._order[-1][0]:
            return []
        rows, count = self._rows, len(self._rows)
        return [at for at, block in enumerate(blocks) if rows[group_of(block, count)].changed > pg_epoch]


def _is_sound(difference: TableDifference) -> bool:
    if not is_table_length(difference.groups) or difference.reached > place_of(difference.epoch):
        return False
    return all(
        0 <= row.group < difference.groups and difference.base < (row.changed, row.group) <= difference.reached
        and len(row.servers) <= ROW_SERVERS_MAX for row in difference.rows
    )
