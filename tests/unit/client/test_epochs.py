"""A mount whose placement table is old: who refuses it tells it, and what it commits is on the right replicas."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Optional

import pytest
import trio
import trio.testing

from metadata import api
from metadata.state.command import CommandKind, SetTable, TableItem
from node.wire.limits import BLOCK_BYTES_MAX
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO
from storage import api as storage
from storage.api import GroupRow, TableDifference, place_of

from .world import GROUPS, Gate, World, contents, submits

RDWR = os.O_RDWR


def rows_of(world: World, since: int) -> tuple[GroupRow, ...]:
    return tuple([
        GroupRow(number, group.changed, group.servers, group.filling, group.leaving)
        for number, group in enumerate(world.machine.groups) if group.changed > since
    ])


def tell(world: World, servers: Sequence[int], since: int = 0) -> None:
    """Chunk servers hear of the table."""
    epoch = world.machine.pg_epoch
    for server in servers:
        world.stores[server].known.take(
            TableDifference(place_of(since), place_of(epoch), epoch, GROUPS, rows_of(world, since))
        )


def move(world: World, row: tuple[int, ...], filling: tuple[int, ...] = ()) -> None:
    """Every group gets this row."""
    items = tuple([TableItem(group, row, filling) for group in range(GROUPS)])
    world.apply(CommandKind.SET_TABLE, SetTable(world.machine.pg_epoch, items))


def asked(world: World) -> int:
    """How often the map was asked for."""
    return sum(isinstance(request, api.GetClusterMap) for request in world.member.requests)


def holders(world: World, data: bytes) -> list[int]:
    block = storage.name_block(data)
    return [ident for ident, store in world.stores.items() if block in store.blocks]


def commits(world: World) -> list[api.Commit]:
    return [op for op in world.ops(api.Commit) if op.extents]


@pytest.mark.parametrize("size", [1000, BLOCK_BYTES_MAX])
@pytest.mark.parametrize("chain", [False, True])
async def test_a_refused_put_goes_to_the_new_replicas_at_once(
    size: int, chain: bool, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr("fusefs.client.codec.THREAD_BYTES_MIN", 1 << 40)
    world = World(servers=6, replicas=3)
    move(world, (1, 2, 3))
    tell(world, (1, 2, 3, 4, 5, 6))
    async with world.mount(chain=chain) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"first")
        await volume.fsync(handle)
        before, epoch = asked(world), world.machine.pg_epoch
        move(world, (4, 5, 6))
        tell(world, (1, 2, 3), since=epoch)
        data = os.urandom(size)
        begun = trio.current_time()
        await volume.write(handle, 0, data)
        await volume.fsync(handle)
        assert asked(world) == before, "whoever refused said all that was needed"
        assert trio.current_time() == begun, "nobody waited"
        await trio.testing.wait_all_tasks_blocked()
        assert holders(world, data) == [4, 5, 6]
        (commit,) = commits(world)[1:]
        assert commit.pg_epoch == world.machine.pg_epoch
        assert volume.statistics()["placement"]["learned"] == 1
        await volume.release(handle)
        assert await contents(volume, attr.ino) == data


async def test_what_a_server_that_is_behind_took_is_put_again(autojump_clock: object) -> None:
    """Only one of three servers knows that the row changed; the other two would be enough for the old one."""
    world = World(servers=4, replicas=3)
    move(world, (1, 2, 3))
    tell(world, (1, 2, 3, 4))
    async with world.mount() as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"first")
        await volume.fsync(handle)
        epoch = world.machine.pg_epoch
        move(world, (4, 3, 2), filling=(4,))
        tell(world, (1,), since=epoch)
        slow = Gate(lambda request: isinstance(request, storage.Put))
        for late in (2, 3):
            world.stores[late].before.append(slow)
        async with trio.open_nursery() as nursery:
            await volume.write(handle, 0, b"second")
            nursery.start_soon(volume.fsync, handle)
            await slow.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            slow.opened.set()
        assert len(commits(world)) == 2, "none was refused"
        await trio.testing.wait_all_tasks_blocked()
        assert holders(world, b"second") == [2, 3, 4]
        await volume.release(handle)


async def test_a_row_that_changes_between_put_and_commit(autojump_clock: object) -> None:
    """Nobody could tell in time: the commit is refused, and the second one has copies in the new row."""
    world = World(servers=6, replicas=3)
    move(world, (1, 2, 3))
    async with world.mount() as volume:
        gate = Gate(submits(api.Commit))
        world.member.before.append(gate)
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await gate.reached.wait()
            move(world, (4, 5, 6))
            gate.opened.set()
        assert [commit.pg_epoch for commit in commits(world)] == [2, 3]
        await trio.testing.wait_all_tasks_blocked()
        assert holders(world, b"data") == [1, 2, 3, 4, 5, 6]
        await volume.release(handle)


async def test_a_difference_that_names_a_new_server_has_the_map_asked_for(autojump_clock: object) -> None:
    world = World(servers=3, replicas=3)
    tell(world, (1, 2, 3))
    async with world.mount() as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"first")
        await volume.fsync(handle)
        world.add_server(4)
        epoch, before = world.machine.pg_epoch, asked(world)
        move(world, (4, 2, 3))
        tell(world, (1, 2, 3), since=epoch)
        await volume.write(handle, 0, b"second")
        await volume.fsync(handle)
        assert asked(world) == before + 1
        await trio.testing.wait_all_tasks_blocked()
        assert holders(world, b"second") == [2, 3, 4]
        await volume.release(handle)


async def test_readers_of_a_former_member_are_not_alarmed(caplog: pytest.LogCaptureFixture) -> None:
    world = World(servers=2)
    move(world, (1,))
    tell(world, (1, 2))
    async with world.mount() as writer, world.mount() as volume:
        handle, attr = await writer.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await writer.write(handle, 0, b"data")
        await writer.fsync(handle)
        await writer.release(handle)
        await volume._placement.refresh(trio.current_time() + 10)
        epoch = world.machine.pg_epoch
        move(world, (2,))
        world.stores[2].blocks, world.stores[1].blocks = world.stores[1].blocks, {}
        tell(world, (1, 2), since=epoch)
        assert await contents(volume, attr.ino) == b"data"
        assert volume.statistics()["placement"]["learned"] == 1
        assert not world.stores[1].suspects and not caplog.records


@pytest.mark.parametrize("moved", [False, True])
async def test_late_and_repeated_differences_take_nothing_back(moved: bool) -> None:
    """An answer that carries a difference arrives after newer ones."""
    world = World(servers=4)
    move(world, (1,))
    tell(world, (1, 2, 3, 4))
    async with world.mount() as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"first")
        await volume.fsync(handle)
        placement = volume._placement
        told: list[Optional[TableDifference]] = []
        for row in ((2,), (3,), (4,)):
            epoch = world.machine.pg_epoch
            move(world, row)
            tell(world, (1,), since=epoch)
            told.append(world.stores[1].known.news(2))
        for difference in (told[1], told[0], told[1], told[2], told[0], None, told[2]):
            placement.learn(difference)
        assert placement.servers_of(b"x" * 32) == (4,) and placement.pg_epoch == world.machine.pg_epoch
        assert volume.statistics()["placement"]["learned"] == 2
        if moved:
            await placement.refresh(trio.current_time() + 10)
            assert placement.servers_of(b"x" * 32) == (4,)
        await volume.release(handle)


async def test_who_waits_for_the_map_that_another_asked_for_waits_no_longer_than_he_may(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(request: object, deadline: float) -> None:
        await trio.sleep_until(deadline)
        raise FsError(Code.TIMEOUT, "no answer")

    async with World(servers=1).mount() as volume:
        monkeypatch.setattr(volume._session, "call", silent)
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def refresh(within_s: float) -> None:
                with pytest.raises(FsError) as error:
                    await volume._placement.refresh(begin + within_s)
                assert error.value.code is Code.TIMEOUT and trio.current_time() == pytest.approx(begin + within_s)

            for within_s in (10.0, 1.0, 5.0):
                nursery.start_soon(refresh, within_s)
                await trio.testing.wait_all_tasks_blocked()
        monkeypatch.undo()
        await volume._placement.refresh(trio.current_time() + 10)


async def test_filling_members_are_asked_last() -> None:
    """However fast they are: what they lack would have to be asked for twice."""
    world = World(servers=4, replicas=3)
    move(world, (4, 1, 2, 3), filling=(4, 1))
    async with world.mount() as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        await volume.fsync(handle)
        fetcher = volume._blocks._fetcher
        orders = {tuple(fetcher.order(b"b" * 32)) for _ in range(6)}
        assert orders == {(2, 3, 4, 1), (3, 2, 4, 1)}
        now = trio.current_time()
        for server in (2, 3):
            fetcher.hedging.silent(server, 1000, 100.0, now)
            fetcher.hedging.silent(server, 1000, 100.0, now)
        assert all(fetcher.order(b"b" * 32)[2:] == [4, 1] for _ in range(6))
        await volume.release(handle)


async def test_a_wrong_epoch_from_the_future_harms_nobody() -> None:
    """A table that the metadata service never made (a broken client's word) changes no acknowledged write."""
    world = World(servers=3, replicas=3)
    tell(world, (1, 2, 3))
    for store in world.stores.values():
        store.known.heard(1 << 20)
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        await volume.fsync(handle)
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"data"
    assert len(commits(world)) == 1
