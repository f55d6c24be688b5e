"""Orders about groups, carried out between chunk servers on a network and disks in memory."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from node.wire.errors import Code
from storage import api
from storage.entry import State
from storage.order import group_of
from storage.segments import segment_name
from storage.server.pacer import Pacer
from tests.unit.storage.cluster import ChunkServer, chunk_servers
from tests.unit.storage.stores import open_store, plain
from tests.unit.storage.test_service import get, send

GROUPS = 4


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110  of two servers, in steps that no event names
            await trio.sleep(0.01)


def order(group: int, sources: tuple[int, ...], number: int = 1, epoch: int = 5) -> api.SyncGroup:
    return api.SyncGroup(number, group, GROUPS, epoch, sources)


async def sync_all(server: ChunkServer, sources: tuple[int, ...], number: int = 1) -> list[api.GroupReport]:
    """Order all groups and return the reports when all are complete."""
    for group in range(GROUPS):
        server.healing.take(order(group, sources, number))
    found: dict[int, api.GroupReport] = {}

    def heard() -> bool:
        for report in server.reports():
            assert isinstance(report, api.GroupReport)
            found[report.group] = report
        return len(found) == GROUPS and all(report.complete for report in found.values())

    await until(heard)
    return [found[group] for group in range(GROUPS)]


async def fill(server: ChunkServer, datas: list[bytes], epoch: int = 1) -> None:
    for at in range(0, len(datas), 100):
        reply = await send(server.client, datas[at : at + 100], epoch)
        assert set(reply.codes) == {0}


def flip(server: ChunkServer, block: bytes) -> None:
    """Damage a block's last stored byte."""
    entry = server.store.locate(block)
    file = server.disk.open(segment_name(entry.segment))
    at = entry.offset + entry.stored - 1
    file.pwrite([bytes([file.pread(1, at)[0] ^ 0x55])], at)


async def test_an_empty_server_becomes_complete() -> None:
    datas = [plain(seed, 3000) for seed in range(500)] + [plain(seed, 1 << 20) for seed in range(3, 6)]
    async with chunk_servers(3) as (one, two, three):
        await fill(one, datas, 2)
        await fill(two, datas[:300], 4)
        reports = await sync_all(three, (1, 2, 3))
        assert three.store.block_count == len(datas)
        assert sum(report.pulled for report in reports) == len(datas)
        assert {report.missing for report in reports} == {0}
        for seed, epoch in ((0, 4), (299, 4), (300, 2), (501, 2)):
            entry = three.store.locate(api.name_block(datas[seed]))
            assert entry.epoch == epoch, "the highest touch epoch among the sources"
        assert await get(three.client, *[api.BlockRange(api.name_block(data)) for data in datas[:5]]) == datas[:5]
        for report in reports:
            digest = (await one.client.call(api.GroupDigests(GROUPS, (report.group,)))).body.digests[0]
            assert (report.blocks, report.digest) == (digest.blocks, digest.digest)


async def test_what_was_pulled_is_durable() -> None:
    datas = [plain(seed) for seed in range(40)]
    async with chunk_servers(2) as (one, two):
        await fill(one, datas, 3)
        await sync_all(two, (1,))
        disk = two.disk
        expected = {api.name_block(data): 3 for data in datas}
    disk.crash(Random(1))
    again = open_store(disk, segment_bytes=1 << 26)
    assert {name: again.locate(name).epoch for name in expected} == expected


async def test_an_order_repeated_is_done_once_and_told_again() -> None:
    async with chunk_servers(2) as (one, two):
        await fill(one, [plain(seed) for seed in range(20)])
        await sync_all(two, (1,))
        await until(lambda: two.finished == GROUPS)
        assert two.reports() == [], "what was acknowledged is not told again"
        again = await sync_all(two, (1,))
        assert two.finished == GROUPS, "the same number: the same work"
        assert {report.complete for report in again} == {True}
        await sync_all(two, (1,), number=2)
        await until(lambda: two.finished == 2 * GROUPS)


async def test_late_and_impossible_orders() -> None:
    async with chunk_servers(2) as (one, two):
        data = plain(1)
        await fill(one, [data])
        await fill(two, [data])
        group = group_of(api.name_block(data), GROUPS)
        two.healing.take(order(group, (1,), epoch=5))
        two.healing.take(order(group, (), number=9, epoch=4))  # late
        two.healing.take(api.DropGroup(3, group, GROUPS, 4))
        two.healing.take(api.DropGroup(3, group, GROUPS, 5))  # the row of this epoch has it
        two.healing.take(api.SyncGroup(1, 7, 3, 5, (1,)))
        two.healing.take(api.DropGroup(1, 64, 64, 5))
        await until(lambda: two.finished == 1)
        (report,) = two.reports()
        assert isinstance(report, api.GroupReport)
        assert (report.order, report.pg_epoch, report.complete) == (1, 5, True)
        assert two.store.block_count == 1


async def test_a_source_with_damage_costs_a_try_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    datas = [plain(seed) for seed in range(100)]
    names = [api.name_block(data) for data in datas]
    async with chunk_servers(3) as (one, two, three):
        await fill(one, datas)
        await fill(two, datas)
        for name in names[:10]:
            flip(one, name)
        for name in names[10:20]:
            flip(two, name)
        await sync_all(three, (1, 2))
        assert await get(three.client, *map(api.BlockRange, names)) == datas
    told = [record for record in caplog.records if "as a source" in record.message]
    assert len(told) <= 2 * GROUPS, "one line for a source and group, not for each block"


