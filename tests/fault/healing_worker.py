"""Write and remove files on a mount, note each step that was acknowledged, and read files back, the other mount's too,
from the chunk servers: whatever is wrong is noted.

Lines of the journal: ``wrote NAME`` (durable), ``going NAME`` (about to be removed), ``wrong NAME``."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

FILE_BYTES_MAX = 150_000
PAUSE_S = 0.15
REMOVED = 0.15  # of the steps


def content(name: str) -> bytes:
    """What a file of this name holds."""
    length = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % FILE_BYTES_MAX
    return hashlib.shake_128(name.encode()).digest(length + 1)


def remaining(journals: Iterable[Path]) -> set[str]:
    """The files that were acknowledged and not taken away."""
    wrote: set[str] = set()
    going: set[str] = set()
    for journal in journals:
        for line in journal.read_text().splitlines() if journal.exists() else ():
            what, name = line.split()
            (going if what == "going" else wrote).add(name)
    return wrote - going


def read_anew(path: Path) -> bytes:
    """Read a file, nothing of it from the kernel's memory."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.readall()


def write(path: Path, data: bytes) -> None:
    """Return when a new file is durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view):]
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    top, mine, theirs, stop = map(Path, sys.argv[1:5])
    seed = int(sys.argv[5])
    rng = random.Random(seed)
    log = os.open(mine, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    written: list[str] = []
    while not stop.exists():
        name = f"{seed}-{len(written)}"
        write(top / name, content(name))
        os.write(log, f"wrote {name}\n".encode())
        written.append(name)
        if rng.random() < REMOVED:
            gone = rng.choice(written)
            if (top / gone).exists():
                os.write(log, f"going {gone}\n".encode())
                (top / gone).unlink()
        earlier = rng.choice(sorted(remaining([mine, theirs])) or [name])
        try:
            if read_anew(top / earlier) != content(earlier):
                os.write(log, f"wrong {earlier}\n".encode())
        except FileNotFoundError:
            if earlier in remaining([mine, theirs]):
                os.write(log, f"wrong {earlier}\n".encode())
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
