"""Many small extents of a chunk become few, and nobody but the disk notices."""

from __future__ import annotations

import os
import random

import trio
import trio.testing

from fusefs.client.compaction import worthwhile
from fusefs.client.handles import Handle
from fusefs.client.volume import Volume
from metadata import api
from metadata.api import Extent
from node.wire.limits import BLOCK_BYTES_MAX, COMPACT_EXTENTS_MIN, COMPACT_FOUND_S, COMPACT_QUIET_S, KIB
from node.wire.types import ROOT_INO

from .world import Gate, World, contents, submits

QUIET_S = COMPACT_QUIET_S + 2.0


def merges(world: World) -> list[api.Commit]:
    return [op for op in world.ops(api.Commit) if op.merge]


def extents_of(world: World, ino: int) -> tuple[Extent, ...]:
    (found,) = world.machine.query((api.GetExtents(ino, 0, 1 << 40),))
    assert isinstance(found, api.Extents)
    return found.extents


async def scatter(volume: Volume, handle: Handle, pieces: int, size: int, step: int, seed: int = 1) -> bytes:
    """Write pieces one commit at a time; return what the file holds then."""
    choice = random.Random(seed)
    expected = bytearray(step * pieces)
    for number in choice.sample(range(pieces), pieces):
        data = choice.randbytes(size)
        expected[number * step : number * step + size] = data
        await volume.write(handle, number * step, data)
        await volume.fsync(handle)
    return bytes(expected[: (pieces - 1) * step + size])


async def test_a_quiet_file_is_put_together(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        expected = await scatter(volume, handle, 40, 1000, 1000)
        await volume.setattr(attr.ino, mtime_ns=777, atime_ns=5)
        before = await other.getattr(attr.ino)
        assert len(extents_of(world, attr.ino)) == 40
        await trio.sleep(QUIET_S)
        assert len(extents_of(world, attr.ino)) == 1
        after = await other.getattr(attr.ino)
        assert (after.size, after.stored, after.mtime_ns, after.ctime_ns, after.atime_ns) == (
            before.size, before.stored, 777, before.ctime_ns, 5
        )
        assert await contents(other, attr.ino) == expected
        handle_other, copy = await other.create(ROOT_INO, b"copy", 0o644, os.O_RDWR, 0, 0)
        puts = len(world.store.blocks)
        await other.write(handle_other, 0, expected)
        await other.release(handle_other)
        assert len(world.store.blocks) == puts, "the same bytes written at once are the same block"
        await volume.release(handle)
    world.check()


async def test_holes_stay_holes(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        expected = await scatter(volume, handle, 30, 500, 500)
        await volume.write(handle, 100 * KIB, b"behind a hole")
        await volume.fsync(handle)
        stored = (await volume.getattr(attr.ino)).stored
        await trio.sleep(QUIET_S)
        assert [extent.offset for extent in extents_of(world, attr.ino)] == [0, 100 * KIB]
        assert (await volume.getattr(attr.ino)).stored == stored
        data = await contents(volume, attr.ino)
        assert data == expected + bytes(100 * KIB - len(expected)) + b"behind a hole"
        await volume.release(handle)
    world.check()


async def test_who_writes_meanwhile_wins(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        expected = bytearray(await scatter(volume, handle, 20, 700, 700))
        gate = Gate(lambda request: submits(api.Commit)(request) and request.ops[0].merge)
        world.member.before.append(gate)
        await gate.reached.wait()
        theirs = await other.open(attr.ino, os.O_RDWR)
        await other.write(theirs, 700, b"newer")
        await other.release(theirs)
        expected[700:705] = b"newer"
        gate.opened.set()
        await trio.sleep(1.0)
        assert len(merges(world)) == 1, "tried"
        assert len(extents_of(world, attr.ino)) > 20, "and refused"
        assert await contents(other, attr.ino) == bytes(expected)
        await volume.release(handle)
    world.check()


async def test_a_file_that_is_written_on_is_left_alone(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        for number in range(30):
            await volume.write(handle, number * 100, b"%04d" % number * 25)
            await volume.fsync(handle)
            await trio.sleep(COMPACT_QUIET_S / 2)
        assert not merges(world)
        await trio.sleep(QUIET_S)
        assert len(merges(world)) == 1
        await volume.release(handle)


async def test_a_removed_file_is_no_error(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await scatter(volume, handle, 20, 100, 100)
        await volume.release(handle)
        await volume.unlink(ROOT_INO, b"f")
        await trio.sleep(QUIET_S)
        assert not merges(world)
        assert volume.statistics()["compaction"]["waiting"] == 0
    world.check()


def test_what_is_worth_it() -> None:
    def extent(offset: int, length: int, of: int, number: int) -> Extent:
        return Extent(offset, length, bytes([number]) * 32, 0, of)

    few = [extent(at * 10, 10, 10, at) for at in range(COMPACT_EXTENTS_MIN - 1)]
    assert not worthwhile(few)
    assert worthwhile([*few, extent(len(few) * 10, 10, 10, 99)])
    assert not worthwhile([extent(at * 20, 10, 10, at) for at in range(30)]), "holes between all of them"
    mostly_overwritten = [extent(0, 4096, BLOCK_BYTES_MAX, 1), extent(4096, 400_000, 400_000, 2)]
    assert worthwhile(mostly_overwritten)
    assert not worthwhile([])


async def test_what_a_mount_left_when_it_ended_is_put_together_by_who_reads_it(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        expected = await scatter(volume, handle, 40, 1000, 1000)
        await volume.release(handle)
    async with world.mount(read_only=True) as reader:
        assert await contents(reader, attr.ino) == expected
        await trio.sleep(COMPACT_FOUND_S + QUIET_S)
        assert len(extents_of(world, attr.ino)) == 40, "not by one who may change nothing"
    async with world.mount() as one, world.mount() as two:
        for reader in (one, two, one):
            assert await contents(reader, attr.ino) == expected
        await trio.sleep(COMPACT_FOUND_S / 2)
        assert len(extents_of(world, attr.ino)) == 40, "whoever wrote it has the first turn"
        await trio.sleep(COMPACT_FOUND_S)
        assert len(extents_of(world, attr.ino)) == 1
        for reader in (one, two):
            assert await contents(reader, attr.ino) == expected
    world.check()


async def test_readers_tell_once_of_what_cannot_be_better(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        expected = await scatter(volume, handle, 12, 1000, 8000)
        await volume.release(handle)
    async with world.mount() as reader:
        for _ in range(3):
            assert await contents(reader, attr.ino) == expected
            await trio.sleep(COMPACT_FOUND_S + QUIET_S)
        statistics = reader.statistics()["compaction"]
        assert statistics["found"] == 0 and statistics["chunks"] == 0 and not merges(world)
