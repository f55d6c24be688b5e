"""Locks of a mount's programs, as the client keeps them: waits, lost messages, lost sessions, closing."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.client.handles import Handle
from fusefs.client.locking import END
from fusefs.client.volume import Volume
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO

from .world import Gate, World, contents, submits


async def lock(
    volume: Volume, handle: Handle, owner: int = 1, *, wait: trio.CancelScope | None = None, **more: Any
) -> None:
    options = {"flock": False, "low": 0, "high": END, "exclusive": True, "pid": 7, **more}
    await volume.locking.lock(handle, owner, wait=wait, **options)


async def unlock(volume: Volume, handle: Handle, owner: int = 1, *, flock: bool = False) -> None:
    await volume.locking.unlock(handle, owner, flock=flock, low=0, high=END)


async def both(world: World, first: Volume, second: Volume) -> tuple[Handle, Handle]:
    """One file, open on two mounts."""
    one, attr = await first.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
    return one, await second.open(attr.ino, os.O_RDWR)


async def test_data_written_under_a_lock_is_there_for_the_next_holder() -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        one, two = await both(world, first, second)
        await lock(first, one)
        await first.write(one, 0, b"written")
        with pytest.raises(FsError) as caught:
            await lock(second, two)
        assert caught.value.code is Code.LOCKED
        await unlock(first, one)
        await lock(second, two)
        assert await contents(second, two.ino) == b"written"
    world.check()


async def test_a_lost_message_costs_time_and_not_the_turn(autojump_clock: trio.testing.MockClock) -> None:
    world = World()  # which pushes nothing
    async with world.mount() as first, world.mount() as second, trio.open_nursery() as nursery:
        one, two = await both(world, first, second)
        await lock(first, one)
        nursery.start_soon(lambda: lock(second, two, wait=trio.CancelScope()))
        await trio.testing.wait_all_tasks_blocked()
        await unlock(first, one)
        await trio.sleep(5)
        assert (await first.locking.get(one, 1, flock=False, low=0, high=END, exclusive=True)).taken
        assert second.locking.statistics()["waiting"] == 0
    world.check()


async def test_a_message_ends_the_wait_at_once(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.mount() as first, world.mount() as second, trio.open_nursery() as nursery:
        one, two = await both(world, first, second)
        await lock(first, one)
        nursery.start_soon(lambda: lock(second, two, wait=trio.CancelScope()))
        await trio.testing.wait_all_tasks_blocked()
        await unlock(first, one)
        second.pushed(1, api.LocksGranted(99, (1,)))  # somebody else's
        (ticket,) = [op.ticket for op in world.ops(api.Lock) if op.ticket]
        second.pushed(1, api.LocksGranted(2, (ticket,)))
        await trio.testing.wait_all_tasks_blocked()
        assert second.locking.statistics()["waiting"] == 0 and second.locking.statistics()["asked"] == 0


async def test_an_interrupted_wait_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        one, two = await both(world, first, second)
        await lock(first, one)
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:

            async def interrupted() -> None:
                with pytest.raises(FsError) as caught:
                    await lock(second, two, wait=scope)
                assert caught.value.code is Code.INTERRUPTED

            nursery.start_soon(interrupted)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        await unlock(first, one)
        await lock(first, one)
    world.check()


async def test_an_interrupt_that_comes_too_late_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        one, two = await both(world, first, second)
        await lock(first, one)
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: lock(second, two, wait=scope))
            await trio.testing.wait_all_tasks_blocked()
            await unlock(first, one)  # its turn has come, and nobody has told it
            scope.cancel()
        with pytest.raises(FsError) as caught:
            await lock(first, one)
        assert caught.value.code is Code.LOCKED


async def test_closing_ends_what_a_process_and_a_handle_had() -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        one, two = await both(world, first, second)
        other = await first.open(one.ino, os.O_RDWR)
        await lock(first, one, 5)
        await lock(first, one, 6, flock=True)
        await first.flush(other, 5)
        await lock(second, two)
        with pytest.raises(FsError):
            await lock(second, two, 8, flock=True)
        before = len(world.ops(api.Unlock))
        await first.flush(other, 5)
        assert len(world.ops(api.Unlock)) == before, "who holds nothing pays nothing"
        await first.release(one)
        await lock(second, two, 8, flock=True)
        assert first.locking.statistics()["files"] == 0


async def test_a_lock_waits_for_a_last_close_that_is_under_way() -> None:
    world = World()
    async with world.mount() as volume, trio.open_nursery() as nursery:
        one, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        two = await volume.open(attr.ino, os.O_RDWR)
        await lock(volume, one, 1, flock=True)
        gate = Gate(submits(api.Unlock))
        world.member.before.append(gate)
        nursery.start_soon(volume.release, one)
        await gate.reached.wait()
        nursery.start_soon(lambda: lock(volume, two, 2, flock=True))
        await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()


async def test_a_last_close_that_nobody_heard_of_is_told_again(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.mount(request_timeout_s=4.0) as first, world.mount() as second:
        one, two = await both(world, first, second)
        await lock(first, one, flock=True)
        await lock(first, one)
        silent = Gate(submits(api.Unlock))
        world.member.before.append(silent)
        await first.release(one)
        with pytest.raises(FsError) as caught:
            await lock(second, two, flock=True)
        assert caught.value.code is Code.LOCKED, "it is not known to be closed"
        world.member.before.remove(silent)
        await trio.sleep(10.0)
        await lock(second, two, flock=True)
        await lock(second, two)
        assert first.locking.statistics()["files"] == 0
    world.check()


async def test_a_last_close_that_is_told_late_does_not_take_a_later_lock(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with world.mount(request_timeout_s=4.0) as first, world.mount() as second:
        one, two = await both(world, first, second)
        await lock(first, one)
        silent = Gate(submits(api.Unlock))
        world.member.before.append(silent)
        await first.release(one)
        again = await first.open(two.ino, os.O_RDWR)
        with pytest.raises(FsError) as caught:
            await lock(first, again)
        assert caught.value.code is Code.TIMEOUT
        world.member.before.remove(silent)
        await lock(first, again)
        await trio.sleep(10.0)
        with pytest.raises(FsError) as caught:
            await lock(second, two)
        assert caught.value.code is Code.LOCKED
    world.check()


async def test_locks_end_with_the_session_and_the_files_are_dead(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        one, two = await both(world, first, second)
        await lock(first, one)
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(FsError) as caught:
                    await lock(second, two, wait=trio.CancelScope())
                assert caught.value.code is Code.IO

            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            world.expire(2)
            await trio.sleep(10)
        with pytest.raises(FsError) as caught:
            await lock(second, two)
        assert caught.value.code is Code.IO
        await second.release(two)
    world.check()
