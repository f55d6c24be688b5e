"""What the kernel may believe, and how it is made to forget."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any, Optional

import pyfuse3
import pytest
import trio
from trio.testing import MockClock

from fusefs.mount.caching import (
    ARRIVAL_S, CONTENDED_MAX, CONTENDED_S, LOOKED_S, NEGATIVE_AFTER, OWED_S, WANTED_S, KernelCache,
)  # fmt: skip
from fusefs.mount.kernel import MARGIN_S, KernelView
from fusefs.mount.mapped import ASKS_S, Mappable
from fusefs.mount.names import Busy
from fusefs.mount.notify import Notifier
from fusefs.mount.options import parse_options
from metadata.api import Attr
from node.host.exitcodes import UsageError

from .attrs import Opened
from .attrs import attr as attr_of
from .attrs import until


@pytest.fixture
def autojump_clock() -> MockClock:
    """Jumps only when nothing has moved for a while: pages are dropped in threads, of which the clock knows nothing."""
    return MockClock(autojump_threshold=0.02)


class Leased:
    """Leases that end at a given time."""

    until_s = 10.0
    unleased = 0
    attrs = True  # are known

    def __init__(self) -> None:
        self.now_s = 0.0
        self.shared: set[int] = set()

    def known(self, ino: int) -> Attr | None:
        return attr_of(ino) if self.attrs else None

    def names(self, ino: int) -> dict[bytes, int] | None:
        return {b"n": ino} if self.attrs else None

    def attr_left_s(self, attr: Attr) -> float:
        return self.until_s - self.now_s

    def name_left_s(self, parent: int, name: bytes, ino: int) -> float:
        return self.until_s - self.now_s

    def name_known(self, parent: int, name: bytes) -> bool:
        return parent != self.unleased

    def alone(self, ino: int) -> bool:
        return ino not in self.shared


class Kernel:
    """Notes what it is told; does not know the inodes in ``unknown`` the first time. Names wait for ``lock``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forgot: list[int] = []
        self.pages: list[int] = []
        self.names: list[bytes] = []
        self.epochs = 0
        self.unknown: set[int] = set()
        self.lock = threading.Lock()
        monkeypatch.setattr(pyfuse3, "invalidate_inode", self._invalidate)
        monkeypatch.setattr("fusefs.mount.notify.os.write", self._write)
        monkeypatch.setattr("fusefs.mount.caching.LOCK_S", 30.0)  # or a busy machine looks like a lock

    def _invalidate(self, ino: int, attr_only: bool = False) -> None:
        (self.forgot if attr_only else self.pages).append(ino)
        if ino in self.unknown:
            self.unknown.discard(ino)
            raise OSError(errno.ENOENT, "not known")

    def _write(self, fd: int, data: bytes) -> int:
        if len(data) == 16:
            self.epochs += 1
        else:
            with self.lock:
                self.names.append(data[32:-1])
        return len(data)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def leased() -> Leased:
    return Leased()


def made(leased: Leased, fd: int | None = None) -> tuple[KernelCache, KernelView]:
    view = KernelView()
    return KernelCache(leased, view, Notifier(fd), lambda: leased.now_s, Busy()), view


def test_time_outs_end_before_the_leases(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased, 3)
    assert cache.attr_s(attr_of(5)) == cache.name_s(1, b"n", 5) == 10.0 - MARGIN_S
    leased.now_s = 10.0 - MARGIN_S
    assert cache.attr_s(attr_of(6)) == cache.name_s(2, b"n", 5) == 0.0


async def test_only_what_is_believed_is_recalled(leased: Leased, kernel: Kernel, autojump_clock: object) -> None:
    cache, _ = made(leased)
    cache.attr_s(attr_of(5))
    leased.now_s = 1.0
    await cache.forget([5, 6])
    await cache.forget([5])
    assert kernel.forgot == [5]
    cache.attr_s(attr_of(7))
    leased.now_s = 11.0
    await cache.forget_all()
    assert kernel.forgot == [5], "what the kernel does not believe any more is not recalled"


