"""A snapshot on its way: resumed where it broke, checked, loaded before anybody is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from metadata.raft.log import RaftLog
from metadata.raft.messages import ConfState, SnapshotMeta
from metadata.raft.storage import MemoryStorage
from metadata.server.snapshots import Receiver, stream_snapshot, wanted
from metadata.server.wire import CATALOGUE, OfferSnapshot, SnapshotPiece
from metadata.state.tables import Engine
from metadata.store.disk import RealDisk
from metadata.store.engine_memory import MemoryEngine
from node.rpc.client import Connection
from node.rpc.memory import MemoryTransport
from node.rpc.server import Call, Server
from node.wire.errors import Code, FsError

META = SnapshotMeta(100, 3, ConfState((1, 2, 3)))
CLUSTER = b"c" * 16


class Pair:
    """A sender's connection and a receiver's server."""

    def __init__(self, path: Path, target: Engine, *, wants: bool = True) -> None:
        self.transport = MemoryTransport()
        self.target = target
        self.loads = 0
        self.receiver = Receiver(RealDisk(), str(path / "incoming"), wants=lambda _: wants, load=self.load)
        self.connection = Connection(self.transport, "x", CATALOGUE, cluster_id=CLUSTER)
        self.server = Server(self.transport, "x", cluster_id=CLUSTER)
        self.server.register(CATALOGUE.by_request[OfferSnapshot], self.receiver.offer)
        self.server.register(CATALOGUE.by_request[SnapshotPiece], self.piece)
        self.cuts: list[int] = []  # after so many pieces the connection breaks

    def load(self, items: Any) -> int:
        self.loads += 1
        return self.target.load(items)

    def piece(self, call: Call) -> None:
        if self.cuts and self.receiver.received == self.cuts[0]:
            self.cuts.pop(0)
            self.transport.cut("x")
            self.transport.heal("x")
            return
        self.receiver.piece(call)

    async def start(self, nursery: trio.Nursery) -> None:
        for part in (self.server.run, self.connection.run, self.receiver.run):
            await nursery.start(part)

    async def stream(self, source: Engine, **options: Any) -> bool:
        with source.snapshot() as view:
            return await stream_snapshot(
                self.connection, view, META, member=1, incarnation=b"1", target_incarnation=b"2",
                bytes_per_s=1e12, **options,
            )


def filled() -> MemoryEngine:
    engine = MemoryEngine()
    for number in range(100):
        engine.put(b"%03d" % number, os.urandom(1 << 16))
    engine.commit()
    return engine


def content(engine: Engine) -> list[tuple[bytes, bytes]]:
    return engine.range(b"\0", b"\xff" * 8)


async def test_a_broken_stream_goes_on_where_it_broke(tmp_path: Path, nursery: trio.Nursery) -> None:
    source, target = filled(), MemoryEngine()
    pair = Pair(tmp_path, target)
    pair.cuts = [2, 5]
    await pair.start(nursery)
    assert await pair.stream(source)
    assert pair.receiver.ready == META and pair.loads == 1
    assert pair.receiver.received <= 9  # 6.25 MiB are 7 pieces
    assert content(target) == []
    target.switch(pair.receiver.take(META))
    assert content(target) == content(source)
    pair.receiver.discard()
    assert not (tmp_path / "incoming").exists()
    nursery.cancel_scope.cancel()


async def test_a_stream_ends_with_the_leadership_that_began_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    pair = Pair(tmp_path, MemoryEngine())
    await pair.start(nursery)
    with pytest.raises(FsError) as caught, filled().snapshot() as view:
        await stream_snapshot(
            pair.connection, view, META, member=1, incarnation=b"1", target_incarnation=b"2", bytes_per_s=1e12,
            current=lambda: pair.receiver.received < 2,
        )
    assert caught.value.code == Code.NOT_LEADER and pair.receiver.received == 2 and pair.loads == 0
    nursery.cancel_scope.cancel()


def test_nothing_takes_the_place_of_a_snapshot_that_is_about_to_be_installed() -> None:
    log = RaftLog(MemoryStorage(META.conf), 0, 0, 1)
    newer = SnapshotMeta(META.index + 1, 3, META.conf)
    assert wanted(log, META) and wanted(log, newer)
    log.restore(META)
    assert not wanted(log, META) and not wanted(log, newer)
    log.stable_snapshot(META.index)
    assert not wanted(log, META) and wanted(log, newer)


async def test_who_needs_none_gets_none(tmp_path: Path, nursery: trio.Nursery) -> None:
    pair = Pair(tmp_path, MemoryEngine(), wants=False)
    await pair.start(nursery)
    assert not await pair.stream(filled())
    assert pair.receiver.received == 0
    nursery.cancel_scope.cancel()


async def test_what_changed_in_the_spool_is_not_loaded(tmp_path: Path, nursery: trio.Nursery) -> None:
    pair = Pair(tmp_path, MemoryEngine())
    load = pair.receiver._load

    def spoil(items: Any) -> int:
        path = tmp_path / "incoming"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return load(items)

    pair.receiver._load = spoil
    await pair.start(nursery)
    with pytest.raises(FsError) as caught:
        await pair.stream(filled())
    assert caught.value.code is Code.IO
    assert pair.receiver.ready is None and content(pair.target) == []
    nursery.cancel_scope.cancel()


async def test_a_stream_that_stands_still_is_given_up(tmp_path: Path, nursery: trio.Nursery) -> None:
    pair = Pair(tmp_path, MemoryEngine())
    await nursery.start(pair.connection.run)
    with pytest.raises(FsError) as caught:
        await pair.stream(filled(), stall_s=0.5)
    assert caught.value.code is Code.UNREACHABLE
    nursery.cancel_scope.cancel()
