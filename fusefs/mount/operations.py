"""pyfuse3's request handlers over a Volume: translation only.

What a method here may do is turn numbers into handles, Attr into EntryAttributes and count what the kernel looked up.
Semantics live in ``fusefs.client``. Every handler is wrapped by ``handler``: no exception reaches pyfuse3's loop,
which would end the mount.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyfuse3

from fusefs.client.fileio import CAPABILITY
from fusefs.mount.attributes import bare_entry, entry_of, missing_entry, permitted, statfs_of, storable_time
from fusefs.mount.crossing import Crossings
from fusefs.mount.errors import Complaints, handler, locked
from fusefs.mount.handles import HandleTable
from fusefs.mount.incapable import Incapable
from fusefs.mount.kernel import KernelView
from fusefs.mount.mapped import Dropper, Mappable
from fusefs.mount.misled import Misled
from fusefs.mount.names import Busy
from fusefs.mount.profile import Profile
from metadata.api import RENAME_EXCHANGE, RENAME_NOREPLACE, Attr
from node.wire.errors import Code, FsError
from node.wire.limits import STORED_BYTES_MAX
from node.wire.types import Buffer

if TYPE_CHECKING:
    from fusefs.mount.caching import KernelCache
    from fusefs.client.directories import DirHandle
    from fusefs.client.handles import Handle
    from fusefs.client.volume import Volume

# Directory offsets that the kernel sees: 0 the start, 1 after ".", 2 after "..", then the volume's own plus 2.
DOT, DOTDOT = 1, 2
# What follows an entry of which it is known that nothing does; the extension answers that by itself (_listing.c). Not a
# higher bit: programs of 32 bits take positions of 31.
END = 1 << 30

FILLS_MAX = 8  # times that a recall may go on without a page before it is filled

_TRUSTED_XATTR = b"trusted."  # which the kernel lets only root read
_XATTRS = (b"user.", _TRUSTED_XATTR, b"security.")
_ACCESS_ACL = b"system.posix_acl_access"
_ACLS = (_ACCESS_ACL, b"system.posix_acl_default")


class Operations(pyfuse3.Operations):
    """The mount of one volume. ``dropper`` is told of pages that the kernel would keep wrongly."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # the kernel would own size and mtime, which other mounts must see
    enable_acl = True  # the kernel asks for access control lists, and obeys them

    def __init__(self, volume: Volume, dropper: Dropper, crossings: Crossings | None = None) -> None:
        """Until ``cache`` is set the kernel is allowed to believe nothing."""
        super().__init__()
        self.volume = volume
        self.complaints = Complaints()
        self._crossings = crossings or Crossings()
        self.kernel = KernelView(self._crossings)
        self.files: HandleTable[Handle] = HandleTable()
        self._directories: HandleTable[DirHandle] = HandleTable()
        self._dropper = dropper
        self.mappable = Mappable()
        self.busy = Busy()
        self.profile = Profile()
        self.cache: KernelCache | None = None
        self.flusher: Callable[[], int] = int  # says, when a flush begins, whose locks end
        self.paged: Callable[[], bool] | None = None  # says, when a read or write begins, whether it is of pages
        self.of_reader: Callable[[], bool] = lambda: True  # when a getattr begins, whether read(2) asks for a size
        self.maps_direct: Callable[[], bool] = bool  # says whether files open for direct I/O can be mapped shared
        self.quiet = 0  # marks the numbers of files whose closing we need not hear of
        self.quiet_answers: Callable[[], tuple[int, ...]] = lambda: (0, 0, 0, 0, 0)
        self.store: Callable[[int, Buffer], bool] | None = None  # puts a file into pages of the kernel, which has none
        self.incapable: Incapable | None = None  # set where something is made of it
        self.keep_listing: Callable[[bool], None] | None = None  # has the kernel keep the listing that is opened next
        self.unmasked: Callable[[], bool] = bool  # says whether the kernel leaves the umask to us
        self.misled = Misled()

    # --- replies --------------------------------------------------------------------------------------------------

    async def _entry(self, parent: int, name: bytes, attr: Attr) -> pyfuse3.EntryAttributes:
        """Reply to a change with a name's inode: the kernel holds one reference more.

        Attributes of an inode that it knew before it would not compare with what was recalled since it asked."""
        new = not self.kernel.knows(attr.ino)
        if self.kernel.looked_up(attr):
            await self._dropper.drop_now(attr.ino)
        cache = self.cache
        if cache is None:
            return entry_of(attr)
        cache.show(parent)
        return entry_of(attr, *cache.made_s(parent, name, attr, new=new))

    def _show(self, *directories: int) -> None:
        """These were changed by name, and the kernel is about to ask for their attributes."""
        if self.cache is not None:
            for ino in directories:
                self.cache.show(ino)

    def _heard(self, ctx: pyfuse3.RequestContext) -> None:
        """This thread asks for something: the kernel has looked at whatever it was answered before."""
        if self.cache is not None:
            self.cache.proven(ctx.pid)

    def _changes(self, ctx: pyfuse3.RequestContext) -> None:
        """The same of what it asks to be changed by name."""
        self._heard(ctx)
        self.misled.changes(ctx.pid)

    def _umask(self, ctx: pyfuse3.RequestContext) -> int:
        return int(ctx.umask) if self.unmasked() else 0

    def _creating(self, parent: int, name: bytes) -> None:
        if self.cache is not None:
            self.cache.creating(parent, name)

    def _opened(self, handle: Handle, thread: int) -> pyfuse3.FileInfo:
        """Reply to an open. Where appended bytes land is told by the service or the lease, not by the size that the
        kernel believes in: they must not get into its pages at that place (rule 9). Nor are pages filled that others
        are changing at this moment, where programs can map the file all the same."""
        untouched = self.kernel.untouched(handle.ino)
        keep = self.kernel.opened(handle.ino)
        cache = self.cache
        direct_io = handle.append or (cache is not None and cache.contended(handle.ino) and self.maps_direct())
        handle.direct = direct_io or bool(handle.flags & os.O_DIRECT)
        number = self.files.add(handle, self.quiet if handle.flags & os.O_ACCMODE == os.O_RDONLY else 0)
        if untouched is not None and not handle.direct and not handle.flags & os.O_ACCMODE:
            keep = self._stored(handle, *untouched) or keep
        self.mappable.opened(handle, thread, kept=keep)
        return pyfuse3.FileInfo(fh=number, direct_io=direct_io, keep_cache=keep, nonseekable=False)

    def _stored(self, handle: Handle, version: int, size: int) -> bool:
        """Put the pages of a small file that is here already into the kernel, which then need not ask for them. Nothing
        is awaited meanwhile, so this is as true as the answer to a read is."""
        if self.store is None or size > STORED_BYTES_MAX:
            return False
        data = self.volume.at_hand(handle, version, size)
        return data is not None and self.store(handle.ino, data)

    # --- names and attributes -------------------------------------------------------------------------------------

    @locked
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        cache = self.cache
        self._heard(ctx)
        try:
            attr = await self.volume.lookup(parent_inode, name)
        except FsError as error:
            missing_s = 0.0
            if error.code is Code.NOT_FOUND and cache is not None:
                missing_s = cache.missing_s(parent_inode, name)
            if not missing_s:
                raise
            return missing_entry(missing_s)
        known = self.kernel.knows(attr.ino)
        if self.kernel.looked_up(attr):
            await self._dropper.drop_now(attr.ino)
        if cache is None:
            return entry_of(attr)
        attr_s = cache.attr_s(attr)
        if known:
            return entry_of(attr, attr_s, cache.name_again_s(parent_inode, name, attr.ino, ctx.pid))
        return entry_of(attr, attr_s, cache.name_s(parent_inode, name, attr.ino))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        # Not wrapped, because nobody waits for an answer; it neither waits nor raises.
        for ino in self.kernel.forget(inode_list):
            self.volume.forgotten(ino)

    @handler
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        of_reader, asked_s = self.of_reader(), self._crossings.asked_s()  # before anything is awaited
        self._heard(ctx)
        asking = self.mappable.asking
        if of_reader:
            asking.enter(inode)
        try:
            attr = await self.volume.getattr(inode)
        finally:
            if of_reader:
                asking.leave(inode)
        if self.kernel.told(attr, crossed=self._crossings.crossed(inode, asked_s)):
            await self._dropper.drop_now(inode)  # the read that asks must not find them
        cache = self.cache
        if cache is None:
            return entry_of(attr)
        return entry_of(attr, cache.asked_s(attr, ctx.pid) if of_reader else cache.attr_s(attr))

    @handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        self._changes(ctx)
        with self.mappable.truncating(inode, fields.update_size):
            changed = await self.volume.setattr(
                inode,
                mode=attr.st_mode & 0o7777 if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                size=attr.st_size if fields.update_size else None,
                atime_ns=storable_time(attr.st_atime_ns) if fields.update_atime else None,
                mtime_ns=storable_time(attr.st_mtime_ns) if fields.update_mtime else None,
                ctime_ns=storable_time(attr.st_ctime_ns) if fields.update_ctime else None,
                handle=None if fh is None else self.files[fh],
            )
        unseen = self.kernel.told(changed, compared=False)
        if fields.update_size:
            self.kernel.cut(inode, changed.size)
        if unseen:
            self._dropper.drop(inode)  # without waiting: while it truncates, the kernel holds back writes of pages
        return entry_of(changed)

    @handler
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        self._heard(ctx)
        return await self.volume.readlink(inode)

    @locked
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changes(ctx)
        self._creating(parent_inode, name)
        attr = await self.volume.mknod(parent_inode, name, mode, rdev, ctx.uid, ctx.gid, self._umask(ctx))
        return await self._entry(parent_inode, name, attr)

    @locked
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changes(ctx)
        self._creating(parent_inode, name)
        attr = await self.volume.mkdir(parent_inode, name, mode, ctx.uid, ctx.gid, self._umask(ctx))
        return await self._entry(parent_inode, name, attr)

    @locked
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changes(ctx)
        await self.volume.unlink(parent_inode, name)
        self._show(parent_inode)

    @locked
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changes(ctx)
        await self.volume.rmdir(parent_inode, name)
        self._show(parent_inode)

    @locked
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changes(ctx)
        self._creating(parent_inode, name)
        attr = await self.volume.symlink(parent_inode, name, target, ctx.uid, ctx.gid)
        return await self._entry(parent_inode, name, attr)

    @locked
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self._changes(ctx)
        wanted = 0
        if flags & pyfuse3.RENAME_NOREPLACE:
            wanted |= RENAME_NOREPLACE
        if flags & pyfuse3.RENAME_EXCHANGE:
            wanted |= RENAME_EXCHANGE
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise FsError(Code.INVALID, f"rename flags {flags:#x}")
        self._creating(parent_inode_new, name_new)
        cache = self.cache
        if cache is not None:
            cache.renaming(parent_inode_old, name_old, parent_inode_new, name_new)
        self.busy.enter(parent_inode_new)
        try:
            await self.volume.rename(parent_inode_old, name_old, parent_inode_new, name_new, wanted)
            self._show(parent_inode_old, parent_inode_new)
        finally:
            self.busy.leave(parent_inode_new)
            if cache is not None:
                cache.renamed(parent_inode_old, name_old, parent_inode_new, name_new)

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changes(ctx)
        self._creating(new_parent_inode, new_name)
        self.busy.enter(new_parent_inode)
        try:
            attr = await self.volume.link(inode, new_parent_inode, new_name)
            return await self._entry(new_parent_inode, new_name, attr)
        finally:
            self.busy.leave(new_parent_inode)

    @handler
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        self._heard(ctx)
        # Only asked when the kernel does not check permissions itself.
        attr = await self.volume.getattr(inode)
        groups = {ctx.gid} | pyfuse3.get_sup_groups(ctx.pid)
        return permitted(attr, mode, ctx.uid, groups)

    # --- files ----------------------------------------------------------------------------------------------------

    @locked
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._changes(ctx)
        self.files.check_room()
        self._creating(parent_inode, name)
        handle, attr = await self.volume.create(parent_inode, name, mode, flags, ctx.uid, ctx.gid, self._umask(ctx))
        handle.uid = ctx.uid
        entry = await self._entry(parent_inode, name, attr)
        if self.incapable is not None:
            self.incapable.look(attr.ino)
        return self._opened(handle, ctx.pid), entry

    @handler
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self.files.check_room()
        (self._changes if flags & os.O_ACCMODE else self._heard)(ctx)
        with self.mappable.truncating(inode, bool(flags & os.O_TRUNC)):
            handle = await self.volume.open(inode, flags, ctx.uid)
        handle.uid = ctx.uid
        if flags & os.O_TRUNC:
            self.kernel.cut(inode, 0)
        return self._opened(handle, ctx.pid)

    @handler
    async def read(self, fh: int, off: int, size: int) -> Any:
        fills = None if self.paged is None else self.paged()  # before anything is awaited
        handle, came_s = self.files[fh], self._crossings.now_s()
        if fills or (fills is None and not handle.direct):
            data = await self._fill(handle, off, size)
        else:
            data = await self.volume.read(handle, off, size)
        if len(data) < size and not handle.direct:
            if self.kernel.refuses(handle.ino, off, off + size, len(data), came_s):
                raise FsError(Code.INTERRUPTED, "the file was made shorter meanwhile")
        self.profile.operations["read"].bytes += len(data)
        return data

    async def _fill(self, handle: Handle, off: int, size: int) -> Buffer:
        """Read what the kernel fills pages with, which it has locked meanwhile."""
        held = self.mappable.holds(handle.ino, off, off + size, fills=True)
        try:
            for _ in range(FILLS_MAX):
                data = await self.volume.read(handle, off, size, held=True)
                if not held.overtaken:
                    return data
                held.overtaken = False
        finally:
            self.mappable.gives(handle.ino, held)
        raise FsError(Code.TIMEOUT, "others changed the file again and again while it was read")

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self.files[fh]
        paged = self.paged is not None and self.paged()  # before anything is awaited
        if paged:
            handle = handle.placed()
        held = None if handle.direct or paged else self.mappable.holds(handle.ino, off, off + len(buf), fills=False)
        try:
            written = await self.volume.write(handle, off, buf, paged=None if self.paged is None else paged)
        finally:
            if held is not None:
                self.mappable.gives(handle.ino, held)
        self.kernel.grown(handle.ino, off + written)
        if handle.direct and not paged:  # the kernel does that, and a recall would wait for pages that wait for this
            await self.volume.strip(handle, handle.uid)
        self.profile.operations["write"].bytes += written
        return written

    @handler
    async def flush(self, fh: int) -> None:
        owner = self.flusher()  # before anything is awaited
        await self.volume.flush(self.files[fh], owner)

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.volume.fsync(self.files[fh], datasync)

    @handler
    async def release(self, fh: int) -> None:
        handle = self.files.remove(fh)
        self.mappable.released(handle)
        await self.volume.release(handle)

    # --- directories ----------------------------------------------------------------------------------------------

    @handler
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        self._heard(ctx)
        self._directories.check_room()
        handle = await self.volume.opendir(inode)
        number = self._directories.add(handle)
        if handle.whole and self.cache is not None and self.keep_listing is not None:
            handle.kept = True
            self.keep_listing(self.cache.keeps_listing(inode))  # which counts for this very reply
        return number

    @handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._directories[fh]
        if start_id & END:
            return
        for position, name in ((DOT, b"."), (DOTDOT, b"..")):
            if start_id < position and not pyfuse3.readdir_reply(token, name, bare_entry(directory.ino), position):
                return
        self.busy.enter(directory.ino)
        try:
            await self._list(directory, max(start_id - DOTDOT, 0), token)
        finally:
            self.busy.leave(directory.ino)

    async def _list(self, directory: DirHandle, start: int, token: pyfuse3.ReaddirToken) -> None:
        cache, parent, offset = self.cache, directory.ino, start
        while page := await self._page(directory, offset, delivered=offset > start):
            for name, attr, following in page:
                attr_s = name_s = 0.0
                if cache is not None:
                    attr_s, name_s = cache.attr_s(attr), cache.listed_s(parent, name, attr.ino)
                position = following + DOTDOT
                if position >= END:
                    if offset > start:
                        return  # the next request is told
                    raise FsError(Code.FILE_TOO_BIG, f"entry {following} of directory {parent}")
                if directory.ends(following):
                    position |= END
                if not pyfuse3.readdir_reply(token, name, entry_of(attr, attr_s, name_s), position):
                    return
                if self.kernel.looked_up(attr):
                    self._dropper.drop(attr.ino)
                offset = following

    async def _page(self, directory: DirHandle, offset: int, *, delivered: bool) -> list[tuple[bytes, Attr, int]]:
        """Read on in a directory. An error after entries were counted ends the reply: the next one will meet it."""
        try:
            return await self.volume.readdir(directory, offset)
        except FsError:
            if delivered:
                return []
            raise

    @handler
    async def releasedir(self, fh: int) -> None:
        handle = self._directories.remove(fh)
        if handle.kept and self.cache is not None:
            self.cache.closed_listing(handle.ino)
        await self.volume.releasedir(handle)

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.volume.fsyncdir(self._directories[fh])

    # --- extended attributes, the volume --------------------------------------------------------------------------

    @handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changes(ctx)
        _check_xattr(name)
        if self.incapable is not None:
            self.incapable.forget((inode,))
        drop_setgid = name == _ACCESS_ACL and await self._loses_setgid(inode, ctx)
        await self.volume.setxattr(inode, name, value, drop_setgid=drop_setgid)

    async def _loses_setgid(self, inode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Whether a file loses setgid when this user changes who may what: as with chmod(2), unless it is of the
        file's group."""
        attr = await self.volume.getattr(inode)
        if not attr.mode & stat.S_ISGID or ctx.uid == 0:
            return False
        return attr.gid != ctx.gid and attr.gid not in pyfuse3.get_sup_groups(ctx.pid)

    @handler
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        self._heard(ctx)
        _check_xattr(name)
        try:
            return await self.volume.getxattr(inode, name)
        except FsError as error:
            if name == CAPABILITY and error.code is Code.NO_ATTRIBUTE and self.incapable is not None:
                self.incapable.look(inode)
            raise

    @handler
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        self._heard(ctx)
        names = await self.volume.listxattr(inode)
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(_TRUSTED_XATTR)]

    @handler
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changes(ctx)
        _check_xattr(name)
        await self.volume.removexattr(inode, name)

    @handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return statfs_of(await self.volume.statfs())

    # --- the end --------------------------------------------------------------------------------------------------

    def unmounted(self) -> None:
        """The kernel has let go: it holds no inode any more."""
        for ino in self.kernel.clear():
            self.volume.forgotten(ino)

    def statistics(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel.statistics(),
            "cache": {} if self.cache is None else self.cache.statistics(),
            "crossings": self._crossings.statistics(),
            "files": len(self.files),
            "directories": len(self._directories),
            "quiet": dict(zip(("flush", "getxattr", "readdir", "getattr", "lookup"), self.quiet_answers())),
        }


def _check_xattr(name: bytes) -> None:
    """Refuse what no local filesystem takes."""
    if name in _ACLS:
        return
    if name in _XATTRS:
        raise FsError(Code.INVALID, f"the attribute name {name.decode()}")
    if not name.startswith(_XATTRS):
        raise FsError(Code.NOT_SUPPORTED, name.decode(errors="replace"))
