"""The collector's world, in which chunk servers also come, go, lose their disks and heal.

Four places for chunk servers, three copies. The leader's healer, the servers' healing and everything of ``gc_world``
are production code; what is made up here is what carries heartbeats, orders and requests, and who is cut off from whom.
Time is trio's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from metadata import api
from metadata.placement import group_of
from metadata.rows import View
from metadata.server.fleet import Fleet
from metadata.server.healer import Healer
from metadata.server.tables import Tables
from metadata.state.command import CommandKind, RegisterServer, SetServerState
from node.wire.errors import Code, FsError
from node.wire.limits import REPORTS_MAX
from storage import api as storage
from storage.entry import State
from storage.server.healing import Healing
from storage.server.service import digest_of
from storage.server.tables import KnownTable
from storage.store import Operation
from tests.sim.gc_world import GcWorld, RealStore
from tests.unit.client.world import GROUPS, Reply

PLACES = 4
SILENT_S, NOOUT_S, ASK_S = 40.0, 400.0, 60.0
EPOCH_S = 1.7e9  # when the simulated world begins
LATE_S = 15.0  # an answer that takes longer is taken for none
FULL = "all"
LOST_SHARE = {"mounts": 0.3, "peers": 0.03, "leader": 0.03}


class Chunk(RealStore):
    """A chunk server: a disk with the process that serves it now. ``cut``: who does not reach it: "mounts", "peers",
    "leader", all of them, or (empty) nobody."""

    def __init__(self, world: HealingWorld, ident: int, place: int) -> None:
        self.world = world
        self.place = place
        self.up = self.exists = True
        self.cut = ""
        self.life = trio.CancelScope()
        self.healing: Healing | None = None
        self.known = KnownTable()
        super().__init__(ident, world.quarantine_s, lambda: EPOCH_S + trio.current_time())

    async def call(self, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Any:
        """Asked by a mount."""
        return await self.asked_by("mounts", request, data, timeout_s)

    async def asked_by(self, who: str, request: Any, data: Sequence[Any], timeout_s: float) -> Reply:
        """Requests and answers take their time, and get lost; so many blocks are only where a commit needed them."""
        await self.world.pause()
        self._reached(who)
        reply: Reply = await super().call(request, data, timeout_s=timeout_s)
        await self.world.pause()
        self._reached(who)
        return reply

    def _reached(self, who: str) -> None:
        if not self.up or self.cut in (FULL, who) or self.world.loses(who):
            raise FsError(Code.UNREACHABLE, f"server {self.ident}")

    def get(self, request: Any) -> tuple[Any, list[memoryview]]:
        groups = isinstance(request, (storage.GroupDigests, storage.ListGroup))
        if groups and request.server and request.server != self.ident:
            raise FsError(Code.STALE, f"this is {self.ident}")
        if isinstance(request, storage.GroupDigests):
            found = [digest_of(self.real, group, request.groups) for group in request.wanted]
            return storage.GroupDigestsReply(tuple(found)), []
        if isinstance(request, storage.ListGroup):
            listed = self.real.group_blocks(request.group, request.groups, request.after, request.limit + 1)
            blocks = [storage.GroupBlock(block, entry.epoch, entry.plain, entry.stored) for block, entry in listed]
            return storage.GroupBlocks(tuple(blocks[: request.limit]), len(blocks) > request.limit), []
        return super().get(request)

    def stop(self) -> None:
        """The process is no more; another life of the place begins with whatever store it has then."""
        self.up = False
        self.lives += 1
        self.life.cancel()

    def lose_disk(self) -> None:
        self.exists = False
        self.stop()


class _Committer:
    """One life's way to its store: what a process had under way when it ended does not come to be."""

    def __init__(self, store: Chunk) -> None:
        self._store, self._life = store, store.lives

    def submit(self, operations: Sequence[Operation], done: Callable[[], None]) -> None:
        if self._store.up and self._store.lives == self._life:
            self._store.real.commit(operations)
            done()


class _Peer:
    """What one chunk server asks of another."""

    def __init__(self, world: HealingWorld, origin: Chunk, server: int) -> None:
        self._world, self._origin, self._server = world, origin, server

    async def call(self, request: Any, data: Sequence[Any] = (), *, timeout_s: float = 5.0) -> Any:
        await self._world.pause()
        if self._origin.cut in (FULL, "peers"):
            raise FsError(Code.UNREACHABLE, "cut off")
        target = self._world.stores[self._server]
        assert isinstance(target, Chunk)
        return await target.asked_by("peers", request, data, timeout_s)


