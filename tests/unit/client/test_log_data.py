"""What is synced and small travels with its commit: when it does, who reads it before it is moved, and after."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.client.handles import Handle
from fusefs.client.volume import Volume
from metadata import api
from metadata.state import logged as logged_module
from metadata.state.command import CommandKind, Reclaim
from node.wire.errors import Code, FsError
from node.wire.limits import LOG_DATA_COMMIT_BYTES, LOG_DATA_ENTRY_BYTES, LOG_DATA_ROW_BYTES
from node.wire.types import ROOT_INO
from storage.api import Get, Put

from .world import Gate, World, contents, once

RDWR = os.O_RDWR


async def written(volume: Volume, name: bytes, data: bytes, flags: int = RDWR) -> Handle:
    """A new open file with bytes that are not synced."""
    handle, _ = await volume.create(ROOT_INO, name, 0o644, flags, 0, 0)
    await volume.write(handle, 0, data)
    return handle


def along(world: World) -> list[bytes]:
    """What came with commits, in order."""
    return [op.data for op in world.ops(api.Commit)]


@pytest.fixture(params=["alone", "shared"])
def world(request: pytest.FixtureRequest) -> World:
    """Everything leased exclusively and through the journal, or nothing leased and by the file's own task."""
    return World(alone=request.param == "alone", log_data=True)


async def test_a_small_fsync_puts_nothing(world: World) -> None:
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"x" * 4096)
        await volume.fsync(handle)
        assert along(world) == [b"x" * 4096]
        assert not world.store.puts
        await volume.write(handle, 10, b"y")
        await volume.write(handle, 5000, b"z")
        await volume.fsync(handle)
        assert along(world)[1:] == [b"yz"]
        assert not world.store.puts
        assert await contents(volume, handle.ino) == b"x" * 10 + b"y" + b"x" * 4085 + bytes(904) + b"z"
        assert not world.store.gets, "it knows what it wrote"
    world.check()


async def test_a_write_that_is_to_be_durable_travels_too(world: World) -> None:
    async with world.mount() as volume:
        await written(volume, b"f", b"synced", RDWR | os.O_DSYNC)
        assert along(world) == [b"synced"] and not world.store.puts


async def test_appends_land_where_the_file_ends(world: World) -> None:
    async with world.mount() as volume, world.mount(leases=False) as other:
        handle = await written(volume, b"f", b"one", RDWR | os.O_APPEND)
        await volume.fsync(handle)
        if not world.alone:
            theirs = await other.open(handle.ino, RDWR | os.O_APPEND)
            await other.write(theirs, 0, b"their ")
            await other.fsync(theirs)
        await volume.write(handle, 0, b"two")
        await volume.fsync(handle)
        assert not world.store.puts
        assert await contents(other, handle.ino) == (b"onetwo" if world.alone else b"onetheir two")
    world.check()


async def test_who_does_not_wait_for_durability_puts(world: World) -> None:
    async with world.mount(flush_after_s=0.1) as volume:
        for name in (b"a", b"b", b"closed", b"left"):
            with pytest.raises(FsError):
                await volume.lookup(ROOT_INO, name)  # as the kernel does first
            if len(name) == 1:  # these have it fetch numbers for new files
                await volume.release(await written(volume, name, b""))
                await trio.sleep(1.0)
        for name in (b"closed", b"left"):
            handle = await written(volume, name, name)
            if name == b"closed":
                await volume.flush(handle)
                await volume.release(handle)
        await trio.sleep(0.7)
        await volume.syncfs()
        assert along(world) == [b"", b""] and len(world.store.blocks) == 2


async def test_what_was_closed_travels_too_where_somebody_waits_for_it() -> None:
    world = World(alone=True, log_data=True)
    async with world.mount() as volume:
        for name, size in ((b"small", 10), (b"large", LOG_DATA_COMMIT_BYTES + 1)):
            handle = await written(volume, name, b"x" * size)
            await volume.flush(handle)
            await volume.release(handle)
        await volume.syncfs()
        assert along(world) == [b"x" * 10, b""] and len(world.store.blocks) == 1
    world.check()


