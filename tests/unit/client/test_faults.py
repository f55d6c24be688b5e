"""What the client promises when peers fail, answer late, forget it, or are full."""

from __future__ import annotations

import logging
import os

import pytest
import trio
import trio.testing

from fusefs.client import session as session_module
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX
from node.wire.types import ROOT_INO
from storage import api as storage

from .world import Gate, World, always, contents, once, seen, submits

MIB = BLOCK_BYTES_MAX
RDWR = os.O_RDWR


# --- exactly once, and the way to the leader ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.UNREACHABLE, Code.TIMEOUT])
async def test_a_lost_reply_does_not_execute_twice(code: Code, autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        world.member.after.append(once(api.Submit, code))
        home = await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
        assert len(world.ops(api.Make)) == 2, "sent twice"
        assert home.ino == (await volume.lookup(ROOT_INO, b"d")).ino
        assert world.machine.files == 2


async def test_the_leader_is_found_by_hint(autojump_clock: object) -> None:
    world = World(members=3)
    world.metadata[1].leads, world.metadata[1].hint = False, 3
    world.metadata[2].leads = False
    async with world.mount() as volume:
        start = trio.current_time()
        await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
        assert trio.current_time() == start
        assert not world.metadata[2].requests and world.metadata[3].requests
        world.metadata[3].leads, world.metadata[3].hint = False, 0
        world.metadata[2].leads = True
        await volume.mkdir(ROOT_INO, b"e", 0o755, 0, 0)
        assert trio.current_time() - start < 0.1


async def test_a_new_leaders_term_is_adopted_and_named_at_once(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        assert volume.statistics()["session"]["term"] == 1
        world.term = 2
        start = trio.current_time()
        await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
        assert world.member.requests[-1].lease_term == 2 and world.machine.files == 2
        world.term = 3
        async with trio.open_nursery() as nursery:
            for name in (b"e", b"f", b"g"):
                nursery.start_soon(volume.mkdir, ROOT_INO, name, 0o755, 0, 0)
                nursery.start_soon(volume.getattr, ROOT_INO)
        assert trio.current_time() == start
        world.term = 4
        world.member.connected = False  # an idle mount notices by itself, before its next renewal is due
        await trio.sleep(0.6)
        world.member.connected = True
        assert world.member.requests[-1].lease_term == 4


async def test_silence_is_a_timeout_at_the_deadline_and_nothing_comes_later(autojump_clock: object) -> None:
    world = World()
    async with world.mount(request_timeout_s=7.0) as volume:
        gate = Gate(submits(api.Make))
        world.member.before.append(gate)
        start = trio.current_time()
        with pytest.raises(FsError) as raised:
            await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
        assert raised.value.code is Code.TIMEOUT
        assert trio.current_time() - start == pytest.approx(7.0, abs=0.6)
        world.member.before.remove(gate)
        await volume.mkdir(ROOT_INO, b"e", 0o755, 0, 0)
        last = world.member.requests[-1]
        assert last.lowest_unacked == last.sequence, "what was given up is never executed"


async def test_an_expired_session_costs_what_was_open_and_unwritten_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"kept")
        await volume.flush(handle)
        await volume.write(handle, 4, b"lost")
        first = volume._session.id
        world.expire(first)
        home = await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)  # under the new session, without an error
        assert volume._session.id != first and home.ino
        assert "4 bytes in [4, 8) are lost" in caplog.text and "has expired" in caplog.text
        for action in (
            lambda: volume.write(handle, 0, b"x"),
            lambda: volume.read(handle, 0, 10),
            lambda: volume.flush(handle),
            lambda: volume.fsync(handle),
        ):
            with pytest.raises(FsError) as raised:
                await action()
            assert raised.value.errno == 5
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"kept"
        assert volume.statistics()["write_back"]["dirty_bytes"] == 0
    caplog.clear()
    world.check()


async def test_who_syncs_what_the_journal_had_taken_hears_of_an_expired_session_at_once() -> None:
    world = World(alone=True)
    async with world.mount() as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.syncfs()
        volume._session.journal.delay_s = 1000.0
        await volume.write(handle, 0, b"lost")
        await volume.flush(handle)
        assert handle.file.reserved and volume._session.journal
        world.expire(volume._session.id)
        volume._session._lost(volume._session.id)  # as any answer tells
        began = trio.current_time()
        for action in (volume.fsync, volume.flush):
            with pytest.raises(FsError) as raised:
                await action(handle)
            assert raised.value.errno == 5
        assert trio.current_time() < began + 1
        await volume.release(handle)
    world.check()


