"""fallocate, holes and copy_file_range: against tmpfs or a model of bytes, on both mounts."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import LONG, profile, run, seed

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 0x01, 0x02, 0x08, 0x10, 0x20
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@pytest.fixture
def other(work: Path, second_mount: Path) -> Path:
    """The same directory through the second mount."""
    return second_mount / work.name


@pytest.fixture
def local(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file on tmpfs."""
    path = Path("/dev/shm") / f"fusefs-space-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Return 0 or the errno."""
    return 0 if libc.fallocate(fd, mode, offset, length) == 0 else ctypes.get_errno()


def seek(fd: int, offset: int, whence: int) -> int:
    """Return the offset, or minus the errno."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        return -(error.errno or 1)


class Bytes:
    """A file as a dictionary of bytes and a size: what is not in it is a hole."""

    def __init__(self) -> None:
        self.data: dict[int, int] = {}
        self.size = 0

    def write(self, offset: int, data: bytes) -> None:
        self.data.update(enumerate(data, offset))
        self.size = max(self.size, offset + len(data))

    def erase(self, low: int, high: int) -> None:
        for at in range(low, min(high, self.size)):
            self.data.pop(at, None)

    def truncate(self, size: int) -> None:
        self.erase(size, self.size)
        self.size = size

    def read(self) -> bytes:
        return bytes(self.data.get(at, 0) for at in range(self.size))

    def seek(self, offset: int, *, data: bool) -> int:
        if offset >= self.size:
            return -errno.ENXIO
        for at in range(offset, self.size):
            if (at in self.data) == data:
                return at
        return -errno.ENXIO if data else self.size


@pytest.mark.parametrize("number", range(20 if LONG else 3))
def test_holes_and_copies_are_what_a_model_says(work: Path, other: Path, number: int) -> None:
    rng = random.Random(seed("space") + number)
    names = ("f", "g")
    models = {name: Bytes() for name in names}
    fds = {name: os.open(work / name, os.O_RDWR | os.O_CREAT) for name in names}
    try:
        for _ in range(60):
            _step(rng, names, models, fds)
        for name in names:
            os.fsync(fds[name])
            assert (other / name).read_bytes() == models[name].read()
    finally:
        for fd in fds.values():
            os.close(fd)


def _step(rng: random.Random, names: tuple[str, str], models: dict[str, Bytes], fds: dict[str, int]) -> None:
    name, source = rng.choice(names), rng.choice(names)
    fd, model, span = fds[name], models[name], 3000
    offset, length = rng.randrange(span), rng.randrange(1, 900)
    action = rng.choice(["write", "write", "punch", "zero", "zero keep", "reserve", "keep", "copy", "truncate", "sync"])
    if action == "write":
        data = rng.randbytes(length)
        os.pwrite(fd, data, offset)
        model.write(offset, data)
    elif action == "copy":
        end = rng.randrange(span)
        count = max(0, min(length, models[source].size - end))
        if source == name and abs(end - offset) < count:
            with pytest.raises(OSError, match="Invalid argument"):
                os.copy_file_range(fds[source], fd, length, end, offset)
            return
        copied = models[source]
        assert os.copy_file_range(fds[source], fd, length, end, offset) == count
        pieces = {at: copied.data.get(at) for at in range(end, end + count)}
        model.size = max(model.size, offset + count) if count else model.size
        for at, byte in pieces.items():
            model.data.pop(at - end + offset, None)
            if byte is not None:
                model.data[at - end + offset] = byte
    elif action == "truncate":
        os.ftruncate(fd, offset)
        model.truncate(offset)
    elif action == "sync":
        os.fsync(fd)
    else:
        mode = {"punch": PUNCH_HOLE | KEEP_SIZE, "zero": ZERO_RANGE, "zero keep": ZERO_RANGE | KEEP_SIZE,
                "reserve": 0, "keep": KEEP_SIZE}[action]
        assert fallocate(fd, mode, offset, length) == 0
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            model.erase(offset, offset + length)
        if not mode & KEEP_SIZE:
            model.size = max(model.size, offset + length)
    assert os.fstat(fd).st_size == model.size
    assert os.pread(fd, 2 * span, 0) == model.read()
    at = rng.randrange(span)
    assert seek(fd, at, os.SEEK_DATA) == model.seek(at, data=True)
    assert seek(fd, at, os.SEEK_HOLE) == model.seek(at, data=False)


def test_modes_are_taken_and_refused_as_on_tmpfs_or_named(work: Path, local: Path) -> None:
    calls = [(0, 0, 0), (0, -1, 5), (0, 5, -1), (PUNCH_HOLE, 0, 10), (PUNCH_HOLE | KEEP_SIZE, 10, 20),
             (PUNCH_HOLE | KEEP_SIZE, 900, 5000), (KEEP_SIZE, 0, 9000), (0, 2000, 10), (0x40, 0, 10),
             (PUNCH_HOLE | ZERO_RANGE | KEEP_SIZE, 0, 10), (0, (1 << 63) - 2, 10)]
    answers = []
    for path in (work / "f", local):
        with open(path, "w+b", buffering=0) as file:
            file.write(b"x" * 1000)
            answers.append([(call, fallocate(file.fileno(), *call), os.fstat(file.fileno()).st_size) for call in calls])
            answers[-1].append(os.pread(file.fileno(), 9999, 0))
        with open(path, "rb") as file:
            answers[-1].append(fallocate(file.fileno(), 0, 0, 10))
    assert answers[0] == answers[1]
    with open(work / "f", "r+b") as file:
        for mode in (COLLAPSE_RANGE, INSERT_RANGE):
            assert fallocate(file.fileno(), mode, 0, 4096) == errno.EOPNOTSUPP
        assert fallocate(file.fileno(), 0, 0, 1 << 50) == errno.ENOSPC


def test_punching_gives_space_back_and_a_mapping_sees_it(work: Path, other: Path) -> None:
    (work / "f").write_bytes(os.urandom(4 * MIB))
    before = (work / "f").stat().st_blocks
    with open(other / "f", "r+b") as file:
        assert file.read(10) != bytes(10)
        assert fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, 2 * MIB) == 0
        assert os.pread(file.fileno(), 10, 0) == bytes(10)
        assert fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 3 * MIB, 1 << 60) == 0
    assert (work / "f").stat().st_blocks * 4 == before
    with open(work / "f", "rb") as file:
        assert [seek(file.fileno(), at, os.SEEK_DATA) for at in (0, 2 * MIB + 5)] == [2 * MIB, 2 * MIB + 5]
        assert seek(file.fileno(), 3 * MIB, os.SEEK_DATA) == -errno.ENXIO
        assert seek(file.fileno(), 2 * MIB, os.SEEK_HOLE) == 3 * MIB
        file.seek(0)
        assert not any(file.read(2 * MIB))


def bytes_of(mount: Path) -> dict[str, int]:
    """How many bytes programs have had moved, by operation."""
    operations = profile(mount)["operations"]
    return {name: operations.get(name, {"bytes": 0})["bytes"] for name in ("read", "write", "copy_file_range")}


@pytest.mark.parametrize("mount", ["work", "other"])
def test_cp_moves_no_data(mount: str, work: Path, other: Path) -> None:
    data = os.urandom(5 * MIB + 12345)
    (work / "f").write_bytes(data)
    where = {"work": work, "other": other}[mount]
    before = bytes_of(where.parent)
    run("cp", where / "f", where / "g")
    moved = {name: count - before[name] for name, count in bytes_of(where.parent).items()}
    assert moved == {"read": 0, "write": 0, "copy_file_range": len(data)}
    with open(work / "f", "r+b") as file:  # what was shared stays apart
        file.write(b"changed")
    assert (other / "g").read_bytes() == data


def test_cp_keeps_holes(work: Path, other: Path) -> None:
    data = os.urandom(5 * MIB + 12345)
    with open(work / "f", "wb") as file:
        file.write(data)
        file.seek(64 * MIB + 7)
        file.write(b"the end")
    run("cp", work / "f", work / "g")
    run("cp", "--sparse=never", "--reflink=auto", other / "f", other / "h")
    for name in ("g", "h"):
        content = (other / name).read_bytes()
        assert content[: len(data)] == data and content[-7:] == b"the end" and not any(content[len(data) : -7])
    assert (work / "g").stat().st_blocks == (work / "f").stat().st_blocks


def test_copying_takes_what_is_not_written_back_yet(work: Path, other: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as f, open(work / "g", "w+b", buffering=0) as g:
        for i in range(20):
            f.write(b"%06d" % i)
            g.write(b"-" * 6)
            assert os.copy_file_range(f.fileno(), g.fileno(), 6, 6 * i, 12 * i + 6) == 6
            g.seek(0, os.SEEK_END)
        assert os.pread(g.fileno(), 999, 0) == b"".join(b"------%06d" % i for i in range(20))
        assert os.copy_file_range(f.fileno(), g.fileno(), 100, 120, 0) == 0
    assert (other / "g").read_bytes() == b"".join(b"------%06d" % i for i in range(20))


def test_a_program_that_walks_a_sparse_file(work: Path) -> None:
    with open(work / "f", "wb") as file:
        for part in range(5):
            file.seek((part << 30) + 100 * part)
            file.write(b"data" * 2500)
    walk = subprocess.run(["cp", "--sparse=auto", work / "f", work / "g"], timeout=60)
    assert walk.returncode == 0
    assert (work / "g").stat().st_size == (work / "f").stat().st_size
    assert (work / "g").stat().st_blocks == (work / "f").stat().st_blocks
