"""Hosts of our own: network namespaces joined by a bridge, cut apart and joined again by routes.

Only addresses inside these namespaces are ever used (198.18.0.0/15 is set aside for such tests), nothing reaches the
machine's own network, and everything is removed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.harness import run


class Network:
    """Named hosts on one switch. ``prefix`` keeps parallel tests apart; the kernel allows 15 bytes for a link."""

    def __init__(self, names: list[str]) -> None:
        self.prefix = f"fx{os.getpid() % 100_000}"
        self.address = {name: f"198.18.{os.getpid() % 250}.{i + 1}" for i, name in enumerate(names)}
        self.hub = f"{self.prefix}-hub"

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def create(self) -> None:
        run("ip", "netns", "add", self.hub)
        run("ip", "-n", self.hub, "link", "add", "switch", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "switch", "up")
        for i, (name, address) in enumerate(self.address.items()):
            here = self.namespace(name)
            run("ip", "netns", "add", here)
            run("ip", "-n", here, "link", "set", "lo", "up")
            run("ip", "-n", self.hub, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", here)
            run("ip", "-n", self.hub, "link", "set", f"port{i}", "master", "switch", "up")
            run("ip", "-n", here, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", here, "link", "set", "eth0", "up")

    def remove(self) -> None:
        for name in (*self.address, "hub"):
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)

    def inside(self, name: str) -> list[str]:
        """The start of a command line that runs in a host; only the network is its own, mounts are shared."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(name)}"]

    def block(self, source: str, target: str) -> None:
        """One way: packets from ``source`` to ``target`` vanish."""
        run("ip", "-n", self.namespace(source), "route", "replace", "blackhole", f"{self.address[target]}/32")

    def cut(self, one: str, other: str) -> None:
        """Both ways."""
        self.block(one, other)
        self.block(other, one)

    def isolate(self, name: str) -> None:
        for other in self.address:
            if other != name:
                self.cut(name, other)

    def heal(self) -> None:
        """Every packet arrives again."""
        for name in self.address:
            run("ip", "-n", self.namespace(name), "route", "flush", "type", "blackhole", check=False)


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    """Hosts that are gone afterwards."""
    made = Network(list(names))
    made.remove()
    try:
        made.create()
        yield made
    finally:
        made.remove()
        assert not Path(f"/run/netns/{made.hub}").exists()
