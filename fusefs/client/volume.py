"""The filesystem without FUSE: every operation that a mount offers, as methods of one object.

Names, paths and symlink targets are bytes; times are nanoseconds; sizes and offsets are bytes. Every method that
waits raises ``FsError`` and nothing else (besides ``trio.Cancelled``), at the latest ``options.request_timeout_s``
after it was called. Cancelling a caller never loses dirty data: write-back runs in tasks of the volume's own.
"""

from __future__ import annotations

from typing import Any, Optional

from fusefs.client.handles import DirHandle, Handle
from metadata.api import Attr, VolumeStat
from node.wire.types import Buffer


class Volume:
    """One session on one cluster. Made by ``fusefs.client.connect.open_volume``; belongs to one event loop.

    Coherence today: nothing that another mount could change is kept across calls. ``flush`` (close) makes data
    visible to other mounts and durable. Ordering between calls on one name is the caller's (the kernel holds the
    directory's lock); calls on different inodes may overlap freely.
    """

    # --- names and attributes -----------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Attr:
        """Find a name (also ``.`` and ``..``). NOT_FOUND, NOT_DIRECTORY, STALE where the parent is gone."""
        raise NotImplementedError

    async def getattr(self, ino: int) -> Attr:
        """Attributes, with the size and mtime of data written here and not yet committed. STALE: the inode is gone."""
        raise NotImplementedError

    async def setattr(
        self,
        ino: int,
        *,
        mode: Optional[int] = None,
        uid: Optional[int] = None,
        gid: Optional[int] = None,
        size: Optional[int] = None,
        atime_ns: Optional[int] = None,
        mtime_ns: Optional[int] = None,
        ctime_ns: Optional[int] = None,
        handle: Optional[Handle] = None,
    ) -> Attr:
        """Change attributes; None leaves one as it is, metadata.api.TIME_NOW means now. ``size`` truncates or extends.

        Data written before becomes visible in the same step, so that a time set after a write stays set.
        """
        raise NotImplementedError

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Attr:
        """Create a regular or special file, by the type in ``mode`` (umask already applied). EXISTS."""
        raise NotImplementedError

    async def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attr:
        """Create a directory; the type bits of ``mode`` are filled in. EXISTS."""
        raise NotImplementedError

    async def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        """Create a symbolic link. EXISTS."""
        raise NotImplementedError

    async def link(self, ino: int, parent: int, name: bytes) -> Attr:
        """Give a file another name; its data written here before is committed first (rule 11). EXISTS, STALE."""
        raise NotImplementedError

    async def readlink(self, ino: int) -> bytes:
        """The target of a symbolic link."""
        raise NotImplementedError

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name. An inode that is open on any mount stays readable and writable until the last close."""
        raise NotImplementedError

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. NOT_EMPTY, NOT_DIRECTORY."""
        raise NotImplementedError

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """rename(2) with metadata.api.RENAME_NOREPLACE or RENAME_EXCHANGE.

        Data of the source that was written here is committed first (rule 11).
        """
        raise NotImplementedError

    # --- files --------------------------------------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int
    ) -> tuple[Handle, Attr]:
        """open(2) with O_CREAT: with O_EXCL in ``flags`` EXISTS, otherwise an existing file is opened (O_TRUNC obeyed).

        The name is durable when this returns.
        """
        raise NotImplementedError

    async def open(self, ino: int, flags: int) -> Handle:
        """Open a regular file by open(2) flags: access mode, O_TRUNC, O_APPEND. STALE: the inode is gone."""
        raise NotImplementedError

    async def read(self, handle: Handle, offset: int, length: int) -> Buffer:
        """Read; shorter than asked only at the end of the file. Holes are zeros. IO: a block cannot be had whole."""
        raise NotImplementedError

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Buffer a write and return len(data). ``data`` is kept, not copied. With O_APPEND ``offset`` is only a hint.

        Waits above the dirty bound. Raises the error of earlier write-back of this file once for each handle.
        """
        raise NotImplementedError

    async def flush(self, handle: Handle) -> None:
        """close(2) of a descriptor: all data written here before is durable, and visible everywhere, from now on."""
        raise NotImplementedError

    async def fsync(self, handle: Handle, datasync: bool = False) -> None:
        """As flush. An error leaves the data dirty, to be tried again by the next fsync or close."""
        raise NotImplementedError

    async def release(self, handle: Handle) -> None:
        """The last descriptor of this handle is closed. Never fails for what flush has reported already."""
        raise NotImplementedError

    # --- directories --------------------------------------------------------------------------------------------

    async def opendir(self, ino: int) -> DirHandle:
        """Open a directory for reading."""
        raise NotImplementedError

    async def readdir(self, handle: DirHandle, offset: int, plus: bool = True) -> list[tuple[bytes, Attr, int]]:
        """A page of (name, attributes, offset of what follows), without "." and "..". Empty at the end.

        ``offset`` is 0 (start anew) or one that an earlier page returned.
        """
        raise NotImplementedError

    async def releasedir(self, handle: DirHandle) -> None:
        """Close a directory."""
        raise NotImplementedError

    async def fsyncdir(self, handle: DirHandle) -> None:
        """All operations on names in this directory that have returned are durable."""
        raise NotImplementedError

    # --- extended attributes, the volume ------------------------------------------------------------------------

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        """NO_ATTRIBUTE where there is none."""
        raise NotImplementedError

    async def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """With metadata.api.XATTR_CREATE EXISTS, with XATTR_REPLACE NO_ATTRIBUTE."""
        raise NotImplementedError

    async def listxattr(self, ino: int) -> list[bytes]:
        """Names of all extended attributes."""
        raise NotImplementedError

    async def removexattr(self, ino: int, name: bytes) -> None:
        """NO_ATTRIBUTE where there is none."""
        raise NotImplementedError

    async def statfs(self) -> VolumeStat:
        """Capacity and use of the whole volume."""
        raise NotImplementedError

    async def syncfs(self) -> None:
        """All data written through this volume before is durable and visible. Raises the first error, tries all."""
        raise NotImplementedError

    # --- what the mount asks and tells --------------------------------------------------------------------------

    def held(self, ino: int) -> bool:
        """Whether a handle keeps this inode, removed or not."""
        raise NotImplementedError

    def forgotten(self, ino: int) -> None:
        """The kernel dropped its last reference to this inode: what is remembered of it may go."""
        raise NotImplementedError

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges: session, requests, dirty bytes, caches, open handles."""
        raise NotImplementedError
