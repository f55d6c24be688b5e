"""What consensus costs: fail-over, durable mutations, linearizable reads, a million inodes. Prints, never judges.

    python -m tests.bench.failover [--rounds 20] [--seconds 5] [--only failover,consensus] [--million]

Mutations and reads go straight over RPC, one in a request, from one process on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from metadata import api
from node.host.cluster import load_cluster
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.security import Security
from node.wire.errors import Code, FsError
from tests.harness import FUSEFS, Cluster, rss_anon_bytes, run, wait_for

Figure = tuple[str, float, str]
IN_FLIGHT = 64
COMPOUND = 16
SAMPLES = 300
MILLION_DIRECTORIES, MILLION_FILES = 1000, 1000
MIB = 1 << 20
now = time.perf_counter


@dataclass(frozen=True)
class Effort:
    rounds: int = 20
    seconds: float = 5.0


# --- fail-over --------------------------------------------------------------------------------------------------------


def leader_of(cluster: Cluster) -> str:
    """The leader's name, once everything is well."""

    def found() -> str | None:
        status = cluster.status()
        if status["health"] != "healthy" or any(row["lag"] for row in status["members"]):
            return None
        return next((str(row["name"]) for row in status["members"] if row["role"] == "leader"), None)

    name: str = wait_for(found, 60, "a healthy cluster")
    return name


def create_synced(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, b"acknowledged")
    os.fsync(fd)
    os.close(fd)


def failover(base: Path, effort: Effort) -> Iterator[Figure]:
    """From kill -9 of the leader to the next create + fsync that a living mount gets acknowledged."""
    cluster = Cluster(base / "failover", members=3)
    try:
        cluster.up()
        mounts = [cluster.mount(base / "mount-a"), cluster.mount(base / "mount-b")]
        pauses = []
        for number in range(effort.rounds):
            for mount in mounts:
                create_synced(mount / f"before-{number}-{mount.name}")
            leader = leader_of(cluster)
            pid = cluster.server_pids()[leader]
            began = now()
            cluster.kill(pid)
            create_synced(mounts[number % 2] / f"after-{number}")
            pauses.append(now() - began)
            run(FUSEFS, "up", cluster.directory, "--only", leader, "--detach")
        yield "failover_min", min(pauses), "s"
        yield "failover_median", statistics.median(pauses), "s"
        yield "failover_max", max(pauses), "s"
    finally:
        cluster.clean()


# --- consensus --------------------------------------------------------------------------------------------------------


class Client:
    """One session straight at the leader."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.session = 0
        self.sequence = 0
        self.open: dict[int, None] = {}

    async def call(self, request: Any) -> Any:
        while True:
            try:
                return (await self.connection.call(request, timeout_s=30.0)).body
            except FsError as error:
                if error.code not in (Code.OVERLOADED, Code.RETRY):
                    raise
            await trio.sleep(0.01)

    async def register(self) -> None:
        self.session = (await self.call(api.OpenSession(os.urandom(16), "bench", "/", "1"))).session

    async def submit(self, *ops: api.Op) -> tuple[api.Result, ...]:
        self.sequence += 1
        sequence = self.sequence
        self.open[sequence] = None
        reply: api.SubmitReply = await self.call(api.Submit(self.session, sequence, next(iter(self.open)), ops))
        del self.open[sequence]
        return reply.results

    async def make(self, parent: int, name: bytes, mode: int = 0o100644) -> int:
        (result,) = await self.submit(api.Make(parent, name, mode, 0, 0))
        assert isinstance(result, api.Made), result
        return result.attr.ino


@asynccontextmanager
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    """A session with the leader of an ipc cluster."""
    name = leader_of(cluster)
    config = load_cluster(cluster.config)
    async with Transport() as transport, trio.open_nursery() as nursery:
        connection = Connection(
            transport,
            config.member(name).address,
            api.CATALOGUE,
            cluster_id=config.cluster_id_bytes,
            security=Security.plain(),
        )
        await nursery.start(connection.run)
        await connection.wait_connected()
        made = Client(connection)
        await made.register()
        yield made
        nursery.cancel_scope.cancel()


async def rate(depth: int, seconds: float, one: Callable[[int], Any]) -> float:
    """Completed calls of ``one`` a second with ``depth`` under way."""
    count = 0
    end = now() + seconds

    async def work() -> None:
        nonlocal count
        while now() < end:
            count += 1
            await one(count)

    began = now()
    async with trio.open_nursery() as nursery:
        for _ in range(depth):
            nursery.start_soon(work)
    return count / (now() - began)


class Probe:
    """What the machine itself takes to make 256 bytes durable in a file that is written already."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / "probe", os.O_CREAT | os.O_RDWR)
        os.pwrite(self._fd, bytes(256 * SAMPLES), 0)
        os.fsync(self._fd)

    async def __call__(self, number: int) -> None:
        os.pwrite(self._fd, b"x" * 256, 256 * number)
        os.fdatasync(self._fd)
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        os.close(self._fd)


