"""Metadata members as real processes: start, fail-over, stop and refusal."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from metadata import api
from node.host.cluster import ClusterConfig, Member, load_cluster, new_cluster_id, save_cluster
from node.host.keys import client_security, create_keys, key_path, load_keys
from node.host.paths import ipc_address
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.wire.errors import Code, FsError
from tests.harness import free_port

ROUNDS = 20 if os.environ.get("LONG") else 3


def configure(directory: Path, members: int, transport: str = "ipc") -> Path:
    """Write a cluster.toml, and keys where they are needed."""
    path = directory / "cluster.toml"
    entries = []
    clients: tuple[str, ...] = ()
    for number in range(1, members + 1):
        name = f"metadata-{number}"
        if transport == "ipc":
            addresses = ipc_address(directory, name), ipc_address(directory, f"{name}-peer")
            public_key = ""
        else:
            addresses = f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
            public_key = create_keys(key_path(path, name)).public.decode()
        entries.append(
            Member(id=number, name=name, address=addresses[0], peer_address=addresses[1], public_key=public_key)
        )
    if transport == "tcp":
        clients = (create_keys(key_path(path, "client")).public.decode(),)
    save_cluster(
        path,
        ClusterConfig(
            cluster_id=new_cluster_id(),
            transport="ipc" if transport == "ipc" else "tcp",
            members=tuple(entries),
            clients=clients,
        ),
    )
    return path


class Members:
    """The processes of a cluster without chunk servers, and a client of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = load_cluster(path)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.connections: dict[int, Connection] = {}
        self.session = 0
        self.sequence = 0

    def command(self, number: int) -> list[str]:
        return [sys.executable, "-m", "metadata.server", "--cluster", str(self.path), "--name", f"metadata-{number}"]

    def start(self, *numbers: int) -> None:
        for number in numbers or [member.id for member in self.config.members]:
            with open(self.path.parent / f"{number}.log", "ab") as log:
                self.processes[number] = subprocess.Popen(self.command(number), stderr=log, stdin=subprocess.DEVNULL)

    def refused(self, number: int) -> tuple[int, str]:
        """Start a member that is expected to refuse: its exit code, and its only line."""
        done = subprocess.run(self.command(number), capture_output=True, text=True, timeout=30)
        lines = [line for line in done.stderr.splitlines() if line.startswith("fusefs-meta: ")]
        assert "Traceback" not in done.stderr and len(lines) == 1, done.stderr
        return done.returncode, lines[0]

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()

    async def call(self, number: int, request: msgspec.Struct, timeout_s: float = 1.0) -> Any:
        return (await self.connections[number].call(request, timeout_s=timeout_s)).body

    async def ask(self, request: msgspec.Struct) -> Any:
        """Send a request to whoever leads, the same one again until it is answered."""
        target = 0
        with trio.fail_after(60):
            while True:
                up = [number for number, connection in self.connections.items() if connection.connected]
                if up:
                    target = target if target in up else up[0]
                    try:
                        return await self.call(target, request)
                    except FsError as error:
                        if error.code is Code.LEASES_GONE:
                            request = msgspec.structs.replace(request, lease_term=error.hint)
                            continue
                        if not error.retryable and error.code is not Code.TIMEOUT:
                            raise
                        target = error.hint or up[(up.index(target) + 1) % len(up)]
                await trio.sleep(0.01)

    async def status(self, number: int) -> api.MemberStatus:
        report: api.StatusReply = await self.call(number, api.GetStatus(), 30.0)
        return report.status

    async def leader(self) -> int:
        with trio.fail_after(60):
            while True:
                for number, connection in self.connections.items():
                    if connection.connected:
                        report = await self.call(number, api.GetStatus(), 30.0)
                        if report.status.role == "leader" and report.volume is not None:
                            return number
                await trio.sleep(0.02)

    async def agreed(self, leader: int) -> None:
        """Wait until every member follows ``leader``."""
        with trio.fail_after(60):
            for number, connection in self.connections.items():
                while True:
                    if connection.connected and (await self.status(number)).leader == leader:
                        break
                    await trio.sleep(0.02)

    async def make(self, name: bytes) -> None:
        if not self.session:
            self.session = (await self.ask(api.OpenSession(os.urandom(16), "host", "/mnt", "test"))).session
        self.sequence += 1
        op = api.Make(1, name, 0o100644, 0, 0)
        reply = await self.ask(api.Submit(self.session, self.sequence, self.sequence, (op,), lease_term=1))
        assert isinstance(reply.results[0], api.Made) and not reply.results[0].existed, reply

    async def names(self) -> list[bytes]:
        found: list[bytes] = []
        end = False
        while not end:
            query = api.ReadDir(1, found[-1] if found else b"", 1000, False)
            (page,) = (await self.ask(api.Read(self.session, (query,), lease_term=1))).results
            found.extend(entry.name for entry in page.entries)
            end = page.end
        return found


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Members]:
    """All members started, with connections; whatever is left of them is ended afterwards."""
    members = Members(path)
    keys = load_keys(key_path(path, "client")) if members.config.transport == "tcp" else None
    members.start()
    try:
        async with Transport() as transport, trio.open_nursery() as nursery:
            for member in members.config.members:
                connection = members.connections[member.id] = Connection(
                    transport,
                    member.address,
                    api.CATALOGUE,
                    cluster_id=members.config.cluster_id_bytes,
                    security=client_security(members.config, keys, member.public_key),
                )
                await nursery.start(connection.run)
            yield members
            nursery.cancel_scope.cancel()
    finally:
        for process in members.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_three_members_serve_and_stop_in_order(tmp_path: Path, transport: str) -> None:
    async with running(configure(tmp_path, 3, transport)) as members:
        for number in range(10):
            await members.make(b"%d" % number)
        leader = await members.leader()
        for number in [leader, *(n for n in (1, 2, 3) if n != leader)]:
            members.processes[number].terminate()
            assert await trio.to_thread.run_sync(members.processes[number].wait, 60) == 0
        members.start()
        assert len(await members.names()) == 10


