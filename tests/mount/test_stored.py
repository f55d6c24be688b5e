"""What files cost on the chunk servers: little more than lz4 makes of them, nothing for copies, nothing when gone."""

from __future__ import annotations

import json
import os
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import lz4.block
import pytest

from tests.harness import FUSEFS, Cluster, cluster, need_fuse, run, wait_for

PIECE_BYTES = 64 << 10
TREE_BYTES = 8 << 20
PATIENCE_S = 90.0
FAST = {"metadata": {"gc_interval": "1s"}, "storage": {"quarantine": "1s", "heartbeat_interval": "300ms"}}


@pytest.fixture(name="cluster")
def running(tmp_path: Path) -> Iterator[Cluster]:
    need_fuse()
    with cluster(tmp_path / "cluster", FAST, capacity="1GiB") as made:
        yield made


def texts() -> list[bytes]:
    """Source texts, no two alike, some megabytes of them."""
    found: dict[bytes, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        data = path.read_bytes()
        if len(data) > 4096:
            found[data] = None
        if sum(map(len, found)) > TREE_BYTES:
            break
    return list(found)


def compressed(data: bytes) -> int:
    """What lz4 makes of a file in pieces; one that does not shrink stays as it is."""
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    return sum(min(len(piece), len(lz4.block.compress(piece, store_size=False))) for piece in pieces)


def write(top: Path, datas: list[bytes]) -> None:
    top.mkdir()
    for number, data in enumerate(datas):
        with open(top / str(number), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def test_what_files_cost(cluster: Cluster, tmp_path: Path) -> None:
    mount = cluster.mount(tmp_path / "m")
    datas = texts()
    wanted = sum(map(compressed, datas))
    assert wanted < 0.6 * sum(map(len, datas)), "the texts do not compress: the test has no power"
    empty = cluster.stored_bytes()
    write(mount / "first", datas)
    once = cluster.settled_bytes()
    assert 0.9 * wanted < once - empty <= 1.1 * wanted
    print(f"{(once - empty) / wanted:.3f} times what lz4 makes of it")
    for name in ("second", "third"):
        write(mount / name, datas)
    assert [(mount / "third" / str(at)).read_bytes() for at in range(len(datas))] == datas
    assert cluster.settled_bytes() - once < 0.02 * wanted, "copies of a file cost something"
    run("rm", "-r", *[mount / name for name in ("first", "second", "third")])
    wait_for(lambda: cluster.stored_bytes() <= empty + (64 << 10), PATIENCE_S, "everything to come back")
    report = json.loads(run(FUSEFS, "fsck", cluster.config, "--json").stdout)
    assert report["clean"] and report["blocks"] == 0
    segments = cluster.directory / "storage-1" / "segments"
    wait_for(lambda: sum(p.stat().st_size for p in segments.glob("*.seg")) < wanted, PATIENCE_S, "the disk to be free")


def test_fsck_knows_what_is_still_in_the_log(cluster: Cluster, tmp_path: Path) -> None:
    """Files of a few bytes are durable before their blocks are on any chunk server."""
    mount = cluster.mount(tmp_path / "m")
    end = threading.Event()
    written = 0

    def write_on() -> None:
        nonlocal written
        while not end.is_set():
            write(mount / f"many{written}", [os.urandom(100) for _ in range(50)])
            written += 1

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        wait_for(lambda: written, PATIENCE_S, "the first files")
        for _ in range(3):
            report = json.loads(run(FUSEFS, "fsck", cluster.config, "--json").stdout)
            assert report["clean"], report
            copies_missing = report["blocks"] - report["copies"]
            print(f"{report['blocks']} blocks, {copies_missing} of them in the log only")
    finally:
        end.set()
        writer.join()
