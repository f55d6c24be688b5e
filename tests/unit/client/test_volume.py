"""A volume over a cluster in memory: what programs on a mount rely on."""

from __future__ import annotations

import os
import random
import stat

import pytest
import trio
import trio.testing

from fusefs.client.blocks import SMALL_BLOCK_BYTES
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, REWRITTEN_CHUNKS_MAX
from node.wire.types import ROOT_INO
from storage import api as storage

from .world import Gate, World, contents, seen, submits

MIB = BLOCK_BYTES_MAX


async def test_what_is_written_is_read_here_and_elsewhere() -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        handle, attr = await first.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 7, 8)
        assert (attr.mode, attr.uid, attr.gid, attr.size) == (stat.S_IFREG | 0o644, 7, 8, 0)
        assert await first.write(handle, 0, b"hello") == 5
        assert (await first.getattr(attr.ino)).size == 5
        assert bytes(await first.read(handle, 1, 100)) == b"ello"
        assert (await second.getattr(attr.ino)).size == 0, "closing makes it visible, not writing"
        await first.flush(handle)
        await first.release(handle)
        found = await second.lookup(ROOT_INO, b"f")
        assert (found.ino, found.size) == (attr.ino, 5)
        assert await contents(second, found.ino) == b"hello"
    world.check()


async def test_a_small_file_costs_one_put_and_two_submits() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_WRONLY, 0, 0)
        await volume.write(handle, 0, b"x" * 4096)
        await volume.flush(handle)
        await volume.release(handle)
        await volume.flush(handle)
    assert len(world.store.puts) == 1
    submits = [request for request in world.member.requests if isinstance(request, api.Submit)]
    assert [type(op) for request in submits for op in request.ops] == [api.Make, api.Commit]


async def test_who_wrote_small_files_has_them_still() -> None:
    """What is copied after it was unpacked is not fetched; of a large file nothing is kept."""
    world = World(alone=True)
    async with world.mount() as volume:
        inos = {}
        for size in (10, SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES + 1):
            handle, attr = await volume.create(ROOT_INO, b"%d" % size, 0o644, os.O_WRONLY, 0, 0)
            for at in range(0, size, 10_000):
                await volume.write(handle, at, b"x" * min(10_000, size - at))
            await volume.flush(handle)
            await volume.release(handle)
            inos[size] = attr.ino
        await volume.syncfs()
        assert len(world.store.blocks) == 3
        for size, ino in inos.items():
            assert await contents(volume, ino) == b"x" * size
            assert bool(world.store.gets) == (size > SMALL_BLOCK_BYTES)
    world.check()


async def test_a_long_write_streams_before_it_is_closed() -> None:
    world = World()
    data = random.Random(1).randbytes(5 * MIB + 77)
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        rule, streamed = seen(
            lambda request: any(isinstance(op, api.Commit) and op.size >= 5 * MIB for op in getattr(request, "ops", ()))
        )
        world.member.after.append(rule)
        for at in range(0, len(data), 128 * 1024):
            await volume.write(handle, at, data[at : at + 128 * 1024])
        with trio.fail_after(5):
            await streamed.wait()
            await trio.testing.wait_all_tasks_blocked()
        assert volume.statistics()["write_back"]["dirty_bytes"] < 2 * MIB
        await volume.fsync(handle)
        assert world.machine.query((api.GetAttr(attr.ino),))[0].attr.size == len(data)  # type: ignore[union-attr]
        await volume.release(handle)
        assert await contents(volume, attr.ino) == data
    blocks = {extent.block for op in world.ops(api.Commit) for extent in op.extents}
    assert len(blocks) == 6, "whole chunks, each once"
    world.check()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("first", [1, 300_000, MIB, MIB + 700_000])
async def test_a_long_write_is_committed_in_file_order_wherever_it_was_synced(first: int, alone: bool) -> None:
    """Killed between two commits, a file has no hole where bytes were written."""
    world = World(alone=alone)
    data = random.Random(first).randbytes(23 * MIB + 77)
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, data[:first])
        await volume.fsync(handle)  # so what comes next begins in the middle of a chunk
        slow = Gate(lambda request: isinstance(request, storage.Put))
        world.store.before.append(slow)
        for at in range(first, len(data), 128 * 1024):
            await volume.write(handle, at, data[at : at + 128 * 1024])
            if at > 12 * MIB:
                slow.opened.set()
        await volume.fsync(handle)
        await volume.release(handle)
        assert await contents(volume, attr.ino) == data
    end = 0
    for commit in world.ops(api.Commit):
        for extent in commit.extents:
            assert extent.offset <= end, f"committed at {extent.offset} while bytes from {end} on were not"
            end = max(end, extent.offset + extent.length)
        assert commit.size == end
    assert end == len(data)
    world.check()


