"""The server's end: peers, their requests, and answers that may come at any later time.

A peer is one connection of one client. It says hello first; until then nothing it sends is decoded. Whoever breaks
the protocol is told so and forgotten: its requests lose their peer, other peers notice nothing.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import trio

from node.rpc.client import INCARNATION
from node.rpc.link import AnyTransport
from node.rpc.security import Security
from node.wire import frames, hello
from node.wire.catalogue import Catalogue, Method
from node.wire.codec import StructDecoder, encode
from node.wire.errors import Code, FsError, ProtocolError
from node.wire.frames import Header, Kind
from node.wire.limits import CREDIT_ACK_BYTES, CREDIT_BYTES, IN_FLIGHT_PER_PEER_MAX, PEER_SWEEP_S, PEERS_MAX
from node.wire.types import Buffer

log = logging.getLogger(__name__)

Handler = Callable[["Call"], "Awaitable[None] | None"]


class _Peer:
    """One client's connection. ``gone`` is set when it is forgotten; its calls then answer into the void."""

    __slots__ = ("id", "calls", "seen", "gone", "version", "incarnation", "consumed", "told", "pushed", "push_consumed")

    def __init__(self, identity: bytes, version: int, incarnation: bytes, now: float) -> None:
        self.id = identity
        self.calls: dict[int, Call] = {}
        self.seen = now
        self.gone = False
        self.version = version
        self.incarnation = incarnation
        self.consumed = 0  # weight of one-way messages handled
        self.told = 0  # of it, what the peer was told
        self.pushed = 0  # weight of notifications sent
        self.push_consumed = 0


class Call:
    """One request. Answer it exactly once, with reply() or fail(), in the handler or at any time after it.

    ``deadline`` is on trio's clock; past it the client has given up and the answer is not sent.
    """

    __slots__ = (
        "request", "data", "group", "deadline", "answered", "_server", "_peer", "_number", "_method", "_weight",
    )

    def __init__(
        self, server: Server, peer: _Peer, header: Header, method: Method, request: Any, data: list[memoryview],
        deadline: float, weight: int,
    ) -> None:
        self.request = request
        self.data = data
        self.group = header.group
        self.deadline = deadline
        self.answered = False
        self._server = server
        self._peer = peer
        self._number = header.request
        self._method = method
        self._weight = weight  # of a one-way message, 0 for a request

    @property
    def peer(self) -> bytes:
        """Names the connection that the request came on: where Server.notify reaches this client."""
        return self._peer.id

    @property
    def expired(self) -> bool:
        """Whether the client has given up. Long work should stop then."""
        return trio.current_time() >= self.deadline

    @property
    def connected(self) -> bool:
        """Whether the client's connection stands, as far as is known."""
        return not self._peer.gone

    def reply(self, body: msgspec.Struct, data: Sequence[Buffer] = ()) -> None:
        """Answer. ``data`` is sent without a copy and must not change afterwards."""
        assert self._method.reply is not None and type(body) is self._method.reply, (self._method, type(body))
        encoded = encode(body)
        try:
            frames.bound(len(encoded), data)
        except FsError as error:
            log.error("the reply to %s is too large: %s", self._method.request.__name__, error.detail)
            self.fail(error)
            return
        self._answer(Kind.REPLY, encoded, data)

    def fail(self, error: FsError) -> None:
        """Answer with an error."""
        self._answer(Kind.ERROR, hello.encode_refusal(error), ())

    def _answer(self, kind: int, body: bytes, data: Sequence[Buffer]) -> None:
        assert not self.answered, f"{self._method.request.__name__} answered twice"
        self.answered = True
        self._server._answered(self, kind, body, data)


