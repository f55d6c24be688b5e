"""A cluster in memory for the client's tests: the real metadata state machine, chunk stores in a dict, no sockets.

Faults are rules: each sees every request before it is served and may raise, wait, or (with ``after``) lose the reply.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import msgspec
import trio

from fusefs.client.options import ClientOptions
from fusefs.client.volume import Volume
from metadata import api
from metadata.server.fleet import Fleet
from metadata.server.leasing import leasable, spoken_of
from metadata.server.mover import Mover
from metadata.state.check import check
from metadata.state.command import (
    AdvanceEpoch,
    CommandKind,
    ExpireSession,
    Format,
    RegisterServer,
    SetTable,
    TableItem,
    encode_command,
)
from metadata.state.machine import Machine
from metadata.store.engine_memory import MemoryEngine
from node.wire.codec import Codec
from node.wire.errors import Code, FsError
from storage import api as storage
from storage.api import partial_block, verify_block
from storage.records import SegmentHeader
from storage.segments import segment_name
from storage.server.tables import KnownTable

GROUPS = 16
_META = Codec(api.CATALOGUE)
_STORE = Codec(storage.CATALOGUE)


@dataclass
class Reply:
    body: Any
    data: list[memoryview]


Rule = Callable[[Any], Optional[Awaitable[None]]]


class Faults:
    """Rules of one peer."""

    def __init__(self) -> None:
        self.connected = True
        self.before: list[Rule] = []
        self.after: list[Rule] = []  # the request was executed; raising loses the reply

    async def apply(self, rules: list[Rule], request: Any) -> None:
        for rule in list(rules):
            waiting = rule(request)
            if waiting is not None:
                await waiting


def once(kind: type, error: Code, *, hint: int = 0) -> Rule:
    """A rule that fails the first request of a kind."""
    done: list[Any] = []

    def rule(request: Any) -> None:
        if isinstance(request, kind) and not done:
            done.append(request)
            raise FsError(error, "injected", hint=hint)

    return rule


def always(kind: type, error: Code) -> Rule:
    """A rule that fails every request of a kind."""

    def rule(request: Any) -> None:
        if isinstance(request, kind):
            raise FsError(error, "injected")

    return rule


class Gate:
    """A rule that stops requests which ``match``, until opened. ``reached`` is set by the first."""

    def __init__(self, match: Callable[[Any], bool]) -> None:
        self._match = match
        self.reached = trio.Event()
        self.opened = trio.Event()

    async def __call__(self, request: Any) -> None:
        if self._match(request):
            self.reached.set()
            await self.opened.wait()


def seen(match: Callable[[Any], bool]) -> tuple[Rule, trio.Event]:
    """A rule that changes nothing, and the event that it sets at the first request that matches."""
    event = trio.Event()

    def rule(request: Any) -> None:
        if match(request):
            event.set()

    return rule, event


def submits(kind: type) -> Callable[[Any], bool]:
    """Match a Submit that has an operation of this kind."""
    return lambda request: isinstance(request, api.Submit) and any(isinstance(op, kind) for op in request.ops)


class Member(Faults):
    """A metadata member that leads; ``leads`` false: it points to ``hint``."""

    def __init__(self, world: World, ident: int) -> None:
        super().__init__()
        self.world = world
        self.ident = ident
        self.leads = True
        self.hint = 0
        self.requests: list[Any] = []

    def close(self) -> None:
        pass

    async def call(self, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Reply:
        await trio.lowlevel.checkpoint()
        request = _roundtrip(_META, request)
        with trio.move_on_after(timeout_s):
            await self.apply(self.before, request)
            if not self.leads:
                raise FsError(Code.NOT_LEADER, "elsewhere", hint=self.hint)
            self.requests.append(request)
            body = self.world.serve(request)
            await self.apply(self.after, request)
            return Reply(_reply_of(_META, request, body), [])
        raise FsError(Code.TIMEOUT, "injected")


class Store(Faults):
    """A chunk server."""

    def __init__(self, ident: int) -> None:
        super().__init__()
        self.ident = ident
        self.blocks: dict[bytes, tuple[bytes, int]] = {}  # name -> encoded, touch epoch
        self.puts: list[storage.Put] = []
        self.gets: list[storage.Get] = []
        self.suspects: list[tuple[bytes, ...]] = []
        self.located: list[storage.Locate] = []
        self.directory: Optional[Path] = None  # of its segments, where the mount may read them
        self.identity = bytes([ident]) * 16
        self.peers: dict[int, Store] = {}
        self.known = KnownTable()  # nothing, unless a test tells
        self.known.server = ident
        self.full = False
        self.put_bytes = 0

    def close(self) -> None:
        pass

    async def call(self, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Reply:
        await trio.lowlevel.checkpoint()
        request = _roundtrip(_STORE, request)
        with trio.move_on_after(timeout_s):
            await self.apply(self.before, request)
            if isinstance(request, storage.Suspect):
                self.suspects.append(request.blocks)
                body, frames = storage.SuspectReply(len(request.blocks)), []
            elif isinstance(request, storage.Locate):
                body, frames = self.locate(request), []
            else:
                body, frames = self.put(request, data) if isinstance(request, storage.Put) else self.get(request)
            if isinstance(request, storage.Put) and request.forward:
                body = await self.onward(request, data, body, timeout_s)
            await self.apply(self.after, request)
            return Reply(_reply_of(_STORE, request, body), frames)
        raise FsError(Code.TIMEOUT, "injected")

    async def onward(self, request: storage.Put, data: Sequence[Any], here: Any, timeout_s: float) -> Any:
        """Pass a put on down its chain, leaving out who does not answer."""
        chain, failed = request.forward, []
        while chain:
            passed = msgspec.structs.replace(request, forward=chain[1:])
            try:
                reply = await self.peers[chain[0]].call(passed, data, timeout_s=timeout_s / (len(chain) + 1))
            except FsError:
                failed.append(chain[0])
                chain = chain[1:]
                continue
            copies = tuple(mine + theirs for mine, theirs in zip(here.copies, reply.body.copies))
            return msgspec.structs.replace(here, copies=copies, failed=(*failed, *reply.body.failed))
        return msgspec.structs.replace(here, failed=tuple(failed))

    def put(self, request: storage.Put, data: Sequence[Any]) -> tuple[Any, list[memoryview]]:
        self.puts.append(request)
        codes = []
        assert len(data) == len(request.blocks)
        stale = self.known.stale([info.block for info in request.blocks], request.pg_epoch)
        for at, (info, frame) in enumerate(zip(request.blocks, data)):
            if at in stale:
                codes.append(int(Code.STALE_EPOCH))
                continue
            verify_block(frame, info.block, info.length)
            self.put_bytes += info.length
            if self.full and info.block not in self.blocks:
                codes.append(int(Code.NO_SPACE))
                continue
            self.blocks[info.block] = bytes(frame), request.touch_epoch
            codes.append(0)
        table = self.known.news(request.pg_epoch)
        return storage.PutReply(tuple(codes), tuple(int(not code) for code in codes), table=table), []

    def get(self, request: storage.Get) -> tuple[Any, list[memoryview]]:
        self.gets.append(request)
        codes, frames = [], []
        for wanted in request.ranges:
            encoded, _ = self.blocks.get(wanted.block, (None, 0))
            frame = b""
            if encoded is None:
                ours = self.known.is_member(wanted.block)
                codes.append(int(Code.MISSING_BLOCK if ours else Code.STALE_EPOCH))
            else:
                codes.append(0)
                frame = partial_block(encoded, wanted.block, wanted.offset, wanted.length) if wanted.length else encoded
            frames.append(memoryview(frame))
        return storage.GetReply(tuple(codes), self.known.news(request.pg_epoch)), frames

    def locate(self, request: storage.Locate) -> storage.LocateReply:
        """Write what is asked for into a segment of its own, where this store has a directory."""
        self.located.append(request)
        if self.directory is None:
            raise FsError(Code.NOT_SUPPORTED, "no files")
        number = len(self.located)
        written = SegmentHeader(number, 0, bytes(16), self.identity).pack()
        places = []
        for block in request.blocks:
            encoded = self.blocks.get(block, (b"", 0))[0]
            length = int.from_bytes(encoded[8:12], "little")
            places.append(storage.Located(number, len(written), len(encoded), length) if encoded else storage.Located())
            written += encoded
        (self.directory / segment_name(number)).write_bytes(written)
        return storage.LocateReply(str(self.directory), self.identity, tuple(places))

    def damage(self, block: bytes) -> None:
        """Flip a bit in the middle of a block."""
        encoded, epoch = self.blocks[block]
        middle = len(encoded) - 1
        self.blocks[block] = encoded[:middle] + bytes([encoded[middle] ^ 1]) + encoded[middle + 1 :], epoch


class Moving:
    """The group and its chunk servers, as the leader's mover of what is in the log sees them."""

    leads = True
    term = 1

    def __init__(self, world: World) -> None:
        self._world = world

    def check(self) -> None:
        pass

    async def barrier(self) -> None:
        await trio.lowlevel.checkpoint()

    async def propose(self, kind: CommandKind, body: msgspec.Struct) -> None:
        await trio.lowlevel.checkpoint()
        self._world.apply(kind, body)

    async def call(self, record: api.ServerRecord, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Any:
        return (await self._world.stores[record.server].call(request, data, timeout_s=timeout_s)).body

    def fleet(self) -> Fleet:
        fleet = Fleet(0.0, replicas=self._world.replicas, expected=self._world.servers)
        for store in self._world.stores.values():
            if store.connected:
                status = storage.ServerStatus(
                    server=store.ident, uuid=b"", address="", used_bytes=0, capacity_bytes=1 << 40, blocks=0
                )
                fleet.heard(store.ident, status, 0.0)
        return fleet


@dataclass
class World:
    """One cluster. ``now_ns`` is the only clock of both sides."""

    servers: int = 1
    replicas: int = 1
    members: int = 1
    term: int = 1
    alone: bool = False  # the only mount is granted everything exclusively
    log_data: bool = False  # small data may travel in the log
    engine: MemoryEngine = field(default_factory=MemoryEngine)

    def __post_init__(self) -> None:
        self.machine = Machine(self.engine)
        self.now_ns = 1_000_000_000_000
        self._mounts = 0
        self._random = 0
        self.apply(CommandKind.FORMAT, Format(b"c" * 16, self.replicas))
        self.metadata = {ident: Member(self, ident) for ident in range(1, self.members + 1)}
        self.stores: dict[int, Store] = {}
        for ident in range(1, self.servers + 1):
            self.add_server(ident)
        if self.servers:
            self.place()
        moving = Moving(self)
        self.mover = Mover(moving, self.machine, moving.fleet, moving.call)

    def add_server(self, ident: int) -> None:
        record = self.apply(
            CommandKind.REGISTER_SERVER,
            RegisterServer(bytes([ident]) * 16, f"storage-{ident}", f"mem:{ident}", f"host{ident}", "", 1.0, 1 << 40),
        )
        assert record.server == ident
        self.stores[ident] = Store(ident)
        self.stores[ident].peers = self.stores

    def place(self) -> None:
        """Fill the placement table."""
        idents = sorted(self.stores)
        items = tuple(
            TableItem(group, tuple(idents[(group + index) % len(idents)] for index in range(self.replicas)))
            for group in range(GROUPS)
        )
        groups = 0 if self.machine.table else GROUPS
        self.apply(CommandKind.SET_TABLE, SetTable(self.machine.pg_epoch, items, groups))

    @property
    def member(self) -> Member:
        return self.metadata[1]

    @property
    def store(self) -> Store:
        return self.stores[1]

    def apply(self, kind: CommandKind, body: msgspec.Struct) -> Any:
        self.now_ns += 1000
        data = encode_command(kind, self.now_ns, body)
        outcome = self.machine.apply(self.machine.applied + 1, 1, data)
        self.touched = outcome.touched
        if isinstance(outcome.reply, FsError):
            raise FsError(outcome.reply.code, outcome.reply.detail)
        return outcome.reply

    def serve(self, request: Any) -> Any:
        """What the leader answers."""
        machine = self.machine
        named = getattr(request, "lease_term", 0)
        if named and named != self.term:
            raise FsError(Code.LEASES_GONE, "another term", hint=self.term)
        if isinstance(request, api.Read):
            results = machine.query(request.queries)
            if not self.alone or not request.lease or not leasable(request.queries):
                return api.ReadReply(results)
            return api.ReadReply(results, self.term, (), machine.locked(spoken_of(request.queries, results)))
        if isinstance(request, api.Submit):
            reply = self.apply(CommandKind.SUBMIT, request)
            if not self.alone or not request.lease:
                return reply
            return api.SubmitReply(reply.results, self.term, self.touched, (), machine.locked(api.shown(reply.results)))
        if isinstance(request, api.OpenSession):
            return self.apply(CommandKind.OPEN_SESSION, request)
        if isinstance(request, api.CloseSession):
            return self.apply(CommandKind.CLOSE_SESSION, request)
        if isinstance(request, api.RenewSession):
            if machine.session(request.session) is None:
                raise FsError(Code.UNKNOWN_SESSION, "expired")
            orphans = machine.orphans_of(request.session, request.orphans_after)
            room_bytes = 1 << 30 if self.alone else 0
            log_room = machine.logged_room_bytes if self.log_data else 0
            epochs = machine.gc_epoch, machine.pg_epoch
            return api.RenewSessionReply(10.0, *epochs, orphans, self.term, room_bytes, log_room)
        assert isinstance(request, api.GetClusterMap)
        marked = tuple([
            api.TableRow(number, group.servers, group.filling, group.leaving)
            for number, group in enumerate(machine.groups) if group.filling or group.leaving
        ])
        return api.ClusterMap(
            machine.pg_epoch, machine.gc_epoch, self.replicas, machine.servers(), machine.table, rows=marked
        )

    def expire(self, session: int) -> None:
        """The leader gives a session up."""
        self.apply(CommandKind.EXPIRE_SESSION, ExpireSession(session))

    def advance_epoch(self) -> None:
        self.apply(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(self.machine.gc_epoch))

    def check(self) -> None:
        """The state machine's own audit; and every block that is referenced is stored."""
        problems = check(self.engine)
        assert not problems, problems

    def ops(self, kind: type) -> list[Any]:
        """All operations of a kind that were executed, in order."""
        return [
            op
            for member in self.metadata.values()
            for request in member.requests
            if isinstance(request, api.Submit)
            for op in request.ops
            if isinstance(op, kind)
        ]

    def random_bytes(self, count: int) -> bytes:
        self._random += 1
        return self._random.to_bytes(count, "big")

    def clock(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    async def dial(self, record: api.ServerRecord) -> Store:
        await trio.lowlevel.checkpoint()
        return self.stores[record.server]

    @asynccontextmanager
    async def mount(self, **options: Any) -> AsyncIterator[Volume]:
        """A volume on this cluster. Leaving it stops it; an error inside comes out as it is."""
        self._mounts += 1
        options.setdefault("flush_after_s", 1000.0)
        options.setdefault("write_through", False)  # no leases here: and write-back is what is to be seen
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            volume = Volume(
                nursery,
                self.metadata,
                self.dial,
                mount=f"/mnt{self._mounts}",
                options=ClientOptions(**options),
                now_ns=self.clock,
                random_bytes=self.random_bytes,
            )
            await volume.start()
            try:
                yield volume
                await volume.stop()
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def contents(volume: Volume, ino: int) -> bytes:
    """Read a whole file."""
    handle = await volume.open(ino, 0)
    attr = await volume.getattr(ino)
    data = b"".join([bytes(await volume.read(handle, at, 1 << 20)) for at in range(0, attr.size + 1, 1 << 20)])
    await volume.release(handle)
    return data


def _roundtrip(codec: Codec, request: Any) -> Any:
    """As over the wire, so that types are what a peer would see."""
    assert codec.method_of(request).request is type(request)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=type(request))


def _reply_of(codec: Codec, request: Any, body: Any) -> Any:
    reply = codec.method_of(request).reply
    assert reply is not None
    return msgspec.msgpack.decode(msgspec.msgpack.encode(body), type=reply)


__all__ = ["Gate", "Member", "Store", "World", "always", "contents", "once", "seen", "submits"]