async def latencies(*calls: Callable[[int], Any]) -> list[float]:
    """The median of each, in seconds, one call after the other and all in turns: they meet the same disk and load."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(SAMPLES):
        for one, times in zip(calls, taken, strict=True):
            began = now()
            await one(number)
            times.append(now() - began)
    return [statistics.median(times) for times in taken]


async def _consensus(cluster: Cluster, members: int, effort: Effort) -> list[Figure]:
    async with client(cluster) as own:
        parent = await own.make(1, b"bench", 0o040755)
        figures = []

        async def mutate(number: int) -> None:
            await own.make(parent, b"m%d" % own.sequence)

        async def ask(number: int) -> None:
            await own.call(api.GetStatus(brief=True))

        async def read(number: int) -> None:
            await own.call(api.Read(own.session, (api.GetAttr(parent),)))

        async def compound(number: int) -> None:
            await own.call(api.Read(own.session, (api.GetAttr(parent),) * COMPOUND))

        probe = Probe(cluster.directory)
        disk, trip, alone = await latencies(probe, ask, mutate)
        probe.close()
        tag = f"{members}_member" + ("s" if members > 1 else "")
        figures.append((f"fdatasync_{tag}", disk * 1e6, "us"))
        figures.append((f"round_trip_{tag}", trip * 1e6, "us"))
        figures.append((f"mutation_depth1_{tag}", alone * 1e6, "us"))
        figures.append((f"mutation_depth1_per_fdatasync_and_trip_{tag}", alone / (disk + trip), "x"))
        mutations = await rate(IN_FLIGHT, effort.seconds, mutate)
        figures.append((f"mutations_{IN_FLIGHT}_in_flight_{tag}", mutations, "op/s"))
        figures.append((f"reads_{IN_FLIGHT}_in_flight_{tag}", await rate(IN_FLIGHT, effort.seconds, read), "op/s"))
        compounds = await rate(IN_FLIGHT, effort.seconds, compound) * COMPOUND
        figures.append((f"reads_compound{COMPOUND}_{tag}", compounds, "op/s"))
        return figures


def consensus(base: Path, effort: Effort) -> Iterator[Figure]:
    """One leader with one and with three members: mutations, latency beside the disk's and the wire's own, reads."""
    for members in (1, 3):
        cluster = Cluster(base / f"consensus-{members}", members=members)
        try:
            cluster.up()
            yield from trio.run(_consensus, cluster, members, effort)
        finally:
            cluster.clean()


# --- a million inodes -------------------------------------------------------------------------------------------------


async def _fill(cluster: Cluster) -> None:
    async with client(cluster) as own:
        limit = trio.CapacityLimiter(8)

        async def fill(number: int) -> None:
            async with limit:
                parent = await own.make(1, b"d%04d" % number, 0o040755)
                ops = tuple(api.Make(parent, b"file-%04d" % file, 0o100644, 0, 0) for file in range(MILLION_FILES))
                results = await own.submit(*ops)
                assert all(isinstance(result, api.Made) for result in results)

        async with trio.open_nursery() as nursery:
            for number in range(MILLION_DIRECTORIES):
                nursery.start_soon(fill, number)


def rows(cluster: Cluster) -> dict[str, dict[str, Any]]:
    done = run(FUSEFS, "member", "list", cluster.config, "--json", check=False)
    return {row["name"]: row for row in json.loads(done.stdout)["members"]}


class Background:
    """A mount that creates and syncs while something else happens, and the memory of the members meanwhile."""

    def __init__(self, cluster: Cluster, mount: Path) -> None:
        self.cluster, self.mount = cluster, mount
        self.over = threading.Event()
        self.pauses: list[float] = []
        self.rss_bytes = 0
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        pids = [pid for name, pid in self.cluster.server_pids().items() if name.startswith("metadata-")]
        while not self.over.wait(0.01):
            began = now()
            create_synced(self.mount / f"w{time.time_ns()}")
            self.pauses.append(now() - began)
            self.rss_bytes = max(self.rss_bytes, *map(rss_anon_bytes, pids))

    def __enter__(self) -> Background:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def million(base: Path, effort: Effort) -> Iterator[Figure]:
    """A volume of a million inodes: filling it, a restart, a snapshot to an empty member while serving, memory."""
    cluster = Cluster(base / "million", members=3)
    try:
        cluster.up()
        began = now()
        trio.run(_fill, cluster)
        assert cluster.status()["volume"]["files"] > MILLION_DIRECTORIES * MILLION_FILES
        yield "million_fill_batched", MILLION_DIRECTORIES * MILLION_FILES / (now() - began), "inodes/s"
        leader = leader_of(cluster)
        victim = next(name for name in cluster.server_pids() if name.startswith("metadata-") and name != leader)
        cluster.kill(cluster.server_pids()[victim])
        began = now()
        run(FUSEFS, "up", cluster.directory, "--only", victim, "--detach")
        wait_for(lambda: rows(cluster)[victim]["lag"] == 0, 120, "the restarted member to catch up")
        yield "million_restart", now() - began, "s"
        mount = cluster.mount(base / "mount-million")
        run(FUSEFS, "member", "add", cluster.config, "metadata-4")
        with Background(cluster, mount) as background:
            began = now()
            run(FUSEFS, "up", cluster.directory, "--only", "metadata-4", "--detach")
            wait_for(lambda: rows(cluster)["metadata-4"]["state"] == "replicate", 600, "the snapshot")
            wait_for(lambda: (rows(cluster)["metadata-4"]["lag"] or 0) < 100, 120, "the newcomer to catch up")
            yield "million_snapshot_to_empty", now() - began, "s"
        yield "million_create_fsync_meanwhile_median", statistics.median(background.pauses) * 1e3, "ms"
        yield "million_create_fsync_meanwhile_max", max(background.pauses) * 1e3, "ms"
        highest = [rss_anon_bytes(pid) for name, pid in cluster.server_pids().items() if name.startswith("metadata-")]
        yield "million_rss_anon_of_a_member", max(background.rss_bytes, *highest) / MIB, "MiB"
    finally:
        cluster.clean()


GROUPS: dict[str, Callable[[Path, Effort], Iterator[Figure]]] = {
    "failover": failover,
    "consensus": consensus,
    "million": million,
}


def measure(groups: list[str], effort: Effort) -> Iterator[Figure]:
    """Run groups in a directory of their own, which is gone afterwards."""
    base = Path(tempfile.mkdtemp(prefix="fusefs-bench-", dir="/var/tmp"))
    try:
        for group in groups:
            yield from GROUPS[group](base, effort)
    finally:
        for mount in base.glob("mount-*"):
            subprocess.run(["umount", "-l", str(mount)], capture_output=True)
        shutil.rmtree(base, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.failover")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="failover,consensus")
    parser.add_argument("--million", action="store_true")
    options = parser.parse_args()
    groups = [group for group in GROUPS if group in options.only.split(",") or group == "million" and options.million]
    for row, value, unit in measure(groups, Effort(options.rounds, options.seconds)):
        print(f"{row:55} {value:>14,.4g} {unit}", flush=True)


if __name__ == "__main__":
    main()
