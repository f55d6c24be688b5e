"""A cluster whose servers and mounts are on hosts of their own: network namespaces that can be cut off."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import FUSEFS, Cluster, run
from tests.netns import Network, network

OPERATOR = "op"  # the host where commands are given
MOUNTS = ("c1", "c2")
PORT = 7000


class Wired(Cluster):
    """``host``: where each server is. The first mounts have hosts of their own, others the operator's."""

    def __init__(
        self, directory: Path, net: Network, host: Mapping[str, str], operator: str = OPERATOR, **flags: str | int
    ) -> None:
        super().__init__(directory, transport="tcp", **flags)
        self.net = net
        self.host = dict(host)
        self.operator = operator
        self.mounted: dict[Path, str] = {}

    def create(self) -> None:
        told = [f"--address={name}={self.net.address[host]}:{PORT}" for name, host in self.host.items()]
        run(FUSEFS, "up", self.directory, *self.flags, *told, "--no-start")

    def up(self, *extra: str) -> None:
        for name in self.host:
            if name not in self.server_pids():
                self.start(name)

    def start(self, name: str) -> None:
        where = self.inside(self.host[name], name)
        run(*where, FUSEFS, "up", self.directory, "--only", name, "--detach", env=self.environment(name))

    def mount(self, path: Path, *options: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        host = self.host_of(path)
        run(*self.inside(host, host), FUSEFS, "mount", self.config, path, *options, env=self.environment(host))
        if path not in self.mounts:
            self.mounts.append(path)
        return path

    def inside(self, host: str, name: str) -> list[str]:
        """The start of a command line that starts what has this name."""
        return self.net.inside(host)

    def environment(self, name: str) -> dict[str, str] | None:
        return None

    def host_of(self, path: Path) -> str:
        """Where a mount is, or will be."""
        if path not in self.mounted:
            self.mounted[path] = MOUNTS[len(self.mounted)] if len(self.mounted) < len(MOUNTS) else self.operator
        return self.mounted[path]

    def status(self) -> dict[str, Any]:
        return self.status_from(self.operator)

    def status_from(self, host: str) -> dict[str, Any]:
        done = self.command_from(host, "status", self.config, "--json")
        return json.loads(done.stdout) if done.stdout.strip() else {"health": "down", "members": []}

    def leader(self) -> str | None:
        leaders = [str(member["name"]) for member in self.status()["members"] if member["role"] == "leader"]
        return leaders[0] if leaders else None

    def command(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.command_from(self.operator, *words)

    def command_from(self, host: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*self.net.inside(host), FUSEFS, *words, check=False)


def hosts(count: int) -> dict[str, str]:
    """Servers, and the hosts that they are on."""
    return {f"{kind}-{n}": f"{kind[0]}{n}" for kind in ("metadata", "storage") for n in range(1, count + 1)}


@contextmanager
def wired(directory: Path, count: int) -> Iterator[Wired]:
    """A running cluster of ``count`` members and as many chunk servers that is gone afterwards, and its network."""
    with network(*hosts(count).values(), *MOUNTS, OPERATOR) as net:
        made = Wired(directory, net, hosts(count), members=count, servers=count, replicas=count)
        try:
            made.create()
            made.up()
            yield made
        finally:
            net.heal()
            made.clean()
