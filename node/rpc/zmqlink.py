"""Links over ZeroMQ: DEALER at the client, ROUTER at the server, ipc or tcp.

A client link uses a socket for one connection and throws it away with it: whatever an old connection still had under
way cannot be mistaken for the new one's. ZeroMQ retries by itself only until a connection stands.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import trio
import zmq
from zmq.utils.monitor import parse_monitor_message

from node.rpc.link import ClientEvents, ServerReceive
from node.rpc.owner import OwnedSocket, never
from node.rpc.security import Security
from node.wire.errors import Code, FsError
from node.wire.frames import HEADER_BYTES
from node.wire.limits import (
    BODY_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    HEARTBEAT_INTERVAL_S,
    HEARTBEAT_TIMEOUT_S,
    LINGER_S,
    MESSAGE_BYTES_MAX,
    RECONNECT_MAX_S,
    RECONNECT_MIN_S,
    REFUSED_RETRY_S,
    SOCKET_PATH_BYTES_MAX,
)
from node.wire.types import Buffer

if TYPE_CHECKING:
    from node.rpc.context import Transport

_BROKEN_OFF_MAX = 3  # a peer that just died accounts for one
_RELEASE_POLL_S = 0.002
_FRAME_BYTES_MAX = max(MESSAGE_BYTES_MAX, BODY_BYTES_MAX + HEADER_BYTES)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _prepare(sock: zmq.Socket[bytes]) -> None:
    for option, value in (
        (zmq.SNDHWM, 0),  # credit windows bound what is queued; a mark would drop or block
        (zmq.RCVHWM, 0),
        (zmq.MAXMSGSIZE, _FRAME_BYTES_MAX),
        (zmq.HEARTBEAT_IVL, _ms(HEARTBEAT_INTERVAL_S)),
        (zmq.HEARTBEAT_TIMEOUT, _ms(HEARTBEAT_TIMEOUT_S)),
        (zmq.HEARTBEAT_TTL, _ms(HEARTBEAT_TIMEOUT_S)),
        (zmq.HANDSHAKE_IVL, _ms(HANDSHAKE_TIMEOUT_S)),
        (zmq.IPV6, 1),
    ):
        sock.set(option, value)


@contextlib.contextmanager
def _os_errors(address: str) -> Iterator[None]:
    try:
        yield
    except zmq.ZMQError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), address) from None


class ZmqClientLink:
    """A DEALER and its monitor. See link.ClientLink."""

    def __init__(self, transport: Transport, address: str, security: Security, events: ClientEvents) -> None:
        self._transport = transport
        self._address = address
        self._security = security
        self._events = events
        self._owned: OwnedSocket | None = None
        self._session: trio.CancelScope | None = None
        self._life: trio.CancelScope | None = None
        self._announce = False  # connected, but the socket may not take messages yet
        self._stands = False  # this socket's connection came up
        self._reached = False  # somebody accepted this socket's connection, or the last attempt
        self._broken_off = 0  # handshakes in a row that the peer hung up on
        self._monitor: OwnedSocket | None = None
        self._backoff_s = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128
        with trio.CancelScope() as self._life:
            while True:
                await self._connection(task_status)
                task_status = trio.TASK_STATUS_IGNORED
                pause_s, self._backoff_s = self._backoff_s, 0.0
                await self._pause(pause_s)

    async def _connection(self, task_status: trio.TaskStatus[None]) -> None:
        """One socket, from connecting to the end of its connection."""
        sock = self._transport.context.socket(zmq.DEALER)
        watch: zmq.Socket[bytes] | None = None
        try:
            self._configure(sock)
            watch = sock.get_monitor_socket()
            with _os_errors(self._address):
                sock.connect(self._address)
            self._announce = self._stands = self._reached = False
            owned = OwnedSocket(sock, 1, self._message, self._turn)
            monitor = self._monitor = OwnedSocket(watch, 2, self._event, never)
            with trio.CancelScope() as self._session:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(owned.run)
                    nursery.start_soon(monitor.run)
                    self._owned = owned
                    task_status.started()
        finally:
            self._owned = self._monitor = None
            sock.disable_monitor()
            if watch is not None:
                watch.close(0)
            sock.close(0)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, but keep the events' timers going."""
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            due = self._events.link_turn()
            with trio.CancelScope(deadline=min(due, end)) as self._session:
                await trio.sleep_forever()

    def _configure(self, sock: zmq.Socket[bytes]) -> None:
        _prepare(sock)
        sock.set(zmq.LINGER, 0)
        sock.set(zmq.IMMEDIATE, 1)  # nothing is queued for a peer that is not there
        sock.set(zmq.RECONNECT_IVL, _ms(RECONNECT_MIN_S))
        sock.set(zmq.RECONNECT_IVL_MAX, _ms(RECONNECT_MAX_S))
        sock.set(zmq.CONNECT_TIMEOUT, _ms(HANDSHAKE_TIMEOUT_S))
        if self._security.keys is not None:
            assert self._security.server_public is not None, "a client names the server it expects"
            sock.set(zmq.CURVE_PUBLICKEY, self._security.keys.public)
            sock.set(zmq.CURVE_SECRETKEY, self._security.keys.secret)
            sock.set(zmq.CURVE_SERVERKEY, self._security.server_public)

    def send(self, head: bytes, data: Sequence[Buffer]) -> bool:
        if self._owned is None:
            return False
        try:
            self._owned.send((head,), data)
        except zmq.Again:
            return False
        return True

    def reset(self, error: FsError | None = None) -> None:
        if error is not None:
            self._backoff_s = REFUSED_RETRY_S
        self._owned = None
        if self._session is not None:
            self._session.cancel()

    @property
    def reaching(self) -> bool:
        return self._reached and not self._stands

    def wake_at(self, deadline: float) -> None:
        if self._owned is not None:
            self._owned.wake_at(deadline)
        elif self._session is not None and deadline < self._session.deadline:
            self._session.deadline = deadline

    def close(self) -> None:
        if self._life is not None:
            self._life.cancel()

    def _message(self, heads: Sequence[bytes], data: list[memoryview]) -> None:
        if self._owned is not None:
            self._events.link_message(heads[0], data)

    def _turn(self) -> float:
        if not self._stands and self._monitor is not None:
            self._monitor.drain()  # what has happened counts before a timer does, also when this process was held up
        if self._announce and self._owned is not None and self._owned.takes_messages():
            self._announce = False
            self._events.link_up()
        return self._events.link_turn()

    def _event(self, heads: Sequence[bytes], _data: list[memoryview]) -> None:
        event = parse_monitor_message(list(heads))
        kind = event["event"]
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._broken_off = 0
            self._announce = self._stands = True
            if self._owned is not None:
                self._owned.wake()
        elif kind == zmq.EVENT_CONNECTED:
            self._reached = True
        elif kind == zmq.EVENT_CLOSED:
            self._reached = False
        elif kind == zmq.EVENT_DISCONNECTED:
            if self._stands:
                self._events.link_down("the connection broke")
                self.reset()
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refused(f"{self._address} does not accept this key")
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._refused(f"{self._address} speaks another security mechanism")
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._hung_up(event["value"])

    def _hung_up(self, error: int) -> None:
        """The handshake ended without a word. A peer that hears a mechanism it does not speak may hang up so early
        that its own never arrives; one whose key we do not know cannot tell us."""
        if error not in (errno.EPIPE, errno.ECONNRESET):  # EAGAIN: it said nothing within HANDSHAKE_TIMEOUT_S
            self._broken_off = 0
            self._reached = False
            return
        self._broken_off += 1
        if self._broken_off < _BROKEN_OFF_MAX:
            return
        if self._security.keys is not None:
            self._refused(f"{self._address} broke off the handshake: it does not own the expected key")
        elif self._address.startswith("tcp://"):
            self._refused(f"{self._address} broke off the handshake: it wants a key")

    def _refused(self, detail: str) -> None:
        error = FsError(Code.UNAUTHORIZED, detail)
        self._events.link_refused(error)
        self.reset(error)


