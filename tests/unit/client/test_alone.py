"""What a mount changes by itself, under exclusive leases, against the same operations executed by the service.

Two worlds get the same random operations: in one the mount owns everything and answers by itself, in the other each
operation is executed by the state machine. Errors, contents and attributes must be the same after each step, but for
times and numbers. And whenever the journal has been brought, what the mount foretold is what the service has, to the
bit.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.client.handles import Handle
from fusefs.client.volume import Volume
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO
from tests.harness import LONG

from .world import World, contents

NAMES = [b"a", b"b", b"c", b"d"]
DIRECTORIES = 3

steps = st.tuples(
    st.sampled_from(
        "make make make mkdir mkdir symlink link unlink unlink rmdir rename rename rename exchange chmod chown utimes "
        "truncate write write append copy copy read close open fsync sync list lookup drop pause stat".split()
    ),
    st.integers(0, 1 << 30),
)


class Life:
    """One mount and what a program does on it. Inodes go by the order in which they were made."""

    def __init__(self, world: World, volume: Volume) -> None:
        self.world, self.volume = world, volume
        self.inos: list[int] = [ROOT_INO]
        self.handles: list[tuple[int, Handle]] = []

    async def step(self, kind: str, seed: int) -> Any:
        """Do one thing; return all that a program sees of it."""
        die = random.Random(seed)
        act: Callable[[random.Random], Awaitable[Any]] = getattr(self, kind)
        try:
            return await act(die)
        except FsError as error:
            return error.code

    def number(self, ino: int) -> int:
        if ino not in self.inos:
            self.inos.append(ino)
        return self.inos.index(ino)

    def seen(self, attr: api.Attr) -> tuple[object, ...]:
        kind = stat.S_IFMT(attr.mode)
        stored = attr.stored if kind != stat.S_IFREG else 0  # counted when a file is closed or its data has arrived
        return self.number(attr.ino), attr.mode, attr.nlink, attr.uid, attr.gid, attr.size, stored

    async def directory(self, die: random.Random) -> int:
        ino = ROOT_INO
        for _ in range(die.randint(0, DIRECTORIES)):
            try:
                attr = await self.volume.lookup(ino, die.choice(NAMES))
            except FsError:
                break
            if stat.S_ISDIR(attr.mode):
                ino = attr.ino
        return ino

    async def file(self, die: random.Random) -> int:
        return (await self.volume.lookup(await self.directory(die), die.choice(NAMES))).ino

    async def make(self, die: random.Random) -> Any:
        flags = os.O_RDWR | (os.O_EXCL if die.random() < 0.5 else 0) | (os.O_TRUNC if die.random() < 0.3 else 0)
        handle, attr = await self.volume.create(await self.directory(die), die.choice(NAMES), 0o640, flags, 5, 6)
        if stat.S_ISREG(attr.mode):
            self.handles.append((attr.ino, handle))
        else:  # which no kernel opens for writing
            await self.volume.release(handle)
        return self.seen(attr)

    async def mkdir(self, die: random.Random) -> Any:
        mode = 0o755 | (stat.S_ISGID if die.random() < 0.3 else 0)
        gid = die.randint(1, 3)
        return self.seen(await self.volume.mkdir(await self.directory(die), die.choice(NAMES), mode, 5, gid))

    async def symlink(self, die: random.Random) -> Any:
        attr = await self.volume.symlink(await self.directory(die), die.choice(NAMES), b"t%d" % die.randint(0, 9), 5, 6)
        return self.seen(attr), await self.volume.readlink(attr.ino)

    async def link(self, die: random.Random) -> Any:
        ino = await self.file(die)
        return self.seen(await self.volume.link(ino, await self.directory(die), die.choice(NAMES)))

    async def unlink(self, die: random.Random) -> None:
        await self.volume.unlink(await self.directory(die), die.choice(NAMES))

    async def rmdir(self, die: random.Random) -> None:
        await self.volume.rmdir(await self.directory(die), die.choice(NAMES))

    async def rename(self, die: random.Random, flags: int = 0) -> None:
        source, target = await self.directory(die), await self.directory(die)
        flags = flags or die.choice([0, 0, api.RENAME_NOREPLACE])
        await self.volume.rename(source, die.choice(NAMES), target, die.choice(NAMES), flags)

    async def exchange(self, die: random.Random) -> None:
        await self.rename(die, api.RENAME_EXCHANGE)

    async def chmod(self, die: random.Random) -> Any:
        return self.seen(await self.volume.setattr(await self.file(die), mode=die.choice([0o600, 0o4755, 0o2775])))

    async def chown(self, die: random.Random) -> Any:
        return self.seen(await self.volume.setattr(await self.file(die), uid=die.randint(0, 3), gid=die.randint(0, 3)))

    async def utimes(self, die: random.Random) -> Any:
        attr = await self.volume.setattr(await self.file(die), mtime_ns=die.randint(1, 1 << 40), atime_ns=77)
        return attr.mtime_ns, attr.atime_ns

    async def truncate(self, die: random.Random) -> Any:
        size = die.choice([0, 0, 10, 5000, 70_000, 2 << 20])
        return self.seen(await self.volume.setattr(await self.file(die), size=size))

    async def write(self, die: random.Random) -> Any:
        if not self.handles:
            return None
        ino, handle = die.choice(self.handles)
        offset, length = die.choice([0, 10, 5000, 1 << 20]), die.choice([1, 4096, 4096, 100_000, 100_000, 3 << 20])
        await self.volume.write(handle, offset, die.randbytes(length))
        return self.seen(await self.volume.getattr(ino))

    async def append(self, die: random.Random) -> Any:
        ino = await self.file(die)
        attr = await self.volume.getattr(ino)
        if not stat.S_ISREG(attr.mode):
            return None
        handle = await self.volume.open(ino, os.O_WRONLY | os.O_APPEND)
        await self.volume.write(handle, attr.size, die.randbytes(100))
        await self.volume.flush(handle)
        await self.volume.release(handle)
        return self.seen(await self.volume.getattr(handle.ino))

    async def copy(self, die: random.Random) -> Any:
        if not self.handles:
            return None
        (_, source), (_, target) = die.choice(self.handles), die.choice(self.handles)
        offset, target_offset = die.choice([0, 0, 3000, 80_000]), die.choice([0, 0, 3000, 80_000])
        length = die.choice([1, 5000, 70_000, 1 << 40])
        copied = await self.volume.copy(source, offset, target, target_offset, length)
        return copied, self.seen(await self.volume.getattr(target.ino)), await contents(self.volume, target.ino)

    async def read(self, die: random.Random) -> Any:
        return await contents(self.volume, await self.file(die))

    async def open(self, die: random.Random) -> None:
        ino = await self.file(die)
        if stat.S_ISREG((await self.volume.getattr(ino)).mode):
            self.handles.append((ino, await self.volume.open(ino, os.O_RDWR)))

    async def close(self, die: random.Random) -> None:
        if self.handles:
            _, handle = self.handles.pop(die.randrange(len(self.handles)))
            await self.volume.flush(handle)
            await self.volume.release(handle)

    async def fsync(self, die: random.Random) -> None:
        if self.handles:
            await self.volume.fsync(die.choice(self.handles)[1])

    async def pause(self, die: random.Random) -> None:
        """Let what is under way get on."""
        for _ in range(die.randint(1, 30)):
            await trio.lowlevel.checkpoint()

    async def stat(self, die: random.Random) -> Any:
        attr = await self.volume.getattr(await self.file(die))
        return self.seen(attr)

    async def sync(self, die: random.Random) -> None:
        await self.volume.syncfs()
        self.compare()

    async def drop(self, die: random.Random) -> None:
        """Everything known is forgotten, as after a recall."""
        self.volume._session.leases.recall(list(self.inos), trio.current_time())

    async def lookup(self, die: random.Random) -> Any:
        return self.seen(await self.volume.lookup(await self.directory(die), die.choice(NAMES)))

    async def list(self, die: random.Random) -> Any:
        handle = await self.volume.opendir(await self.directory(die))
        page = await self.volume.readdir(handle, 0)
        return [(name, self.seen(attr)) for name, attr, _ in page]

    def compare(self) -> None:
        """All that is known of inodes, names and extents is so at the service."""
        facts = self.volume._session.leases.facts
        for ino in self.inos:
            record = facts.peek(ino)
            if record is None or record.attr is None:
                continue
            (result,) = self.world.machine.query([api.GetExtents(ino, 0, 1 << 40)])
            if isinstance(result, api.Failed):
                (result,) = self.world.machine.query([api.GetAttr(ino)])
            assert isinstance(result, (api.AttrResult, api.Extents)), (record.attr, result)
            file = self.volume._files.get(ino)
            if file is None or not file.dirty:
                assert record.attr == result.attr
            if isinstance(result, api.Extents) and record.layout is not None and record.layout.end > 1 << 40:
                if record.layout.data_version == result.attr.data_version:
                    assert record.layout.extents == result.extents
            for name, child in record.names.items():
                assert self.world.machine.child(ino, name) == child


async def compare(plan: list[tuple[str, int]], log_data: bool = False) -> int:
    """Play a plan in both worlds; return how many changes the mount made by itself."""
    own, other = World(alone=True, log_data=log_data), World()
    async with own.mount() as mine, other.mount(local_names=False) as theirs:
        lives = Life(own, mine), Life(other, theirs)
        for number, (kind, seed) in enumerate(plan):
            seen = [await life.step(kind, seed) for life in lives]
            assert seen[0] == seen[1], (number, kind, seen)
        for life in lives:
            for _, handle in life.handles:
                await life.volume.flush(handle)
                await life.volume.release(handle)
            await life.volume.syncfs()
        lives[0].compare()
        done = mine._local.done
    own.check()
    other.check()
    assert not other.machine.logged_blocks
    assert tree(own) == tree(other)
    return done


def tree(world: World) -> object:
    """All names with what they lead to, but for numbers and times."""

    def below(ino: int) -> dict[bytes, object]:
        (page,) = world.machine.query([api.ReadDir(ino, b"", 1000, True)])
        assert isinstance(page, api.Entries)
        found: dict[bytes, object] = {}
        for entry in page.entries:
            attr = entry.attr
            assert attr is not None
            inner = below(entry.ino) if stat.S_ISDIR(attr.mode) else None
            found[entry.name] = attr.mode, attr.nlink, attr.uid, attr.gid, attr.size, attr.stored, inner
        return found

    return below(ROOT_INO)


@settings(max_examples=300 if LONG else 80, deadline=None)
@given(st.lists(steps, min_size=1, max_size=60), st.booleans())
def test_like_the_service(plan: list[tuple[str, int]], log_data: bool) -> None:
    trio.run(compare, plan, log_data)


@pytest.mark.parametrize("seed", range(20 if LONG else 6))
def test_like_the_service_for_long(seed: int) -> None:
    die = random.Random(seed)
    kinds = (
        "make mkdir symlink link unlink rmdir rename exchange chmod utimes write write append copy truncate truncate "
        "read close open fsync sync drop list pause stat stat"
    ).split()
    plan = [(die.choice(kinds), die.randrange(1 << 30)) for _ in range(600)]
    assert trio.run(compare, plan, seed % 2 == 1) > 15


def count_submits(world: World) -> int:
    return sum(isinstance(request, api.Submit) for request in world.member.requests)


async def test_a_thousand_files_take_a_few_requests() -> None:
    world = World(alone=True)
    async with world.mount() as volume:
        directory = await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
        await volume.mknod(directory.ino, b"first", 0o100644, 0, 0, 0)  # has inode numbers fetched
        await trio.testing.wait_all_tasks_blocked()
        before = count_submits(world)
        for number in range(1000):
            handle, _ = await volume.create(directory.ino, b"%d" % number, 0o644, os.O_WRONLY, 0, 0)
            await volume.write(handle, 0, b"%d" % number)
            await volume.flush(handle)
            await volume.release(handle)
        await volume.syncfs()
        assert count_submits(world) - before < 100
    world.check()


@pytest.mark.parametrize("hole", [False, True])
async def test_little_is_copied_without_asking(hole: bool) -> None:
    """But for holes, which stay holes."""
    world = World(alone=True)
    async with world.mount() as volume:
        source, _ = await volume.create(ROOT_INO, b"source", 0o644, os.O_RDWR, 0, 0)
        await volume.write(source, 20_000 if hole else 0, b"x" * 10_000)
        await volume.syncfs()
        data = await contents(volume, source.ino)
        before = len(world.member.requests)
        target, _ = await volume.create(ROOT_INO, b"target", 0o644, os.O_RDWR, 0, 0)
        assert await volume.copy(source, 0, target, 0, 1 << 40) == len(data)
        assert await volume.copy(source, len(data), target, len(data), 1 << 40) == 0
        submits = [request for request in world.member.requests[before:] if isinstance(request, api.Submit)]
        assert any(isinstance(op, api.CloneRange) for submit in submits for op in submit.ops) == hole
        assert await contents(volume, target.ino) == data
        await volume.syncfs()
        assert (await volume.getattr(target.ino)).stored == (await volume.getattr(source.ino)).stored
        for handle in (source, target):
            await volume.release(handle)
    world.check()


async def test_what_was_not_synced_is_lost_as_a_suffix() -> None:
    """The mount dies between two batches: what arrived is a prefix of what it did."""
    for survive in range(6):
        world = World(alone=True)
        left = [survive]

        def die(request: object, left: list[int] = left) -> None:
            if isinstance(request, api.Submit) and request.journal:
                left[0] -= 1
                if left[0] < 0:
                    raise FsError(Code.UNREACHABLE, "the mount has died")

        world.member.before.append(die)
        with trio.move_on_after(3):
            async with world.mount(request_timeout_s=0.1, stop_flush_s=0.1) as volume:
                directory = await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
                await volume.mknod(directory.ino, b"first", 0o100644, 0, 0, 0)
                await trio.testing.wait_all_tasks_blocked()
                for number in range(300):
                    try:
                        await volume.mknod(directory.ino, b"%03d" % number, 0o100644, 0, 0, 0)
                    except FsError:
                        break  # it has not reached the service for so long that it does not go on by itself
                    if number % 50 == 49:
                        with trio.move_on_after(0.05):
                            await volume._session.journal.drain(trio.current_time() + 0.05)
        (page,) = world.machine.query([api.ReadDir(directory.ino, b"", 1000, True)])
        assert isinstance(page, api.Entries)
        names = [entry.name for entry in page.entries if entry.name != b"first"]
        assert names == [b"%03d" % number for number in range(len(names))]
        world.check()


@pytest.mark.parametrize("why", ["the service exchanged names", "it was long ago"])
async def test_what_is_written_comes_before_what_is_done_later_though_nothing_is_known_of_the_file(why: str) -> None:
    """Whose a file is does not depend on what the mount still knows of it."""
    world = World(alone=True)
    async with world.mount() as volume:
        await volume.mknod(ROOT_INO, b"other", 0o100644, 0, 0, 0)
        handle, attr = await volume.create(ROOT_INO, b"log", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"first ")
        if why == "it was long ago":
            volume._session.leases.facts.drop(attr.ino)
        else:
            await volume.rename(ROOT_INO, b"log", ROOT_INO, b"other", api.RENAME_EXCHANGE)
        await volume.write(handle, 6, b"second")
        assert volume._local.owned(attr.ino) is None
        await volume.mknod(ROOT_INO, b"later", 0o100644, 0, 0, 0)
        await volume._session.journal.drain(trio.current_time() + 5)
        later, log = world.machine.query([api.Lookup(ROOT_INO, b"later"), api.GetAttr(attr.ino)])
        assert isinstance(later, api.AttrResult) and isinstance(log, api.AttrResult)
        assert log.attr.size == 12
        assert (await volume.getattr(attr.ino)).size == 12
        assert await contents(volume, attr.ino) == b"first second"
        await volume.release(handle)
    world.check()
