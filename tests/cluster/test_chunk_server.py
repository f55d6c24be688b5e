"""The chunk server as a process: start, serve, stop, die and start again, and every way in which it refuses to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from node.host.cluster import ChunkServer, ClusterConfig, Member, load_cluster, new_cluster_id, save_cluster
from node.host.lock import lock_holder
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.server import Call, Server
from storage import api
from tests.unit.storage.stores import plain
from tests.unit.storage.test_service import get, send


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    member = Member(id=1, name="metadata-1", address="ipc://run/m.sock", peer_address="ipc://run/p.sock")
    server = ChunkServer(name="storage-1", address="ipc://run/s.sock", rack="r7")
    config = ClusterConfig(cluster_id=new_cluster_id(), transport="ipc", members=(member,), servers=(server,))
    save_cluster(tmp_path / "cluster.toml", config)
    return tmp_path / "cluster.toml"


@contextmanager
def running(cluster: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "storage.server", "--cluster", str(cluster), "--name", "storage-1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@asynccontextmanager
async def connected(config: ClusterConfig) -> AsyncIterator[Connection]:
    async with Transport() as transport, trio.open_nursery() as nursery:
        address = config.servers[0].address
        client = Connection(transport, address, api.CATALOGUE, cluster_id=config.cluster_id_bytes)
        await nursery.start(client.run)
        with trio.fail_after(20):
            await client.wait_connected()
        yield client
        nursery.cancel_scope.cancel()


def refuse(cluster: Path) -> tuple[int, str]:
    """Start a server that must not start; return its exit code and what it said."""
    command = [sys.executable, "-m", "storage.server", "--cluster", str(cluster), "--name", "storage-1"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=30)
    return done.returncode, done.stderr.decode()


async def test_kill_and_start_again(cluster: Path) -> None:
    config = load_cluster(cluster)
    acknowledged: list[bytes] = []
    with running(cluster) as process:
        async with connected(config) as client:
            for seed in range(30):
                assert (await send(client, [plain(seed, 20_000)])).codes == (0,)
                acknowledged.append(plain(seed, 20_000))
    with running(cluster) as process:
        async with connected(config) as client:
            found = await get(client, *(api.BlockRange(api.name_block(data)) for data in acknowledged))
            assert found == acknowledged
            status = (await client.call(api.GetServerStatus())).body
            assert (status.blocks, status.rack, status.name, status.state) == (30, "r7", "storage-1", "serving")
            process.send_signal(signal.SIGUSR1)
            assert (await client.call(api.GetServerStatus())).body.blocks == 30, "it tells and lives on"
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = await trio.to_thread.run_sync(process.stderr.read)
        assert process.wait() == 0, said.decode()
    assert b"30 blocks" in said
    assert b"statistics: " in said
    assert b"Traceback" not in said
    assert lock_holder(cluster.parent / "storage-1" / "lock") is None


async def test_a_second_server_on_the_same_data(cluster: Path) -> None:
    with running(cluster):
        async with connected(load_cluster(cluster)) as client:
            code, said = await trio.to_thread.run_sync(refuse, cluster)
            assert code == 1
            assert "chunk server storage-1 is in use by process" in said
            assert len(said.splitlines()) == 1
            assert (await client.call(api.GetServerStatus())).body.blocks == 0


async def test_data_of_another_cluster(cluster: Path) -> None:
    with running(cluster):
        async with connected(load_cluster(cluster)):
            pass
    save_cluster(cluster, replace(load_cluster(cluster), cluster_id=new_cluster_id()))
    code, said = await trio.to_thread.run_sync(refuse, cluster)
    assert code == 7
    assert "segment 00000001.seg belongs to cluster" in said
    assert len(said.splitlines()) == 1


async def test_data_of_a_newer_version(cluster: Path) -> None:
    with running(cluster):
        async with connected(load_cluster(cluster)):
            pass
    segment = cluster.parent / "storage-1" / "segments" / "00000001.seg"
    data = bytearray(segment.read_bytes())
    data[8] = data[72] = 2
    segment.write_bytes(data)
    code, said = await trio.to_thread.run_sync(refuse, cluster)
    assert code == 7
    assert "has format version 2, this program reads up to 1: use a newer fusefs" in said


@pytest.mark.parametrize("arguments,code", [([], 2), (["--cluster", "x"], 2), (["--cluster", "/no", "--name", "a"], 6)])
def test_usage(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-m", "storage.server", *arguments], stderr=subprocess.PIPE, timeout=30)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


async def test_it_registers(cluster: Path) -> None:
    """A server tells the leader about itself, and takes the number that it is given."""
    config = load_cluster(cluster)
    heard: list[api.Heartbeat] = []
    enough = trio.Event()

    def answer(call: Call) -> None:
        heard.append(call.request)
        call.reply(api.HeartbeatReply(server=7, gc_epoch=3, pg_epoch=5, interval_s=0.1, servers=()))
        if len(heard) == 3:
            enough.set()

    async with Transport() as transport, trio.open_nursery() as nursery:
        leader = Server(transport, config.members[0].address, cluster_id=config.cluster_id_bytes)
        leader.register(api.METADATA_FOR_SERVERS.by_number[0x207], answer)
        await nursery.start(leader.run)
        with running(cluster), trio.fail_after(30):
            await enough.wait()
        nursery.cancel_scope.cancel()
    assert [beat.status.server for beat in heard[:3]] == [0, 7, 7]
    assert [beat.pg_epoch for beat in heard[:3]] == [0, 5, 5]
    assert len({beat.status.uuid for beat in heard}) == 1
    assert heard[0].status.capacity_bytes > 0


def test_files_are_private(cluster: Path) -> None:
    async def start() -> None:
        with running(cluster):
            async with connected(load_cluster(cluster)):
                pass

    trio.run(start)
    data = cluster.parent / "storage-1"
    assert data.stat().st_mode & 0o777 == 0o700
    for directory, _, names in os.walk(data):
        for each in names:
            assert (Path(directory) / each).stat().st_mode & 0o077 == 0, each
