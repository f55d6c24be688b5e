"""How much anonymous memory all processes together take while a big file and many small ones go through."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.bench.rows import MIB, Figure, create
from tests.bench.systems import Fusefs


def memory(system: Fusefs, big_gib: int = 10, files: int = 20_000) -> list[Figure]:
    """Return the highest sum of RssAnon seen, in MiB."""
    highest = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.2):
            highest = max(highest, system.rss_anon_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _write_and_read(system.top, big_gib, files)
    finally:
        over.set()
        watcher.join()
    return [(f"rss_anon_{big_gib}GiB_and_{files}_files", highest / MIB, "MiB")]


def _write_and_read(top: Path, big_gib: int, files: int) -> None:
    unit = bytearray(os.urandom(MIB))
    with open(top / "big", "wb", buffering=0) as f:
        for i in range(big_gib * 1024):
            unit[:8] = i.to_bytes(8, "big")
            f.write(unit)
        os.fsync(f.fileno())
    with open(top / "big", "rb", buffering=0) as f:
        while f.readinto(unit):
            pass
    (top / "big").unlink()
    (top / "many").mkdir()
    for i in range(files):
        create(top / "many" / f"f{i:06}")
