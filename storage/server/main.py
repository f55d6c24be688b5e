"""The chunk server process: ``fusefs-chunk --cluster FILE --name NAME [--data DIR]``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import trio

from node.host import notify
from node.host.cluster import ChunkServer, ClusterConfig, load_cluster
from node.host.daemon import Lifecycle, describe_when_asked, run_daemon
from node.host.disk import SystemDisk
from node.host.http import serve_http
from node.host.keys import client_security, process_keys, server_security
from node.host.lock import LivenessLock
from node.host.logging import setup_logging
from node.host.memory import keep_freed_buffers
from node.host.metrics import Metrics
from node.host.paths import private_directory
from node.host.units import format_size
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.security import AllowList
from node.rpc.server import Server
from node.wire.catalogue import Catalogue
from node.wire.limits import (
    BUFFER_BYTES_MAX, BUFFERS_KEPT_BYTES, SEGMENT_BYTES_MIN, STORE_SEGMENTS_MIN,
)
from storage import api
from storage.catalog import LmdbCatalog
from storage.cleaning import Cleaner
from storage.scrubbing import Scrubber
from storage.server.cleaning import Cleaning
from storage.server.committer import Committer
from storage.server.forward import Peers
from storage.server.healing import Healing
from storage.server.heartbeat import BAD_BLOCKS_MAX, Heartbeats
from storage.server.orders import Orders
from storage.server.scrubbing import Scrubbing
from storage.server.service import Service
from storage.server.tables import KnownTable
from storage.store import BlockStore, StoreOptions

PROGRAM = "fusefs-chunk"
SWITCH_INTERVAL_S = 1e-4  # the disk thread must get the interpreter back at once when a sync returns
_RECOVERY_PING_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Which server this process is, and where its files are."""

    config: ClusterConfig
    path: Path  # of cluster.toml
    entry: ChunkServer
    data: Path


class Registration:
    """What the metadata service has told this server, and what this server tells about itself."""

    def __init__(self, place: Place, store: BlockStore, peers: Peers, table: KnownTable) -> None:
        self._entry = place.entry
        self._store = store
        self._peers = peers
        self._table = table
        self.again: Callable[[], None] = lambda: None  # there is more to hear
        self.guests = Guests(None)
        self.orders: Optional[Orders] = None
        self.server = 0  # our id, 0 until registered
        self.gc_epoch = 0
        self.pg_epoch = 0
        self.lists = 0

    def status(self) -> api.ServerStatus:
        """Return the server's own view."""
        store, entry = self._store, self._entry
        return api.ServerStatus(
            server=self.server, uuid=store.identity, address=entry.address, used_bytes=store.stored_bytes,
            capacity_bytes=store.capacity_bytes, blocks=store.block_count, state="full" if store.full else "serving",
            host=entry.host, rack=entry.rack, corrupt_blocks=store.corrupt_count, name=entry.name, weight=entry.weight,
            quarantined_bytes=store.quarantined_bytes, unconfirmed_bytes=store.unconfirmed_bytes,
        )

    def heartbeat(self) -> api.Heartbeat:
        """Return the next heartbeat."""
        reports = self.orders.reports() if self.orders is not None else ()
        reached = self._table.table.reached
        bad_blocks = self._store.bad_blocks(BAD_BLOCKS_MAX)
        return api.Heartbeat(self.status(), bad_blocks, self.pg_epoch, reports, reached, self.lists)

    def take(self, sent: api.Heartbeat, reply: api.HeartbeatReply) -> None:
        """Take the answer to a heartbeat."""
        self._store.reported(sent.bad_blocks)
        self.server, self.gc_epoch = reply.server, reply.gc_epoch
        self._table.server = reply.server
        if self._table.take(reply.table):
            self.again()
        if reply.servers is not None:
            self._peers.update(reply.servers)
            self.guests.name([*(s.public_key for s in reply.servers), *(m.public_key for m in reply.members)])
            self.pg_epoch, self.lists = reply.pg_epoch, reply.lists
        if self.orders is not None:
            self.orders.acknowledged(sent.reports)
            if self._store.current(reply.pg_epoch):  # not one who does not know that he was replaced
                self.orders.take(reply.orders)