class ZmqServerLink:
    """A ROUTER. See link.ServerLink."""

    def __init__(self, transport: Transport, address: str, security: Security) -> None:
        self._transport = transport
        self._address = address
        self._security = security
        self._sock: zmq.Socket[bytes] | None = None
        self._owned: OwnedSocket | None = None
        self._receive: ServerReceive | None = None
        self._turns: Callable[[], float] = lambda: math.inf

    async def open(self) -> None:
        """Bind. Where this process has just closed a server, wait for libzmq, which lets go of an address later."""
        closing = self._transport.closing
        end = trio.current_time() + LINGER_S
        while self._address in closing and trio.current_time() < end:
            try:
                self._bind()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                await trio.sleep(_RELEASE_POLL_S)
            else:
                break
        else:
            self._bind()
        closing.discard(self._address)

    def _bind(self) -> None:
        if self._address.startswith("ipc://"):
            _check_ipc(self._address[len("ipc://"):])
        sock = self._transport.context.socket(zmq.ROUTER)
        try:
            _prepare(sock)
            sock.set(zmq.LINGER, _ms(LINGER_S))
            sock.set(zmq.ROUTER_MANDATORY, 1)
            if self._security.keys is not None:
                assert self._security.allowed is not None, "a server has an allow-list"
                sock.set(zmq.CURVE_SERVER, 1)
                sock.set(zmq.CURVE_SECRETKEY, self._security.keys.secret)
                sock.set(zmq.ZAP_DOMAIN, self._transport.zap.admit(self._security.allowed))
            with _os_errors(self._address):
                sock.bind(self._address)
        except BaseException:
            sock.close(0)
            raise
        self._sock = sock
        self._owned = OwnedSocket(sock, 2, self._message, self._turn)

    async def run(self, receive: ServerReceive, turn: Callable[[], float]) -> None:
        assert self._sock is not None and self._owned is not None, "open() first"
        self._receive = receive
        self._turns = turn
        try:
            await self._owned.run()
        finally:
            self._owned = None
            self._transport.closing.add(self._address)
            self._sock.close()

    def send(self, peer: bytes, head: bytes, data: Sequence[Buffer]) -> bool:
        if self._owned is None:
            return False
        try:
            self._owned.send((peer, head), data)
        except zmq.ZMQError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.EAGAIN):
                return False
            raise
        return True

    def _message(self, heads: Sequence[bytes], data: list[memoryview]) -> None:
        assert self._receive is not None
        self._receive(heads[0], heads[1] if len(heads) > 1 else b"", data)

    def _turn(self) -> float:
        return self._turns()


def _check_ipc(path: str) -> None:
    """Refuse what ZeroMQ would do silently: take a living server's path, or serve where others may enter."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    directory = os.stat(os.path.dirname(path) or ".")
    if stat.S_IMODE(directory.st_mode) & 0o077:
        raise PermissionError(errno.EPERM, "the directory of an ipc socket must be private (mode 0700)", path)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        outcome = probe.connect_ex(path)
    if outcome in (0, errno.EAGAIN):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), f"ipc://{path}")
