"""Clusters of real processes in a directory of the test's own; nothing of them is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Cluster, need_fuse


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that is not up yet; the test brings it up as it likes."""
    made = Cluster(tmp_path / "d")
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One running cluster for a whole module, for tests that leave it as it was."""
    made = Cluster(tmp_path_factory.mktemp("running") / "d")
    try:
        made.up()
        yield made
    finally:
        made.clean()


@pytest.fixture
def mounted(running: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A mount of the running cluster."""
    need_fuse()
    path = running.mount(tmp_path / "mnt")
    yield path
    if path in running.mounts:
        running.umount(path)
