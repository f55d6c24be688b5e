"""The disk that fails on demand is a disk as long as nothing fails."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from metadata.store.disk import Disk, FatalDiskError, RealDisk, read_file, write_file
from metadata.store.reserve import Reserve
from node.wire.errors import Code, FsError
from tests.sim.disk import FaultDisk, PowerCut


@pytest.fixture(params=["real", "fault"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    if request.param == "real":
        return RealDisk(), str(tmp_path)
    disk = FaultDisk()
    disk.make_directory("/base")
    return disk, "/base"


def test_bytes_are_where_they_were_written(place: tuple[Disk, str]) -> None:
    disk, base = place
    file = disk.open(f"{base}/file", create=True)
    file.pwrite(b"later", 10)
    file.pwrite(memoryview(b"first"), 0)
    file.datasync()
    assert file.pread(100, 0) == b"first" + bytes(5) + b"later" and file.size() == 15
    assert file.pread(3, 11) == b"ate" and file.pread(3, 15) == b"" and file.pread(9, 13) == b"er"
    file.truncate(3)
    assert file.pread(9, 0) == b"fir" and file.size() == 3
    file.truncate(5)
    assert file.pread(9, 0) == b"fir\0\0"
    file.close()
    again = disk.open(f"{base}/file")
    assert again.pread(9, 0) == b"fir\0\0"
    again.close()


def test_allocated_space_reads_as_zeros(place: tuple[Disk, str]) -> None:
    disk, base = place
    file = disk.open(f"{base}/file", create=True)
    file.pwrite(b"abc", 0)
    file.allocate(10)
    assert file.size() == 10 and file.pread(20, 0) == b"abc" + bytes(7)
    file.allocate(5)
    assert file.size() == 10
    file.close()


def test_names(place: tuple[Disk, str]) -> None:
    disk, base = place
    for missing in (lambda: disk.open(f"{base}/none"), lambda: disk.list(f"{base}/none")):
        with pytest.raises(FsError) as caught:
            missing()
        assert caught.value.code == Code.NOT_FOUND
    disk.make_directory(f"{base}/inner")
    disk.make_directory(f"{base}/inner")
    write_file(disk, f"{base}/inner/a", b"1")
    write_file(disk, f"{base}/inner/b", b"2")
    write_file(disk, f"{base}/inner/a", b"3")
    assert disk.list(f"{base}/inner") == ["a", "b"] and disk.list(base) == ["inner"]
    disk.rename(f"{base}/inner/a", f"{base}/inner/b")
    assert disk.list(f"{base}/inner") == ["b"] and read_file(disk, f"{base}/inner/b") == b"3"
    assert disk.exists(f"{base}/inner/b") and disk.exists(f"{base}/inner") and not disk.exists(f"{base}/inner/a")
    disk.remove(f"{base}/inner/none")
    disk.remove(f"{base}/inner/b")
    disk.remove_directory(f"{base}/none")
    write_file(disk, f"{base}/inner/c", b"")
    disk.remove_directory(f"{base}/inner")
    assert disk.list(base) == []


def test_a_removed_file_can_be_read_while_it_is_open(place: tuple[Disk, str]) -> None:
    disk, base = place
    write_file(disk, f"{base}/file", b"here")
    file = disk.open(f"{base}/file")
    disk.remove(f"{base}/file")
    assert file.pread(9, 0) == b"here"
    file.close()


def test_the_lock_is_exclusive(place: tuple[Disk, str]) -> None:
    disk, base = place
    for _ in range(2):
        with disk.lock(f"{base}/LOCK"):
            with pytest.raises(FsError) as caught:
                with disk.lock(f"{base}/LOCK"):
                    pass
            assert caught.value.code == Code.BUSY


def test_the_reserve_takes_space_and_gives_it_back(place: tuple[Disk, str]) -> None:
    disk, base = place
    before = disk.free_bytes(base)
    reserve = Reserve(disk, f"{base}/reserve", 8 << 20)
    assert reserve.held and disk.exists(f"{base}/reserve")
    if isinstance(disk, FaultDisk):
        assert before - disk.free_bytes(base) == 8 << 20
    assert reserve.release() and not reserve.release() and not disk.exists(f"{base}/reserve")
    assert reserve.regain() and Reserve(disk, f"{base}/reserve", 8 << 20).held


# --- what only the twin does ------------------------------------------------------------------------------------


def test_what_was_not_synced_survives_in_part() -> None:
    kept = set()
    for seed in range(200):
        disk = FaultDisk()
        file = disk.open("/file", create=True)
        disk.sync_directory("")
        file.pwrite(b"a" * 512, 0)
        file.datasync()
        file.pwrite(b"b" * 1024, 512)
        disk.crash(Random(seed))
        content = disk.read("/file")
        assert content[:512] == b"a" * 512
        kept.add(content[512:].rstrip(b"\0"))
        with pytest.raises(AssertionError, match="after close or crash"):
            file.size()
    assert {b"", b"b" * 512, bytes(512) + b"b" * 512, b"b" * 1024} <= kept
    assert any(0 < len(part) < 512 for part in kept)


def test_names_that_were_not_synced_may_vanish_or_come_back() -> None:
    outcomes = set()
    for seed in range(100):
        disk = FaultDisk()
        write_file(disk, "/old", b"1")
        disk.rename("/old", "/new")
        disk.open("/other", create=True)
        disk.crash(Random(seed))
        outcomes.add(tuple(disk.list("")))
    assert outcomes == {("old",), ("new",), ("old", "other"), ("new", "other")}


def test_a_failed_sync_leaves_what_is_shown_and_never_writes_it() -> None:
    disk = FaultDisk()
    write_file(disk, "/file", b"old")
    file = disk.open("/file")
    file.pwrite(b"new", 0)
    disk.fail_sync_at = disk.syncs + 1
    with pytest.raises(FatalDiskError):
        file.datasync()
    disk.fail_sync_at = None
    file.datasync()
    assert disk.read("/file") == b"new"
    disk.crash(Random(1))
    assert disk.read("/file") == b"old"


def test_a_full_disk_takes_what_fits() -> None:
    disk = FaultDisk(capacity_bytes=100)
    file = disk.open("/file", create=True)
    with pytest.raises(FsError) as caught:
        file.pwrite(b"x" * 150, 0)
    assert caught.value.code == Code.NO_SPACE and file.size() == 100 and disk.free_bytes("/") == 0
    file.pwrite(b"y" * 100, 0)
    disk.remove("/file")
    file = disk.open("/other", create=True)
    disk.sync_directory("")
    file.pwrite(b"x" * 100, 0)
    file.close()


def test_power_fails_in_the_middle_of_a_write() -> None:
    lengths = set()
    for seed in range(60):
        disk = FaultDisk()
        file = disk.open("/file", create=True)
        disk.random, disk.cut_at = Random(seed), disk.operations + 1
        with pytest.raises(PowerCut):
            file.pwrite(b"x" * 9, 0)
        lengths.add(len(disk.read("/file")))
    assert lengths == set(range(10))
