"""Big, sparse and awkward files, and numbers that must be true."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

from tests.harness import LONG, run, seed

MIB = 1 << 20
GIB = 1 << 30


def test_4_gib_file(work: Path) -> None:
    """A file past 32 bits: written, verified, patched in the middle, truncated. In the short run most is a hole."""
    path = work / "big"
    size = 4 * GIB + 12_345
    start = 0 if LONG else 4 * GIB - 256 * MIB
    rng = random.Random(4)
    unit = rng.randbytes(MIB)
    digest = hashlib.blake2b()
    with open(path, "wb", buffering=0) as f:
        f.seek(start)
        written = start
        while written < size:
            piece = (b"%016d" % written + unit[16:])[: size - written]
            f.write(piece)
            digest.update(piece)
            written += len(piece)
        os.fsync(f.fileno())
    assert path.stat().st_size == size
    seen = hashlib.blake2b()
    with open(path, "rb", buffering=0) as f:
        f.seek(start)
        while piece := f.read(MIB):
            seen.update(piece)
    assert seen.digest() == digest.digest()
    with open(path, "r+b") as f:
        f.seek(4 * GIB - 5)
        f.write(b"across the border")
    with open(path, "rb") as f:
        f.seek(4 * GIB - 6)
        assert f.read(19)[1:18] == b"across the border"
    os.truncate(path, 3 * GIB)
    assert path.stat().st_size == 3 * GIB
    path.unlink()


def test_sparse_1_tib_file(work: Path) -> None:
    path = work / "sparse"
    size = 1 << 40
    marks = {0: b"start", 5 * MIB - 2: b"seam", size // 2: b"middle", size - 3: b"end"}
    with open(path, "wb") as f:
        for offset, text in marks.items():
            f.seek(offset)
            f.write(text)
    s = path.stat()
    assert s.st_size == size
    assert s.st_blocks * 512 < 8 * MIB, "holes must not be counted"
    with open(path, "rb") as f:
        for offset, text in marks.items():
            f.seek(max(0, offset - 2))
            around = f.read(len(text) + 4)
            assert text in around and around.replace(text, b"").strip(b"\0") == b""
        f.seek(size // 3)
        assert f.read(3 * MIB) == bytes(3 * MIB)
    os.truncate(path, 10)
    assert path.read_bytes() == b"start" + bytes(5)
    os.truncate(path, size)
    with open(path, "rb") as f:
        f.seek(5 * MIB - 2)
        assert f.read(4) == bytes(4), "a truncated byte must not come back"


def test_df_tells_the_truth(work: Path) -> None:
    before = os.statvfs(work)
    (work / "f").write_bytes(os.urandom(8 * MIB))
    with open(work / "f") as f:
        os.fsync(f.fileno())
    run("cp", work / "f", work / "g")
    after = os.statvfs(work)
    assert after.f_blocks > 0 and after.f_bfree < after.f_blocks
    assert after.f_namemax == 255
    # what earlier tests removed may be freed meanwhile, so only what is sure now
    assert after.f_files - after.f_ffree >= 3 and before.f_files == after.f_files
    assert run("df", "-h", work).stdout.count("\n") == 2


def test_random_writes_against_a_model(work: Path) -> None:
    """Writes, truncates, reads and reopenings at random, compared with a bytearray."""
    rng = random.Random(seed("random writes"))
    model = bytearray()
    path = work / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(400):
        what = rng.random()
        if what < 0.5:
            offset = rng.randrange(5 * MIB)
            data = rng.randbytes(rng.choice((1, 100, 4096, 70_000, MIB + 3)))
            os.pwrite(fd, data, offset)
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(data)] = data
        elif what < 0.6:
            size = rng.randrange(6 * MIB)
            os.ftruncate(fd, size)
            del model[size:]
            model.extend(bytes(size - len(model)))
        elif what < 0.9:
            offset = rng.randrange(6 * MIB)
            length = rng.choice((1, 4096, 300_000))
            assert os.pread(fd, length, offset) == model[offset : offset + length]
        elif what < 0.95:
            os.fsync(fd)
        else:
            os.close(fd)
            fd = os.open(path, os.O_RDWR)
        assert os.fstat(fd).st_size == len(model)
    os.close(fd)
    assert path.read_bytes() == model


def test_long_and_odd_names(work: Path) -> None:
    for name in (b"n" * 255, b"\xff\xfe not utf-8", b"new\nline", b" ", b"-rf", b"\\"):
        path = os.path.join(os.fsencode(work), name)
        with open(path, "wb") as f:
            f.write(name)
        assert name in os.listdir(os.fsencode(work))
        os.unlink(path)
    try:
        (work / ("n" * 256)).write_text("")
    except OSError as error:
        assert error.errno == 36  # ENAMETOOLONG
    else:
        raise AssertionError("a name of 256 bytes was accepted")


def test_directory_of_thousands(work: Path) -> None:
    """Listing is complete while names come and go, and seekdir returns to where telldir was."""
    names = {f"f{i:05}" for i in range(5000)}
    for name in names:
        os.close(os.open(work / name, os.O_CREAT | os.O_WRONLY))
    assert set(os.listdir(work)) == names
    seen = set()
    with os.scandir(work) as entries:
        for i, entry in enumerate(entries):
            seen.add(entry.name)
            if i % 10 == 0:
                os.unlink(work / entry.name)
    assert seen == names, "removing entries while reading must not hide others"
    run("rm", "-rf", work)
    assert not work.exists()


def test_random_overwrites_of_a_file_that_are_synced(work: Path) -> None:
    """As a database does; its pieces are put together again and again while it goes on."""
    rng = random.Random(5)
    model = bytearray(8 * MIB)
    with open(work / "f", "w+b", buffering=0) as file:
        file.truncate(len(model))
        for _ in range(60):
            for _ in range(rng.choice((1, 50, 400))):
                offset, data = rng.randrange(len(model) - 4096), rng.randbytes(rng.choice((8, 512, 4096)))
                os.pwrite(file.fileno(), data, offset)
                model[offset : offset + len(data)] = data
            began = time.monotonic()
            if rng.random() < 0.5:
                os.fsync(file.fileno())
            offset = rng.randrange(len(model) - 70_000)
            assert os.pread(file.fileno(), 70_000, offset) == model[offset : offset + 70_000]
            assert time.monotonic() - began < 20
    assert (work / "f").read_bytes() == model
    (work / "f").unlink()  # or it is put together later, while others measure what is stored
