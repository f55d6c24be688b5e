"""Start the servers of one directory and wait until the cluster serves; then watch them until they are to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator

import trio

from fusefs.cli.create import split_address
from fusefs.cli.layout import Layout
from fusefs.cli.output import Failure, Output, Progress
from fusefs.cli.processes import Child, Notifications, start
from fusefs.cli.query import Answers, ask_all
from node.host.cluster import ClusterConfig
from node.host.exitcodes import Exit
from node.rpc.security import CurveKeys

READY_S = 60.0  # without any sign of progress
JOIN_S = 10.0
ASK_EVERY_S = 0.1
ASK_S = 1.0


def check_not_running(layout: Layout, names: list[str]) -> None:
    """Raise Failure when one of these servers lives: then it is not for us to start it again."""
    living = {name: pid for name, pid in layout.living().items() if name in names}
    if living:
        who = ", ".join(f"{name} is process {pid}" for name, pid in living.items())
        dead = [name for name in names if name not in living]
        hint = f"start the rest with --only {dead[0]}" if dead else f"stop it with: fusefs down {layout.directory}"
        raise Failure(f"{layout.directory} is up already ({who}); {hint}")


def check_ports(config: ClusterConfig, names: list[str]) -> None:
    """Raise Failure naming the first tcp address that another program has."""
    listening = [(member.name, member.address) for member in config.members]
    listening += [(member.name, member.peer_address) for member in config.members]
    listening += [(server.name, server.address) for server in config.servers]
    for name, address in listening:
        if name in names and address.startswith("tcp://"):
            _check_port(name, address.removeprefix("tcp://"))


def _check_port(name: str, address: str) -> None:
    host, port = split_address(address)
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, port))
        except OSError as error:
            raise Failure(f"{name}: cannot listen on {address}: {error.strerror}; "
                          "end the program that has it, or change the address in cluster.toml") from None


class Cluster:
    """The servers that this command starts, and what it knows of them."""

    def __init__(self, layout: Layout, config: ClusterConfig, keys: CurveKeys | None) -> None:
        self._layout = layout
        self._config = config
        self._keys = keys
        self.children: dict[int, Child] = {}

    async def start(self, names: list[str]) -> None:
        """Start these servers and return when each has said that it serves. On failure all of them are stopped."""
        notifications = Notifications()
        try:
            with Progress("starting") as progress:
                for name in names:
                    child = start(self._layout, name, notifications.address)
                    self.children[child.process.pid] = child
                await self._until_ready(notifications, progress)
        except BaseException:
            self.stop_started()
            raise
        finally:
            notifications.close()

    async def _until_ready(self, notifications: Notifications, progress: Progress) -> None:
        deadline = time.monotonic() + READY_S
        async with trio.open_nursery() as nursery:
            for child in self.children.values():
                nursery.start_soon(_fail_when_ended, child)
            while waiting := [child for child in self.children.values() if not child.ready]:
                progress.update("waiting for " + ", ".join(_with_status(child) for child in waiting))
                allowed = max(deadline, *(child.extended_until for child in waiting)) - time.monotonic()
                with trio.move_on_after(max(allowed, 0)) as patience:
                    await notifications.receive(self.children)
                    deadline = time.monotonic() + READY_S
                if patience.cancelled_caught:
                    child = waiting[0]
                    raise Failure(f"{child.name} has not become ready; its log is {child.log}", Exit.FAILED)
            nursery.cancel_scope.cancel()

    async def wait_serving(self, *, whole: bool) -> None:
        """Return when a leader is elected and, with ``whole``, every configured chunk server is registered."""
        deadline = trio.current_time() + READY_S
        with Progress("waiting for a leader") as progress:
            async with trio.open_nursery() as nursery:
                for child in self.children.values():
                    nursery.start_soon(_fail_when_ended, child)
                while missing := self._missing(await ask_all(self._config, self._keys, ASK_S), whole):
                    progress.update(f"waiting for {missing}")
                    if trio.current_time() > deadline:
                        where = self._layout.directory / "log"
                        raise Failure(f"still waiting for {missing} after {READY_S:g}s; see {where}", Exit.UNREACHABLE)
                    await trio.sleep(ASK_EVERY_S)
                nursery.cancel_scope.cancel()

    async def wait_joined(self, name: str) -> None:
        """Return when the leader knows that server ``name`` lives, or when there is no leader yet to know it.

        The first of several hosts to start cannot wait for the others: a member that is ready has done its part.
        """
        with trio.move_on_after(JOIN_S):
            while True:
                answers = await ask_all(self._config, self._keys, ASK_S)
                known = {record.name for record in answers.leader.servers if record.alive} if answers.leader else None
                if known is None or name in known or all(name != server.name for server in self._config.servers):
                    return
                await trio.sleep(ASK_EVERY_S)

    def _missing(self, answers: Answers, whole: bool) -> str:
        """Name what the cluster lacks to serve, "" when nothing."""
        if answers.refusal is not None:
            raise answers.refusal
        leader = answers.leader
        if leader is None:
            return "a leader"
        registered = {record.name for record in leader.servers if record.alive}
        wanted = [server.name for server in self._config.servers if server.name not in registered]
        return ", ".join(wanted) if whole else ""

    def stop_started(self) -> None:
        """End what was started here, waiting for each: the start has failed."""
        for child in self.children.values():
            child.process.terminate()
        for child in self.children.values():
            child.process.wait()
            self._layout.pid(child.name).unlink(missing_ok=True)

    @property
    def failed(self) -> bool:
        """Whether any server ended otherwise than in order."""
        return any(child.process.poll() for child in self.children.values())

    async def watch(self, output: Output) -> None:
        """Report each server that ends; return when none is left."""
        async with trio.open_nursery() as nursery:
            for child in self.children.values():
                nursery.start_soon(self._report_end, child, output)

    async def _report_end(self, child: Child, output: Output) -> None:
        code = await _wait_ended(child)
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
            output.warning(f"{child.name} {how}; see {child.log}; start it again: "
                           f"fusefs up {self._layout.directory} --only {child.name}")


async def _wait_ended(child: Child) -> int:
    await trio.lowlevel.wait_readable(child.pidfd)
    return child.process.wait()


async def _fail_when_ended(child: Child) -> None:
    code = await _wait_ended(child)
    said = child.last_words().removeprefix("fusefs-meta: ").removeprefix("fusefs-chunk: ")
    said = said or "ended without a word"
    raise Failure(f"{child.name}: {said} (log: {child.log})", code if code > 0 else Exit.FAILED)


def _with_status(child: Child) -> str:
    return f"{child.name} ({child.status})" if child.status else child.name


@contextlib.asynccontextmanager
async def stop_signals() -> AsyncIterator[trio.Event]:
    """Yield an event that SIGINT and SIGTERM set."""
    asked = trio.Event()

    async def listen() -> None:
        async for _ in signals:
            asked.set()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            yield asked
            nursery.cancel_scope.cancel()
