"""The connections to the other chunk servers, and puts that are passed on over them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import trio

from node.host.sparing import Sparing, and_more
from node.wire.errors import FsError
from storage import api
from storage.pipeline import Finished, Pipeline, Send

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """What this module needs of node.rpc.client.Connection."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None: ...

    async def call(self, request: Any, data: Sequence[Any] = (), *, timeout_s: float = ...) -> Any: ...

    def close(self) -> None: ...


class Peers:
    """The other chunk servers by id. Connections are made when first needed and closed when a server moves or goes."""

    def __init__(self, connect: Callable[[api.ServerAddress], Connection]) -> None:
        self._connect = connect
        self._addresses: dict[int, api.ServerAddress] = {}
        self._connections: dict[int, Connection] = {}
        self._nursery: trio.Nursery | None = None
        self._starting = trio.Lock()
        self._sparing = Sparing()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host connections and puts under way until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def update(self, servers: Iterable[api.ServerAddress]) -> None:
        """Take a new list of all chunk servers. Puts under way to one that moved fail there and go on to the next."""
        addresses = {server.server: server for server in servers}
        for number, connection in list(self._connections.items()):
            if addresses.get(number) != self._addresses[number]:
                connection.close()
                del self._connections[number]
        self._addresses = addresses

    def complain(self, server: int, why: str) -> None:
        """Say that a server was left out of a put; one line for many."""
        silent = self._sparing.ask(server)
        if silent is not None:
            _log.warning("server %d left out of a put: %s%s", server, why, and_more(silent))

    def forward(self, put: api.Put, data: Sequence[memoryview], deadline: float) -> Forwarding:
        """Begin to pass a put on along ``put.forward``, which must not be empty; ``deadline`` is on trio's clock."""
        assert self._nursery is not None and put.forward
        forwarding = Forwarding(self, put, data, deadline)
        self._nursery.start_soon(forwarding.run)
        return forwarding

    async def connection(self, server: int) -> Connection | None:
        """Return the running connection to a server, None when nobody told where it is."""
        async with self._starting:  # first puts come together, and a connection must run before it is used
            connection = self._connections.get(server)
            if connection is None and server in self._addresses:
                assert self._nursery is not None
                connection = self._connections[server] = self._connect(self._addresses[server])
                await self._nursery.start(connection.run)
            return connection


class Forwarding:
    """A put that was passed on."""

    def __init__(self, peers: Peers, put: api.Put, data: Sequence[memoryview], deadline: float) -> None:
        self._peers = peers
        self._put = put
        self._data = data
        self._deadline = deadline
        self._pipeline = Pipeline(put.forward, len(put.blocks))
        self._done = trio.Event()
        self._result = Finished((), ())

    async def run(self) -> None:
        """Drive the pipeline to its end; ``wait`` returns then."""
        while True:
            step = self._pipeline.step(self._deadline - trio.current_time())
            if isinstance(step, Finished):
                self._result = step
                self._done.set()
                return
            await self._send(step)

    async def _send(self, step: Send) -> None:
        connection = await self._peers.connection(step.server)
        if connection is None:
            self._peers.complain(step.server, "its address is not known here")
            self._pipeline.not_answered()
            return
        put = api.Put(self._put.blocks, self._put.touch_epoch, self._put.pg_epoch, step.forward)
        try:
            reply = await connection.call(put, self._data, timeout_s=step.timeout_s)
        except FsError as error:
            self._peers.complain(step.server, str(error))
            self._pipeline.not_answered()
        else:
            self._pipeline.answered(reply.body.copies, reply.body.failed)

    async def wait(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (how many servers beyond this one hold each block, servers that did not answer)."""
        await self._done.wait()
        return self._result.copies, self._result.failed
