"""The root machine: identity of the volume, sessions, chunk servers, placement, epochs.

Small state, all of it in memory too. When slots move to other groups this is what stays in group 0; a shard elsewhere
is then told of sessions and epochs by entries of its own log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from metadata.api import CloseSession, CloseSessionReply, OpenSession, OpenSessionReply, ServerRecord
from metadata.placement import STRATEGIES
from metadata.state import keys
from metadata.state.command import (
    AdvanceEpoch,
    EpochReply,
    ExpireSession,
    FenceReply,
    FenceSession,
    Format,
    FormatReply,
    IntroduceServer,
    RegisterServer,
    SetServerState,
    SetTable,
    TableItem,
)
from metadata.state.records import (
    Group,
    Introduced,
    RootRecord,
    Server,
    decode_group,
    decode_introduced,
    decode_root,
    decode_server,
    encode,
)
from metadata.state.sessions import Sessions
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from node.wire.errors import Code, FsError
from node.wire.limits import INTRODUCED_MAX, PLACEMENT_GROUPS_MAX, SESSION_LEASE_S, SESSION_TEXT_BYTES_MAX

FORMAT = 1
STATES = frozenset({"joining", "serving", "suspect", "out", "draining"})
NOTES = frozenset({"", "lost", "drained"})
REPLICAS_MAX = 16
UUID_BYTES = 16
CLUSTER_BYTES_MAX = 64
KEY_LENGTHS = frozenset({0, 40})  # of z85 text


class Root:
    """Applies root commands: each handler returns its reply or raises FsError before it wrote anything."""

    def __init__(self, tables: Tables, sessions: Sessions) -> None:
        self._tables = tables
        self._sessions = sessions
        self.record = RootRecord()
        self.servers: dict[int, Server] = {}
        self.groups: list[Group] = []
        self.introduced: tuple[Introduced, ...] = ()  # replaced, never changed, when one comes or goes
        self._table: tuple[tuple[int, ...], ...] | None = None
        self.reload()
        self.handlers: dict[type[msgspec.Struct], Callable[[Any, Turn], msgspec.Struct]] = {
            OpenSession: self.open_session,
            CloseSession: self.close_session,
            ExpireSession: self.expire_session,
            FenceSession: self.fence_session,
            RegisterServer: self.register_server,
            IntroduceServer: self.introduce_server,
            SetServerState: self.set_server_state,
            SetTable: self.set_table,
            AdvanceEpoch: self.advance_epoch,
        }

    def reload(self) -> None:
        """Read the root's state from the tables."""
        value = self._tables.get(keys.ROOT_KEY)
        self.record = RootRecord() if value is None else decode_root(value)
        rows = self._tables.range(keys.SERVER, keys.prefix_end(keys.SERVER))
        self.servers = {keys.first(key): decode_server(value) for key, value in rows}
        rows = self._tables.range(keys.GROUP, keys.prefix_end(keys.GROUP))
        self.groups = [decode_group(value) for _, value in rows]
        self._table = None
        value = self._tables.get(keys.INTRODUCED_KEY)
        self.introduced = () if value is None else decode_introduced(value)

    @property
    def table(self) -> tuple[tuple[int, ...], ...]:
        """The placement table: the ordered servers of each group."""
        if self._table is None:
            self._table = tuple([group.servers for group in self.groups])
        return self._table

    def _save(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self._tables.put(keys.ROOT_KEY, encode(self.record))

    def check_format(self, body: Format) -> None:
        """Raise where the volume cannot be formatted."""
        if self.record.format:
            raise FsError(Code.EXISTS, "the volume is formatted")
        if not 0 < len(body.cluster) <= CLUSTER_BYTES_MAX or not 1 <= body.replicas <= REPLICAS_MAX:
            raise FsError(Code.INVALID, f"cluster id {body.cluster!r}, {body.replicas} replicas")

    def format(self, body: Format) -> FormatReply:
        """Give the volume its identity; every slot belongs to group 0."""
        self._save(format=FORMAT, cluster=body.cluster, replicas=body.replicas)
        self._tables.put(keys.slot(0), keys.NUMBER.pack(0))
        return FormatReply(body.cluster, body.replicas)

    def group_of_slot(self, slot: int) -> int:
        """The group of a slot: what the row at it, or the next one below, says."""
        rows = self._tables.range(keys.slot(0), keys.slot(slot + 1), 1, reverse=True)
        return int(keys.NUMBER.unpack(rows[0][1])[0]) if rows else 0

    # --- sessions ---------------------------------------------------------------------------------------------

    def open_session(self, body: OpenSession, turn: Turn) -> OpenSessionReply:
        self._sessions.check_nonce(body.nonce)
        session = self._sessions.by_nonce(body.nonce)
        if session is None:
            self._sessions.check_open(body)
            ident = self.record.next_session
            session = self._sessions.open(body, ident, turn.time_ns)
            self._save(next_session=ident + 1)
        return OpenSessionReply(
            session.id, SESSION_LEASE_S, self.record.gc_epoch, self.record.pg_epoch, session.fence
        )

    def close_session(self, body: CloseSession, turn: Turn) -> CloseSessionReply:
        self._sessions.end(body.session, turn)
        return CloseSessionReply()

    def expire_session(self, body: ExpireSession, turn: Turn) -> CloseSessionReply:
        self._sessions.end(body.session, turn)
        return CloseSessionReply()

    def fence_session(self, body: FenceSession, turn: Turn) -> FenceReply:
        fence = self._sessions.raise_fence(body.session).fence
        turn.fenced.append(body.session)
        return FenceReply(fence)

    # --- chunk servers ----------------------------------------------------------------------------------------

    def register_server(self, body: RegisterServer, turn: Turn) -> ServerRecord:
        if len(body.uuid) != UUID_BYTES:
            raise FsError(Code.INVALID, f"a store identity of {len(body.uuid)} bytes")
        _check_server(body.state, body.weight)
        texts = (body.name, body.address, body.host, body.rack)
        if max(map(len, texts)) > SESSION_TEXT_BYTES_MAX or body.capacity_bytes < 0:
            raise FsError(Code.INVALID, "name, address, host or rack is too long, or capacity negative")
        value = self._tables.get(keys.server_uuid(body.uuid))
        known = None if value is None else self.servers[keys.NUMBER.unpack(value)[0]]
        ident = self.record.next_server if known is None else known.server
        state = body.state if known is None else known.state
        note = "" if known is None else known.note
        public_key = body.public_key or self._key_of(body.name, body.address)
        if len(public_key) not in KEY_LENGTHS:
            raise FsError(Code.INVALID, f"a public key of {len(public_key)} characters")
        server = Server(ident, body.uuid, *texts, body.weight, body.capacity_bytes, state, note, public_key)
        if known is None:
            self._save(next_server=ident + 1)
            self._tables.put(keys.server_uuid(body.uuid), keys.NUMBER.pack(ident))
        if server != known:
            self._put_server(server)
        return server_record(server)

    def _key_of(self, name: str, address: str) -> str:
        """The key that a chunk server was introduced with."""
        found = [known.public_key for known in self.introduced if (known.name, known.address) == (name, address)]
        return found[0] if found else ""

    def introduce_server(self, body: IntroduceServer, turn: Turn) -> ServerRecord:
        if not body.name or max(len(body.name), len(body.address)) > SESSION_TEXT_BYTES_MAX:
            raise FsError(Code.INVALID, "a chunk server without a name, or with too long a one")
        if len(body.public_key) not in KEY_LENGTHS:
            raise FsError(Code.INVALID, f"a public key of {len(body.public_key)} characters")
        rest = tuple([known for known in self.introduced if known.name != body.name])
        if body.public_key:
            if len(rest) >= INTRODUCED_MAX:
                raise FsError(Code.OVERLOADED, f"{len(rest)} chunk servers were introduced")
            rest = (*rest, Introduced(body.name, body.address, body.public_key))
        if rest != self.introduced:
            self.introduced = rest
            self._tables.put(keys.INTRODUCED_KEY, encode(rest))
        return ServerRecord(
            0, b"", body.name, body.address, "", "", 1.0, 0, "joining", public_key=body.public_key
        )

    def set_server_state(self, body: SetServerState, turn: Turn) -> ServerRecord:
        server = self.servers.get(body.server)
        if server is None:
            raise FsError(Code.NOT_FOUND, f"chunk server {body.server}")
        weight = server.weight if body.weight is None else body.weight
        _check_server(body.state, weight)
        if body.note not in NOTES or (body.note and body.state != "out"):
            raise FsError(Code.INVALID, f"state {body.state!r}, note {body.note!r}")
        server = replace(server, state=body.state, weight=weight, note=body.note)
        self._put_server(server)
        return server_record(server)

    def _put_server(self, server: Server) -> None:
        self.servers[server.server] = server
        self._tables.put(keys.server(server.server), encode(server))

    # --- placement and epochs ---------------------------------------------------------------------------------

    def set_table(self, body: SetTable, turn: Turn) -> EpochReply:
        record = self.record
        if body.base_epoch != record.pg_epoch:
            raise FsError(Code.STALE_EPOCH, f"the placement table is of epoch {record.pg_epoch}")
        length = record.groups
        if body.groups and body.groups != length:
            if length or not 1 <= body.groups <= PLACEMENT_GROUPS_MAX:
                raise FsError(Code.INVALID, f"{body.groups} placement groups, there are {length}")
            length = body.groups
        for item in body.items:
            if not 0 <= item.group < length:
                raise FsError(Code.INVALID, f"placement group {item.group} of {length}")
            self._check_item(item)
            if body.keep and item.group < len(self.groups):
                _check_kept(self.groups[item.group], item)
        if body.strategy and body.strategy not in STRATEGIES:
            raise FsError(Code.INVALID, f"placement strategy {body.strategy!r}")
        epoch = record.pg_epoch + 1
        self._save(pg_epoch=epoch, groups=length, strategy=body.strategy or record.strategy)
        for number in range(len(self.groups), length):
            self._put_group(number, Group((), epoch))
        for item in body.items:
            self._put_group(item.group, Group(item.servers, epoch, item.filling, item.leaving))
        self._table = None
        return EpochReply(record.gc_epoch, epoch)

    def _check_item(self, item: TableItem) -> None:
        row, marked = set(item.servers), (*item.filling, *item.leaving)
        known = self.servers.keys() >= row
        if not known or len(row) != len(item.servers) or len(set(marked)) != len(marked) or not row >= set(marked):
            raise FsError(Code.INVALID, f"placement group {item.group}: {item}")

    def _put_group(self, number: int, group: Group) -> None:
        if number == len(self.groups):
            self.groups.append(group)
        else:
            self.groups[number] = group
        self._tables.put(keys.group(number), encode(group))

    def advance_epoch(self, body: AdvanceEpoch, turn: Turn) -> EpochReply:
        if body.current == self.record.gc_epoch:
            self._save(gc_epoch=body.current + 1)
        return EpochReply(self.record.gc_epoch, self.record.pg_epoch)


def server_record(server: Server) -> ServerRecord:
    """What the cluster map says of a server, without what only the leader knows."""
    return ServerRecord(
        server.server,
        server.uuid,
        server.name,
        server.address,
        server.host,
        server.rack,
        server.weight,
        server.capacity_bytes,
        server.state,
        note=server.note,
        public_key=server.public_key,
    )


def _check_kept(group: Group, item: TableItem) -> None:
    """Raise where a change of the row could lose the last copy of something."""
    before, after = set(group.servers), set(item.servers)
    gone = before - after - set(group.leaving)
    back = set(group.leaving) & after - set(item.leaving)
    emptied = (before - set(group.filling)) & set(item.filling)
    unfilled = (after - before) - set(item.filling) if before else set()
    if gone or back or emptied or unfilled:
        raise FsError(Code.INVALID, f"placement group {item.group} from {group} to {item} could lose data")


def _check_server(state: str, weight: float) -> None:
    if state not in STATES or not math.isfinite(weight) or weight < 0:
        raise FsError(Code.INVALID, f"state {state!r}, weight {weight}")
