"""Raft between members: for each peer a control connection and one for appends, messages in envelopes, one way.

Loss, repetition and reordering are the core's daily bread, so nothing is queued here for a peer that is not
connected. Appends have a connection of their own, so that a large one does not delay heartbeats and votes; they stay
in order among themselves, because an append that overtakes another looks like a gap and costs a rejection. Snapshots
go over a third connection that exists only while one is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Optional, Protocol

import msgspec
import trio

from metadata.raft.messages import ConfState, Kind, Message, SnapshotMeta
from metadata.server.pins import Pins
from metadata.server.snapshots import Receiver, stream_snapshot
from metadata.server.wire import (
    CATALOGUE,
    Envelope,
    Greet,
    GreetReply,
    OfferSnapshot,
    SnapshotPiece,
    StateDigest,
    decode_messages,
    encode_messages,
)
from metadata.state.tables import SnapshotView
from node.host.cluster import Member
from node.host.logging import get_logger
from node.rpc.client import Connection
from node.rpc.server import Call, Server
from node.wire.errors import Code, FsError, ProtocolError
from node.wire.limits import PEER_GREET_RETRY_S, RAFT_ENVELOPE_BYTES_MAX

log = get_logger(__name__)

_REFUSALS = frozenset({Code.FOREIGN_CLUSTER, Code.UNAUTHORIZED, Code.UNSUPPORTED_VERSION, Code.NOT_FOUND})
_WORKER_KINDS_FROM = Kind.APPEND_DONE


class Steps(Protocol):
    """What peers need of a node."""

    def step(self, message: Message) -> None: ...

    def leads(self, term: int) -> bool: ...

    def unreachable(self, peer: int) -> None: ...

    def snapshot_sent(self, peer: int, ok: bool) -> None: ...

    def peer_lost(self, peer: int) -> None: ...

    def entries_lost(self, peer: int) -> None: ...


SnapshotSource = Callable[[], AbstractContextManager[tuple[SnapshotMeta, SnapshotView]]]


@dataclass(slots=True)
class Peer:
    """One other member."""

    member: Member
    control: Connection
    append: Connection
    lost: bool = True  # reported as not connected
    again: trio.Event = field(default_factory=trio.Event)  # its connection is new: greet it again
    streaming: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)  # of all that is done for it


def _ignore(sender: int, index: int, digest: bytes) -> None:
    """Nobody asks what the others' states are like."""


