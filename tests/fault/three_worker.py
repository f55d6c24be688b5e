"""One program of the workload of three mounts: what it does is synced before it counts as done.

    python -m tests.fault.three_worker KIND DIRECTORY JOURNAL SEED PROCESS

It ends at SIGTERM, after what it is doing.

A mount that is stopped or cut off for longer than its leases last loses what it had not synced. So every change here is
followed by an fsync, and its outcome is unknown where that fails. Then whoever made it leaves that history alone.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fault.nemesis_worker import NAMES, RECORD, Recorder

STEPS = 25  # of a history, for each worker


def sync_directory(where: Path) -> None:
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def synced(where: Path, call: Callable[..., object], *arguments: Any) -> str:
    call(*arguments)
    sync_directory(where)
    return "ok"


def write(path: Path, value: int, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        if not flags & os.O_TRUNC:
            os.write(fd, b"%015d\n" % value)
        os.fsync(fd)
    finally:
        os.close(fd)


def values(path: Path, flags: int = 0) -> list[int]:
    """The records of a file, in one read: zeros are no record."""
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        data = os.read(fd, 1 << 16)
    finally:
        os.close(fd)
    assert len(data) % RECORD == 0 and b"\0" not in data, f"{path}: {data!r}"
    return [int(line) for line in data.split()]


def value(path: Path) -> int:
    (found,) = values(path)
    return found


def replace(where: Path, target: str, mine: int) -> str:
    """Another file under a name that never ceases to exist."""
    prepared = where / f"prepared-{mine}"
    write(prepared, mine, os.O_EXCL)
    return synced(where, os.replace, prepared, where / target)


class Worker:
    """One step of each kind returns False where this history is to be left alone."""

    def __init__(self, record: Recorder, top: Path, rng: random.Random, process: int) -> None:
        self.record, self.top, self.rng = record, top, rng
        self.serial = itertools.count(process * 1_000_000)

    def names(self, number: int) -> bool:
        where = self.top / f"names{number}"
        where.mkdir(exist_ok=True)
        one, other = self.rng.choice(NAMES), self.rng.choice(NAMES)
        kind = self.rng.choice(("create", "create", "unlink", "rename", "rename", "read", "read", "list"))
        do, obj = self.record.do, f"names/{number}"
        if kind == "create":
            serial = next(self.serial)
            return do(obj, (kind, one, serial), synced, where, os.symlink, str(serial), where / one) is not None
        if kind == "unlink":
            return do(obj, (kind, one), synced, where, os.unlink, where / one) is not None
        if kind == "rename":
            return do(obj, (kind, one, other), synced, where, os.rename, where / one, where / other) is not None
        if kind == "read":
            return do(obj, (kind, one), lambda path: int(os.readlink(path)), where / one) is not None
        return do(obj, (kind,), lambda path: sorted(os.listdir(path)), where) is not None

    def over(self, number: int) -> bool:
        where = self.top / f"over{number}"
        where.mkdir(exist_ok=True)
        try:
            first = where / f"first-{next(self.serial)}"
            write(first, 0)
            os.link(first, where / "f")
            sync_directory(where)
        except FileExistsError:
            pass
        do, obj = self.record.do, f"over/{number}"
        for _ in range(4):
            mine = next(self.serial)
            if do(obj, ("write", mine), replace, where, "f", mine) is None:
                return False
            for _ in range(3):
                if do(obj, ("read",), value, where / "f") is None:
                    return False
        return True

    def log(self, number: int) -> bool:
        """Appends."""
        path, do, obj = self.top / f"log{number}", self.record.do, f"log/{number}"
        if self.rng.random() < 0.5:
            mine = next(self.serial)
            return do(obj, ("append", mine), lambda: write(path, mine, os.O_APPEND) or "ok") is not None
        return do(obj, ("read",), values, path) is not None

    def cut(self, number: int) -> bool:
        """Like a log, emptied now and then."""
        path, do, obj = self.top / f"cut{number}", self.record.do, f"cut/{number}"
        kind = self.rng.choice(("append",) * 6 + ("cut",) + ("read",) * 5)
        if kind == "append":
            mine = next(self.serial)
            return do(obj, (kind, mine), lambda: write(path, mine, os.O_APPEND) or "ok") is not None
        if kind == "cut":
            return do(obj, (kind,), lambda: write(path, 0, os.O_TRUNC) or "ok") is not None
        return do(obj, (kind,), values, path) is not None


def main() -> None:
    kind, top, journal, seed, process = sys.argv[1:]
    rng = random.Random(int(seed))
    recorder = Recorder(Path(journal), int(process))
    worker = Worker(recorder, Path(top), rng, int(process))
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    step: Callable[[int], bool] = getattr(worker, kind)
    number = 0
    while not told:
        for _ in range(STEPS if kind != "over" else 3):
            try:
                if told or not step(number):
                    break
            except OSError:  # of a preparation
                time.sleep(0.1)
            time.sleep(rng.uniform(0, 0.02))
        number += 1


if __name__ == "__main__":
    main()
