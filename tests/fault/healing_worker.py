"""Write files on a mount, note each that was acknowledged, and read earlier ones back: whatever is wrong is printed."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from pathlib import Path

FILE_BYTES = 150_000
PAUSE_S = 0.05


def content(name: str) -> bytes:
    """What a file of this name holds."""
    return hashlib.shake_128(name.encode()).digest(FILE_BYTES)


def main() -> None:
    top, journal, stop, seed = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(seed)
    log = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    written: list[str] = []
    while not stop.exists():
        name = f"{seed}-{len(written)}"
        descriptor = os.open(top / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        view = memoryview(content(name))
        while view:
            view = view[os.write(descriptor, view):]
        os.fsync(descriptor)
        os.close(descriptor)
        os.write(log, f"wrote {name}\n".encode())
        written.append(name)
        earlier = rng.choice(written)
        if (top / earlier).read_bytes() != content(earlier):
            os.write(log, f"wrong {earlier}\n".encode())
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