async def test_an_inode_on_its_way_is_recalled_until_it_is_known(
    leased: Leased, kernel: Kernel, autojump_clock: object
) -> None:
    cache, view = made(leased)
    view.looked_up(attr_of(5))
    cache.attr_s(attr_of(5))
    cache.attr_s(attr_of(6))
    kernel.unknown = {5, 6}
    await cache.forget([5, 6])
    assert sorted(kernel.forgot) == [5, 5, 6], "the kernel has given back the one that it has no reference to"


async def test_what_was_recalled_lately_is_contended(leased: Leased, kernel: Kernel, autojump_clock: object) -> None:
    cache, _ = made(leased)
    assert not cache.contended(5)
    await cache.forget([5])
    leased.now_s = 1.0
    await cache.forget([6])
    assert cache.contended(5) and cache.contended(6) and not cache.contended(7)
    leased.now_s = CONTENDED_S
    assert not cache.contended(5) and cache.contended(6)
    await cache.forget(range(10, 10 + 2 * CONTENDED_MAX))
    assert cache.statistics()["recalled"] == CONTENDED_MAX


class Dropped(Notifier):
    """Notes whose pages are dropped."""

    def __init__(self) -> None:
        super().__init__(None)
        self.dropped: list[int] = []

    def forget_pages(self, ino: int, start: int = 0, end: Optional[int] = None) -> None:
        assert (start, end) == (0, None)
        self.dropped.append(ino)


def with_pages(leased: Leased) -> tuple[KernelCache, KernelView, Mappable, Dropped]:
    view, mapped, notifier = KernelView(), Mappable(), Dropped()
    return KernelCache(leased, view, notifier, lambda: leased.now_s, Busy(), mapped=mapped), view, mapped, notifier


def opened(mapped: Mappable, view: KernelView, ino: int, flags: int) -> Any:
    handle: Any = Opened(ino=ino, flags=flags)
    view.looked_up(attr_of(ino))
    view.opened(ino)
    mapped.opened(handle, 0)
    return handle


async def test_pages_that_programs_may_have_changed_are_recalled(leased: Leased, kernel: Kernel) -> None:
    """Of what is open for reading and writing."""
    cache, view, mapped, notifier = with_pages(leased)
    handles = [opened(mapped, view, ino, flags) for ino, flags in ((5, os.O_RDWR), (6, os.O_WRONLY))]
    await cache.forget([5, 6, 7])
    await cache.forget_all()
    assert notifier.dropped == [5], "where there may be some"
    for ino in (5, 6):
        mapped.gives(ino, mapped.holds(ino, 0, 10, fills=True))
    await cache.forget_all()
    await cache.forget([5, 6, 7])
    assert notifier.dropped == [5, 5]
    for handle in handles:
        mapped.released(handle)
    await cache.forget([5, 6, 7])
    await cache.forget_all()
    assert notifier.dropped == [5, 5]


async def test_pages_that_may_be_mapped_for_reading_are_recalled(leased: Leased, kernel: Kernel) -> None:
    """Whoever looks at them there asks for no attributes: it does not matter whether the kernel believes any."""
    cache, view, mapped, notifier = with_pages(leased)
    handle = opened(mapped, view, 5, os.O_RDONLY)
    view.looked_up(attr_of(6))
    none: Any = Opened(ino=6, flags=os.O_RDONLY)
    mapped.opened(none, 0, kept=False)
    assert not cache.yields(5) and cache.yields(6) and not notifier.dropped
    await cache.forget([5, 6])
    await cache.forget([5, 6])
    assert notifier.dropped == [5] and not kernel.forgot
    mapped.fill(5)
    await cache.forget([5, 6])
    assert notifier.dropped == [5, 5] and not kernel.forgot
    mapped.fill(5)
    await cache.forget_all()
    assert notifier.dropped == [5, 5, 5]
    mapped.fill(5)
    mapped.released(handle)
    assert cache.yields(5)
    await cache.forget([5])
    await cache.forget_all()
    assert notifier.dropped == [5, 5, 5]


async def test_pages_that_nobody_has_open_go_at_the_next_opening(leased: Leased, kernel: Kernel) -> None:
    """Also where that was asked for before the recall and is answered after it; and nobody waits for them meanwhile."""
    cache, view, mapped, notifier = with_pages(leased)
    for ino in (5, 6, 7):
        mapped.released(opened(mapped, view, ino, os.O_RDONLY))
    for ino in (5, 7):
        cache.attr_s(attr_of(ino))
    assert view.opened(5)
    await cache.forget([5])
    assert kernel.forgot == [5] and not notifier.dropped
    assert not view.opened(5) and view.opened(5) and view.opened(6)
    assert cache.yields(6) and not view.opened(6)
    handle = opened(mapped, view, 7, os.O_RDONLY)
    await cache.forget([7])
    assert notifier.dropped == [7] and view.opened(7), "they are gone"
    mapped.released(handle)


