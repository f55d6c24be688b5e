"""Files of a directory that are read in its order come before they are asked for."""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from fusefs.client import neighbours
from fusefs.client.volume import Volume
from metadata import api
from node.wire.types import ROOT_INO

from .world import World

FILES = 200


class LeasingWorld(World):
    """Grants every answer; there is one reader and nobody changes anything, so nothing is ever recalled."""

    def serve(self, request: Any) -> Any:
        reply = super().serve(request)
        return msgspec.structs.replace(reply, lease_term=self.term) if isinstance(reply, api.ReadReply) else reply

    def reads(self) -> int:
        return sum(isinstance(request, api.Read) for request in self.member.requests)


def name_of(number: int) -> bytes:
    return b"file %04d" % number


async def fill(world: World) -> int:
    async with world.mount(leases=False) as volume:
        directory = (await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)).ino
        for number in range(FILES):
            handle, _ = await volume.create(directory, name_of(number), 0o644, os.O_RDWR, 0, 0)
            await volume.write(handle, 0, name_of(number) * 100)
            await volume.release(handle)
    return directory


async def read(volume: Volume, directory: int, number: int) -> None:
    attr = await volume.lookup(directory, name_of(number))
    handle = await volume.open(attr.ino, os.O_RDONLY)
    assert bytes(await volume.read(handle, 0, 4096)) == name_of(number) * 100
    await volume.release(handle)
    await trio.testing.wait_all_tasks_blocked()


async def test_files_read_in_order_come_in_a_few_requests(autojump_clock: object) -> None:
    world = LeasingWorld()
    directory = await fill(world)
    async with world.mount() as volume:
        before, gets = world.reads(), len(world.store.gets)
        for number in range(FILES):
            await read(volume, directory, number)
        assert world.reads() - before < FILES // 6
        assert len(world.store.gets) - gets < FILES // 6
        brought = [wanted.block for request in world.store.gets[gets:] for wanted in request.ranges]
        assert len(brought) == len(set(brought)) == FILES, "each once"


@pytest.mark.parametrize("seed", range(5))
async def test_files_read_in_no_order_bring_little(seed: int, autojump_clock: object) -> None:
    world = LeasingWorld()
    directory = await fill(world)
    async with world.mount() as volume:
        gets = len(world.store.gets)
        numbers = random.Random(seed).sample(range(FILES), 20)
        for number in numbers:
            await read(volume, directory, number)
        brought = sum(len(request.ranges) for request in world.store.gets[gets:])
        assert brought <= 20 + 3 * neighbours.WINDOW_MIN


async def test_a_window_is_bounded_in_bytes(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "WINDOW_BYTES_MAX", 3000)
    world = LeasingWorld()
    directory = await fill(world)
    async with world.mount() as volume:
        for number in range(3):
            await read(volume, directory, number)
        await read(volume, directory, 3)
        gets = len(world.store.gets)
        for number in range(4, 12):
            await read(volume, directory, number)
            assert sum(len(request.ranges) for request in world.store.gets[gets:]) <= number + 3


async def test_batches_form_whatever_the_number_of_replicas(autojump_clock: object) -> None:
    world = LeasingWorld(servers=3, replicas=3)
    directory = await fill(world)
    async with world.mount() as volume:
        await trio.sleep(1.0)
        gets = {ident: len(store.gets) for ident, store in world.stores.items()}
        for number in range(FILES):
            await read(volume, directory, number)
        requests = {ident: len(store.gets) - gets[ident] for ident, store in world.stores.items()}
        assert sum(requests.values()) < FILES // 6, requests
        assert min(requests.values()) > 0, "each serves its share"


async def test_a_file_that_changes_all_the_time_is_not_asked_for_as_a_whole(autojump_clock: object) -> None:
    world = LeasingWorld()
    chunks, size = 200, 1 << 20
    async with world.mount(leases=False) as writer, world.mount(cache_bytes_max=0) as reader:
        handle, attr = await writer.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        for chunk in range(chunks):
            await writer.write(handle, chunk * size, b"%d" % chunk)
        await writer.flush(handle)
        await reader.lookup(ROOT_INO, b"f")
        theirs = await reader.open(attr.ino, os.O_RDONLY)
        choice = random.Random(1)

        async def read_some(count: int) -> int:
            """Random reads; return how many extents were told for them."""
            before = len(world.member.requests)
            for _ in range(count):
                chunk = choice.randrange(1, chunks)
                assert bytes(await reader.read(theirs, chunk * size, 1)) == (b"%d" % chunk)[:1]
            asked = [request for request in world.member.requests[before:] if isinstance(request, api.Read)]
            return sum(len(world.machine.query(request.queries)[0].extents) for request in asked)  # type: ignore

        assert chunks <= await read_some(50) <= chunks + 1, "all at once"
        told = 0
        for _ in range(50):
            reader._session.leases.facts.drop(attr.ino)  # as a recall does
            await reader.getattr(attr.ino)
            told += await read_some(1)
            await trio.sleep(0.001)
        assert told <= 2 * chunks
        await reader.release(theirs)
        await writer.release(handle)
