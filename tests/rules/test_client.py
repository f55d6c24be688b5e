"""Rules that one mount keeps in the order of what it asks and answers: 10, 11, 13 and 19."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from fusefs.client.closing import Closing
from fusefs.client.commit import Committer, Group
from fusefs.client.files import File
from fusefs.client.journal import Journal
from fusefs.client.namespace import Namespace
from fusefs.client.volume import Volume
from fusefs.client.writer import Touched
from metadata import api
from metadata.server.mover import Mover
from node.wire.errors import Code, FsError
from node.wire.limits import MIB
from node.wire.types import ROOT_INO
from storage.api import Put
from tests.rules import violated
from tests.unit.client.world import Gate, World, contents, once

LARGE = MIB + MIB // 2  # so that its bytes go to the chunk servers for certain


def play(main: Callable[[], Awaitable[None]]) -> None:
    """For what takes threads, as large data does."""
    trio.run(main)


def play_fast(main: Callable[[], Awaitable[None]]) -> None:
    """For small data: time passes only where everybody waits for it."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def create(volume: Volume, parent: int, name: bytes, data: bytes, *, sync: bool = False) -> Any:
    """Make a file with content and return its handle, still open."""
    handle, _ = await volume.create(parent, name, 0o644, os.O_WRONLY, 0, 0)
    if data:
        await volume.write(handle, 0, data)
    if sync:
        await volume.fsync(handle)
    return handle


async def number_inodes(volume: Volume) -> None:
    """Until the mount has inode numbers to give, it makes nothing by itself."""
    if volume._session.leases.on:
        directory = await volume.mkdir(ROOT_INO, b"first", 0o755, 0, 0)
        await volume.mknod(directory.ino, b"first", 0o100644, 0, 0, 0)
        for _ in range(10_000):
            if volume._session.journal.statistics()["inos"]:
                break
            await trio.sleep(0.001)


async def close(volume: Volume, handle: Any) -> None:
    await volume.flush(handle)
    await volume.release(handle)


# --- rule 10 --------------------------------------------------------------------------------------------------------


def test_rule_10_first_put_then_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount dies while a block is on its way to the chunk server: nothing may be referenced that is not stored."""

    async def main() -> None:
        world = World()
        arriving = Gate(lambda request: isinstance(request, Put))
        world.store.before.append(arriving)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write_until_it_dies, world)
            with trio.move_on_after(0.5 if weak else 60):
                await arriving.reached.wait()
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        for name, _ in world.machine.blocks(b"", 10):
            assert name in world.store.blocks, "a block is referenced that nobody has"
        assert arriving.reached.is_set(), "nothing was put"

    weak = False
    play(main)
    weak = True

    async def store(self: Committer, group: Group, deadline: float) -> None:
        await trio.lowlevel.checkpoint()
        group.touched = Touched(self._session.gc_epoch, self._session.pg_epoch)

    monkeypatch.setattr(Committer, "_store", store)
    assert violated(lambda: play(main))


@pytest.mark.parametrize("alone", [True, False])
def test_rule_10_what_is_in_the_log_is_put_before_it_is_forgotten(monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """A small file that was synced is in the log entry. Whoever moves it out of there meets a chunk server that does
    not answer: the file must still be there, for a mount that has seen nothing of it."""

    async def main() -> None:
        world = World(alone=alone, log_data=True)
        async with world.mount() as volume:
            await volume.fsync(await create(volume, ROOT_INO, b"f", b"small"))
        assert not world.store.puts and world.machine.logged_blocks, "it did not travel in the log"
        world.store.before.append(once(Put, Code.UNREACHABLE))
        for wanted in (0, 1):
            assert await world.mover.round() == wanted or weak
            async with world.mount() as other:
                attr = await other.lookup(ROOT_INO, b"f")
                try:
                    found = await contents(other, attr.ino)
                except FsError as error:
                    raise AssertionError(f"what was synced cannot be read: {error}") from None
                assert found == b"small"

    weak = False
    play(main)
    weak = True

    async def put(self: Mover, record: Any, request: Put, frames: Any) -> list[int]:
        try:
            await self._call(record, request, frames, timeout_s=1.0)
        except FsError:
            pass
        return [0] * len(request.blocks)

    monkeypatch.setattr(Mover, "_put", put)
    assert violated(lambda: play(main))


async def _write_until_it_dies(world: World) -> None:
    async with world.mount() as volume:
        handle = await create(volume, ROOT_INO, b"f", b"x" * LARGE)
        await volume.fsync(handle)


# --- rule 11 --------------------------------------------------------------------------------------------------------


OLD, NEW = b"old" * 1000, b"new" * 2000


async def replace(volume: Volume) -> None:
    """What editors do, without the fsync that not all of them do."""
    await close(volume, await create(volume, ROOT_INO, b"f", OLD, sync=True))
    handle = await create(volume, ROOT_INO, b"tmp", NEW)
    await volume.rename(ROOT_INO, b"tmp", ROOT_INO, b"f")
    await volume.syncfs()
    await close(volume, handle)


async def nest(volume: Volume) -> None:
    """What is synced is found after a crash, and so are its ancestors."""
    parent = ROOT_INO
    await number_inodes(volume)
    for name in (b"a", b"b", b"c"):
        parent = (await volume.mkdir(parent, name, 0o755, 0, 0)).ino
    for name, data in ((b"f", b""), (b"g", NEW)):
        handle = await create(volume, parent, name, data, sync=True)
        synced[name] = data
        await close(volume, handle)


synced: dict[bytes, bytes] = {}


async def after_a_crash(work: Callable[[Volume], Awaitable[None]], alone: bool, survive: int) -> tuple[World, bool]:
    """Do work with a mount that dies when it sends its mutation number ``survive``; whether it ended before that."""
    world = World(alone=alone)
    left = [survive]
    done = False

    def die(request: object) -> None:
        if isinstance(request, (api.Submit, Put)):
            left[0] -= 1
        if left[0] < 0:
            raise FsError(Code.UNREACHABLE, "the mount has died")

    world.member.before.append(die)
    world.store.before.append(die)
    with trio.move_on_after(5):
        try:
            async with world.mount(request_timeout_s=0.2, stop_flush_s=0.1) as volume:
                await work(volume)
                done = left[0] >= 0
        except FsError:
            pass
    world.member.before.clear()
    world.store.before.clear()
    world.alone = False
    return world, done


async def read_file(world: World, *path: bytes) -> bytes | None:
    async with world.mount() as volume:
        ino = ROOT_INO
        try:
            for name in path:
                ino = (await volume.lookup(ino, name)).ino
            return await contents(volume, ino)
        except FsError as error:
            assert error.code is Code.NOT_FOUND
            return None


async def crash_everywhere(work: Callable[[Volume], Awaitable[None]], alone: bool, check: Any) -> None:
    for survive in range(40):
        synced.clear()
        world, done = await after_a_crash(work, alone, survive)
        await check(world)
        if done:
            return
    raise RuntimeError("the work has no end")


async def check_replaced(world: World) -> None:
    found = await read_file(world, b"f")
    if world.ops(api.Rename):
        assert found in (OLD, NEW), "it was replaced by something that has no content"
    else:
        assert found in (None, b"", OLD)


async def check_nested(world: World) -> None:
    for name, data in synced.items():
        assert await read_file(world, b"a", b"b", b"c", name) == data, f"{name!r} was synced"


def _sealed_already(self: Namespace, file: File | None) -> bool:
    return True


async def _nothing_to_flush(self: Namespace, parent: int, name: bytes) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("alone", [True, False], ids=["by itself", "at the service"])
def test_rule_11_first_the_data_then_the_name(monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """A file is replaced by a new one, and the mount dies anywhere in between: there is the old one or the new."""

    async def main() -> None:
        await crash_everywhere(replace, alone, check_replaced)

    play_fast(main)
    monkeypatch.setattr(Namespace, "_sealed", _sealed_already)
    monkeypatch.setattr(Namespace, "_flush_source", _nothing_to_flush)
    assert violated(lambda: play_fast(main))


def test_rule_11_first_the_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of a file brings all that was changed here before: its directories too."""

    async def main() -> None:
        await crash_everywhere(nest, True, check_nested)

    play_fast(main)

    async def drain(self: Journal, deadline: float) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Journal, "drain", drain)
    assert violated(lambda: play_fast(main))


