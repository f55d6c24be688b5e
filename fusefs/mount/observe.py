"""Showing what a mount does: the profile at a private socket, metrics over HTTP where that is asked for."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import trio
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fusefs.mount.profile import MountProfile, Profile, end_ns
from node.host.logging import get_logger
from node.host.metrics import LATENCY_BUCKETS_S, Metrics
from node.wire.errors import Code, FsError

log = get_logger(__name__)

READERS_MAX = 8
READ_S = 5.0  # what a reader may take
DOCUMENT_BYTES_MAX = 1 << 20


async def serve_profile(path: Path, document: Callable[[], MountProfile]) -> None:
    """Give whoever connects one document, until cancelled. Only the owner may."""
    path.unlink(missing_ok=True)
    limit = trio.CapacityLimiter(READERS_MAX)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        await listener.bind(os.fspath(path))
        path.chmod(0o600)  # before anybody can connect
        listener.listen(READERS_MAX)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    connection, _ = await listener.accept()
                    nursery.start_soon(_answer, trio.SocketStream(connection), document, limit)
        finally:
            path.unlink(missing_ok=True)


async def _answer(stream: trio.SocketStream, document: Callable[[], MountProfile], limit: trio.CapacityLimiter) -> None:
    async with stream, limit:
        with trio.move_on_after(READ_S):
            try:
                await stream.send_all(msgspec.json.encode(document()))
            except trio.BrokenResourceError:
                pass  # it has gone


def read_profile(path: Path) -> MountProfile:
    """Ask the mount process that serves this socket. FsError UNREACHABLE where none does, PERMISSION."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(READ_S)
        try:
            connection.connect(os.fspath(path))
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
                if sum(map(len, parts)) > DOCUMENT_BYTES_MAX:
                    raise FsError(Code.PROTOCOL, f"{path} gives more than a profile")
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise FsError(Code.PERMISSION, f"{path}: only who mounted it may look") from None
            raise FsError(Code.UNREACHABLE, f"the mount does not answer at {path}: {error.strerror or error}") from None
    try:
        return msgspec.json.decode(b"".join(parts), type=MountProfile)
    except msgspec.MsgspecError as error:
        raise FsError(Code.PROTOCOL, f"{path}: {error}") from None


def mount_metrics(profile: Profile, statistics: Callable[[], dict[str, float]]) -> Metrics:
    """What /metrics of a mount shows: operations with their latencies, and every statistic of client and caches."""
    metrics = Metrics("mount")

    def named() -> dict[str, float]:
        return {name.replace(".", "_"): value for name, value in statistics().items()}

    metrics.collect_from("client", named)
    metrics.registry.register(_Operations(profile))
    return metrics


class _Operations(Collector):
    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        seconds = HistogramMetricFamily("fusefs_mount_operation_seconds", "time in the handler", labels=["operation"])
        errors = CounterMetricFamily("fusefs_mount_operation_errors", "answered with an error", labels=["operation"])
        data = CounterMetricFamily("fusefs_mount_operation_bytes", "data read or written", labels=["operation"])
        for name, row in self._profile.operations.items():
            cumulated = [
                (str(limit), sum(n for i, n in enumerate(row.buckets) if end_ns(i) / 1e9 <= limit))
                for limit in LATENCY_BUCKETS_S
            ]
            seconds.add_metric([name], [*cumulated, ("+Inf", row.count)], row.total_ns / 1e9)
            errors.add_metric([name], row.errors)
            data.add_metric([name], row.bytes)
        yield from (seconds, errors, data)
