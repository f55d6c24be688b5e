"""Reads: dirty bytes over committed ones over holes.

Without leases each read asks for the extents anew, and so sees what any mount has committed before. Blocks are
immutable and may come from the cache. What is dirty is noted *before* the question is asked: bytes that are committed
meanwhile are then in the note, in the answer, or in both, never in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusefs.client.blocks import SMALL_BLOCK_BYTES, Blocks
from fusefs.client.codec import join
from fusefs.client.dirty import Piece
from fusefs.client.files import File
from fusefs.client.handles import Handle
from fusefs.client.readplan import Segment, plan
from fusefs.client.session import Session
from metadata.api import Attr, Extent, Extents, GetExtents
from node.wire.limits import BLOCK_BYTES_MAX
from node.wire.types import Buffer


class Reader:
    """Reads files."""

    def __init__(self, session: Session, blocks: Blocks, *, ahead_max: int) -> None:
        self._session = session
        self._blocks = blocks
        self._ahead_max = ahead_max

    async def read(self, file: File, handle: Handle, offset: int, length: int) -> Buffer:
        """Return [offset, offset + length), shorter only at the end of the file."""
        end = offset + length
        pieces = file.dirty.pieces(offset, end)
        dirty_end = file.dirty.end
        if sum(len(piece.data) for piece in pieces) == length:
            return join([piece.data for piece in pieces])
        ahead = handle.stream.reading(offset, length, self._ahead_max)
        deadline = self._session.deadline()
        attr, extents = await self.extents(file.ino, offset, end, deadline, ahead=ahead)
        end = min(end, max(attr.size, dirty_end))
        if end <= offset:
            return b""
        near = [extent for extent in extents if extent.offset < end]
        segments = plan(pieces, near, offset, end)
        whole = ahead > 0 or length >= BLOCK_BYTES_MAX // 2
        parts = await self._gather(segments, whole, deadline, extents[len(near) :])
        return join(parts)

    async def extents(
        self, ino: int, offset: int, end: int, deadline: float, *, ahead: int = 0
    ) -> tuple[Attr, list[Extent]]:
        """Return attributes and the extents that meet [offset, end), perhaps some of ``ahead`` chunks beyond."""
        until = end + ahead * BLOCK_BYTES_MAX
        known = self._session.leases.layout(ino, offset, end, self._session.now_s())
        if known is not None:
            attr, near = known
            if ahead:
                later = self._session.leases.layout(ino, offset, until, self._session.now_s())
                near = later[1] if later is not None else near
            return attr, near
        extents: list[Extent] = []
        at = offset
        while True:
            page = await self._session.query(GetExtents(ino, at, until - at), Extents, deadline)
            extents.extend(page.extents)
            if not page.more or not page.extents:
                return page.attr, extents
            at = page.extents[-1].offset + page.extents[-1].length
            if at >= end:
                return page.attr, extents

    async def assemble(
        self, pieces: Sequence[Piece], extents: Sequence[Extent], offset: int, end: int, deadline: float
    ) -> list[Buffer]:
        """Return the bytes of [offset, end) in parts, for a rewrite."""
        return await self._gather(plan(pieces, extents, offset, end), True, deadline, ())

    async def _gather(
        self, segments: Sequence[Segment], whole: bool, deadline: float, later: Sequence[Extent]
    ) -> list[Buffer]:
        """Have the bytes of each segment; blocks come in parallel."""
        wanted = [segment for segment in segments if segment.extent is not None]
        if len(wanted) > 1 or (wanted and self._take_whole(wanted[0], whole)):
            self._blocks.want([(one.extent.block, one.extent.block_length) for one in wanted if one.extent is not None])
        for next_one in later:
            self._blocks.prefetch(next_one.block, next_one.block_length)
        parts: list[Buffer] = []
        for segment in segments:
            extent = segment.extent
            if segment.data is not None:
                parts.append(segment.data)
            elif extent is None:
                parts.append(bytes(segment.length))
            else:
                parts.append(
                    await self._blocks.part(
                        extent.block, segment.block_offset, segment.length, extent.block_length, deadline
                    )
                )
        return parts

    @staticmethod
    def _take_whole(segment: Segment, whole: bool) -> bool:
        assert segment.extent is not None
        block_length = segment.extent.block_length
        return whole or block_length <= SMALL_BLOCK_BYTES or segment.length == block_length

    def statistics(self) -> dict[str, Any]:
        return self._blocks.statistics()