async def test_what_replaces_bytes_while_they_are_synced_is_synced_in_their_place() -> None:
    """When fsync returns the place has the bytes of before, or newer ones: not neither."""
    world = World(alone=True)
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"0" * 100)
        await volume.fsync(handle)
        slow = Gate(lambda request: isinstance(request, storage.Put))
        world.store.before.append(slow)
        await volume.write(handle, 100, b"1" * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await slow.reached.wait()
            await volume.write(handle, 0, b"2" * 100)
            await volume.write(handle, 2 * MIB, b"3" * 100)
            nursery.start_soon(volume.fsync, handle)  # waits for the first
            await trio.testing.wait_all_tasks_blocked()
            await volume.write(handle, 0, b"4" * 50)
            await volume.write(handle, 3 * MIB, b"5" * 100)
            slow.opened.set()
        (commit,) = [op for op in world.ops(api.Commit) if any(one.offset == 2 * MIB for one in op.extents)]
        synced = commit.extents[0]
        assert (synced.offset, synced.length) == (0, 100), "a commit with a hole where bytes were"
        encoded, _ = world.store.blocks[synced.block]
        plain = storage.decode_block(encoded, synced.block, 0, 100, synced.block_length)
        assert bytes(plain) == b"4" * 50 + b"2" * 50
        await volume.release(handle)
    world.check()


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_APPEND])
async def test_a_file_that_is_written_and_closed_again_and_again_stays_in_its_place_each_time(flags: int) -> None:
    """Each time its bytes of then are brought, between what was done before and after, in one entry."""
    world = World(alone=True)
    async with world.mount() as volume:
        directory = (await volume.mkdir(ROOT_INO, b"d", 0o700, 0, 0)).ino
        await volume.mknod(directory, b"first", 0o100644, 0, 0, 0)  # has inode numbers fetched
        await trio.testing.wait_all_tasks_blocked()
        slow = Gate(lambda request: isinstance(request, storage.Put))
        world.store.before.append(slow)
        handle, attr = await volume.create(directory, b"f", 0o644, flags, 0, 0)
        for number in range(3):
            await volume.write(handle, 0 if flags == os.O_RDWR else 4 * number, b"%d" % number * 4)
            await volume.flush(handle)
            await volume.mknod(directory, b"%d" % number, 0o100644, 0, 0, 0)
        slow.opened.set()
        await volume.syncfs()
        batches = [request.ops for request in world.member.requests if isinstance(request, api.Submit)]
        (batch,) = [ops for ops in batches if any(isinstance(op, api.Commit) for op in ops)]
        assert [type(op) for op in batch] == [api.Make, *[api.Commit, api.Make] * 3]
        for number, op in enumerate(batch[1::2]):
            encoded, _ = world.store.blocks[op.extents[0].block]
            plain = storage.decode_block(encoded, op.extents[0].block, 0, 4, 4)
            assert bytes(plain) == b"%d" % number * 4
        await volume.release(handle)
        assert await contents(volume, attr.ino) == (b"2222" if flags == os.O_RDWR else b"000011112222")
    world.check()


async def test_holes_are_zeros_and_reads_end_at_the_end() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 3 * MIB, b"end")
        await volume.flush(handle)
        await volume.write(handle, 10, b"x")
        assert bytes(await volume.read(handle, 0, 20)) == bytes(10) + b"x" + bytes(9)
        assert bytes(await volume.read(handle, 3 * MIB - 2, 100)) == b"\0\0end"
        assert bytes(await volume.read(handle, 3 * MIB + 3, 100)) == b""
        assert bytes(await volume.read(handle, 9 * MIB, 100)) == b""
        await volume.release(handle)
        assert (await volume.getattr(attr.ino)).stored == 4


