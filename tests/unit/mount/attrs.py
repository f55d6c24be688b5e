"""Attributes for tests, and waiting."""

from __future__ import annotations

import stat
from collections.abc import Callable
from types import SimpleNamespace

import trio

from metadata.api import Attr


def attr(ino: int, *, mode: int = stat.S_IFREG | 0o644, size: int = 0, version: int = 1, **changes: int) -> Attr:
    """An inode whose data is at ``version``."""
    fields = dict(
        ino=ino, mode=mode, nlink=1, uid=1000, gid=1000, rdev=0, size=size, stored=size, atime_ns=1, mtime_ns=2,
        ctime_ns=3, btime_ns=4, version=version, data_version=version,
    )
    return Attr(**(fields | changes))


async def until(condition: Callable[[], bool]) -> None:
    """Wait, for long, until something is so."""
    for _ in range(30_000):
        if condition():
            return
        await trio.sleep(0.001)
    raise AssertionError("it never was")


class Opened(SimpleNamespace):
    """Like a handle: the same as itself only."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other
