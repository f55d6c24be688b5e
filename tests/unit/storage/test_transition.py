"""What each kind of record does to each state of a block."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.catalog import Entry, State
from storage.records import Kind, Record
from storage.recover import transition

LIVE = Entry(1, 128, 50, 60, 5, 100, State.LIVE)
QUARANTINED = LIVE._replace(state=State.QUARANTINED)
DAMAGED = LIVE._replace(state=State.DAMAGED)


def record(kind: int, epoch: int = 3) -> Record:
    return Record(kind, b"n" * 32, 70, 80, epoch, 200, 9, 0)


def after(entry: Optional[Entry], kind: int, epoch: int = 3, good: bool = True) -> Optional[Entry]:
    return transition(entry, record(kind, epoch), 2, 256, good)


NEW = Entry(2, 256, 70, 80, 3, 200, State.LIVE)


@pytest.mark.parametrize(
    "entry,kind,epoch,expected",
    [
        (None, Kind.DATA, 3, NEW),
        (LIVE, Kind.DATA, 3, NEW._replace(epoch=5)),
        (QUARANTINED, Kind.DATA, 7, NEW._replace(epoch=7)),
        (DAMAGED, Kind.DATA, 3, NEW._replace(epoch=5)),
        (None, Kind.TOUCH, 3, None),
        (LIVE, Kind.TOUCH, 3, LIVE),
        (LIVE, Kind.TOUCH, 7, LIVE._replace(epoch=7)),
        (QUARANTINED, Kind.TOUCH, 7, LIVE._replace(epoch=7, time_s=200)),
        (DAMAGED, Kind.TOUCH, 7, DAMAGED._replace(epoch=7)),
        (None, Kind.DELETE, 3, None),
        (LIVE, Kind.DELETE, 3, QUARANTINED._replace(time_s=200)),
        (DAMAGED, Kind.DELETE, 3, None),
        (None, Kind.PURGE, 3, None),
        (QUARANTINED, Kind.PURGE, 3, None),
        (LIVE, Kind.MOVE, 3, NEW._replace(epoch=5, time_s=100)),
        (QUARANTINED, Kind.MOVE, 3, NEW._replace(epoch=5, time_s=100, state=State.QUARANTINED)),
        (None, Kind.MOVE, 3, NEW),
        (LIVE, 77, 3, LIVE),
        (None, 77, 3, None),
    ],
)
def test_transitions(entry: Optional[Entry], kind: int, epoch: int, expected: Optional[Entry]) -> None:
    assert after(entry, kind, epoch) == expected


def test_bad_bytes_replace_nothing() -> None:
    assert after(None, Kind.DATA, good=False) == NEW._replace(state=State.DAMAGED)
    for entry in (LIVE, QUARANTINED, DAMAGED):
        assert after(entry, Kind.DATA, good=False) == entry


def test_moving_a_damaged_block_with_good_bytes_heals_it() -> None:
    healed = after(DAMAGED, Kind.MOVE)
    assert healed is not None
    assert healed.state == State.LIVE


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(1, 9)), max_size=12), st.sampled_from([None, LIVE]))
def test_applying_a_history_again_changes_nothing(history: list[tuple[Kind, int]], start: Optional[Entry]) -> None:
    """A crash between the steps of a catalog's commit leaves entries newer than the position."""
    # A record of a block that is not there is never written, but for DATA.
    entry, written = start, []
    for at, (kind, epoch) in enumerate(history):
        if entry is None and kind != Kind.DATA:
            continue
        written.append((record(kind, epoch), at))
        entry = transition(entry, record(kind, epoch), 3, 1000 + at)
    again = entry
    for each, at in written:
        again = transition(again, each, 3, 1000 + at)
    assert again == entry