async def _here(work: Callable[[], Any], *, limiter: Any = None) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


@dataclass
class HealingWorld(GcWorld):
    """``run`` must be running."""

    servers: int = PLACES
    quarantine_s: float = 600.0
    stormy: bool = True
    chunks: dict[int, Chunk] = field(default_factory=dict)  # by place: who is there now
    stale: deque[tuple[float, Chunk, int, tuple[storage.Order, ...]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names: set[bytes] = set()  # of blocks that were ever put
        self.tables = Tables(self.machine)
        self.watch = self._new_fleet()
        self.healer = Healer(
            self.leading, self.machine, lambda: self.watch, self.call_server, now_s=trio.current_time,
            noout_s=NOOUT_S, ask_s=ASK_S,
        )  # fmt: skip
        for store in self.reals:
            self.watch.heard(store.ident, store.status(), 0.0)

    def _new_fleet(self) -> Fleet:
        return Fleet(trio.current_time(), replicas=self.replicas, expected=0, silent_after_s=SILENT_S)

    def fleet(self) -> Fleet:
        return self.watch

    def add_server(self, ident: int) -> None:
        super().add_server(ident)
        self._put_in(ident, ident)

    def _put_in(self, ident: int, place: int) -> Chunk:
        self.stores[ident] = self.chunks[place] = chunk = Chunk(self, ident, place)
        return chunk

    async def dial(self, record: api.ServerRecord) -> Any:
        await trio.lowlevel.checkpoint()
        return self.stores[record.server]

    def serve(self, request: Any) -> Any:
        answer = super().serve(request)
        if isinstance(request, api.GetClusterMap):
            rows = [
                api.TableRow(number, group.servers, group.filling, group.leaving)
                for number, group in enumerate(self.machine.groups) if group.filling or group.leaving
            ]  # fmt: skip
            machine = self.machine
            return api.ClusterMap(
                machine.pg_epoch, machine.gc_epoch, self.replicas, machine.servers(), machine.table, 0, tuple(rows)
            )
        return answer

    async def call_server(self, record: Any, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Any:
        await self.pause()
        if isinstance(request, storage.Delete) and self.random is not None and self.random.random() < 0.3:
            self.late.append((record.server, request))
        store = self.stores[record.server]
        assert isinstance(store, Chunk)
        return (await store.asked_by("leader", request, (), timeout_s)).body

    # --- what runs --------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Leader and chunk servers, until cancelled."""
        async with trio.open_nursery() as nursery:
            for place in list(self.chunks):
                nursery.start_soon(self._live, place)
            nursery.start_soon(self._lead)
            task_status.started()

    async def _live(self, place: int) -> None:
        """The lives of one place's processes, one after the other."""
        while True:
            store = self.chunks[place]
            with trio.CancelScope() as store.life:
                async with trio.open_nursery() as nursery:
                    committer: Any = _Committer(store)
                    store.known = KnownTable()
                    connect: Any = self._connect(store)
                    store.healing = Healing(
                        store.real, committer, connect, own=lambda: store.ident,  # noqa: B023  of this life
                        finished=lambda: None, table=store.known, in_thread=_here,
                    )  # fmt: skip
                    store.up = True
                    await nursery.start(store.healing.run)
                    await self._beats(store, store.healing)
            await trio.sleep(self._chance(1, 20) if store.exists else self._chance(10, 60))
            if not store.exists:
                await self._register(self._put_in(len(self.machine.servers()) + 1, place))

    def _connect(self, store: Chunk) -> Callable[[int], Any]:
        async def connect(server: int) -> _Peer | None:
            await trio.lowlevel.checkpoint()
            return _Peer(self, store, server) if server in self.stores else None

        return connect

    async def _register(self, store: Chunk) -> None:
        """A new store says who it is; what was at its place before is lost."""
        address = f"mem:{store.place}"
        uuid, name, host = bytes([store.ident]) * 16, f"storage-{store.place}", f"host{store.place}"
        body = RegisterServer(uuid, name, address, host, "", 1.0, 1 << 40, "joining")
        assert self.apply(CommandKind.REGISTER_SERVER, body).server == store.ident
        for other in self.machine.servers():
            if other.server != store.ident and other.address == address and other.note != "lost":
                self.apply(CommandKind.SET_SERVER_STATE, SetServerState(other.server, "out", note="lost"))
        await trio.lowlevel.checkpoint()

    async def _beats(self, store: Chunk, healing: Healing) -> None:
        while True:
            if store.cut not in (FULL, "leader"):
                reports = tuple(healing.reports(REPORTS_MAX))
                await self.pause()
                self.watch.heard(store.ident, store.status(), trio.current_time())
                self.healer.reported(store.ident, reports)
                orders, pg_epoch = self.healer.orders_for(store.ident), self.machine.pg_epoch
                await self.pause()
                if self.random is None or self.random.random() > 0.05:
                    for report in reports:
                        healing.acknowledged(report)
                    store.known.server = store.ident
                    while store.known.take(self.tables.behind(store.known.table.reached)):
                        pass
                    self.obey(store, pg_epoch, orders)
                self.stale.append((trio.current_time(), store, pg_epoch, orders))
            await trio.sleep(self._chance(6, 14))

    @staticmethod
    def obey(store: Chunk, pg_epoch: int, orders: Sequence[storage.Order]) -> None:
        """What a heartbeat's answer does."""
        if store.up and store.healing is not None and store.real.current(pg_epoch):
            for order in orders:
                assert not isinstance(order, storage.Scrub)
                store.healing.take(order)

    async def _lead(self) -> None:
        while True:
            await trio.sleep(self._chance(0.5, 3))
            self.watch.lapse(trio.current_time())
            try:
                await self.healer.turn()
            except FsError:
                continue

    def elect(self) -> None:
        """Another one leads, and knows only what is in the log."""
        self.leading.term += 1
        self.watch = self._new_fleet()

    def loses(self, who: str) -> bool:
        """Whether a message to or from a chunk server is lost now."""
        share = LOST_SHARE[who]
        return self.random is not None and self.stormy and self.random.random() < share

    def _chance(self, low: float, high: float) -> float:
        return low if self.random is None else self.random.uniform(low, high)

    # --- what is ----------------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        return self.healer.healing.view(self.healer.volume, self.watch, trio.current_time())

    def lost(self, row: Sequence[int]) -> list[int]:
        """The members of a row whose disks are gone."""
        return [server for server in row if not self.chunk(server).exists]

    def chunk(self, server: int) -> Chunk:
        found = self.stores[server]
        assert isinstance(found, Chunk)
        return found

    def calm(self) -> bool:
        """Whether everything is as it shall be, as the leader sees it."""
        groups, healing = self.machine.groups, self.healer.healing
        changing = any(group.filling or group.leaving or self.lost(group.servers) for group in groups)
        short = healing.under_replicated(self.healer.volume, self.view)
        return not changing and not short and not healing.orders.under_way()

    def all_whole(self) -> bool:
        """Whether every referenced block lives on all of its row."""
        return all(copies >= self.replicas for _, copies in self.copies())

    def copies(self) -> list[tuple[bytes, int]]:
        """How many members of its row have each referenced block alive."""
        found = []
        table = self.machine.table
        for block, references in self.machine.blocks(b"", 1 << 20):
            if references:
                row = table[group_of(block, GROUPS)]
                found.append((block, sum(self._has(server, block) for server in row)))
        return found

    def _has(self, server: int, block: bytes) -> bool:
        store = self.chunk(server)
        entry = store.catalog.get(block) if store.exists else None
        return entry is not None and entry.state == State.LIVE

    def check_nothing_lost(self) -> None:
        """Every referenced block lives on a member of its row, and where none lost its disk, on as many as a commit
        asked for."""
        for block, copies in self.copies():
            group = self.machine.groups[group_of(block, GROUPS)]
            least = 1 if self.lost(group.servers) else self.replicas // 2 + 1
            assert copies >= least, f"block {block.hex()} has {copies} copies on {group}"

    def check_nothing_stays(self) -> None:
        """No server keeps a block that nothing references, or of a group that it is no member of."""
        used = {block for block, references in self.machine.blocks(b"", 1 << 20) if references}
        for store in self.chunks.values():
            extra = store.live() - used
            assert not extra, f"server {store.ident} keeps {len(extra)} blocks: {sorted(extra)[0].hex()}"
            strange = [b for b in store.live() if store.ident not in self.machine.table[group_of(b, GROUPS)]]
            assert not strange, f"server {store.ident} keeps {len(strange)} blocks of others"