# --- rule 13 --------------------------------------------------------------------------------------------------------


class Full(World):
    """The leader knows that there is no room left on the chunk servers; names still find some."""

    def serve(self, request: Any) -> Any:
        reply = super().serve(request)
        if isinstance(reply, api.RenewSessionReply):
            return msgspec.structs.replace(reply, room_bytes=0)
        return reply


def test_rule_13_nothing_is_acknowledged_for_which_there_may_be_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """cp closes the file and exits 0; then the batch meets a full disk."""

    async def main() -> None:
        world = Full(alone=True)
        async with world.mount(stop_flush_s=0.1) as volume:
            await number_inodes(volume)
            world.store.full = True
            handle = await create(volume, ROOT_INO, b"f", b"x" * LARGE)
            told = None
            try:
                await volume.flush(handle)
            except FsError as error:
                told = error.code
            assert told is Code.NO_SPACE, "close(2) has succeeded, and its data will never be stored"

    play(main)

    def close_at_once(self: Closing, file: File) -> bool:
        return self.seal(file)

    monkeypatch.setattr(Closing, "close", close_at_once)
    assert violated(lambda: play(main))


# --- rule 19 --------------------------------------------------------------------------------------------------------


def test_rule_19_no_reader_sees_a_size_before_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that only grows is looked at after each change of the state: there are no zeros in it."""

    async def main() -> None:
        world = World()
        looks = [0]
        wrong: list[str] = []

        def look(request: object) -> None:
            if not isinstance(request, api.Submit):
                return
            for name in (b"grows", b"appended"):
                ino = world.machine.child(ROOT_INO, name)
                if ino:
                    looks[0] += 1
                    (found,) = world.machine.query([api.GetExtents(ino, 0, 1 << 40)])
                    assert isinstance(found, api.Extents)
                    zeros = found.attr.size - sum(one.length for one in found.extents)
                    if zeros:
                        wrong.append(f"{zeros} bytes of {name!r} are zeros")

        world.member.after.append(look)
        async with world.mount() as volume:
            for name, flags in ((b"grows", 0), (b"appended", os.O_APPEND)):
                handle, _ = await volume.create(ROOT_INO, name, 0o644, os.O_RDWR | flags, 0, 0)
                at = 0
                for length in (100, MIB, 5 * MIB, 3, 12 * MIB, MIB + 1):
                    await volume.write(handle, at, os.urandom(length))
                    at += length
                    if length % 2:
                        await volume.fsync(handle)
                await close(volume, handle)
        assert looks[0] > 5 and not wrong, wrong

    play(main)
    real = Committer.commit

    async def commit(self: Committer, file: File, groups: Any, ops: Any, deadline: float) -> Any:
        size = groups[-1].end
        await self.execute(file, (api.SetAttr(file.ino, size=size),), deadline)
        return await real(self, file, groups, ops, deadline)

    monkeypatch.setattr(Committer, "commit", commit)
    assert violated(lambda: play(main))
