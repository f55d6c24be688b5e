"""The leader's own way to the chunk servers: a connection to each, made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import trio

from metadata.api import ServerRecord
from node.wire.types import Buffer


class Connection(Protocol):
    """What this module needs of node.rpc.client.Connection."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None: ...

    async def call(self, request: Any, data: Any = (), *, timeout_s: float = ...) -> Any: ...

    def close(self) -> None: ...


class ChunkServers:
    """Calls to chunk servers. ``connect`` makes a connection to where a record says; ``run`` must be running."""

    def __init__(self, connect: Callable[[ServerRecord], Connection]) -> None:
        self._connect = connect
        self._known: dict[int, tuple[str, Connection]] = {}
        self._starting = trio.Lock()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def call(
        self, record: ServerRecord, request: msgspec.Struct, data: Sequence[Buffer] = (), *, timeout_s: float
    ) -> Any:
        """Ask a chunk server; return the reply's body. Raises FsError."""
        async with self._starting:
            known = self._known.get(record.server)
            if known is None or known[0] != record.address:
                if known is not None:
                    known[1].close()
                assert self._nursery is not None, "not running"
                known = self._known[record.server] = (record.address, self._connect(record))
                await self._nursery.start(known[1].run)
        return (await known[1].call(request, data, timeout_s=timeout_s)).body

    def forget(self) -> None:
        """Close all connections: this member does not lead any more."""
        for _, connection in self._known.values():
            connection.close()
        self._known.clear()
