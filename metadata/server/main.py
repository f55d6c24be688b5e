"""The metadata member process: ``fusefs-meta --cluster FILE --name NAME [--data DIR]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trio

from metadata.server.member import MetadataMember, Place
from metadata.store.disk import FatalDiskError, RealDisk
from node.host import notify
from node.host.cluster import load_cluster
from node.host.daemon import Lifecycle, run_daemon
from node.host.exitcodes import Exit
from node.host.http import serve_http
from node.host.lock import LivenessLock
from node.host.logging import get_logger, setup_logging
from node.host.metrics import Metrics
from node.host.paths import private_directory
from node.rpc.context import Transport
from node.wire.errors import FsError

PROGRAM = "fusefs-meta"
SWITCH_INTERVAL_S = 1e-3  # the loop gets the interpreter back soon from the thread that loads a snapshot
log = get_logger(__name__)


async def serve(place: Place, life: Lifecycle) -> None:
    """Recover, serve until asked to stop, make everything durable."""
    private_directory(place.data)
    with LivenessLock(place.data / "lock", f"metadata member {place.own.name}"):
        try:
            async with Transport() as transport:
                await _serve(place, life, transport)
        except* FatalDiskError as group:
            reason = "; ".join(str(error) for error in leaves(group))
            sys.stderr.write(f"{PROGRAM}: the disk failed, this member ends: {reason}\n")
            sys.stderr.flush()
            os._exit(Exit.FAILED)  # nothing more may be written: what the kernel shows may not be on disk


async def _serve(place: Place, life: Lifecycle, transport: Transport) -> None:
    member = MetadataMember(
        place, transport, RealDisk(), report=lambda role: notify.status(role), tick=watchdog(time.monotonic)
    )
    async with trio.open_nursery() as nursery:
        if place.config.metadata.http:
            metrics = Metrics("meta")
            metrics.collect_from("member", member.statistics)
            await nursery.start(serve_http, place.config.metadata.http, metrics, lambda: None, member.unready)
        async with trio.open_nursery() as serving:
            await serving.start(member.run, life.stopping)
            life.ready(f"serving {place.own.address}")
            log.info("serving", member=place.own.name, address=place.own.address)
        nursery.cancel_scope.cancel()


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group, whatever the nesting."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def watchdog(now_s: Callable[[], float]) -> Callable[[], None]:
    """Return what the Ready loop calls each tick, to tell the service manager that it turns."""
    interval_s = notify.watchdog_interval_s()
    due_s = now_s()

    def tick() -> None:
        nonlocal due_s
        if interval_s is not None and now_s() >= due_s:
            due_s = now_s() + interval_s / 2
            notify.watchdog()

    return tick


def main(arguments: list[str] | None = None) -> int:
    """Run a metadata member; return the exit code."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Be a member of a fusefs cluster's metadata service.")
    parser.add_argument("--cluster", type=Path, required=True, metavar="FILE", help="the cluster.toml")
    parser.add_argument("--name", required=True, help="which of the cluster's members to be")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where its data is (default: NAME beside FILE)")
    options = parser.parse_args(arguments)

    async def start(life: Lifecycle) -> None:
        config = load_cluster(options.cluster)
        setup_logging(options.name, config.log.level, json=config.log.json)
        data = options.data or options.cluster.resolve().parent / options.name
        try:
            await serve(Place(config, options.cluster, config.member(options.name), data.resolve()), life)
        except* FsError as group:
            raise leaves(group)[0] from None

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    setup_logging(options.name)
    return run_daemon(PROGRAM, start)
