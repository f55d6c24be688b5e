"""Two mounts keep one file open: what write(2) returned on one, the other reads at once, without close or fsync."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import LONG, wait_for

TRIALS = 10_000 if LONG else 500


@pytest.fixture
def other(work: Path, second_mount: Path) -> Path:
    """The same directory through the second mount."""
    return second_mount / work.name


@pytest.fixture
def pair(work: Path, other: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of one file, one on each mount."""
    writer = os.open(work / "f", os.O_RDWR | os.O_CREAT)
    reader = os.open(other / "f", os.O_RDWR)
    yield writer, reader
    os.close(writer)
    os.close(reader)


def test_overwriting(pair: tuple[int, int]) -> None:
    writer, reader = pair
    for i in range(TRIALS):
        os.pwrite(writer, b"%08d" % i, 5000)
        assert os.pread(reader, 8, 5000) == b"%08d" % i


def test_growing_by_writes_and_by_stat(pair: tuple[int, int]) -> None:
    writer, reader = pair
    for i in range(TRIALS):
        os.pwrite(writer, b"%08d" % i, 8 * i)
        assert os.fstat(reader).st_size == 8 * i + 8
        assert os.pread(reader, 8, 8 * i) == b"%08d" % i


def test_taking_turns(pair: tuple[int, int]) -> None:
    for i in range(TRIALS // 2):
        os.pwrite(pair[i % 2], b"%08d" % i, 100)
        assert os.pread(pair[1 - i % 2], 8, 100) == b"%08d" % i


def test_truncating(pair: tuple[int, int]) -> None:
    writer, reader = pair
    for i in range(TRIALS // 4):
        os.pwrite(writer, b"x" * 10_000, 0)
        assert os.pread(reader, 20_000, 0) == b"x" * 10_000
        os.ftruncate(writer, 100 + i)
        assert os.pread(reader, 20_000, 0) == b"x" * (100 + i)


@pytest.mark.parametrize("kept", [False, True], ids=["opened anew", "kept open"])
def test_two_append_lines_and_read_them_all_the_time(kept: bool, work: Path, other: Path) -> None:
    """Each line is there once, whole, in its writer's order, as soon as its write has returned; and never zeros. Who
    keeps the file open has opened it while others were writing."""
    (work / "log").touch()
    lines = [0, 0]
    wrong: list[str] = []
    end = threading.Event()

    def look(path: Path) -> None:
        held = -1
        while not end.is_set() and not wrong:
            floor = list(lines)
            if kept and min(floor) > 10 and held < 0:
                held = os.open(path, os.O_RDONLY)
            data = path.read_bytes() if held < 0 else os.pread(held, 1 << 20, 0)
            if b"\0" in data:
                wrong.append(f"zeros in {data!r}")
            found = data.split(b"\n")[:-1]
            for who in (0, 1):
                mine = [int(line[1:]) for line in found if line[:1] == b"%d" % who]
                if mine != list(range(len(mine))) or len(mine) < floor[who]:
                    wrong.append(f"of {floor[who]} lines of {who} were read: {mine[-5:]}")
        if held >= 0:
            os.close(held)

    def append(path: Path, who: int) -> None:
        with open(path, "ab", buffering=0) as f:
            for i in range(TRIALS // 2):
                f.write(b"%d%06d\n" % (who, i))
                lines[who] = i + 1

    lookers = [threading.Thread(target=look, args=(path / "log",)) for path in (work, other)]
    writers = [threading.Thread(target=append, args=(path / "log", who)) for who, path in enumerate((work, other))]
    for thread in lookers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    end.set()
    for thread in lookers:
        thread.join()
    assert not wrong, wrong[0]
    assert len((work / "log").read_bytes()) == 8 * 2 * (TRIALS // 2)


def test_a_read_across_the_first_truncation_shows_no_zeros(work: Path, other: Path) -> None:
    """It begins before, and ends after: it returns what was there before or what is there then."""
    names = [f"f{i}" for i in range(TRIALS // 2)]
    for name in names:
        (other / name).write_bytes(b"x" * 64)
    together = threading.Barrier(2, timeout=60)
    found: set[bytes] = set()

    def look() -> None:
        for name in names:
            (work / name).stat()
            together.wait()
            found.update((work / name).read_bytes() for _ in range(4))

    looker = threading.Thread(target=look)
    looker.start()
    for name in names:
        with open(other / name, "r+b", buffering=0) as f:
            together.wait()
            f.truncate(16)
    looker.join()
    assert found == {b"x" * 64, b"x" * 16}


def test_a_long_write_goes_on_while_somebody_looks(work: Path, other: Path) -> None:
    """Who looks gets an answer at once, and sees the file grow."""
    block = os.urandom(1 << 20)
    written = 0
    end = threading.Event()

    def write() -> None:
        nonlocal written
        with open(work / "big", "wb", buffering=0) as f:
            while not end.is_set() and written < 1 << 30:
                f.write(block)
                written += len(block)

    (work / "big").touch()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        longest = 0.0
        for _ in range(20):
            floor, begin = written, time.monotonic()
            assert (other / "big").stat().st_size >= floor
            longest = max(longest, time.monotonic() - begin)
            time.sleep(0.05)
        print(f"{written >> 20} MiB written, the longest look took {longest:.3f} s")
        assert longest < 9.0, "that long only a broken lease takes"
    finally:
        end.set()
        thread.join()


def test_a_mapping_shows_what_was_written_before_it_was_made(pair: tuple[int, int]) -> None:
    writer, reader = pair
    for i in range(20):
        os.pwrite(writer, b"%08d" % i * 512, 0)
        with mmap.mmap(reader, 4096, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:8] == b"%08d" % i


@pytest.mark.parametrize("also_read", [False, True])
def test_a_mapping_for_reading_shows_what_is_synced(also_read: bool, work: Path, other: Path) -> None:
    """Whoever looks into it asks nobody. Where another program of that mount reads the file all the time, the recalls
    cross its questions, which must not be made void: then it takes a moment."""
    content = bytearray(4 * 4096)
    (work / "f").write_bytes(content)
    ended = threading.Event()

    def read() -> None:
        with open(other / "f", "rb", buffering=0) as file:
            while not ended.is_set():
                file.seek(0)
                file.read()

    reading = threading.Thread(target=read)
    with open(other / "f", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    writer = os.open(work / "f", os.O_WRONLY)
    if also_read:
        reading.start()
    try:
        for i in range(1, TRIALS // (5 if also_read else 1)):
            at = i % 4 * 4096 + i
            assert mapped[at] == content[at]
            content[at] = i % 255 + 1
            os.pwrite(writer, content[at : at + 1], at)
            os.fsync(writer)
            if also_read:
                assert wait_for(lambda: mapped[:] == content, 5, f"trial {i} to be seen")
            assert mapped[:] == content, f"trial {i}"
    finally:
        ended.set()
        if also_read:
            reading.join()
        os.close(writer)
        mapped.close()


def test_cutting_a_file_that_is_read_all_the_time(work: Path, other: Path) -> None:
    """Truncated to nothing and written again all the time: another mount reads some content or none, not zeros."""
    for _ in range(2):  # now both know that it is contended
        (work / "f").write_bytes(b"x" * 6000)
        assert (other / "f").read_bytes() == b"x" * 6000
    wrong: list[str] = []
    end = threading.Event()

    def look(path: Path) -> None:
        while not end.is_set() and not wrong:
            data = path.read_bytes()
            if data.strip(b"x"):
                wrong.append(f"{path}: {len(data)} bytes, of which {len(data.strip(b'x'))} are zeros in {data[:10]!r}")

    looker = threading.Thread(target=look, args=(other / "f",))
    looker.start()
    for i in range(TRIALS // 4):
        with open(work / "f", "r+b", buffering=0) as f:
            f.truncate(0)
            f.write(b"x" * (1000 + i))
    end.set()
    looker.join()
    assert not wrong, wrong[0]


def test_a_mapping_of_a_file_that_is_open_for_appending(work: Path, other: Path) -> None:
    """What a program stores in mapped pages goes to their place, not to the end."""
    fd = os.open(work / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, b"a" * 8192)
        with mmap.mmap(fd, 8192) as mapped:
            mapped[4000:4200] = b"b" * 200
            mapped.flush()
            os.write(fd, b"end")
        expected = b"a" * 4000 + b"b" * 200 + b"a" * 3992 + b"end"
        assert (other / "f").read_bytes() == expected
        assert (work / "f").read_bytes() == expected
    finally:
        os.close(fd)


def test_a_file_that_two_mounts_change_can_be_mapped(work: Path, other: Path) -> None:
    """Opened while others write to it, and mapped shared for writing."""
    for i in range(20):
        (work / "f").write_bytes(b"%08d" % i * 1024)
        with open(other / "f", "r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
            assert mapped[:] == b"%08d" % i * 1024
            mapped[:4] = b"here"
            mapped.flush()
        assert (work / "f").read_bytes()[:8] == b"here%04d" % (i % 10000)


def test_two_mounts_store_in_one_mapped_file(work: Path, other: Path) -> None:
    """Each in a page of its own; nothing waits until somebody gives up."""
    rounds = 40
    (work / "f").write_bytes(bytes(65536))
    mappings = []
    for path in (work, other):
        for changed in (work, other):  # what was recalled a moment ago is opened for direct I/O
            (changed / "f").chmod(0o640)
        with open(path / "f", "r+b") as f:
            mappings.append(mmap.mmap(f.fileno(), 0))
    children = []
    for place, mapped in enumerate(mappings):
        if pid := os.fork():
            children.append(pid)
            continue
        slow = 0
        for i in range(1, rounds + 1):  # mmap.flush keeps other threads from running: so these are processes
            mapped[place * 8192] = i
            began = time.monotonic()
            mapped.flush(place * 8192, 4096)
            slow += time.monotonic() - began > 0.9
        os._exit(min(slow, 100))
    slow = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    for mapped in mappings:
        mapped.close()
    assert max(slow) < 5, f"{slow} of {rounds}"
    for path in (work, other):
        content = (path / "f").read_bytes()
        assert (content[0], content[8192]) == (rounds, rounds)
