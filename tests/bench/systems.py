"""What is measured: the filesystem, a plain directory and bindfs, each as a directory that can be made cold."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.harness import Cluster, rss_anon_bytes, run


def drop_caches() -> None:
    """Write everything out and empty the kernel's caches, so that the next access is cold."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Plain:
    """A directory of the disk below: the native filesystem."""

    name = "plain"

    def __init__(self, base: Path) -> None:
        self.top = base / "plain"
        self.top.mkdir()

    def cold(self) -> None:
        drop_caches()

    def pids(self) -> list[int]:
        """Its processes; of the kernel's own work there are none."""
        return []

    def rss_anon_bytes(self) -> int:
        return sum(map(rss_anon_bytes, self.pids()))

    def close(self) -> None:
        pass


class Bindfs(Plain):
    """A FUSE filesystem in C that passes every call to a plain directory: what FUSE itself costs."""

    name = "bindfs"

    def __init__(self, base: Path) -> None:
        self.below = base / "bindfs-below"
        self.below.mkdir()
        self.top = base / "bindfs"
        self.top.mkdir()
        self._mount()

    def _mount(self) -> None:
        run("bindfs", self.below, self.top)

    def cold(self) -> None:
        run("umount", self.top)
        drop_caches()
        self._mount()

    def close(self) -> None:
        subprocess.run(["umount", str(self.top)], capture_output=True)


class Fusefs(Plain):
    """A cluster on this machine and one mount of it."""

    name = "fusefs"

    def __init__(self, base: Path, **flags: str | int) -> None:
        self.top = base / "fusefs"
        self.cluster = Cluster(base / "cluster", **flags)
        try:
            self.cluster.up()
            self.cluster.mount(self.top)
        except BaseException:
            self.cluster.clean()
            raise

    def cold(self) -> None:
        self.cluster.umount(self.top)
        drop_caches()
        self.cluster.mount(self.top)

    def pids(self) -> list[int]:
        return self.cluster.pids()

    def close(self) -> None:
        self.cluster.clean()