class Guests:
    """Whom this server lets in beside those of cluster.toml: members and chunk servers that the leader names."""

    def __init__(self, allowed: Optional[AllowList]) -> None:
        self._allowed = allowed
        self._configured = frozenset(allowed or ())
        self._named: frozenset[bytes] = frozenset()

    def name(self, keys: Iterable[str]) -> None:
        """These are all of them now."""
        if self._allowed is None:
            return
        before, self._named = self._named, frozenset(key.encode() for key in keys if key) - self._configured
        for key in before - self._named:
            self._allowed.discard(key)
        for key in self._named:
            self._allowed.add(key)


def open_store(place: Place) -> BlockStore:
    """Open (and recover) the store of a chunk server; the caller holds its lock."""
    disk, storage = SystemDisk(place.data / "segments"), place.config.storage
    disk_bytes = disk.free_bytes() + sum([disk.open(name).size() for name in disk.list()])
    room_bytes = place.entry.capacity_bytes or disk_bytes
    segment_bytes = min(storage.segment_bytes, max(SEGMENT_BYTES_MIN, room_bytes // STORE_SEGMENTS_MIN))
    options = StoreOptions(
        capacity_bytes=place.entry.capacity_bytes, segment_bytes=segment_bytes, quarantine_s=storage.quarantine,
        compaction_bytes=min(segment_bytes, disk_bytes // STORE_SEGMENTS_MIN),
    )
    return BlockStore(
        disk, LmdbCatalog(place.data / "catalog"), place.config.cluster_id_bytes,
        clock=time.time, random=os.urandom, options=options,
    )


async def serve(place: Place, life: Lifecycle) -> None:
    """Recover, serve until asked to stop, then finish what was begun."""
    private_directory(place.data)
    with LivenessLock(place.data / "lock", f"chunk server {place.entry.name}"):
        store = await _recover(place)
        async with Transport() as transport:
            await _serve_store(place, life, store, transport)
        await trio.to_thread.run_sync(store.close)


async def _recover(place: Place) -> BlockStore:
    """Open the store in a thread, and have the service manager wait as long as it takes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ask_for_patience)
        store = await trio.to_thread.run_sync(open_store, place, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
    found, used = store.recovery, format_size(store.used_bytes)
    _log.info("%d blocks, %s; %d records were scanned", store.block_count, used, found.records)
    return store


async def _ask_for_patience() -> None:
    while True:
        notify.extend_timeout(3 * _RECOVERY_PING_S)
        await trio.sleep(_RECOVERY_PING_S)


async def _serve_store(place: Place, life: Lifecycle, store: BlockStore, transport: Transport) -> None:
    config, entry = place.config, place.entry
    cluster = config.cluster_id_bytes
    keys = process_keys(config, place.path, entry.name)
    public_keys = {process.address: process.public_key for process in config.processes}

    def connect(address: str, catalogue: Catalogue) -> Connection:
        security = client_security(config, keys, public_keys.get(address, ""))
        return Connection(transport, address, catalogue, cluster_id=cluster, security=security)

    def reach(other: api.ServerAddress) -> Connection:
        if other.public_key:
            public_keys[other.address] = other.public_key
        return connect(other.address, api.CATALOGUE)

    peers = Peers(reach)
    table = KnownTable()
    registration = Registration(place, store, peers, table)
    committer = Committer(store)
    cleaning = Cleaning(Cleaner(store, clock=time.time), idle_s=min(1.0, config.storage.quarantine / 4))
    files = str((place.data / "segments").resolve())
    service = Service(store, committer, registration.status, peers.forward, table, files)
    members = [(member.id, connect(member.address, api.METADATA_FOR_SERVERS)) for member in config.members]
    interval_s = config.storage.heartbeat_interval

    def meet(entry: api.MemberAddress) -> Connection:
        public_keys[entry.address] = entry.public_key
        return connect(entry.address, api.METADATA_FOR_SERVERS)

    heartbeats = Heartbeats(members, registration.heartbeat, registration.take, interval_s=interval_s, dial=meet)
    registration.again = table.behind = heartbeats.wake
    healing = Healing(
        store, committer, peers.connection, own=lambda: registration.server, finished=heartbeats.wake, table=table
    )
    scrubbing = Scrubbing(Scrubber(store, clock=time.time), finished=heartbeats.wake)
    registration.orders = Orders(healing, scrubbing)
    store.on_damage = _telling(healing, heartbeats)
    security = server_security(config, place.path, entry.name)
    if security.allowed is not None:
        allowed = AllowList(security.allowed)
        security, registration.guests = replace(security, allowed=allowed), Guests(allowed)
    server = Server(transport, entry.address, cluster_id=cluster, security=security)
    for number, handler in service.handlers().items():
        server.register(api.CATALOGUE.by_number[number], handler)
    async with trio.open_nursery() as nursery:
        for part in (committer.run, service.run, peers.run, server.run, healing.run, heartbeats.run):
            await nursery.start(part)
        if config.storage.http:
            metrics = _metrics(store, committer, service, cleaning)
            metrics.collect_from("healing", healing.statistics)
            metrics.collect_from("scrubbing", scrubbing.statistics)
            metrics.collect_from("table", table.statistics)
            await nursery.start(serve_http, config.storage.http, metrics, _fine, _fine)
        await nursery.start(cleaning.run)
        await nursery.start(scrubbing.run)
        parts = (store, committer, service, cleaning, healing, scrubbing)
        await nursery.start(describe_when_asked, lambda: {k: v for part in parts for k, v in part.statistics().items()})
        nursery.start_soon(_watchdog)
        life.ready(f"serving {entry.address}")
        _log.info("serving %s", entry.address)
        await life.wait_stop()
        server.drain()
        await service.finish()
        nursery.cancel_scope.cancel()


def _telling(healing: Healing, heartbeats: Heartbeats) -> Callable[[bytes], None]:
    """Return what a store may call, in any thread, when it finds a block damaged."""
    token = trio.lowlevel.current_trio_token()

    def tell(block: bytes) -> None:
        healing.damaged(block)
        heartbeats.wake()

    def damaged(block: bytes) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(tell, block)

    return damaged


def _metrics(store: BlockStore, committer: Committer, service: Service, cleaning: Cleaning) -> Metrics:
    metrics = Metrics("chunk")
    metrics.collect_from("store", store.statistics)
    metrics.collect_from("commit", committer.statistics)
    metrics.collect_from("request", service.statistics)
    metrics.collect_from("cleaning", cleaning.statistics)
    return metrics


def _fine() -> None:
    """Whoever answers at all is healthy: a failed disk ends the process."""


async def _watchdog() -> None:
    """Tell the service manager that the loop turns."""
    interval_s = notify.watchdog_interval_s()
    while interval_s is not None:
        notify.watchdog()
        await trio.sleep(interval_s / 2)


def main(arguments: list[str] | None = None) -> int:
    """Run a chunk server; return the exit code."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Serve the blocks of a fusefs cluster.")
    parser.add_argument("--cluster", type=Path, required=True, metavar="FILE", help="the cluster.toml")
    parser.add_argument("--name", required=True, help="which of the cluster's chunk servers to be")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the blocks are (default: NAME beside FILE)")
    options = parser.parse_args(arguments)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_freed_buffers(buffer_bytes_max=BUFFER_BYTES_MAX, kept_bytes_max=BUFFERS_KEPT_BYTES)

    async def start(life: Lifecycle) -> None:
        config = load_cluster(options.cluster)
        setup_logging(options.name, config.log.level, json=config.log.json)
        data = options.data or options.cluster.resolve().parent / options.name
        await serve(Place(config, options.cluster, config.server(options.name), data), life)

    setup_logging(options.name)
    return run_daemon(PROGRAM, start)
