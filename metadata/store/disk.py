"""The little that the stores ask of a disk, so that a test can put one underneath that fails and forgets.

Paths are absolute strings. What is durable when:

- bytes of a file: after its ``datasync``;
- the existence of a file or directory, its name and its removal: after ``sync_directory`` of the parent;
- nothing else, in any order: before that, each sector and each name may or may not survive a loss of power.

A full disk is FsError(NO_SPACE) and leaves what was durable intact. Every other failed write and every failed sync is
FatalDiskError: what the kernel still shows may not be on disk, and asking again would report success. The process has
to end and start from what really is on disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from node.wire.errors import Code, FsError
from node.wire.types import Buffer


class FatalDiskError(Exception):
    """The disk broke a promise. Whoever catches this ends the process, without writing anything more."""


class File(Protocol):
    """An open file. Offsets and sizes in bytes."""

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; fewer only at the end of the file. FsError(IO) where the medium fails."""
        ...

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of ``data``. Not durable before ``datasync``. NO_SPACE: any part may be written; write it again."""
        ...

    def datasync(self) -> None:
        """Return when every byte written so far, and the size, is durable. FatalDiskError where that fails."""
        ...

    def truncate(self, size: int) -> None:
        """Cut or extend (with zeros) to ``size``. Durable with the next ``datasync``."""
        ...

    def allocate(self, size: int) -> None:
        """Reserve space for ``size`` bytes from the start, so that writing there cannot meet a full disk."""
        ...

    def size(self) -> int:
        """Return the size now."""
        ...

    def close(self) -> None:
        """Close, without syncing."""
        ...


class Disk(Protocol):
    """Files and directories by absolute path."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing; with ``create`` make it, empty, where it is missing. Else NOT_FOUND."""
        ...

    def exists(self, path: str) -> bool:
        """Return whether anything has this name."""
        ...

    def list(self, path: str) -> list[str]:
        """Return the names in a directory, sorted. NOT_FOUND where there is no such directory."""
        ...

    def make_directory(self, path: str) -> None:
        """Create a directory (0700). One that exists is left alone."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename, replacing ``target``: after a loss of power either is whole, never a mixture."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file. One that does not exist is left alone."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove a directory and the files in it. One that does not exist is left alone."""
        ...

    def sync_directory(self, path: str) -> None:
        """Return when every creation, rename and removal in this directory is durable. Else FatalDiskError."""
        ...

    def free_bytes(self, path: str) -> int:
        """Return the space that is left to us on the file system of ``path``."""
        ...

    def lock(self, path: str) -> AbstractContextManager[None]:
        """Hold an exclusive lock on a file, created where missing, until exit or death. FsError(BUSY) when held."""
        ...


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def _write_error(error: OSError, path: str) -> Exception:
    if error.errno in _FULL:
        return FsError(Code.NO_SPACE, f"{path}: {error.strerror}")
    return FatalDiskError(f"{path}: {error.strerror}")


class RealFile:
    """A file of the operating system."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def pread(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise FsError(Code.IO, f"{self._path}: read at {offset}: {error.strerror}") from error
        return data

    def pwrite(self, data: Buffer, offset: int) -> None:
        try:
            written = os.pwrite(self._fd, data, offset)
            if written != len(data):
                view = memoryview(data)
                while written < len(data):
                    written += os.pwrite(self._fd, view[written:], offset + written)
        except OSError as error:
            raise _write_error(error, self._path) from error

    def datasync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise FatalDiskError(f"{self._path}: fdatasync: {error.strerror}") from error

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise _write_error(error, self._path) from error

    def allocate(self, size: int) -> None:
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            raise _write_error(error, self._path) from error

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)


class RealDisk:
    """The operating system's file systems."""

    def open(self, path: str, *, create: bool = False) -> File:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            return RealFile(path, os.open(path, flags, 0o600))
        except FileNotFoundError as error:
            raise FsError(Code.NOT_FOUND, path) from error
        except OSError as error:
            raise _write_error(error, path) from error

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError as error:
            raise FsError(Code.NOT_FOUND, path) from error

    def make_directory(self, path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return
        except OSError as error:
            raise _write_error(error, path) from error

    def rename(self, source: str, target: str) -> None:
        try:
            os.rename(source, target)
        except OSError as error:
            raise _write_error(error, target) from error

    def remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _write_error(error, path) from error

    def remove_directory(self, path: str) -> None:
        if not self.exists(path):
            return
        for name in self.list(path):
            self.remove(f"{path}/{name}")
        try:
            os.rmdir(path)
        except OSError as error:
            raise _write_error(error, path) from error

    def sync_directory(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise FatalDiskError(f"{path}: fsync: {error.strerror}") from error

    def free_bytes(self, path: str) -> int:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    @contextmanager
    def lock(self, path: str) -> Iterator[None]:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FsError(Code.BUSY, f"{path}: another process holds it") from error
            yield
        finally:
            os.close(fd)


def write_file(disk: Disk, path: str, data: bytes) -> None:
    """Replace a small file atomically: when this returns, power may fail and ``path`` holds ``data``.

    Before that it holds what it held, or nothing where it was missing.
    """
    temporary = f"{path}.new"
    disk.remove(temporary)
    file = disk.open(temporary, create=True)
    try:
        file.pwrite(data, 0)
        file.datasync()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.sync_directory(path.rpartition("/")[0])


def read_file(disk: Disk, path: str) -> bytes:
    """Return the whole content of a small file."""
    file = disk.open(path)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()
