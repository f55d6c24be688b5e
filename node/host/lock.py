"""Liveness is a lock, never a pid file: held for life, let go by the kernel when the process ends in whatever way."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from node.wire.errors import Code, FsError

_ATTEMPTS = 10  # somebody may be looking (lock_holder) at the same moment
_PAUSE_S = 0.005


class LivenessLock:
    """An exclusive flock on a file of its own. The file stays; only the lock means anything.

    A child made by fork holds the lock too until it executes something else, so acquire it after daemonizing.
    """

    def __init__(self, path: Path, what: str = "") -> None:
        self.path = path
        self._what = what or str(path.parent)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise FsError BUSY naming the holder, after a twentieth of a second at most."""
        assert self._descriptor is None, "held already"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(descriptor):
            holder = _read_pid(descriptor)
            os.close(descriptor)
            who = f"process {holder}" if holder else "another process"
            raise FsError(Code.BUSY, f"{self._what} is in use by {who} ({self.path})") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; harmless when not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> LivenessLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_holder(path: Path) -> int | None:
    """The pid of the living holder (0 when it cannot be told), None when nobody holds the lock.

    Looks with a shared lock for an instant, which acquire() is patient enough to outlast.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor)
    finally:
        os.close(descriptor)
    return None


def _try_lock(descriptor: int) -> bool:
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE_S)
        else:
            return True
    return False


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
