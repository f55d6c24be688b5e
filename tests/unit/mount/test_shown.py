"""Attributes of directories that the kernel is told without our being asked: what is promised is taken back."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import trio

from fusefs.mount.caching import ARRIVAL_S, WANTED_S, KernelCache
from fusefs.mount.kernel import MARGIN_S, KernelView
from fusefs.mount.names import Busy
from fusefs.mount.notify import Notifier
from metadata.api import Attr

from .test_caching import Kernel, Leased


@pytest.fixture
def leased() -> Leased:
    return Leased()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


class Table:
    """Stands in for the extension; ``answered`` says how long ago it was asked."""

    def __init__(self) -> None:
        self.shown: dict[int, float] = {}
        self.names: dict[int, dict[bytes, int] | None] = {}
        self.answered: dict[int, float] = {}

    def show(self, attr: Attr, unit_bytes: int, left_s: float, names: dict[bytes, int] | None) -> None:
        self.shown[attr.ino] = left_s
        self.names[attr.ino] = names

    def hide(self, ino: int) -> float | None:
        self.shown.pop(ino, None)
        return self.answered.get(ino)

    def hide_all(self) -> None:
        self.shown.clear()


def made(leased: Leased, table: Table) -> KernelCache:
    return KernelCache(leased, KernelView(), Notifier(None), lambda: leased.now_s, Busy(), shown=table)


def test_no_longer_than_they_are_leased(leased: Leased, kernel: Kernel) -> None:
    table = Table()
    cache = made(leased, table)
    cache.show(5)
    assert table.shown == {5: pytest.approx(10.0 - MARGIN_S)} and table.names == {5: {b"n": 5}}
    leased.now_s, leased.until_s = 2.0, 12.0
    cache.show(5)
    assert table.shown == {5: pytest.approx(8.0 - MARGIN_S)}, "what was promised before still does"
    leased.now_s = 9.0
    cache.show(5)
    assert table.shown == {5: pytest.approx(3.0 - MARGIN_S)}
    table.shown.clear()
    leased.now_s = 12.0
    cache.show(5)
    leased.attrs = False
    leased.now_s = 0.0
    cache.show(6)
    assert not table.shown


async def test_what_is_promised_is_recalled(leased: Leased, kernel: Kernel, autojump_clock: object) -> None:
    table = Table()
    cache = made(leased, table)
    cache.show(5)
    await cache.forget([5])
    assert kernel.forgot == [5] and not table.shown
    cache.show(5)
    assert not table.shown, "others want it, and would have to wait"
    leased.now_s = WANTED_S
    cache.show(5)
    cache.show(6)
    assert table.shown.keys() == {5, 6}
    await cache.forget_all()
    assert sorted(kernel.forgot) == [5, 5, 6] and not table.shown


async def test_an_answer_has_to_arrive(leased: Leased, kernel: Kernel, autojump_clock: object) -> None:
    """As one that was given by us: the kernel would take a later one for void."""
    table = Table()
    cache = made(leased, table)
    leased.now_s = 1.0
    cache.show(5)
    began = trio.current_time()
    await cache.forget([5])
    assert trio.current_time() == began
    leased.now_s = 1.0 + WANTED_S
    cache.show(5)
    table.answered[5] = 0.0
    await cache.forget([5])
    assert trio.current_time() - began >= ARRIVAL_S
    leased.now_s = 1.0 + 2 * WANTED_S
    cache.show(5)
    assert not cache.expire([5])


def test_what_changes_is_hidden(leased: Leased, kernel: Kernel) -> None:
    table = Table()
    cache = made(leased, table)
    for ino in (5, 6, 7):
        cache.show(ino)
    cache.changed((5, 6))
    assert table.shown.keys() == {7}
    cache.expire([7])
    assert not table.shown and kernel.forgot == [7]


def test_the_table() -> None:
    """In a process of its own, because it is one for all."""
    script = """
        import sys, time
        from fusefs.mount.interpose import extension as table
        from tests.unit.mount.attrs import attr

        assert table is not None
        assert table.hide(5) is None
        names = {b"x": 7}
        held = sys.getrefcount(names)
        table.show(attr(5), 4096, 10.0, names)
        assert sys.getrefcount(names) == held + 1
        table.show(attr(5 + 1024), 4096, 10.0, names)
        assert sys.getrefcount(names) == held + 1, "it took the place"
        table.show(attr(5), 4096, 10.0, None)
        assert sys.getrefcount(names) == held, "not all names are known"
        assert table.hide(5) is None, "it was shown, and nobody asked"
        for forget in (lambda: table.hide(5), table.hide_all):
            table.show(attr(5), 4096, 10.0, names)
            forget()
            assert sys.getrefcount(names) == held
        for wrong in (
            (attr(5), 4096, 1.0), (5, 4096, 1.0, None), (attr(5), "x", 1.0, None), (attr(5), 4096, "x", None),
            (attr(5), 4096, 1.0, [b"x"]),
        ):
            try:
                table.show(*wrong)
            except (TypeError, AttributeError):
                continue
            sys.exit(f"{wrong} was taken")
        try:
            table.hide("x")
        except TypeError:
            sys.exit(0)
        sys.exit("a name was taken")
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert not ended.returncode, ended.stderr
