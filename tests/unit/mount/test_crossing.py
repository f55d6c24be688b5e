"""Short answers that have crossed an invalidation are refused, once for each."""

from __future__ import annotations

import pytest

from fusefs.mount import crossing
from fusefs.mount.crossing import AGAIN_S, QUEUE_S, Crossings
from fusefs.mount.kernel import KernelView
from tests.unit.mount.attrs import attr


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crossings(clock: Clock) -> Crossings:
    return Crossings(clock)


def test_what_came_long_after_the_last_invalidation_is_answered(crossings: Crossings, clock: Clock) -> None:
    assert not crossings.refuses(5, 0, 4096, clock())
    with crossings.invalidating(5):
        pass
    clock.now_s += QUEUE_S + 0.01
    assert not crossings.refuses(5, 0, 4096, clock())


def test_what_was_asked_after_an_invalidation_was_not_crossed(crossings: Crossings, clock: Clock) -> None:
    idle_s = clock() - 100.0
    crossings.idle_s = lambda: idle_s
    assert crossings.asked_s() == clock() - QUEUE_S, "it has not waited longer in the kernel's queue"
    with crossings.invalidating(5):
        pass
    clock.now_s += 0.01
    assert crossings.crossed(5, crossings.asked_s()) and not crossings.crossed(6, crossings.asked_s())
    idle_s = clock()
    clock.now_s += 0.01
    assert crossings.asked_s() == idle_s, "before, the queue was empty"
    assert not crossings.crossed(5, crossings.asked_s())
    asked_s = crossings.asked_s()
    with crossings.invalidating(5):
        assert crossings.crossed(5, asked_s)


def test_what_came_before_or_just_after_is_refused_once(crossings: Crossings, clock: Clock) -> None:
    came_s = clock()
    clock.now_s += 5
    with crossings.invalidating(5):
        assert crossings.refuses(5, 0, 8192, came_s), "while the kernel is being told"
    assert not crossings.refuses(6, 0, 4096, came_s), "another inode"
    clock.now_s += QUEUE_S / 2
    assert not crossings.refuses(5, 4096, 8192, clock()), "a page of what was refused comes again"
    assert crossings.refuses(5, 8192, 12288, clock()), "it may have waited in the kernel's queue"
    assert crossings.statistics() == {"invalidated": 1, "refused": 2}


def test_what_comes_again_is_refused_again_where_it_was_crossed_again(crossings: Crossings, clock: Clock) -> None:
    with crossings.invalidating(5):
        pass
    assert crossings.refuses(5, 0, 4096, clock())
    clock.now_s += 0.01
    came_s = clock()
    clock.now_s += 0.01
    with crossings.invalidating(5):
        pass
    assert crossings.refuses(5, 0, 4096, came_s)


def test_what_was_crossed_in_the_queue_is_refused_when_it_comes_again(crossings: Crossings, clock: Clock) -> None:
    """The kernel asked again as soon as it was refused, and the request is read by us after another invalidation."""
    with crossings.invalidating(5):
        pass
    assert crossings.refuses(5, 0, 4096, clock())
    clock.now_s += 0.01
    with crossings.invalidating(5):
        pass
    clock.now_s += 0.01
    assert crossings.refuses(5, 0, 4096, clock())
    clock.now_s += 0.01
    assert not crossings.refuses(5, 0, 4096, clock())


def test_what_does_not_come_again_soon_is_another_read(crossings: Crossings, clock: Clock) -> None:
    with crossings.invalidating(5):
        pass
    assert crossings.refuses(5, 0, 4096, clock())
    clock.now_s += AGAIN_S + 0.01
    with crossings.invalidating(5):
        pass
    clock.now_s += 0.01
    assert crossings.refuses(5, 0, 4096, clock())


def test_many_invalidations_at_once_stand_for_all(
    crossings: Crossings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing, "INODES_MAX", 10)
    came_s = clock()
    with crossings.invalidating(*range(100, 120)):
        pass
    assert crossings.refuses(100, 0, 4096, came_s) and crossings.refuses(119, 0, 4096, came_s)
    assert crossings.statistics()["invalidated"] == 10


def shown(crossings: Crossings, size: int) -> KernelView:
    view = KernelView(crossings)
    view.looked_up(attr(5, size=size))
    return view


def test_an_answer_that_ends_where_the_file_is_shown_to_end_is_given(crossings: Crossings, clock: Clock) -> None:
    view = shown(crossings, 1000)
    with crossings.invalidating(5):
        pass
    assert not view.refuses(5, 0, 4096, 1000, clock())
    assert not view.refuses(5, 0, 500, 500, clock())
    assert view.refuses(5, 0, 4096, 999, clock())
    assert not view.refuses(6, 0, 4096, 0, clock()), "the kernel does not know it"


def test_what_the_kernel_was_told_while_that_may_be_void_does_not_count(crossings: Crossings, clock: Clock) -> None:
    view = shown(crossings, 1000)
    with crossings.invalidating(5):
        pass
    view.told(attr(5, size=10))
    assert view.refuses(5, 0, 4096, 10, clock())
    clock.now_s += QUEUE_S + 0.01
    view.told(attr(5, size=10))
    with crossings.invalidating(5):
        pass
    assert not view.refuses(5, 0, 4096, 10, clock())


def test_the_kernel_moves_the_end_itself(crossings: Crossings, clock: Clock) -> None:
    view = shown(crossings, 1000)
    view.grown(5, 2000)
    view.grown(5, 1500)
    view.grown(6, 10)
    with crossings.invalidating(5):
        pass
    assert view.refuses(5, 0, 4096, 1500, clock())
    view.cut(5, 0)
    view.cut(6, 0)
    assert not view.refuses(5, 8192, 12288, 0, clock())
