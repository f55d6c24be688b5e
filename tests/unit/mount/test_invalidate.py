"""Pages that must go are dropped from a thread, whatever the kernel answers."""

from __future__ import annotations

import errno
import threading

import pyfuse3
import pytest
import structlog.testing
import trio
import trio.testing

from fusefs.mount.invalidate import PageDropper


async def test_pages_are_dropped_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[tuple[int, bool]] = []
    seen = trio.Event()
    token = trio.lowlevel.current_trio_token()
    loop = threading.get_ident()

    def invalidate(ino: int) -> None:
        dropped.append((ino, threading.get_ident() == loop))
        if ino == 9:
            token.run_sync_soon(seen.set)
        if ino == 5:
            raise OSError(errno.ENOENT, "the kernel has forgotten it")
        if ino == 6:
            raise OSError(errno.EIO, "strange")

    monkeypatch.setattr(pyfuse3, "invalidate_inode", invalidate)
    dropper = PageDropper()
    for ino in (7, 5, 6, 7):
        dropper.drop(ino)
    assert dropper.statistics() == {"pending": 3, "dropped": 0}
    with structlog.testing.capture_logs() as logged, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dropper.run)
            await trio.testing.wait_all_tasks_blocked()
            dropper.drop(9)
            await seen.wait()
            await dropper.drop_now(3)
            nursery.cancel_scope.cancel()
    assert dropped == [(5, False), (6, False), (7, False), (9, False), (3, False)]
    assert [entry["ino"] for entry in logged] == [6]
