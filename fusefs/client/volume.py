"""The filesystem without FUSE: every operation that a mount offers, as methods of one object.

Names, paths and symlink targets are bytes; times are nanoseconds; sizes and offsets are bytes. Every method that
waits raises ``FsError`` and nothing else (besides ``trio.Cancelled``), at the latest ``options.request_timeout_s``
after it was called. Cancelling a caller never loses dirty data: write-back runs in tasks of the volume's own.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Optional

import trio

from fusefs.client.blocks import Blocks
from fusefs.client.caller import Caller
from fusefs.client.cloning import Cloned, Cloner, User
from fusefs.client.closing import Closing
from fusefs.client.codec import Codec
from fusefs.client.commit import Committer
from fusefs.client.compaction import Compactor
from fusefs.client.directories import Directories, DirHandle
from fusefs.client.fileio import FileIO
from fusefs.client.files import Files
from fusefs.client.handles import Handle
from fusefs.client.holds import Holds
from fusefs.client.locking import Locking
from fusefs.client.local import Local
from fusefs.client.logdata import LogData
from fusefs.client.namespace import Namespace
from fusefs.client.neighbours import Neighbours
from fusefs.client.options import ClientOptions
from fusefs.client.placement import Placement
from fusefs.client.prefetch import Prefetch
from fusefs.client.reader import Reader
from fusefs.client.recalls import Kernel
from fusefs.client.session import Session
from fusefs.client.space import Space
from fusefs.client.subdirectories import Subdirectories
from fusefs.client.writeback import WriteBack
from fusefs.client.writer import Writer
from metadata.api import Attr, LocksGranted, ServerRecord, SetAttr, StatVolume, VolumeStat
from node.wire.errors import Code, FsError
from node.wire.types import Buffer

log = logging.getLogger(__name__)


class Volume:
    """One session on one cluster. Made by ``fusefs.client.connect.open_volume``; belongs to one event loop.

    Coherence: what another mount could change is kept only under a lease, which is recalled before the change is
    shown to anybody. ``flush`` (close) makes data visible to other mounts and durable. Ordering between calls on one
    name is the caller's (the kernel holds the directory's lock); calls on different inodes may overlap freely.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        members: Mapping[int, Caller],
        dial: Callable[[ServerRecord], Awaitable[Caller]],
        *,
        mount: str,
        options: ClientOptions,
        now_ns: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        clock_s: Callable[[], float] = trio.current_time,
        awake_s: Callable[[], float] = trio.current_time,
        gone: Callable[[str], bool] = lambda process: False,
    ) -> None:
        """Build one over given connections; ``dial`` makes one to a chunk server. ``start`` before use."""
        self._nursery = nursery
        self._options = options
        self._files = Files()
        self._session = Session(
            members,
            mount=mount,
            options=options,
            random_bytes=random_bytes,
            nursery=nursery,
            clock_s=clock_s,
            awake_s=awake_s,
            gone=gone,
        )
        self._placement = Placement(self._session, dial)
        codec = Codec()
        self._logdata = logdata = LogData(self._session, options.log_data_bytes)
        self._writer = Writer(self._session, self._placement, nursery, chain=options.chain)
        self._blocks = Blocks(
            self._placement,
            codec,
            nursery,
            logdata.block,
            cache_bytes_max=options.cache_bytes_max,
            timeout_s=options.request_timeout_s,
            short_circuit=options.short_circuit,
        )
        self._neighbours = Neighbours(self._session, self._blocks, nursery)
        reader = Reader(
            self._session, self._blocks, ahead_max=options.read_ahead_blocks, begun=self._neighbours.reading
        )
        committer = Committer(self._session, self._writer, reader, codec, logdata)
        self._compactor = Compactor(self._session, self._files, reader, codec, self._writer)
        committer.fragmented = self._compactor.fragmented
        if not options.read_only:
            reader.fragmented = self._compactor.found
        self._writeback = WriteBack(self._files, committer, nursery, options, now_ns)
        self._holds = Holds(self._session, self._files, self._writeback, nursery)
        self._prefetch = Prefetch(self._session, nursery)
        self._local = Local(self._session.leases, self._session.journal, self._session.now_s, now_ns)
        self._closing = Closing(self._session, self._files, self._local, self._writeback, now_ns)
        self._namespace = Namespace(
            self._session, self._files, self._writeback, self._holds, self._prefetch, self._local, self._closing
        )
        self._fileio = FileIO(
            self._session, self._files, self._writeback, self._holds, self._namespace, reader, self._closing
        )
        self._directories = Directories(
            self._session, self._files, Subdirectories(self._session, nursery), self._neighbours.found
        )
        self._space = Space(self._session, self._writeback, reader, now_ns)
        self.locking = Locking(self._session, self._writeback, now_ns)
        self._session.guess = self._holds.hinted
        self._session.on_data = self._blocks.came
        self._session.on_again = self._blocks.again
        self._session.on_lost = self._lost
        self._session.on_orphans = self._holds.orphans
        self._session.journal.data = self._writeback
        self._session.journal.on_failed = self._failed

    async def start(self) -> None:
        """Register the session; from then on the volume serves. Raises what the service refuses it with."""
        await self._nursery.start(self._session.run)
        self._nursery.start_soon(self._writeback.run)
        self._nursery.start_soon(self._session.journal.run)
        self._nursery.start_soon(self._compactor.run)
        self._nursery.start_soon(self.locking.run)

    async def stop(self) -> None:
        """Flush, for at most ``options.stop_flush_s``, and end the session. What cannot be flushed is logged."""
        with trio.move_on_after(self._options.stop_flush_s):
            try:
                await self.syncfs()
            except FsError as error:
                log.error("not all data could be written back: %s", error)
        for file in self._files.clear():
            self._writeback.end(file, FsError(Code.SHUTTING_DOWN, "the volume is closed"))
        await self._session.close()

    def _failed(self, inos: Collection[int], error: FsError) -> None:
        """A change that was made here failed at the service. What is known of these inodes is wrong, and whoever has
        them open is told."""
        for ino in inos:
            self._session.leases.facts.drop(ino)
            file = self._files.get(ino)
            if file is not None:
                file.ledger.record(error, lost=True)
                if error.code is Code.LOCKED:
                    self._writeback.end(file, FsError(Code.IO, "locks of this file were lost"))
        self._session.recalls.doubted(inos)

    def _lost(self) -> None:
        for file in self._files.clear():
            self._writeback.end(file, FsError(Code.IO, "the session that had this file open has expired"))
        self.locking.lost()

    # --- names and attributes -----------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Attr:
        """Find a name (also ``.`` and ``..``). NOT_FOUND, NOT_DIRECTORY, STALE where the parent is gone."""
        attr = await self._namespace.lookup(parent, name)
        self._neighbours.found(parent, ((name, attr),))
        return attr

    async def getattr(self, ino: int) -> Attr:
        """Attributes, with the size and mtime of data written here and not yet committed. STALE: the inode is gone."""
        return await self._namespace.getattr(ino)

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
        op = SetAttr(ino, mode, uid, gid, size, atime_ns, mtime_ns, ctime_ns)
        return await self._namespace.setattr(op)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int, umask: int = 0
    ) -> Attr:
        """Create a regular or special file, by the type in ``mode``; ``umask`` counts as in open(2). EXISTS."""
        return (await self._namespace.make(parent, name, mode, uid, gid, rdev=rdev, umask=umask)).attr

    async def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int, umask: int = 0) -> Attr:
        """Create a directory; the type bits of ``mode`` are filled in. EXISTS."""
        return await self._namespace.mkdir(parent, name, mode, uid, gid, umask)

    async def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        """Create a symbolic link. EXISTS."""
        return await self._namespace.symlink(parent, name, target, uid, gid)

    async def link(self, ino: int, parent: int, name: bytes) -> Attr:
        """Give a file another name; its data written here before is committed first (rule 11). EXISTS, STALE."""
        return await self._namespace.link(ino, parent, name)

    async def readlink(self, ino: int) -> bytes:
        """The target of a symbolic link."""
        return await self._namespace.readlink(ino)

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name. An inode that is open on any mount stays readable and writable until the last close."""
        await self._namespace.remove(parent, name, directory=False)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. NOT_EMPTY, NOT_DIRECTORY."""
        await self._namespace.remove(parent, name, directory=True)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """rename(2) with metadata.api.RENAME_NOREPLACE or RENAME_EXCHANGE.

        Data of the source that was written here is committed first (rule 11).
        """
        await self._namespace.rename(parent, name, new_parent, new_name, flags)

    async def clone(
        self, source: int, parent: int, name: bytes, told: Callable[[Cloned], None] = lambda _: None,
        user: Optional[User] = None,
    ) -> Cloned:
        """Another tree with the same data, as far as that was committed, under a new name. EXISTS. See Cloner."""
        return await Cloner(self._session, told, user).clone(source, parent, name)

    # --- files --------------------------------------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int, umask: int = 0
    ) -> tuple[Handle, Attr]:
        """open(2) with O_CREAT: with O_EXCL in ``flags`` EXISTS, otherwise an existing file is opened (O_TRUNC obeyed).

        The name is visible everywhere when this returns, and durable after the next fsync of anything. A directory
        with a default ACL ignores ``umask``.
        """
        return await self._fileio.create(parent, name, mode, flags, uid, gid, umask)

    async def open(self, ino: int, flags: int, uid: int = 0) -> Handle:
        """Open a regular file by open(2) flags: access mode, O_TRUNC, O_APPEND. STALE: the inode is gone.

        Where another than root (``uid``) truncates it, setuid and setgid go.
        """
        return await self._fileio.open(ino, flags, uid)

    def at_hand(self, handle: Handle, version: int, size: int) -> Optional[Buffer]:
        """What a file consists of, where all of it is here and it is of this data version and size."""
        return self._fileio.at_hand(handle, version, size)

    async def read(self, handle: Handle, offset: int, length: int, *, held: bool = False) -> Buffer:
        """Read; shorter than asked only at the end of the file. Holes are zeros. IO: a block cannot be had whole.
        ``held``: the kernel holds a page meanwhile, and a recall may wait for that."""
        data = await self._fileio.read(handle, offset, length, held=held)
        if held:  # who has mapped it looks at other pages next
            await self._lapsed()
        return data

    async def _lapsed(self) -> None:
        """Return when no mapped page is shown any more that was covered by leases which have ended."""
        session = self._session
        await session.recalls.lapsed(session.now_s(), session.deadline())

    async def strip(self, handle: Handle, uid: int) -> None:
        """Take setuid, setgid and capabilities from a file that this user has written to, where the kernel has not
        seen to that."""
        await self._fileio.strip(handle, uid)

    async def write(self, handle: Handle, offset: int, data: bytes, *, paged: Optional[bool] = False) -> int:
        """Write and return len(data): from then on every mount sees it. ``data`` is kept, not copied. With O_APPEND
        ``offset`` is only a hint. It is durable too where others can see the file, else after fsync. ``paged``: it is
        of pages that programs have mapped, which must not wait for the service: others see it after the next fsync.
        None: it may be.

        Waits above the dirty bound. Raises the error of earlier write-back of this file once for each handle.
        """
        return await self._fileio.write(handle, offset, data, paged=paged)

    async def allocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """fallocate(2): plain, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE; other modes NOT_SUPPORTED.

        Reserving means: NO_SPACE where the bytes would not fit now, and the size. No space is set aside, so a later
        write may meet a full disk; a range that is zeroed or reserved is a hole.
        """
        await self._space.allocate(handle, mode, offset, length)

    async def seek(self, handle: Handle, offset: int, *, data: bool) -> int:
        """The next byte from ``offset`` on that is data, or (``data`` false) in a hole, the end of the file being one.
        BEYOND_END where ``offset`` is at the end or there is no data. What is written and not committed is data."""
        return await self._space.seek(handle, offset, data=data)

    async def copy(self, source: Handle, offset: int, target: Handle, target_offset: int, length: int) -> int:
        """copy_file_range(2): the target shares the source's blocks, no data move. Returns how many bytes, fewer at the
        end of the source. INVALID: one file, and the ranges overlap. NOT_SUPPORTED: copy by reading and writing."""
        return await self._space.copy(source, offset, target, target_offset, length)

    async def flush(self, handle: Handle, owner: int = 0) -> None:
        """close(2) of a descriptor: all data written here before is visible everywhere from now on. It is durable too,
        unless the file is leased exclusively: then it will be soon, and nobody else sees the file before.
        ``owner``: who closes, as the kernel calls it in locks; its fcntl locks of the file end."""
        failed: Optional[FsError] = None
        try:
            await self._fileio.close(handle)
        except FsError as error:
            failed = error
        await self.locking.closed(handle, owner)
        if failed is not None:
            raise failed

    async def fsync(self, handle: Handle, datasync: bool = False) -> None:
        """All data written here before is durable and visible everywhere, and so are all changes of names and
        attributes that were made here before. An error leaves the data dirty, to be tried again by the next fsync or
        close. What the kernel shows from mapped pages is no older than that, also where leases have ended meanwhile."""
        await self._fileio.flush(handle)
        await self._lapsed()

    async def release(self, handle: Handle) -> None:
        """The last descriptor of this handle is closed. Never fails for what flush has reported already."""
        try:
            await self.locking.released(handle)
        except FsError as error:
            log.warning("inode %d: locks are held until the service hears of the last close: %s", handle.ino, error)
        await self._fileio.release(handle)

    # --- directories --------------------------------------------------------------------------------------------

    async def opendir(self, ino: int) -> DirHandle:
        """Open a directory for reading."""
        await trio.lowlevel.checkpoint()
        return self._directories.open(ino)

    async def readdir(self, handle: DirHandle, offset: int, plus: bool = True) -> list[tuple[bytes, Attr, int]]:
        """A page of (name, attributes, offset of what follows), without "." and "..". Empty at the end.

        ``offset`` is 0 (start anew) or one that an earlier page returned.
        """
        return await self._directories.read(handle, offset)

    async def releasedir(self, handle: DirHandle) -> None:
        """Close a directory."""
        await trio.lowlevel.checkpoint()
        handle.restart()

    async def fsyncdir(self, handle: DirHandle) -> None:
        """All operations on names in this directory that have returned are durable."""
        await self._session.journal.drain(self._session.deadline())

    # --- extended attributes, the volume ------------------------------------------------------------------------

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        """NO_ATTRIBUTE where there is none."""
        return await self._namespace.getxattr(ino, name)

    async def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int = 0, *, drop_setgid: bool = False
    ) -> None:
        """With metadata.api.XATTR_CREATE EXISTS, with XATTR_REPLACE NO_ATTRIBUTE. An access ACL sets the mode's bits,
        and with ``drop_setgid`` takes setgid."""
        await self._namespace.setxattr(ino, name, value, flags, drop_setgid)

    async def listxattr(self, ino: int) -> list[bytes]:
        """Names of all extended attributes."""
        return await self._namespace.listxattr(ino)

    async def removexattr(self, ino: int, name: bytes) -> None:
        """NO_ATTRIBUTE where there is none."""
        await self._namespace.removexattr(ino, name)

    async def statfs(self) -> VolumeStat:
        """Capacity and use of the whole volume, with all that was changed here before."""
        await self._session.journal.drain(self._session.deadline())
        return await self._session.query(StatVolume(), VolumeStat)

    async def syncfs(self) -> None:
        """All that was written and changed through this volume before is durable and visible. Raises the first error,
        tries all."""
        await self._closing.sync(self._session.deadline())
        await self._writeback.flush_all()

    # --- what the mount asks and tells --------------------------------------------------------------------------

    @property
    def leasing(self) -> bool:
        """Whether anything may ever be cached. Where not, nobody is told of recalls."""
        return self._options.leases

    def caches(self, kernel: Kernel) -> None:
        """From now on ``kernel`` caches what ``attr_left_s`` and ``name_left_s`` allow, and forgets when told."""
        self._session.recalls.kernel = kernel

    def changes(self, tell: Callable[[Sequence[int]], None]) -> None:
        """From now on ``tell`` is called with inodes whose attributes were just changed by right of a lease."""
        self._session.leases.on_changed = tell

    def losses(self, tell: Callable[[int], None]) -> None:
        """From now on ``tell`` is called with each inode whose unwritten bytes were given up, for example because the
        disks are full: whatever shows them must forget them, because nobody else ever saw them."""
        self._writeback.on_lost = tell

    def pushed(self, member: int, message: object) -> None:
        """A metadata member pushed a message."""
        if isinstance(message, LocksGranted):
            self.locking.pushed(message)
        else:
            self._session.recalls.pushed(member, message)

    def known(self, ino: int) -> Optional[Attr]:
        """Attributes of a directory, where a lease says that they are true; None: ask. As attr_left_s."""
        return self._session.leases.attr(ino, self._session.now_s())

    def names(self, ino: int) -> Optional[dict[bytes, int]]:
        """All names of a directory, as they are as long as ``changes`` and recalls tell nothing; None: not all are
        known. As attr_left_s."""
        return self._session.leases.names(ino, self._session.now_s())

    def attr_left_s(self, attr: Attr) -> float:
        """How long attributes that were just returned stay true; 0: ask each time. Valid until the next await."""
        file = self._files.get(attr.ino)
        if file is not None and not file.idle_data:
            return 0.0
        return self._session.leases.attr_left_s(attr.ino, attr.version, self._session.now_s())

    def name_left_s(self, parent: int, name: bytes, ino: int) -> float:
        """How long a name means this inode; 0 as ``ino``: nothing. As attr_left_s."""
        return self._session.leases.name_left_s(parent, name, ino, self._session.now_s())

    def lacks_s(self, ino: int, name: bytes) -> float:
        """For how long it is certain that an inode lacks an extended attribute; 0: it is not. As attr_left_s."""
        now_s = self._session.now_s()
        known = self._session.leases.xattr(ino, name, now_s)
        return self._session.leases.left_s(now_s) if known == (None,) else 0.0

    def alone(self, ino: int) -> bool:
        """Whether nobody else sees this inode before this mount was asked back."""
        return self._session.leases.alone(ino, self._session.now_s())

    def name_known(self, parent: int, name: bytes) -> bool:
        """Whether it is known under a lease what a name means, or that it means nothing."""
        return self._session.leases.name(parent, name, self._session.now_s()) is not None

    def held(self, ino: int) -> bool:
        """Whether a handle keeps this inode, removed or not."""
        return self._holds.held(ino)

    def forgotten(self, ino: int) -> None:
        """The kernel dropped its last reference to this inode: what is remembered of it may go."""
        self._holds.forgotten(ino)

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges: session, requests, dirty bytes, caches, open handles."""
        return {
            "session": self._session.statistics(),
            "placement": self._placement.statistics(),
            "write_back": self._writeback.statistics(),
            "writer": self._writer.statistics(),
            "blocks": self._blocks.statistics(),
            "compaction": self._compactor.statistics(),
            "log_data": self._logdata.statistics(),
            "holds": self._holds.statistics(),
            "leases": self._session.leases.statistics() | self._session.recalls.statistics(),
            "prefetch": self._prefetch.statistics(),
            "neighbours": self._neighbours.statistics(),
            "directories": self._directories.statistics(),
            "locks": self.locking.statistics(),
            "journal": self._session.journal.statistics(),
            "files": len(self._files),
        }
