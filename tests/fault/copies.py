"""Count the durable copies of every referenced block, again and again, while a cluster changes its rows."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

import trio

from fusefs.cli.leading import Ask, asking_leader
from metadata.api import ClusterMap, FindReferences, GetClusterMap, ListReferences, References, ServerRecord
from node.host.cluster import ClusterConfig, load_cluster
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.wire.errors import FsError
from storage.api import CATALOGUE, FindBlocks, group_of
from tests.harness import Cluster

LIVE = 1
PAGE_BLOCKS = 4096
CALL_S = 30.0
PAUSE_S = 0.05
TRIES = 50


@dataclass
class Seen:
    """What all looks together saw."""

    looks: int = 0
    blocks: int = 0
    fewest: int = 1 << 30  # living copies of a referenced block, on members of its row
    which: str = ""
    failures: int = 0  # looks that a question broke off


def whole(cluster: Cluster) -> bool:
    """Whether every block that is referenced now lives on as many members of its row as the volume has replicas."""
    config = load_cluster(cluster.config)
    seen = Seen()

    async def once() -> None:
        async with looking(config) as look:
            await look(seen, config.replicas)

    try:
        trio.run(once)
    except FsError:
        return False
    return seen.fewest >= config.replicas


class CopiesWatch:
    """A context manager: a thread that looks until it is left. ``seen`` is complete then. It asks for ``min_durable``
    copies."""

    def __init__(self, cluster: Cluster) -> None:
        self.seen = Seen()
        self._config = load_cluster(cluster.config)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._watch,))

    def __enter__(self) -> CopiesWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    async def _watch(self) -> None:
        async with looking(self._config) as look:
            while not self._ended.is_set():
                try:
                    await look(self.seen, self._config.replicas // 2 + 1)
                    self.seen.looks += 1
                except FsError:
                    self.seen.failures += 1
                await trio.sleep(PAUSE_S)


Look = Callable[[Seen, int], Awaitable[None]]


@asynccontextmanager
async def looking(config: ClusterConfig) -> AsyncIterator[Look]:
    """Yield what looks at all referenced blocks, and adds to what was seen. For clusters with ipc.

    While a row changes, its members and what they hold cannot be read in one moment: what seems to have less than
    ``enough`` copies is looked at again, and counts only where the table was the same before and after."""
    async with asking_leader(config, None) as ask, Transport() as transport, trio.open_nursery() as nursery:
        servers = Servers(transport, nursery, config.cluster_id_bytes)

        async def look(seen: Seen, enough: int) -> None:
            after, more = b"", True
            while more:
                page: References = await ask(ListReferences(after, PAGE_BLOCKS), CALL_S)
                blocks = [block for block, references in page.blocks if references and block not in page.logged]
                await _judge(ask, servers, blocks, seen, enough, 0)
                more, after = page.more, page.blocks[-1][0] if page.blocks else after

        yield look
        nursery.cancel_scope.cancel()


async def _judge(
    ask: Ask, servers: Servers, blocks: Sequence[bytes], seen: Seen, enough: int, tries: int
) -> None:
    before: ClusterMap = await ask(GetClusterMap(), CALL_S)
    holders = await servers.holders(before.servers, blocks)
    doubtful = []
    for block in blocks:
        copies = len(holders[block].intersection(before.table[group_of(block, len(before.table))]))
        if copies < enough:
            doubtful.append(block)
            continue
        seen.blocks += 1
        seen.fewest = min(seen.fewest, copies)
    if not doubtful:
        return
    still: References = await ask(FindReferences(tuple(doubtful)), CALL_S)
    doubtful = [block for block, references in still.blocks if references and block not in still.logged]
    after: ClusterMap = await ask(GetClusterMap(), CALL_S)
    if after.pg_epoch != before.pg_epoch and tries < TRIES:
        await _judge(ask, servers, doubtful, seen, enough, tries + 1)
        return
    for block in doubtful:
        row = before.table[group_of(block, len(before.table))]
        copies = len(holders[block].intersection(row))
        if copies < seen.fewest:
            seen.fewest, seen.which = copies, f"{block.hex()} on {holders[block]} of {row}"


class Servers:
    """Connections to chunk servers."""

    def __init__(self, transport: Transport, nursery: trio.Nursery, cluster: bytes) -> None:
        self._transport, self._nursery, self._cluster = transport, nursery, cluster
        self._connections: dict[str, Connection] = {}

    async def holders(
        self, records: Collection[ServerRecord], blocks: Sequence[bytes]
    ) -> dict[bytes, set[int]]:
        """Who has each block alive."""
        found: dict[bytes, set[int]] = {block: set() for block in blocks}
        for record in records:
            if record.state == "out" or not record.alive:
                continue
            connection = self._connections.get(record.address)
            if connection is None:
                connection = Connection(self._transport, record.address, CATALOGUE, cluster_id=self._cluster)
                await self._nursery.start(connection.run)
                self._connections[record.address] = connection
            reply = (await connection.call(FindBlocks(tuple(blocks)), timeout_s=CALL_S)).body
            for block in reply.blocks:
                if block.state == LIVE:
                    found[block.block].add(record.server)
        return found
