"""The disk as a store sees it: one directory of plain files, behind a protocol so that a faulty one can stand in.

Whatever returns has been handed to the kernel, not to the disk: bytes are durable after ``fdatasync``, names after
``fsync_directory``. Errors are OSError, with the errno that the kernel gave.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from node.wire.types import Buffer

_IOV_MAX = 1024
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE; os has posix_fallocate only, which makes the file longer
_fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class FatalDiskError(Exception):
    """The disk broke a promise (a failed sync). Whoever catches this ends the process and writes nothing more."""


class DiskFile(Protocol):
    """One open file. ``pread`` may be called from several threads at once; the others from one at a time."""

    def size(self) -> int:
        """Return the length in bytes."""

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to ``length`` bytes, fewer only at the end of the file."""

    def pwrite(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all the buffers one behind the other. When it raises, any part of them may have been written."""

    def reserve(self, end: int) -> int:
        """Have the disk set space aside up to this offset, for writes to come; ``size`` does not change. Return the
        offset up to which there is some; no promise where the file system cannot. ``truncate`` gives it back."""

    def fetch(self, offset: int, length: int) -> None:
        """These bytes will be read in a moment. A hint: reading them may have begun when it is asked for."""

    def let_go(self, offset: int, length: int) -> None:
        """The kernel need not keep these bytes in memory. A hint: nothing changes but the time that reading takes."""

    def fdatasync(self) -> None:
        """Return when every byte and the length are on the disk. After an error nothing is known about any of them."""

    def truncate(self, length: int) -> None:
        """Cut (or extend by a hole) to this length, and give back what is set aside behind it."""

    def close(self) -> None:
        """Give the descriptor back. Closing twice is no error."""


class Disk(Protocol):
    """One directory of files."""

    def open(self, name: str, *, create: bool = False) -> DiskFile:
        """Open a file for reading and writing; ``create`` makes a new one and fails when the name exists."""

    def list(self) -> list[str]:
        """Return the names, sorted."""

    def rename(self, source: str, target: str) -> None:
        """Rename atomically over whatever is there. Durable after fsync_directory."""

    def remove(self, name: str) -> None:
        """Remove a file. Durable after fsync_directory."""

    def fsync_directory(self) -> None:
        """Return when creations, renames and removals so far are on the disk."""

    def free_bytes(self) -> int:
        """Return how many bytes an unprivileged process may still write."""


class SystemFile:
    """A DiskFile on the host's file system. The descriptor lives as long as anyone holds this object."""

    def __init__(self, path: Path, *, create: bool = False, foreign: bool = False) -> None:
        """``foreign``: another process's file, of which this one only reads. It may be anything: opening it never
        waits."""
        self._fd = -1
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW if foreign else os.O_RDWR
        self._fd = os.open(path, flags | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def fileno(self) -> int:
        """The descriptor, open as long as anyone holds this object."""
        return self._fd

    def removed(self) -> bool:
        """Whether the file has no name any more."""
        return not os.fstat(self._fd).st_nlink

    def pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]  # a short read is the end of the file or an interruption: ask again
        have = len(data)
        while have < length:
            data = os.pread(self._fd, length - have, offset + have)
            if not data:
                break
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def pwrite(self, buffers: Sequence[Buffer], offset: int) -> None:
        for at in range(0, len(buffers), _IOV_MAX):
            group = buffers[at : at + _IOV_MAX]
            todo = sum(memoryview(buffer).nbytes for buffer in group)
            done = os.pwritev(self._fd, group, offset)
            while done < todo:  # nearly full disk, or more than the kernel takes at once
                rest = memoryview(b"".join(group))[done:]
                done += os.pwrite(self._fd, rest, offset + done)
            offset += todo

    def reserve(self, end: int) -> int:
        size = self.size()
        if end <= size or _fallocate is None or _fallocate(self._fd, _KEEP_SIZE, size, end - size) != 0:
            return size
        return end

    def fetch(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def let_go(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def fdatasync(self) -> None:
        os.fdatasync(self._fd)

    def truncate(self, length: int) -> None:
        os.ftruncate(self._fd, length)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class SystemDisk:
    """A Disk on the host's file system; the directory is made when it is missing (parents not)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        if not directory.is_dir():
            directory.mkdir(mode=0o700)
            _fsync_directory(directory.parent)

    def open(self, name: str, *, create: bool = False) -> SystemFile:
        return SystemFile(self._directory / name, create=create)

    def list(self) -> list[str]:
        return sorted(os.listdir(self._directory))

    def rename(self, source: str, target: str) -> None:
        os.rename(self._directory / source, self._directory / target)

    def remove(self, name: str) -> None:
        os.unlink(self._directory / name)

    def fsync_directory(self) -> None:
        _fsync_directory(self._directory)

    def free_bytes(self) -> int:
        stat = os.statvfs(self._directory)
        return stat.f_bavail * stat.f_frsize


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
