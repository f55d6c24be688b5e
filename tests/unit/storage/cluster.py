"""Chunk servers inside the test's process, on a network and disks in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from node.rpc.client import Connection
from node.rpc.memory import MemoryTransport
from node.rpc.server import Server
from storage import api
from storage.server.committer import Committer
from storage.server.forward import Peers
from storage.server.healing import Healing
from storage.server.service import Service
from storage.server.tables import KnownTable
from storage.store import BlockStore
from tests.unit.storage.faultdisk import FaultDisk
from tests.unit.storage.stores import CLUSTER, open_store


class ChunkServer:
    """One of them. ``disk`` may be made to fail; ``client`` is a connection to it."""

    def __init__(self, transport: MemoryTransport, number: int, disk: FaultDisk, **options: Any) -> None:
        self.number = number
        self.address = f"storage-{number}"
        self.disk = disk
        self.store: BlockStore = open_store(disk, seed=number, segment_bytes=1 << 26, **options)
        self.peers = Peers(lambda other: Connection(transport, other.address, api.CATALOGUE, cluster_id=CLUSTER))
        self.committer = Committer(self.store)
        self.finished = 0  # orders
        self.asked = 0  # for a newer table
        self.table = KnownTable(self._behind)
        self.table.server = number
        self.healing = Healing(
            self.store, self.committer, self.peers.connection, own=lambda: number, finished=self._order_done,
            table=self.table,
        )
        self.service = Service(self.store, self.committer, self.status, self.peers.forward, self.table)
        self.server = Server(transport, self.address, cluster_id=CLUSTER)
        for method, handler in self.service.handlers().items():
            self.server.register(api.CATALOGUE.by_number[method], handler)
        self.client = Connection(transport, self.address, api.CATALOGUE, cluster_id=CLUSTER)

    def _order_done(self) -> None:
        self.finished += 1

    def _behind(self) -> None:
        self.asked += 1

    def reports(self) -> list[api.Report]:
        """What a heartbeat would carry, acknowledged."""
        found = self.healing.reports(1000)
        for report in found:
            self.healing.acknowledged(report)
        return list(found)

    def status(self) -> api.ServerStatus:
        return api.ServerStatus(
            server=self.number, uuid=self.store.identity, address=self.address, used_bytes=self.store.used_bytes,
            capacity_bytes=self.store.capacity_bytes, blocks=self.store.block_count,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            parts = self.committer.run, self.service.run, self.peers.run, self.healing.run, self.server.run
            for part in (*parts, self.client.run):
                await nursery.start(part)
            await self.client.wait_connected()
            task_status.started()


@asynccontextmanager
async def chunk_servers(count: int = 1, **options: Any) -> AsyncIterator[list[ChunkServer]]:
    """Run this many servers that know each other."""
    async with MemoryTransport() as transport, trio.open_nursery() as nursery:
        servers = [ChunkServer(transport, number, FaultDisk(), **options) for number in range(1, count + 1)]
        for server in servers:
            await nursery.start(server.run)
            server.peers.update(api.ServerAddress(other.number, other.address) for other in servers)
        yield servers
        nursery.cancel_scope.cancel()
