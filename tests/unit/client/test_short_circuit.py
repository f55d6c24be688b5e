"""Blocks of chunk servers on the mount's host are read from their files, as long as that works."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.client import reader
from fusefs.client.handles import Handle
from fusefs.client.shortcircuit import ShortCircuit
from fusefs.client.volume import Volume
from node.host import diskreads
from node.host.disk import SystemFile
from node.host.uring import open_ring
from node.wire.errors import Code
from node.wire.limits import LOCATE_BLOCKS_MAX, MIB, PIECE_TABLE_BYTES, SHORT_CIRCUIT_AGAIN_S, SHORT_CIRCUIT_PAUSE_S
from node.wire.types import ROOT_INO, Buffer
from storage import api as storage
from storage.segments import segment_name

from .world import Gate, World, always

SIZE = 6 * MIB
DATA = Random(1).randbytes(SIZE)


@pytest.fixture(autouse=True)
def _ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "EXPECT_EVERY_S", 0.0)


@asynccontextmanager
async def reading(
    world: World, tmp_path: Path, *, data: bytes = DATA, known: bool = True, on: bool = True
) -> AsyncIterator[tuple[Volume, Handle, ShortCircuit]]:
    """A file open in a new mount, which has been told (``known``) where its blocks lie."""
    async with world.mount() as writer:
        handle, _ = await writer.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        for at in range(0, len(data), MIB):
            await writer.write(handle, at, data[at : at + MIB])
        await writer.flush(handle)
        await writer.release(handle)
    for store in world.stores.values():
        store.directory = tmp_path / f"storage-{store.ident}"
        store.directory.mkdir()
    async with world.mount(short_circuit=on, read_ahead_blocks=0) as volume:
        ino = (await volume.lookup(ROOT_INO, b"f")).ino
        handle = await volume.open(ino, os.O_RDONLY)
        short = volume._blocks.short
        assert bytes(await volume.read(handle, 0, 10)) == data[:10]  # and the servers are known
        if known:
            for at in range(0, len(data), MIB):
                assert bytes(await volume.read(handle, at, 10)) == data[at : at + 10]
                await settled(short)
        yield volume, handle, short
        await volume.release(handle)


async def eventually(check: Callable[[], bool]) -> None:
    """Threads take part, so nothing can be waited for but the outcome."""
    with trio.fail_after(10):
        while not check():  # noqa: ASYNC110
            await trio.sleep(0.001)


def let_go(short: ShortCircuit) -> None:
    """Have no segment open: the next read opens what is there then."""
    while short._stores[1].tidy():
        pass


async def settled(short: ShortCircuit) -> None:
    """Wait until every question where blocks lie is answered."""
    await eventually(lambda: not short._asked)


async def check(volume: Volume, handle: Handle, at: int, length: int = 100) -> None:
    assert bytes(await volume.read(handle, at, length)) == DATA[at : at + length]


async def test_a_block_is_asked_for_once_and_then_read_here(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        gets = len(world.stores[1].gets)
        for at in range(200_000, SIZE, MIB):
            await check(volume, handle, at)
        await check(volume, handle, 3 * MIB - 50)
        assert len(world.stores[1].gets) == gets
        assert short.reads > SIZE // MIB and short.failures == 0


@pytest.mark.parametrize("kernel", ["does not", "does"])
async def test_little_is_read_without_threads_where_the_kernel_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    if kernel == "does not":
        monkeypatch.setattr(diskreads, "open_ring", lambda *_: None)
    elif open_ring(1, 1.0) is None:
        pytest.skip("this one does not let us have an io_uring")
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        gets, threads = len(world.stores[1].gets), []
        read = storage.SegmentReader.read

        def in_a_thread(*args: Any) -> Buffer:
            threads.append(args)
            return read(*args)

        for at in range(200_000, SIZE, MIB):
            await check(volume, handle, at)  # opens the files
        monkeypatch.setattr(storage.SegmentReader, "read", in_a_thread)
        for start in (300_000, 400_000):  # places are found in what is read, and then remembered
            for at in range(start, SIZE, MIB):
                await check(volume, handle, at)
        assert len(world.stores[1].gets) == gets and short.failures == 0
        assert len(threads) == (0 if kernel == "does" else 2 * SIZE // MIB)
        assert short.statistics()["places_bytes"] > SIZE // MIB * PIECE_TABLE_BYTES


async def test_whole_blocks_too(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path) as (volume, handle, _short):
        gets = len(world.stores[1].gets)
        assert bytes(await volume.read(handle, 0, SIZE)) == DATA
        assert len(world.stores[1].gets) == gets


async def test_switched_off(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path, on=False) as (volume, handle, short):
        await check(volume, handle, 500_000)
        assert not world.stores[1].located and not short.reads


async def test_small_files_are_not_asked_about(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path, data=DATA[:MIB]) as (volume, handle, _short):
        await check(volume, handle, 500_000)
        assert not world.stores[1].located


async def test_questions_are_bounded(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path, known=False) as (_volume, _handle, short):
        short.expect([bytes([n % 256, n // 256]) * 16 for n in range(2 * LOCATE_BLOCKS_MAX + 1)])
        await settled(short)
        assert [len(one.blocks) for one in world.stores[1].located] == [LOCATE_BLOCKS_MAX, LOCATE_BLOCKS_MAX, 1]


async def test_damaged_bytes_are_asked_for_and_the_server_is_told(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        for path in (tmp_path / "storage-1").iterdir():
            content = bytearray(path.read_bytes())
            for at in range(2000, len(content), 60_000):
                content[at] ^= 1
            path.write_bytes(content)
        for at in range(300_000, SIZE, MIB):
            await check(volume, handle, at)
        assert short.failures
        await eventually(lambda: bool(world.stores[1].suspects))


async def test_what_compaction_has_moved_is_asked_for(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        let_go(short)
        for path in (tmp_path / "storage-1").iterdir():
            path.unlink()
        gets = len(world.stores[1].gets)
        await check(volume, handle, 300_000)
        assert len(world.stores[1].gets) == gets + 1
        assert not world.stores[1].suspects
        await settled(short)
        await check(volume, handle, 700_000)  # asks where it is now
        await settled(short)
        gets, reads = len(world.stores[1].gets), short.reads
        await check(volume, handle, 900_000)
        assert len(world.stores[1].gets) == gets and short.reads > reads


async def test_another_store_in_its_place(tmp_path: Path) -> None:
    """A wiped server that comes back writes segments of the same names."""
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        let_go(short)
        for path in (tmp_path / "storage-1").iterdir():
            path.write_bytes(path.read_bytes().replace(world.stores[1].identity, bytes(16)))
        await check(volume, handle, 300_000)
        assert not short.reads
        assert not short.hopes(world.stores[1].gets[0].ranges[0].block)


@pytest.mark.parametrize("why", ["not here", "older"])
async def test_who_cannot_read_the_files_soon_stops_asking(tmp_path: Path, why: str) -> None:
    world = World()
    if why == "older":
        world.stores[1].before.append(always(storage.Locate, Code.NOT_SUPPORTED))
    async with reading(world, tmp_path, known=False) as (volume, handle, short):
        if why == "not here":
            place, elsewhere = storage.Located(1, 64, 100, 100), str(tmp_path / "elsewhere")
            world.stores[1].locate = lambda request: storage.LocateReply(  # type: ignore[method-assign]
                elsewhere, bytes(16), tuple([place] * len(request.blocks))
            )
        for at in range(0, SIZE, MIB):
            await check(volume, handle, at)
            await settled(short)
        assert short.reads == 0
        assert len(world.stores[1].located) < 3
        assert short._avoided[1] > trio.current_time() + SHORT_CIRCUIT_AGAIN_S - 10


@pytest.mark.parametrize("way", ["in a thread", "without"])
async def test_a_disk_that_does_not_answer_costs_half_a_second_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        stuck = tmp_path / "stuck"
        os.mkfifo(stuck)

        def read(*_: object) -> bytes:
            with open(stuck, "rb"):  # waits until somebody writes
                return b""

        if way == "without":
            writing = os.open(stuck, os.O_RDWR)  # nobody ever does
            monkeypatch.setattr(SystemFile, "fileno", lambda _: writing)
            for at in range(700_000, SIZE, MIB):
                await check(volume, handle, at)  # and the files are open
            assert short._reads._ring is not None or open_ring(1, 1.0) is None
        else:
            monkeypatch.setattr(storage.SegmentReader, "steps", lambda *_: None)
        monkeypatch.setattr(storage.SegmentReader, "read", read)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for at in range(300_000, SIZE, MIB):
                nursery.start_soon(check, volume, handle, at)
        assert trio.current_time() - begun < 2.0
        begun = trio.current_time()
        await check(volume, handle, 900_000)
        assert trio.current_time() - begun < 0.4
        assert short._avoided[1] > trio.current_time() + SHORT_CIRCUIT_PAUSE_S - 5
        stuck.write_bytes(b"")


async def test_a_server_that_is_silent_about_places_is_asked_for_bytes(tmp_path: Path) -> None:
    world = World()
    gate = Gate(lambda request: isinstance(request, storage.Locate))
    world.stores[1].before.append(gate)
    async with reading(world, tmp_path, known=False) as (volume, handle, short):
        for at in range(0, SIZE, MIB):
            await check(volume, handle, at)
        assert gate.reached.is_set() and short.reads == 0
        gate.opened.set()
        await settled(short)
        await check(volume, handle, 700_000)
        assert short.reads == 1


async def test_a_cancelled_reader_leaves_nothing_behind(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        with trio.CancelScope() as scope:
            scope.cancel()
            await volume.read(handle, 300_000, 100)
        assert short._reading == 0
        await check(volume, handle, 300_000)


async def test_files_are_let_go_when_nobody_reads(tmp_path: Path) -> None:
    world = World()
    async with reading(world, tmp_path) as (volume, handle, short):
        await check(volume, handle, 300_000)
        await eventually(lambda: not short._tidying)
        assert short._stores[1].tidy() == 0
        assert segment_name(1) in os.listdir(tmp_path / "storage-1")


async def test_of_several_copies_one_server_is_asked(tmp_path: Path) -> None:
    world = World(servers=3, replicas=3)
    async with reading(world, tmp_path) as (volume, handle, short):
        located = [block for store in world.stores.values() for one in store.located for block in one.blocks]
        assert sorted(located) == sorted(set(located))
        before = short.reads
        for at in range(300_000, SIZE, MIB):
            await check(volume, handle, at)
        assert short.reads == before + SIZE // MIB
