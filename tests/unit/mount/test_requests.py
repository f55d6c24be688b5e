"""Requests that pyfuse3 has no handler for: each is answered, once, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.client.space import KEEP_SIZE
from fusefs.mount.errors import Complaints
from fusefs.mount.profile import Profile
from fusefs.mount.requests import END, KernelRequests
from metadata.api import LockState
from node.wire.errors import Code, FsError


class FakeRequest:
    """As the extension's: the first answer counts."""

    pid = 4711

    def __init__(self) -> None:
        self.answer: tuple[Any, ...] | None = None
        self.interrupt: Callable[[], object] = lambda: None

    def _answer(self, *answer: Any) -> bool:
        if self.answer is not None:
            return False
        self.answer = answer
        return True

    def fail(self, number: int) -> bool:
        return self._answer("fail", number)

    def count(self, count: int) -> bool:
        return self._answer("count", count)

    def position(self, offset: int) -> bool:
        return self._answer("position", offset)

    def lock(self, *what: int) -> bool:
        return self._answer("lock", *what)

    def on_interrupt(self, callback: Callable[[], object]) -> None:
        self.interrupt = callback


class FakeVolume:
    """Notes calls; ``answer`` is returned, raised or called."""

    def __init__(self, answer: Any = None) -> None:
        self.calls: list[Any] = []
        self.answer = answer
        self.locking = self

    def is_own(self, state: LockState) -> bool:
        return state.session == 1

    def __getattr__(self, name: str) -> Any:
        async def method(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments, options))
            if isinstance(self.answer, Exception):
                raise self.answer
            if callable(self.answer):
                return await self.answer(*arguments, **options)
            return self.answer

        return method


async def ask(volume: Any, name: str, *arguments: Any) -> FakeRequest:
    request = FakeRequest()
    async with trio.open_nursery() as nursery:
        files: Any = {5: SimpleNamespace(ino=9), 6: SimpleNamespace(ino=10)}
        requests = KernelRequests(volume, files, Complaints(), nursery, Profile())
        requests.handle(name, request, arguments)  # type: ignore[arg-type]
    return request


async def test_ranges_and_kinds_are_translated() -> None:
    volume = FakeVolume()
    for length, high in ((10, 29), (0, END)):
        assert (await ask(volume, "setlk", 9, 5, 77, fcntl.F_WRLCK, 20, length, 1, 0)).answer == ("fail", 0)
        options = volume.calls[-1][2]
        assert (options["low"], options["high"], options["exclusive"], options["wait"]) == (20, high, True, None)
    await ask(volume, "setlk", 9, 5, 77, fcntl.F_UNLCK, 0, 0, 1, 0)
    await ask(volume, "flock", 9, 5, 77, fcntl.LOCK_SH | fcntl.LOCK_NB)
    await ask(volume, "flock", 9, 5, 77, fcntl.LOCK_UN)
    assert [name for name, _, _ in volume.calls[-3:]] == ["unlock", "lock", "unlock"]
    assert volume.calls[-2][2]["wait"] is None and volume.calls[-2][2]["flock"]


async def test_getlk_tells_pids_of_this_host_only() -> None:
    for session, pid in ((1, 4), (2, 0)):
        volume = FakeVolume(LockState(False, True, True, 10, 19, session, 4))
        request = await ask(volume, "getlk", 9, 5, 77, fcntl.F_RDLCK, 0, 0)
        assert request.answer == ("lock", fcntl.F_WRLCK, 10, 10, pid)
    free = await ask(FakeVolume(LockState(False)), "getlk", 9, 5, 77, fcntl.F_RDLCK, 3, 4)
    assert free.answer == ("lock", fcntl.F_UNLCK, 3, 4, 0)


