"""A cluster in memory whose chunk servers are real block stores on a disk that can lose power, with a collector.

Mounts are production clients, the metadata service is the production state machine, and the collector is the leader's.
A second collector may believe that it leads: it sees an older state, and nothing that it proposes comes to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import trio

from metadata.placement import group_of
from metadata.server.collector import Collector, Round
from metadata.server.fleet import Fleet
from metadata.server.mover import Mover
from metadata.state.command import CommandKind, RegisterServer, encode_command
from metadata.state.machine import Machine
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import Code, FsError
from storage import api as storage
from storage.api import verify_block
from storage.catalog import MemoryCatalog
from storage.cleaning import Cleaner
from storage.entry import State
from storage.records import Kind
from storage.store import BlockStore, Operation
from tests.unit.client.world import GROUPS, Store, World
from tests.unit.storage.faultdisk import FaultDisk
from tests.unit.storage.stores import open_store

SEGMENT_BYTES = 60_000


class RealStore(Store):
    """A chunk server on a block store. ``lose_power`` takes whatever was not synced, and the connections."""

    def __init__(self, ident: int, quarantine_s: float, now_s: Callable[[], float] | None = None) -> None:
        super().__init__(ident)
        self.now_s = now_s  # None: a clock that hardly moves, and quarantine is always over
        self.disk, self.catalog = FaultDisk(), MemoryCatalog()
        self.quarantine_s = quarantine_s
        self.lives = 0
        self.deletes: list[storage.Delete] = []
        self._open()

    def _open(self) -> None:
        self.lives += 1
        options = {"segment_bytes": SEGMENT_BYTES, "quarantine_s": self.quarantine_s}
        seed = self.ident + 100 * self.lives
        self.real: BlockStore = open_store(self.disk, self.catalog, seed=seed, now_s=self.now_s, **options)
        self.cleaner = Cleaner(self.real, clock=self.now_s or (lambda: 1.9e9))

    def lose_power(self, random: Random, *, with_catalog: bool = False) -> None:
        self.disk.crash(random)
        self.catalog.crash()
        if with_catalog:
            self.catalog = MemoryCatalog()
        self._open()

    async def call(self, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Any:
        life = self.lives
        reply = await super().call(request, data, timeout_s=timeout_s)
        if life != self.lives:
            raise FsError(Code.UNREACHABLE, "the server restarted")
        return reply

    def put(self, request: storage.Put, data: Sequence[Any]) -> tuple[Any, list[memoryview]]:
        self.puts.append(request)
        operations = []
        for info, frame in zip(request.blocks, data):
            verify_block(frame, info.block, info.length)
            operations.append(Operation(Kind.DATA, info.block, request.touch_epoch, info.length, bytes(frame)))
        self.real.commit(operations)
        codes = tuple([operation.code for operation in operations])
        return storage.PutReply(codes, tuple([int(not code) for code in codes])), []

    def get(self, request: Any) -> tuple[Any, list[memoryview]]:
        """Everything that is no put."""
        if isinstance(request, storage.Delete):
            return self.delete(request), []
        if isinstance(request, storage.ListUnconfirmed):
            self.real.confirm(request.confirm)
            listed = self.real.unconfirmed(request.epoch, request.limit)
            return storage.Unconfirmed(tuple(listed[0]), listed[1], listed[2], self.real.unconfirmed_bytes), []
        assert isinstance(request, storage.Get)
        self.gets.append(request)
        codes, frames = [], []
        for wanted in request.ranges:
            try:
                frames.append(memoryview(self.real.fetch(wanted.block, wanted.offset, wanted.length)))
                codes.append(0)
            except FsError as error:
                frames.append(memoryview(b""))
                codes.append(int(error.code))
        return storage.GetReply(tuple(codes)), frames

    def delete(self, request: storage.Delete) -> storage.DeleteReply:
        self.deletes.append(request)
        operations = [Operation(Kind.DELETE, block, request.epoch) for block in request.blocks]
        self.real.commit(operations)
        kept = tuple([at for at, operation in enumerate(operations) if operation.code == Code.STALE_EPOCH])
        return storage.DeleteReply(sum(not operation.code for operation in operations), kept)

    def clean(self) -> None:
        """Let the cleaner work until nothing is due."""
        while self.cleaner.step():
            pass

    def live(self) -> set[bytes]:
        """The blocks that are here and not deleted."""
        return {block for block, entry in self.catalog._now.items() if entry.state == State.LIVE}

    def status(self) -> storage.ServerStatus:
        real = self.real
        return storage.ServerStatus(
            server=self.ident, uuid=bytes([self.ident]) * 16, address=f"mem:{self.ident}", used_bytes=real.stored_bytes,
            capacity_bytes=1 << 40, blocks=real.block_count, unconfirmed_bytes=real.unconfirmed_bytes,
        )


class Leading:
    """The group as the true leader's collector sees it."""

    def __init__(self, world: GcWorld) -> None:
        self._world = world
        self.leads = True
        self.term = 1

    def check(self) -> None:
        if not self.leads:
            raise FsError(Code.NOT_LEADER)

    async def propose(self, kind: CommandKind, body: msgspec.Struct) -> None:
        self.check()
        await self._world.pause()
        self._world.apply(kind, body)

    async def barrier(self) -> None:
        await self._world.pause()
        self.check()