async def test_what_is_large_is_put(world: World) -> None:
    async with world.mount() as volume:
        await volume.fsync(await written(volume, b"a", b"a" * LOG_DATA_COMMIT_BYTES))
        await volume.fsync(await written(volume, b"b", b"b" * (LOG_DATA_COMMIT_BYTES + 1)))
        assert along(world) == [b"a" * LOG_DATA_COMMIT_BYTES, b""]
    async with world.mount(log_data_bytes=100) as volume:
        await volume.fsync(await written(volume, b"c", b"c" * 100))
        await volume.fsync(await written(volume, b"d", b"d" * 101))
        assert along(world)[2:] == [b"c" * 100, b""]
    async with world.mount(log_data_bytes=0) as volume:
        await volume.fsync(await written(volume, b"e", b"e"))
        assert along(world)[4:] == [b""]
    world.check()


async def test_a_service_without_room_is_not_asked() -> None:
    world = World(alone=True)
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"x")
        world.store.full = True
        with pytest.raises(FsError) as caught:
            await volume.fsync(handle)
        assert caught.value.code is Code.NO_SPACE, "who syncs hears of a full disk"
        world.store.full = False
        await volume.fsync(handle)
    assert set(along(world)) == {b""}


async def test_an_older_service_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(alone=True)
    serve = world.serve

    def older(request: Any) -> Any:
        if isinstance(request, api.Read):
            assert not any(isinstance(query, api.GetBlock) for query in request.queries)
        reply = serve(request)
        return api.RenewSessionReply(*list(_fields(reply))[:6]) if isinstance(reply, api.RenewSessionReply) else reply

    monkeypatch.setattr(world, "serve", older)
    async with world.mount(cache_bytes_max=0) as volume:
        handle = await written(volume, b"f", b"x")
        await volume.fsync(handle)
        assert along(world) == [b""]
        world.store.blocks.clear()
        with pytest.raises(FsError) as caught:
            await contents(volume, handle.ino)
        assert caught.value.code is Code.IO


def _fields(reply: Any) -> Iterator[Any]:
    return (getattr(reply, name) for name in reply.__struct_fields__)


