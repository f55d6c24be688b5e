"""A cluster whose servers and mounts are on hosts of their own: network namespaces that can be cut off."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import FUSEFS, Cluster, run
from tests.netns import Network, network

OPERATOR = "op"  # the host where commands are given
MOUNTS = ("c1", "c2")
PORT = 7000


class Wired(Cluster):
    """``count`` members and as many chunk servers; the first mounts have hosts of their own, others the operator's."""

    def __init__(self, directory: Path, net: Network, count: int) -> None:
        super().__init__(directory, members=count, servers=count, replicas=count, transport="tcp")
        self.net = net
        self.host = hosts(count)
        self._mounted: dict[Path, str] = {}

    def create(self) -> None:
        told = [f"--address={name}={self.net.address[host]}:{PORT}" for name, host in self.host.items()]
        run(FUSEFS, "up", self.directory, *self.flags, *told, "--no-start")

    def up(self, *extra: str) -> None:
        for name in self.host:
            if name not in self.server_pids():
                self.start(name)

    def start(self, name: str) -> None:
        run(*self.net.inside(self.host[name]), FUSEFS, "up", self.directory, "--only", name, "--detach")

    def mount(self, path: Path, *options: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        run(*self.net.inside(self.host_of(path)), FUSEFS, "mount", self.config, path, *options)
        if path not in self.mounts:
            self.mounts.append(path)
        return path

    def host_of(self, path: Path) -> str:
        """Where a mount is, or will be."""
        if path not in self._mounted:
            self._mounted[path] = MOUNTS[len(self._mounted)] if len(self._mounted) < len(MOUNTS) else OPERATOR
        return self._mounted[path]

    def status(self) -> dict[str, Any]:
        done = self.command("status", self.config, "--json")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def command(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*self.net.inside(OPERATOR), FUSEFS, *words, check=False)


def hosts(count: int) -> dict[str, str]:
    """Servers, and the hosts that they are on."""
    return {f"{kind}-{n}": f"{kind[0]}{n}" for kind in ("metadata", "storage") for n in range(1, count + 1)}


@contextmanager
def wired(directory: Path, count: int) -> Iterator[Wired]:
    """A running cluster that is gone afterwards, and its network."""
    with network(*hosts(count).values(), *MOUNTS, OPERATOR) as net:
        made = Wired(directory, net, count)
        try:
            made.create()
            made.up()
            yield made
        finally:
            net.heal()
            made.clean()