class Deposed(Leading):
    """Somebody who does not know yet that another one leads."""

    async def propose(self, kind: CommandKind, body: msgspec.Struct) -> None:
        await self._world.pause()
        raise FsError(Code.NOT_LEADER)

    async def barrier(self) -> None:
        await self._world.pause()
        raise FsError(Code.NOT_LEADER)


@dataclass
class GcWorld(World):
    """``random`` gives every delay; None: nothing waits."""

    servers: int = 3
    replicas: int = 3
    quarantine_s: float = 0
    random: Random | None = None
    log: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.leading = Leading(self)
        self.collector = Collector(self.leading, self.machine, self.fleet, self.call_server, interval_s=1)
        self.mover = Mover(self.leading, self.machine, self.fleet, self.call_server)
        self.late: deque[tuple[int, storage.Delete]] = deque()  # deletes that will arrive once more

    def apply(self, kind: CommandKind, body: msgspec.Struct) -> Any:
        self.now_ns += 1000
        data = encode_command(kind, self.now_ns, body)
        self.log.append(data)
        outcome = self.machine.apply(self.machine.applied + 1, 1, data)
        if isinstance(outcome.reply, FsError):
            raise FsError(outcome.reply.code, outcome.reply.detail)
        return outcome.reply

    def add_server(self, ident: int) -> None:
        uuid = bytes([ident]) * 16
        body = RegisterServer(uuid, f"storage-{ident}", f"mem:{ident}", f"host{ident}", "", 1.0, 1 << 40)
        assert self.apply(CommandKind.REGISTER_SERVER, body).server == ident
        self.stores[ident] = RealStore(ident, self.quarantine_s)

    @property
    def reals(self) -> list[RealStore]:
        found = list(self.stores.values())
        assert all(isinstance(store, RealStore) for store in found)
        return found  # type: ignore[return-value]

    async def pause(self) -> None:
        if self.random is None:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self.random.choice((0, 0.001, 0.01, 0.1, 0.5)) * self.random.random())

    def fleet(self) -> Fleet:
        fleet = Fleet(0.0, replicas=self.replicas, expected=self.servers)
        for store in self.reals:
            fleet.heard(store.ident, store.status(), 0.0)
        return fleet

    async def call_server(self, record: Any, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Any:
        await self.pause()
        if isinstance(request, storage.Delete) and self.random is not None and self.random.random() < 0.3:
            self.late.append((record.server, request))
        return (await self.stores[record.server].call(request, data, timeout_s=timeout_s)).body

    def deposed(self, behind: int) -> Collector:
        """A collector that sees the state as it was ``behind`` entries ago."""
        machine = Machine(MemoryEngine())
        for index, data in enumerate(self.log[: len(self.log) - behind], 1):
            machine.apply(index, 1, data)
        return Collector(Deposed(self), machine, self.fleet, self.call_server, interval_s=1)

    async def collect(self, rounds: int = 1) -> Round:
        """Take rounds, and let the servers clean up."""
        done = Round()
        for _ in range(rounds):
            done = await self.collector.round()
            for store in self.reals:
                store.clean()
        return done

    def referenced(self) -> set[bytes]:
        """Every block that some file references now."""
        return {block for block, count in self.machine.blocks(b"", 1 << 20) if count}

    def check_nothing_lost(self) -> None:
        """Every referenced block lives on as many servers of its group as a commit asked for, or is in the state."""
        living = {store.ident: store.live() for store in self.reals}
        referenced = self.referenced()
        for block in referenced.difference(self.machine.logged_among(referenced)):
            row = self.machine.table[group_of(block, GROUPS)]
            holders = [ident for ident in row if block in living[ident]]
            assert len(holders) >= self.replicas // 2 + 1, f"block {block.hex()} is only on {holders} of {row}"

    def check_nothing_stays(self) -> None:
        """No server keeps a block that nothing references."""
        used = self.referenced()
        for store in self.reals:
            extra = store.live() - used
            assert not extra, f"server {store.ident} keeps {len(extra)} blocks: {sorted(extra)[0].hex()}"
            assert store.real.quarantined_bytes == 0 or self.quarantine_s
