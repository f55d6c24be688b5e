"""Listings that the kernel keeps: never older than what it asks for, and whole for who reads on in them."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import LONG, Cluster, profile, wait_for

TRIALS = 500 if LONG else 50
NAMES = [f"file {number:02}" for number in range(60)]
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def other(work: Path, second_mount: Path) -> Path:
    """The same directory through the second mount."""
    return second_mount / work.name


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def some(fd: int, size: int = 200) -> list[str]:
    """The next few names, as many as a small buffer takes."""
    buffer = ctypes.create_string_buffer(size)
    count = libc.getdents64(fd, buffer, size)
    assert count >= 0, os.strerror(ctypes.get_errno())
    names, at = [], 0
    while at < count:
        (length,) = struct.unpack_from("<H", buffer, at + 16)
        names.append(buffer.raw[at + 19 : at + length].split(b"\0")[0].decode())
        at += length
    return [name for name in names if name not in (".", "..")] or (some(fd, size) if count else [])


def readdirs(volume: Cluster) -> int:
    operations = profile(volume.mounts[0])["operations"]
    return int(operations["readdir"]["count"]) if "readdir" in operations else 0


def fill(volume: Cluster, where: Path) -> None:
    """Make files, and have the kernel keep their names."""

    def asked() -> int:
        before = readdirs(volume)
        assert sorted(os.listdir(where)) == NAMES
        return readdirs(volume) - before

    for name in NAMES:
        (where / name).touch()
    wait_for(lambda: not asked(), 30, "the kernel to keep the listing")


def test_a_listing_that_is_kept_is_not_asked_for_again(volume: Cluster, work: Path) -> None:
    fill(volume, work)
    before = readdirs(volume)
    for _ in range(20):
        assert sorted(os.listdir(work)) == NAMES
    assert readdirs(volume) == before


@pytest.mark.parametrize("open_all_the_time", [False, True])
def test_a_change_elsewhere_is_seen_though_the_time_is_set_back(
    open_all_the_time: bool, work: Path, other: Path
) -> None:
    """As tar and rsync do it after they have filled a directory."""
    time_ns = work.stat().st_mtime_ns
    expected: list[str] = []
    with opened(work) as fd:
        for i in range(TRIALS):
            for _ in range(2):
                assert sorted(os.listdir(fd if open_all_the_time else work)) == expected
            (other / f"{i:04}").touch()
            os.utime(other, ns=(time_ns, time_ns))
            expected.append(f"{i:04}")


def test_own_changes_are_seen(work: Path) -> None:
    expected: list[str] = []
    with opened(work) as fd:
        for i in range(TRIALS):
            (work / f"{i:04}").touch()
            expected.append(f"{i:04}")
            assert sorted(os.listdir(work)) == sorted(os.listdir(fd)) == expected


@pytest.mark.parametrize("who", ["this mount", "the other"])
def test_who_reads_on_misses_nothing_that_stays(who: str, volume: Cluster, work: Path, other: Path) -> None:
    fill(volume, work)
    changed = work if who == "this mount" else other
    with opened(work) as fd:
        seen = some(fd)
        assert 0 < len(seen) < 20
        for name in seen[:3]:
            (changed / name).unlink()
        (changed / "a name before all").touch()
        (changed / "zz after all").touch()
        while names := some(fd):
            seen += names
    assert sorted(name for name in seen if name in NAMES) == NAMES, "each once"


def test_a_directory_that_grows_large_is_listed_whole(work: Path, other: Path) -> None:
    with opened(work) as fd:
        for i in range(300):
            (other / f"{i:04}").touch()
            if i % 30 == 0:
                assert len(os.listdir(fd)) == len(os.listdir(work)) == i + 1