async def test_a_log_that_is_full_after_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service said of its room is old: the bytes are put then, and in the same fsync."""
    monkeypatch.setattr(logged_module, "LOG_DATA_STATE_BYTES", 2 * LOG_DATA_ROW_BYTES + 10)
    async with world.mount() as volume:
        volume._session.log_room_bytes = 1 << 20
        for number in range(4):
            flags = RDWR | (os.O_APPEND if number % 2 else 0)
            await volume.fsync(await written(volume, b"%d" % number, b"%d" % number, flags))
            if number < 3:
                assert bool(world.store.puts) == (number == 2)
        told = volume.statistics()["log_data"]
        assert told["room_bytes"] <= 0 and told["refusals"] == 1, "and it is not tried again before there is room"
        assert world.machine.logged_blocks == 2 and len(world.store.blocks) == 2
        for number in range(4):
            attr = await volume.lookup(ROOT_INO, b"%d" % number)
            assert await contents(volume, attr.ino) == b"%d" % number
        monkeypatch.setattr(logged_module, "LOG_DATA_STATE_BYTES", 1 << 20)
        await volume._session.renew()
        puts = len(world.store.puts)
        await volume.fsync(await written(volume, b"again", b"again"))
        assert len(world.store.puts) == puts
    world.check()


async def test_many_at_once_take_entries_of_a_bounded_size() -> None:
    world = World(alone=True, log_data=True)
    count = 2 * LOG_DATA_ENTRY_BYTES // LOG_DATA_COMMIT_BYTES + 10
    async with world.mount() as volume:
        handles = [await written(volume, b"%d" % number, b"") for number in range(count)]
        for number, handle in enumerate(handles):
            await volume.write(handle, 0, (b"%08d" % number) * (LOG_DATA_COMMIT_BYTES // 8))
        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(volume.fsync, handle)
        assert not world.store.puts and world.machine.logged_blocks == count
        submits = [request for request in world.member.requests if isinstance(request, api.Submit)]
        sizes = [sum(len(op.data) for op in one.ops if isinstance(op, api.Commit)) for one in submits]
        assert max(sizes) > LOG_DATA_ENTRY_BYTES // 2, "many share an entry"
    world.check()


async def test_a_chunk_that_gets_crowded_is_rewritten_and_put(world: World) -> None:
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"x" * 20_000)
        await volume.fsync(handle)
        want = bytearray(b"x" * 20_000)
        for number in range(70):
            await volume.write(handle, 200 * number, b"%03d" % number)
            want[200 * number : 200 * number + 3] = b"%03d" % number
            await volume.fsync(handle)
        assert len(along(world)) > 70 and sum(data == b"" for data in along(world)) < 10
        assert volume.statistics()["write_back"]["rewrites"] > 0
        assert await contents(volume, handle.ino) == want
    world.check()


async def test_a_file_that_was_there_before(world: World) -> None:
    """How many extents it has must be asked first; that is no round of durability."""
    async with world.mount() as volume:
        await volume.release(await written(volume, b"f", b"first"))
    async with world.mount() as volume:
        handle = await volume.open((await volume.lookup(ROOT_INO, b"f")).ino, RDWR)
        puts = len(world.store.puts)
        await volume.write(handle, 5, b"more")
        await volume.fsync(handle)
        assert along(world)[-1] == b"more" and len(world.store.puts) == puts
        assert await contents(volume, handle.ino) == b"firstmore"
    world.check()


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes_max", [64 << 20, 0])
async def test_another_mount_reads_it_before_it_is_moved_and_after(world: World, cache_bytes_max: int) -> None:
    data = os.urandom(9000)
    async with world.mount() as volume:
        handle = await written(volume, b"f", data)
        await volume.fsync(handle)
        assert world.machine.logged_blocks == 1
        async with world.mount(leases=False, cache_bytes_max=cache_bytes_max) as other:
            assert await contents(other, handle.ino) == data
            reading = await other.open(handle.ino, 0)
            assert bytes(await other.read(reading, 100, 50)) == data[100:150]
            assert bool(world.store.gets) == (not cache_bytes_max), "the answer brings the bytes along"
            await other.release(reading)
            assert await world.mover.round() == 1
            assert not world.machine.logged_blocks
            assert await contents(other, handle.ino) == data
    async with world.mount(leases=False) as third:
        gets = len(world.store.gets)
        assert await contents(third, handle.ino) == data
        assert len(world.store.gets) > gets
    world.check()


@asynccontextmanager
async def reader_at_gate(volume: Volume, ino: int, asked: Gate) -> AsyncIterator[list[bytes]]:
    """Somebody reads a file, and stands at a gate; what he has read is there afterwards."""
    found: list[bytes] = []

    async def read() -> None:
        found.append(await contents(volume, ino))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await asked.reached.wait()
        yield found
        asked.opened.set()


async def test_it_moves_while_somebody_looks_for_it() -> None:
    """The chunk server did not have it, and the service does not have it any more: the chunk server has it now."""
    world = World(log_data=True)
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"bytes")
        await volume.fsync(handle)
        async with world.mount(cache_bytes_max=0) as other:
            asked = Gate(
                lambda request: isinstance(request, api.Read)
                and any(isinstance(query, api.GetBlock) for query in request.queries)
            )
            world.member.before.append(asked)
            async with reader_at_gate(other, handle.ino, asked) as found:
                await world.mover.round()
            assert found == [b"bytes"]


async def test_who_reads_what_is_replaced_meanwhile_reads_what_replaced_it() -> None:
    """Nothing references the bytes any more, so they have left the log; no server ever had them."""
    world = World(log_data=True)
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"first")
        await volume.fsync(handle)
        async with world.mount(cache_bytes_max=0) as other:
            asked = Gate(lambda request: isinstance(request, Get))
            world.store.before.append(asked)
            async with reader_at_gate(other, handle.ino, asked) as found:
                await volume.write(handle, 0, b"other")
                await volume.fsync(handle)
            assert found == [b"other"]


async def test_what_is_lost_is_an_error_and_not_looked_for_without_end() -> None:
    world = World(log_data=True)
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"bytes")
        await volume.fsync(handle)
        await world.mover.round()
        world.store.blocks.clear()
        async with world.mount() as other:
            with pytest.raises(FsError) as caught:
                await contents(other, handle.ino)
            assert caught.value.code is Code.IO


async def test_wrong_bytes_from_the_service_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(log_data=True)
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"bytes")
        await volume.fsync(handle)
        serve = world.serve

        def lying(request: Any) -> Any:
            reply = serve(request)
            if not isinstance(reply, api.ReadReply):
                return reply
            results = [
                api.Value(b"lying") if isinstance(result, api.Value)
                else api.Extents(result.attr, result.extents, result.more, tuple((b, b"lying") for b, _ in result.data))
                if isinstance(result, api.Extents) else result
                for result in reply.results
            ]
            return api.ReadReply(tuple(results))

        monkeypatch.setattr(world, "serve", lying)
        async with world.mount() as other:
            with pytest.raises(FsError) as caught:
                await contents(other, handle.ino)
            assert caught.value.code is Code.IO


# --- clones, compaction, the mover --------------------------------------------------------------------------------


async def test_a_clone_and_a_compacted_chunk_of_what_is_in_the_log() -> None:
    world = World(alone=True, log_data=True)
    async with world.mount() as volume:
        handle = await written(volume, b"f", b"%03d" % 0)
        for number in range(1, 40):
            await volume.fsync(handle)
            await volume.write(handle, 3 * number, b"%03d" % number)
        await volume.fsync(handle)
        want = b"".join([b"%03d" % number for number in range(40)])
        assert world.machine.logged_blocks >= 30
        await volume.clone(handle.ino, ROOT_INO, b"copy")
        copy = await volume.lookup(ROOT_INO, b"copy")
        assert await contents(volume, copy.ino) == want
        await volume._compactor._merge(handle.ino, 0)
        assert world.machine.logged_blocks >= 30, "the copy has them still"
        await volume.unlink(ROOT_INO, b"copy")
        assert await contents(volume, handle.ino) == want
    for session in list(world.machine.sessions()):
        world.expire(session.id)
    world.apply(CommandKind.RECLAIM, Reclaim(1000))
    world.check()
    assert not world.machine.logged_blocks, "the merged block is on the server, nothing needs the small ones"


@contextmanager
def away(world: World, ident: int) -> Iterator[None]:
    world.stores[ident].connected = False
    yield
    world.stores[ident].connected = True


async def test_the_mover_goes_round_what_it_cannot_move() -> None:
    world = World(servers=4, replicas=1, log_data=True)
    async with world.mount() as volume:
        for number in range(60):
            await volume.fsync(await written(volume, b"%d" % number, b"%d" % number))
        with away(world, 2):
            moved = await world.mover.round()
            assert 0 < moved < 60
            assert not world.stores[2].puts
            assert await world.mover.round() == 0
            assert sum(len(store.puts) for store in world.stores.values()) == 3, "many blocks go in one request"
        world.stores[2].before.append(once(Put, Code.NO_SPACE))
        assert await world.mover.round() == 0
        assert await world.mover.round() == 60 - moved
        assert world.mover.statistics()["moving_stuck"] == 0
        for number in range(60):
            attr = await volume.lookup(ROOT_INO, b"%d" % number)
            assert await contents(volume, attr.ino) == b"%d" % number
    world.check()


async def test_the_mover_asks_for_as_many_copies_as_a_commit() -> None:
    world = World(servers=3, replicas=3, log_data=True)
    async with world.mount() as volume:
        await volume.fsync(await written(volume, b"f", b"bytes"))
        world.stores[1].full = world.stores[2].full = True
        assert await world.mover.round() == 0 and world.machine.logged_blocks == 1
        world.stores[2].full = False
        assert await world.mover.round() == 1
        assert sum(len(store.blocks) for store in world.stores.values()) == 2
    world.check()


async def test_a_mount_that_dies_leaves_nothing_behind_that_is_not_moved() -> None:
    world = World(alone=True, log_data=True)
    async with trio.open_nursery() as nursery:

        async def live() -> None:
            async with world.mount() as volume:
                await volume.fsync(await written(volume, b"f", b"bytes"))
                nursery.cancel_scope.cancel()

        nursery.start_soon(live)
    for session in list(world.machine.sessions()):
        world.expire(session.id)
    assert await world.mover.round() == 1
    async with world.mount(read_only=True) as reader:
        attr = await reader.lookup(ROOT_INO, b"f")
        assert await contents(reader, attr.ino) == b"bytes"
    world.check()


async def test_the_epoch_advances_while_blocks_are_put() -> None:
    world = World(log_data=True)
    async with world.mount() as volume:
        await volume.fsync(await written(volume, b"f", b"bytes"))

        def advance(request: Any) -> None:
            world.store.before.clear()
            world.advance_epoch()
            world.advance_epoch()

        world.store.before.append(advance)
        with pytest.raises(FsError) as caught:
            await world.mover.round()
        assert caught.value.code is Code.STALE_EPOCH and world.machine.logged_blocks == 1
        assert await world.mover.round() == 1
    world.check()
