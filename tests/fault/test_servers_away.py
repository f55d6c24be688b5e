"""Servers are away for longer than a lease while a mount that lives has copied files in: nothing of them is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.wire.limits import LEASE_MARGIN_S, SESSION_LEASE_S
from tests.harness import Cluster, need_fuse
from tests.harness import cluster as running

pytestmark = pytest.mark.root

AWAY_S = SESSION_LEASE_S + LEASE_MARGIN_S + 2.0
FILES = 8
SIZE = 100_000  # too much to travel in the log


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Cluster, Path, Path]]:
    need_fuse()
    with running(tmp_path / "data") as made:
        yield made, made.mount(tmp_path / "a"), made.mount(tmp_path / "b")


def content(i: int) -> bytes:
    return bytes([i + 1]) * SIZE


def copy_in(top: Path) -> None:
    """Programs are told that it is done; what is written is neither synced nor on any server."""
    for i in range(FILES):
        (top / f"f{i}").write_bytes(content(i))


def own_directory(mount: Path, name: str) -> Path:
    top = mount / name
    top.mkdir()
    for i in range(3):
        (top / f"before{i}").touch()
    time.sleep(0.5)
    return top


def check(*tops: Path) -> None:
    for top in tops:
        assert [(top / f"f{i}").read_bytes() == content(i) for i in range(FILES)] == [True] * FILES, top


def test_who_looks_waits_for_chunk_servers_that_are_stopped(two: tuple[Cluster, Path, Path]) -> None:
    cluster, a, b = two
    top = own_directory(a, "d")
    pid = cluster.server_pids()["storage-1"]
    os.kill(pid, signal.SIGSTOP)
    seen: list[object] = []

    def look() -> None:
        try:
            seen.append((b / "d" / "f0").stat().st_size)
        except OSError as error:
            seen.append(error)

    viewer = threading.Thread(target=look)
    try:
        copy_in(top)
        viewer.start()
        time.sleep(AWAY_S)
        assert not seen, "a name is shown with its data"
    finally:
        os.kill(pid, signal.SIGCONT)
        viewer.join()
    assert seen == [SIZE]
    check(b / "d", top)


def test_a_restart_of_all_servers_one_after_the_other(two: tuple[Cluster, Path, Path]) -> None:
    """The metadata service is there again long before the chunk server; others are served meanwhile."""
    cluster, a, b = two
    top, other = own_directory(a, "d"), own_directory(b, "e")
    pids = cluster.server_pids()
    cluster.kill(pids["storage-1"])
    copy_in(top)
    cluster.kill(pids["metadata-1"])
    cluster.up("--only", "metadata-1")
    end = time.monotonic() + AWAY_S
    number = 0
    while time.monotonic() < end:
        (other / f"n{number}").mkdir()
        assert len(os.listdir(other)) == 4 + number
        number += 1
        time.sleep(0.5)
    cluster.up("--only", "storage-1")
    check(b / "d", top)
