"""One metadata member put together: its directory, its sockets, its peers, its node and what it serves.

Start: the log is recovered before a socket is bound, so whoever is bound serves what it has. A member that has no log
yet binds first and introduces itself to every other member; only then does it begin its log, with the membership that
the others began with. Stop: no new requests, leadership handed over where somebody can take it, what runs is answered,
then state and log are made durable.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import msgspec
import trio

from metadata.api import (
    CATALOGUE,
    GetStatus,
    LocksGranted,
    MemberAddress,
    MemberStatus,
    Recall,
    ServerRecord,
    StatusReply,
)
from metadata.raft.core import Config, RawNode, Role
from metadata.raft.messages import ConfState
from metadata.server import wire
from metadata.server.audits import Audits
from metadata.server.collector import Collector, NodeGroup
from metadata.server.healer import Healer
from metadata.server.leader import Leader
from metadata.server.leasing import Leasing
from metadata.server.locking import LockNotices
from metadata.server.membership import Membership
from metadata.server.mover import Mover
from metadata.server.node import Hooks, Node
from metadata.server.outbound import ChunkServers
from metadata.server.peers import Peers
from metadata.server.pins import FilePins
from metadata.server.roster import roster
from metadata.server.service import Service
from metadata.server.snapshots import Receiver, wanted
from metadata.server.stable import Stable
from metadata.server.status import Reporter, role_of
from metadata.state.command import CommandKind, encode_command
from metadata.state.machine import Machine, Outcome
from metadata.state.records import Introduced
from metadata.store import layout
from metadata.store.disk import Disk, read_file, write_file
from metadata.store.engine_lmdb import LmdbEngine
from metadata.store.layout import MemberDirectory
from metadata.store.log import LogStore
from node.host.cluster import ClusterConfig, Member
from node.host.identity import certainly_gone
from node.host.keys import client_security, process_keys, server_security
from node.host.logging import get_logger
from node.rpc.client import Connection
from node.rpc.link import AnyTransport
from node.rpc.security import AllowList
from node.rpc.server import Call, Server
from node.wire.errors import Code, FsError
from node.wire.limits import LAST_ANSWERS_S, LOG_TRAILING_ENTRIES, READ_ROUNDS_MAX
from storage.api import CATALOGUE as STORAGE

log = get_logger(__name__)

INCARNATION = "INCARNATION"  # which life of the directory this is; made before the member introduces itself
PEERS = "PEERS"
DIFFERS = "DIFFERS"  # why this member may not serve any more: its state is not that of the others
_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Place:
    """Which member a process is, and where its files are."""

    config: ClusterConfig
    path: Path  # of cluster.toml
    own: Member
    data: Path


class MetadataMember:
    """A member for the life of one process. ``report`` is told the role whenever it changes."""

    def __init__(
        self,
        place: Place,
        transport: AnyTransport,
        disk: Disk,
        *,
        report: Callable[[str], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
        wall_ns: Callable[[], int] = time.time_ns,
        trailing: int = LOG_TRAILING_ENTRIES,
    ) -> None:
        self.place = place
        self.node: Optional[Node] = None
        self.service: Optional[Service] = None
        self.leader: Optional[Leader] = None
        self.receiver: Optional[Receiver] = None
        self.leasing: Optional[Leasing] = None
        self.reporter: Optional[Reporter] = None
        self.membership: Optional[Membership] = None
        self.audits: Optional[Audits] = None
        self.chunk_servers: Optional[ChunkServers] = None
        self.collector: Optional[Collector] = None
        self.mover: Optional[Mover] = None
        self.healer: Optional[Healer] = None
        self.members = {member.id: member for member in place.config.members}
        self._allowed: list[AllowList] = []  # of the two servers, the public one first
        self._introduced: tuple[Introduced, ...] = ()
        self._transport = transport
        self._disk = disk
        self._report = report
        self._tick = tick
        self._wall_ns = wall_ns
        self._trailing = trailing
        self._data = str(place.data)
        self._formable = trio.Event()
        self.peers = Peers(
            place.own.id,
            self._incarnation(),
            FilePins(disk, f"{self._data}/{PEERS}"),
            place.config.members,
            connect=self._connect,
        )
        self.server = self._make_server(place.own.address)
        self.peer_server = self._make_server(place.own.peer_address, members_only=True)
        for method in CATALOGUE:
            self.server.register(method, self._not_yet)
        self.peers.register(self.peer_server)

    # --- making ----------------------------------------------------------------------------------------------

    def _incarnation(self) -> bytes:
        if layout.exists(self._disk, self._data):
            return bytes.fromhex(layout.read_identity(self._disk, self._data).incarnation)
        path = f"{self._data}/{INCARNATION}"
        if not self._disk.exists(path):
            write_file(self._disk, path, os.urandom(16))
        return read_file(self._disk, path)

    def _make_server(self, address: str, *, members_only: bool = False) -> Server:
        place = self.place
        security = server_security(place.config, place.path, place.own.name, members_only=members_only)
        if security.allowed is not None:
            allowed = AllowList(security.allowed)  # members that the log introduces are let in too
            self._allowed.append(allowed)
            security = replace(security, allowed=allowed)
        return Server(self._transport, address, cluster_id=place.config.cluster_id_bytes, security=security)

    def _connect(self, other: Member) -> Connection:
        place = self.place
        keys = process_keys(place.config, place.path, place.own.name)
        security = client_security(place.config, keys, other.public_key)
        return Connection(
            self._transport,
            other.peer_address,
            wire.CATALOGUE,
            cluster_id=place.config.cluster_id_bytes,
            security=security,
        )

    # --- life ------------------------------------------------------------------------------------------------

    async def run(
        self, stopping: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until ``stopping``. ``started()`` when the log is recovered and the sockets are bound."""
        with self._fit_to_serve(), ExitStack() as opened:
            if layout.exists(self._disk, self._data):
                opened.enter_context(self._opened())
            async with trio.open_nursery() as nursery:
                for server in (self.peer_server, self.server):
                    await nursery.start(server.run)
                await nursery.start(self.peers.run)
                if self.node is None:
                    nursery.start_soon(self._stop_forming, stopping, nursery.cancel_scope)
                    await self._form(task_status.started)
                    opened.enter_context(self._opened())
                else:
                    task_status.started()
                assert self.node is not None and self.leader is not None and self.receiver is not None
                await nursery.start(self.receiver.run)
                await nursery.start(self.node.run)
                await nursery.start(self.leader.run)
                assert self.chunk_servers is not None and self.collector is not None and self.healer is not None
                assert self.mover is not None
                await nursery.start(self.chunk_servers.run)
                await nursery.start(self.collector.run)
                await nursery.start(self.mover.run)
                await nursery.start(self.healer.run)
                await stopping.wait()
                await self._finish()
                nursery.cancel_scope.cancel()

    @contextmanager
    def _fit_to_serve(self) -> Iterator[None]:
        """Raise STATE_DIFFERS where this member's state is not that of the others: at the time, and at every start from
        then on, because it must not come back by itself."""
        path = f"{self._data}/{DIFFERS}"
        if self._disk.exists(path):
            raise FsError(Code.STATE_DIFFERS, read_file(self._disk, path).decode(errors="replace").strip())
        try:
            yield
        except Exception as error:
            self._note_difference(error)
            raise

    def _note_difference(self, error: Exception) -> None:
        """Keep it durably that this member's state is wrong, if that is what ended it."""
        if isinstance(error, ExceptionGroup):
            for part in error.exceptions:
                self._note_difference(part)
        if not isinstance(error, FsError) or error.code is not Code.STATE_DIFFERS:
            return
        error.detail = (
            f"{self.place.own.name} has stopped: {error.detail}. It does not serve again with this data: "
            f"remove it from the cluster and add a new member"
        )
        log.critical("the state differs", reason=error.detail)
        write_file(self._disk, f"{self._data}/{DIFFERS}", f"{error.detail}\n".encode())

    async def _form(self, started: Callable[[], None]) -> None:
        """Begin this member's log, once it is known that it may and with what membership."""
        members = tuple(member.id for member in self.place.config.members)
        with trio.move_on_after(1.0):  # refused at once by whoever is there: then the start has failed
            await self.peers.admitted()
        started()
        self._formable.set()
        if not self.peers.has_met_all:
            log.info("waiting for the other members before the first log is begun", members=members)
        await self.peers.admitted()
        layout.create(
            self._disk,
            self._data,
            cluster_id=self.place.config.cluster_id_bytes,
            member=self.place.own.id,
            incarnation=self.peers.incarnation,
            conf=None if self.peers.joins else self.peers.first or ConfState(tuple(sorted(members))),
        )

    async def _stop_forming(self, stopping: trio.Event, scope: trio.CancelScope) -> None:
        await self._formable.wait()
        await stopping.wait()
        if self.node is None:
            scope.cancel()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Open directory, log and state, and build on them; close them durably at the end."""
        config = self.place.config
        with layout.open_member(self._disk, self._data, cluster_id=config.cluster_id_bytes) as directory:
            if directory.identity.member != self.place.own.id:
                raise FsError(
                    Code.FOREIGN_CLUSTER,
                    f"{self._data} is the data of member {directory.identity.member}, not of {self.place.own.name} "
                    f"(member {self.place.own.id}): give each member its own --data",
                )
            stable = self._open_stable(directory)
            receiver = None
            try:
                receiver = self._build(stable, directory)
                yield
                stable.commit()
            finally:
                if receiver is not None:
                    receiver.close()
                stable.close()

    def _open_stable(self, directory: MemberDirectory) -> Stable:
        options = self.place.config.metadata
        store = LogStore.open(
            self._disk,
            directory.log_path,
            cluster_id=directory.identity.cluster_id,
            sole_voter=len(self.place.config.members) == 1,
        )
        if store.damage is not None:
            log.error("the log lost entries: this member does not vote before it has them again", reason=store.damage)
        engine = LmdbEngine(self._disk, directory.state_path, map_bytes=options.map_bytes)
        first = store.initial_state()[1]
        self.peers.first = first
        stable = Stable(
            store,
            engine,
            commit_entries=options.commit_entries,
            commit_s=options.commit_interval,
            trailing=self._trailing,
        )
        log.info("recovered", applied=stable.applied, last=store.last_index(), voters=stable.conf.voters)
        return stable

    def _build(self, stable: Stable, directory: MemberDirectory) -> Receiver:
        config = self.place.config
        machine = Machine(stable.engine)
        if machine.formatted and machine.cluster != config.cluster_id_bytes:
            raise FsError(Code.FOREIGN_CLUSTER, f"{self._data}: holds the volume of cluster {machine.cluster.hex()}")
        core = RawNode(
            Config(
                self.place.own.id,
                applied=stable.applied,
                async_storage=True,
                forward_proposals=False,
                read_rounds=READ_ROUNDS_MAX,
            ),
            stable.store,
            random.SystemRandom().randrange,
        )
        self.receiver = receiver = Receiver(
            self._disk,
            directory.spool_path,
            wants=lambda meta: wanted(core.log, meta),
            load=stable.engine.load,
        )
        hooks = Hooks(
            send=self.peers.send,
            tick=self._on_tick,
            role=self._on_role,
            loaded=receiver.take,
            installed=receiver.discard,
        )
        self.node = node = Node(core, stable, machine, hooks)
        self.audits = audits = Audits(node, machine, self.peers.send_digest)
        self.leader = leader = Leader(
            node,
            machine,
            config,
            wall_ns=self._wall_ns,
            owner=volume_owner(),
            audits=audits,
            members=self._roster,
            gone=certainly_gone,
        )
        self.leasing = leasing = Leasing(node, machine, self._push)
        leasing.fences(leader.fence)
        hooks.lead = self._lead
        notices = LockNotices(leasing.push)

        def applied(outcome: Outcome) -> None:
            leasing.applied(outcome)
            notices.applied(outcome)

        hooks.applied = applied
        self.reporter = reporter = Reporter(node, machine, leader, leasing, self.place.own, lambda: self.members)
        configured = max(member.id for member in config.members)
        self.membership = membership = Membership(node, self.peers, lambda: self.members, configured)
        self.service = Service(
            node,
            machine,
            leader,
            reporter,
            leasing,
            wall_ns=self._wall_ns,
            change_members=membership.change,
            collect_garbage=self._make_collector(node, machine, leader).handle,
            healing=self._make_healer(node, machine, leader).handle,
        )
        self.peers.on_digest = audits.heard
        hooks.audited = audits.applied
        hooks.members = self._take_members
        self._take_members()
        self._take_introduced()
        self.peers.attach(
            node,
            self.peers.first or ConfState(),
            source=stable.view,
            receiver=receiver,
            lost=stable.store.damaged,
        )
        return receiver

    def _make_healer(self, node: Node, machine: Machine, leader: Leader) -> Healer:
        assert self.chunk_servers is not None and self.reporter is not None
        self.healer = healer = Healer(
            NodeGroup(node, self._encode),
            machine,
            lambda: leader.fleet,
            self.chunk_servers.call,
            now_s=lambda: node.running_s,
            noout_s=self.place.config.metadata.noout,
            ask_s=self.place.config.metadata.compare,
            unused=lambda: leader.unused,
        )
        leader.reported, leader.orders_for = healer.reported, healer.orders_for
        self.reporter.under_replicated = healer.under_replicated
        return healer

    def _encode(self, kind: CommandKind, body: msgspec.Struct) -> bytes:
        return encode_command(kind, self._wall_ns(), body)

    def _make_collector(self, node: Node, machine: Machine, leader: Leader) -> Collector:
        group = NodeGroup(node, self._encode)
        interval_s = self.place.config.metadata.gc_interval
        self.chunk_servers = calls = ChunkServers(self._connect_server)
        self.collector = Collector(group, machine, lambda: leader.fleet, calls.call, interval_s=interval_s)
        self.mover = Mover(group, machine, lambda: leader.fleet, calls.call)
        return self.collector

    def _connect_server(self, record: ServerRecord) -> Connection:
        place = self.place
        keys = process_keys(place.config, place.path, place.own.name)
        public_keys = {server.address: server.public_key for server in place.config.servers}
        security = client_security(place.config, keys, record.public_key or public_keys.get(record.address, ""))
        cluster_id = place.config.cluster_id_bytes
        return Connection(self._transport, record.address, STORAGE, cluster_id=cluster_id, security=security)

    def _roster(self) -> tuple[MemberAddress, ...]:
        return self.reporter.roster() if self.reporter is not None else ()

    def _take_members(self) -> None:
        """The log has told who the members are: know them, let them in, remember which life of each may vote."""
        assert self.node is not None
        stable = self.node.stable
        self.members = roster(self.place.config.members, stable.directory, stable.conf)
        for record in stable.directory.members:
            known = self.peers.pins.get(record.member)
            if record.incarnation and record.member != self.place.own.id and known != record.incarnation:
                known = self.peers.pins.pin(record.member, record.incarnation)
            if known and record.incarnation and known != record.incarnation:
                log.error("a member's data is not what the log says", member=record.member, name=record.name)
            for allowed in self._allowed:
                if record.public_key:
                    allowed.add(record.public_key.encode())
        if stable.directory.highest:
            self.peers.update(self.members, stable.directory.highest)

    def _take_introduced(self) -> None:
        """The log has told of chunk servers that came after cluster.toml, or that are gone again."""
        assert self.node is not None
        before, self._introduced = self._introduced, self.node.machine.introduced
        if not self._allowed:
            return
        configured = {entry.public_key for entry in self.place.config.processes}
        now = {known.public_key for known in self._introduced}
        for key in {known.public_key for known in before} - now - configured:
            self._allowed[0].discard(key.encode())
        for key in now:
            self._allowed[0].add(key.encode())

    # --- serving ---------------------------------------------------------------------------------------------

    def _not_yet(self, call: Call) -> None:
        """Every method, until there is a service."""
        if self.service is not None:
            self.service.handle(call)
        elif isinstance(call.request, GetStatus):
            own = self.place.own
            call.reply(StatusReply(MemberStatus(own.id, own.name, own.address, "candidate", 0, 0, 0, 0, 0)))
        else:
            raise FsError(Code.NOT_LEADER, f"member {self.place.own.id} waits for the others")

    def _push(self, peer: bytes, message: Recall | LocksGranted) -> bool:
        return self.server.notify(peer, message, CATALOGUE)

    def _lead(self) -> None:
        assert self.leader is not None and self.leasing is not None
        self.leasing.begin()
        self.leader.begin()

    def _on_role(self) -> None:
        node = self.node
        assert node is not None and self.leasing is not None
        if node.role is not Role.LEADER:
            self.leasing.end()
            if self.chunk_servers is not None:
                self.chunk_servers.forget()
        self._report(f"{role_of(node)}, term {node.core.term}")

    def _on_tick(self) -> None:
        self._tick()
        self.peers.watch()
        if self.node is not None and self.node.machine.introduced is not self._introduced:
            self._take_introduced()
        if self.leasing is not None:
            self.leasing.look_after()
        if self.membership is not None:
            self.membership.look_after()

    async def _finish(self) -> None:
        """Hand over, answer what runs."""
        node = self.node
        assert node is not None
        self.server.drain()
        heir = self.membership.heir() if self.membership is not None else 0
        if heir:
            log.info("handing leadership over", to=heir)
            node.core.transfer_leader(heir)
            node.wake()
        for _ in range(int(LAST_ANSWERS_S / _LOOK_S)):
            if not (heir and node.role is Role.LEADER) and not self.server.in_flight:
                break
            await trio.sleep(_LOOK_S)

    def unready(self) -> Optional[str]:
        """Why this member cannot take part in its work, None when it can."""
        if self.node is None:
            return "waiting for the other members"
        return None if self.node.leader else "no leader"

    def statistics(self) -> dict[str, float]:
        """Counters and gauges of all parts."""
        found: dict[str, float] = dict(self.peers.statistics())
        if self.node is not None and self.service is not None and self.leader is not None:
            found |= self.node.statistics() | self.service.statistics() | self.leader.statistics()
            if self.collector is not None:
                found |= self.collector.statistics()
            if self.mover is not None:
                found |= self.mover.statistics()
            if self.healer is not None:
                found |= self.healer.statistics()
        if self.audits is not None:
            found |= self.audits.statistics()
        return found


def volume_owner() -> tuple[int, int]:
    """Who owns the root directory of a new volume: the person who starts the cluster, root for a service account."""
    uid, gid = os.geteuid(), os.getegid()
    return (uid, gid) if uid >= 1000 else (0, 0)
