"""What only the leader does: end silent sessions, keep the chunk servers' map, free in paces, format a new volume.

All that it remembers begins with its election and ends with it. Sessions and servers get their whole patience from
there, measured by the leader's own running time: stamps of two machines are never compared, and time in which this
process did not run is held against nobody (rule 7). Whatever changes the state is an entry like any other, decided
again in apply, so a duty proposed twice does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Optional

import msgspec
import trio

from metadata.api import ClusterMap, MemberAddress, Result, ServerRecord, TableRow, VolumeStat
from metadata.server.audits import Audits
from metadata.server.fleet import Fleet
from metadata.server.node import Node
from metadata.server.tables import Tables
from metadata.state.command import (
    CommandKind,
    ExpireSession,
    FenceSession,
    Format,
    Reclaim,
    RegisterServer,
    SetServerState,
    encode_command,
)
from metadata.state.machine import Machine, Outcome
from node.host.cluster import ClusterConfig
from node.host.logging import get_logger
from node.rpc.server import Call
from node.wire.errors import Code, FsError
from node.wire.limits import (
    LEADER_DUTY_S,
    LOG_DATA_STATE_BYTES,
    RECLAIM_ROWS,
    ROOM_BYTES_MAX,
    ROOM_MARGIN_BYTES,
    SESSION_EXPIRY_S,
)
from storage.api import Heartbeat, HeartbeatReply, Order, Report, ServerAddress, ServerStatus

log = get_logger(__name__)

CAPACITY_GRAIN = 64  # a smaller change of a disk's size is not worth an entry


class Leader:
    """Duties of a leadership; inert while this member does not lead. ``owner``: (uid, gid) of a new volume's root."""

    def __init__(
        self,
        node: Node,
        machine: Machine,
        config: ClusterConfig,
        *,
        wall_ns: Callable[[], int],
        owner: tuple[int, int] = (0, 0),
        audits: Optional[Audits] = None,
        members: Callable[[], tuple[MemberAddress, ...]] = tuple,
        gone: Callable[[str], bool] = lambda process: False,
    ) -> None:
        self._node = node
        self._machine = machine
        self._config = config
        self._wall_ns = wall_ns
        self._owner = owner
        self._audits = audits
        self._members = members
        self._gone = gone
        self._sessions: dict[int, float] = {}  # when each was last heard of, in the leader's running time
        self._tables = Tables(machine)
        self._pending: set[object] = set()  # duties whose entry is on its way: one at a time of each
        self.fleet = self._new_fleet(0.0)
        self.reported: Callable[[int, Sequence[Report]], None] = lambda server, reports: None
        self.orders_for: Callable[[int], tuple[Order, ...]] = lambda server: ()
        self._counts = {"expired": 0, "registered": 0, "tables": 0, "reclaims": 0}

    def _new_fleet(self, now_s: float) -> Fleet:
        config = self._config
        return Fleet(
            now_s, replicas=config.replicas, expected=len(config.servers), silent_after_s=config.metadata.silent,
            strategy=config.metadata.placement,
        )

    # --- the duties ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the duties every LEADER_DUTY_S until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(LEADER_DUTY_S)
            self.look_after()

    def begin(self) -> None:
        """This member leads and holds all that earlier leaders acknowledged."""
        now_s = self._node.running_s
        self._pending.clear()
        if self._audits is not None:
            self._audits.begin(now_s)
        self._sessions = {session.id: now_s for session in self._machine.sessions()}
        self.fleet = self._new_fleet(now_s)
        self.look_after()

    def look_after(self) -> None:
        """Do what is due."""
        if not self._node.settled:
            return
        if not self._machine.formatted:
            self._format()
            return
        now_s = self._node.running_s
        self._expire_sessions(now_s)
        self._watch_servers(now_s)
        self._update_table(now_s)
        self._reclaim()
        audit = self._audits.due(now_s) if self._audits is not None else None
        if audit is not None:
            self._propose("audit", CommandKind.AUDIT, audit)

    def _format(self) -> None:
        if "format" not in self._pending:
            uid, gid = self._owner
            log.info("formatting the volume", replicas=self._config.replicas, uid=uid, gid=gid)
            body = Format(self._config.cluster_id_bytes, self._config.replicas, uid, gid)
            self._propose("format", CommandKind.FORMAT, body)

    def _propose(
        self,
        duty: object,
        kind: CommandKind,
        body: msgspec.Struct,
        then: Optional[Callable[[Optional[Outcome], Optional[FsError]], None]] = None,
    ) -> None:
        """Put a duty's entry into the log unless one is on its way. Failing is no matter: it comes up again."""
        if duty in self._pending:
            return

        def done(outcome: Optional[Outcome], error: Optional[FsError]) -> None:
            self._pending.discard(duty)
            if then is not None:
                then(outcome, error)

        self._pending.add(duty)
        try:
            self._node.propose(encode_command(kind, self._wall_ns(), body), done)
        except FsError as error:
            done(None, error)

    # --- sessions --------------------------------------------------------------------------------------------

    def heard_session(self, session: int) -> None:
        """A session showed that it lives."""
        if session in self._sessions:
            self._sessions[session] = self._node.running_s

    def _expire_sessions(self, now_s: float) -> None:
        known = self._sessions
        self._sessions = {session.id: known.get(session.id, now_s) for session in self._machine.sessions()}
        for session, heard_s in self._sessions.items():
            if now_s - heard_s > SESSION_EXPIRY_S:
                log.warning("session expired", session=session, silent_s=round(now_s - heard_s, 1))
                self._expire(session)
        for record in self._machine.sessions():
            if record.process and ("expire", record.id) not in self._pending and self._gone(record.process):
                log.warning("session ended: its process is gone", session=record.id, mount=record.mount)
                self._expire(record.id)

    def _expire(self, session: int) -> None:
        self._counts["expired"] += 1
        self._propose(("expire", session), CommandKind.EXPIRE_SESSION, ExpireSession(session))

    def fence(self, session: int) -> None:
        """Break a session's leases in the log (rule 1)."""
        self._propose(("fence", session), CommandKind.FENCE_SESSION, FenceSession(session))

    def room_bytes(self) -> int:
        """What a session may acknowledge before it is durable, so that all of it finds room (rule 13)."""
        free_bytes = self.volume().free_bytes - ROOM_MARGIN_BYTES
        return max(0, min(free_bytes // (2 * max(1, len(self._sessions))), ROOM_BYTES_MAX))

    def log_room_bytes(self) -> int:
        """What commits may bring along: nothing where chunk servers may not have room for all that the state can hold
        of it, so that who writes hears of a full disk."""
        if self.volume().free_bytes < LOG_DATA_STATE_BYTES:
            return 0
        return max(0, self._machine.logged_room_bytes)

    # --- chunk servers ---------------------------------------------------------------------------------------

    def heartbeat(self, call: Call) -> None:
        """A chunk server reports: note it, or register it first where it is new or changed."""
        if not self._node.settled:
            raise self._node.not_leader()
        if not self._machine.formatted:
            raise FsError(Code.RETRY, "the volume is not formatted yet")
        request: Heartbeat = call.request
        status = request.status
        record = self._machine.server_of(status.uuid)
        wanted = self._registration(status, record)
        if record is not None and _same(record, wanted):
            self._note(call, record.server, request)
        elif ("register", status.uuid) in self._pending:
            raise FsError(Code.RETRY, "the registration is on its way")
        else:
            then = partial(self._registered, call)
            self._propose(("register", status.uuid), CommandKind.REGISTER_SERVER, wanted, then)

    def _registration(self, status: ServerStatus, record: Optional[ServerRecord]) -> RegisterServer:
        public_key = ""
        for server in self._config.servers:
            if server.name == status.name or server.address == status.address:
                name, weight, public_key = server.name, server.weight, server.public_key
                host, rack = server.host or status.host, server.rack or status.rack
                break
        else:
            name, weight, host, rack = status.name or status.address, status.weight, status.host, status.rack
        if record is not None:
            weight = record.weight  # an operator may have changed it since
        state = "joining" if self._machine.table else "serving"  # of a new one
        if not public_key:
            wanted = name, status.address
            public_key = next((k.public_key for k in self._machine.introduced if (k.name, k.address) == wanted), "")
        capacity_bytes = status.capacity_bytes
        return RegisterServer(
            status.uuid, name, status.address, host, rack, weight, capacity_bytes, state, public_key
        )

    def _registered(self, call: Call, outcome: Optional[Outcome], error: Optional[FsError]) -> None:
        reply = outcome.reply if outcome is not None else error
        if not isinstance(reply, ServerRecord):
            assert isinstance(reply, FsError), reply
            call.fail(reply)
            return
        self._counts["registered"] += 1
        log.info("chunk server registered", server=reply.server, name=reply.name, address=reply.address)
        self._retire_namesakes(reply)
        self._note(call, reply.server, call.request)

    def _retire_namesakes(self, record: ServerRecord) -> None:
        """Another store answers at this address now: what the one before it held is gone."""
        for other in self._machine.servers():
            if other.server != record.server and other.address == record.address and other.note != "lost":
                log.warning("chunk server lost its data", server=other.server, name=other.name, now=record.server)
                lost = SetServerState(other.server, "out", note="lost")
                self._propose(("state", other.server), CommandKind.SET_SERVER_STATE, lost)

    def _note(self, call: Call, server: int, request: Heartbeat) -> None:
        if self.fleet.heard(server, request.status, self._node.running_s, self._machine.file_bytes):
            log.info("chunk server is alive", server=server, address=request.status.address)
        if request.bad_blocks:
            log.error(
                "chunk server found damaged blocks", server=server, blocks=[block.hex() for block in request.bad_blocks]
            )
        self.reported(server, request.reports)
        machine = self._machine
        addresses = tuple([
            ServerAddress(known.server, known.address, known.public_key)
            for known in machine.servers() if known.note != "lost"
        ])
        members = self._members()
        lists = number_of(addresses, members)
        fresh = request.pg_epoch != machine.pg_epoch or request.lists != lists
        interval_s = self._config.storage.heartbeat_interval
        call.reply(
            HeartbeatReply(
                server,
                machine.gc_epoch,
                machine.pg_epoch,
                interval_s,
                servers=addresses if fresh else None,
                members=members if fresh else (),
                orders=self.orders_for(server),
                table=self._tables.behind(request.reached),
                lists=lists,
            )
        )

    def _watch_servers(self, now_s: float) -> None:
        for server in self.fleet.lapse(now_s):
            log.warning("chunk server fell silent", server=server)

    def _update_table(self, now_s: float) -> None:
        machine = self._machine
        if machine.table and not self.unused:
            return  # row by row, then: see ``healer``
        change = self.fleet.table_change(
            machine.servers(), machine.table, machine.pg_epoch, now_s, machine.strategy
        )
        if change is not None:
            self._counts["tables"] += 1
            log.info("placement changes", groups=len(change.items), epoch=machine.pg_epoch)
            self._propose("table", CommandKind.SET_TABLE, change)

    @property
    def unused(self) -> bool:
        """Whether the volume holds nothing and nobody writes to it, so that its table may become any other. A mount
        that opens a session after this has to put again what it puts before it knows the new table."""
        stored = self._machine.file_bytes > 0 or any(beat.status.blocks for beat in self.fleet.beats.values())
        return not stored and not self._machine.sessions()

    def cluster_map(self, known_epoch: int) -> ClusterMap:
        """The map for clients: whole, or what changed since the epoch that they know."""
        machine = self._machine
        servers = self.fleet.records(machine.servers())
        base = known_epoch if 0 < known_epoch <= machine.pg_epoch else 0
        rows = tuple([
            TableRow(number, group.servers, group.filling, group.leaving)
            for number, group in enumerate(machine.groups)
            if (group.changed > base if base else group.filling or group.leaving)
        ])
        table = () if base else machine.table
        return ClusterMap(machine.pg_epoch, machine.gc_epoch, machine.replicas, servers, table, base, rows)

    def volume(self) -> VolumeStat:
        """What statfs tells."""
        stat = VolumeStat(0, 0, self._machine.files, self._machine.file_bytes)
        return self.fleet.capacity(stat, self._machine.servers())

    def with_capacity(self, results: tuple[Result, ...]) -> tuple[Result, ...]:
        """Fill in what only the leader knows of the volume."""
        return tuple([self.volume() if type(result) is VolumeStat else result for result in results])

    # --- freeing ---------------------------------------------------------------------------------------------

    def _reclaim(self) -> None:
        if self._machine.reclaim_pending():
            self._counts["reclaims"] += 1
            self._propose("reclaim", CommandKind.RECLAIM, Reclaim(RECLAIM_ROWS), self._reclaimed)

    def _reclaimed(self, outcome: Optional[Outcome], error: Optional[FsError]) -> None:
        if error is None:
            self._reclaim()  # at the pace of the log, one entry under way at a time

    def statistics(self) -> dict[str, float]:
        alive = sum(beat.alive for beat in self.fleet.beats.values())
        return {**self._counts, "sessions": len(self._sessions), "servers_alive": alive}


def number_of(*lists: Sequence[msgspec.Struct]) -> int:
    """A number that says what is in these lists, the same under every leader. Never 0."""
    digest = hashlib.blake2b(msgspec.msgpack.encode(lists), digest_size=7).digest()
    return 1 + int.from_bytes(digest, "big")


def _same(record: ServerRecord, wanted: RegisterServer) -> bool:
    return (
        record.address == wanted.address
        and record.name == wanted.name
        and record.host == wanted.host
        and record.rack == wanted.rack
        and (record.public_key == wanted.public_key or not wanted.public_key)
        and abs(record.capacity_bytes - wanted.capacity_bytes) <= record.capacity_bytes // CAPACITY_GRAIN
    )
