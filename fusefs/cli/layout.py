"""The files of a cluster that lives in one directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.host.cluster import ClusterConfig
from node.host.lock import lock_holder

CONFIG_NAME = "cluster.toml"
MEMBER_PREFIX, SERVER_PREFIX = "metadata-", "storage-"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under DIR, which is absolute."""

    directory: Path

    @property
    def config_path(self) -> Path:
        return self.directory / CONFIG_NAME

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def up_lock(self) -> Path:
        """Held while ``fusefs up`` starts or watches the cluster."""
        return self.run / "up.lock"

    def data(self, name: str) -> Path:
        return self.directory / name

    def lock(self, name: str) -> Path:
        """Held by the process of this name for as long as it lives."""
        return self.data(name) / "lock"

    def log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    def pid(self, name: str) -> Path:
        return self.run / f"{name}.pid"

    def holder(self, name: str) -> int | None:
        """Return the pid of the living process of this name (0: alive, pid unknown), None when there is none."""
        return lock_holder(self.lock(name))

    def living(self) -> dict[str, int]:
        """Return the servers that run here, by name, whatever cluster.toml says."""
        found = {}
        for name in self._data_names():
            holder = self.holder(name)
            if holder is not None:
                found[name] = holder
        return found

    def _data_names(self) -> Iterator[str]:
        for path in sorted(self.directory.glob("*/lock")):
            if path.parent.name.startswith((MEMBER_PREFIX, SERVER_PREFIX)):
                yield path.parent.name


def layout_of(path: str | os.PathLike[str]) -> Layout:
    """Return the layout of a directory that need not exist. Symlinks stay: scripts find processes by the path given."""
    return Layout(Path(os.path.abspath(path)))


def config_path_of(cluster: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a cluster.toml that was named itself or by its directory."""
    path = Path(os.path.abspath(cluster))
    return path / CONFIG_NAME if path.is_dir() else path


def names_of(config: ClusterConfig) -> list[str]:
    """Return the names of all server processes, in the order in which they are started."""
    return [member.name for member in config.members] + [server.name for server in config.servers]
