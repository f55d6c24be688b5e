"""Where the bytes of a read come from: dirty pieces over extents over holes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from fusefs.client.dirty import Piece
from metadata.api import Extent
from node.wire.types import Buffer


@dataclass(slots=True)
class Segment:
    """File bytes [offset, offset + length): ``data`` when dirty, else part of ``extent``'s block, else a hole."""

    offset: int
    length: int
    data: Optional[Buffer] = None
    extent: Optional[Extent] = None

    @property
    def block_offset(self) -> int:
        """Where in the extent's block the bytes begin."""
        assert self.extent is not None
        return self.extent.block_offset + self.offset - self.extent.offset


def gaps(pieces: Sequence[Piece], offset: int, end: int) -> Iterator[tuple[int, int]]:
    """What dirty pieces leave open of [offset, end). They are disjoint, in order and clipped to the range."""
    for piece in pieces:
        if piece.offset > offset:
            yield offset, piece.offset
        offset = piece.end
    if offset < end:
        yield offset, end


def plan(pieces: Sequence[Piece], extents: Sequence[Extent], offset: int, end: int) -> list[Segment]:
    """Cover [offset, end) without a gap, in order. Pieces and extents are each disjoint and in order."""
    segments = [Segment(piece.offset, len(piece.data), data=piece.data) for piece in pieces]
    at = 0
    for start, stop in gaps(pieces, offset, end):
        while at < len(extents) and extents[at].offset + extents[at].length <= start:
            at += 1
        index = at
        while start < stop:
            extent = extents[index] if index < len(extents) else None
            if extent is None or extent.offset >= stop:
                segments.append(Segment(start, stop - start))
                break
            if extent.offset > start:
                segments.append(Segment(start, extent.offset - start))
                start = extent.offset
            until = min(stop, extent.offset + extent.length)
            segments.append(Segment(start, until - start, extent=extent))
            start = until
            index += 1
    segments.sort(key=lambda segment: segment.offset)
    return segments
