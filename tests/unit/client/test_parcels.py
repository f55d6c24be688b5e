"""Parcels: many small groups in few puts, and none that waits longer than it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from fusefs.client.commit import Committer, Group, Run
from fusefs.client.files import File
from fusefs.client.parcels import LINGER_S, PARCEL_BYTES, PARCEL_GROUPS, Parcels
from node.wire.errors import Code, FsError


CARRIED_BYTES = 1000


class Puts:
    """A committer that notes what it is asked to put together, and what alone."""

    def __init__(self) -> None:
        self.together: list[tuple[float, list[Group]]] = []
        self.alone: list[Group] = []
        self.crowding: set[int] = set()  # inodes
        self.error: FsError | Exception | None = None

    def unsure(self, file: File, group: Group) -> list[int]:
        return [0] if file.ino in self.crowding else []

    def carry(self, file: File, group: Group) -> bool:
        group.carrying = group.bytes <= CARRIED_BYTES
        return group.carrying

    async def put_together(self, groups: Sequence[Group], deadline: float) -> None:
        self.together.append((trio.current_time(), list(groups)))
        await trio.sleep(1.0)
        if self.error is not None:
            raise self.error

    async def put(self, file: File, group: Group, deadline: float) -> None:
        self.alone.append(group)


def group(size: int = 100) -> Group:
    return Group([Run(0, size, [bytes(size)])], 1)


def play(script: Callable[[Puts, Parcels], Any]) -> Puts:
    puts = Puts()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            parcels = Parcels(cast(Committer, puts), nursery, lambda file: trio.current_time() + 30)
            await script(puts, parcels)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return puts


def test_what_comes_within_a_moment_goes_in_one_put() -> None:
    groups = [group() for _ in range(5)]

    async def script(puts: Puts, parcels: Parcels) -> None:
        for number, one in enumerate(groups):
            parcels.add(File(number, 1), one)
            await trio.sleep(LINGER_S / 10)
        for one in groups:
            await one.done.wait()

    puts = play(script)
    assert [(at, len(sent)) for at, sent in puts.together] == [(pytest.approx(LINGER_S), 5)]


@pytest.mark.parametrize("size, count", [(PARCEL_BYTES // 4, 4), (10, PARCEL_GROUPS)])
def test_much_does_not_wait(size: int, count: int) -> None:
    async def script(puts: Puts, parcels: Parcels) -> None:
        for number in range(count + 1):
            parcels.add(File(number, 1), group(size))
        await trio.lowlevel.checkpoint()

    puts = play(script)
    assert [(at, len(sent)) for at, sent in puts.together] == [(0.0, count), (pytest.approx(LINGER_S), 1)]


def test_who_waits_is_not_kept_waiting() -> None:
    one, other = group(), group()

    async def script(puts: Puts, parcels: Parcels) -> None:
        parcels.add(File(1, 1), one)
        parcels.hasten()
        parcels.hasten()  # of nothing
        parcels.add(File(2, 1), other)  # not with the one before, whose time is over
        await other.done.wait()
        assert one.done.is_set()

    puts = play(script)
    assert [(at, sent) for at, sent in puts.together] == [(0.0, [one]), (pytest.approx(LINGER_S), [other])]


def test_who_waits_for_the_commit_takes_along_what_is_small() -> None:
    small, large = group(CARRIED_BYTES), group(CARRIED_BYTES + 1)

    async def script(puts: Puts, parcels: Parcels) -> None:
        parcels.add(File(1, 1), small)
        parcels.add(File(2, 1), large)
        parcels.hasten(carry=True)
        assert small.done.is_set() and not large.done.is_set()
        await large.done.wait()

    assert [(at, sent) for at, sent in play(script).together] == [(0.0, [large])]


def test_a_group_that_may_crowd_a_chunk_goes_alone() -> None:
    crowding, carrying, plain = group(), group(), group()
    carrying.carrying = True

    async def script(puts: Puts, parcels: Parcels) -> None:
        puts.crowding.add(1)
        parcels.add(File(1, 1), crowding)
        parcels.add(File(2, 1), carrying)
        parcels.add(File(3, 1), plain)
        await plain.done.wait()
        assert crowding.done.is_set() and carrying.done.is_set()

    puts = play(script)
    assert puts.alone == [crowding, carrying] or puts.alone == [carrying, crowding]
    assert [sent for _, sent in puts.together] == [[plain]]


@pytest.mark.parametrize("error, code", [(FsError(Code.NO_SPACE), Code.NO_SPACE), (ValueError("a bug"), Code.IO)])
def test_after_an_error_each_is_done_with_it(error: Exception, code: Code) -> None:
    one, other = group(), group()

    async def script(puts: Puts, parcels: Parcels) -> None:
        puts.error = error
        parcels.add(File(1, 1), one)
        parcels.add(File(2, 1), other)
        await one.done.wait()
        await other.done.wait()

    play(script)
    assert one.error is not None and other.error is not None
    assert (one.error.code, other.error.code) == (code, code)
