"""Clients against the garbage collector, interleaved exactly: what is committed stays, what is not goes."""

from __future__ import annotations

import pytest
import trio

from fusefs.client.volume import Volume
from metadata import api
from metadata.server.fleet import Fleet
from node.wire.types import ROOT_INO
from storage import api as storage
from tests.sim.gc_world import GcWorld
from tests.unit.client.world import Gate, contents, submits

RDWR = 2
DATA = bytes(range(256)) * 40
BLOCK = storage.name_block(DATA)


async def write(volume: Volume, name: bytes, data: bytes = DATA) -> int:
    """Write a file durably; return its inode."""
    handle, attr = await volume.create(ROOT_INO, name, 0o644, RDWR, 0, 0)
    await volume.write(handle, 0, data)
    await volume.fsync(handle)
    await volume.release(handle)
    return attr.ino


def commits(world: GcWorld) -> list[api.Commit]:
    return [op for op in world.ops(api.Commit) if op.extents]


async def test_removed_files_are_deleted_two_epochs_later_and_then_nothing_moves() -> None:
    world = GcWorld()
    async with world.mount() as volume:
        await write(volume, b"f")
        await world.collect(4)
        world.check_nothing_lost()
        first = world.machine.gc_epoch
        await world.collect(3)
        assert world.machine.gc_epoch == first, "no epoch passes while nothing waits for it"
        await volume.unlink(ROOT_INO, b"f")
        await world.collect(2)
        assert all(BLOCK in store.live() for store in world.reals), "not before two epochs have passed"
        done = await world.collect(1)
        assert done.deleted == 1
        world.check_nothing_stays()
        await world.collect(3)
        assert world.machine.gc_epoch <= first + 3
        assert not world.machine.candidates(1 << 30)


async def test_a_writer_that_dies_between_put_and_commit_leaves_nothing() -> None:
    world = GcWorld()
    async with world.mount() as volume:
        gate = Gate(submits(api.Commit))
        world.member.before.append(gate)
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, DATA)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await gate.reached.wait()
            assert all(BLOCK in store.live() for store in world.reals)
            await world.collect(7)
            world.check_nothing_stays()
            assert not any(store.live() for store in world.reals)
            gate.opened.set()  # it was only slow: the commit is refused, and the bytes are put again
        assert [commit.touch_epoch for commit in commits(world)] == [1, world.machine.gc_epoch]
        world.check_nothing_lost()
        await volume.release(handle)


@pytest.mark.parametrize("rounds", range(8))
async def test_a_slow_commit_of_bytes_that_another_file_gave_up(rounds: int) -> None:
    """Put, then so many rounds, then the commit: at any distance the file has its bytes afterwards."""
    world = GcWorld()
    async with world.mount() as volume:
        await write(volume, b"old")
        await world.collect(5)
        await volume.unlink(ROOT_INO, b"old")
        await world.collect(1)
        gate = Gate(submits(api.Commit))
        world.member.before.append(gate)
        handle, attr = await volume.create(ROOT_INO, b"new", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, DATA)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await gate.reached.wait()
            await world.collect(rounds)
            gate.opened.set()
        world.check_nothing_lost()
        await world.collect(6)
        world.check_nothing_lost()
        assert world.machine.references(BLOCK) == 1
        await volume.release(handle)
        async with world.mount() as other:
            assert await contents(other, attr.ino) == DATA


@pytest.mark.parametrize("touched", ["before", "after"])
@pytest.mark.parametrize("committed", ["before", "after"])
async def test_a_delete_on_its_way_meets_a_writer(touched: str, committed: str) -> None:
    """The delete is sent, and executed before or after the touch and the commit of the same bytes."""
    world = GcWorld()
    async with world.mount() as volume:
        await write(volume, b"old")
        await volume.unlink(ROOT_INO, b"old")
        while world.machine.gc_epoch < world.machine.candidates(1 << 30)[0][0] + 2:
            await world.collector._advance()
        deleting = Gate(lambda request: isinstance(request, storage.Delete))
        committing = Gate(submits(api.Commit))
        for store in world.reals:
            store.before.append(deleting)
        world.member.before.append(committing)
        handle, attr = await volume.create(ROOT_INO, b"new", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, DATA)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.collect, 1)
            await deleting.reached.wait()
            if touched == "after":
                deleting.opened.set()
                await trio.testing.wait_all_tasks_blocked()
                assert not any(BLOCK in store.live() for store in world.reals)
            nursery.start_soon(volume.fsync, handle)
            await committing.reached.wait()
            if committed == "before":
                committing.opened.set()
                await trio.testing.wait_all_tasks_blocked()
            deleting.opened.set()
            await trio.testing.wait_all_tasks_blocked()
            committing.opened.set()
        world.check_nothing_lost()
        await world.collect(6)
        world.check_nothing_lost()
        assert world.machine.references(BLOCK) == 1
        await volume.release(handle)
        async with world.mount() as other:
            assert await contents(other, attr.ino) == DATA