async def test_leaders_are_killed_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    async with running(configure(tmp_path, 3)) as members:
        await members.make(b"first")
        acknowledged = {b"first"}
        pauses = []
        for number in range(ROUNDS):
            leader = await members.leader()
            for _ in range(20):
                name = b"%d" % len(acknowledged)
                await members.make(name)
                acknowledged.add(name)
            await members.agreed(leader)
            members.kill(leader)
            began_s = trio.current_time()
            name = b"after-%d" % number
            await members.make(name)
            pauses.append(trio.current_time() - began_s)
            acknowledged.add(name)
            members.start(leader)
        assert set(await members.names()) == acknowledged
        pauses.sort()
        print(f"from kill -9 of the leader to the next acknowledged create: median {pauses[len(pauses) // 2]:.3f} s")


async def test_a_stopped_leader_is_replaced_and_disturbs_nobody_when_it_wakes(tmp_path: Path) -> None:
    async with running(configure(tmp_path, 3)) as members:
        await members.make(b"a")
        old = await members.leader()
        members.processes[old].send_signal(signal.SIGSTOP)
        stopped = members.connections.pop(old)
        await members.make(b"b")
        new = await members.leader()
        term = (await members.status(new)).term
        members.connections[old] = stopped
        members.processes[old].send_signal(signal.SIGCONT)
        await members.agreed(new)
        for _ in range(20):
            await members.make(b"%d" % members.sequence)
            await trio.sleep(0.05)
        assert (await members.status(new)).term == term and (await members.status(new)).role == "leader"


async def test_one_member_survives_kill_9(tmp_path: Path) -> None:
    async with running(configure(tmp_path, 1)) as members:
        acknowledged: list[bytes] = []
        for _ in range(ROUNDS):
            for _ in range(20):
                acknowledged.append(b"%d" % len(acknowledged))
                await members.make(acknowledged[-1])
            members.kill(1)
            members.start(1)
        assert set(await members.names()) == set(acknowledged)


async def test_a_wiped_member_is_refused(tmp_path: Path) -> None:
    async with running(configure(tmp_path, 3)) as members:
        await members.make(b"a")
        victim = await members.leader()
        members.kill(victim)
        shutil.rmtree(tmp_path / f"metadata-{victim}")
        code, line = await trio.to_thread.run_sync(members.refused, victim)
        assert code == 7 and "under a new one" in line
        await members.make(b"b")


def change_cluster(members: Members) -> str:
    save_cluster(members.path, msgspec.structs.replace(members.config, cluster_id="f" * 32))
    return "belongs to cluster"


def newer_config(members: Members) -> str:
    text = members.path.read_text().replace("format = 1", "format = 2")
    members.path.write_text(text)
    return "newer"


def newer_data(members: Members) -> str:
    identity = members.path.parent / "metadata-1" / "IDENTITY"
    identity.write_text(identity.read_text().replace('"format": 1', '"format": 2'))
    return "format 2"


def damaged_log(members: Members) -> str:
    segment = max((members.path.parent / "metadata-1" / "log").glob("*.log"))
    content = bytearray(segment.read_bytes())
    at = content.index(b"first")
    content[at] ^= 1
    segment.write_bytes(content)
    return f"{segment}: damaged at offset"


@pytest.mark.parametrize(
    ("spoil", "code"), [(change_cluster, 7), (newer_config, 7), (newer_data, 7), (damaged_log, 1)]
)
async def test_what_a_member_cannot_serve_it_refuses_in_one_line(
    tmp_path: Path, spoil: Callable[[Members], str], code: int
) -> None:
    async with running(configure(tmp_path, 1)) as members:
        await members.make(b"first")
        await members.make(b"second")
        members.processes[1].terminate()
        members.processes[1].wait(60)
        said = spoil(members)
        found, line = await trio.to_thread.run_sync(members.refused, 1)
        assert (found, said in line) == (code, True), line


async def test_a_directory_and_an_address_are_served_once(tmp_path: Path) -> None:
    async with running(configure(tmp_path, 1, "tcp")) as members:
        await members.make(b"a")
        code, line = await trio.to_thread.run_sync(members.refused, 1)
        assert code == 1 and "is in use by process" in line
        members.processes[1].terminate()
        members.processes[1].wait(60)
        host, port = members.config.members[0].address.removeprefix("tcp://").split(":")
        with socket.create_server((host, int(port))):
            code, line = await trio.to_thread.run_sync(members.refused, 1)
        assert code == 1 and "in use" in line


def test_the_directory_for_sockets_is_short_enough() -> None:
    """A guard of this file: pytest's tmp_path must leave room for a socket's name, or ipc_address moves it."""
    with tempfile.TemporaryDirectory() as directory:
        assert ipc_address(Path(directory), "metadata-1-peer").startswith("ipc://")
