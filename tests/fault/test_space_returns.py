"""Who removes files gets the space back, while others write the same bytes, and whatever is killed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import FUSEFS, LONG, Cluster, cluster, need_fuse, run, seed, wait_for

MIB = 1 << 20
FILES = 50
FILE_BYTES = 4 * MIB
FAST = {"metadata": {"gc_interval": "1s"}, "storage": {"quarantine": "1s", "heartbeat_interval": "500ms"}}

WRITER = r"""
import hashlib, os, sys
top, journal, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

def content(number):
    return hashlib.shake_128(b"block %d" % number).digest(4 << 20)

log = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
turn = 0
while True:
    for number in range(count):
        path = f"{top}/{turn % 2}-{number}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        view = memoryview(content(number))
        while view:
            view = view[os.write(fd, view[: 1 << 20]):]
        os.fsync(fd)
        os.close(fd)
        os.write(log, f"wrote {turn % 2}-{number}\n".encode())
    turn += 1
"""


def content(number: int) -> bytes:
    """What the writer writes, which is what the removed files held."""
    return hashlib.shake_128(b"block %d" % number).digest(FILE_BYTES)


def write(path: Path, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view[:MIB]):]
        os.fsync(file.fileno())


@pytest.fixture(name="cluster")
def running(tmp_path: Path) -> Iterator[Cluster]:
    need_fuse()
    with cluster(tmp_path / "cluster", FAST, capacity="2GiB") as made:
        yield made


def stored(cluster: Cluster) -> int:
    return int(cluster.status()["volume"]["stored_bytes"] or 0)


def on_disk(cluster: Cluster) -> int:
    return sum(path.stat().st_size for path in (cluster.directory / "storage-1" / "segments").glob("*.seg"))


def start_writer(top: Path, journal: Path, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(top), str(journal), str(count)])


def check_written(top: Path, journal: Path, count: int) -> int:
    """Every file that was acknowledged reads as it was written, from the servers."""
    names = {line.split()[1] for line in journal.read_text().splitlines()}
    for name in names:
        number = int(name.split("-")[1])
        data = (top / name).read_bytes()
        assert data == content(number) or len(data) < FILE_BYTES, name  # being written anew when it was stopped
        assert content(number).startswith(data), name
    assert len(names) >= count
    return len(names)


def test_space_returns_beside_a_writer_of_the_same_bytes(cluster: Cluster, tmp_path: Path) -> None:
    mount = cluster.mount(tmp_path / "a")
    other = cluster.mount(tmp_path / "b")
    (mount / "old").mkdir()
    (mount / "new").mkdir()
    for number in range(FILES):
        write(mount / "old" / str(number), content(number))
    before = stored(cluster)
    assert before > 190 * MIB
    journal = tmp_path / "journal"
    writer = start_writer(other / "new", journal, 6)
    try:
        wait_for(lambda: journal.exists() and len(journal.read_text().splitlines()) > 2, 30, "the writer to begin")
        for number in range(FILES):
            (mount / "old" / str(number)).unlink()
        wait_for(lambda: stored(cluster) < 80 * MIB and on_disk(cluster) < 160 * MIB, 60, "space to come back")
        assert writer.poll() is None, "the writer still writes"
        turns = len(journal.read_text().splitlines())
        wait_for(lambda: len(journal.read_text().splitlines()) > turns + 6, 30, "the writer to go on")
    finally:
        writer.kill()
        writer.wait()
    cluster.umount(mount)
    cluster.umount(other)
    fresh = cluster.mount(tmp_path / "c")
    check_written(fresh / "new", journal, 6)
    free = os.statvfs(fresh).f_bavail
    for path in (fresh / "new").iterdir():
        path.unlink()
    report = json.loads(run(FUSEFS, "gc", cluster.config, "--json").stdout)
    assert report["candidates"] == 0
    wait_for(lambda: stored(cluster) < MIB and on_disk(cluster) < 3 * MIB, 60, "everything to come back")
    wait_for(lambda: os.statvfs(fresh).f_bavail > free, 60, "statfs to tell")
    assert json.loads(run(FUSEFS, "gc", cluster.config, "--dry-run", "--json").stdout)["candidates"] == 0
    report = json.loads(run(FUSEFS, "fsck", cluster.config, "--json").stdout)
    assert report["clean"] and report["blocks"] == 0
    assert "Traceback" not in cluster.log("metadata-1") + cluster.log("storage-1")


def test_killing_the_server_while_it_compacts_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    rng = random.Random(seed("compaction"))
    mount = cluster.mount(tmp_path / "a")
    (mount / "keep").mkdir()
    (mount / "drop").mkdir()
    kept: dict[str, bytes] = {}
    for turn in range(8 if LONG else 3):
        for number in range(30):
            name = f"{turn}-{number}"
            write(mount / "drop" / name, rng.randbytes(2 * MIB))
            if number % 10 < 4:
                kept[name] = rng.randbytes(rng.choice((3000, 300_000, MIB)))
                write(mount / "keep" / name, kept[name])
        for path in (mount / "drop").iterdir():
            path.unlink()
        begun = time.monotonic()
        before = on_disk(cluster)
        for _ in range(4):
            time.sleep(rng.uniform(0.3, 1.5))  # a random moment is the point
            cluster.kill(cluster.server_pids()["storage-1"])
            run(FUSEFS, "up", cluster.directory, "--only", "storage-1", "--detach")
        wait_for(lambda b=before: on_disk(cluster) < b - 30 * MIB, 90, f"compaction, {begun}")
        for name, data in kept.items():
            assert (mount / "keep" / name).read_bytes() == data, name
    cluster.umount(mount)
    fresh = cluster.mount(tmp_path / "b")
    for name, data in kept.items():
        assert (fresh / "keep" / name).read_bytes() == data, name
    assert "corrupt block" not in cluster.log("storage-1")
    done = run(FUSEFS, "fsck", cluster.config)
    assert "blocks referenced" in done.stdout
    for segment in (cluster.directory / "storage-1" / "segments").glob("*.seg"):
        cluster.kill(*[pid for name, pid in cluster.server_pids().items() if name == "storage-1"])
        segment.unlink()
    run(FUSEFS, "up", cluster.directory, "--only", "storage-1", "--detach")

    def findings() -> bool:
        again = run(FUSEFS, "fsck", cluster.config, "--json", check=False)
        return again.returncode == 3 and bool(json.loads(again.stdout)["lost"])

    wait_for(findings, 30, "fsck to miss what was wiped")
    cluster.audited = False