async def test_the_epoch_of_a_put_is_the_one_known_before_it_and_a_commit_carries_the_oldest() -> None:
    """Blocks of one commit that were put in different epochs; the slow put also learns a newer one on its way."""
    world = GcWorld(servers=1, replicas=1)
    async with world.mount() as volume:
        slow = Gate(lambda request: isinstance(request, storage.Put))
        world.store.before.append(slow)
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        chunk = 1 << 20
        for at in range(3):
            await volume.write(handle, at * chunk, bytes([at + 1]) * 5000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await slow.reached.wait()
            world.advance_epoch()
            await volume._session.renew()
            assert volume._session.gc_epoch == 2
            slow.opened.set()
        assert {put.touch_epoch for put in world.store.puts} == {1}
        assert [commit.touch_epoch for commit in commits(world)] == [1], "one epoch of distance is allowed"
        world.check_nothing_lost()
        await volume.release(handle)


async def test_a_put_that_arrives_after_its_time_is_not_committed() -> None:
    """A put spends three epochs on its way: what it stored is deleted or touched again, never committed as it is."""
    world = GcWorld()
    async with world.mount() as volume:
        slow = Gate(lambda request: isinstance(request, storage.Put) and request.touch_epoch == 1)
        for store in world.reals:
            store.before.append(slow)
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, DATA)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await slow.reached.wait()
            for _ in range(3):
                world.advance_epoch()
            slow.opened.set()
        assert [commit.touch_epoch for commit in commits(world)] == [1, 4]
        await world.collect(6)
        world.check_nothing_lost()
        await volume.release(handle)
        async with world.mount() as other:
            assert await contents(other, attr.ino) == DATA


async def test_a_missing_block_of_a_refused_commit_is_put_again_and_the_present_one_touched() -> None:
    world = GcWorld()
    async with world.mount() as volume:
        gate = Gate(submits(api.Commit))
        world.member.before.append(gate)
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        other = DATA[::-1]
        await volume.write(handle, 0, DATA)
        await volume.write(handle, 1 << 20, other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await gate.reached.wait()
            for _ in range(3):
                world.advance_epoch()
            for store in world.reals:
                store.delete(storage.Delete((BLOCK,), 1))
                store.clean()
            gate.opened.set()
        world.check_nothing_lost()
        for store in world.reals:
            assert store.real.locate(BLOCK).epoch == store.real.locate(storage.name_block(other)).epoch == 4
        await volume.release(handle)


async def test_a_server_that_is_away_keeps_candidates_and_hears_of_them_later() -> None:
    world = GcWorld()
    async with world.mount() as volume:
        await write(volume, b"f")
        await volume.unlink(ROOT_INO, b"f")
        fleet = world.fleet

        def without_third() -> Fleet:
            found = fleet()
            found.beats[3].alive = False
            return found

        world.collector._fleet = without_third
        await world.collect(5)
        epoch = world.machine.gc_epoch
        await world.collect(3)
        assert world.machine.gc_epoch == epoch, "waiting for a server does not need epochs"
        assert [BLOCK in store.live() for store in world.reals] == [False, False, True]
        sent = sum(len(store.deletes) for store in world.reals)
        assert sent == 2, "nor are the others asked again and again"
        assert len(world.machine.candidates(1 << 30)) == 1
        world.collector._fleet = fleet
        await world.collect(2)
        world.check_nothing_stays()
        assert not world.machine.candidates(1 << 30)


async def test_a_leader_that_was_deposed_deletes_nothing_that_is_needed() -> None:
    world = GcWorld()
    async with world.mount() as volume:
        await write(volume, b"old")
        await volume.unlink(ROOT_INO, b"old")
        for _ in range(2):
            world.advance_epoch()
        behind = len(world.log)
        await volume._session.renew()
        ino = await write(volume, b"new")
        deposed = world.deposed(len(world.log) - behind)
        assert deposed._machine.references(BLOCK) == 0
        assert await deposed._delete() == (0, 1), "every server kept the block"
        assert sum(len(store.deletes) for store in world.reals) == 3
        world.check_nothing_lost()
        async with world.mount() as other:
            assert await contents(other, ino) == DATA


async def test_a_touch_that_brings_a_block_back_for_nothing_is_noticed() -> None:
    """A writer that has slept touches in an old epoch what was just deleted, and dies."""
    world = GcWorld(quarantine_s=1 << 30)
    async with world.mount() as volume:
        await write(volume, b"f")
        await volume.unlink(ROOT_INO, b"f")
        await world.collect(4)
        world.check_nothing_stays()
        frame = storage.encode_block(DATA)[1]
        world.reals[0].put(storage.Put((storage.BlockInfo(BLOCK, len(DATA)),), 1), [frame])
        assert BLOCK in world.reals[0].live()
        await world.collect(4)
        world.check_nothing_stays()


async def test_a_leader_that_leads_again_looks_at_all_candidates_again() -> None:
    world = GcWorld()
    async with world.mount() as volume:
        await write(volume, b"f")
        await volume.unlink(ROOT_INO, b"f")
        world.collector._after = (1 << 20, b"")  # as far as it came the last time that it led
        world.collector._able = world.collector._circumstances()
        await world.collect(4)
        assert len(world.machine.candidates(1 << 30)) == 1
        world.leading.term += 1
        await world.collect(1)
        world.check_nothing_stays()
        assert not world.machine.candidates(1 << 30)
