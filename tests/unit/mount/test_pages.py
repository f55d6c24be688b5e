"""Pages are dropped around what is locked, and one file does not wait for another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import pytest
import trio

from fusefs.mount.kernel import KernelView
from fusefs.mount.mapped import Mappable, Piece
from fusefs.mount.notify import Notifier
from fusefs.mount.pages import CHANGED, LOCKED_S, PAGES_S, Pages, Patience
from tests.harness import wait_for

PAGE = 4096
PAGES = 16


class Kernel(Notifier):
    """Files of some pages, which it drops in their order. It waits for each that is locked."""

    def __init__(self, *inos: int, pieces: bool = True) -> None:
        super().__init__(None)
        self._pieces = pieces
        self.shown = {ino: set(range(PAGES)) for ino in inos}
        self._locked: set[tuple[int, int]] = set()
        self._unlocked = threading.Condition()

    @property
    def pieces(self) -> bool:
        return self._pieces

    @contextmanager
    def locking(self, ino: int, *pages: int) -> Iterator[None]:
        locked = {(ino, page) for page in pages}
        self._locked |= locked
        try:
            yield
        finally:
            with self._unlocked:
                self._locked -= locked
                self._unlocked.notify_all()

    def forget_pages(self, ino: int, start: int = 0, end: Optional[int] = None) -> None:
        for page in range(start // PAGE, PAGES if end is None else end // PAGE):
            with self._unlocked:
                self._unlocked.wait_for(lambda page=page: (ino, page) not in self._locked)  # type: ignore[misc]
            self.shown[ino].discard(page)


def made(*inos: int, pieces: bool = True) -> tuple[Pages, Kernel, Mappable]:
    kernel, mapped = Kernel(*inos, pieces=pieces), Mappable()
    return Pages(KernelView(), mapped, kernel), kernel, mapped


async def test_pages_go_when_nothing_is_locked() -> None:
    pages, kernel, _ = made(5, 6)
    await pages.drop([5, 6], CHANGED)
    assert not any(kernel.shown.values()) and not any(pages.counts.values())


async def test_one_file_does_not_wait_for_another() -> None:
    pages, kernel, mapped = made(5, 6)
    with kernel.locking(5, 0), mapped.truncating(5, True):
        await pages.drop([5, 6], CHANGED)
        assert not kernel.shown[6] and len(kernel.shown[5]) == PAGES
    assert pages.counts == {"pages_around": 0, "pages_late": 1}
    assert wait_for(lambda: not kernel.shown[5], 10, "they come later")


@pytest.mark.parametrize("fills", [True, False])
async def test_all_around_what_is_locked_goes(fills: bool) -> None:
    """Who fills the page has to read anew, or what was taken before others changed it would be shown."""
    pages, kernel, mapped = made(5)
    held = [mapped.holds(5, start, end, fills=fills) for start, end in ((PAGE + 1, PAGE + 2), (3 * PAGE, 5 * PAGE))]
    with kernel.locking(5, 1, 3, 4):
        await pages.drop([5], CHANGED)
        assert kernel.shown[5] == {1, 3, 4}
        assert all(one.overtaken for one in held)
    assert pages.counts == {"pages_around": 1, "pages_late": 0}
    assert wait_for(lambda: not kernel.shown[5], 10, "they go as soon as they are unlocked")
    for one in held:
        mapped.gives(5, one)
    assert not mapped.read(5) and not mapped.locked(5)


async def test_what_is_held_and_not_locked_goes_too() -> None:
    """A request holds no pages any more when it is answered, and we hear of that later."""
    pages, kernel, mapped = made(5)
    mapped.holds(5, 0, 2 * PAGE, fills=True)
    mapped.holds(5, 7 * PAGE, 8 * PAGE, fills=False)
    with kernel.locking(5, 7):
        await pages.drop([5], CHANGED)
        assert kernel.shown[5] == {7}


async def test_pages_that_are_locked_meanwhile_are_gone_around() -> None:
    pages, kernel, mapped = made(5)
    mapped.holds(5, 0, PAGE, fills=False)
    with kernel.locking(5, 0), kernel.locking(5, 9):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pages.drop, [5], CHANGED)
            await trio.sleep(1.5 * LOCKED_S)
            mapped.holds(5, 9 * PAGE, 10 * PAGE, fills=False)
        assert kernel.shown[5] == {0, 9} and not pages.counts["pages_late"]


async def test_what_nobody_has_locked_is_waited_for() -> None:
    """The kernel writes pages back."""
    pages, kernel, _ = made(5)
    async with trio.open_nursery() as nursery:
        with kernel.locking(5, 3):
            nursery.start_soon(pages.drop, [5], CHANGED)
            await trio.sleep(PAGES_S / 4)
            assert kernel.shown[5]
    assert not kernel.shown[5] and not any(pages.counts.values())


async def test_they_come_late_where_the_kernel_drops_no_pieces() -> None:
    pages, kernel, mapped = made(5, pieces=False)
    held = mapped.holds(5, 0, PAGE, fills=True)
    with kernel.locking(5, 0):
        began = time.monotonic()
        await pages.drop([5], CHANGED)
        assert len(kernel.shown[5]) == PAGES and time.monotonic() - began < PAGES_S / 2
    assert pages.counts["pages_late"] == 1 and held.overtaken, "and are not filled with anything old"


def test_patience_is_lost_only_while_the_loop_runs() -> None:
    patience = Patience(0.01, 0.01, 0.01)
    assert patience.spend(10.0, locked=True, read=True) and patience.spend(10.0, locked=False, read=False)
    assert not [patience.spend(10.0, locked=True, read=True) for _ in range(5)][-1]


def test_pieces() -> None:
    mapped = Mappable()
    assert mapped.overtake(5) == [Piece(0, None, False)]
    for start, end in ((PAGE + 5, 3 * PAGE - 5), (2 * PAGE, 4 * PAGE), (9 * PAGE, 10 * PAGE)):
        mapped.holds(5, start, end, fills=True)
    spans = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 9), (9, 10), (10, None)]
    assert mapped.overtake(5) == [
        Piece(start * PAGE, None if end is None else end * PAGE, start in (1, 2, 3, 9)) for start, end in spans
    ]
