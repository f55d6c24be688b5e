"""Requests of the kernel that pyfuse3 has no handler for, over a Volume: translation only, as in ``operations``.

Each runs in a task of its own, because a lock may be waited for without end; so none of them keeps a worker of
pyfuse3's loop busy. Whatever a task raises becomes an errno, and a task that is cancelled has answered.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

import trio

from fusefs.client.space import KEEP_SIZE
from fusefs.mount.errors import Complaints
from fusefs.mount.profile import Profile
from node.host.logging import get_logger
from node.wire.errors import Code, FsError

if TYPE_CHECKING:
    from fusefs.client.handles import Handle
    from fusefs.client.volume import Volume
    from fusefs.mount._fuseops import Request

log = get_logger(__name__)

END = (1 << 63) - 1
COPY_BYTES_MAX = (1 << 32) - (1 << 20)  # the answer has 32 bits


class Files(Protocol):
    """Open files by the numbers that the kernel knows them by."""

    def __getitem__(self, number: int) -> Handle: ...


class KernelRequests:
    """Answers what ``_fuseops`` hands over. ``nursery`` runs the answers."""

    def __init__(
        self,
        volume: Volume,
        files: Files,
        complaints: Complaints,
        nursery: trio.Nursery,
        profile: Profile,
        grown: Callable[[int, int], None] = lambda ino, end: None,
    ) -> None:
        """``grown`` is told how far the kernel believes a file to reach after an answer."""
        self._volume = volume
        self._files = files
        self._complaints = complaints
        self._nursery = nursery
        self._profile = profile
        self._grown = grown
        self._handlers: dict[str, Callable[..., Awaitable[None]]] = {
            "getlk": self._getlk,
            "setlk": self._setlk,
            "flock": self._flock,
            "fallocate": self._fallocate,
            "lseek": self._lseek,
            "copy_file_range": self._copy_file_range,
        }

    def handle(self, name: str, request: Request, arguments: tuple[Any, ...]) -> None:
        """A request has come. Does not wait."""
        handler = self._handlers.get(name)
        if handler is None:
            request.fail(errno.ENOSYS)
        else:
            self._nursery.start_soon(self._answer, name, handler, request, arguments)

    async def _answer(
        self, name: str, handler: Callable[..., Awaitable[None]], request: Request, arguments: tuple[Any, ...]
    ) -> None:
        row, began_ns = self._profile.operations[name], perf_counter_ns()
        failed = True
        try:
            await handler(request, *arguments)
            request.fail(0)  # where it has not said anything else
            failed = False
        except FsError as error:
            if error.code >= Code.IO:
                self._complaints.make(name, error)
            request.fail(error.errno)
        except Exception:
            log.exception("operation failed unexpectedly", operation=name)
            request.fail(errno.EIO)
        finally:
            request.fail(errno.EINTR)  # cancelled: the mount is going away
            row.errors += failed
            row.add(perf_counter_ns() - began_ns)

    # --- locks ----------------------------------------------------------------------------------------------------

    async def _getlk(
        self, request: Request, ino: int, fh: int, owner: int, kind: int, start: int, length: int
    ) -> None:
        state = await self._volume.locking.get(
            self._files[fh], owner, flock=False, low=start, high=_high(start, length), exclusive=kind == fcntl.F_WRLCK
        )
        if not state.taken:
            request.lock(fcntl.F_UNLCK, start, length, 0)
            return
        pid = state.pid if self._volume.locking.is_own(state) else 0
        length = 0 if state.high == END else state.high - state.low + 1
        request.lock(fcntl.F_WRLCK if state.exclusive else fcntl.F_RDLCK, state.low, length, pid)

    async def _setlk(
        self,
        request: Request,
        ino: int,
        fh: int,
        owner: int,
        kind: int,
        start: int,
        length: int,
        pid: int,
        sleep: int,
    ) -> None:
        handle, locking, high = self._files[fh], self._volume.locking, _high(start, length)
        if kind == fcntl.F_UNLCK:
            await locking.unlock(handle, owner, flock=False, low=start, high=high)
            return
        await locking.lock(
            handle,
            owner,
            flock=False,
            low=start,
            high=high,
            exclusive=kind == fcntl.F_WRLCK,
            pid=pid,
            wait=_until_interrupted(request) if sleep else None,
        )

    async def _flock(self, request: Request, ino: int, fh: int, owner: int, operation: int) -> None:
        handle, locking = self._files[fh], self._volume.locking
        if operation & fcntl.LOCK_UN:
            await locking.unlock(handle, owner, flock=True, low=0, high=END)
            return
        await locking.lock(
            handle,
            owner,
            flock=True,
            low=0,
            high=END,
            exclusive=bool(operation & fcntl.LOCK_EX),
            pid=request.pid,
            wait=None if operation & fcntl.LOCK_NB else _until_interrupted(request),
        )

    # --- ranges ---------------------------------------------------------------------------------------------------

    async def _fallocate(self, request: Request, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        await self._volume.allocate(self._files[fh], mode, offset, length)
        if not mode & KEEP_SIZE:
            self._grown(ino, offset + length)

    async def _lseek(self, request: Request, ino: int, fh: int, offset: int, whence: int) -> None:
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(Code.INVALID, f"whence {whence}")
        request.position(await self._volume.seek(self._files[fh], offset, data=whence == os.SEEK_DATA))

    async def _copy_file_range(
        self, request: Request, fh: int, offset: int, target_fh: int, target_offset: int, length: int, flags: int
    ) -> None:
        if flags:
            raise FsError(Code.INVALID, f"copy_file_range flags {flags:#x}")
        length = min(length, COPY_BYTES_MAX)
        source, target = self._files[fh], self._files[target_fh]
        copied = await self._volume.copy(source, offset, target, target_offset, length)
        self._grown(target.ino, target_offset + copied)
        self._profile.operations["copy_file_range"].bytes += copied
        request.count(copied)


def _until_interrupted(request: Request) -> trio.CancelScope:
    scope = trio.CancelScope()
    request.on_interrupt(scope.cancel)
    return scope


def _high(start: int, length: int) -> int:
    return END if length == 0 else start + length - 1
