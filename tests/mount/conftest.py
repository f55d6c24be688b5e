"""One cluster with a mount for this folder; each test works in a directory of its own on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Cluster, cluster, need_fuse


@pytest.fixture(scope="package")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need_fuse()
    base = tmp_path_factory.mktemp("volume")
    with cluster(base / "data") as made:
        made.mount(base / "a")
        yield made


@pytest.fixture(scope="package")
def second_mount(volume: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume.mount(tmp_path_factory.mktemp("second") / "b")


@pytest.fixture
def work(volume: Cluster, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the mount."""
    path = volume.mounts[0] / request.node.name.replace("/", "_").replace("[", "-").rstrip("]")
    path.mkdir()
    return path
