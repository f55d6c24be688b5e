"""Open files: create, open, read, write, flush, release. See Volume for the contracts."""

from __future__ import annotations

import os
import stat
from typing import Optional

from fusefs.client.closing import Closing
from fusefs.client.files import File, Files
from fusefs.client.handles import Handle
from fusefs.client.holds import Holds
from fusefs.client.namespace import Namespace
from fusefs.client.reader import Reader
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from metadata.api import Attr, AttrResult, GetAttr, SetAttr
from node.wire.errors import Code, FsError
from node.wire.types import Buffer

CAPABILITY = b"security.capability"


class FileIO:
    """Handles and what can be done with them."""

    def __init__(
        self,
        session: Session,
        files: Files,
        writeback: WriteBack,
        holds: Holds,
        namespace: Namespace,
        reader: Reader,
        closing: Closing,
    ) -> None:
        self._closing = closing
        self._session = session
        self._files = files
        self._writeback = writeback
        self._holds = holds
        self._namespace = namespace
        self._reader = reader

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int, umask: int
    ) -> tuple[Handle, Attr]:
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        deadline = self._session.deadline()
        while True:
            exclusive = bool(flags & os.O_EXCL)
            watched = self._session.leases.again.watched(parent, self._session.now_s())  # before they are asked back
            made = await self._namespace.make(parent, name, mode, uid, gid, exclusive=exclusive, umask=umask)
            try:
                file = await self._holds.enter(made.attr.ino)
            except FsError as error:
                if error.code is Code.STALE and made.existed and self._session.before(deadline):
                    continue  # found by name, and removed by this mount before it could be opened
                raise
            break
        if not made.existed:
            file.fresh = True
            file.watched = watched
            file.note(made.attr)
            return Handle(file, flags), made.attr
        attr = await self._opened(file, flags, uid)
        return Handle(file, flags), attr or self._files.overlay(made.attr)

    async def open(self, ino: int, flags: int, uid: int = 0) -> Handle:
        file = await self._holds.enter(ino)
        await self._opened(file, flags, uid)
        return Handle(file, flags)

    async def _opened(self, file: File, flags: int, uid: int) -> Attr | None:
        """Obey O_TRUNC, which takes setuid from the file unless root asks. On failure the handle is given back."""
        if not flags & os.O_TRUNC or flags & os.O_ACCMODE == os.O_RDONLY:
            return None
        try:
            return await self._namespace.setattr(SetAttr(file.ino, size=0, drop_setid=uid != 0))
        except BaseException:
            self._holds.leave(file)
            raise

    def at_hand(self, handle: Handle, version: int, size: int) -> Buffer | None:
        file = handle.file
        if not size or file.dirty or file.through or file.dead is not None:
            return None
        return self._reader.at_hand(file.ino, version, size)

    async def read(self, handle: Handle, offset: int, length: int, *, held: bool = False) -> Buffer:
        file = handle.file
        file.check()
        if length <= 0:
            return b""
        if file.through:
            await self._writeback.written_through(file)
        if file.append_base is not None and file.dirty:
            await self._writeback.flush(file)  # where appends land is known only then
        # What is in the buffer of appends now was written since, and may land elsewhere than it is believed to.
        placed = file.append_base is None or not file.dirty
        data = await self._reader.read(file, handle, offset, length, placed=placed, held=held)
        file.check()  # since then: others may have changed what was locked here
        return data

    async def write(self, handle: Handle, offset: int, data: bytes, *, paged: Optional[bool] = False) -> int:
        await self._writeback.write(handle, offset, data, paged=paged)
        if handle.flags & os.O_DSYNC and not paged:  # O_SYNC includes it
            await self.flush(handle)
        return len(data)

    async def strip(self, handle: Handle, uid: int) -> None:
        ino, now_s = handle.ino, self._session.now_s()
        attr = self._session.leases.attr(ino, now_s) or handle.file.known or await self._namespace.getattr(ino)
        group = stat.S_ISGID | stat.S_IXGRP
        if uid and (attr.mode & stat.S_ISUID or attr.mode & group == group):
            await self._namespace.setattr(SetAttr(ino, drop_setid=True))
        if attr.mode & 0o111 and self._session.leases.xattr(ino, CAPABILITY, now_s) != (None,):
            try:
                await self._namespace.getxattr(ino, CAPABILITY)
            except FsError as error:
                if error.code is Code.NO_ATTRIBUTE:
                    return
                raise
            await self._namespace.removexattr(ino, CAPABILITY)

    async def close(self, handle: Handle) -> None:
        """Where nobody else can see the file before it has arrived, closing does not wait for that."""
        file = handle.file
        if file.idle_data or (not (file.removed and file.handles) and self._closing.close(file)):
            self._writeback.check(handle)
            return
        await self.flush(handle, durable=False)

    async def flush(self, handle: Handle, *, durable: bool = True) -> None:
        """Have what was written arrive. ``durable``: for the sake of that, so little data may travel in the log."""
        file = handle.file
        self._closing.seal(file, carry=durable)
        await self._session.journal.drain(self._session.deadline())
        if not file.idle_data:
            try:
                await self._writeback.flush(file, carry=durable)
            except FsError:
                handle.seen = file.ledger.mark()  # this one is told now
                raise
        if not file.shown:
            await self._show(file)
        self._writeback.check(handle)

    async def _show(self, file: File) -> None:
        """Return when nobody sees any more what was before that which was brought for a recall: the service has
        answered that at once. Whoever asks it waits for those who have not forgotten."""
        file.shown = True
        try:
            await self._session.query(GetAttr(file.ino), AttrResult)
        except FsError as error:
            file.shown = error.code in (Code.STALE, Code.UNKNOWN_SESSION)
            if not file.shown:
                raise

    async def release(self, handle: Handle) -> None:
        if handle.closed:
            return
        handle.closed = True
        file = handle.file
        try:
            if file.handles == 1 and not file.removed and not file.idle_data and not self._closing.close(file):
                await self._writeback.flush(file)
        except FsError:
            pass  # logged where it happened; what may still succeed is tried again by the timer
        finally:
            self._holds.leave(file)
            if not file.handles and file.dirty:
                self._writeback.orphaned(file)
