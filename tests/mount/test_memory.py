"""What a mount remembers does not grow with what was touched."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.mount.pruning import INODE_BYTES
from tests.harness import Cluster, cluster, need_fuse, profile, wait_for

FILES = 2000
INODES_MAX = 300
KERNEL = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose mounts may know few inodes."""
    need_fuse()
    with cluster(tmp_path / "data") as made:
        with open(made.config, "a") as config:
            config.write(f'\n[client]\nkernel_inodes_bytes = "{INODES_MAX * INODE_BYTES}"\n')
        made.mount(tmp_path / "a")
        yield made


def inodes(path: Path) -> int:
    return int(profile(path)["statistics"]["mount.kernel.inodes"])


@pytest.mark.skipif(KERNEL < (6, 18), reason="Linux 6.18 is the first that can be asked to forget inodes")
def test_inodes_that_nobody_uses_are_forgotten(small: Cluster) -> None:
    top = small.mounts[0] / "t"
    top.mkdir()
    for i in range(FILES):
        (top / f"f{i}").write_text(str(i))
    kept = [open(top / f"f{i}") for i in range(20)]
    try:
        assert sum(1 for path in top.iterdir() if path.stat().st_size) == FILES
        wait_for(lambda: inodes(small.mounts[0]) <= INODES_MAX, 30, "the kernel to let go")
        assert [file.read() for file in kept] == [str(i) for i in range(20)]
        assert all((top / f"f{i}").read_text() == str(i) for i in range(0, FILES, 7))
        (top / "f0").unlink()
        assert kept[0].seek(0) == 0 and kept[0].read() == "0", "removed but open"
    finally:
        for file in kept:
            file.close()
