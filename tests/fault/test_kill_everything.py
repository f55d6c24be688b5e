"""kill -9 of every process at a random moment: what was acknowledged is there and right, nothing is half-visible.

The workers write to a journal on another filesystem what fsync(2) acknowledged; a file's content follows from its
name, so that the verifier needs no more than the names.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import LONG, Cluster, need_fuse, seed

ROUNDS = 100 if LONG else 5

WORKER = r"""
import hashlib, os, random, sys
top, journal, kind, seed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
rng = random.Random(seed)
log = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def content(name, size):
    return hashlib.shake_128(name.encode()).digest(size)

def acknowledge(line):
    os.write(log, (line + "\n").encode())

def write_file(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:rng.choice((700, 65536, 1 << 20))]):]
    os.fsync(fd)
    os.close(fd)

i = 0
if kind == "files":
    while True:
        size = rng.choice((0, 1, 4096, 100_000, 3_000_000))
        name = f"{seed}-{i}-{size}"
        write_file(f"{top}/{name}", content(name, size))
        acknowledge(f"file {name}")
        i += 1
elif kind == "long":  # and never synced
    while True:
        name = f"long-{rng.randrange(1 << 30)}"
        stream = random.Random(name)
        fd = os.open(f"{top}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        for _ in range(64):
            view = memoryview(stream.randbytes(1 << 20))
            while view:
                view = view[os.write(fd, view[:rng.choice((700, 65536, 1 << 20))]):]
        os.close(fd)
        for old in sorted((f for f in os.listdir(top) if f.startswith("long")), key=lambda f: f != name)[3:]:
            os.unlink(f"{top}/{old}")
elif kind == "records":
    name = f"records-{seed}"
    fd = os.open(f"{top}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    while True:
        os.write(fd, f"{i:08}".encode() + content(f"{seed}:{i}", 120))
        os.fsync(fd)
        i += 1
        acknowledge(f"records {name} {i}")
elif kind == "replace":
    while True:
        size = rng.choice((10, 5000, 200_000))
        name = f"replaced-{seed}"
        write_file(f"{top}/.{name}.tmp", f"{i:08} {size:08} ".encode() + content(f"{seed}:{i}", size))
        os.rename(f"{top}/.{name}.tmp", f"{top}/{name}")
        d = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(d)
        os.close(d)
        acknowledge(f"replace {name} {i}")
        i += 1
"""


def content(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


def verify_file(top: Path, name: str) -> None:
    want = content(name, int(name.rsplit("-", 1)[1]))
    assert (top / name).read_bytes() == want, name


def verify_records(top: Path, name: str, acknowledged: int) -> None:
    number = name.split("-", 1)[1]
    data = (top / name).read_bytes()
    assert len(data) >= 128 * acknowledged, (name, len(data), acknowledged)
    for i in range(len(data) // 128):
        assert data[128 * i : 128 * (i + 1)] == f"{i:08}".encode() + content(f"{number}:{i}", 120), (name, i)
    assert len(data) % 128 == 0, "half a record became visible"


def verify_replaced(top: Path, name: str, acknowledged: int) -> None:
    data = (top / name).read_bytes()
    serial, size = int(data[:8]), int(data[9:17])
    assert serial >= acknowledged, (name, serial, acknowledged)
    assert data[18:] == content(f"{name.split('-', 1)[1]}:{serial}", size), name


def verify_long(top: Path, name: str) -> None:
    """What was never synced has no hole where bytes were: it is the beginning of what was written."""
    stream = random.Random(name)
    with open(top / name, "rb") as file:
        while piece := file.read(1 << 20):
            assert stream.randbytes(1 << 20)[: len(piece)] == piece, f"{name} before byte {file.tell()}"


def verify(top: Path, journals: list[Path]) -> int:
    checked = 0
    for journal in journals:
        last: dict[str, tuple[str, int]] = {}
        for line in journal.read_text().splitlines():
            kind, name, *rest = line.split()
            if kind == "file":
                verify_file(top, name)
            else:
                last[name] = (kind, int(rest[0]))
            checked += 1
        for name, (kind, number) in last.items():
            (verify_records if kind == "records" else verify_replaced)(top, name, number)
    # what was not acknowledged may be missing, but must not be half there with wrong bytes
    for path in top.iterdir():
        if path.name.startswith("long"):
            verify_long(top, path.name)
            continue
        if path.name.startswith((".", "records", "replaced")):
            continue
        want = content(path.name, int(path.name.rsplit("-", 1)[1]))
        assert want.startswith(path.read_bytes()), f"{path.name}: bytes that nobody wrote"
    return checked


@pytest.mark.timeout(3600 if LONG else 600)
def test_acknowledged_survives_kill_of_everything(tmp_path: Path) -> None:
    need_fuse()
    rng = random.Random(seed("kill everything"))
    made = Cluster(tmp_path / "data")
    mount = tmp_path / "mnt"
    journals: list[Path] = []
    try:
        for number in range(ROUNDS):
            made.up()
            made.mount(mount)
            top = mount / "work"
            top.mkdir(exist_ok=True)
            verify(top, journals)
            workers = []
            for kind in ("files", "records", "replace", "long"):
                journal = tmp_path / f"journal-{number}-{kind}"
                journal.touch()
                journals.append(journal)
                arguments = [str(top), str(journal), kind, str(rng.randrange(1 << 30))]
                workers.append(subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stderr=subprocess.DEVNULL))
            time.sleep(rng.uniform(0.3, 2.5))
            made.kill_all()
            for worker in workers:
                worker.kill()
                worker.wait(20)
        made.up()
        made.mount(mount)
        checked = verify(mount / "work", journals)
        print(f"{ROUNDS} rounds, {checked} acknowledgements checked")
        assert checked > 5 * ROUNDS, "hardly anything was acknowledged: the test has no power"
        assert os.listdir(mount) == ["work"]
    finally:
        made.clean()
