"""The same protocol inside one process: for tests, and for simulations on trio's mock clock.

Everything above the link is the production code: envelope, codecs, hello, credit, deadlines. The link itself delivers
in order and at once, unless it is told to fail: ``cut`` a peer off, ``pause`` it, and undo both.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import trio

from node.rpc.link import ClientEvents, ServerReceive
from node.rpc.security import Security
from node.wire.errors import Code, FsError
from node.wire.limits import REFUSED_RETRY_S
from node.wire.types import Buffer

_DRAIN_MAX = 128


class MemoryTransport:
    """A network in memory. Addresses are any strings."""

    def __init__(self) -> None:
        self._servers: dict[str, MemoryServerLink] = {}
        self._waiting: set[MemoryClientLink] = set()
        self._cut: set[str] = set()
        self._identities = itertools.count(1)

    async def __aenter__(self) -> MemoryTransport:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        return None

    def client_link(self, address: str, security: Security, events: ClientEvents) -> MemoryClientLink:
        """A link for a Connection."""
        return MemoryClientLink(self, address, security, events)

    def server_link(self, address: str, security: Security) -> MemoryServerLink:
        """A link for a Server."""
        return MemoryServerLink(self, address, security)

    def cut(self, address: str) -> None:
        """Break every connection to an address and let nobody connect until ``heal``."""
        self._cut.add(address)
        server = self._servers.get(address)
        if server is not None:
            server.lose_all("cut off")

    def heal(self, address: str) -> None:
        """Undo ``cut``."""
        self._cut.discard(address)
        self.retry()

    def pause(self, address: str) -> None:
        """Stop the server there as SIGSTOP would: connections stand, nothing is received."""
        self._servers[address].mailbox.paused = True

    def resume(self, address: str) -> None:
        """Undo ``pause``."""
        self._servers[address].mailbox.resume()

    def reachable(self, address: str) -> MemoryServerLink | None:
        """The server at an address, None when there is none or it is cut off."""
        return None if address in self._cut else self._servers.get(address)

    def retry(self) -> None:
        """Have all that wait for a server look again."""
        for link in list(self._waiting):
            link.mailbox.wake()


class _Mailbox:
    """What an owner task waits on: messages, a deadline, or somebody who wants it to look around."""

    def __init__(self) -> None:
        self.paused = False
        self._items: deque[tuple[Any, ...]] = deque()
        self._park: trio.CancelScope | None = None

    def put(self, *item: Any) -> None:
        self._items.append(item)
        self.wake()

    def wake(self) -> None:
        if self._park is not None:
            self._park.cancel()

    def wake_at(self, deadline: float) -> None:
        if self._park is not None and deadline < self._park.deadline:
            self._park.deadline = deadline

    def resume(self) -> None:
        self.paused = False
        self.wake()

    def clear(self) -> None:
        self._items.clear()

    async def turn(self, receive: Callable[..., None], turn: Callable[[], float]) -> None:
        """Deliver what is there, do what is due, wait for more."""
        for _ in range(_DRAIN_MAX):
            if not self._items or self.paused:
                break
            receive(*self._items.popleft())
        due = turn()
        if (self._items and not self.paused) or due <= trio.current_time():
            await trio.lowlevel.checkpoint()
            return
        self._park = trio.CancelScope(deadline=due)
        with self._park:
            await trio.sleep_forever()
        self._park = None


class MemoryClientLink:
    """See link.ClientLink."""

    def __init__(
        self, transport: MemoryTransport, address: str, security: Security, events: ClientEvents
    ) -> None:
        self.mailbox = _Mailbox()
        self.events = events
        self._transport = transport
        self._address = address
        self._security = security
        self._server: MemoryServerLink | None = None
        self._identity = b""
        self._retry_at = -math.inf
        self._life: trio.CancelScope | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        self._transport._waiting.add(self)
        try:
            with trio.CancelScope() as self._life:
                while True:
                    if self._server is None:
                        self._connect()
                    await self.mailbox.turn(self._receive, self._turn)
        finally:
            self._transport._waiting.discard(self)
            self._disconnect()

    def _connect(self) -> None:
        server = self._transport.reachable(self._address)
        if server is None or trio.current_time() < self._retry_at:
            return
        if not _admitted(self._security, server.security):
            error = FsError(Code.UNAUTHORIZED, f"{self._address} does not accept this key")
            self.reset(error)
            self.events.link_refused(error)
            return
        self._identity = b"%016d" % next(self._transport._identities)
        self._server = server
        server.clients[self._identity] = self
        self.events.link_up()

    def _disconnect(self) -> None:
        if self._server is not None:
            self._server.clients.pop(self._identity, None)
            self._server = None
        self.mailbox.clear()

    def lost(self, reason: str) -> None:
        """The server went away."""
        self._disconnect()
        self.events.link_down(reason)
        self.mailbox.wake()

    def send(self, head: bytes, data: Sequence[Buffer]) -> bool:
        if self._server is None:
            return False
        self._server.mailbox.put(self._identity, head, [memoryview(part).toreadonly() for part in data])
        return True

    def reset(self, error: FsError | None = None) -> None:
        if error is not None:
            self._retry_at = trio.current_time() + REFUSED_RETRY_S
        self._disconnect()
        self.mailbox.wake()

    @property
    def reaching(self) -> bool:
        return False  # an introduction takes no time here

    def wake_at(self, deadline: float) -> None:
        self.mailbox.wake_at(deadline)

    def close(self) -> None:
        if self._life is not None:
            self._life.cancel()

    def _receive(self, head: bytes, data: list[memoryview]) -> None:
        self.events.link_message(head, data)

    def _turn(self) -> float:
        due = self.events.link_turn()
        if trio.current_time() < self._retry_at:
            return min(due, self._retry_at)
        if self._server is None and self._transport.reachable(self._address) is not None:
            return trio.current_time()  # reset meanwhile: connect again
        return due


class MemoryServerLink:
    """See link.ServerLink."""

    def __init__(self, transport: MemoryTransport, address: str, security: Security) -> None:
        self.mailbox = _Mailbox()
        self.security = security
        self.clients: dict[bytes, MemoryClientLink] = {}
        self._transport = transport
        self._address = address

    async def open(self) -> None:
        if self._address in self._transport._servers:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), self._address)
        self._transport._servers[self._address] = self
        self._transport.retry()

    async def run(self, receive: ServerReceive, turn: Callable[[], float]) -> None:
        try:
            while True:
                await self.mailbox.turn(receive, turn)
        finally:
            del self._transport._servers[self._address]
            self.lose_all("the connection broke")

    def send(self, peer: bytes, head: bytes, data: Sequence[Buffer]) -> bool:
        client = self.clients.get(peer)
        if client is None:
            return False
        client.mailbox.put(head, [memoryview(part).toreadonly() for part in data])
        return True

    def lose_all(self, reason: str) -> None:
        """Break every connection."""
        for client in list(self.clients.values()):
            client.lost(reason)


def _admitted(client: Security, server: Security) -> bool:
    if server.allowed is None or server.keys is None:
        return client.keys is None
    return client.keys is not None and client.keys.public in server.allowed and (
        client.server_public == server.keys.public
    )
