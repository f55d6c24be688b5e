"""One program of the recorded workload: calls on a mount, each written down with when it began and ended.

    python -m tests.fault.nemesis_worker KIND DIRECTORY JOURNAL SEED PROCESS SECONDS

Every call becomes a line of JSON: object, call, result, start and end. The object names a history of its own; the
calls are those of tests.linear.directory. An error that does not say whether the call took effect is "unknown".
Symbolic links stand for files with content, because they come into being whole.
"""

from __future__ import annotations

import contextlib
import ctypes
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
UNKNOWN_PAUSE_S = 2.0  # each unknown outcome of a history doubles what its checker has to look at


class Recorder:
    """Runs calls and writes them down, one line each, at once."""

    def __init__(self, journal: Path, process: int) -> None:
        self.out = open(journal, "a", buffering=1)  # noqa: SIM115
        self.process = process
        self.failed = ""  # the newest call whose outcome is not known

    def close(self) -> None:
        self.out.close()

    def do(self, obj: str, call: tuple[Any, ...], work: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result, None where it is not known."""
        start = time.monotonic()
        try:
            result, known = work(*arguments), True
            end = time.monotonic()
        except OSError as error:
            end = time.monotonic()
            result, known = CERTAIN.get(error.errno or 0), error.errno in CERTAIN
            if not known:
                self.failed = f"{obj} {call}: {error}"
                time.sleep(UNKNOWN_PAUSE_S)
        line: dict[str, Any] = {"object": obj, "call": call, "start": start, "process": self.process}
        if known:
            line |= {"result": result, "end": end}
        self.out.write(json.dumps(line) + "\n")
        return result if known else None


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
    _files_written("register", 0, record, top, rng, until, process)


def log(record: Recorder, top: Path, rng: random.Random, until: float, process: int) -> None:
    """Appends with fsync to files that both mounts append to, and reads of the whole."""
    _files_written("log", os.O_APPEND, record, top, rng, until, process)


CONTENT = {"register": ("write", _value), "log": ("append", _values)}


def _files_written(
    kind: str, flags: int, record: Recorder, top: Path, rng: random.Random, until: float, process: int
) -> None:
    """Write with fsync, or read, one file after the other.

    What fsync(2) has failed to store may still be shown by this mount, which tries again or gives it up; nothing is
    said of what others see of it. So after a failure this mount has no say in that file before a write succeeds, which
    an append cannot make up for.
    """
    change, value_of = CONTENT[kind]
    failed: set[str] = set()
    for path, obj, value in _files(kind, top, until, process):
        if rng.random() < 0.55:
            if record.do(obj, (change, value), _put, path, flags, value) is None:
                failed.add(obj)
            elif kind == "register":
                failed.discard(obj)
        elif obj not in failed:
            record.do(obj, ("read",), value_of, path)
        time.sleep(rng.uniform(0, 0.02))


def swap(record: Recorder, top: Path, rng: random.Random, until: float, process: int) -> None:
    """A register that only compare-and-swap changes: version n+1 is made, whole, where nobody has made it yet.

    Three ways that programs do it by: link(2) of a finished file to the next name, renameat2(2) of it with
    RENAME_NOREPLACE, and a creation that fails where the name is taken (symlink(2), which like open(2) with O_EXCL
    has no other answer, but brings its content along).
    """
    version: dict[str, int] = {}
    for path, obj, value in _files("swap", top, until, process):
        try:
            path.mkdir(exist_ok=True)
        except OSError:
            time.sleep(0.05)
            continue
        after = version.setdefault(obj, 0)
        if rng.random() < 0.6:
            way = rng.choice((_by_link, _by_rename, _by_creation))
            answer = record.do(obj, ("swap", after, value), way, path, after, value)
        else:
            answer = record.do(obj, ("get", after), version_of, path, after)
        if answer is not None and answer != "ENOENT":
            version[obj] += 1
        time.sleep(rng.uniform(0, 0.02))


def version_of(where: Path, number: int) -> int:
    """What a version of a register says."""
    path = where / f"v{number}"
    try:
        return int(os.readlink(path))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return int(path.read_bytes())


def _prepared(where: Path, value: int) -> Path:
    path = where / f"prepared-{value}"
    _put(path, os.O_EXCL, value)
    return path


def _by_link(where: Path, number: int, value: int) -> str:
    prepared = _prepared(where, value)
    try:
        os.link(prepared, where / f"v{number}")
    finally:
        _discard(prepared)
    return _synced(where)


def _by_rename(where: Path, number: int, value: int) -> str:
    prepared = _prepared(where, value)
    try:
        _rename_noreplace(prepared, where / f"v{number}")
    except FileExistsError:
        _discard(prepared)
        raise
    return _synced(where)


def _by_creation(where: Path, number: int, value: int) -> str:
    os.symlink(str(value), where / f"v{number}")
    return _synced(where)


def _discard(prepared: Path) -> None:
    with contextlib.suppress(OSError):  # nobody looks for it
        os.unlink(prepared)


def _synced(where: Path) -> str:
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return "ok"


def _rename_noreplace(source: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd, rename_noreplace = -100, 1
    if libc.renameat2(at_fdcwd, os.fsencode(source), at_fdcwd, os.fsencode(target), rename_noreplace):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def look(record: Recorder, obj: str, top: Path) -> None:
    """Record a read of everything that a history is about."""
    kind, number = obj.split("/")
    if kind == "names":
        where = top / f"d{number}"
        record.do(obj, ("list",), _listing, where)
        for name in NAMES:
            record.do(obj, ("read", name), _target, where / name)
    elif kind == "swap":
        where = top / f"swap{number}"
        version = 0
        while record.do(obj, ("get", version), version_of, where, version) not in (None, "ENOENT"):
            version += 1
    else:
        record.do(obj, ("read",), CONTENT[kind][1], top / f"{kind}{number}")


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
    work = {"names": names, "register": register, "log": log, "swap": swap}[kind]
    recorder = Recorder(Path(journal), int(process))
    work(recorder, Path(top), random.Random(int(seed)), time.monotonic() + float(seconds), int(process))


if __name__ == "__main__":
    main()