class Peers:
    """All other members. ``connect`` makes a Connection to one; the caller knows transport and keys.

    Introductions work from the start; Raft messages and snapshots once there is a node (``attach``).
    """

    def __init__(
        self, member: int, incarnation: bytes, pins: Pins, members: Iterable[Member], *,
        connect: Callable[[Member], Connection],
    ) -> None:
        self.member = member
        self.incarnation = incarnation
        self.pins = pins
        self.first: Optional[ConfState] = None  # the membership that the group began with, as far as known
        self.peers: dict[int, Peer] = {}
        self.own: Optional[Member] = None
        for other in members:
            if other.id == member:
                self.own = other
            else:
                self.peers[other.id] = Peer(other, connect(other), connect(other))
        self.on_digest: Callable[[int, int, bytes], None] = _ignore  # sender, index, digest
        self._connect = connect
        self._highest = max((other.id for other in members), default=0)  # nobody above it can have been removed
        self._node: Optional[Steps] = None
        self._source: Optional[SnapshotSource] = None
        self._receiver: Optional[Receiver] = None
        self._lost = False
        self._nursery: Optional[trio.Nursery] = None
        self._met: set[int] = set()  # peers that greeted back, in this run
        self._meeting = trio.Event()
        self._counts = {"envelopes_sent": 0, "envelopes_dropped": 0, "envelopes_received": 0, "strangers": 0}

    def register(self, server: Server) -> None:
        """Serve what peers say to this member."""
        methods = CATALOGUE.by_request
        server.register(methods[Envelope], self._on_envelope)
        server.register(methods[Greet], self._on_greet)
        server.register(methods[OfferSnapshot], self._on_offer)
        server.register(methods[SnapshotPiece], self._on_piece)
        server.register(methods[StateDigest], self._on_digest)

    def attach(
        self, node: Steps, first: ConfState, *, source: SnapshotSource, receiver: Receiver, lost: bool = False
    ) -> None:
        """From now on this member has a log, which began with ``first``, and takes part. ``lost``: it lost entries."""
        self._node, self.first, self._source, self._receiver, self._lost = node, first, source, receiver, lost

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connections and introduce this member until cancelled. Raises where a peer says it was wiped."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for peer in list(self.peers.values()):
                await nursery.start(self._attend, peer)
            task_status.started()
            await trio.sleep_forever()

    async def _attend(self, peer: Peer, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connections to one peer, for as long as it is one."""
        with peer.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(peer.control.run)
                await nursery.start(peer.append.run)
                task_status.started()
                await self._keep_greeted(peer)

    def update(self, members: Mapping[int, Member], highest: int) -> None:
        """These are the members now, and no number above ``highest`` was ever a member's that was removed: connect to
        those that are new, let go of those that are gone. The connections of the others stay."""
        self._highest = max(highest, *members, 0)
        for number in [number for number in self.peers if number not in members and number <= self._highest]:
            self.peers.pop(number).scope.cancel()
            self._met.discard(number)
            log.info("a member is gone", member=number)
        for member in members.values():
            if member.id != self.member:
                self._know(member)
        self._meeting.set()
        self._meeting = trio.Event()

    def _know(self, member: Member) -> None:
        known = self.peers.get(member.id)
        if known is not None:
            if (known.member.peer_address, known.member.public_key) == (member.peer_address, member.public_key):
                known.member = member
                return
            known.scope.cancel()
        self.peers[member.id] = peer = Peer(member, self._connect(member), self._connect(member))
        if self._nursery is not None:
            self._nursery.start_soon(self._attend, peer)

    async def admitted(self) -> None:
        """Return when enough peers have answered this member's greeting for it to begin its log.

        One without a log does not begin one before: a peer might know its id by another incarnation, that is, as a
        member that has lost its data. A founder has to hear that from everybody. Of a later one most know: they have
        its incarnation from the log since it became a voter. And it has to begin with the membership that the others
        began with (``first``), which is its own configuration if none has one; a later one with none at all.
        """
        while not (self.has_met_most if self.joins else self.has_met_all):
            await self._meeting.wait()

    @property
    def joins(self) -> bool:
        """Whether this member was not there when the group began, as far as others have told."""
        return self.first is not None and self.member not in (*self.first.voters, *self.first.learners)

    @property
    def has_met_most(self) -> bool:
        return len(self._met & self.peers.keys()) * 2 > len(self.peers)

    @property
    def has_met_all(self) -> bool:
        return self._met >= self.peers.keys()

    # --- greeting --------------------------------------------------------------------------------------------

    async def _keep_greeted(self, peer: Peer) -> None:
        said = ""
        while True:
            try:
                await peer.control.wait_connected()
                if await self._greet(peer):
                    await peer.again.wait()
                    peer.again = trio.Event()
                    continue
            except Wiped:
                raise
            except FsError as error:
                if error.code in _REFUSALS and error.detail != said:
                    said = error.detail
                    log.warning("a member refuses this one", peer=peer.member.name, reason=said)
            await trio.sleep(PEER_GREET_RETRY_S)

    async def _greet(self, peer: Peer) -> bool:
        own = self.own
        where = (own.name, own.address, own.peer_address, own.public_key) if own is not None else ()
        greet = Greet(self.member, self.incarnation, peer.member.id, self._lost, *where)
        reply: GreetReply = (await peer.control.call(greet, timeout_s=5.0)).body
        if reply.member != peer.member.id:
            log.error("another member answers there", peer=peer.member.name, answers=reply.member)
            return False
        if reply.known != self.incarnation:
            raise Wiped(self.member, peer.member.name)
        known = self.pins.pin(peer.member.id, reply.incarnation)
        if self.first is None:
            self.first = reply.first
        self._met.add(peer.member.id)
        self._meeting.set()
        self._meeting = trio.Event()
        if known != reply.incarnation:
            log.error("a member came back without its data: remove it and add it under a new id", peer=peer.member.name)
        return True

    def _on_greet(self, call: Call) -> None:
        greet: Greet = call.request
        if greet.target != self.member:
            raise FsError(Code.INVALID, f"this is member {self.member}, not {greet.target}")
        if greet.sender not in self.peers and greet.sender > self._highest and greet.peer_address:
            self._introduce(greet)
        if greet.sender not in self.peers:
            raise FsError(Code.NOT_FOUND, f"member {greet.sender} is not in the configuration of member {self.member}")
        known = self.pins.pin(greet.sender, greet.incarnation)
        if greet.lost and known == greet.incarnation and self._node is not None:
            self._node.entries_lost(greet.sender)
        first = self.first if self._node is not None and self.first is not None and self.first.voters else None
        call.reply(GreetReply(self.member, self.incarnation, known, first))

    def _introduce(self, greet: Greet) -> None:
        """Somebody whose addition has not reached this member: it may lead by now, and be the one to bring the news."""
        log.info("a new member introduces itself", member=greet.sender, name=greet.name)
        self._know(
            Member(
                id=greet.sender,
                name=greet.name,
                address=greet.address,
                peer_address=greet.peer_address,
                public_key=greet.public_key,
            )
        )

    # --- messages --------------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> None:
        """Send what can be sent now; the rest is lost, and the core told where that matters."""
        lanes: dict[tuple[int, bool], list[Message]] = {}
        for message in messages:
            if message.kind == Kind.SNAPSHOT:
                self._send_snapshot(message)
            else:
                lanes.setdefault((message.to, message.kind == Kind.APPEND), []).append(message)
        for (to, append), lane in lanes.items():
            peer = self.peers.get(to)
            if peer is None or not self._send_lane(peer, append, lane):
                self._counts["envelopes_dropped"] += 1
                if append and self._node is not None:
                    self._node.unreachable(to)

    def _send_lane(self, peer: Peer, append: bool, lane: list[Message]) -> bool:
        incarnation = self.pins.get(peer.member.id)
        connection = peer.append if append else peer.control
        if not incarnation or not connection.connected:
            return False
        envelope = Envelope(self.member, self.incarnation, peer.member.id, incarnation)
        for part in split(lane) if append else (lane,):
            if not connection.send(envelope, [encode_messages(part)]):
                return False
            self._counts["envelopes_sent"] += 1
        return True

    def _on_envelope(self, call: Call) -> None:
        envelope: Envelope = call.request
        node = self._node
        if node is None or not self._is_known(envelope.sender, envelope.incarnation, envelope.target_incarnation):
            return
        if len(call.data) != 1:
            raise ProtocolError("an envelope has one payload frame")
        try:
            messages = decode_messages(call.data[0])
        except msgspec.DecodeError as error:
            raise ProtocolError(f"raft messages: {error}") from None
        self._counts["envelopes_received"] += 1
        for message in messages:
            if message.sender == envelope.sender and message.to == self.member and message.kind < _WORKER_KINDS_FROM:
                if message.kind == Kind.SNAPSHOT and not self._is_loaded(message):
                    continue
                node.step(message)

    def _is_known(self, sender: int, incarnation: bytes, target: bytes) -> bool:
        if self.pins.get(sender) == incarnation and target == self.incarnation:
            return True
        self._counts["strangers"] += 1
        return False

    # --- digests of the state --------------------------------------------------------------------------------

    def send_digest(self, to: int, index: int, digest: bytes) -> None:
        """Tell a peer what this member's state was like; may be lost."""
        peer, incarnation = self.peers.get(to), self.pins.get(to)
        if peer is not None and incarnation and peer.control.connected:
            peer.control.send(StateDigest(self.member, self.incarnation, to, incarnation, index, digest))

    def _on_digest(self, call: Call) -> None:
        told: StateDigest = call.request
        if self._is_known(told.sender, told.incarnation, told.target_incarnation):
            self.on_digest(told.sender, told.index, told.digest)

    # --- lost peers ------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Report peers whose control connection broke since the last look; called every tick."""
        node = self._node
        assert node is not None
        for peer in self.peers.values():
            connected = peer.control.connected
            if not connected and not peer.lost:
                node.peer_lost(peer.member.id)
            elif connected and peer.lost:
                peer.again.set()  # it may have started with a configuration that does not name this member yet
            peer.lost = not connected

    # --- snapshots -------------------------------------------------------------------------------------------

    def _send_snapshot(self, message: Message) -> None:
        peer, node = self.peers.get(message.to), self._node
        assert node is not None
        if peer is None or not self.pins.get(message.to) or self._nursery is None:
            node.snapshot_sent(message.to, False)
        elif not peer.streaming:
            peer.streaming = True
            self._nursery.start_soon(self._stream, peer, message)

    async def _stream(self, peer: Peer, message: Message) -> None:
        node, source = self._node, self._source
        assert node is not None and source is not None
        sent = False
        try:
            async with trio.open_nursery() as nursery:
                connection = self._connect(peer.member)
                await nursery.start(connection.run)
                with source() as (meta, view):
                    log.info("sending a snapshot", peer=peer.member.name, index=meta.index)
                    wanted = await stream_snapshot(
                        connection,
                        view,
                        meta,
                        member=self.member,
                        incarnation=self.incarnation,
                        target_incarnation=self.pins.get(peer.member.id),
                        current=lambda: node.leads(message.term),
                    )
                nursery.cancel_scope.cancel()
            install = msgspec.structs.replace(message, snapshot=meta)
            sent = not wanted or self._send_lane(peer, False, [install])
            log.info("snapshot sent", peer=peer.member.name, index=meta.index, wanted=wanted)
        except* FsError as errors:
            log.warning("snapshot not sent", peer=peer.member.name, reason=str(errors.exceptions[0]))
        finally:
            peer.streaming = False
            node.snapshot_sent(peer.member.id, sent)

    def _on_offer(self, call: Call) -> None:
        offer: OfferSnapshot = call.request
        if not self._is_known(offer.sender, offer.incarnation, offer.target_incarnation):
            raise FsError(Code.UNAUTHORIZED, "unknown incarnation")
        self._ready_receiver().offer(call)

    def _on_piece(self, call: Call) -> None:
        self._ready_receiver().piece(call)

    def _ready_receiver(self) -> Receiver:
        if self._receiver is None:
            raise FsError(Code.RETRY, f"member {self.member} is not ready yet")
        return self._receiver

    def _is_loaded(self, message: Message) -> bool:
        assert self._receiver is not None
        return message.snapshot is not None and self._receiver.ready == message.snapshot

    def statistics(self) -> dict[str, float]:
        connected = sum(peer.control.connected for peer in self.peers.values())
        return {**self._counts, "peers": len(self.peers), "peers_connected": connected}


def split(lane: list[Message]) -> list[list[Message]]:
    """Cut a lane into envelopes that stay below what a message may weigh."""
    parts: list[list[Message]] = [[]]
    size = 0
    for message in lane:
        weight = 128 + sum(len(entry.data) + 32 for entry in message.entries)
        if parts[-1] and size + weight > RAFT_ENVELOPE_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(message)
        size += weight
    return parts


class Wiped(FsError):
    """This member's data is not what its peers remember of it."""

    def __init__(self, member: int, peer: str) -> None:
        super().__init__(
            Code.FOREIGN_CLUSTER,
            f"{peer} knows member {member} with other data: this data directory was wiped or replaced. A member that "
            "lost its data must not return under its old id: remove it from the cluster and add it under a new one",
        )
