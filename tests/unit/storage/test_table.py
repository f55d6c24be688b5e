"""Differences of the placement table: whoever takes them, in whatever order they come, ends with the whole table."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from storage.api import GroupRow, PlacementTable, TableDifference, place_of
from tests.harness import seed

GROUPS = 16


class Truth:
    """The table as its maker has it, and every version that there ever was."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.table = PlacementTable()
        self.versions: dict[int, list[GroupRow]] = {}
        self.change(range(GROUPS))

    def change(self, groups: object = None) -> None:
        """Another epoch."""
        epoch = self.table.epoch + 1
        chosen = list(groups) if groups is not None else self.rng.sample(  # type: ignore[call-overload]
            range(GROUPS), self.rng.choice((0, 1, 1, 2, 5, GROUPS)))
        rows = tuple([self.row(group, epoch) for group in chosen])
        base = place_of(epoch - 1)
        assert self.table.take(TableDifference(base, place_of(epoch), epoch, GROUPS, rows))
        self.versions[epoch] = list(self.table.rows)

    def row(self, group: int, epoch: int) -> GroupRow:
        servers = tuple(self.rng.sample(range(1, 9), 3))
        return GroupRow(group, epoch, servers, servers[:1] if self.rng.random() < 0.3 else ())


def parts(sender: PlacementTable, reader: PlacementTable, rows_max: int) -> Iterator[TableDifference]:
    """What a sender says to one who asks until there is nothing more."""
    while (found := sender.difference(reader.reached, rows_max)) is not None:
        yield found
        if not reader.take(found):
            return


@pytest.mark.parametrize("round_", range(40))
def test_differences_make_the_whole_table(round_: int) -> None:
    """A reader hears parts from the maker, from others that are behind, twice, late, and while the table changes."""
    rng = random.Random(seed("differences") + round_)
    truth = Truth(rng)
    readers = [PlacementTable() for _ in range(4)]
    sent: list[TableDifference] = []
    for _ in range(300):
        if rng.random() < 0.2:
            truth.change()
        reader = rng.choice(readers)
        before = reader.epoch, reader.reached
        if sent and rng.random() < 0.3:
            reader.take(rng.choice(sent))  # late, a duplicate, or meant for somebody else
        else:
            sender = truth.table if rng.random() < 0.5 else rng.choice(readers)
            found = sender.difference(reader.reached, rng.choice((1, 3, 100)))
            if found is not None:
                sent.append(found)
                if rng.random() < 0.8:
                    assert reader.take(found) == (sender.epoch >= reader._sender_epoch or reader.complete)
        assert (reader.epoch, reader.reached) >= before, "never back"
        if reader.complete and reader.epoch:
            assert list(reader.rows) == truth.versions[reader.epoch]
    for reader in readers:
        list(parts(truth.table, reader, 3))
        assert list(reader.rows) == list(truth.table.rows) and reader.epoch == truth.table.epoch


def test_only_the_rows_that_changed_travel() -> None:
    truth = Truth(random.Random(1))
    reader = PlacementTable()
    assert sum(len(part.rows) for part in parts(truth.table, reader, 100)) == GROUPS
    truth.change([3, 5])
    truth.change([5])
    (part,) = parts(truth.table, reader, 100)
    assert [row.group for row in part.rows] == [3, 5] and part.last
    truth.change([])
    (part,) = parts(truth.table, reader, 100)
    assert part.rows == () and reader.epoch == 4
    assert truth.table.difference(place_of(9), 100) is None, "he knows more"


def test_parts_are_bounded_and_the_epoch_comes_with_the_last() -> None:
    truth = Truth(random.Random(2))
    reader = PlacementTable()
    seen = []
    for part in parts(truth.table, reader, 5):
        seen.append((len(part.rows), reader.epoch))
        if len(seen) == 2:
            truth.change([0, 15])  # one that was sent already, and one that was not
    assert [count for count, _ in seen] == [5, 5, 5, 2] and all(epoch == 0 for _, epoch in seen)
    assert reader.epoch == 2 and list(reader.rows) == list(truth.table.rows)


def test_parts_of_an_older_table_do_not_complete_those_of_a_newer_one() -> None:
    """Group 3 changed in epochs 2 and 4. Who has heard of epoch 4 up to 2 lacks it; one who knows only 3 believes it
    was told before."""
    truth = Truth(random.Random(3))
    reader, older = PlacementTable(), PlacementTable()
    list(parts(truth.table, reader, 100))
    truth.change([1, 3])
    truth.change([2])
    list(parts(truth.table, older, 100))
    truth.change([3])
    first = truth.table.difference(reader.reached, 1)
    assert first is not None and reader.take(first) and not reader.complete
    wrong = older.difference(reader.reached, 100)
    assert wrong is not None and not reader.take(wrong)
    list(parts(truth.table, reader, 1))
    assert list(reader.rows) == list(truth.table.rows)


def test_what_makes_no_sense_changes_nothing() -> None:
    truth = Truth(random.Random(4))
    reader = PlacementTable()
    list(parts(truth.table, reader, 100))
    place, later = place_of(1), place_of(2)
    for rows, groups in (
        ((GroupRow(GROUPS, 2, (1,)),), GROUPS), ((GroupRow(-1, 2, (1,)),), GROUPS), ((GroupRow(0, 3, (1,)),), GROUPS),
        ((GroupRow(0, 1, (1,)),), GROUPS), ((), 2 * GROUPS), ((), 0), ((), 3), ((GroupRow(0, 2, (1,) * 99),), GROUPS),
    ):
        assert not reader.take(TableDifference(place, later, 2, groups, rows))
    assert not reader.take(TableDifference(place, later, 1, GROUPS, ()))
    assert not reader.take(TableDifference(later, place_of(3), 3, GROUPS, ())), "there is a gap"
    assert list(reader.rows) == list(truth.table.rows) and reader.epoch == 1