async def test_no_size_that_a_reader_asks_for_is_made_void_for_the_sake_of_pages(
    leased: Leased, kernel: Kernel, autojump_clock: object
) -> None:
    """What he is told makes the kernel drop them. If he is told nothing new, or asks no more, they go all the same."""
    cache, view, mapped, notifier = with_pages(leased)
    opened(mapped, view, 5, os.O_RDONLY)

    async def filled_and_recalled() -> None:
        mapped.fill(5)
        await cache.forget([5])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        mapped.asking.enter(5)
        await filled_and_recalled()
        leased.now_s = 10 * OWED_S
        await trio.sleep(10 * OWED_S)
        assert not notifier.dropped, "he still waits for the answer"
        mapped.asking.leave(5)
        assert not view.told(attr_of(5))
        leased.now_s = 20 * OWED_S
        await trio.sleep(10 * OWED_S)
        assert notifier.dropped == [5], "nothing new"
        mapped.asked(5, leased.now_s)
        await filled_and_recalled()
        leased.now_s = 30 * OWED_S
        assert not view.told(attr_of(5, data_version=2, mtime_ns=9))
        await trio.sleep(10 * OWED_S)
        assert notifier.dropped == [5], "this the kernel compares"
        await filled_and_recalled()
        await trio.sleep(OWED_S / 4)
        assert notifier.dropped == [5]
        leased.now_s = 40 * OWED_S
        await trio.sleep(10 * OWED_S)
        assert notifier.dropped == [5, 5], "he asks no more"
        leased.now_s += ASKS_S
        await filled_and_recalled()
        assert notifier.dropped == [5, 5, 5], "he reads seldom"
        leased.now_s += WANTED_S
        mapped.asked(5, leased.now_s)
        assert cache.attr_s(attr_of(5))
        await filled_and_recalled()
        assert notifier.dropped == [5, 5, 5, 5], "what is believed is taken back in any case"
        nursery.cancel_scope.cancel()