async def test_offsets_and_counts_come_back() -> None:
    assert (await ask(FakeVolume(12), "lseek", 9, 5, 3, os.SEEK_DATA)).answer == ("position", 12)
    assert (await ask(FakeVolume(12), "lseek", 9, 5, 3, os.SEEK_CUR)).answer == ("fail", errno.EINVAL)
    assert (await ask(FakeVolume(99), "copy_file_range", 5, 0, 6, 0, 99, 0)).answer == ("count", 99)
    assert (await ask(FakeVolume(99), "copy_file_range", 5, 0, 6, 0, 99, 1)).answer == ("fail", errno.EINVAL)
    assert (await ask(FakeVolume(), "fallocate", 9, 5, 0, 0, 10)).answer == ("fail", 0)


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (FsError(Code.LOCKED), errno.EAGAIN),
        (FsError(Code.DEADLOCK), errno.EDEADLK),
        (FsError(Code.NO_LOCKS), errno.ENOLCK),
        (FsError(Code.BEYOND_END), errno.ENXIO),
        (FsError(Code.MISSING_BLOCK), errno.EIO),
        (ValueError("a bug"), errno.EIO),
    ],
)
async def test_errors_become_errnos(raised: Exception, number: int) -> None:
    assert (await ask(FakeVolume(raised), "lseek", 9, 5, 3, os.SEEK_DATA)).answer == ("fail", number)


async def test_unknown_requests_and_files() -> None:
    assert (await ask(FakeVolume(), "bmap", 1)).answer == ("fail", errno.ENOSYS)
    assert (await ask(FakeVolume(), "lseek", 9, 999, 3, os.SEEK_DATA)).answer == ("fail", errno.EIO)


async def test_an_interrupt_cancels_the_wait_only() -> None:
    async def forever(*_: Any, wait: trio.CancelScope, **__: Any) -> None:
        with wait:
            await trio.sleep_forever()
        raise FsError(Code.INTERRUPTED)

    request = FakeRequest()
    async with trio.open_nursery() as nursery:
        files: Any = {5: None}
        volume: Any = FakeVolume(forever)
        requests = KernelRequests(volume, files, Complaints(), nursery, Profile())
        requests.handle("flock", request, (9, 5, 77, fcntl.LOCK_EX))  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        assert request.answer is None
        request.interrupt()
    assert request.answer == ("fail", errno.EINTR)


async def test_who_waits_when_the_mount_ends_is_answered() -> None:
    async def forever(*_: Any, **__: Any) -> None:
        await trio.sleep_forever()

    request = FakeRequest()
    async with trio.open_nursery() as nursery:
        files: Any = {5: None}
        volume: Any = FakeVolume(forever)
        requests = KernelRequests(volume, files, Complaints(), nursery, Profile())
        requests.handle("flock", request, (9, 5, 77, fcntl.LOCK_EX))  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert request.answer == ("fail", errno.EINTR)


async def test_they_are_in_the_profile_and_move_the_end_that_the_kernel_shows() -> None:
    profile, grown = Profile(), []
    files: Any = {5: SimpleNamespace(ino=9), 6: SimpleNamespace(ino=10)}

    async def ask_for(answer: Any, name: str, *arguments: Any) -> None:
        async with trio.open_nursery() as nursery:
            volume: Any = FakeVolume(answer)
            requests = KernelRequests(
                volume, files, Complaints(), nursery, profile, lambda ino, end: grown.append((ino, end))
            )
            requests.handle(name, FakeRequest(), arguments)  # type: ignore[arg-type]

    await ask_for(70, "copy_file_range", 5, 0, 6, 30, 100, 0)
    await ask_for(None, "fallocate", 9, 5, 0, 10, 20)
    await ask_for(None, "fallocate", 9, 5, KEEP_SIZE, 10, 200)
    await ask_for(FsError(Code.BEYOND_END), "lseek", 9, 5, 70, os.SEEK_DATA)
    rows = profile.operations
    assert grown == [(10, 100), (9, 30)]
    assert (rows["copy_file_range"].count, rows["copy_file_range"].bytes, rows["copy_file_range"].errors) == (1, 70, 0)
    assert rows["fallocate"].count == 2 and (rows["lseek"].count, rows["lseek"].errors) == (1, 1)
