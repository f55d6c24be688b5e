"""Reads: dirty bytes over committed ones over holes.

Without leases each read asks for the extents anew, and so sees what any mount has committed before. Blocks are
immutable and may come from the cache. What is dirty is noted *before* the question is asked: bytes that are committed
meanwhile are then in the note, in the answer, or in both, never in neither.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Optional

import trio

from fusefs.client.blocks import SMALL_BLOCK_BYTES, Blocks
from fusefs.client.chunking import chunk_of
from fusefs.client.codec import join
from fusefs.client.dirty import Piece
from fusefs.client.files import File
from fusefs.client.handles import Handle
from fusefs.client.readplan import Segment, plan
from fusefs.client.session import Session
from metadata.api import Attr, Extent, Extents, GetExtents
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, COMPACT_EXTENTS_MIN
from node.wire.types import Buffer

EXTENTS_AHEAD_CHUNKS = 256  # of which a sequential reader learns the extents at once
EXTENTS_AROUND_CHUNKS = 1024  # of which a random reader does
AHEAD_EVERY_S, AROUND_EVERY_S = 0.1, 1.0  # at most, for one file: where others write, what was learnt is soon old
EXPECT_EVERY_S = 0.25
WIDE_MAX = 256


class Missed(Exception):
    """A block cannot be had that a file consisted of when it was asked about: ``extents`` in the range."""

    def __init__(self, error: FsError, extents: list[Extent]) -> None:
        super().__init__(error, extents)
        self.error = error
        self.extents = extents


def _noted(file: File, offset: int, length: int, placed: bool) -> tuple[Sequence[Piece], int]:
    """What is dirty in a range, and where what is dirty ends."""
    return (file.dirty.pieces(offset, offset + length), file.dirty.end) if placed else ((), 0)


def _seldom(times: OrderedDict[int, float], ino: int, every_s: float) -> bool:
    """Whether something may be done for a file that is done at most so often; then it counts as done."""
    now_s = trio.current_time()
    if times.get(ino, -every_s) > now_s - every_s:
        return False
    times[ino] = now_s
    times.move_to_end(ino)
    if len(times) > WIDE_MAX:
        times.popitem(last=False)
    return True


class Reader:
    """Reads files."""

    def __init__(
        self, session: Session, blocks: Blocks, *, ahead_max: int, begun: Callable[[int], None] = lambda _: None
    ) -> None:
        """``begun`` is told each file that is read from its beginning."""
        self._session = session
        self._blocks = blocks
        self._ahead_max = ahead_max
        self._begun = begun
        self.fragmented: Callable[[int, int], None] = lambda ino, chunk: None  # is told chunks of many extents
        self._wide: OrderedDict[int, float] = OrderedDict()  # file -> when much was asked for last
        self._expected: OrderedDict[int, float] = OrderedDict()  # and when it was asked where its blocks lie

    async def read(
        self, file: File, handle: Handle, offset: int, length: int, *, placed: bool = True, held: bool = False
    ) -> Buffer:
        """Return [offset, offset + length), shorter only at the end of the file. Not ``placed``: without what is dirty,
        because its place is not known. ``held``: as in Session.read."""
        noted = _noted(file, offset, length, placed)
        if sum(len(piece.data) for piece in noted[0]) == length:
            return join([piece.data for piece in noted[0]])
        if not offset:
            self._begun(file.ino)
        ahead = handle.stream.reading(offset, length, self._ahead_max)
        deadline = self._session.deadline()
        missed: Optional[Missed] = None
        while True:
            try:
                return await self._read(file, noted, offset, length, ahead, deadline, missed, held)
            except Missed as error:  # nothing may reference it by now, and what came with a log entry is gone then
                missed = error
                noted = _noted(file, offset, length, placed)

    async def _read(
        self,
        file: File,
        noted: tuple[Sequence[Piece], int],
        offset: int,
        length: int,
        ahead: int,
        deadline: float,
        missed: Optional[Missed],
        held: bool,
    ) -> Buffer:
        """As ``read``. Raises Missed where a block cannot be had, and what it ``missed`` before where that is still
        what the file consists of."""
        end = offset + length
        pieces, dirty_end = noted
        if missed is None:
            attr, extents = await self.extents(file.ino, offset, end, deadline, ahead=ahead, wide=True, held=held)
        else:
            attr, extents = await self.committed(file.ino, offset, end, deadline, held=held)
            if [extent for extent in extents if extent.offset < end] == missed.extents:
                raise FsError(missed.error.code, missed.error.detail)
        if len(extents) >= COMPACT_EXTENTS_MIN:
            self._tell_fragmented(file.ino, extents)
        end = min(end, max(attr.size, dirty_end))
        if end <= offset:
            return b""
        near = [extent for extent in extents if extent.offset < end]
        if attr.size > BLOCK_BYTES_MAX and near and self._blocks.short.hopes(near[-1].block):
            self._expect(file.ino, offset, attr.size, extents)
        segments = plan(pieces, near, offset, end)
        whole = ahead > 0 or length >= BLOCK_BYTES_MAX // 2
        if ahead:
            until = end + ahead * BLOCK_BYTES_MAX
            later = [extent for extent in extents[len(near) :] if extent.offset < until]
            self._blocks.ahead([(extent.block, extent.block_length) for extent in later])
        try:
            return join(await self._gather(segments, whole, deadline))
        except FsError as error:
            if error.code is not Code.IO:
                raise
            raise Missed(error, near) from None

    def _expect(self, ino: int, offset: int, size: int, extents: Sequence[Extent]) -> None:
        """A file of some size is read: its large blocks may lie on this host, those around this place as well."""
        if not _seldom(self._expected, ino, EXPECT_EVERY_S):
            return
        window = EXTENTS_AROUND_CHUNKS * BLOCK_BYTES_MAX
        start = offset - offset % window
        until = min(start + window, size)
        known = self._session.leases.layout(ino, start, until, self._session.now_s())
        known = known or self._known(ino, offset, min(offset + 1, until), until)
        around = known[1] if known is not None else extents
        self._blocks.short.expect([extent.block for extent in around if extent.block_length > SMALL_BLOCK_BYTES])

    def _tell_fragmented(self, ino: int, extents: Sequence[Extent]) -> None:
        counts: dict[int, int] = {}
        for extent in extents:
            chunk = chunk_of(extent.offset)
            counts[chunk] = counts.get(chunk, 0) + 1
            if counts[chunk] == COMPACT_EXTENTS_MIN:
                self.fragmented(ino, chunk)

    async def extents(
        self,
        ino: int,
        offset: int,
        end: int,
        deadline: float,
        *,
        ahead: int = 0,
        wide: bool = False,
        journal: bool = False,
        held: bool = False,
    ) -> tuple[Attr, list[Extent]]:
        """Return attributes and the extents that meet [offset, end), perhaps some of ``ahead`` chunks beyond.

        Where they are leased, and with ``wide``, more is asked for than is needed now: all of a file that is not large,
        much of a large one. ``journal`` and ``held``: as in Session.read.
        """
        until = end + ahead * BLOCK_BYTES_MAX
        known = self._known(ino, offset, end, until)
        if known is not None:
            return known
        wide = wide and self._session.leases.on
        if wide and ahead and self._may_widen(ino, AHEAD_EVERY_S):
            until = end + EXTENTS_AHEAD_CHUNKS * BLOCK_BYTES_MAX
        elif wide and not ahead and (around := self._around(ino, offset)) is not None:
            await self._session.query(GetExtents(ino, *around), Extents, deadline, held=held)
            known = self._known(ino, offset, end, until)
            if known is not None:
                return known
        return await self.committed(ino, offset, end, deadline, until=until, journal=journal, held=held)

    async def committed(
        self, ino: int, offset: int, end: int, deadline: float, *, until: int = 0, journal: bool = False,
        held: bool = False,
    ) -> tuple[Attr, list[Extent]]:
        """As ``extents``, as the service has it, which what leases say may be ahead of; of what lies beyond, up to
        ``until``, as much as comes by itself."""
        extents: list[Extent] = []
        at, until = offset, max(until, end)
        while True:
            query = GetExtents(ino, at, until - at)
            page = await self._session.query(query, Extents, deadline, journal=journal, held=held)
            extents.extend(page.extents)
            if not page.more or not page.extents:
                return page.attr, extents
            at = page.extents[-1].offset + page.extents[-1].length
            if at >= end:
                return page.attr, extents

    def _known(self, ino: int, offset: int, end: int, until: int) -> Optional[tuple[Attr, list[Extent]]]:
        """What leases say of [offset, end), and of what follows up to ``until`` as far as it is known."""
        leases, now_s = self._session.leases, self._session.now_s()
        known = leases.layout(ino, offset, end, now_s)
        if known is None or until == end:
            return known
        while until > end and (more := leases.layout(ino, offset, until, now_s)) is None:
            until = end + (until - end) // 2  # the rest is asked for when the reader gets there
        return known if until <= end else more

    def _around(self, ino: int, offset: int) -> Optional[tuple[int, int]]:
        """What to ask for around a random read: the chunks of the file that lie with it in one window. None: there is
        no sense in it."""
        attr = self._session.leases.attr(ino, self._session.now_s())
        if attr is None or attr.size <= BLOCK_BYTES_MAX or not self._may_widen(ino, AROUND_EVERY_S):
            return None
        window = EXTENTS_AROUND_CHUNKS * BLOCK_BYTES_MAX
        return offset - offset % window, window

    def _may_widen(self, ino: int, every_s: float) -> bool:
        """Whether much may be asked for now; then it counts as asked."""
        return _seldom(self._wide, ino, every_s)

    async def little(self, file: File, offset: int, length: int, limit: int) -> Optional[Buffer]:
        """Return what is committed of [offset, offset + length), shorter at the end of the file; None where that is
        more than ``limit``, where there are holes in it, or where no lease says so."""
        known = self._session.leases.layout(file.ino, offset, offset + min(length, limit + 1), self._session.now_s())
        if known is None:
            return None
        attr, extents = known
        end = min(offset + length, attr.size)
        if end <= offset:
            return b""
        segments = plan((), extents, offset, end) if end - offset <= limit else []
        if not segments or any(segment.extent is None for segment in segments):
            return None
        if not offset:
            self._begun(file.ino)
        return join(await self._gather(segments, True, self._session.deadline()))

    def at_hand(self, ino: int, version: int, size: int) -> Optional[Buffer]:
        """Return what is committed of a file where it is of this version and size, a lease says so, and all its blocks
        are in memory."""
        known = self._session.leases.layout(ino, 0, size, self._session.now_s())
        if known is None or (known[0].data_version, known[0].size) != (version, size):
            return None
        parts: list[Buffer] = []
        for segment in plan((), known[1], 0, size):
            if segment.extent is None:
                parts.append(bytes(segment.length))
                continue
            if segment.extent.block not in self._blocks.cache:
                return None
            plain, start = self._blocks.cache.get(segment.extent.block), segment.block_offset
            assert plain is not None
            parts.append(memoryview(plain)[start : start + segment.length])
        self._begun(ino)
        return join(parts)

    async def assemble(
        self, pieces: Sequence[Piece], extents: Sequence[Extent], offset: int, end: int, deadline: float
    ) -> list[Buffer]:
        """Return the bytes of [offset, end) in parts, for a rewrite."""
        return await self._gather(plan(pieces, extents, offset, end), True, deadline)

    async def _gather(self, segments: Sequence[Segment], whole: bool, deadline: float) -> list[Buffer]:
        """Have the bytes of each segment; blocks come in parallel."""
        wanted = [segment for segment in segments if segment.extent is not None]
        if len(wanted) > 1 or (wanted and self._take_whole(wanted[0], whole)):
            self._blocks.want([(one.extent.block, one.extent.block_length) for one in wanted if one.extent is not None])
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

    def came(self, block: bytes, plain: bytes) -> None:
        """The bytes of a block that is written here; it may be on no chunk server yet."""
        self._blocks.cache.put(block, plain)

    def statistics(self) -> dict[str, Any]:
        return self._blocks.statistics()
