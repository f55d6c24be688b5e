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


def content(number: int, directory: bytes = b"d") -> bytes:
    return (directory + name_of(number)) * 100


def name_of(number: int) -> bytes:
    return b"file %04d" % number


async def fill(world: World, files: int = FILES, name: bytes = b"d") -> int:
    async with world.mount(leases=False) as volume:
        directory = (await volume.mkdir(ROOT_INO, name, 0o755, 0, 0)).ino
        for number in range(files):
            handle, _ = await volume.create(directory, name_of(number), 0o644, os.O_RDWR, 0, 0)
            await volume.write(handle, 0, content(number, name))
            await volume.release(handle)
    return directory


async def read(volume: Volume, directory: int, number: int) -> None:
    await read_listed(volume, (await volume.lookup(directory, name_of(number))).ino, number)


async def list_all(volume: Volume, directory: int) -> dict[bytes, int]:
    """Names and inodes, as a walk learns them, which then looks nothing up."""
    handle = await volume.opendir(directory)
    found: dict[bytes, int] = {}
    at = 0
    while page := await volume.readdir(handle, at):
        found |= {name: attr.ino for name, attr, _ in page}
        at = page[-1][2]
    await volume.releasedir(handle)
    return found


async def read_listed(volume: Volume, ino: int, number: int, name: bytes = b"d") -> None:
    handle = await volume.open(ino, os.O_RDONLY)
    assert bytes(await volume.read(handle, 0, 4096)) == content(number, name)
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


async def test_the_window_grows_while_files_are_read_in_order(autojump_clock: object) -> None:
    """What is left of one window when the next one is asked for was fetched as well: it is of use, not missed."""
    world, files = LeasingWorld(), 3 * FILES
    directory = await fill(world, files)
    async with world.mount() as volume:
        for number in range(files):
            await read(volume, directory, number)
            walk = volume._neighbours._walks[directory]
            assert len(walk.earlier) <= neighbours.WINDOW_MAX
        windows = [len(request.queries) for request in world.member.requests if isinstance(request, api.Read)
                   and isinstance(request.queries[0], api.GetExtents) and len(request.queries) > 1]
        assert windows[:5] == [8, 16, 32, 64, 128], windows
        assert walk.misses == 0 and not walk.earlier


async def test_files_that_were_listed_and_not_looked_up(autojump_clock: object) -> None:
    world = LeasingWorld()
    directory = await fill(world)
    async with world.mount() as volume:
        inos = await list_all(volume, directory)
        gets = len(world.store.gets)
        for number in range(FILES):
            await read_listed(volume, inos[name_of(number)], number)
        brought = [wanted.block for request in world.store.gets[gets:] for wanted in request.ranges]
        assert len(brought) == len(set(brought)) == FILES, "each once"
        assert len(world.store.gets) - gets < FILES // 6


async def test_the_whole_of_a_small_directory_in_any_order(autojump_clock: object) -> None:
    world = LeasingWorld()
    directory = await fill(world, 16)
    async with world.mount() as volume:
        inos = await list_all(volume, directory)
        gets = len(world.store.gets)
        for number in random.Random(3).sample(range(16), 16):
            await read_listed(volume, inos[name_of(number)], number)
        assert len(world.store.gets) - gets == 3, "two, and all others"


async def test_who_reads_a_tree_has_files_fetched_at_the_first_of_each_directory(autojump_clock: object) -> None:
    world = LeasingWorld()
    directories = [await fill(world, 8, b"d%d" % number) for number in range(20)]
    async with world.mount() as volume:
        requests = []
        for at, directory in enumerate(directories):
            inos = await list_all(volume, directory)
            gets = len(world.store.gets)
            for number in range(8):
                await read_listed(volume, inos[name_of(number)], number, b"d%d" % at)
            requests.append(len(world.store.gets) - gets)
        assert requests[0] == 3 and set(requests[3:]) == {2}, requests


async def test_who_reads_one_file_of_each_directory_has_none_fetched(autojump_clock: object) -> None:
    world = LeasingWorld()
    directories = [await fill(world, 8, b"d%d" % number) for number in range(20)]
    async with world.mount() as volume:
        for at, directory in enumerate(directories):
            inos = await list_all(volume, directory)
            for number in range(8 if at < 2 else 1):  # he begins as if he read them all
                await read_listed(volume, inos[name_of(number)], number, b"d%d" % at)
        brought = sum(len(request.ranges) for request in world.store.gets)
        assert brought <= 2 * 8 + 18 + neighbours.CREDIT_MAX // 8, "and that is soon over"


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


async def test_what_is_at_hand_is_all_of_a_file_as_it_was_told(autojump_clock: object) -> None:
    world = LeasingWorld()
    directory = await fill(world, 2)
    async with world.mount() as volume:
        attr = await volume.lookup(directory, name_of(0))
        handle = await volume.open(attr.ino, os.O_RDWR)
        assert volume.at_hand(handle, attr.data_version, attr.size) is None, "nobody has read it"
        await read(volume, directory, 0)
        gets, reads = len(world.store.gets), world.reads()
        assert bytes(volume.at_hand(handle, attr.data_version, attr.size) or b"") == content(0)
        assert volume.at_hand(handle, attr.data_version + 1, attr.size) is None
        assert volume.at_hand(handle, attr.data_version, attr.size - 1) is None
        assert volume.at_hand(handle, attr.data_version, 0) is None
        await volume.write(handle, 0, b"written")
        assert volume.at_hand(handle, attr.data_version, attr.size) is None, "not without what is written here"
        assert (len(world.store.gets), world.reads()) == (gets, reads)
        await volume.release(handle)


async def test_what_is_at_hand_may_have_holes(autojump_clock: object) -> None:
    world = LeasingWorld()
    async with world.mount(leases=False) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        for at in (5000, 12_000):
            await volume.write(handle, at, b"data")
        await volume.setattr(attr.ino, size=20_000)
        await volume.release(handle)
        handle, _ = await volume.create(ROOT_INO, b"hole", 0o644, os.O_RDWR, 0, 0)
        await volume.setattr(handle.ino, size=300)
        await volume.release(handle)
    content = bytes(5000) + b"data" + bytes(6996) + b"data" + bytes(7996)
    async with world.mount() as volume:
        for name, expected in ((b"f", content), (b"hole", bytes(300))):
            attr = await volume.lookup(ROOT_INO, name)
            handle = await volume.open(attr.ino, os.O_RDONLY)
            assert bytes(await volume.read(handle, 0, 100_000)) == expected
            await volume.release(handle)
            handle = await volume.open(attr.ino, os.O_RDONLY)
            assert bytes(volume.at_hand(handle, attr.data_version, attr.size) or b"") == expected
            await volume.release(handle)
