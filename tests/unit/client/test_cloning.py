"""Clones share blocks, keep metadata, and are cut into entries of bounded size."""

from __future__ import annotations

import os
import stat

import pytest

from fusefs.client import cloning
from fusefs.client.volume import Volume
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import KIB
from node.wire.types import ROOT_INO

from .world import World, contents

Tree = dict[bytes, tuple[object, ...]]


async def write(volume: Volume, parent: int, name: bytes, *parts: tuple[int, bytes], mode: int = 0o640) -> int:
    handle, attr = await volume.create(parent, name, mode, os.O_RDWR, 7, 8)
    for offset, data in parts:
        await volume.write(handle, offset, data)
    await volume.release(handle)
    return attr.ino


async def tree_of(volume: Volume, ino: int, path: bytes = b"") -> Tree:
    """All that a clone keeps, by path; hard links by the path that was met first."""
    found: Tree = {}
    inodes: dict[int, bytes] = {}
    waiting = [(path, ino)]
    while waiting:
        path, ino = waiting.pop(0)
        attr = await volume.getattr(ino)
        data: object = inodes.setdefault(ino, path)
        if stat.S_ISREG(attr.mode):
            data = inodes[ino], await contents(volume, ino), attr.stored
        elif stat.S_ISLNK(attr.mode):
            data = await volume.readlink(ino)
        xattrs = tuple([(name, await volume.getxattr(ino, name)) for name in sorted(await volume.listxattr(ino))])
        size = 0 if stat.S_ISDIR(attr.mode) else attr.size
        found[path] = (attr.mode, attr.uid, attr.gid, attr.rdev, size, attr.atime_ns, attr.mtime_ns, data, xattrs)
        if stat.S_ISDIR(attr.mode):
            directory = await volume.opendir(ino)
            page = await volume.readdir(directory, 0)
            assert len(page) < 1000
            waiting += [(path + b"/" + name, entry.ino) for name, entry, _ in page]
    return found


@pytest.mark.parametrize("batch", [1, 7, 512])
async def test_a_tree_is_cloned_with_all_that_belongs_to_it(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "BATCH_OPS_MAX", batch)
    monkeypatch.setattr(cloning, "PAGE_ENTRIES", 3)
    world = World()
    async with world.mount() as volume:
        top = (await volume.mkdir(ROOT_INO, b"top", 0o2750, 5, 6)).ino
        below = (await volume.mkdir(top, b"below", 0o1777, 9, 9)).ino
        for number in range(8):
            await write(volume, below, b"f%d" % number, (0, b"%d" % number * 1000))
        sparse = await write(volume, top, b"sparse", (100, b"a" * 5000), (3 << 20, b"b"), mode=0o4755)
        await volume.setattr(sparse, size=5 << 20)
        await volume.setattr(sparse, mode=0o4755, atime_ns=1_000_000_007, mtime_ns=-5)
        await volume.link(sparse, below, b"the same")
        await volume.setxattr(sparse, b"user.colour", b"blue")
        await volume.setxattr(top, b"user.empty", b"")
        await volume.symlink(below, b"link", b"../sparse", 1, 2)
        await volume.mknod(top, b"device", stat.S_IFCHR | 0o600, 0x501, 0, 0)
        await volume.setattr(below, mtime_ns=12345)
        stored, puts = dict(world.store.blocks), len(world.store.puts)
        cloned = await volume.clone(top, ROOT_INO, b"copy")
        assert (cloned.files, cloned.directories) == (11, 2)
        assert await tree_of(volume, cloned.ino) == await tree_of(volume, top)
        assert (await volume.lookup(ROOT_INO, b"copy")).ino == cloned.ino
        assert world.store.blocks == stored and len(world.store.puts) == puts, "no data moved"
        copy = (await volume.lookup(cloned.ino, b"sparse")).ino
        handle = await volume.open(copy, os.O_RDWR)
        await volume.write(handle, 0, b"changed")
        await volume.release(handle)
        assert (await contents(volume, sparse))[:7] == bytes(7), "the original is another file"
        with pytest.raises(FsError) as raised:
            await volume.clone(top, ROOT_INO, b"copy")
        assert raised.value.code is Code.EXISTS
    world.check()


async def test_a_file_with_more_extents_than_one_entry_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metadata.state.files.COMMIT_EXTENTS_MAX", 10)
    world = World()
    async with world.mount() as volume:
        parts = [(number * 128 * KIB, b"%d" % number * 100) for number in range(40)]
        source = await write(volume, ROOT_INO, b"pieces", *parts)
        cloned = await volume.clone(source, ROOT_INO, b"copy")
        assert await contents(volume, cloned.ino) == await contents(volume, source)
        assert len(world.ops(api.CloneRange)) > 3
    world.check()


async def test_a_lone_symlink_and_an_empty_file() -> None:
    world = World()
    async with world.mount() as volume:
        link = (await volume.symlink(ROOT_INO, b"l", b"nowhere", 1, 2)).ino
        empty = await write(volume, ROOT_INO, b"e")
        for ino, name in ((link, b"l2"), (empty, b"e2")):
            cloned = await volume.clone(ino, ROOT_INO, name)
            assert await tree_of(volume, cloned.ino) == await tree_of(volume, ino)


async def test_a_user_makes_nothing_that_belongs_to_others() -> None:
    world = World()
    async with world.mount() as volume:
        top = (await volume.mkdir(ROOT_INO, b"top", 0o2755, 5, 6)).ino
        theirs = await write(volume, top, b"theirs", (0, b"data"), mode=0o4755)
        mine = await write(volume, top, b"mine", (0, b"data"), mode=0o4750)
        await volume.setattr(mine, uid=9, gid=11)
        await volume.setattr(mine, mode=0o4750)
        for ino in (theirs, mine):
            await volume.setxattr(ino, b"user.a", b"1", 0)
            await volume.setxattr(ino, b"trusted.b", b"2", 0)
        user = cloning.User(9, 10, frozenset({11}))
        made = (await volume.clone(top, ROOT_INO, b"copy", user=user)).ino
        attr = await volume.getattr(made)
        assert (attr.uid, attr.gid, stat.S_IMODE(attr.mode)) == (9, 10, 0o755)
        other = (await volume.lookup(made, b"theirs")).ino
        own = (await volume.lookup(made, b"mine")).ino
        attr = await volume.getattr(other)
        assert (attr.uid, attr.gid, stat.S_IMODE(attr.mode)) == (9, 10, 0o755)
        attr = await volume.getattr(own)
        assert (attr.uid, attr.gid, stat.S_IMODE(attr.mode)) == (9, 11, 0o4750)
        for ino in (other, own):
            assert list(await volume.listxattr(ino)) == [b"user.a"]
            assert await contents(volume, ino) == b"data"
        await volume.mknod(top, b"device", stat.S_IFCHR | 0o600, 0x103, 0, 0)
        with pytest.raises(FsError) as refused:
            await volume.clone(top, ROOT_INO, b"again", user=user)
        assert refused.value.code is Code.PERMISSION
    world.check()
