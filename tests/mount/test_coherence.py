"""Each kind of change on one mount, and the first look at it from the other: never stale. Latencies are printed.

The viewer has everything cached that it can have before each change: what is there, and what is not.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import LONG

TRIALS = 10_000 if LONG else 500
LISTED = 20
SHARED = 100  # changes of one file, then of another: what two mounts want is treated differently


class Kind(NamedTuple):
    """``change(a, i)`` makes change i; ``look(b, i)`` says whether it is seen. Before change i nobody sees it."""

    change: Callable[[Path, int], object]
    look: Callable[[Path, int], bool]
    prepare: Callable[[Path], object] = lambda top: None


def one(top: Path, i: int) -> Path:
    """The file that change i is about."""
    return top / f"f{i // SHARED}"


def files(top: Path) -> None:
    for i in range(0, TRIALS, SHARED):
        one(top, i).write_bytes(b"old")


def names(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def prepare(top: Path) -> None:
        for i in range(TRIALS):
            make(top / f"n{i}")

    return prepare


def replace(top: Path, i: int) -> None:
    (top / "tmp").write_bytes(b"%d" % i)
    os.replace(top / "tmp", one(top, i))


def append(top: Path, i: int) -> None:
    with open(one(top, i), "ab", buffering=0) as file:
        file.write(b"%06d\n" % i)


def overwrite(top: Path, i: int) -> None:
    with open(one(top, i), "r+b", buffering=0) as file:
        file.write(b"%06d\n" % i)


def shift(top: Path, i: int) -> None:
    (top / f"l{i}").touch()
    if i >= LISTED:
        (top / f"l{i - LISTED}").unlink()


def is_there(top: Path, i: int) -> bool:
    return os.path.lexists(top / f"n{i}")


def renamed(top: Path, i: int) -> bool:
    return os.path.lexists(top / f"r{i}") and not os.path.lexists(top / f"n{i}")


KINDS = {
    "create": Kind(lambda a, i: (a / f"n{i}").touch(), is_there),
    "close": Kind(
        lambda a, i: (a / f"n{i}").write_bytes(b"%d" % i * 500),
        lambda b, i: (b / f"n{i}").is_file() and (b / f"n{i}").read_bytes() == b"%d" % i * 500,
    ),
    "mkdir": Kind(lambda a, i: (a / f"n{i}").mkdir(), is_there),
    "symlink": Kind(lambda a, i: os.symlink("to", a / f"n{i}"), is_there),
    "link": Kind(lambda a, i: os.link(one(a, i), a / f"n{i}"), is_there, files),
    "unlink": Kind(lambda a, i: (a / f"n{i}").unlink(), lambda b, i: not is_there(b, i), names(Path.touch)),
    "rmdir": Kind(lambda a, i: (a / f"n{i}").rmdir(), lambda b, i: not is_there(b, i), names(Path.mkdir)),
    "rename": Kind(lambda a, i: (a / f"n{i}").rename(a / f"r{i}"), renamed, names(Path.touch)),
    "replace": Kind(replace, lambda b, i: one(b, i).read_bytes() == b"%d" % i, files),
    "listing": Kind(shift, lambda b, i: f"l{i}" in os.listdir(b)),
    "chmod": Kind(
        lambda a, i: one(a, i).chmod(0o400 + i % 128),
        lambda b, i: stat.S_IMODE(one(b, i).stat().st_mode) == 0o400 + i % 128,
        files,
    ),
    "truncate": Kind(
        lambda a, i: os.truncate(one(a, i), i + 10), lambda b, i: one(b, i).stat().st_size == i + 10, files
    ),
    "setxattr": Kind(
        lambda a, i: os.setxattr(one(a, i), "user.n", b"%d" % i),
        lambda b, i: os.listxattr(one(b, i)) != [] and os.getxattr(one(b, i), "user.n") == b"%d" % i,
        files,
    ),
    "append": Kind(append, lambda b, i: one(b, i).read_bytes().endswith(b"%06d\n" % i), files),
    "overwrite": Kind(overwrite, lambda b, i: one(b, i).read_bytes() == b"%06d\n" % i, files),
}


@pytest.mark.timeout(1200 if LONG else 300)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_look_is_never_stale(work: Path, second_mount: Path, kind: str) -> None:
    change, look, prepare = KINDS[kind]
    a, b = work, second_mount / work.name
    prepare(a)
    stale, took = [], []
    for i in range(TRIALS):
        for _ in range(4 if i % 5 == 0 else 1):  # a name that is missing the kernel believes after some times
            assert not look(b, i), f"{kind}: change {i} is seen before it was made"
        change(a, i)
        began = time.perf_counter()
        if not look(b, i):
            stale.append(i)
        took.append(time.perf_counter() - began)
    took.sort()
    p50, p99 = took[TRIALS // 2] * 1e3, took[TRIALS * 99 // 100] * 1e3
    print(f"{kind}: {TRIALS} first looks, {len(stale)} stale, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    assert not stale, f"{kind}: {len(stale)} first looks of {TRIALS} were stale: {stale[:10]}"