async def test_setting_times_after_writing_keeps_them() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        changed = await volume.setattr(attr.ino, mtime_ns=12345, atime_ns=77, handle=handle)
        assert (changed.mtime_ns, changed.size) == (12345, 4)
        await volume.flush(handle)
        await volume.release(handle)
        assert (await volume.getattr(attr.ino)).mtime_ns == 12345
        steps = [[type(op) for op in getattr(request, "ops", ())] for request in world.member.requests]
        assert [api.Commit, api.SetAttr] in steps, "one step"


async def test_a_failing_setattr_says_so_and_the_data_is_committed() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        with pytest.raises(FsError):
            await volume.setattr(attr.ino, size=-5)
        await volume.flush(handle)
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"data"


async def test_truncate_of_dirty_data_cuts_it_and_growth_is_zeros() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"0123456789")
        assert (await volume.setattr(attr.ino, size=4)).size == 4
        assert bytes(await volume.read(handle, 0, 100)) == b"0123"
        assert (await volume.setattr(attr.ino, size=8)).size == 8
        assert bytes(await volume.read(handle, 0, 100)) == b"0123" + bytes(4)
        await volume.release(handle)
        again = await volume.open(attr.ino, os.O_WRONLY | os.O_TRUNC)
        assert (await volume.getattr(attr.ino)).size == 0
        await volume.release(again)
    world.check()


async def test_appends_of_two_mounts_all_land_at_the_end() -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        one, attr = await first.create(ROOT_INO, b"log", 0o644, os.O_WRONLY | os.O_APPEND, 0, 0)
        two = await second.open(attr.ino, os.O_WRONLY | os.O_APPEND)
        for round_ in range(40):
            await first.write(one, 0, b"a%03d\n" % round_)
            await second.write(two, 0, b"b%03d\n" % round_)
            if round_ % 3 == 0:
                await first.flush(one)
            if round_ % 5 == 0:
                await second.fsync(two)
        assert (await second.getattr(attr.ino)).size > 0
        await first.flush(one)
        await second.flush(two)
        lines = (await contents(first, attr.ino)).splitlines()
        assert sorted(lines) == sorted([b"%c%03d" % (who, n) for who in b"ab" for n in range(40)])
        for who in (b"a", b"b"):
            mine = [line for line in lines if line.startswith(who)]
            assert mine == sorted(mine), "each in its own order"
        await first.release(one)
        await second.release(two)
    world.check()


async def test_append_streams_and_crosses_chunks() -> None:
    world = World()
    data = random.Random(2).randbytes(3 * MIB + 10)
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR | os.O_APPEND, 0, 0)
        await volume.write(handle, 0, b"head")
        theirs = await other.open(attr.ino, os.O_WRONLY)
        await other.write(theirs, 0, b"0123456789")
        await other.flush(theirs)
        for at in range(0, len(data), 100_000):
            await volume.write(handle, 0, data[at : at + 100_000])
        await volume.flush(handle)
        found = await contents(volume, attr.ino)
        assert found == b"0123456789" + b"head" + data
        await volume.release(handle)
        await other.release(theirs)
    world.check()


async def test_an_open_file_outlives_its_name_on_both_mounts() -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        one, attr = await first.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await first.write(one, 0, b"data")
        await first.flush(one)
        two = await second.open((await second.lookup(ROOT_INO, b"f")).ino, os.O_RDONLY)
        await first.unlink(ROOT_INO, b"f")
        await first.write(one, 4, b"more")
        await first.flush(one)
        assert bytes(await second.read(two, 0, 100)) == b"datamore"
        assert (await first.getattr(attr.ino)).nlink == 0
        await first.release(one)
        assert bytes(await second.read(two, 0, 100)) == b"datamore"
        await second._session.renew()
        assert bytes(await second.read(two, 0, 100)) == b"datamore"
        await second.release(two)
        await trio.testing.wait_all_tasks_blocked()
        for volume in (first, second):
            with pytest.raises(FsError) as raised:
                await volume.open(attr.ino, os.O_RDONLY)
            assert raised.value.code is Code.STALE
        assert world.machine.files == 1
    world.check()


