"""Two mounts with everything cached: what returned on one is what the next look on the other finds."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.wire.limits import SESSION_LEASE_S
from tests.harness import LONG, Cluster, cluster, need_fuse, wait_for

TRIALS = 1000 if LONG else 50


@pytest.fixture
def other(work: Path, second_mount: Path) -> Path:
    """The same directory through the second mount."""
    return second_mount / work.name


@pytest.fixture(scope="module")
def mount_without_names(volume: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = volume.mount(tmp_path_factory.mktemp("third") / "c", "-o", "leases=attributes")
    yield path
    volume.umount(path)


@pytest.fixture(params=["on", "attributes"])
def viewer(request: pytest.FixtureRequest, work: Path, second_mount: Path, mount_without_names: Path) -> Path:
    """The same directory through another mount, where the kernel remembers names or where it does not."""
    return (second_mount if request.param == "on" else mount_without_names) / work.name


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def look_after_change(change: Callable[[int], object], look: Callable[[int], object], kind: str) -> None:
    """Change on one mount, look on the other at once, after it had every reason to cache; the first look must be right.

    ``look`` is asked twice before each change, so that what it shows is cached."""
    took = []
    for i in range(TRIALS):
        look(i - 1)
        look(i - 1)
        change(i)
        began = time.perf_counter()
        look(i)
        took.append(time.perf_counter() - began)
    took.sort()
    print(f"{kind}: first look p50 {took[len(took) // 2] * 1e3:.2f} ms, p99 {took[len(took) * 99 // 100] * 1e3:.2f} ms")


def test_attributes_of_an_open_file(work: Path, other: Path) -> None:
    (work / "f").touch()
    with open(other / "f", "rb") as f:

        def look(i: int) -> None:
            assert i < 0 or os.fstat(f.fileno()).st_mode & 0o777 == 0o400 | i % 64

        look_after_change(lambda i: (work / "f").chmod(0o400 | i % 64), look, "attributes of an open file")


def test_data_of_an_open_file(work: Path, other: Path) -> None:
    """Read from the page cache of a descriptor that stays open, sizes growing and not."""
    (work / "f").write_bytes(b"x" * 4800)
    with open(other / "f", "rb", buffering=0) as f, open(work / "f", "r+b", buffering=0) as g:

        def change(i: int) -> None:
            os.pwrite(g.fileno(), b"%08d" % i, i % 4 * 1200)
            os.fsync(g.fileno())

        def look(i: int) -> None:
            assert i < 0 or os.pread(f.fileno(), 8, i % 4 * 1200) == b"%08d" % i

        look_after_change(change, look, "data of an open file")


def test_data_whose_times_were_set_back(work: Path, other: Path) -> None:
    """Same size, same mtime: only the service knows that the data changed."""

    def change(i: int) -> None:
        (work / "f").write_bytes(b"%08d" % i * 100)
        os.utime(work / "f", ns=(10**18, 10**18))

    def look(i: int) -> None:
        assert i < 0 or (other / "f").read_bytes() == b"%08d" % i * 100

    look_after_change(change, look, "data with old times")


def test_new_names(work: Path, viewer: Path) -> None:
    """A name that was missing, and known to be."""

    def look(i: int) -> None:
        assert i < 0 or (viewer / f"f{i}").exists()
        for _ in range(4):
            assert not (viewer / f"f{i + 1}").exists()

    look_after_change(lambda i: (work / f"f{i}").touch(), look, "new names")


def test_names_removed(work: Path, viewer: Path) -> None:
    for i in range(TRIALS):
        (work / f"f{i}").touch()

    def look(i: int) -> None:
        assert i < 0 or not (viewer / f"f{i}").exists()
        assert i + 1 == TRIALS or (viewer / f"f{i + 1}").exists()

    look_after_change(lambda i: (work / f"f{i}").unlink(), look, "names removed")


def test_names_renamed(work: Path, viewer: Path) -> None:
    (work / "n0").write_text("text")

    def change(i: int) -> None:
        (work / f"n{i}").rename(work / f"n{i + 1}")

    def look(i: int) -> None:
        assert not (viewer / f"n{i}").exists()
        assert (viewer / f"n{i + 1}").read_text() == "text"

    look_after_change(change, look, "names renamed")


def test_names_replaced(work: Path, viewer: Path) -> None:
    def change(i: int) -> None:
        (work / "tmp").write_text(str(i))
        (work / "tmp").replace(work / "f")

    def look(i: int) -> None:
        assert i < 0 or (viewer / "f").read_text() == str(i)

    look_after_change(change, look, "names replaced")


def test_listings(work: Path, other: Path) -> None:
    def change(i: int) -> None:
        (work / f"f{i}").touch()
        if i >= 5:
            (work / f"f{i - 5}").unlink()

    def look(i: int) -> None:
        assert sorted(os.listdir(other)) == sorted(f"f{j}" for j in range(max(0, i - 4), i + 1))

    look_after_change(change, look, "listings")


def test_directories_above(work: Path, viewer: Path) -> None:
    """The path to a file changes above it."""
    (work / "d0" / "e").mkdir(parents=True)
    (work / "d0" / "e" / "f").write_text("deep")

    def change(i: int) -> None:
        (work / f"d{i}").rename(work / f"d{i + 1}")

    def look(i: int) -> None:
        assert (viewer / f"d{i + 1}" / "e" / "f").read_text() == "deep"
        assert not (viewer / f"d{i}" / "e" / "f").exists()

    look_after_change(change, look, "directories above")


def test_links_and_extended_attributes(work: Path, other: Path) -> None:
    (work / "f").touch()

    def change(i: int) -> None:
        os.setxattr(work / "f", "user.i", str(i).encode())
        os.symlink(str(i), work / "tmp")
        (work / "tmp").replace(work / "s")
        os.link(work / "f", work / f"l{i}")

    def look(i: int) -> None:
        if i >= 0:
            assert os.getxattr(other / "f", "user.i") == str(i).encode()
            assert os.readlink(other / "s") == str(i)
            assert (other / "f").stat().st_nlink == i + 2

    look_after_change(change, look, "links and extended attributes")


def test_own_changes_show_at_once(work: Path) -> None:
    """On one mount, where nobody recalls anything: the cache must follow what is done here."""
    for _ in range(TRIALS):
        d = work / "d"
        assert not d.exists()
        d.mkdir()
        assert os.listdir(d) == [] and d.stat().st_nlink == 2 and not (d / "f").exists()
        (d / "f").write_text("1")
        os.link(d / "f", d / "g")
        assert (d / "f").stat().st_nlink == 2 and sorted(os.listdir(d)) == ["f", "g"]
        (d / "f").rename(d / "g")  # two names of one file: nothing happens
        assert sorted(os.listdir(d)) == ["f", "g"]
        (d / "f").write_text("22")
        assert (d / "g").read_text() == "22" and (d / "g").stat().st_size == 2
        (d / "f").unlink()
        assert not (d / "f").exists() and (d / "g").stat().st_nlink == 1
        (d / "g").rename(work / "h")
        assert os.listdir(d) == [] and (work / "h").read_text() == "22"
        os.truncate(work / "h", 1)
        assert (work / "h").read_text() == "2"
        os.chmod(work / "h", 0o600)
        assert mode(work / "h") == 0o600
        (work / "h").unlink()
        d.rmdir()
        assert os.listdir(work) == []


def test_two_mounts_create_in_one_directory(work: Path, other: Path) -> None:
    """Each create recalls the directory from the other mount, whose own create holds the kernel's lock on it."""
    took: list[float] = []
    count = 5 * TRIALS

    def create(top: Path, prefix: str) -> None:
        for i in range(count):
            began = time.perf_counter()
            (top / f"{prefix}{i}").touch()
            took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=create, args=(top, prefix)) for top, prefix in ((work, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    took.sort()
    assert len(took) == 2 * count
    expected = sorted(f"{prefix}{i}" for prefix in "ab" for i in range(count))
    assert sorted(os.listdir(work)) == sorted(os.listdir(other)) == expected
    p50, p99, most = (took[place] * 1e3 for place in (count, -1 - count // 50, -1))
    print(f"two mounts create in one directory: p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms")
    assert took[-1] < SESSION_LEASE_S - 1, "a recall waited for a lease to end"


def test_names_while_others_look(work: Path, other: Path) -> None:
    """Threads look at names all the time, so that each change meets requests and replies under way, also those that
    revalidate what the kernel has. What was renamed before a look began is not found under its old name any more."""
    (work / "n0").touch()
    done = [0]
    wrong: list[str] = []
    looks = [0]

    def look() -> None:
        while done[0] < TRIALS:
            number = done[0]
            if number and (other / f"n{number - 1}").exists():
                wrong.append(f"n{number - 1} after it was renamed")
            if not (other / f"n{number}").exists() and done[0] == number:
                time.sleep(0)
                if done[0] == number and not began[0] > number:
                    wrong.append(f"n{number} was not found")
            looks[0] += 1

    began = [0]
    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(TRIALS):
        began[0] = i + 1
        (work / f"n{i}").rename(work / f"n{i + 1}")
        done[0] = i + 1
    for thread in threads:
        thread.join()
    print(f"{looks[0]} looks at {TRIALS} renames")
    assert not wrong


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Cluster, Path, Path]]:
    """A cluster of its own with two mounts."""
    need_fuse()
    with cluster(tmp_path / "data") as made:
        yield made, made.mount(tmp_path / "a"), made.mount(tmp_path / "b")


def test_a_stopped_mount_delays_others_for_one_lease_only(pair: tuple[Cluster, Path, Path]) -> None:
    made, a, b = pair
    (a / "f").write_text("old")
    (a / "gone").touch()
    for _ in range(4):
        assert (b / "f").read_text() == "old" and (b / "gone").exists() and not (b / "new").exists()
        assert sorted(os.listdir(b)) == ["f", "gone"]
    fd = os.open(b / "f", os.O_RDONLY)
    try:
        pid = made.mount_pid(b)
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            (a / "f").write_text("new")
            took_s = time.monotonic() - began
            (a / "gone").unlink()
            (a / "new").touch()
            assert os.stat(a / "f").st_size == 3
        finally:
            os.kill(pid, signal.SIGCONT)
        print(f"a stopped mount delayed a write by {took_s:.1f} s")
        assert took_s < 2 * SESSION_LEASE_S
        assert os.pread(fd, 10, 0) == b"new"
        assert (b / "f").read_text() == "new" and not (b / "gone").exists() and (b / "new").exists()
        assert sorted(os.listdir(b)) == ["f", "new"]
    finally:
        os.close(fd)


def test_the_only_member_is_killed_and_comes_back(pair: tuple[Cluster, Path, Path]) -> None:
    made, a, b = pair
    (a / "f").write_text("0")
    for i in range(3):
        assert (b / "f").read_text() == str(i) and (a / "f").read_text() == str(i)
        made.kill(made.server_pids()["metadata-1"])
        made.up("--only", "metadata-1")
        began = time.monotonic()
        (a / "f").write_text(str(i + 1))
        took_s = time.monotonic() - began
        assert (b / "f").read_text() == str(i + 1)
        print(f"service resumed after {took_s:.2f} s")
        assert took_s < SESSION_LEASE_S - 1, "it waited for the end of leases though both mounts live"
    wait_for(lambda: made.status()["health"] == "healthy", 60, "healthy again")


def test_without_leases_nothing_is_cached(volume: Cluster, work: Path, tmp_path: Path) -> None:
    path = volume.mount(tmp_path / "c", "-o", "leases=off")
    try:
        (work / "f").touch()
        for i in range(20):
            (work / "f").chmod(0o400 + i)
            assert mode(path / work.name / "f") == 0o400 + i
    finally:
        volume.umount(path)
