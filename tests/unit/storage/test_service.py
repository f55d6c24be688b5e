"""What a chunk server answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from node.host.disk import FatalDiskError
from node.rpc.client import Connection, Reply
from node.wire.errors import Code, FsError
from node.wire.limits import GET_RANGES_MAX, LOCATE_BLOCKS_MAX, PUT_BLOCKS_MAX, STORE_PENDING_BYTES_MAX
from storage import api
from storage.order import group_of
from storage.records import SEGMENT_HEADER_BYTES
from storage.segments import segment_name
from tests.unit.storage.cluster import chunk_servers
from tests.unit.storage.stores import plain


async def send(
    client: Connection, datas: Sequence[bytes], epoch: int = 1, forward: tuple[int, ...] = (), timeout_s: float = 10.0
) -> api.PutReply:
    """Put blocks and return the reply."""
    encoded = [api.encode_block(data) for data in datas]
    infos = tuple(api.BlockInfo(name, len(data)) for (name, _), data in zip(encoded, datas))
    put = api.Put(infos, epoch, forward=forward)
    reply = await client.call(put, [frame for _, frame in encoded], timeout_s=timeout_s)
    assert isinstance(reply.body, api.PutReply)
    return reply.body


async def get(client: Connection, *ranges: api.BlockRange) -> list[bytes | int]:
    """Return the plaintext or the code for each range."""
    reply: Reply = await client.call(api.Get(ranges))
    found: list[bytes | int] = []
    for wanted, code, frame in zip(ranges, reply.body.codes, reply.data, strict=True):
        found.append(code or bytes(api.decode_block(frame, wanted.block, wanted.offset, wanted.length)))
    return found


async def refused(client: Connection, request: object, data: Sequence[bytes] = ()) -> Code:
    with pytest.raises(FsError) as failure:
        await client.call(request, data)  # type: ignore[arg-type]
    return failure.value.code


@pytest.mark.parametrize("size", [1, 1000, 70_000, 1 << 20])
async def test_put_and_get(size: int) -> None:
    datas = [plain(seed, size) for seed in (1, 2, 3)]
    names = [api.name_block(data) for data in datas]
    async with chunk_servers() as (server,):
        assert await send(server.client, datas) == api.PutReply(codes=(0, 0, 0), copies=(1, 1, 1))
        assert await get(server.client, *map(api.BlockRange, names)) == datas
        middle = [api.BlockRange(name, size // 2, max(1, size // 4)) for name in names]
        expected = [data[size // 2 : size // 2 + max(1, size // 4)] for data in datas]
        assert await get(server.client, *middle) == expected
        status = (await server.client.call(api.GetServerStatus())).body
        assert (status.blocks, status.uuid) == (3, server.store.identity)


async def test_acknowledged_means_durable() -> None:
    """What is on the disk when the reply comes is all that a power cut leaves."""
    async with chunk_servers() as (server,):
        await send(server.client, [plain(1), plain(2, 200_000)])
        data = server.disk._names[segment_name(1)]
        assert data.durable == bytes(data.data)
        assert len(data.durable) > 200_000


async def test_puts_that_wait_share_a_sync() -> None:
    async with chunk_servers() as (server,):
        before = server.disk.syncs
        async with trio.open_nursery() as nursery:
            for seed in range(200):
                nursery.start_soon(send, server.client, [plain(seed)])
        assert server.store.block_count == 200
        assert server.disk.syncs - before < 100
        assert server.committer.statistics()["batches"] == 200


async def test_blocks_that_are_not_what_they_claim(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = plain(1, 50_000), plain(2, 50_000)
    name, frame = api.encode_block(good)
    other, wrong = api.encode_block(bad)
    broken = bytearray(frame)
    broken[1000] ^= 1
    async with chunk_servers() as (server,):
        infos = (api.BlockInfo(name, 50_000), api.BlockInfo(name, 50_000), api.BlockInfo(other, 49_999),
                 api.BlockInfo(b"short", 10), api.BlockInfo(other, 50_000))
        frames = [bytes(broken), frame, wrong, wrong, wrong[:-1]]
        reply = (await server.client.call(api.Put(infos, 1), frames)).body
        corrupt, protocol = Code.CORRUPT_BLOCK, Code.PROTOCOL
        assert reply == api.PutReply(codes=(corrupt, 0, corrupt, protocol, corrupt), copies=(0, 1, 0, 0, 0))
        assert await get(server.client, api.BlockRange(name), api.BlockRange(other)) == [good, Code.MISSING_BLOCK]
        assert server.service.statistics()["rejected_blocks"] == 4
    assert "refused a put" in caplog.text


async def test_malformed_requests() -> None:
    name, frame = api.encode_block(b"x")
    info = api.BlockInfo(name, 1)
    async with chunk_servers() as (server,):
        bad = [
            (api.Put((info,), 1), [frame, frame]),
            (api.Put((), 1), []),
            (api.Put((info,), -1), [frame]),
            (api.Put((info,), 1 << 32), [frame]),
            (api.Put((info,) * 5, 1), [bytes(1 << 20)] * 5),
            (api.Touch((b"short",), 1), []),
            (api.Touch((name,), 1 << 40), []),
            (api.Touch((name,) * (PUT_BLOCKS_MAX + 1), 1), []),
            (api.Get(()), []),
            (api.Get((api.BlockRange(name),) * (GET_RANGES_MAX + 1)), []),
            (api.Delete((b"",), 1), []),
        ]
        for request, data in bad:
            assert await refused(server.client, request, data) == Code.PROTOCOL, request
        assert server.store.block_count == 0
        assert (await send(server.client, [b"x"])).codes == (0,)  # and nobody was harmed


async def test_ranges_that_are_not_there() -> None:
    async with chunk_servers() as (server,):
        await send(server.client, [plain(1)])
        name = api.name_block(plain(1))
        wanted = [(name, 0, 1001), (name, 1000, 0), (b"no", 0, 0), (b"?" * 32, 0, 0), (name, 999, 1)]
        codes = [Code.INVALID, Code.INVALID, Code.MISSING_BLOCK, Code.MISSING_BLOCK, plain(1)[999:]]
        assert await get(server.client, *(api.BlockRange(*each) for each in wanted)) == codes


async def test_a_get_has_a_bound() -> None:
    async with chunk_servers() as (server,):
        data = plain(1, 1 << 20)
        await send(server.client, [data])
        name = api.name_block(data)
        assert await refused(server.client, api.Get((api.BlockRange(name),) * 9)) == Code.TOO_BIG
        small = api.BlockRange(name, 500_000, 10)
        assert await get(server.client, *[small] * 60) == [data[500_000:500_010]] * 60


async def test_touch() -> None:
    async with chunk_servers() as (server,):
        await send(server.client, [plain(1)])
        name = api.name_block(plain(1))
        reply = await server.client.call(api.Touch((b"?" * 32, name, b"!" * 32), 7))
        assert reply.body == api.TouchReply(missing=(0, 2))
        assert server.store.locate(name).epoch == 7


async def test_deletion_is_off() -> None:
    async with chunk_servers(deletion=False) as (server,):
        await send(server.client, [plain(1)])
        name = api.name_block(plain(1))
        assert await refused(server.client, api.Delete((name,), 9)) == Code.NOT_SUPPORTED
        assert await get(server.client, api.BlockRange(name)) == [plain(1)]


async def test_delete() -> None:
    async with chunk_servers() as (server,):
        await send(server.client, [plain(1)], epoch=3)
        await send(server.client, [plain(2)], epoch=5)
        names = (api.name_block(plain(1)), api.name_block(plain(2)), b"?" * 32)
        assert (await server.client.call(api.Delete(names, 4))).body == api.DeleteReply(deleted=1, kept=(1,))
        assert server.store.block_count == 1
        assert (await server.client.call(api.Delete(names, 4))).body == api.DeleteReply(deleted=0, kept=(1,))


async def test_what_nobody_confirmed_is_listed() -> None:
    async with chunk_servers() as (server,):
        uuid = server.store.identity
        await send(server.client, [plain(1)], epoch=3)
        await send(server.client, [plain(2)], epoch=5)
        old, young = api.name_block(plain(1)), api.name_block(plain(2))
        assert server.store.unconfirmed_bytes > 0
        first = (await server.client.call(api.ListUnconfirmed(uuid, 3, 10))).body
        assert (first.blocks, first.more) == ((old,), False)
        assert (await server.client.call(api.ListUnconfirmed(uuid, 3, 10))).body == first, "listed until confirmed"
        rest = (await server.client.call(api.ListUnconfirmed(uuid, 3, 10, first.place))).body
        assert (rest.blocks, rest.left_bytes > 0) == ((), True)
        rest = (await server.client.call(api.ListUnconfirmed(uuid, 5, 10, rest.place))).body
        assert rest.blocks == (young,)
        done = (await server.client.call(api.ListUnconfirmed(uuid, 5, 10, rest.place))).body
        assert (done.blocks, done.left_bytes) == ((), 0)
        assert await refused(server.client, api.ListUnconfirmed(b"?" * 16, 5, 10)) == Code.STALE
        assert await refused(server.client, api.ListUnconfirmed(uuid, 5, 1 << 20)) == Code.PROTOCOL


async def test_damage_is_told_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async with chunk_servers() as (server,):
        datas = [plain(seed, 70_000) for seed in (1, 2)]
        await send(server.client, datas)
        bad, good = map(api.name_block, datas)
        entry = server.store.locate(bad)
        server.disk.flip(segment_name(entry.segment), 8 * (entry.offset + 60_000))
        assert await get(server.client, api.BlockRange(bad), api.BlockRange(good)) == [Code.CORRUPT_BLOCK, datas[1]]
        assert bad.hex() in caplog.text
        await send(server.client, datas)  # putting it again heals it
        assert await get(server.client, api.BlockRange(bad)) == [datas[0]]


async def test_a_full_server_says_so_and_serves_on() -> None:
    async with chunk_servers(capacity_bytes=SEGMENT_HEADER_BYTES + 200_000) as (server,):
        datas = [plain(seed, 50_000) for seed in (1, 2, 4, 5, 7)]
        reply = await send(server.client, datas)
        assert reply.codes == (0, 0, 0, Code.NO_SPACE, Code.NO_SPACE)
        assert reply.copies == (1, 1, 1, 0, 0)
        found = await get(server.client, *(api.BlockRange(api.name_block(data)) for data in datas))
        assert found == [*datas[:3], Code.MISSING_BLOCK, Code.MISSING_BLOCK]
        assert (await send(server.client, datas[:3], epoch=2)).codes == (0, 0, 0)


async def test_memory_has_a_bound() -> None:
    async with chunk_servers() as (server,):
        server.service._pending_bytes = STORE_PENDING_BYTES_MAX
        with pytest.raises(FsError) as failure:
            await send(server.client, [plain(1)])
        assert failure.value.code == Code.OVERLOADED
        server.service._pending_bytes = 0
        await send(server.client, [plain(1)])
        assert server.service.statistics()["pending_bytes"] == 0


async def test_a_failed_disk_ends_the_server_without_an_answer() -> None:
    with pytest.RaisesGroup(FatalDiskError, pytest.RaisesExc(FsError, match="UNREACHABLE"), flatten_subgroups=True):
        async with chunk_servers() as (server,):
            server.disk.broken_syncs = True
            await send(server.client, [plain(1)])
            pytest.fail("acknowledged")


async def test_finish_waits_for_everything_taken() -> None:
    async with chunk_servers() as (server,):
        async with trio.open_nursery() as nursery:
            replies: list[api.PutReply] = []

            async def one(seed: int) -> None:
                replies.append(await send(server.client, [plain(seed, 90_000)]))

            for seed in range(20):
                nursery.start_soon(one, seed)
            await trio.testing.wait_all_tasks_blocked()
            assert server.service.statistics()["puts"] == 20
            server.server.drain()
            await server.service.finish()
            assert server.store.block_count == 20
        assert len(replies) == 20
        with pytest.raises(FsError) as failure:
            await send(server.client, [b"late"])
        assert failure.value.code == Code.SHUTTING_DOWN


# -- the pipeline


async def test_three_copies() -> None:
    async with chunk_servers(3) as servers:
        datas = [plain(seed, size) for seed, size in ((1, 10), (2, 500_000))]
        reply = await send(servers[0].client, datas, forward=(2, 3))
        assert reply == api.PutReply(codes=(0, 0), copies=(3, 3))
        for server in servers:
            wanted = [api.BlockRange(api.name_block(data)) for data in datas]
            assert await get(server.client, *wanted) == datas


async def test_a_server_that_is_down_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with chunk_servers(3) as servers:
        servers[0].peers.update([api.ServerAddress(2, "nowhere"), api.ServerAddress(3, "storage-3")])
        reply = await send(servers[0].client, [plain(1)], forward=(2, 3))
        assert reply == api.PutReply(codes=(0,), copies=(2,), failed=(2,))
        assert servers[1].store.block_count == 0
        assert servers[2].store.block_count == 1
    assert "server 2 left out of a put" in caplog.text


async def test_an_unknown_server_is_left_out() -> None:
    async with chunk_servers(2) as servers:
        reply = await send(servers[0].client, [plain(1)], forward=(9, 2))
        assert reply == api.PutReply(codes=(0,), copies=(2,), failed=(9,))


async def test_a_full_server_in_the_chain() -> None:
    async with chunk_servers(3) as servers:
        servers[1].disk.capacity_bytes = 5_000
        datas = [plain(seed, 2000) for seed in (1, 2, 4, 5)]
        reply = await send(servers[0].client, datas, forward=(2, 3))
        assert reply.codes == (0,) * 4
        assert reply.copies == (3, 3, 2, 2)
        assert reply.failed == ()


async def test_a_server_that_moves() -> None:
    async with chunk_servers(3) as servers:
        await send(servers[0].client, [plain(1)], forward=(2,))
        servers[0].peers.update([api.ServerAddress(2, "storage-3")])
        await send(servers[0].client, [plain(2)], forward=(2,))
        assert servers[1].store.block_count == 1
        assert servers[2].store.block_count == 1


async def test_many_blocks_in_flight_through_the_chain(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with chunk_servers(3) as servers:
            async with trio.open_nursery() as nursery:
                async def one(seed: int) -> None:
                    reply = await send(servers[0].client, [plain(seed, 100_000)], forward=(2, 3), timeout_s=30.0)
                    assert reply.copies == (3,)

                for seed in range(40):
                    nursery.start_soon(one, seed)
            assert [server.store.block_count for server in servers] == [40] * 3
            assert servers[0].service.statistics()["pending_bytes"] == 0
    assert not caplog.records


# -- groups


async def test_groups_of_two_servers_compare() -> None:
    """Digests are equal exactly where the blocks are, and lists tell the difference."""
    async with chunk_servers(2) as (one, two):
        datas = [plain(seed) for seed in range(300)]
        await send(one.client, datas)
        await send(two.client, list(reversed(datas[:299])))
        odd = api.name_block(datas[299])
        wanted = tuple(range(64))
        first, second = [
            (await server.client.call(api.GroupDigests(64, wanted))).body.digests for server in (one, two)
        ]
        assert [here.group for here, there in zip(first, second) if here != there] == [group_of(odd, 64)]
        assert sum(digest.blocks for digest in first) == 300
        listed: list[api.GroupBlock] = []
        more = True
        while more:
            after = listed[-1].block if listed else b""
            page = (await one.client.call(api.ListGroup(2, 1, after, 40))).body
            listed += page.blocks
            more = page.more
        assert [found.block for found in listed] == sorted(
            (name for name in map(api.name_block, datas) if name[7] & 1), key=api.order_key
        )
        assert {(found.epoch, found.length) for found in listed} == {(1, 1000)}
        await two.client.call(api.Touch((api.name_block(datas[0]),), 9))
        (before,), (after_touch,) = [
            (await server.client.call(api.GroupDigests(64, (group_of(api.name_block(datas[0]), 64),)))).body.digests
            for server in (one, two)
        ]
        assert (before.blocks, before.digest) == (after_touch.blocks, after_touch.digest)
        assert before.touches != after_touch.touches
        found = (await two.client.call(api.FindBlocks((odd, api.name_block(datas[0]))))).body.blocks
        assert found == (api.StoredBlock(api.name_block(datas[0]), 9, 1),)


@pytest.mark.parametrize("request_", [
    api.GroupDigests(3, (1,)), api.GroupDigests(0, ()), api.GroupDigests(1 << 17, (1,)), api.GroupDigests(64, (64,)),
    api.GroupDigests(64, (-1,)), api.ListGroup(64, 64, b"", 10), api.ListGroup(64, 1, b"short", 10),
    api.ListGroup(64, 1, b"", 0), api.FindBlocks((b"short",)), api.GroupDigests(1 << 16, tuple(range(5000))),
])
async def test_impossible_questions_about_groups(request_: Any) -> None:
    async with chunk_servers() as (server,):
        with pytest.raises(FsError) as caught:
            await server.client.call(request_)
        assert caught.value.code == Code.PROTOCOL


async def test_suspects_are_looked_at_and_only_bad_ones_reported() -> None:
    datas = [plain(seed, 100_000) for seed in range(3)]
    good, bad, gone = [api.name_block(data) for data in datas]
    async with chunk_servers() as (server,):
        await send(server.client, datas[:2])
        entry = server.store.locate(bad)
        server.disk.flip(segment_name(entry.segment), 8 * (entry.offset + 50_000))
        reply = await server.client.call(api.Suspect((good, bad, gone)))
        assert reply.body == api.SuspectReply(bad=2)
        assert set(server.store.bad_blocks(10)) == {bad, gone}
        assert await refused(server.client, api.Suspect((b"short",))) == Code.PROTOCOL


async def test_where_blocks_lie() -> None:
    datas = [plain(seed, 100_000) for seed in range(3)]
    good, bad, gone = [api.name_block(data) for data in datas]
    async with chunk_servers() as (server,):
        assert await refused(server.client, api.Locate((good,))) == Code.NOT_SUPPORTED
        server.service._directory = "/srv/segments"
        await send(server.client, datas[:2])
        entry = server.store.locate(good)
        server.store.damaged(bad, server.store.locate(bad), "for the test")
        reply = await server.client.call(api.Locate((good, bad, gone)))
        place = api.Located(entry.segment, entry.offset, entry.stored, 100_000)
        nowhere = api.Located()
        assert reply.body == api.LocateReply("/srv/segments", server.store.identity, (place, nowhere, nowhere))
        assert await refused(server.client, api.Locate((b"short",))) == Code.PROTOCOL
        assert await refused(server.client, api.Locate((good,) * (LOCATE_BLOCKS_MAX + 1))) == Code.PROTOCOL
