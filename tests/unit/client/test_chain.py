"""Large blocks that pass from server to server: whatever fails on the way, enough copies are made and none is lost."""

from __future__ import annotations

import os
import random

import pytest
import trio
import trio.testing

from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX
from node.wire.types import ROOT_INO
from storage import api as storage

from .world import Gate, World, always, contents

MIB = BLOCK_BYTES_MAX
RDWR = os.O_RDWR


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusefs.client.codec.THREAD_BYTES_MIN", 1 << 40)  # the clock would overtake them


def copies(world: World, block: bytes) -> int:
    return sum(block in store.blocks for store in world.stores.values())


async def test_large_blocks_leave_here_once_and_small_ones_go_to_each() -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(chain=True) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        data = os.urandom(5 * MIB)
        await volume.write(handle, 0, data)
        await volume.fsync(handle)
        chained = [put for store in world.stores.values() for put in store.puts if len(put.forward) == 2]
        assert sum(len(put.blocks) for put in chained) == 5
        assert volume.statistics()["writer"]["chained"] == 5
        await volume.write(handle, 5 * MIB, b"small")
        await volume.fsync(handle)
        assert volume.statistics()["writer"]["chained"] == 5
        await trio.testing.wait_all_tasks_blocked()
        assert all(copies(world, e.block) == 3 for op in world.ops(api.Commit) for e in op.extents)
        assert await contents(volume, attr.ino) == data + b"small"
        await volume.release(handle)


@pytest.mark.parametrize("victim", [1, 2, 3])
@pytest.mark.parametrize("how", ["down", "hangs", "full", "answer lost"])
async def test_any_member_may_fail_in_mid_stream(victim: int, how: str, autojump_clock: object) -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(chain=True) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        data = random.Random(victim).randbytes(12 * MIB)
        await volume.write(handle, 0, data[: 4 * MIB])
        store = world.stores[victim]
        if how == "down":
            store.before.append(always(storage.Put, Code.UNREACHABLE))
        elif how == "hangs":
            store.before.append(Gate(lambda request: isinstance(request, storage.Put)))
        elif how == "full":
            store.full = True
        else:
            store.after.append(always(storage.Put, Code.UNREACHABLE))
        for at in range(4, 12):
            await volume.write(handle, at * MIB, data[at * MIB : (at + 1) * MIB])
        await volume.fsync(handle)
        blocks = [extent.block for op in world.ops(api.Commit) for extent in op.extents]
        assert len(blocks) == 12
        assert all(copies(world, block) >= 2 for block in blocks), "committed before enough servers had it"
        assert await contents(volume, attr.ino) == data
        await volume.release(handle)


async def test_two_failures_are_told(autojump_clock: object) -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(chain=True, request_timeout_s=8.0) as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        for ident in (2, 3):
            world.stores[ident].before.append(always(storage.Put, Code.UNREACHABLE))
        await volume.write(handle, 0, os.urandom(MIB))
        with pytest.raises(FsError) as raised:
            await volume.fsync(handle)
        assert raised.value.code is Code.TIMEOUT
        for ident in (2, 3):
            world.stores[ident].before.clear()
        await volume.fsync(handle)
        await volume.release(handle)
