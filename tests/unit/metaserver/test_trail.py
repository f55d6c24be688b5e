"""The log does not reach back further than so many bytes."""

from __future__ import annotations

from metadata.raft.messages import Entry
from metadata.server.trail import Trail

MAX = 1600
STEP = MAX // 16


def entries(first: int, count: int, size: int) -> list[Entry]:
    return [Entry(index=index, term=1, data=bytes(size)) for index in range(first, first + count)]


def kept(sizes: dict[int, int], first: int) -> int:
    return sum(size for index, size in sizes.items() if index >= first)


def test_small_entries_are_left_to_their_number() -> None:
    trail = Trail(MAX)
    for index in range(1, 100):
        trail.appended(entries(index, 1, 10))
    assert trail.droppable() == 0


def test_the_oldest_go_when_they_are_too_large_together() -> None:
    trail = Trail(MAX)
    sizes: dict[int, int] = {}
    first, drops = 1, 0
    for index in range(1, 500):
        size = 1 + index * 37 % 150
        trail.appended(entries(index, 1, size))
        sizes[index] = size
        droppable = trail.droppable()
        if droppable:
            drops += 1
            first = droppable + 1
            assert MAX - STEP - 150 - STEP < kept(sizes, first) <= MAX + STEP + 150
            trail.dropped(droppable)
            assert trail.droppable() == 0
        assert kept(sizes, first) <= MAX + MAX // 4 + 2 * (STEP + 150)
    assert 10 < drops < 200, "not with each entry"


def test_what_was_replaced_does_not_count() -> None:
    trail = Trail(MAX)
    for _ in range(50):
        trail.appended(entries(1, 4, STEP))
    assert trail.droppable() == 0
    trail.appended(entries(5, 20, STEP))
    assert trail.droppable()
    trail.appended([])


def test_dropping_for_other_reasons_counts_too() -> None:
    trail = Trail(MAX)
    for index in range(1, 40):
        trail.appended(entries(index, 1, STEP))
    assert trail.droppable()
    trail.dropped(30)
    assert trail.droppable() == 0
