"""What the extension is told of files without capabilities, and what is taken back."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from fusefs.client.fileio import CAPABILITY
from fusefs.mount.caching import KernelCache
from fusefs.mount.incapable import Incapable
from fusefs.mount.kernel import MARGIN_S, KernelView
from fusefs.mount.names import Busy
from fusefs.mount.notify import Notifier
from fusefs.mount.operations import Operations
from node.wire.errors import Code, FsError

CTX = SimpleNamespace(uid=1000, gid=100, pid=1, umask=0o22)


class Table:
    def __init__(self) -> None:
        self.left_s: dict[int, float] = {}

    def set_incapable(self, ino: int, left_s: float) -> None:
        self.left_s[ino] = left_s

    def none_incapable(self) -> None:
        self.left_s.clear()


class Volume:
    """Has no extended attributes; ``certain_s`` is how long that is known."""

    certain_s = 10.0

    def lacks_s(self, ino: int, name: bytes) -> float:
        assert name == CAPABILITY
        return self.certain_s

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise FsError(Code.NO_ATTRIBUTE, "")

    async def setxattr(self, *arguments: Any, **options: Any) -> None:
        await trio.lowlevel.checkpoint()

    def committing(self, ino: int) -> bool:
        return False


def made() -> tuple[Operations, Table, Volume]:
    table, volume = Table(), Volume()
    operations = Operations(volume, None)  # type: ignore[arg-type]
    operations.incapable = Incapable(table, volume.lacks_s)
    return operations, table, volume


async def ask(operations: Operations, name: bytes) -> None:
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await operations.getxattr(5, name, CTX)
    assert answer.value.errno == errno.ENODATA


async def test_what_was_asked_once_is_known_as_long_as_the_lease_lasts() -> None:
    operations, table, volume = made()
    await ask(operations, b"user.other")
    assert not table.left_s
    await ask(operations, CAPABILITY)
    assert table.left_s == {5: 10.0 - MARGIN_S}
    await operations.setxattr(5, b"user.other", b"", CTX)
    assert table.left_s == {5: 0.0}, "whatever is set"
    table.left_s.clear()
    volume.certain_s = MARGIN_S
    await ask(operations, CAPABILITY)
    assert not table.left_s


async def test_a_recall_and_the_end_of_all_leases_take_it_back() -> None:
    _, table, volume = made()
    incapable = Incapable(table, volume.lacks_s)
    leased: Any = None
    cache = KernelCache(leased, KernelView(), Notifier(None), lambda: 0.0, Busy(), incapable=incapable)
    for ino in (5, 6):
        incapable.look(ino)
    await cache.forget([5])
    assert table.left_s == {5: 0.0, 6: 10.0 - MARGIN_S}
    await cache.forget_all()
    assert not table.left_s