async def test_a_commit_is_never_carried_over_to_a_new_session() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        gate = Gate(submits(api.Commit))
        world.member.before.append(gate)
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                with pytest.raises(FsError) as raised:
                    await volume.flush(handle)
                assert raised.value.errno == 5

            nursery.start_soon(close)
            await gate.reached.wait()
            world.expire(volume._session.id)
            gate.opened.set()
        await volume.release(handle)
        assert (await volume.lookup(ROOT_INO, b"f")).size == 0


# --- order of durability ------------------------------------------------------------------------------------------


async def test_nothing_is_committed_before_its_blocks_are_durable() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        gate = Gate(lambda request: isinstance(request, storage.Put))
        world.store.after.append(gate)
        await volume.write(handle, 0, b"data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.flush, handle)
            await gate.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert not world.ops(api.Commit)
            assert bytes(await volume.read(handle, 0, 10)) == b"data"
            gate.opened.set()
        assert len(world.ops(api.Commit)) == 1
        await volume.release(handle)


async def test_a_reader_beside_a_commit_sees_neither_holes_nor_an_older_size() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        slow = Gate(lambda request: isinstance(request, api.Read))
        world.member.after.append(slow)  # answers that were true before the commit, and arrive after it
        sizes: list[int] = []
        found: list[bytes] = []

        async def look() -> None:
            sizes.append((await volume.getattr(attr.ino)).size)

        async def lookup() -> None:
            sizes.append((await volume.lookup(ROOT_INO, b"f")).size)

        async def read() -> None:
            found.append(bytes(await volume.read(handle, 0, 8)))

        async with trio.open_nursery() as nursery:
            for task in (look, lookup, read):
                nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            await volume.flush(handle)
            await volume.release(handle)
            assert not volume._files
            slow.opened.set()
        assert sizes == [4, 4] and found == [b"data"]


async def test_stale_epochs_are_touched_again() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        gate = Gate(submits(api.Commit))
        world.member.before.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.flush, handle)
            await gate.reached.wait()
            for _ in range(3):
                world.advance_epoch()
            gate.opened.set()
        assert [put.touch_epoch for put in world.store.puts] == [
            world.machine.gc_epoch - 3, world.machine.gc_epoch
        ]
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"data"


async def test_a_doubtful_append_is_made_once(autojump_clock: object) -> None:
    world = World()
    async with world.mount(request_timeout_s=4.0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"log", 0o644, os.O_WRONLY | os.O_APPEND, 0, 0)
        await volume.write(handle, 0, b"one\n")
        lost = Gate(submits(api.Commit))
        world.member.after.append(lost)  # executed, and the answer never comes
        with pytest.raises(FsError) as raised:
            await volume.fsync(handle)
        assert raised.value.code is Code.TIMEOUT
        await volume.write(handle, 0, b"two\n")
        lost.opened.set()
        await volume.fsync(handle)
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"one\ntwo\n"
    world.check()


async def test_an_append_in_doubt_is_made_once_also_when_the_leader_is_full_then(autojump_clock: object) -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"log", 0o644, os.O_WRONLY | os.O_APPEND, 0, 0)
        await volume.write(handle, 0, b"one\n")
        full = always(api.Submit, Code.NO_SPACE)

        def lost(request: object) -> None:
            if submits(api.Commit)(request):
                world.member.after.remove(lost)
                world.member.before.append(full)
                raise FsError(Code.UNREACHABLE, "executed, and the answer is lost")

        world.member.after.append(lost)
        for _ in range(2):
            with pytest.raises(FsError) as raised:
                await volume.fsync(handle)
            assert raised.value.code is Code.NO_SPACE
        world.member.before.remove(full)
        await volume.write(handle, 0, b"two\n")
        await volume.fsync(handle)
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"one\ntwo\n"
        assert volume.statistics()["session"]["in_flight"] == 0
    world.check()