class Server:
    """One address that serves any number of registered methods to any number of clients."""

    def __init__(
        self,
        transport: AnyTransport,
        address: str,
        *,
        cluster_id: bytes,
        security: Security | None = None,
        in_flight_max: int = IN_FLIGHT_PER_PEER_MAX,
    ) -> None:
        assert len(cluster_id) == frames.CLUSTER_ID_BYTES, cluster_id
        self.address = address
        self._cluster = cluster_id
        self._link = transport.server_link(address, security or Security.plain())
        self._methods: dict[int, tuple[Method, StructDecoder[Any], Handler]] = {}
        self._peers: dict[bytes, _Peer] = {}
        self._in_flight_max = in_flight_max
        self._nursery: trio.Nursery | None = None
        self._draining = False
        self._next_sweep = math.inf
        self._counts = {"requests": 0, "oneways": 0, "errors": 0, "overloaded": 0, "malformed": 0, "late": 0}

    def register(self, method: Method, handler: Handler) -> None:
        """Have ``handler`` called with each request of ``method``.

        A sync handler runs on the owner task: it must not block, and may keep the Call to answer it later. An async
        handler gets a task of its own. An FsError it raises becomes the reply; any other exception is logged
        and answered with IO.
        """
        assert method.number not in self._methods, method
        self._methods[method.number] = (method, StructDecoder(method.request), handler)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bind, then serve until cancelled. OSError (EADDRINUSE) before ``started()`` when the address is taken."""
        await self._link.open()
        self._next_sweep = trio.current_time() + PEER_SWEEP_S
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._link.run, self._receive, self._turn)
                task_status.started()
        finally:
            self._nursery = None
            for peer in list(self._peers.values()):
                self._forget(peer)

    def drain(self) -> None:
        """Take no new requests (SHUTTING_DOWN); the running ones may still be answered."""
        self._draining = True

    def notify(self, peer: bytes, message: msgspec.Struct, catalogue: Catalogue) -> bool:
        """Push a message to a client. False when it was not sent: the client is gone, or does not keep up, and then its
        connection is given up: nothing that is sent later may arrive where this has not."""
        entry = self._peers.get(peer)
        if entry is None:
            return False
        method = catalogue.by_request[type(message)]
        assert method.reply is None, f"{type(message).__name__} is answered"
        body = encode(message)
        frames.bound(len(body), ())
        weight = frames.weigh(frames.HEADER_BYTES + len(body), ())
        if entry.pushed - entry.push_consumed + weight > CREDIT_BYTES:
            self._give_up(entry, FsError(Code.OVERLOADED, "what is pushed is not taken"))
            return False
        entry.pushed += weight
        return self._put(entry, Kind.NOTIFY, body, method=method.number)

    def is_connected(self, peer: bytes) -> bool:
        """Whether this connection is known; a dead one is noticed when something is sent, or by the sweep."""
        return peer in self._peers

    @property
    def in_flight(self) -> int:
        """Requests not answered yet."""
        return sum(len(peer.calls) for peer in self._peers.values())

    def statistics(self) -> dict[str, float]:
        """Counters and gauges, for metrics and tests."""
        return {**self._counts, "peers": len(self._peers), "in_flight": self.in_flight}

    # --- receiving --------------------------------------------------------------------------------------------

    def _receive(self, identity: bytes, head: bytes, data: list[memoryview]) -> None:
        try:
            header = frames.unpack(head)
            frames.check_parts(header, data, len(head))
            if header.kind == Kind.REQUEST or header.kind == Kind.ONEWAY:
                self._on_request(identity, header, head, data)
            elif header.kind == Kind.HELLO:
                self._on_hello(identity, header, head)
            elif header.kind == Kind.CREDIT:
                peer = self._peers.get(identity)
                if peer is not None:
                    peer.push_consumed = max(peer.push_consumed, min(header.request, peer.pushed))
            elif header.kind != Kind.PING:
                raise ProtocolError(f"a client sends no {Kind(header.kind).name}")
        except ProtocolError as error:
            self._expel(identity, error)

    def _on_hello(self, identity: bytes, header: Header, head: bytes) -> None:
        try:
            theirs = hello.decode_hello(frames.body(head))
            version = hello.negotiate(theirs)
            hello.check_cluster(self._cluster, header.cluster)
            if len(self._peers) >= PEERS_MAX:
                raise FsError(Code.OVERLOADED, f"{PEERS_MAX} connections already")
        except FsError as error:
            if isinstance(error, ProtocolError):
                raise
            self._send(identity, Kind.ERROR, hello.encode_refusal(error), request=header.request)
            return
        known = self._peers.get(identity)
        if known is not None:
            self._forget(known)
        self._peers[identity] = _Peer(identity, version, theirs.incarnation, trio.current_time())
        self._send(identity, Kind.WELCOME, hello.encode_hello(INCARNATION), request=header.request)

    def _on_request(self, identity: bytes, header: Header, head: bytes, data: list[memoryview]) -> None:
        peer = self._peers.get(identity)
        if peer is None:
            if header.kind == Kind.REQUEST:
                unknown = FsError(Code.UNREACHABLE, "no hello on this connection")
                self._send(identity, Kind.ERROR, hello.encode_refusal(unknown), request=header.request)
            return
        if header.cluster != self._cluster or header.version != peer.version:
            raise ProtocolError("cluster or version changed after the hello")
        now = trio.current_time()
        peer.seen = now
        entry = self._methods.get(header.method)
        refusal = self._refusal(peer, header, entry is not None, now)
        if refusal is not None:
            self._counts["errors"] += 1
            if header.kind == Kind.REQUEST:
                self._put(peer, Kind.ERROR, hello.encode_refusal(refusal), request=header.request)
            return
        assert entry is not None
        method, decoder, handler = entry
        oneway = header.kind == Kind.ONEWAY
        if oneway != (method.reply is None) or (not oneway and header.request in peer.calls):
            raise ProtocolError(f"request {header.request} of method {header.method:#x} in the wrong way")
        request = decoder(frames.body(head))
        if oneway:
            call = Call(self, peer, header, method, request, data, math.inf, frames.weigh(len(head), data))
            call.answered = True
            self._counts["oneways"] += 1
        else:
            call = Call(self, peer, header, method, request, data, now + header.remaining_ms / 1000, 0)
            peer.calls[header.request] = call
            self._counts["requests"] += 1
        self._handle(call, handler)

    def _refusal(self, peer: _Peer, header: Header, known: bool, now: float) -> FsError | None:
        if not known:
            return FsError(Code.NOT_SUPPORTED, f"unknown method {header.method:#x}")
        if header.kind == Kind.ONEWAY:
            return None
        if header.remaining_ms == 0:
            return FsError(Code.TIMEOUT, "sent past its deadline")
        if self._draining:
            return FsError(Code.SHUTTING_DOWN, f"{self.address} is stopping")
        if len(peer.calls) >= self._in_flight_max:
            for number in [number for number, call in peer.calls.items() if call.deadline <= now]:
                del peer.calls[number]
            if len(peer.calls) >= self._in_flight_max:
                self._counts["overloaded"] += 1
                return FsError(Code.OVERLOADED, f"{self._in_flight_max} requests in flight already")
        return None

    # --- running ----------------------------------------------------------------------------------------------

    def _handle(self, call: Call, handler: Handler) -> None:
        try:
            pending = handler(call)
        except FsError as error:
            self._failed(call, error)
        except Exception:
            self._crashed(call)
        else:
            if pending is not None and inspect.isawaitable(pending):
                assert self._nursery is not None
                self._nursery.start_soon(self._finish, call, pending)
                return
        self._consumed(call)

    async def _finish(self, call: Call, pending: Awaitable[None]) -> None:
        try:
            if call.expired:
                if inspect.iscoroutine(pending):
                    pending.close()
                raise FsError(Code.TIMEOUT, "not begun before its deadline")
            await pending
        except FsError as error:
            self._failed(call, error)
        except Exception:
            self._crashed(call)
        self._consumed(call)

    def _failed(self, call: Call, error: FsError) -> None:
        self._counts["errors"] += 1
        if not call.answered:
            call.fail(error)
        elif call._weight:
            log.warning("one-way %s: %s", call._method.request.__name__, error)

    def _crashed(self, call: Call) -> None:
        name = call._method.request.__name__
        log.exception("handling %s failed", name)
        self._failed(call, FsError(Code.IO, f"{name} failed at {self.address}, its log says why"))

    def _consumed(self, call: Call) -> None:
        """A one-way message was handled: give its weight back, in large steps."""
        peer = call._peer
        peer.consumed += call._weight
        if peer.consumed - peer.told >= CREDIT_ACK_BYTES:
            peer.told = peer.consumed
            self._put(peer, Kind.CREDIT, b"", request=peer.consumed)

    # --- answering --------------------------------------------------------------------------------------------

    def _answered(self, call: Call, kind: int, body: bytes, data: Sequence[Buffer]) -> None:
        peer = call._peer
        if peer.calls.get(call._number) is call:
            del peer.calls[call._number]
        if call.expired:
            self._counts["late"] += 1
            kind, data = Kind.ERROR, ()
            body = hello.encode_refusal(FsError(Code.TIMEOUT, "answered too late"))
        self._put(peer, kind, body, data, method=call._method.number, request=call._number)

    def _put(self, peer: _Peer, kind: int, body: bytes, data: Sequence[Buffer] = (), **fields: int) -> bool:
        if peer.gone:
            return False
        head = frames.pack(kind, self._cluster, body, parts=len(data), version=peer.version, **fields)
        if self._link.send(peer.id, head, data):
            return True
        self._forget(peer)
        return False

    def _send(self, identity: bytes, kind: int, body: bytes, *, request: int) -> None:
        self._link.send(identity, frames.pack(kind, self._cluster, body, request=request), ())

    def _forget(self, peer: _Peer) -> None:
        peer.gone = True
        peer.calls.clear()
        if self._peers.get(peer.id) is peer:
            del self._peers[peer.id]

    def _expel(self, identity: bytes, error: ProtocolError) -> None:
        self._counts["malformed"] += 1
        peer = self._peers.get(identity)
        if peer is not None:
            self._give_up(peer, error)
        else:
            self._send(identity, Kind.ERROR, hello.encode_refusal(error), request=0)

    def _give_up(self, peer: _Peer, error: FsError) -> None:
        """Tell a client that its connection is worth nothing any more: it makes another."""
        log.warning("gave up a connection: %s", error.detail)
        self._forget(peer)
        self._send(peer.id, Kind.ERROR, hello.encode_refusal(error), request=0)

    def _turn(self) -> float:
        """Ask peers that have been silent whether they are still there; a dead one is forgotten by the sending."""
        now = trio.current_time()
        if now >= self._next_sweep:
            self._next_sweep = now + PEER_SWEEP_S
            for peer in [peer for peer in self._peers.values() if now - peer.seen >= PEER_SWEEP_S]:
                peer.seen = now
                self._put(peer, Kind.PING, b"")
        return self._next_sweep
