"""A process's ZeroMQ: one context, and the handler that decides who passes (ZAP, RFC 27)."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import trio
import zmq
import zmq.utils.z85

from node.rpc.link import ClientEvents
from node.rpc.owner import OwnedSocket, never
from node.rpc.security import AllowList, Security
from node.rpc.zmqlink import ZmqClientLink, ZmqServerLink
from node.wire.errors import Code, FsError

if TYPE_CHECKING:
    from node.rpc.link import ClientLink, ServerLink

log = logging.getLogger(__name__)

_SOCKETS_MAX = 16_384
_ZAP_FRAMES_MAX = 32  # the envelope and at most seven frames of ours
_DENIALS_LOGGED_MAX = 1000  # distinct keys; a stranger who makes new keys does not fill the log


class Transport:
    """Sockets of one process. An async context manager: leaving it waits (LINGER_S at most) for last answers.

    TCP without CURVE is refused unless ``insecure_tcp`` is set, which only tests do.
    """

    def __init__(self, *, insecure_tcp: bool = False, io_threads: int = 1) -> None:
        self.closing: set[str] = set()  # addresses of closed servers that libzmq may not have let go of yet
        self._insecure_tcp = insecure_tcp
        self._io_threads = io_threads
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._zap: Zap | None = None
        self._tasks = trio.open_nursery()

    async def __aenter__(self) -> Transport:
        nursery = await self._tasks.__aenter__()
        self._tasks_scope = nursery.cancel_scope
        self._context = zmq.Context(self._io_threads)
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
        # A woken i/o thread then does not push the thread that is just sending off its CPU: it finds a burst of
        # messages instead of one, which costs busy processes a quarter less (and idle ones nothing).
        self._context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
        self._zap = Zap(self._context, nursery)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)  # noqa: ASYNC102  cancelled just now: ends at once
        finally:
            self.zap.close()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.context.term)

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """The process's ZeroMQ context; exists inside the async with."""
        assert self._context is not None, "the transport is not entered"
        return self._context

    @property
    def zap(self) -> Zap:
        """Who decides which keys pass."""
        assert self._zap is not None, "the transport is not entered"
        return self._zap

    def client_link(self, address: str, security: Security, events: ClientEvents) -> ClientLink:
        """A link for a Connection."""
        self._check(address, security)
        return ZmqClientLink(self, address, security, events)

    def server_link(self, address: str, security: Security) -> ServerLink:
        """A link for a Server."""
        self._check(address, security)
        return ZmqServerLink(self, address, security)

    def _check(self, address: str, security: Security) -> None:
        if address.startswith("tcp://") and security.keys is None and not self._insecure_tcp:
            raise FsError(Code.UNAUTHORIZED, f"{address}: tcp needs CURVE keys")


class Zap:
    """The allow-lists of this process's servers, by ZAP domain.

    It outlives the servers: a connection that passed it cannot be closed by libzmq without its help.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], nursery: trio.Nursery) -> None:
        self._context = context
        self._nursery = nursery
        self._domains: dict[bytes, Collection[bytes]] = {}
        self._owned: OwnedSocket | None = None
        self._denied: set[bytes] = set()

    def admit(self, allowed: Collection[bytes]) -> bytes:
        """Register an allow-list; returns its domain."""
        domain = b"server-%d" % len(self._domains)
        self._domains[domain] = allowed if isinstance(allowed, AllowList) else frozenset(allowed)
        if self._owned is None:
            sock = self._context.socket(zmq.ROUTER)
            sock.set(zmq.LINGER, 0)
            sock.bind("inproc://zeromq.zap.01")
            self._owned = OwnedSocket(sock, _ZAP_FRAMES_MAX, self._request, never)
            self._nursery.start_soon(self._owned.run)
        return domain

    def close(self) -> None:
        """Let the context go."""
        if self._owned is not None:
            self._owned.sock.close(0)
            self._owned = None

    def _request(self, heads: Sequence[bytes], _data: list[memoryview]) -> None:
        assert self._owned is not None
        split = heads.index(b"")
        envelope, request = heads[: split + 1], heads[split + 1:]
        version, number, domain, address, _identity, mechanism = request[:6]
        key = zmq.utils.z85.encode(request[6]) if mechanism == b"CURVE" and len(request) > 6 else b""
        if version == b"1.0" and key in self._domains.get(domain, frozenset()):
            verdict = (b"200", b"OK", key)
        else:
            self._note(key, address)
            verdict = (b"400", b"not in the allow-list", b"")
        code, text, user = verdict
        self._owned.send([*envelope, b"1.0", number, code, text, user, b""])

    def _note(self, key: bytes, address: bytes) -> None:
        if key not in self._denied and len(self._denied) < _DENIALS_LOGGED_MAX:
            self._denied.add(key)
            log.warning("refused a client: key %r from %s is not in the allow-list", key, address)