async def test_a_recall_lets_replies_arrive(
    leased: Leased, kernel: Kernel, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel acts on one in the time of the thread that asked."""
    cache, view, mapped, notifier = with_pages(leased)
    opened(mapped, view, 5, os.O_RDONLY)
    leased.until_s = 20.0
    asked: list[set[int]] = []

    async def looked(threads: set[int]) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(threads)

    monkeypatch.setattr("fusefs.mount.caching.looked", looked)
    cache.asked_s(attr_of(5), 77)
    cache.asked_s(attr_of(5), 78)
    cache.asked_s(attr_of(5), 77)
    cache.attr_s(attr_of(5))
    began = trio.current_time()
    await cache.forget([5])
    assert trio.current_time() - began >= ARRIVAL_S and notifier.dropped == [5] == kernel.forgot
    assert {77, 78} in asked
    leased.now_s = 2.0
    cache.asked_s(attr_of(5), 77)
    leased.now_s += LOOKED_S
    mapped.fill(5)
    asked.clear()
    await cache.forget([5])
    assert not set().union(*asked), "long ago"


async def test_names_are_recalled_one_by_one(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased, 3)
    assert kernel.epochs == 1, "to see whether the kernel knows how"
    cache.name_s(1, b"n", 5)
    cache.listed_s(1, b"m", 6)
    cache.name_s(2, b"o", 7)
    await cache.forget([3])
    assert not kernel.names
    await cache.forget([1])
    await cache.forget([1])
    assert sorted(kernel.names) == [b"m", b"n"] and kernel.epochs == 1
    leased.now_s = WANTED_S
    assert cache.name_s(1, b"n", 5)


async def test_what_others_want_the_kernel_is_not_told(leased: Leased, kernel: Kernel) -> None:
    """It was recalled a moment ago, or made in a directory that others look at."""
    cache, _ = made(leased, 3)
    leased.shared = {1}
    assert cache.made_s(1, b"n", attr_of(5), new=True) == (0.0, 0.0) and not cache.attr_s(attr_of(5))
    assert all(cache.made_s(2, b"n", attr_of(6), new=True))
    assert cache.made_s(2, b"m", attr_of(7), new=False)[0] == 0, "the kernel does not compare it"
    assert cache.name_s(3, b"n", 5) and cache.attr_s(attr_of(8))
    await cache.forget([3, 8])
    assert not cache.name_s(3, b"n", 5) and not cache.attr_s(attr_of(8))
    assert cache.made_s(3, b"o", attr_of(9), new=True) == (0.0, 0.0), "whether or not the directory is ours again"
    assert not cache.attr_s(attr_of(9))
    leased.now_s = WANTED_S
    assert cache.name_s(3, b"n", 5) and cache.attr_s(attr_of(8)) and cache.attr_s(attr_of(5))


def test_what_the_kernel_was_told_of_may_be_shown_while_it_is_changed(leased: Leased, kernel: Kernel) -> None:
    cache, view = made(leased, 5)
    assert cache.expire([1, 5], [(1, b"n")]), "it was told nothing"
    cache.name_s(1, b"n", 5)
    assert not cache.expire([1, 5], [(1, b"n")]), "of the name"
    assert cache.expire([1, 5], [(1, b"m"), (2, b"n")])
    cache.attr_s(attr_of(5))
    assert not cache.expire([5]), "the answer may be on its way"
    cache.attr_s(attr_of(5))
    leased.now_s = 0.1
    assert cache.expire([5]) and cache.expire([5])
    cache.attr_s(attr_of(5))
    leased.now_s = 0.2
    kernel.unknown = {5}
    view.looked_up(attr_of(5))
    assert not cache.expire([5]), "the answer that names it has not arrived"
    cache.keeps_listing(7)
    assert not cache.expire([7]), "somebody reads its listing"
    cache.closed_listing(7)
    assert cache.expire([7])


async def test_a_recall_does_not_wait_for_a_request_under_way(leased: Leased, kernel: Kernel) -> None:
    """Rule 5: the kernel holds the lock of the directory until we answer, and we may wait for the leader."""
    cache, _ = made(leased, 3)
    cache.name_s(1, b"n", 5)
    with kernel.lock:
        cache._busy.enter(1)
        await cache.forget([1])
    assert kernel.epochs == 2 and not kernel.names
    assert not cache.name_s(1, b"n", 5) and cache.name_s(2, b"n", 5)
    leased.now_s = 2.5
    assert cache.name_s(1, b"n", 5)


async def test_a_recall_that_meets_a_lock_does_not_wait(leased: Leased, kernel: Kernel) -> None:
    """The request was on its way when the recall came."""
    cache, _ = made(leased, 3)
    cache.name_s(1, b"n", 5)
    with kernel.lock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.forget, [1])
            await trio.sleep(0.001)
            cache._busy.enter(1)
    assert kernel.epochs == 2
    assert cache._notifier.close(), "or its thread may tell the next test's kernel"


async def test_what_is_mounted_inside_is_not_taken_away(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased, 3)
    cache.name_s(1, b"n", 5)
    cache.crowded = True
    assert not cache.name_s(1, b"m", 6)
    cache._busy.enter(1)
    await cache.forget([1])
    assert kernel.epochs == 1 and kernel.names == [b"n"]


async def test_a_name_that_was_carried_over_is_recalled_too(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased, 3)
    cache.renaming(1, b"unheard", 2, b"of")
    cache.name_s(1, b"old", 5)
    cache.renaming(1, b"old", 2, b"new")
    cache.renamed(1, b"old", 2, b"new")
    await cache.forget([2])
    assert kernel.names == [b"new"]
    leased.unleased = 2
    cache.renaming(1, b"old", 2, b"next")
    cache.renamed(1, b"old", 2, b"next")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        await until(lambda: b"next" in kernel.names)
        nursery.cancel_scope.cancel()


async def test_a_revalidation_is_given_time_to_arrive(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased, 3)
    cache.name_again_s(1, b"n", 5, 77)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.forget, [1])
        await trio.sleep(0.01)
        assert not kernel.names
        cache.proven(77)
    assert kernel.names == [b"n"]


def test_a_missing_name_is_believed_when_it_is_asked_for_often(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased, 3)
    for _ in range(NEGATIVE_AFTER - 1):
        assert not cache.missing_s(1, b"n")
    assert cache.missing_s(1, b"n")
    cache.creating(1, b"n")
    assert not cache.missing_s(1, b"n")


def test_attributes_that_are_over_are_not_remembered(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased)
    for round in range(5):
        leased.until_s = leased.now_s + 10
        for ino in range(100):
            cache.attr_s(attr_of(1000 * round + ino))
        leased.now_s += 20
    assert cache.statistics()["attrs"] <= 200


def test_without_a_descriptor_no_name_is_believed(leased: Leased, kernel: Kernel) -> None:
    cache, _ = made(leased)
    assert not cache.name_s(1, b"n", 5) and not cache.missing_s(1, b"n")


async def test_after_the_end_the_kernel_is_told_nothing(leased: Leased, kernel: Kernel, autojump_clock: object) -> None:
    cache, _ = made(leased, 3)
    cache.attr_s(attr_of(5))
    cache.name_s(1, b"n", 5)
    cache._notifier.close()
    leased.now_s = 1.0
    await cache.forget([1, 5])
    assert not kernel.forgot and kernel.epochs == 1


def test_a_recall_makes_new_data_drop_pages_itself() -> None:
    """The kernel may not take the attributes that would make it do so."""
    view = KernelView()
    view.looked_up(attr_of(5, data_version=1, mtime_ns=1))
    view.opened(5)
    view.doubt([5])
    assert not view.told(attr_of(5, data_version=1, mtime_ns=1))
    view.doubt([5])
    assert view.told(attr_of(5, data_version=2, mtime_ns=2))
    assert not view.told(attr_of(5, data_version=3, mtime_ns=3)), "compared by the kernel, as before"
    view.doubt([5])
    assert not view.told(attr_of(5, data_version=4, mtime_ns=4), crossed=False), "it was asked for after the recall"
    assert view.told(attr_of(5, data_version=5, mtime_ns=4), crossed=False), "which the kernel does not see"


async def test_when_all_is_forgotten_only_what_is_told_of_is_in_doubt(
    leased: Leased, kernel: Kernel, autojump_clock: object
) -> None:
    """Who asked before, and is answered after it, would not look at an answer for which pages had to be dropped."""
    cache, view = made(leased)
    for ino in (5, 6):
        view.looked_up(attr_of(ino, data_version=1, mtime_ns=1))
        view.opened(ino)
    cache.attr_s(attr_of(6))
    leased.now_s = 1.0
    await cache.forget_all()
    assert kernel.forgot == [6]
    assert not view.told(attr_of(5, data_version=2, mtime_ns=2)) and view.told(attr_of(6, data_version=2, mtime_ns=2))


def test_the_mount_option() -> None:
    assert parse_options([]).leases is None and parse_options([]).cache_names
    assert parse_options(["leases=off"]).leases is False
    assert parse_options(["leases=on"]).leases is True and parse_options(["leases=on"]).cache_names
    assert parse_options(["leases=attributes"]).leases is True
    assert not parse_options(["leases=attributes"]).cache_names
    with pytest.raises(UsageError):
        parse_options(["leases=maybe"])


async def test_a_listing_is_kept_until_it_is_recalled_or_changed_from_here(
    leased: Leased, kernel: Kernel, autojump_clock: object
) -> None:
    cache, _ = made(leased)
    assert not cache.keeps_listing(1) and cache.keeps_listing(1)
    await cache.forget([1])
    assert not cache.keeps_listing(1) and cache.keeps_listing(1)
    await cache.forget_all()
    assert not cache.keeps_listing(1) and cache.keeps_listing(1)
    cache.expire([1])
    assert not cache.keeps_listing(1)


async def test_pages_of_open_directories_go_with_a_recall(leased: Leased, kernel: Kernel) -> None:
    cache, _, _, notifier = with_pages(leased)
    cache.keeps_listing(1)
    cache.keeps_listing(1)
    cache.closed_listing(1)
    await cache.forget([1, 2])
    await cache.forget_all()
    assert notifier.dropped == [1, 1]
    cache.closed_listing(1)
    await cache.forget([1])
    await cache.forget_all()
    assert notifier.dropped == [1, 1]
