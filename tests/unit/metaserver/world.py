"""Whole members in one process: production code over a network in memory and directories of the test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Optional

import msgspec
import trio

from metadata import api
from metadata.raft.core import Role
from metadata.server.member import MetadataMember, Place
from metadata.store.disk import Disk, FatalDiskError, RealDisk
from node.host.cluster import ChunkServer, ClusterConfig, Member
from node.rpc.client import Connection, Reply
from node.rpc.memory import MemoryTransport
from node.wire.errors import Code, FsError

CLUSTER_ID = "00112233445566778899aabbccddeeff"


class Running:
    """A member that runs; ``crash`` ends it as kill -9 would, as far as the disk sees, ``stop`` in order."""

    def __init__(self, member: MetadataMember) -> None:
        self.member = member
        self.scope = trio.CancelScope()
        self.stopping = trio.Event()
        self.ended = trio.Event()
        self.disk_error: BaseException | None = None

    async def run(self, started: trio.Event) -> None:
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.member.run, self.stopping)
                    started.set()
        except* FatalDiskError as group:
            self.disk_error = group
        finally:
            self.ended.set()
            started.set()

    async def crash(self) -> None:
        self.scope.cancel()
        await self.ended.wait()

    async def stop(self) -> None:
        self.stopping.set()
        await self.ended.wait()


class World:
    """Members of one cluster, started and ended one by one."""

    def __init__(
        self, path: Path, members: int, *, trailing: int = 50_000, replicas: int = 1, servers: int = 0
    ) -> None:
        self.path = path
        self.trailing = trailing
        self.transport = MemoryTransport()
        self.disks: dict[int, Disk] = {}
        self.running: dict[int, Running] = {}
        self.nursery: trio.Nursery
        self.wall_ns = 1_700_000_000_000_000_000
        self.config = ClusterConfig(
            cluster_id=CLUSTER_ID,
            transport="ipc",
            replicas=replicas,
            members=tuple(
                Member(id=n, name=f"metadata-{n}", address=f"ipc://m{n}", peer_address=f"ipc://p{n}")
                for n in range(1, members + 1)
            ),
            servers=tuple(
                ChunkServer(name=f"storage-{n}", address=f"ipc://s{n}") for n in range(1, servers + 1)
            ),
        )
        self.connections: dict[int, Connection] = {}

    def make(self, number: int) -> MetadataMember:
        data = self.path / f"metadata-{number}"
        data.mkdir(exist_ok=True)
        return MetadataMember(
            Place(self.config, self.path / "cluster.toml", self.config.member(number), data),
            self.transport,
            self.disks.get(number, RealDisk()),
            wall_ns=lambda: self.wall_ns,
            trailing=self.trailing,
        )

    async def start(self, *numbers: int) -> None:
        """Start members; returns when all serve, or wait for others."""
        events = []
        for number in numbers:
            running = self.running[number] = Running(self.make(number))
            events.append(trio.Event())
            self.nursery.start_soon(running.run, events[-1])
        for event in events:
            await event.wait()

    def __getitem__(self, number: int) -> MetadataMember:
        return self.running[number].member

    async def leader(self, *among: int) -> int:
        """Wait for a settled leader, and return it."""
        while True:
            for number in among or tuple(self.running):
                running = self.running[number]
                node = running.member.node
                if not running.ended.is_set() and node is not None and node.role is Role.LEADER and node.settled:
                    return number
            await trio.sleep(0.01)

    async def until(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Wait for something that nobody announces."""
        with trio.fail_after(timeout_s):
            while True:
                if condition():
                    return
                await trio.sleep(0.01)

    async def call(self, number: int, request: msgspec.Struct, timeout_s: float = 5.0) -> Any:
        reply: Reply = await self.connections[number].call(request, timeout_s=timeout_s)
        return reply.body

    async def ask(self, request: msgspec.Struct, timeout_s: float = 60.0) -> Any:
        """Send a request as a client does: to whoever leads, again where that may be done."""
        target = next(iter(self.running))
        with trio.fail_after(timeout_s):
            while True:
                try:
                    if not self.connections[target].connected:
                        raise FsError(Code.UNREACHABLE)
                    return await self.call(target, request, 2.0)
                except FsError as error:
                    if error.code is Code.LEASES_GONE:
                        request = msgspec.structs.replace(request, lease_term=error.hint)
                        continue
                    if not error.retryable and error.code is not Code.TIMEOUT:
                        raise
                    numbers = list(self.connections)
                    target = error.hint or numbers[(numbers.index(target) + 1) % len(numbers)]
                await trio.sleep(0.02)


@asynccontextmanager
async def world(path: Path, members: int = 1, *, start: bool = True, **options: Any) -> AsyncIterator[World]:
    """A cluster with connections to every member, all members started."""
    made = World(path, members, **options)
    async with trio.open_nursery() as nursery:
        made.nursery = nursery
        for member in made.config.members:
            connection = made.connections[member.id] = Connection(
                made.transport, member.address, api.CATALOGUE, cluster_id=made.config.cluster_id_bytes
            )
            await nursery.start(connection.run)
        if start:
            await made.start(*made.connections)
        yield made
        for running in made.running.values():
            if not running.ended.is_set():
                await running.stop()
        nursery.cancel_scope.cancel()


class Session:
    """A client session that numbers its requests. It holds no leases, and says so to every new leader."""

    def __init__(self, made: World, ident: int) -> None:
        self.world = made
        self.ident = ident
        self.sequence = 0

    @classmethod
    async def open(cls, made: World) -> Session:
        reply = await made.ask(api.OpenSession(os.urandom(16), "host", "/mnt", "test"))
        return cls(made, reply.session)

    def request(self, *ops: api.Op) -> api.Submit:
        self.sequence += 1
        return api.Submit(self.ident, self.sequence, self.sequence, ops, lease_term=1)

    async def do(self, *ops: api.Op) -> tuple[Any, ...]:
        reply: api.SubmitReply = await self.world.ask(self.request(*ops))
        return reply.results

    async def look(self, name: bytes, number: Optional[int] = None) -> Any:
        request = api.Read(self.ident, (api.Lookup(1, name),), lease_term=1 if number is None else 0)
        reply = await (self.world.ask(request) if number is None else self.world.call(number, request))
        return reply.results[0]


def make(name: bytes) -> api.Make:
    return api.Make(1, name, 0o100644, 0, 0)
