"""Real chunk servers under a leader that only gives orders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from node.host.cluster import ChunkServer, ClusterConfig, Member, StorageOptions, load_cluster, new_cluster_id
from node.host.cluster import save_cluster
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.server import Call, Server
from node.wire.errors import FsError
from storage import api

GROUPS = 8
PATIENCE_S = 90


class Cluster:
    """Three chunk servers and a leader that hands out what ``orders`` says."""

    def __init__(self, path: Path, transport: Transport, nursery: trio.Nursery) -> None:
        self.path = path
        self.nursery = nursery
        (path / "run").mkdir(mode=0o700)
        member = Member(id=1, name="metadata-1", address="ipc://run/m.sock", peer_address="ipc://run/p.sock")
        servers = tuple(ChunkServer(name=f"storage-{n}", address=f"ipc://run/s{n}.sock") for n in (1, 2, 3))
        options = StorageOptions(heartbeat_interval=0.2, segment_bytes=8 << 20)
        config = ClusterConfig(
            cluster_id=new_cluster_id(), transport="ipc", members=(member,), servers=servers, storage=options
        )
        save_cluster(path / "cluster.toml", config)
        self.config = load_cluster(path / "cluster.toml")
        self.transport = transport
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.clients: dict[int, Connection] = {}
        self.orders: dict[int, dict[tuple[int, int], api.Order]] = {1: {}, 2: {}, 3: {}}
        self.reports: dict[int, dict[tuple[int, int], api.Report]] = {1: {}, 2: {}, 3: {}}
        self.bad: dict[int, set[bytes]] = {1: set(), 2: set(), 3: set()}
        self.number = 0

    async def start(self) -> None:
        leader = Server(self.transport, self.config.members[0].address, cluster_id=self.config.cluster_id_bytes)
        leader.register(api.METADATA_FOR_SERVERS.by_number[0x207], self.heartbeat)
        await self.nursery.start(leader.run)
        for number in (1, 2, 3):
            address = self.config.servers[number - 1].address
            client = Connection(
                self.transport, address, api.CATALOGUE, cluster_id=self.config.cluster_id_bytes
            )
            await self.nursery.start(client.run)
            self.clients[number] = client
            self.spawn(number)
        with trio.fail_after(PATIENCE_S):
            for client in self.clients.values():
                await client.wait_connected()

    def heartbeat(self, call: Call) -> None:
        beat: api.Heartbeat = call.request
        number = int(beat.status.name[-1])
        self.bad[number] |= set(beat.bad_blocks)
        for report in beat.reports:
            group = -1 if isinstance(report, api.ScrubReport) else report.group
            self.reports[number][report.order, group] = report
        servers = tuple(api.ServerAddress(n, s.address) for n, s in enumerate(self.config.servers, 1))
        orders = tuple(self.orders[number].values())
        call.reply(api.HeartbeatReply(number, 1, 1, 0.2, servers=servers, orders=orders))

    def spawn(self, number: int) -> None:
        command = [sys.executable, "-m", "storage.server", "--cluster", str(self.path / "cluster.toml")]
        with open(self.path / f"log-{number}", "ab") as log:
            self.processes[number] = subprocess.Popen([*command, "--name", f"storage-{number}"], stderr=log)

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()

    def data(self, number: int) -> Path:
        return self.path / f"storage-{number}"

    def sync(self, number: int) -> int:
        """Order a server to be complete from the two others; return the number of the order."""
        self.number += 1
        others = tuple(n for n in (1, 2, 3) if n != number)
        for group in range(GROUPS):
            self.orders[number][0, group] = api.SyncGroup(self.number, group, GROUPS, 1, others)
        return self.number

    def complete(self, number: int, order: int) -> bool:
        found = [self.reports[number].get((order, group)) for group in range(GROUPS)]
        return all(isinstance(report, api.GroupReport) and report.complete for report in found)

    def scrubs(self, number: int) -> list[api.ScrubReport]:
        return [report for report in self.reports[number].values() if isinstance(report, api.ScrubReport)]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  in other processes
                await trio.sleep(0.05)

    async def get(self, number: int, datas: list[bytes]) -> list[bytes | int]:
        found: list[bytes | int] = []
        for data in datas:
            name = api.name_block(data)
            reply = await self.patiently(number, api.Get((api.BlockRange(name),)))
            code = reply.body.codes[0]
            found.append(code or bytes(api.decode_block(reply.data[0], name)))
        return found

    async def patiently(self, number: int, request: Any, data: tuple[bytes, ...] = ()) -> Any:
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    return await self.clients[number].call(request, data, timeout_s=30)
                except FsError as error:
                    if not error.retryable:
                        raise
                    await trio.sleep(0.05)


@asynccontextmanager
async def cluster(path: Path) -> AsyncIterator[Cluster]:
    async with Transport() as transport, trio.open_nursery() as nursery:
        made = Cluster(path, transport, nursery)
        try:
            await made.start()
            yield made
        finally:
            for process in made.processes.values():
                process.kill()
                process.wait()
            nursery.cancel_scope.cancel()
