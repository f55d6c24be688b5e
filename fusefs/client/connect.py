"""Open a volume over real connections."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Optional

import trio

from fusefs.client.caller import Caller
from fusefs.client.options import ClientOptions, Cluster, Peer
from fusefs.client.roster import Roster
from fusefs.client.volume import Volume
from metadata import api as metadata_api
from metadata.api import ServerRecord
from node.host.clock import SystemClock
from node.host.identity import certainly_gone
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.link import AnyTransport
from node.rpc.security import CurveKeys, Security
from node.wire.catalogue import Catalogue
from storage import api as storage_api


class Dialer:
    """Makes connections of one client to one cluster, and runs them in ``nursery``."""

    def __init__(
        self, transport: AnyTransport, nursery: trio.Nursery, cluster: Cluster, keys: Optional[CurveKeys]
    ) -> None:
        self._transport = transport
        self._nursery = nursery
        self._cluster = cluster
        self._keys = keys

    async def member(self, peer: Peer, on_notify: Callable[[Any], None]) -> Connection:
        """Connect to a metadata member, which may push messages."""
        return await self._dial(peer, metadata_api.CATALOGUE, on_notify)

    async def server(self, record: ServerRecord) -> Connection:
        """Connect to a chunk server of the cluster map."""
        public_key = record.public_key.encode() or self._cluster.server_keys.get(record.name, b"")
        return await self._dial(Peer(record.address, public_key), storage_api.CATALOGUE)

    async def _dial(
        self, peer: Peer, catalogue: Catalogue, on_notify: Optional[Callable[[Any], None]] = None
    ) -> Connection:
        security = Security.plain()
        if self._keys is not None and peer.public_key:
            security = Security.curve_client(self._keys, peer.public_key)
        connection = Connection(
            self._transport,
            peer.address,
            catalogue,
            cluster_id=self._cluster.cluster_id,
            security=security,
            on_notify=on_notify,
        )
        await self._nursery.start(connection.run)
        return connection


def only_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a group, or the group: a nursery is our business, not the caller's."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def open_volume(
    cluster: Cluster,
    *,
    keys: Optional[CurveKeys],
    mount: str,
    options: ClientOptions,
    transport: Optional[AnyTransport] = None,
) -> AsyncIterator[Volume]:
    """Connect, register a session and yield a Volume; on leaving, flush (bounded), end the session, disconnect.

    ``keys`` are this client's own (None: a transport without keys). ``mount`` is shown by `fusefs status`. Raises
    FsError UNREACHABLE, TIMEOUT, UNAUTHORIZED, FOREIGN_CLUSTER or UNSUPPORTED_VERSION before it yields. When the
    caller is cancelled, flushing still gets its bounded time.
    """
    try:
        async with transport or Transport() as opened, trio.open_nursery() as nursery:
            dialer = Dialer(opened, nursery, cluster, keys)
            volumes: list[Volume] = []  # one, as soon as there is one: nobody pushes before it has a session

            def pushed(ident: int, message: object) -> None:
                for opened in volumes:
                    opened.pushed(ident, message)

            async def dial(ident: int, peer: Peer) -> Caller:
                return await dialer.member(peer, partial(pushed, ident))

            members = {ident: await dial(ident, peer) for ident, peer in cluster.members.items()}
            volume = Volume(
                nursery,
                members,
                dialer.server,
                mount=mount,
                options=options,
                now_ns=time.time_ns,
                random_bytes=os.urandom,
                clock_s=SystemClock().monotonic_s,
                awake_s=time.monotonic,
                gone=certainly_gone,
            )
            volumes.append(volume)
            await volume.start()
            await nursery.start(Roster(members, dict(cluster.members), dial).run)
            try:
                yield volume
            finally:
                with trio.CancelScope(shield=True):
                    await volume.stop()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only_error(group) from None