@pytest.mark.parametrize("code", [Code.NO_SPACE, Code.IO, Code.UNREACHABLE])
async def test_an_append_that_failed_does_not_stop_the_session_later(
    code: Code, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """What is under way for ever keeps all later results from being acknowledged, until the service takes no more."""
    monkeypatch.setattr(session_module, "RESULT_WINDOW", 16)
    world = World()
    async with world.mount(request_timeout_s=4.0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"log", 0o644, os.O_WRONLY | os.O_APPEND, 0, 0)
        await volume.write(handle, 0, b"lost\n")
        failing = always(api.Submit, code)
        world.member.before.append(failing)
        with pytest.raises(FsError):
            await volume.fsync(handle)
        world.member.before.remove(failing)
        await volume.unlink(ROOT_INO, b"log")
        await volume.release(handle)
        for number in range(20):
            await volume.mkdir(ROOT_INO, b"d%d" % number, 0o755, 0, 0)
        assert volume.statistics()["session"]["in_flight"] == 0


# --- full, slow, damaged ------------------------------------------------------------------------------------------


async def test_a_full_disk_is_told_to_each_handle_and_loses_nothing() -> None:
    world = World()
    async with world.mount() as volume:
        one, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        two = await volume.open(attr.ino, RDWR)
        world.store.full = True
        await volume.write(one, 0, b"data")
        with pytest.raises(FsError) as raised:
            await volume.fsync(one)
        assert raised.value.code is Code.NO_SPACE
        with pytest.raises(FsError) as raised:
            await volume.write(two, 4, b"more")
        assert raised.value.code is Code.NO_SPACE
        await volume.write(two, 4, b"more")  # told once
        await volume.write(one, 8, b"!")
        with pytest.raises(FsError):
            await volume.flush(one)
        assert bytes(await volume.read(one, 0, 20)) == b"datamore!"
        world.store.full = False
        await volume.fsync(one)
        await volume.fsync(two)
        await volume.release(one)
        await volume.release(two)
        assert await contents(volume, attr.ino) == b"datamore!"


async def test_after_the_last_close_on_a_full_disk_the_loss_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    lost: list[int] = []
    async with world.mount() as volume:
        volume.losses(lost.append)
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        world.store.full = True
        await volume.write(handle, 0, b"data")
        with pytest.raises(FsError) as raised:
            await volume.flush(handle)
        assert raised.value.code is Code.NO_SPACE and not lost
        await volume.release(handle)
        assert lost == [attr.ino], "what the kernel shows of it was never stored"
        assert f"inode {attr.ino}: 4 bytes in [0, 4) are lost" in caplog.text
        assert volume.statistics()["write_back"]["dirty_bytes"] == 0


async def test_what_may_still_succeed_is_tried_again_after_the_last_close(autojump_clock: object) -> None:
    world = World()
    async with world.mount(request_timeout_s=3.0, flush_after_s=1.0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        down = always(storage.Put, Code.UNREACHABLE)
        world.store.before.append(down)
        await volume.write(handle, 0, b"data")
        with pytest.raises(FsError) as raised:
            await volume.flush(handle)
        assert raised.value.code is Code.TIMEOUT
        await volume.release(handle)
        world.store.before.remove(down)
        await trio.sleep(10)
        assert (await volume.lookup(ROOT_INO, b"f")).size == 4
        assert await contents(volume, attr.ino) == b"data"


async def test_writers_wait_at_the_bound_and_go_on() -> None:
    world = World()
    async with world.mount(dirty_bytes_max=256 * 1024) as volume:
        handles = [await volume.create(ROOT_INO, b"%d" % index, 0o644, RDWR, 0, 0) for index in range(10)]
        for round_ in range(10):
            for handle, _ in handles:
                await volume.write(handle, round_ * 9000, b"x" * 9000)
                assert volume.statistics()["write_back"]["dirty_bytes"] < 300 * 1024
        assert volume.statistics()["write_back"]["waits_for_room"]
        for handle, attr in handles:
            await volume.flush(handle)
            assert (await volume.getattr(attr.ino)).size == 90_000
            await volume.release(handle)


async def test_writers_at_the_bound_hear_of_a_full_disk_promptly() -> None:
    world = World()
    async with world.mount(dirty_bytes_max=256 * 1024) as volume:
        handle, _ = await volume.create(ROOT_INO, b"a", 0o644, RDWR, 0, 0)
        other, _ = await volume.create(ROOT_INO, b"b", 0o644, RDWR, 0, 0)
        world.store.full = True
        start = trio.current_time()
        with pytest.raises(FsError) as raised:
            for index in range(1000):
                await volume.write(handle, index * 10_000, b"x" * 10_000)
        assert raised.value.code is Code.NO_SPACE
        with pytest.raises(FsError) as raised:
            await volume.write(other, 0, b"y")
        assert raised.value.code is Code.NO_SPACE
        assert trio.current_time() - start < 10, "not the deadline"
        world.store.full = False
        await volume.flush(handle)
        await volume.write(other, 0, b"y")
        await volume.release(handle)
        await volume.release(other)


async def test_a_cancelled_fsync_loses_nothing() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        gate = Gate(lambda request: isinstance(request, storage.Put))
        world.store.before.append(gate)
        await volume.write(handle, 0, b"data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await gate.reached.wait()
            nursery.start_soon(volume.setattr, attr.ino)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert bytes(await volume.read(handle, 0, 10)) == b"data"
        gate.opened.set()
        await volume.fsync(handle)
        assert not world.ops(api.SetAttr), "nobody waits for it any more"
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"data"


async def test_a_dead_chunk_server_is_an_error_in_time_and_then_serves_again(autojump_clock: object) -> None:
    world = World()
    async with world.mount(request_timeout_s=6.0, cache_bytes_max=0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        await volume.flush(handle)
        rules = [always(kind, Code.UNREACHABLE) for kind in (storage.Put, storage.Get)]
        world.store.before.extend(rules)
        start = trio.current_time()
        with pytest.raises(FsError) as raised:
            await volume.read(handle, 0, 4)
        assert raised.value.code is Code.TIMEOUT
        await volume.write(handle, 4, b"more")
        with pytest.raises(FsError) as raised:
            await volume.fsync(handle)
        assert raised.value.code is Code.TIMEOUT
        assert trio.current_time() - start < 2 * 6.0 + 1
        world.store.before.clear()
        await volume.fsync(handle)
        assert bytes(await volume.read(handle, 0, 10)) == b"datamore"
        await volume.release(handle)


async def test_a_damaged_block_is_read_from_another_replica(caplog: pytest.LogCaptureFixture) -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(cache_bytes_max=0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        data = os.urandom(100_000)
        await volume.write(handle, 0, data)
        await volume.flush(handle)
        await trio.testing.wait_all_tasks_blocked()
        (extent,) = world.ops(api.Commit)[0].extents
        assert all(extent.block in store.blocks for store in world.stores.values())
        for ident in (1, 3):
            world.stores[ident].damage(extent.block)
        for _ in range(3):
            assert bytes(await volume.read(handle, 0, 1 << 20)) == data
        world.stores[2].damage(extent.block)
        caplog.clear()
        with pytest.raises(FsError) as raised:
            await volume.read(handle, 0, 1 << 20)
        assert raised.value.errno == 5
        assert any(extent.block.hex() in line.getMessage() for line in caplog.records if line.levelno >= logging.ERROR)
        await volume.release(handle)


async def test_two_of_three_replicas_are_enough(autojump_clock: object) -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(request_timeout_s=4.0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        stuck = Gate(lambda request: isinstance(request, storage.Put))
        world.stores[2].before.append(stuck)
        await volume.write(handle, 0, b"data")
        start = trio.current_time()
        await volume.fsync(handle)
        assert trio.current_time() == start
        world.stores[3].before.append(always(storage.Put, Code.UNREACHABLE))
        await volume.write(handle, 4, b"more")
        with pytest.raises(FsError) as raised:
            await volume.fsync(handle)
        assert raised.value.code is Code.TIMEOUT
        stuck.opened.set()
        await volume.fsync(handle)
        await volume.release(handle)


async def test_the_first_chunk_server_may_come_late(autojump_clock: object) -> None:
    world = World(servers=0)
    async with world.mount(request_timeout_s=10.0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await trio.sleep(3)
            world.add_server(1)
            world.place()
        await volume.release(handle)
        assert await contents(volume, attr.ino) == b"data"


# --- removal against open -----------------------------------------------------------------------------------------


async def test_an_open_waits_for_a_removal_that_vouched_against_it() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.release(handle)
        gate = Gate(submits(api.Remove))
        world.member.before.append(gate)
        outcomes: list[object] = []

        async def open_it() -> None:
            try:
                outcomes.append(await volume.open(attr.ino, RDWR))
            except FsError as error:
                outcomes.append(error.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.unlink, ROOT_INO, b"f")
            await gate.reached.wait()
            nursery.start_soon(open_it)
            await trio.testing.wait_all_tasks_blocked()
            assert not outcomes
            gate.opened.set()
        assert outcomes == [Code.STALE]


async def test_a_wrong_hint_frees_no_open_file() -> None:
    world = World()
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"a", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        await volume.flush(handle)
        closed, _ = await volume.create(ROOT_INO, b"b", 0o644, RDWR, 0, 0)
        await volume.release(closed)
        await other.rename(ROOT_INO, b"a", ROOT_INO, b"b", 0)  # behind this mount's back
        await volume.unlink(ROOT_INO, b"b")
        await trio.testing.wait_all_tasks_blocked()
        assert bytes(await volume.read(handle, 0, 10)) == b"data"
        await volume.release(handle)
        await other._session.renew()
        await trio.testing.wait_all_tasks_blocked()
        await volume._session.renew()
        await trio.testing.wait_all_tasks_blocked()
        assert world.machine.files == 1
    world.check()


async def test_a_rewrite_gives_way_to_another_mounts_commit() -> None:
    world = World()
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"." * 100_000)
        await volume.flush(handle)
        theirs = await other.open(attr.ino, RDWR)
        for at in range(0, 100_000, 1000):
            await volume.write(handle, at, b"x")
        gate = Gate(lambda request: submits(api.Commit)(request) and request.ops[0].base_version)
        world.member.before.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fsync, handle)
            await gate.reached.wait()
            await other.write(theirs, 555, b"other")
            await other.flush(theirs)
            gate.opened.set()
        expected = bytearray(b"." * 100_000)
        expected[::1000] = b"x" * 100
        expected[555:560] = b"other"
        assert await contents(other, attr.ino) == bytes(expected)
        await volume.release(handle)
        await other.release(theirs)


async def test_leaving_flushes_and_ends_the_session() -> None:
    world = World()
    async with world.mount() as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
    assert not world.machine.sessions()
    async with world.mount() as volume:
        assert await contents(volume, attr.ino) == b"data"


async def test_a_timer_flushes_what_stays_open(autojump_clock: object) -> None:
    world = World()
    async with world.mount(flush_after_s=1.0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"data")
        await trio.sleep(2)
        assert len(world.ops(api.Commit)) == 1
        await volume.release(handle)
        await volume.syncfs()


async def test_no_size_is_committed_above_bytes_that_were_written_before_it() -> None:
    world = World()
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        gate = Gate(lambda request: isinstance(request, storage.Put))
        world.store.before.append(gate)
        await volume.write(handle, 0, b"0" * MIB)
        await volume.write(handle, 2 * MIB, b"2" * MIB)
        await gate.reached.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        await volume.write(handle, MIB, b"behind")  # below what is on its way
        await volume.write(handle, 3 * MIB, b"3" * MIB)
        rule, committed = seen(lambda request: submits(api.Commit)(request) and request.ops[0].size >= 3 * MIB)
        world.member.after.append(rule)
        gate.opened.set()
        await committed.wait()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert (await other.getattr(attr.ino)).size == 3 * MIB
        await volume.flush(handle)
        starts = [extent.offset for op in world.ops(api.Commit) for extent in op.extents]
        assert starts.index(MIB) < starts.index(3 * MIB)
        assert (await contents(other, attr.ino))[MIB : MIB + 6] == b"behind"
        await volume.release(handle)


async def test_a_stream_may_last_longer_than_a_request(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusefs.client.codec.THREAD_BYTES_MIN", 1 << 40)  # the clock would overtake threads
    world = World()
    async with world.mount(request_timeout_s=3.0) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)

        async def slow(request: object) -> None:
            if isinstance(request, storage.Put):
                await trio.sleep(0.9)

        world.store.before.append(slow)
        start = trio.current_time()
        for chunk in range(40):
            await volume.write(handle, chunk * MIB, bytes([chunk]) * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.flush, handle)
            nursery.start_soon(volume.fsync, handle)
        assert trio.current_time() - start > 4
        await volume.release(handle)
        assert (await volume.getattr(attr.ino)).size == 40 * MIB


async def test_a_chunk_that_others_have_filled_with_extents_is_rewritten() -> None:
    world = World()
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"." * 1000)
        await volume.flush(handle)
        info = world.ops(api.Commit)[0].extents[0]
        extents = tuple(
            api.Extent(at, 1, info.block, index, info.block_length) for index, at in enumerate(range(1, 255, 2))
        )
        await other._session.change(api.Commit(attr.ino, extents, 1000, 0, 1), api.Committed)
        await volume.write(handle, 700, b"new")
        await volume.write(handle, 800, b"new")
        await volume.fsync(handle)
        found = await contents(other, attr.ino)
        assert found[700:703] == found[800:803] == b"new" and len(found) == 1000
        await volume.release(handle)
    world.check()


async def test_synchronous_writes_are_durable_when_they_return() -> None:
    world = World()
    async with world.mount() as volume, world.mount() as other:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR | os.O_DSYNC, 0, 0)
        await volume.write(handle, 0, b"data")
        assert await contents(other, attr.ino) == b"data"
        await volume.release(handle)


async def test_a_writer_at_the_bound_is_woken_when_streaming_alone_made_no_room() -> None:
    world = World()
    async with world.mount(dirty_bytes_max=900_000) as volume:
        handle, attr = await volume.create(ROOT_INO, b"f", 0o644, RDWR, 0, 0)
        await volume.write(handle, 0, b"x" * (2 * MIB - 1))
        with trio.fail_after(5):
            await volume.write(handle, 2 * MIB, b"y")
        await volume.release(handle)
