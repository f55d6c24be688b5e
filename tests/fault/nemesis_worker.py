"""One program of the recorded workload: calls on a mount, each written down with when it began and ended.

    python -m tests.fault.nemesis_worker KIND DIRECTORY JOURNAL SEED PROCESS SECONDS

Every call becomes a line of JSON: object, call, result, start and end. The object names a history of its own; the
calls are those of tests.linear.directory. An error that does not say whether the call took effect is "unknown".
Symbolic links stand for files with content, because they come into being whole.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAMES = ("a", "b", "c")
CERTAIN = {errno.ENOENT: "ENOENT", errno.EEXIST: "EEXIST"}
OPERATIONS_PER_DIRECTORY = 30
RECORD = 16


class Recorder:
    """Runs calls and writes them down, one line each, at once."""

    def __init__(self, journal: Path, process: int) -> None:
        self.out = open(journal, "a", buffering=1)  # noqa: SIM115
        self.process = process

    def do(self, obj: str, call: tuple[Any, ...], work: Callable[..., Any], *arguments: Any) -> None:
        start = time.monotonic()
        try:
            result, known = work(*arguments), True
        except OSError as error:
            result, known = CERTAIN.get(error.errno or 0), error.errno in CERTAIN
            if not known:
                time.sleep(0.05)
        end = time.monotonic()
        line = {"object": obj, "call": call, "start": start, "process": self.process}
        if known:
            line |= {"result": result, "end": end}
        self.out.write(json.dumps(line) + "\n")


def names(record: Recorder, top: Path, rng: random.Random, until: float, process: int) -> None:
    """Creates, renames or links, unlinks, reads and listings in small directories that both mounts work in.

    No directory sees both link(2) and rename(2): the kernel itself answers a rename between two names of one file,
    from two look-ups that another mount's rename may fall between.
    """
    serial = process * 1_000_000
    step = 0
    while time.monotonic() < until:
        number = step // OPERATIONS_PER_DIRECTORY
        step += 1
        where = top / f"d{number}"
        try:
            where.mkdir(exist_ok=True)
        except OSError:
            time.sleep(0.05)
            continue
        one, other = rng.choice(NAMES), rng.choice(NAMES)
        change = ("rename", "link")[number % 2]
        kind = rng.choice(("create", "create", "unlink", change, change, "read", "read", "list"))
        obj = f"names/{number}"
        if kind == "create":
            serial += 1
            text = str(serial)
            record.do(obj, (kind, one, serial), _done, os.symlink, text, where / one)
        elif kind == "link":
            record.do(obj, (kind, one, other), _link, where / one, where / other)
        elif kind == "unlink":
            record.do(obj, (kind, one), _done, os.unlink, where / one)
        elif kind == "rename":
            record.do(obj, (kind, one, other), _done, os.rename, where / one, where / other)
        elif kind == "read":
            record.do(obj, (kind, one), _target, where / one)
        else:
            record.do(obj, (kind,), _listing, where)
        time.sleep(rng.uniform(0, 0.02))


def _done(call: Callable[..., None], *arguments: Any) -> str:
    call(*arguments)
    return "ok"


def _target(path: Path) -> int:
    return int(os.readlink(path))


def _listing(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def _values(path: Path) -> list[int]:
    return [int(line) for line in path.read_bytes().split()]


def _value(path: Path) -> int:
    """A register that nobody has written yet, there or not, is 0."""
    try:
        return int(path.read_bytes() or b"0")
    except FileNotFoundError:
        return 0


def _link(source: Path, target: Path) -> str:
    os.link(source, target, follow_symlinks=False)
    return "ok"


def register(record: Recorder, top: Path, rng: random.Random, until: float, process: int) -> None:
    """A few files whose whole content is one number: write and fsync, read."""
    for path, obj, value in _files("register", top, until, process):
        if rng.random() < 0.5:
            record.do(obj, ("write", value), _put, path, 0, value)
        else:
            record.do(obj, ("read",), _value, path)
        time.sleep(rng.uniform(0, 0.02))


def log(record: Recorder, top: Path, rng: random.Random, until: float, process: int) -> None:
    """Appends with fsync to files that both mounts append to, and reads of the whole."""
    for path, obj, value in _files("log", top, until, process):
        if rng.random() < 0.6:
            record.do(obj, ("append", value), _put, path, os.O_APPEND, value)
        else:
            record.do(obj, ("read",), _values, path)
        time.sleep(rng.uniform(0, 0.02))


def _files(kind: str, top: Path, until: float, process: int) -> Iterator[tuple[Path, str, int]]:
    """Yield a file to work on, the name of its history, and a value that nobody has written."""
    for step in itertools.count():
        if time.monotonic() >= until:
            return
        number = step // OPERATIONS_PER_DIRECTORY
        yield top / f"{kind}{number}", f"{kind}/{number}", process * 1_000_000 + step + 1


def _put(path: Path, flags: int, value: int) -> str:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        os.write(fd, b"%015d\n" % value)
        os.fsync(fd)
    finally:
        os.close(fd)
    return "ok"


def main() -> None:
    kind, top, journal, seed, process, seconds = sys.argv[1:]
    work = {"names": names, "register": register, "log": log}[kind]
    recorder = Recorder(Path(journal), int(process))
    work(recorder, Path(top), random.Random(int(seed)), time.monotonic() + float(seconds), int(process))


if __name__ == "__main__":
    main()
