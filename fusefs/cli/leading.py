"""Ask the leader, whoever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from metadata.api import CATALOGUE
from node.host.cluster import ClusterConfig
from node.host.keys import client_security
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.security import CurveKeys
from node.wire.errors import Code, FsError

FIND_TIMEOUT_S = 10.0
_PAUSE_S = 0.05

Ask = Callable[[msgspec.Struct, float], Awaitable[Any]]


@asynccontextmanager
async def asking_leader(config: ClusterConfig, keys: CurveKeys | None) -> AsyncIterator[Ask]:
    """Yield a function that puts a request to the leader and returns the reply's body; requests must be repeatable.

    It raises FsError: UNREACHABLE when no leader is found in FIND_TIMEOUT_S.
    """
    connections: dict[int, Connection] = {}

    async def ask(request: msgspec.Struct, timeout_s: float) -> Any:
        last = FsError(Code.UNREACHABLE, "no metadata member answers")
        deadline = trio.current_time() + FIND_TIMEOUT_S
        target = 0
        while trio.current_time() < deadline:
            refusals = [connection.failure for connection in connections.values() if connection.failure is not None]
            if len(refusals) == len(connections):
                raise refusals[0]
            able = [number for number, connection in connections.items() if connection.connected]
            if able:
                target = target if target in able else able[0]
                try:
                    return (await connections[target].call(request, timeout_s=timeout_s)).body
                except FsError as error:
                    if not error.retryable:
                        raise
                    last = error
                    target = error.hint or able[(able.index(target) + 1) % len(able)]
            await trio.sleep(_PAUSE_S)
        raise FsError(Code.UNREACHABLE, last.detail)

    failure: FsError | None = None
    async with Transport() as transport, trio.open_nursery() as nursery:
        for member in config.members:
            security = client_security(config, keys, member.public_key)
            connections[member.id] = Connection(
                transport, member.address, CATALOGUE, cluster_id=config.cluster_id_bytes, security=security
            )
            await nursery.start(connections[member.id].run)
        try:
            yield ask
        except FsError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