async def test_a_source_that_sends_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hashes to another name is not stored, whatever its checksums say."""
    datas = [plain(seed) for seed in range(30)]
    names = [api.name_block(data) for data in datas]
    async with chunk_servers(3) as (one, two, three):
        await fill(one, datas)
        await fill(two, datas)
        real = type(one.store).fetch
        frame = one.store.fetch(names[0])

        def lie(store: Any, block: bytes, offset: int = 0, length: int = 0) -> bytes:
            return frame if store is one.store else real(store, block, offset, length)

        monkeypatch.setattr(type(one.store), "fetch", lie)
        await sync_all(three, (1, 2))
        assert await get(three.client, *map(api.BlockRange, names)) == datas


async def test_a_source_that_is_down_is_named_and_waited_for() -> None:
    async with chunk_servers(3) as (one, two, three):
        data = plain(1)
        await fill(one, [data])
        three.peers.update([api.ServerAddress(1, one.address), api.ServerAddress(2, "nobody-there")])
        group = group_of(api.name_block(data), GROUPS)
        three.healing.take(order(group, (1, 2)))
        found: list[api.Report] = []
        await until(lambda: bool(found.extend(three.reports()) or any(getattr(r, "failed", ()) for r in found)))
        report = next(r for r in found if isinstance(r, api.GroupReport) and r.failed)
        assert (report.complete, report.failed) == (False, (2,))
        await until(lambda: three.store.block_count == 1)
        three.peers.update([api.ServerAddress(1, one.address), api.ServerAddress(2, two.address)])
        await until(lambda: three.finished == 1)


async def test_damage_found_later_is_mended_from_the_sources() -> None:
    datas = [plain(seed) for seed in range(20)]
    names = [api.name_block(data) for data in datas]
    async with chunk_servers(2) as (one, two):
        token = trio.lowlevel.current_trio_token()
        two.store.on_damage = lambda block: token.run_sync_soon(two.healing.damaged, block)
        await fill(one, datas)
        await sync_all(two, (1,))
        for name in names[:5]:
            flip(two, name)
        codes = await get(two.client, *map(api.BlockRange, names))
        assert codes[:5] == [Code.CORRUPT_BLOCK] * 5 and codes[5:] == datas[5:]
        await until(lambda: all(two.store.find(name)[-1] == State.LIVE for name in names))  # type: ignore[index]
        assert await get(two.client, *map(api.BlockRange, names)) == datas


async def test_a_full_server_says_what_it_lacks() -> None:
    datas = [plain(seed, 30_000) for seed in range(1, 30)]
    async with chunk_servers(2) as (one, two):
        await fill(one, datas)
        two.store.options.capacity_bytes = 200_000
        for group in range(GROUPS):
            two.healing.take(order(group, (1,)))
        lacking: dict[int, int] = {}

        def heard() -> bool:
            lacking.update({report.group: report.missing for report in two.reports()})  # type: ignore[union-attr]
            return sum(lacking.values()) + two.store.block_count == len(datas) and two.store.block_count > 3

        await until(heard)
        two.store.options.capacity_bytes = 0
        await until(lambda: two.store.block_count == len(datas))


async def test_dropped_blocks_go_to_quarantine() -> None:
    datas = [plain(seed) for seed in range(700)]
    async with chunk_servers() as (one,):
        await fill(one, datas, 3)
        names = [api.name_block(data) for data in datas]
        mine = [name for name in names if group_of(name, 2) == 1]
        one.healing.take(api.DropGroup(1, 1, 2, 7))
        await until(lambda: one.finished == 1)
        (report,) = one.reports()
        assert report == api.DropReport(1, 1, 2, 7, 0)
        assert one.store.block_count == len(names) - len(mine)
        assert one.store.quarantined_bytes > 0
        assert one.store.locate(mine[0]).state == State.QUARANTINED, "still readable"
        assert one.store.journal.at.epoch_max == 3
        one.healing.take(api.SyncGroup(2, 1, 2, 8, ()))
        one.healing.take(api.DropGroup(3, 1, 2, 8))
        await until(lambda: one.finished == 2)
        assert isinstance(one.reports()[0], api.GroupReport)


async def test_work_is_bounded_and_others_have_their_turn() -> None:
    """Groups whose source is down do not keep the others waiting."""
    async with chunk_servers(2) as (one, two):
        await fill(one, [plain(seed) for seed in range(64)])
        two.peers.update([api.ServerAddress(1, one.address), api.ServerAddress(9, "nobody-there")])
        for group in range(32):
            two.healing.take(api.SyncGroup(1, group, 64, 1, (9,)))
        for group in range(32, 64):
            two.healing.take(api.SyncGroup(1, group, 64, 1, (1,)))
        await until(lambda: two.finished == 32)
        assert len(two.healing.reports(10)) == 10


async def test_the_rate_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    pacer = Pacer(1000)
    started = trio.current_time()

    async def work(sizes: list[int]) -> None:
        for size in sizes:
            await pacer.spend(size)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work, [500] * 5)
    assert 9.4 <= trio.current_time() - started <= 10.1, "10,000 bytes, the last of them paid in advance"
