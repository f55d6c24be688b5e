"""Looking at a mount, the serving loop of ours, and memory that follows what the kernel knows."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusefs.mount.state import find_state
from tests.harness import FUSEFS, LONG, Cluster, profile, run, wait_for

FILES = 20_000 if LONG else 300


@pytest.fixture(params=["fast", "stock"])
def served(request: pytest.FixtureRequest, volume: Cluster, work: Path, tmp_path: Path) -> Iterator[Path]:
    """The same directory through a mount with our serving loop, and with pyfuse3's own."""
    path = volume.mount(tmp_path / request.param, "-o", f"loop={request.param}")
    yield path / work.name
    volume.umount(path)


def test_the_profile_counts_what_was_done(volume: Cluster, work: Path) -> None:
    mount = volume.mounts[0]
    before = profile(mount)["operations"]
    (work / "f").write_bytes(b"x" * 10_000)
    assert not (work / "missing").exists()
    seen = profile(mount)
    after = seen["operations"]

    def added(operation: str, what: str) -> int:
        count: int = after[operation][what] - before.get(operation, {what: 0})[what]
        return count

    assert added("create", "count") == 1 and added("write", "bytes") == 10_000
    assert added("lookup", "errors") >= 1
    assert 0 < after["create"]["p50_s"] <= after["create"]["p99_s"] <= after["create"]["max_s"]
    assert seen["statistics"]["volume.blocks.cache_bytes"] >= 0
    lines = run(FUSEFS, "profile", mount).stdout.splitlines()
    assert lines[0].split()[:2] == ["operation", "count"] and any(line.startswith("create ") for line in lines)
    state = find_state(volume.config, str(mount))
    assert state is not None and stat.S_IMODE(state.socket_path.stat().st_mode) == 0o600
    refused = run(FUSEFS, "profile", work.parent.parent, check=False)
    assert refused.returncode == 1 and "not a fusefs mount" in refused.stderr


def test_a_file_that_was_only_read_is_closed_without_waking_the_mount(volume: Cluster, work: Path) -> None:
    mount = volume.mounts[0]
    (work / "f").write_bytes(b"x")

    def closed() -> int:
        return int(profile(mount)["statistics"]["mount.quiet.flush"])

    before = closed()
    for _ in range(10):
        assert (work / "f").read_bytes() == b"x"
    assert closed() == before + 10
    with open(work / "f", "rb") as f:
        fcntl.lockf(f, fcntl.LOCK_SH)
    assert closed() == before + 10, "it has a lock to give up"


def test_the_end_of_a_listing_is_asked_for_without_waking_the_mount(volume: Cluster, work: Path) -> None:
    mount = volume.mounts[0]
    for number in range(300):  # two pages, and too many to be kept by the kernel
        (work / f"{number:03}").touch()

    def asked() -> tuple[int, int]:
        seen = profile(mount)
        count = seen["operations"].get("readdir", {"count": 0})["count"]
        return int(count), int(seen["statistics"]["mount.quiet.readdir"])

    woken, quiet = asked()
    assert len(os.listdir(work)) == 300
    more, ended = asked()
    assert more > woken and ended == quiet + 1
    fd = os.open(work, os.O_RDONLY)
    try:
        assert len(os.listdir(fd)) == 300
        (work / "new").touch()
        os.lseek(fd, 0, os.SEEK_SET)
        assert len(os.listdir(fd)) == 301, "it was rewound"
    finally:
        os.close(fd)


def test_the_target_of_a_link_is_asked_for_once(volume: Cluster, work: Path) -> None:
    """In some round: the kernel may drop a page at any time, for reasons of its own."""

    def asked() -> int:
        return int(profile(volume.mounts[0])["operations"]["readlink"]["count"])

    counts = []
    for _ in range(3):
        (work / "link").symlink_to("target")
        assert os.readlink(work / "link") == "target"
        before = asked()
        for _ in range(10):
            assert os.readlink(work / "link") == "target"
        (work / "link").unlink()
        (work / "link").symlink_to("other")
        assert os.readlink(work / "link") == "other"
        counts.append(asked() - before)
        (work / "link").unlink()
    assert 1 in counts, counts


def test_serving_loops(work: Path, served: Path) -> None:
    """Requests that wait and requests that do not, at once, and what is written is there through the other mount."""

    def write(number: int) -> None:
        for i in range(5):
            with open(served / f"f{number}-{i}", "wb") as f:
                f.write(b"%d" % number * 5000)
                f.flush()
                os.fsync(f.fileno())
            assert (served / f"f{number}-{i}").stat().st_size == 5000 * len(b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(os.listdir(served)) == 40
    for number in range(8):
        assert (work / f"f{number}-4").read_bytes() == b"%d" % number * 5000


def test_memory_follows_what_the_kernel_knows(volume: Cluster, work: Path) -> None:
    mount = volume.mounts[0]
    for i in range(FILES):
        (work / f"f{i}").touch()
    for i in range(FILES):
        assert (work / f"f{i}").exists()
    for i in range(20 * FILES):
        assert not (work / f"missing{i}").exists()
    seen = profile(mount)["statistics"]
    assert seen["mount.kernel.inodes"] >= FILES
    assert seen["mount.cache.names_bytes"] <= 16 << 20
    assert seen["volume.leases.bytes"] <= 64 << 20
    assert seen["mount.cache.asked"] <= 4096

    def forgotten() -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return bool(profile(mount)["statistics"]["mount.kernel.inodes"] < FILES // 2)

    wait_for(forgotten, 60, "the inodes to be forgotten with the kernel")
