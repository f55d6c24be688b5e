"""Random lives of a file on two mounts, against byte arrays.

Each mount has a handle on one file of its own and one on a file that both share in turns: a turn ends with a close,
and the next mount must then see exactly what the model has. Faults come from a seeded die: lost replies, members that
do not lead, chunk servers that are away for one request.
"""

from __future__ import annotations

import os
import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.client.handles import Handle
from fusefs.client.volume import Volume
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX
from node.wire.types import ROOT_INO
from storage import api as storage

from .world import World

MIB = BLOCK_BYTES_MAX
SIZE_MAX = 3 * MIB

places = st.one_of(
    st.integers(0, 300),
    st.integers(MIB - 100, MIB + 100),
    st.integers(2 * MIB - 50, 2 * MIB + 50),
    st.integers(0, SIZE_MAX),
)
lengths = st.one_of(st.integers(1, 50), st.integers(1, 5000), st.sampled_from([4096, 100_000, MIB, MIB + 5]))
steps = st.one_of(
    st.tuples(st.just("write"), places, lengths),
    st.tuples(st.just("write"), places, lengths),
    st.tuples(st.just("append"), st.just(0), lengths),
    st.tuples(st.just("read"), places, lengths),
    st.tuples(st.just("truncate"), places, st.just(0)),
    st.tuples(st.sampled_from(["fsync", "reopen", "stat", "turn", "utimes"]), st.just(0), st.just(0)),
)


class Life:
    """One file, one writer at a time."""

    def __init__(self, volumes: list[Volume], die: random.Random) -> None:
        self.volumes = volumes
        self.die = die
        self.model = bytearray()
        self.at = 0
        self.ino = 0
        self.handle: Handle
        self.tail: Handle

    @property
    def volume(self) -> Volume:
        return self.volumes[self.at]

    async def begin(self) -> None:
        handle, attr = await self.volume.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        self.ino, self.handle = attr.ino, handle
        self.tail = await self.volume.open(self.ino, os.O_WRONLY | os.O_APPEND)

    async def end(self) -> None:
        for handle in (self.handle, self.tail):
            await self.volume.flush(handle)
            await self.volume.release(handle)

    async def open(self) -> None:
        self.handle = await self.volume.open(self.ino, os.O_RDWR)
        self.tail = await self.volume.open(self.ino, os.O_WRONLY | os.O_APPEND)

    async def step(self, kind: str, offset: int, length: int) -> None:
        if kind == "write":
            data = self.die.randbytes(length)
            await self.volume.write(self.handle, offset, data)
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + length] = data
        elif kind == "append":
            data = self.die.randbytes(length)
            await self.volume.write(self.tail, len(self.model), data)
            self.model += data
        elif kind == "read":
            found = await self.volume.read(self.handle, offset, length)
            assert bytes(found) == bytes(self.model[offset : offset + length])
        elif kind == "truncate":
            await self.volume.setattr(self.ino, size=offset)
            self.model[offset:] = b""
            self.model.extend(bytes(offset - len(self.model)))
        elif kind == "fsync":
            await self.volume.fsync(self.handle)
        elif kind == "utimes":
            assert (await self.volume.setattr(self.ino, mtime_ns=length)).mtime_ns == length
        elif kind != "stat":
            await self.end()
            self.at = (self.at + (kind == "turn")) % len(self.volumes)
            await self.open()
        assert (await self.volume.getattr(self.ino)).size == len(self.model)

    async def compare(self) -> None:
        await self.end()
        for volume in self.volumes:
            handle = await volume.open(self.ino, os.O_RDONLY)
            found = b"".join([bytes(await volume.read(handle, at, MIB)) for at in range(0, SIZE_MAX * 2, MIB)])
            assert found == bytes(self.model)
            await volume.release(handle)


async def live(plan: list[tuple[str, int, int]], seed: int, *, faults: bool) -> None:
    world = World(servers=3, replicas=3)
    die = random.Random(seed)
    async with world.mount(dirty_bytes_max=4 * MIB) as first, world.mount(dirty_bytes_max=MIB) as second:
        if faults:
            upset(world, die)
        life = Life([first, second], die)
        with trio.fail_after(60):
            await life.begin()
            for kind, offset, length in plan:
                await life.step(kind, offset, length)
            await life.compare()
        assert first.statistics()["write_back"]["dirty_bytes"] == 0
    world.check()


def upset(world: World, die: random.Random) -> None:
    """Let one request in eight fail in a way that the client has to hide."""

    def lose(request: object) -> None:
        if isinstance(request, (api.Submit, api.Read)) and die.random() < 0.12:
            raise FsError(die.choice([Code.UNREACHABLE, Code.NOT_LEADER, Code.OVERLOADED]), "injected")

    def away(request: object) -> None:
        if isinstance(request, (storage.Put, storage.Get)) and die.random() < 0.12:
            raise FsError(Code.UNREACHABLE, "injected")

    def turn_epoch(request: object) -> None:
        if isinstance(request, api.Submit) and die.random() < 0.1:
            world.advance_epoch()

    world.member.before.extend([lose, turn_epoch])
    world.member.after.append(lose)
    for store in world.stores.values():
        store.before.append(away)
        store.after.append(away)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=25))
def test_like_a_byte_array(plan: list[tuple[str, int, int]]) -> None:
    trio.run(lambda: live(plan, len(plan), faults=False))


@settings(max_examples=15, deadline=None)
@given(st.lists(steps, max_size=12), st.integers(0, 1 << 20))
def test_like_a_byte_array_with_faults(plan: list[tuple[str, int, int]], seed: int) -> None:
    trio.run(lambda: live(plan, seed, faults=True))


@pytest.mark.parametrize("seed", range(4))
async def test_four_writers_of_one_file_each_in_its_part(seed: int) -> None:
    """Concurrent writers, readers, flushes and sizes through one mount: each part ends as its writer left it."""
    world = World()
    die = random.Random(seed)
    part = 700_000
    model = bytearray(4 * part)
    async with world.mount(dirty_bytes_max=2 * MIB) as volume:
        first, attr = await volume.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await volume.setattr(attr.ino, size=len(model))

        async def writer(base: int) -> None:
            handle = await volume.open(attr.ino, os.O_RDWR)
            for _ in range(40):
                at = base + die.randrange(part - 20_000)
                data = die.randbytes(die.choice([10, 4096, 20_000]))
                await volume.write(handle, at, data)
                model[at : at + len(data)] = data
                assert bytes(await volume.read(handle, at, len(data))) == data
                if die.random() < 0.2:
                    await volume.fsync(handle)
            await volume.flush(handle)
            await volume.release(handle)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for index in range(4):
                    nursery.start_soon(writer, index * part)
        assert bytes(await volume.read(first, 0, len(model))) == bytes(model)
        await volume.release(first)
    world.check()
