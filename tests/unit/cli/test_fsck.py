"""What fsck calls wrong, from what the volume and the servers say."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import trio

from fusefs.cli.cmd_fsck import Audit, compare
from metadata.api import ClusterMap, FindReferences, ListReferences, References
from storage.api import FindBlocks, FindBlocksReply, ListBlocks, ListBlocksReply, StoredBlock

EPOCH = 10


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def audit(
    known: dict[int, int], *servers: dict[int, tuple[int, int]], page: int = 2, logged: Collection[int] = ()
) -> Audit:
    """Compare references by block with (epoch, state) by block of each server; every answer is a short page. The bytes
    of ``logged`` blocks are in the log."""
    row = tuple(range(1, len(servers) + 1))

    def references(found: list[tuple[bytes, int]], more: bool) -> References:
        return References(tuple(found), more, EPOCH, tuple(name(n) for n in logged if name(n) in dict(found)))

    async def ask(request: msgspec.Struct, timeout_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(request, FindReferences):
            return references([(name(n), known[n]) for n in known if name(n) in request.blocks], False)
        assert isinstance(request, ListReferences)
        found = [(name(n), known[n]) for n in sorted(known) if name(n) > request.after]
        limit = min(page, request.limit)
        return references(found[:limit], len(found) > limit)

    def server(blocks: dict[int, tuple[int, int]]) -> Any:
        async def answer(request: msgspec.Struct) -> Any:
            await trio.lowlevel.checkpoint()
            if isinstance(request, FindBlocks):
                here = [StoredBlock(name(n), *blocks[n]) for n in blocks if name(n) in request.blocks]
                return FindBlocksReply(tuple(here))
            assert isinstance(request, ListBlocks)
            found = [StoredBlock(name(n), *blocks[n]) for n in sorted(blocks) if name(n) > request.after]
            limit = min(page, request.limit)
            return ListBlocksReply(tuple(found[:limit]), len(found) > limit)

        return answer

    cluster = ClusterMap(1, EPOCH, len(row), (), (row,) * 4)
    return await compare(cluster, ask, {number: server(blocks) for number, blocks in zip(row, servers)})


async def test_a_sound_volume() -> None:
    here = {n: (1, 1) for n in range(1, 12)}
    found = await audit({n: n % 3 + 1 for n in range(1, 12)}, here, here)
    assert found.clean
    assert (found.blocks, found.copies) == (11, 22)


async def test_what_is_missing_and_what_is_left_over() -> None:
    first = {1: (1, 1), 2: (1, 1), 4: (1, 1), 5: (1, 1), 7: (1, 2), 9: (EPOCH - 1, 1), 8: (1, 2)}
    second = {1: (1, 1), 3: (1, 3), 5: (1, 1), 7: (1, 1)}
    found = await audit({1: 1, 2: 2, 3: 1, 5: 0, 6: 1, 7: 1}, first, second)
    assert found.lost == [name(3), name(6)], "damaged is not there"
    assert found.short == [name(2), name(7)], "nor is what was deleted"
    assert found.unreferenced == [name(4)], "candidates, quarantine and young blocks are as they should be"
    assert not found.clean


async def test_what_is_still_in_the_log_need_not_be_stored() -> None:
    found = await audit({1: 1, 2: 1, 3: 1}, {2: (1, 1)}, {}, logged=(1, 2))
    assert found.lost == [name(3)] and not found.short


async def test_an_empty_volume() -> None:
    assert (await audit({}, {})).clean
    assert (await audit({}, {3: (1, 1)})).unreferenced == [name(3)]
