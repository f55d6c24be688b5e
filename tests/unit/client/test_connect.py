"""A volume over real connections in memory: envelope, codecs, credit and reconnection are the production code."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from fusefs.client.connect import only_error, open_volume
from fusefs.client.options import ClientOptions, Cluster, Peer
from metadata import api
from node.rpc.memory import MemoryTransport
from node.rpc.server import Call, Server
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO
from storage import api as storage

from .world import Faults, World, contents

CLUSTER = b"c" * 16
OPTIONS = ClientOptions(request_timeout_s=5.0, flush_after_s=1000.0, write_through=False)


@asynccontextmanager
async def served(world: World, transport: MemoryTransport) -> AsyncIterator[Cluster]:
    """Serve a world's member and chunk server on their addresses."""
    async with trio.open_nursery() as nursery:
        for address, peer, catalogue in (
            ("mem:meta", world.member, api.CATALOGUE),
            ("mem:1", world.store, storage.CATALOGUE),
        ):
            server = Server(transport, address, cluster_id=CLUSTER)
            for method in catalogue:
                server.register(method, answering(peer))
            await nursery.start(server.run)
        yield Cluster(CLUSTER, {1: Peer("mem:meta")})
        nursery.cancel_scope.cancel()


def answering(peer: Faults) -> Any:
    async def handle(call: Call) -> None:
        reply = await peer.call(call.request, call.data, timeout_s=5.0)  # type: ignore[attr-defined]
        call.reply(reply.body, reply.data)

    return handle


async def test_over_connections_that_break() -> None:
    world = World()
    transport = MemoryTransport()
    data = os.urandom(3_000_000)
    async with served(world, transport) as cluster:
        async with open_volume(cluster, keys=None, mount="/m", options=OPTIONS, transport=transport) as volume:
            handle, attr = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
            for at in range(0, len(data), 100_000):
                await volume.write(handle, at, data[at : at + 100_000])
                if at % 1_000_000 == 0:
                    transport.cut("mem:1")
                    transport.cut("mem:meta")
                    transport.heal("mem:meta")
                    transport.heal("mem:1")
            await volume.flush(handle)
            await volume.release(handle)
            assert await contents(volume, attr.ino) == data
            assert len(world.machine.sessions()) == 1
        assert not world.machine.sessions()
    world.check()


async def test_errors_come_out_as_they_are() -> None:
    world = World()
    transport = MemoryTransport()
    async with served(world, transport) as cluster:
        with pytest.raises(ZeroDivisionError):
            async with open_volume(cluster, keys=None, mount="/m", options=OPTIONS, transport=transport):
                raise ZeroDivisionError
        foreign = Cluster(b"x" * 16, cluster.members)
        with pytest.raises(FsError) as raised:
            async with open_volume(foreign, keys=None, mount="/m", options=OPTIONS, transport=transport):
                raise AssertionError("must not open")
        assert raised.value.code is Code.FOREIGN_CLUSTER


async def test_no_service_is_a_timeout(autojump_clock: object) -> None:
    with pytest.raises(FsError) as raised:
        async with open_volume(
            Cluster(CLUSTER, {1: Peer("mem:meta")}), keys=None, mount="/m", options=OPTIONS, transport=MemoryTransport()
        ):
            raise AssertionError("must not open")
    assert raised.value.code is Code.TIMEOUT
    assert trio.current_time() < 7


def test_a_group_of_several_errors_stays_one() -> None:
    inner = ExceptionGroup("", [ValueError(), KeyError()])
    assert only_error(ExceptionGroup("", [inner])) is inner
    error = ValueError()
    assert only_error(ExceptionGroup("", [ExceptionGroup("", [error])])) is error
