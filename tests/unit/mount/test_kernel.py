"""Lookup counts, and when the kernel's pages may be kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.mount.kernel import KernelView
from node.wire.types import ROOT_INO
from tests.unit.mount.attrs import attr


def test_an_inode_is_known_until_the_last_reference_goes() -> None:
    view = KernelView()
    for _ in range(3):
        view.looked_up(attr(7))
    assert view.statistics() == {"inodes": 1, "references": 3, "cached": 0}
    assert view.forget([(7, 2)]) == []
    assert view.forget([(7, 1), (8, 1)]) == [7, 8]
    assert view.statistics()["inodes"] == 0


def test_clear_returns_what_was_known() -> None:
    view = KernelView()
    view.looked_up(attr(7))
    view.looked_up(attr(9))
    assert sorted(view.clear()) == [7, 9]
    assert view.clear() == []


def test_pages_are_kept_only_while_the_data_is_the_same() -> None:
    view = KernelView()
    view.looked_up(attr(7, version=1))
    assert not view.opened(7), "whatever the kernel holds, we did not see it being filled"
    assert view.opened(7)
    view.told(attr(7, version=2))
    assert not view.opened(7)
    assert view.opened(7)
    view.looked_up(attr(7, version=2))
    assert view.opened(7)


def test_pages_of_a_version_that_comes_back_are_not_kept() -> None:
    view = KernelView()
    view.looked_up(attr(7, version=1))
    view.opened(7)
    view.told(attr(7, version=2))
    view.told(attr(7, version=1))
    assert not view.opened(7)


def test_an_unknown_inode_keeps_nothing() -> None:
    view = KernelView()
    assert not view.opened(7)
    assert not view.opened(7)
    assert not view.told(attr(7))


def test_a_change_that_mtime_hides_is_reported_once() -> None:
    view = KernelView()
    view.looked_up(attr(7, version=1, mtime_ns=50, size=9))
    view.opened(7)
    assert view.told(attr(7, version=2, mtime_ns=50, size=9)), "the kernel compares mtime and size only"
    assert not view.told(attr(7, version=2, mtime_ns=50, size=9))


def test_a_change_that_the_kernel_sees_is_its_own_business() -> None:
    view = KernelView()
    view.looked_up(attr(7, version=1, mtime_ns=50, size=9))
    view.opened(7)
    assert not view.told(attr(7, version=2, mtime_ns=51, size=9))
    view.opened(7)
    assert not view.told(attr(7, version=3, mtime_ns=51, size=8))


def test_a_setattr_reply_hides_every_change_but_of_the_size() -> None:
    view = KernelView()
    view.looked_up(attr(7, version=1, mtime_ns=50, size=9))
    view.opened(7)
    assert view.told(attr(7, version=2, mtime_ns=51, size=9), compared=False)
    view.opened(7)
    assert not view.told(attr(7, version=3, mtime_ns=51, size=8), compared=False)
    view.opened(7)
    assert not view.told(attr(7, version=3, mtime_ns=60, size=8), compared=False), "the data are the same"


@given(st.lists(st.tuples(st.sampled_from("lf"), st.integers(1, 3), st.integers(1, 2))))
def test_counts_are_what_a_multiset_says(steps: list[tuple[str, int, int]]) -> None:
    view = KernelView()
    model: dict[int, int] = {}
    for kind, ino, count in steps:
        if kind == "l":
            view.looked_up(attr(ino))
            model[ino] = model.get(ino, 0) + 1
        else:
            left = model.pop(ino, 0) - count
            if left > 0:
                model[ino] = left
            assert view.forget([(ino, count)]) == ([] if left > 0 else [ino])
    assert view.statistics()["references"] == sum(model.values())
    assert sorted(view.clear()) == sorted(model)


def test_the_oldest_are_asked_for_in_turns() -> None:
    view = KernelView()
    for ino in (ROOT_INO, 5, 6, 7, 8):
        view.looked_up(attr(ino))
    assert view.oldest(3) == [5, 6]
    assert view.oldest(3) == [7, 8], "what the kernel keeps is not asked for again before the others"
    assert view.forget([(5, 1), (7, 1)]) == [5, 7] and len(view) == 3
