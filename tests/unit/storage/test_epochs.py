"""What a chunk server does with requests of another placement table than its own (rule 16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import pytest
import trio
import trio.testing

from node.wire.errors import Code, FsError
from storage import api
from tests.unit.storage.cluster import ChunkServer, chunk_servers
from tests.unit.storage.stores import plain
from tests.unit.storage.test_service import get, refused

GROUPS = 4
DATAS = [plain(seed) for seed in range(40)]
NAMES = [api.name_block(data) for data in DATAS]


def group(name: bytes) -> int:
    return api.group_of(name, GROUPS)


def tell(server: ChunkServer, epoch: int, rows: dict[int, tuple[int, ...]], base: Optional[int] = None) -> bool:
    """The leader tells a server of a change; returns whether there is more to ask for."""
    changed = tuple([api.GroupRow(number, epoch, servers) for number, servers in sorted(rows.items())])
    before = epoch - 1 if base is None else base
    return server.table.take(
        api.TableDifference(api.place_of(before), api.place_of(epoch), epoch, GROUPS, changed)
    )


def everywhere(*servers: int) -> dict[int, tuple[int, ...]]:
    return {number: servers for number in range(GROUPS)}


async def put(server: ChunkServer, epoch: int, datas: Sequence[bytes] = DATAS, touch: int = 1) -> api.PutReply:
    encoded = [api.encode_block(data) for data in datas]
    infos = tuple(api.BlockInfo(name, len(data)) for (name, _), data in zip(encoded, datas))
    reply = await server.client.call(api.Put(infos, touch, epoch), [frame for _, frame in encoded])
    assert isinstance(reply.body, api.PutReply)
    return reply.body


@pytest.mark.parametrize("size", [1000, 70_000])
async def test_a_put_by_an_old_table_is_refused_where_the_group_changed(size: int) -> None:
    datas = [plain(seed, size) for seed in range(16)]
    names = [api.name_block(data) for data in datas]
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        tell(one, 2, {3: (2, 3)})
        reply = await put(one, 1, datas)
        refused_here = [name for name, code in zip(names, reply.codes) if code]
        assert refused_here == [name for name in names if group(name) == 3] and refused_here
        assert set(reply.codes) == {0, Code.STALE_EPOCH} and sum(reply.copies) == 16 - len(refused_here)
        assert reply.table is not None and reply.table.last
        assert reply.table.rows == (api.GroupRow(3, 2, (2, 3)),), "what the writer lacks"
        assert one.store.block_count == 16 - len(refused_here)
        again = await put(one, 2, datas)
        assert set(again.codes) == {0} and again.table is None
        assert (await put(one, 0, datas)).table is None, "one that does not say is not told"
    assert one.service.statistics()["rejected_blocks"] == 0


async def test_one_who_lacks_too_much_is_sent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.server.tables.TABLE_REPLY_ROWS_MAX", 2)
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        tell(one, 2, {0: (1, 3), 1: (1, 3), 2: (1, 3)})
        reply = await put(one, 1)
        assert Code.STALE_EPOCH in reply.codes and reply.table is None


async def test_a_put_by_a_newer_table_is_taken_and_the_server_asks() -> None:
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        for _ in range(3):
            assert set((await put(one, 7)).codes) == {0}
        assert one.asked == 1, "once for an epoch"
        await put(one, 8)
        assert one.asked == 2


async def test_touches_know_epochs_too() -> None:
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        await put(one, 1, DATAS[:30])
        tell(one, 2, {0: (2, 3)})
        reply = (await one.client.call(api.Touch(tuple(NAMES), 5, 1))).body
        stale = [name for name in NAMES if group(name) == 0]
        assert [NAMES[at] for at in reply.stale] == stale
        assert [NAMES[at] for at in reply.missing] == [name for name in NAMES[30:] if name not in stale]
        assert reply.table.rows == (api.GroupRow(0, 2, (2, 3)),)
        touched = {name: one.store.locate(name).epoch for name in NAMES[:30]}
        assert touched == {name: 1 if name in stale else 5 for name in NAMES[:30]}


async def test_a_delete_by_an_old_table_spares_groups_that_changed() -> None:
    """A member that has just joined may hold a copy with an old touch: a late delete must not take it."""
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        await put(one, 1)
        tell(one, 2, {2: (1, 2, 3)})
        reply = (await one.client.call(api.Delete(tuple(NAMES), 4, 1))).body
        spared = [name for name in NAMES if group(name) == 2]
        assert [NAMES[at] for at in reply.kept] == spared and spared
        assert reply.deleted == len(NAMES) - len(spared)
        late = (await one.client.call(api.Delete(tuple(NAMES), 4, 1))).body
        assert late.deleted == 0 and [NAMES[at] for at in late.kept] == spared, "however often it comes"
        assert await refused(one.client, api.Delete(tuple(NAMES), 4)) == Code.STALE_EPOCH, "one of no table at all"
        assert one.store.block_count == len(spared)
        now = (await one.client.call(api.Delete(tuple(NAMES), 4, 2))).body
        assert now.deleted == len(spared) and not now.kept


async def test_a_delete_by_a_newer_table_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.server.service.TABLE_WAIT_S", 60.0)
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        await put(one, 1)
        replies: list[api.DeleteReply] = []

        async def delete() -> None:
            replies.append((await one.client.call(api.Delete(tuple(NAMES), 4, 3), timeout_s=60)).body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            while not one.asked:  # noqa: ASYNC110
                await trio.sleep(0.01)
            tell(one, 2, {1: (1, 3)})
            await trio.testing.wait_all_tasks_blocked()
            assert not replies and one.store.block_count == len(NAMES)
            tell(one, 3, {1: (3, 4)})
        assert replies == [api.DeleteReply(len(NAMES))]


async def test_a_delete_whose_table_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.server.service.TABLE_WAIT_S", 0.01)
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        await put(one, 1)
        assert await refused(one.client, api.Delete(tuple(NAMES), 4, 9)) == Code.STALE_EPOCH
        assert one.store.block_count == len(NAMES)


async def test_a_former_member_does_not_count_as_one_that_lost_its_copy() -> None:
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        await put(one, 1, DATAS[:20])
        tell(one, 2, {number: (2, 3) for number in range(GROUPS)})
        ranges = (api.BlockRange(NAMES[0]), api.BlockRange(NAMES[30]))
        reply = await one.client.call(api.Get(ranges, 1))
        assert list(reply.body.codes) == [0, Code.STALE_EPOCH] and reply.body.table is not None
        assert await get(one.client, ranges[1]) == [Code.MISSING_BLOCK], "one that does not say his epoch"
        assert (await one.client.call(api.Suspect((NAMES[30],)))).body.bad == 0
        assert one.store.bad_blocks(10) == (), "nobody is alarmed"
        tell(one, 3, {number: (1, 3) for number in range(GROUPS)})
        assert (await one.client.call(api.Suspect((NAMES[30],)))).body.bad == 1


async def test_differences_may_come_twice_late_and_with_gaps() -> None:
    async with chunk_servers() as (one,):
        assert not tell(one, 2, {1: (2,)}, base=1), "a gap: nothing is known yet"
        assert one.table.table.epoch == 0
        tell(one, 1, everywhere(1, 2))
        tell(one, 3, {1: (2, 3)}, base=1)
        tell(one, 2, {1: (7, 8)})
        tell(one, 1, everywhere(9))
        assert (one.table.table.epoch, one.table.table.rows[1].servers) == (3, (2, 3))
        assert one.table.table.rows[0].servers == (1, 2)


async def test_epochs_that_are_none() -> None:
    async with chunk_servers() as (one,):
        name, frame = api.encode_block(b"x")
        infos = (api.BlockInfo(name, 1),)
        for request, data in (
            (api.Put(infos, 1, -1), [frame]), (api.Put(infos, 1, 1 << 40), [frame]),
            (api.Touch((name,), 1, -1), []), (api.Delete((name,), 1, 1 << 40), []),
            (api.Get((api.BlockRange(name),), -1), []),
        ):
            assert await refused(one.client, request, data) == Code.PROTOCOL
        assert one.store.block_count == 0 and not one.asked


async def test_a_group_is_not_dropped_while_somebody_knows_a_newer_table() -> None:
    """The server left the group in epoch 2 and is back in 3. A writer knows that before the server does."""
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        await put(one, 1)
        tell(one, 2, everywhere(2, 3))
        assert set((await put(one, 3)).codes) == {0}
        for number in range(GROUPS):
            one.healing.take(api.DropGroup(1, number, GROUPS, 2))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert one.store.block_count == len(NAMES) and not one.finished
        tell(one, 3, {0: (1, 2), 1: (1, 2)})
        with trio.fail_after(30):
            while one.finished < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert one.finished == 2, "those that it is not back in"
        assert {group(name) for name in NAMES if one.store.find(name).state == 1} == {0, 1}  # type: ignore[union-attr]


async def test_what_is_put_while_a_group_is_dropped_stays() -> None:
    """The put comes after the server has looked what there is to drop, and before it deletes."""
    async with chunk_servers() as (one,):
        tell(one, 1, everywhere(1, 2))
        await put(one, 1)
        tell(one, 2, everywhere(2, 3))
        listed, go_on = trio.Event(), trio.Event()

        async def stopped(*arguments: object, **options: object) -> object:
            found = await trio.to_thread.run_sync(*arguments, **options)  # type: ignore[arg-type]
            if not listed.is_set():
                listed.set()
                await go_on.wait()
            return found

        one.healing._in_thread = stopped
        one.healing.take(api.DropGroup(1, 0, GROUPS, 2))
        with trio.fail_after(10):
            await listed.wait()
        assert set((await put(one, 3)).codes) == {0}, "a touch of what is here already"
        go_on.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert one.store.block_count == len(NAMES)


async def test_a_chain_does_not_go_on_from_one_that_refuses() -> None:
    async with chunk_servers(2) as (one, two):
        tell(one, 1, everywhere(1, 2))
        tell(one, 2, everywhere(3, 4))
        data = plain(1, 70_000)
        name, frame = api.encode_block(data)
        reply = await one.client.call(api.Put((api.BlockInfo(name, len(data)),), 1, 1, (2,)), [frame])
        assert reply.body.codes == (Code.STALE_EPOCH,) and reply.body.copies == (0,)
        assert one.store.block_count == two.store.block_count == 0
        with pytest.raises(FsError):
            one.store.locate(name)