async def test_removal_of_what_nobody_holds_frees_it_at_once() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.release(handle)
        await volume.unlink(ROOT_INO, b"f")
        assert world.ops(api.Remove)[-1].not_held == (attr.ino,)
        assert world.machine.files == 1
        with pytest.raises(FsError) as raised:
            await volume.getattr(attr.ino)
        assert raised.value.code is Code.STALE


async def test_other_mounts_removals_are_released_by_renewal() -> None:
    world = World()
    async with world.mount() as first, world.mount() as second:
        handle, attr = await first.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await first.release(handle)
        await first.unlink(ROOT_INO, b"f")
        assert world.machine.files == 2, "the second mount might have it open"
        await second._session.renew()
        await trio.testing.wait_all_tasks_blocked()
        assert world.machine.files == 1


async def test_directories_list_everything_once_while_names_come_and_go() -> None:
    world = World()
    async with world.mount() as volume:
        home = await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
        names = [b"n%05d" % index for index in range(2500)]
        for name in names:
            await volume.mknod(home.ino, name, stat.S_IFREG | 0o600, 0, 0, 0)
        handle = await volume.opendir(home.ino)
        seen: list[bytes] = []
        offset = 0
        while page := await volume.readdir(handle, offset):
            for name, attr, following in page[:700]:
                assert attr.ino and following == offset + 1
                seen.append(name)
                offset = following
            await volume.unlink(home.ino, seen[len(seen) // 2])
        assert seen == names, "what was there all the time, exactly once, in order"
        assert await volume.readdir(handle, offset) == []
        again = await volume.readdir(handle, 5)
        assert [name for name, _, _ in again][:2] == names[5:7]
        assert (await volume.readdir(handle, 0))[0][0] == names[0]
        await volume.releasedir(handle)


async def test_a_directory_shows_the_size_of_dirty_files() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"12345")
        listing = await volume.readdir(await volume.opendir(ROOT_INO), 0)
        assert [(name, found.size) for name, found, _ in listing] == [(b"f", 5)]
        assert (await volume.lookup(ROOT_INO, b"f")).size == 5
        await volume.release(handle)


async def test_a_name_moves_only_after_its_data() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"new", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        await volume.rename(ROOT_INO, b"new", ROOT_INO, b"old", 0)
        kinds = [type(op) for request in world.member.requests if isinstance(request, api.Submit) for op in request.ops]
        assert kinds == [api.Make, api.Commit, api.Rename]
        await volume.write(handle, 4, b"!")
        await volume.link(attr.ino, ROOT_INO, b"other")
        assert [type(op) for request in world.member.requests[-2:] for op in request.ops] == [api.Commit, api.Link]
        await volume.release(handle)


async def test_create_without_exclusive_opens_what_is_there() -> None:
    world = World()
    async with world.mount() as volume:
        first, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(first, 0, b"data")
        await volume.release(first)
        again, found = await volume.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        assert (found.ino, found.size, stat.S_IMODE(found.mode)) == (attr.ino, 4, 0o644)
        with pytest.raises(FsError) as raised:
            await volume.create(ROOT_INO, b"f", 0o600, os.O_RDWR | os.O_EXCL, 0, 0)
        assert raised.value.code is Code.EXISTS
        cut, found = await volume.create(ROOT_INO, b"f", 0o600, os.O_RDWR | os.O_TRUNC, 0, 0)
        assert (found.ino, found.size) == (attr.ino, 0)
        for handle in (again, cut):
            await volume.release(handle)
        assert not volume.held(attr.ino)


async def test_extended_attributes_links_and_symlinks() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.setxattr(attr.ino, b"user.a", b"1")
        assert await volume.getxattr(attr.ino, b"user.a") == b"1"
        assert await volume.listxattr(attr.ino) == [b"user.a"]
        await volume.removexattr(attr.ino, b"user.a")
        with pytest.raises(FsError) as raised:
            await volume.getxattr(attr.ino, b"user.a")
        assert raised.value.code is Code.NO_ATTRIBUTE
        link = await volume.symlink(ROOT_INO, b"s", b"target", 1, 2)
        assert stat.S_ISLNK(link.mode) and await volume.readlink(link.ino) == b"target"
        assert (await volume.statfs()).files == 3
        await volume.release(handle)


async def test_many_small_overwrites_of_one_chunk_are_rewritten() -> None:
    world = World()
    rng = random.Random(3)
    model = bytearray(rng.randbytes(MIB))
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, bytes(model))
        await volume.release(handle)
        handle = await volume.open(attr.ino, os.O_RDWR)
        for _ in range(100):
            at, data = rng.randrange(MIB - 100), rng.randbytes(100)
            await volume.write(handle, at, data)
            model[at : at + 100] = data
            await volume.fsync(handle)
            extents = world.machine.query((api.GetExtents(attr.ino, 0, MIB),))[0]
            assert len(extents.extents) <= 64  # type: ignore[union-attr]
        for at in range(0, MIB, 4096):
            await volume.write(handle, at, b"z" * 100)
            model[at : at + 100] = b"z" * 100
        await volume.fsync(handle)
        assert volume.statistics()["write_back"]["rewrites"] >= 2
        await volume.release(handle)
        assert await contents(volume, attr.ino) == bytes(model)
    world.check()


