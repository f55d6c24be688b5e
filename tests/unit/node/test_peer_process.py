"""What only a peer in another process can show: it is stopped, killed, started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from node.rpc import Connection, Transport
from node.wire.errors import Code, FsError
from node.wire.limits import HEARTBEAT_TIMEOUT_S
from tests.harness import free_port
from tests.unit.node.echo_process import CATALOGUE, CLUSTER, Echo, EchoReply, Forget


@contextlib.asynccontextmanager
async def peer(address: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # noqa: ASYNC220  wanted: a handle that outlives cancellation
        [sys.executable, "-m", "tests.unit.node.echo_process", address], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await trio.to_thread.run_sync(process.stdout.readline) == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "ipc":
        return f"ipc://{tmp_path}/s.sock"
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
async def connection(address: str, nursery: trio.Nursery) -> AsyncIterator[Connection]:
    async with Transport(insecure_tcp=True) as transport, trio.open_nursery() as life:
        connection = Connection(transport, address, CATALOGUE, cluster_id=CLUSTER)
        await life.start(connection.run)
        yield connection
        life.cancel_scope.cancel()


async def connected(connection: Connection) -> None:
    with trio.fail_after(30):
        await connection.wait_connected()


async def test_a_stopped_peer_ends_in_a_timeout_at_the_deadline(address: str, connection: Connection) -> None:
    async with peer(address) as process:
        await connected(connection)
        await connection.call(Echo(1))
        process.send_signal(signal.SIGSTOP)
        start = trio.current_time()
        with pytest.raises(FsError) as caught:
            await connection.call(Echo(2), timeout_s=0.5)
        assert caught.value.code == Code.TIMEOUT
        assert 0.49 < trio.current_time() - start < 20
        process.send_signal(signal.SIGCONT)
        assert (await connection.call(Echo(3))).body == EchoReply(3)


async def test_a_killed_peer_fails_requests_at_once_and_its_successor_serves(
    address: str, connection: Connection
) -> None:
    caught: list[FsError] = []

    async def ask() -> None:
        try:
            await connection.call(Forget())
        except FsError as error:
            caught.append(error)

    async with trio.open_nursery() as callers:
        async with peer(address) as process:
            await connected(connection)
            await connection.call(Echo(1))
            first = connection.peer_incarnation
            callers.start_soon(ask)
            await connection.call(Echo(2))
            start = trio.current_time()
            process.kill()
    assert caught[0].code == Code.UNREACHABLE
    assert trio.current_time() - start < HEARTBEAT_TIMEOUT_S
    async with peer(address):
        await connected(connection)
        assert (await connection.call(Echo(3))).body == EchoReply(3)
        assert connection.peer_incarnation != first
