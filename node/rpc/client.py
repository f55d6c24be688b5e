"""The client's end of a connection: requests in flight, their deadlines, credit, and what a lost peer means.

A request is *waiting* (no connection yet, or no credit) or *in flight*. What waits is safe to fail; what was in
flight when the connection broke may or may not have been executed, and fails with UNREACHABLE at once. Nothing is
ever sent twice by this module: repeating is the caller's decision.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import outcome
import trio

from node.rpc.link import AnyTransport
from node.rpc.security import Security
from node.wire import frames, hello
from node.wire.catalogue import Catalogue, Method
from node.wire.codec import Codec, encode
from node.wire.errors import Code, FsError, ProtocolError
from node.wire.frames import Header, Kind
from node.wire.limits import (
    CREDIT_ACK_BYTES,
    CREDIT_BYTES,
    DEADLINE_S_MAX,
    HEARTBEAT_TIMEOUT_S,
    INTRODUCTION_GRACE_S,
    RECONNECT_GRACE_S,
    REQUEST_TIMEOUT_S,
)
from node.wire.types import Buffer

log = logging.getLogger(__name__)

INCARNATION = os.urandom(16)  # this process; a restarted one is another peer
_HEAP_SLACK = 256
_TIMER_SLACK_S = 0.001


@dataclass(slots=True)
class Reply:
    """What a request was answered with. ``data`` are views into received buffers, valid as long as they are held."""

    body: Any
    data: list[memoryview]


class _Request:
    """One call. ``task`` is None once nobody waits for it: answered, failed or abandoned."""

    __slots__ = ("number", "method", "group", "body", "data", "weight", "deadline", "timeout_s", "task")

    def __init__(
        self, number: int, method: Method, group: int, body: bytes, data: Sequence[Buffer], deadline: float,
        timeout_s: float,
    ) -> None:
        self.number = number
        self.method = method
        self.group = group
        self.body = body
        self.data = data
        self.weight = frames.weigh(frames.HEADER_BYTES + len(body), data)
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.task: trio.lowlevel.Task | None = None

    def __lt__(self, other: _Request) -> bool:
        return self.number < other.number


class Connection:
    """One connection to one peer for one class of traffic; made again for ever while ``run`` runs.

    ``on_notify`` is called on the owner task with each message the server pushes; it must not block.
    ``credit_bytes`` bounds the bytes of requests in flight; one larger than that travels alone.
    Any number of tasks may call at the same time; answers come in any order.
    """

    def __init__(
        self,
        transport: AnyTransport,
        address: str,
        catalogue: Catalogue,
        *,
        cluster_id: bytes,
        security: Security | None = None,
        on_notify: Callable[[Any], None] | None = None,
        credit_bytes: int = CREDIT_BYTES,
    ) -> None:
        assert len(cluster_id) == frames.CLUSTER_ID_BYTES, cluster_id
        self.address = address
        self.peer_incarnation = b""
        self.failure: FsError | None = None  # why the peer will not have us, while it will not
        self._codec = Codec(catalogue)
        self._cluster = cluster_id
        self._on_notify = on_notify
        self._link = transport.client_link(address, security or Security.plain(), self)
        self._credit = credit_bytes
        self._running = False
        self._up = False
        self._down_since = 0.0
        self._down_reason = "not connected yet"
        self._version = frames.VERSION_MAX
        self._numbers = itertools.count(1)
        self._hello = 0  # number of the hello that counts
        self._waiting: deque[_Request] = deque()
        self._flying: dict[int, _Request] = {}
        self._flying_bytes = 0
        self._oneway_sent = 0  # weight since the hello
        self._oneway_consumed = 0  # of it, what the peer said it is done with
        self._notify_consumed = 0
        self._notify_told = 0
        self._timers: list[tuple[float, int, _Request]] = []
        self._due = math.inf  # when the owner will look at the timers
        self._changed = trio.Event()
        self._counts = {"calls": 0, "timeouts": 0, "lost": 0, "connects": 0, "late": 0, "oneway_dropped": 0}

    # --- life -------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128
        """Own the connection until cancelled or closed. ``started()`` does not wait for the peer."""
        assert not self._running, "already running"
        self._running = True
        self._down_since = trio.current_time()
        try:
            await self._link.run(task_status=task_status)
        finally:
            self._running = False
            self._down("this connection was closed")
            self._fail_waiting(Code.UNREACHABLE, "this connection was closed")

    @property
    def connected(self) -> bool:
        """Whether the peer answered the hello and the connection stands."""
        return self._up

    async def wait_connected(self) -> None:
        """Wait until connected. Raises what the peer refused us with; set a time-out around it."""
        while not self._up:
            if self.failure is not None:
                raise FsError(self.failure.code, self.failure.detail)
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """End ``run``; what is under way fails with UNREACHABLE."""
        self._link.close()

    def statistics(self) -> dict[str, float]:
        """Counters and gauges, for metrics and tests."""
        return {
            **self._counts,
            "connected": int(self._up),
            "waiting": len(self._waiting),
            "in_flight": len(self._flying),
            "in_flight_bytes": self._flying_bytes,
            "oneway_bytes": self._oneway_sent - self._oneway_consumed,
        }

    # --- sending ----------------------------------------------------------------------------------------------

    async def call(
        self,
        request: msgspec.Struct,
        data: Sequence[Buffer] = (),
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        group: int = 0,
    ) -> Reply:
        """Send a request and wait for its reply.

        Raises the peer's own FsError; TIMEOUT when ``timeout_s`` is over; UNREACHABLE when the peer is down or the
        connection broke meanwhile (the request may have been executed); UNAUTHORIZED, FOREIGN_CLUSTER or
        UNSUPPORTED_VERSION when the peer will not have us. Waits while too many bytes are in flight. When cancelled,
        the request may still be executed. ``data`` must not change before the reply.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        method = self._codec.method_of(request)
        assert method.reply is not None, f"{type(request).__name__} is one-way: send()"
        body = encode(request)
        frames.bound(len(body), data)
        now = trio.current_time()
        self._check(now)
        timeout_s = min(timeout_s, DEADLINE_S_MAX)
        entry = _Request(next(self._numbers), method, group, body, data, now + timeout_s, timeout_s)
        entry.task = trio.lowlevel.current_task()
        self._counts["calls"] += 1
        if self._waiting or not self._has_credit(entry) or not self._transmit(entry, now):
            self._waiting.append(entry)
            self._arm_grace()
        self._watch(entry)

        def abandon(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._abandon(entry)
            return trio.lowlevel.Abort.SUCCEEDED

        reply: Reply = await trio.lowlevel.wait_task_rescheduled(abandon)
        return reply

    def send(self, message: msgspec.Struct, data: Sequence[Buffer] = (), *, group: int = 0) -> bool:
        """Send a one-way message. False when it was dropped: not connected, or too much unconsumed by the peer."""
        method = self._codec.method_of(message)
        assert method.reply is None, f"{type(message).__name__} is answered: call()"
        body = encode(message)
        frames.bound(len(body), data)
        weight = frames.weigh(frames.HEADER_BYTES + len(body), data)
        room = self._oneway_sent - self._oneway_consumed + weight <= CREDIT_BYTES
        if not self._up or not room or not self._put(Kind.ONEWAY, body, data, method=method.number, group=group):
            self._counts["oneway_dropped"] += 1
            return False
        self._oneway_sent += weight
        return True

    def _check(self, now: float) -> None:
        if self._up:
            return
        if self.failure is not None:
            raise FsError(self.failure.code, self.failure.detail)
        if not self._running or now > self._patient_until():
            raise self._unreachable()

    def _patient_until(self) -> float:
        """When the peer counts as down. Longer where somebody is there: a refusal must not look like silence."""
        return self._down_since + (INTRODUCTION_GRACE_S if self._link.reaching else RECONNECT_GRACE_S)

    def _unreachable(self) -> FsError:
        reason = self._down_reason if self._running else "the connection does not run"
        return FsError(Code.UNREACHABLE, f"{self.address}: {reason}")

    def _has_credit(self, entry: _Request) -> bool:
        return not self._flying or self._flying_bytes + entry.weight <= self._credit

    def _transmit(self, entry: _Request, now: float) -> bool:
        if not self._up:
            return False
        sent = self._put(
            Kind.REQUEST, entry.body, entry.data, method=entry.method.number, request=entry.number, group=entry.group,
            remaining_ms=frames.to_ms(entry.deadline - now),
        )
        if sent:
            self._flying[entry.number] = entry
            self._flying_bytes += entry.weight
            entry.body, entry.data = b"", ()  # a timer may keep the entry for long after its payload was sent
        return sent

    def _put(self, kind: int, body: bytes, data: Sequence[Buffer] = (), **fields: int) -> bool:
        head = frames.pack(kind, self._cluster, body, parts=len(data), version=self._version, **fields)
        return self._link.send(head, data)

    def _refill(self) -> None:
        """Send what waits, in order, as far as credit goes."""
        now = trio.current_time()
        while self._waiting:
            entry = self._waiting[0]
            if entry.task is not None and (not self._has_credit(entry) or not self._transmit(entry, now)):
                return
            self._waiting.popleft()

    # --- ends of a request ------------------------------------------------------------------------------------

    def _finish(self, entry: _Request, result: outcome.Outcome[Reply]) -> None:
        task, entry.task = entry.task, None
        if task is not None:
            trio.lowlevel.reschedule(task, result)

    def _fail(self, entry: _Request, code: Code, detail: str) -> None:
        self._finish(entry, outcome.Error(FsError(code, detail)))

    def _abandon(self, entry: _Request) -> None:
        """Nobody waits any more. In flight it keeps its credit until the peer is done with it, or long overdue."""
        entry.task = None
        entry.deadline = trio.current_time() + HEARTBEAT_TIMEOUT_S
        self._watch(entry)

    def _land(self, number: int) -> _Request | None:
        entry = self._flying.pop(number, None)
        if entry is not None:
            self._flying_bytes -= entry.weight
        return entry

    def _fail_waiting(self, code: Code, detail: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for entry in waiting:
            self._fail(entry, code, detail)

    def _down(self, reason: str) -> None:
        if self._up:
            self._down_since = trio.current_time()
        self._up = False
        self._hello = 0
        self._down_reason = reason
        flying, self._flying, self._flying_bytes = self._flying, {}, 0
        for entry in flying.values():
            self._counts["lost"] += 1
            self._fail(entry, Code.UNREACHABLE, f"{self.address}: {reason}")
        self._arm_grace()
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- timers -----------------------------------------------------------------------------------------------

    def _watch(self, entry: _Request) -> None:
        heapq.heappush(self._timers, (entry.deadline, entry.number, entry))
        if len(self._timers) > 2 * (len(self._flying) + len(self._waiting)) + _HEAP_SLACK:
            live = {*self._flying.values(), *self._waiting, entry}
            self._timers = [timer for timer in self._timers if timer[2] in live]
            heapq.heapify(self._timers)
        self._arm(entry.deadline)

    def _arm(self, deadline: float) -> None:
        if deadline < self._due:
            self._due = deadline
            self._link.wake_at(deadline)

    def _arm_grace(self) -> None:
        if self._waiting and not self._up:
            self._arm(self._down_since + RECONNECT_GRACE_S + _TIMER_SLACK_S)

    def link_turn(self) -> float:
        now = trio.current_time()
        while self._timers and self._timers[0][0] <= now:
            _deadline, number, entry = heapq.heappop(self._timers)
            self._expire(number, entry, now)
        due = self._timers[0][0] if self._timers else math.inf
        if self._waiting and not self._up:
            patient_until = self._patient_until()
            if now > patient_until:
                error = self.failure or self._unreachable()
                self._fail_waiting(error.code, error.detail)
            else:
                due = min(due, patient_until + _TIMER_SLACK_S)
        self._due = due
        return due

    def _expire(self, number: int, entry: _Request, now: float) -> None:
        if entry.deadline > now:
            return  # abandoned meanwhile, with a later timer of its own
        if entry.task is None:
            if self._land(number) is not None:
                self._refill()
            return
        self._counts["timeouts"] += 1
        what = type_name(entry.method)
        self._fail(entry, Code.TIMEOUT, f"{self.address}: no answer to {what} within {entry.timeout_s:g} s")
        if number in self._flying:
            self._abandon(entry)

    # --- what the link reports --------------------------------------------------------------------------------

    def link_up(self) -> None:
        self._hello = next(self._numbers)
        self._version = frames.VERSION_MAX
        self._put(Kind.HELLO, hello.encode_hello(INCARNATION), request=self._hello)

    def link_down(self, reason: str) -> None:
        self._down(reason)

    def link_refused(self, error: FsError) -> None:
        self.failure = error
        self._down(error.detail)
        self._fail_waiting(error.code, error.detail)

    def link_message(self, head: bytes, data: list[memoryview]) -> None:
        try:
            header = frames.unpack(head)
            frames.check_parts(header, data, len(head))
            if header.kind == Kind.REPLY:
                self._on_reply(header, head, data)
            elif header.kind == Kind.ERROR:
                self._on_error(header, head)
            elif header.kind == Kind.NOTIFY:
                self._on_pushed(header, head, data)
            elif header.kind == Kind.CREDIT:
                self._oneway_consumed = max(self._oneway_consumed, min(header.request, self._oneway_sent))
            elif header.kind == Kind.WELCOME:
                self._on_welcome(header, head)
        except ProtocolError as error:
            self._break(f"the peer broke the protocol: {error.detail}")

    def _break(self, reason: str) -> None:
        log.warning("%s: %s", self.address, reason)
        self._down(reason)
        self._link.reset()

    def _on_reply(self, header: Header, head: bytes, data: list[memoryview]) -> None:
        entry = self._land(header.request)
        if entry is None or entry.task is None:
            self._counts["late"] += 1
        else:
            try:
                decoder = self._codec.reply_decoder(entry.method.number)
                assert decoder is not None
                body = decoder(frames.body(head))
            except ProtocolError as error:
                self._fail(entry, Code.PROTOCOL, f"{self.address}: {error.detail}")
                raise
            self._finish(entry, outcome.Value(Reply(body, data)))
        if self._waiting:
            self._refill()

    def _on_error(self, header: Header, head: bytes) -> None:
        error = hello.decode_refusal(frames.body(head))
        if header.request == 0:
            self._break(f"the peer gave up the connection: {error}")
        elif header.request == self._hello:
            self.failure = FsError(error.code, f"{self.address}: {error.detail}")
            self.link_refused(self.failure)
            self._link.reset(self.failure)
        else:
            entry = self._land(header.request)
            if entry is not None:
                self._finish(entry, outcome.Error(error))
            if self._waiting:
                self._refill()

    def _on_welcome(self, header: Header, head: bytes) -> None:
        if header.request != self._hello:
            return  # answers a hello of an earlier connection
        theirs = hello.decode_hello(frames.body(head))
        try:
            hello.check_cluster(self._cluster, header.cluster)
            self._version = hello.negotiate(theirs)
        except FsError as error:
            refused = FsError(error.code, f"{self.address}: {error.detail}")
            self.link_refused(refused)
            self._link.reset(refused)
            return
        self.peer_incarnation = theirs.incarnation
        self.failure = None
        self._oneway_sent = self._oneway_consumed = self._notify_consumed = self._notify_told = 0
        self._counts["connects"] += 1
        self._up = True
        self._announce()
        self._refill()

    def _on_pushed(self, header: Header, head: bytes, data: list[memoryview]) -> None:
        message = self._codec.decode_request(header.method, frames.body(head))
        if self._on_notify is not None:
            try:
                self._on_notify(message)
            except Exception:
                log.exception("%s: handling %s failed", self.address, type(message).__name__)
        self._notify_consumed += frames.weigh(len(head), data)
        if self._notify_consumed - self._notify_told >= CREDIT_ACK_BYTES:
            self._notify_told = self._notify_consumed
            self._put(Kind.CREDIT, b"", request=self._notify_consumed)


def type_name(method: Method) -> str:
    """A method's name for a person."""
    return method.request.__name__