@pytest.mark.parametrize("delayed", [False, True])
async def test_chunks_are_rewritten_some_at_a_time(delayed: bool) -> None:
    """Along with the others of a flush, in a few commits. ``delayed``: what was touched before has to be touched again
    before the first of them."""
    world = World()
    chunks, dense = 12, [chunk for chunk in range(12) if chunk % 4]
    model = bytearray(random.Random(4).randbytes(chunks * MIB))
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        for at in range(0, len(model), MIB):
            await volume.write(handle, at, bytes(model[at : at + MIB]))
        await volume.release(handle)
        handle = await volume.open(attr.ino, os.O_RDWR)
        for chunk in range(chunks):
            for number in range(70 if chunk in dense else 2):
                at, data = chunk * MIB + number * 9000, b"%04d" % number
                await volume.write(handle, at, data)
                model[at : at + 4] = data
        before = len(world.ops(api.Commit))
        gate = Gate(submits(api.Commit))
        if delayed:
            world.member.before.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            if delayed:
                await gate.reached.wait()
                for _ in range(2):
                    world.advance_epoch()
                gate.opened.set()
        commits = world.ops(api.Commit)[before:]
        assert len(commits) <= -(-len(dense) // REWRITTEN_CHUNKS_MAX) + 1 + delayed
        assert volume.statistics()["write_back"]["rewrites"] >= len(dense)
        await volume.release(handle)
        assert await contents(volume, attr.ino) == bytes(model)
    world.check()


async def test_many_small_appends_are_rewritten_too() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"log", 0o644, os.O_WRONLY, 0, 0)
        await volume.release(handle)
        for index in range(150):
            handle = await volume.open(attr.ino, os.O_WRONLY | os.O_APPEND)
            await volume.write(handle, 0, b"line %04d\n" % index)
            await volume.flush(handle)
            await volume.release(handle)
        extents = world.machine.query((api.GetExtents(attr.ino, 0, MIB),))[0]
        assert len(extents.extents) <= 64  # type: ignore[union-attr]
        assert await contents(volume, attr.ino) == b"".join(b"line %04d\n" % index for index in range(150))
    world.check()


async def test_many_small_blocks_come_in_few_requests() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        model = bytearray(400_000)
        for at in range(0, 400_000, 10_000):
            model[at : at + 100] = bytes([at // 10_000]) * 100
            await volume.write(handle, at, bytes(model[at : at + 100]))
        await volume.flush(handle)
        await volume.setattr(attr.ino, size=400_000)
        for store in world.stores.values():
            store.gets.clear()
        assert bytes(await volume.read(handle, 0, 400_000)) == bytes(model)
        assert len(world.store.gets) == 1
        assert volume.statistics()["blocks"]["fetching"] == 0
        await volume.release(handle)


async def test_a_lost_block_among_small_ones_is_an_error_that_names_it(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        for at in range(0, 100_000, 10_000):
            await volume.write(handle, at, b"%d" % at)
        await volume.flush(handle)
        lost = world.ops(api.Commit)[0].extents[4].block
        del world.store.blocks[lost]
        with pytest.raises(FsError) as raised:
            await volume.read(handle, 0, 100_000)
        assert raised.value.errno == 5 and lost.hex() in raised.value.detail
        assert lost.hex() in caplog.text
        assert bytes(await volume.read(handle, 0, 10)) == b"0" + bytes(9)
        await volume.release(handle)
