"""Byte ranges of a file and the blocks they fall into. Pure.

A file is cut into chunks of BLOCK_BYTES_MAX at fixed offsets; no extent crosses a cut. A *run* is a stretch of dirty
bytes without a gap inside one chunk: it becomes one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from metadata.api import Extent
from node.wire.limits import BLOCK_BYTES_MAX


def chunk_of(offset: int) -> int:
    """Return the number of the chunk that a byte is in."""
    return offset // BLOCK_BYTES_MAX


def chunk_end(offset: int) -> int:
    """Return the offset of the first cut after ``offset``."""
    return (offset // BLOCK_BYTES_MAX + 1) * BLOCK_BYTES_MAX


def spans(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range at the chunks: (start, end) in order, none empty."""
    end = offset + length
    while offset < end:
        stop = min(end, chunk_end(offset))
        yield offset, stop
        offset = stop


def extents_of(offset: int, block: bytes, length: int, block_offset: int = 0) -> list[Extent]:
    """Place a block, or its bytes from ``block_offset``, at ``offset``: an extent for each chunk that it touches."""
    return [
        Extent(start, stop - start, block, block_offset + start - offset, length)
        for start, stop in spans(offset, length - block_offset)
    ]


def runs_without_gap(extents: Iterable[Extent]) -> list[list[Extent]]:
    """Group extents, in order, that continue one another."""
    runs: list[list[Extent]] = []
    for extent in extents:
        if runs and runs[-1][-1].offset + runs[-1][-1].length == extent.offset:
            runs[-1].append(extent)
        else:
            runs.append([extent])
    return runs


def extents_after(extents: Iterable[Extent], runs: Iterable[tuple[int, int]]) -> int:
    """Count the extents that are left when ``runs`` (start, end; disjoint, in order) replace what they cover.

    ``extents`` are disjoint and in order, all of one chunk, and so are the runs.
    """
    cuts = list(runs)
    count = len(cuts)
    for extent in extents:
        start, end = extent.offset, extent.offset + extent.length
        for cut_start, cut_end in cuts:
            if cut_end <= start:
                continue
            if cut_start >= end:
                break
            if cut_start > start:
                count += 1
            start = cut_end
        if start < end:
            count += 1
    return count
