"""What a chunk server costs by itself: blocks put, read, packed, pulled by another one, and a million small ones kept.

Without mount and metadata service: the clients are in this process, the servers are processes of their own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import trio

from storage import api
from tests.bench.rows import MIB, Figure
from tests.unit.storage.processes import Cluster, cluster

GIB = 1 << 30
IN_FLIGHT = 8
SMALL_BYTES = 4096
PACKED = 128  # small blocks in a put
Frame = tuple[bytes, bytes, int]


def measure(blocks: int, small: int) -> Iterator[Figure]:
    """``blocks`` of 1 MiB, ``small`` of 4 KiB."""
    with tempfile.TemporaryDirectory(prefix="fusefs-bench-", dir="/var/tmp") as base:
        yield from trio.run(_measure, Path(base), blocks, small)


async def _measure(base: Path, blocks: int, small: int) -> list[Figure]:
    figures: list[Figure] = []
    async with cluster(base) as servers:
        frames = _random_frames(blocks, MIB)
        puts = [_putting(servers, 1, [frame]) for frame in frames]
        figures += await _timed(servers, "chunk_put_1MiB", blocks * MIB, puts)
        figures += await _timed(servers, "chunk_get_1MiB", blocks * MIB, [_getting(servers, 1, f) for f in frames])
        begun = time.perf_counter()
        order = servers.sync(2)
        servers.orders[2] = {key: _from_first(each) for key, each in servers.orders[2].items()}
        await servers.until(lambda: servers.complete(2, order))
        figures.append(("chunk_pull", blocks / (time.perf_counter() - begun), "MiB/s"))
        before = _stored(servers.data(3))
        begun = time.perf_counter()
        for at in range(0, small, PACKED * 64):
            count = min(PACKED * 64, small - at)
            packed = _random_frames(count, SMALL_BYTES, seed=at + 1)
            jobs = [_putting(servers, 3, packed[first : first + PACKED]) for first in range(0, count, PACKED)]
            await _at_once(jobs)
        figures.append(("chunk_put_4KiB_packed", small / (time.perf_counter() - begun), "/s"))
        anon = rss_anon_bytes(servers.processes[3].pid) / MIB
        await trio.sleep(6)  # the catalog is committed every five seconds
        figures.append((f"chunk_overhead_of_{small}", (_stored(servers.data(3)) - before) / small - SMALL_BYTES, "B"))
        figures.append((f"chunk_rss_anon_with_{small}", anon, "MiB"))
    return figures


def _from_first(order: api.Order) -> api.Order:
    assert isinstance(order, api.SyncGroup)
    return api.SyncGroup(order.order, order.group, order.groups, order.pg_epoch, (1,))


def _random_frames(count: int, size: int, seed: int = 0) -> list[Frame]:
    chance = Random(seed << 8 | 1)
    unit = bytearray(chance.randbytes(size))
    frames = []
    for number in range(count):
        unit[:16] = chance.randbytes(8) + number.to_bytes(8, "big")
        frames.append((*api.encode_block(bytes(unit)), size))
    return frames


def _putting(servers: Cluster, number: int, frames: Sequence[Frame]) -> Callable[[], Awaitable[None]]:
    async def put() -> None:
        request = api.Put(tuple(api.BlockInfo(name, length) for name, _, length in frames), 1)
        reply = await servers.clients[number].call(request, [frame for _, frame, _ in frames], timeout_s=60)
        assert not any(reply.body.codes), reply.body.codes

    return put


def _getting(servers: Cluster, number: int, frame: Frame) -> Callable[[], Awaitable[None]]:
    async def get() -> None:
        reply = await servers.clients[number].call(api.Get((api.BlockRange(frame[0]),)), timeout_s=60)
        assert not any(reply.body.codes), reply.body.codes

    return get


async def _at_once(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    room = trio.CapacityLimiter(IN_FLIGHT)

    async def one(job: Callable[[], Awaitable[None]]) -> None:
        async with room:
            await job()

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(one, job)


async def _timed(
    servers: Cluster, row: str, size_bytes: int, jobs: Sequence[Callable[[], Awaitable[None]]]
) -> list[Figure]:
    pid = servers.processes[1].pid
    begun, cpu_s = time.perf_counter(), _cpu_s(pid)
    await _at_once(jobs)
    elapsed_s, cpu_s = time.perf_counter() - begun, _cpu_s(pid) - cpu_s
    return [(row, size_bytes / MIB / elapsed_s, "MiB/s"), (f"{row}_cpu", cpu_s / (size_bytes / GIB), "s/GiB")]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_anon_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _stored(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
