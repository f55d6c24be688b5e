"""Where a file has bytes and where it has holes: fallocate(2), lseek(2) with SEEK_DATA and SEEK_HOLE,
copy_file_range(2). See Volume for the contracts.

All work on what is committed: bytes written before are committed in the same step, or counted as data.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Optional

from fusefs.client.blocks import SMALL_BLOCK_BYTES
from fusefs.client.dirty import Piece
from fusefs.client.files import File
from fusefs.client.handles import Handle
from fusefs.client.reader import Reader
from fusefs.client.results import expect, raise_failed
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from metadata.api import (
    Attr,
    AttrResult,
    CloneRange,
    Commit,
    Committed,
    Extent,
    Extents,
    Failed,
    GetAttr,
    GetExtents,
    Op,
    PunchHole,
    Result,
    StatVolume,
    VolumeStat,
)
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, CHUNK_EXTENTS_MAX, COMMIT_EXTENTS_MAX, FILE_BYTES_MAX, GIB

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # as in linux/falloc.h
COPY_HERE_BYTES_MAX = SMALL_BLOCK_BYTES
CLONE_BYTES = 1 * GIB  # of one entry, where the extents are not too many for one
CLONE_BYTES_SURE = COMMIT_EXTENTS_MAX // CHUNK_EXTENTS_MAX * BLOCK_BYTES_MAX - BLOCK_BYTES_MAX


class Space:
    """Ranges of open files."""

    def __init__(self, session: Session, writeback: WriteBack, reader: Reader, now_ns: Callable[[], int]) -> None:
        self._session = session
        self._writeback = writeback
        self._reader = reader
        self._now_ns = now_ns

    # --- fallocate ------------------------------------------------------------------------------------------------

    async def allocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        end = offset + length
        if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) or mode & (PUNCH_HOLE | KEEP_SIZE) == PUNCH_HOLE:
            raise FsError(Code.NOT_SUPPORTED, f"fallocate mode {mode:#x}")
        if offset < 0 or length <= 0 or mode & (PUNCH_HOLE | ZERO_RANGE) == PUNCH_HOLE | ZERO_RANGE:
            raise FsError(Code.INVALID, f"fallocate of {length} bytes at {offset}")
        if end > FILE_BYTES_MAX:
            raise FsError(Code.FILE_TOO_BIG, f"fallocate up to byte {end}")
        ops: list[Op] = []
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            ops.append(PunchHole(handle.ino, offset, length))
        else:
            await self._check_room(handle, offset, end)
        if not mode & KEEP_SIZE and (ops or (await self._attr(handle.file)).size < end):
            ops.append(Commit(handle.ino, (), end, self._now_ns(), 0))  # which never makes it smaller
        if ops:
            await self._change(handle.file, *ops)

    async def _check_room(self, handle: Handle, offset: int, end: int) -> None:
        """Raise NO_SPACE where what is not there yet of a range would not fit now. Nothing is set aside."""
        volume = await self._session.query(StatVolume(), VolumeStat)
        if end - offset <= volume.free_bytes:
            return
        missing = end - offset
        async for extent in self._walk(handle.file, offset, end):
            missing -= min(end, extent.offset + extent.length) - max(offset, extent.offset)
        if missing > volume.free_bytes:
            raise FsError(Code.NO_SPACE, f"{missing} bytes asked for, {volume.free_bytes} are free")

    # --- data and holes -------------------------------------------------------------------------------------------

    async def seek(self, handle: Handle, offset: int, *, data: bool) -> int:
        file = handle.file
        file.check()
        if file.append_base is not None and file.dirty:
            await self._writeback.flush(file)  # where appends land is known only then
        pieces = file.dirty.pieces(0, None)  # before asking: what is committed meanwhile is here or there
        size = max((await self._attr(file)).size, file.dirty.end, pieces[-1].end if pieces else 0)
        if not 0 <= offset < size:
            raise FsError(Code.BEYOND_END, f"offset {offset} of {size} bytes")
        at = offset
        async for extent in self._walk(file, offset, size, pieces):
            start, end = extent.offset, extent.offset + extent.length
            if data:
                return max(offset, start)
            if start > at:
                break
            at = max(at, end)
        if data:
            raise FsError(Code.BEYOND_END, f"no data from {offset} on")
        return min(at, size)

    async def _walk(
        self, file: File, offset: int, end: int, pieces: list[Piece] | None = None
    ) -> AsyncIterator[Extent]:
        """Yield what has bytes in [offset, end) in order, dirty ones included."""
        left = [piece for piece in pieces or () if piece.end > offset]
        left.reverse()
        at = offset
        while True:
            page = await self._session.query(GetExtents(file.ino, at, end - at), Extents)
            for extent in page.extents:
                while left and left[-1].offset <= extent.offset:
                    yield _as_extent(left.pop())
                yield extent
            if not page.more or not page.extents:
                break
            at = page.extents[-1].offset + page.extents[-1].length
        while left:
            yield _as_extent(left.pop())

    # --- copying --------------------------------------------------------------------------------------------------

    async def copy(self, source: Handle, offset: int, target: Handle, target_offset: int, length: int) -> int:
        source.file.check()
        copied = await self._copy_here(source, offset, target, target_offset, length)
        return await self._clone(source, offset, target, target_offset, length) if copied is None else copied

    async def _copy_here(
        self, source: Handle, offset: int, target: Handle, target_offset: int, length: int
    ) -> Optional[int]:
        """Copy little by reading and writing, where nobody needs to be asked for either: what is equal is stored once
        all the same. None: that is not so."""
        file = source.file
        if file is target.file or target.append or target.flags & os.O_DSYNC:
            return None
        if not file.idle_data or not self._writeback.stays(target.file):
            return None
        try:
            data = await self._reader.little(file, offset, length, COPY_HERE_BYTES_MAX)
        except FsError:
            return None  # the service may know better
        file.check()
        if data:
            await self._writeback.write(target, target_offset, bytes(data))
        return None if data is None else len(data)

    async def _clone(self, source: Handle, offset: int, target: Handle, target_offset: int, length: int) -> int:
        if not source.file.idle_data:
            await self._writeback.flush(source.file)
        copied = 0
        part = CLONE_BYTES
        while copied < length:
            wanted = min(part, length - copied)
            op = CloneRange(source.ino, offset + copied, target.ino, target_offset + copied, wanted)
            try:
                (result,) = await self._change(target.file, op)
            except FsError as error:
                if error.code is Code.TOO_BIG and part > CLONE_BYTES_SURE:
                    part = CLONE_BYTES_SURE
                    continue
                if copied:
                    break
                if error.code is Code.TOO_BIG:  # a chunk would be in too many pieces: better copied byte by byte
                    raise FsError(Code.NOT_SUPPORTED, error.detail) from None
                raise
            moved = expect(result, Committed).offset - target_offset - copied
            copied += moved
            if moved < wanted:
                break
        return copied

    # --- how ------------------------------------------------------------------------------------------------------

    async def _attr(self, file: File) -> Attr:
        return (await self._session.query(GetAttr(file.ino), AttrResult)).attr

    async def _change(self, file: File, *ops: Op) -> tuple[Result, ...]:
        """Have what is dirty committed and then ops executed, in one step; raises the first failure."""
        file.check()
        if file.idle_data:
            results = await self._session.submit(*ops, stop_on_error=True, incarnation=file.incarnation)
        else:
            results = await self._writeback.flush(file, *ops)
        file.extents.clear()  # chunks may have more pieces now than was known
        file.fresh = False
        for result in results:
            if isinstance(result, Failed):
                raise_failed(result)
            if isinstance(result, (AttrResult, Committed)):
                file.note(result.attr)
                if file.append_base is not None and not file.dirty:
                    file.append_base = result.attr.size
        return results


def _as_extent(piece: Piece) -> Extent:
    return Extent(piece.offset, len(piece.data), b"", 0, len(piece.data))
