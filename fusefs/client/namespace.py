"""Names and attributes: each call is one question or one mutation, answered by the service."""

from __future__ import annotations

import stat
from typing import Optional

from fusefs.client.facts import ABSENT
from fusefs.client.closing import Closing
from fusefs.client.files import File, Files
from fusefs.client.holds import Holds
from fusefs.client.local import Local
from fusefs.client.prefetch import Prefetch
from fusefs.client.results import expect
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from metadata import api
from metadata.api import Attr
from node.wire.errors import Code, FsError
from node.wire.limits import READDIR_PAGE_MAX

_ACLS = {b"system.posix_acl_access": api.ATTR_ACCESS_ACL, b"system.posix_acl_default": api.ATTR_DEFAULT_ACL}


class Namespace:
    """See Volume for the contracts."""

    def __init__(
        self,
        session: Session,
        files: Files,
        writeback: WriteBack,
        holds: Holds,
        prefetch: Prefetch,
        local: Local,
        closing: Closing,
    ) -> None:
        self._local = local
        self._closing = closing
        self._session = session
        self._files = files
        self._writeback = writeback
        self._holds = holds
        self._prefetch = prefetch

    async def lookup(self, parent: int, name: bytes) -> Attr:
        known = self._remembered(parent, name)
        if known is not None:
            self._prefetch.found(parent)
            return known
        try:
            result = await self._ask(parent, name)
        except FsError as error:
            if error.code is Code.NOT_FOUND:
                self._holds.drop_hint(parent, name)
            raise
        self._holds.hint(parent, name, result.attr.ino)
        self._prefetch.missed(parent)
        return self._files.overlay(result.attr)

    async def _ask(self, parent: int, name: bytes) -> api.AttrResult:
        query = api.Lookup(parent, name)
        if not self._prefetch.eager(parent):
            return await self._session.query(query, api.AttrResult)
        listing = api.ReadDir(parent, b"", READDIR_PAGE_MAX, True)
        return expect((await self._session.read(query, listing))[0], api.AttrResult)

    def _remembered(self, parent: int, name: bytes) -> Optional[Attr]:
        """Answer from memory. Raises NOT_FOUND for a name that is known not to exist."""
        leases = self._session.leases
        now_s = self._session.now_s()
        ino = leases.name(parent, name, now_s)
        if ino == ABSENT:
            leases.missed(parent, name)
            self._holds.drop_hint(parent, name)
            raise FsError(Code.NOT_FOUND, "no such name")
        attr = None if ino is None else leases.attr(ino, now_s)
        if ino is None or attr is None:
            return None
        self._holds.hint(parent, name, ino)
        return self._files.overlay(attr)

    async def getattr(self, ino: int) -> Attr:
        file = self._files.get(ino)
        if file is not None and file.append_base is not None and file.dirty and file.dead is None:
            try:
                await self._writeback.flush(file)  # where appends land is known only then
            except FsError:
                pass  # told to the writers; the size below counts what is dirty
        attr = self._session.leases.attr(ino, self._session.now_s())
        if attr is None:
            attr = (await self._session.query(api.GetAttr(ino), api.AttrResult)).attr
        return self._files.overlay(attr)

    async def setattr(self, op: api.SetAttr) -> Attr:
        file = self._files.get(op.ino)
        result = self._set_here(op, file)
        if result is not None:
            pass
        elif file is None or file.idle_data or file.dead is not None:
            result = await self._session.change(op, api.AttrResult)
        else:
            results = await self._writeback.flush(file, op, cut=op.size)
            result = expect(results[0], api.AttrResult)
        if file is not None and op.size is not None and file.dead is None:
            file.truncated(op.size)
        if file is not None:
            file.note(result.attr)
        return self._files.overlay(result.attr)

    async def make(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b"",
        exclusive: bool = True, umask: int = 0,
    ) -> api.Made:
        """Create a name. Without ``exclusive`` an existing inode may be returned."""
        attr = self._session.leases.attr(parent, self._session.now_s()) if umask else None
        if attr is not None and not attr.flags & api.ATTR_DEFAULT_ACL:
            mode, umask = mode & ~(umask & 0o777), 0  # else the service knows whether the umask counts
        op = api.Make(parent, name, mode, uid, gid, rdev=rdev, target=target, exclusive=exclusive, umask=umask)
        made = self._local.make(op)
        if made is None:
            made = await self._session.change(op, api.Made)
        self._holds.hint(parent, name, made.attr.ino)
        return made

    async def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int, umask: int) -> Attr:
        return (await self.make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid, umask=umask)).attr

    async def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        return (await self.make(parent, name, stat.S_IFLNK | 0o777, uid, gid, target=target)).attr

    async def link(self, ino: int, parent: int, name: bytes) -> Attr:
        op = api.Link(ino, parent, name)
        file = self._files.get(ino)
        result = self._local.link(op) if self._sealed(file) else None
        if result is None:
            if file is not None and not file.idle_data and file.dead is None:
                await self._writeback.flush(file)
            result = await self._session.change(op, api.AttrResult)
        self._holds.hint(parent, name, ino)
        return self._files.overlay(result.attr)

    async def remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        if self._remove_here(parent, name, directory):
            return
        ino = self._holds.hinted(parent, name)
        await self._changed(ino)
        self._holds.drop_hint(parent, name)
        with self._holds.removing(ino) as not_held:
            removed = await self._session.change(api.Remove(parent, name, directory, not_held), api.Removed)
            self._holds.removed(removed.ino, removed.nlink, removed.held)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        if self._rename_here(parent, name, new_parent, new_name, flags):
            return
        await self._flush_source(parent, name)
        if flags & api.RENAME_EXCHANGE:
            await self._flush_source(new_parent, new_name)
        victim = self._holds.hinted(new_parent, new_name)
        moved = self._holds.hinted(parent, name)
        await self._changed(victim)
        self._holds.drop_hint(parent, name)
        self._holds.drop_hint(new_parent, new_name)
        with self._holds.removing(victim if victim != moved else 0) as not_held:
            op = api.Rename(parent, name, new_parent, new_name, flags, not_held)
            renamed = await self._session.change(op, api.Renamed)
            if renamed.replaced:
                self._holds.removed(renamed.replaced, renamed.replaced_nlink, renamed.held)

    # --- changed here -------------------------------------------------------------------------------------------

    def _sealed(self, file: Optional[File]) -> bool:
        """Whether the data of a file is in the journal, or nowhere but at the service."""
        return file is None or file.dead is not None or file.idle_data or self._closing.seal(file)

    def _set_here(self, op: api.SetAttr, file: Optional[File]) -> Optional[api.AttrResult]:
        """Attributes may be set before data that the journal has not; a size may not, while data is under way."""
        if file is not None and file.dead is None and not file.idle_data:
            if op.size is not None or file.wishes or not self._closing.seal(file):
                return None  # where others wait to be granted a wish, behind them
        return self._local.set_attr(op)

    def _vouched(self, ino: int) -> Optional[tuple[int, ...]]:
        """What a removal says of an inode; None: another removal of it is under way."""
        if self._holds.is_removing(ino):
            return None
        return () if self._holds.held(ino) else (ino,)

    def _remove_here(self, parent: int, name: bytes, directory: bool) -> bool:
        ino = self._session.leases.name(parent, name, self._session.now_s())
        not_held = self._vouched(ino) if ino else ()
        if ino is None or not_held is None:
            return False
        removed = self._local.remove(api.Remove(parent, name, directory, not_held))
        if removed is None:
            return False
        self._holds.drop_hint(parent, name)
        self._holds.removed(removed.ino, removed.nlink, removed.held)
        return True

    def _rename_here(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> bool:
        leases, now_s = self._session.leases, self._session.now_s()
        ino, other = leases.name(parent, name, now_s), leases.name(new_parent, new_name, now_s)
        if not ino or other is None or not self._sealed(self._files.get(ino)):
            return False
        not_held = self._vouched(other) if other else ()
        if not_held is None:
            return False
        renamed = self._local.rename(api.Rename(parent, name, new_parent, new_name, flags, not_held))
        if renamed is None:
            return False
        self._holds.drop_hint(parent, name)
        self._holds.hint(new_parent, new_name, ino)
        if renamed.replaced:
            self._holds.removed(renamed.replaced, renamed.replaced_nlink, renamed.held)
        return True

    # --- helpers ------------------------------------------------------------------------------------------------

    async def _flush_source(self, parent: int, name: bytes) -> None:
        """Rule 11: a name moves only after its data is committed."""
        if not self._writeback.dirty:
            return
        ino = self._holds.hinted(parent, name)
        if not ino:
            try:
                ino = (await self.lookup(parent, name)).ino
            except FsError as error:
                if error.code is Code.NOT_FOUND:
                    return  # the rename says so itself, or another mount has been here
                raise
        file = self._files.get(ino)
        if file is not None and not file.idle_data and file.dead is None and not file.removed:
            await self._writeback.flush(file)

    async def _changed(self, ino: int) -> None:
        """Return when no truncation or the like of this inode is under way: it would find the inode gone."""
        file = self._files.get(ino) if ino else None
        if file is not None and file.changing:
            await self._writeback.changed((file,), self._session.deadline())

    async def readlink(self, ino: int) -> bytes:
        target = self._session.leases.target(ino, self._session.now_s())
        if target is None:
            target = (await self._session.query(api.ReadLink(ino), api.Target)).target
        return target

    # --- extended attributes ------------------------------------------------------------------------------------

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        if name in _ACLS:
            attr = self._session.leases.attr(ino, self._session.now_s())
            if attr is not None and not attr.flags & _ACLS[name]:
                raise FsError(Code.NO_ATTRIBUTE, name.decode())
        known = self._session.leases.xattr(ino, name, self._session.now_s())
        if known is None:
            return (await self._session.query(api.GetXattr(ino, name), api.Value)).value
        if known[0] is None:
            raise FsError(Code.NO_ATTRIBUTE, name.decode(errors="replace"))
        return known[0]

    async def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, drop_setgid: bool) -> None:
        await self._session.change(api.SetXattr(ino, name, value, flags, drop_setgid), api.AttrResult)

    async def listxattr(self, ino: int) -> list[bytes]:
        return list((await self._session.query(api.ListXattr(ino), api.Names)).names)

    async def removexattr(self, ino: int, name: bytes) -> None:
        await self._session.change(api.RemoveXattr(ino, name), api.AttrResult)
