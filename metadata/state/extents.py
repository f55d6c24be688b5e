"""The algebra of extents: pure functions over ordered, disjoint sequences of them.

A sequence is ordered by offset, its extents do not overlap and none crosses a multiple of BLOCK_BYTES_MAX. Functions
take and return such sequences; ``well_formed`` tells whether one from outside is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metadata.api import Extent
from node.wire.limits import BLOCK_BYTES_MAX, FILE_BYTES_MAX
from node.wire.types import BLOCK_ID_BYTES

CHUNK = BLOCK_BYTES_MAX


def well_formed(extents: Sequence[Extent]) -> str:
    """Return what is wrong with extents that came from outside, "" where nothing is."""
    last = 0
    for extent in extents:
        offset, length = extent.offset, extent.length
        if length < 1 or length > CHUNK:
            return f"extent length {length}"
        if offset < last:
            return f"extent at {offset} is out of order, overlaps or is negative"
        last = offset + length
        if last > FILE_BYTES_MAX:
            return f"extent at {offset} is beyond the largest file"
        if offset // CHUNK != (last - 1) // CHUNK:
            return f"extent at {offset} crosses a chunk boundary"
        if len(extent.block) != BLOCK_ID_BYTES:
            return f"block name of {len(extent.block)} bytes"
        if not 0 < extent.block_length <= CHUNK:
            return f"block length {extent.block_length}"
        if extent.block_offset < 0 or extent.block_offset + length > extent.block_length:
            return f"extent at {offset} reads outside its block"
    return ""


def cut(extent: Extent, low: int, high: int) -> Extent:
    """The part of an extent inside [low, high), which is not empty and lies within it."""
    if low == extent.offset and high == extent.offset + extent.length:
        return extent
    skipped = low - extent.offset
    return Extent(low, high - low, extent.block, extent.block_offset + skipped, extent.block_length)


def merge(extents: Iterable[Extent]) -> list[Extent]:
    """Join neighbours that are neighbours in the same block too, within a chunk."""
    merged: list[Extent] = []
    for extent in extents:
        if merged:
            last = merged[-1]
            if (
                last.offset + last.length == extent.offset
                and last.block == extent.block
                and last.block_offset + last.length == extent.block_offset
                and last.block_length == extent.block_length
                and extent.offset % CHUNK
            ):
                length = last.length + extent.length
                merged[-1] = Extent(last.offset, length, last.block, last.block_offset, last.block_length)
                continue
        merged.append(extent)
    return merged


def erase(extents: Sequence[Extent], low: int, high: int) -> list[Extent]:
    """What is left of ``extents`` outside [low, high)."""
    left: list[Extent] = []
    for extent in extents:
        end = extent.offset + extent.length
        if end <= low or extent.offset >= high:
            left.append(extent)
            continue
        if extent.offset < low:
            left.append(cut(extent, extent.offset, low))
        if end > high:
            left.append(cut(extent, high, end))
    return left


def overlay(old: Sequence[Extent], new: Sequence[Extent]) -> list[Extent]:
    """``old`` with what ``new`` covers replaced by ``new``, merged. Linear in both."""
    if not old:
        return merge(new)
    pieces: list[Extent] = []
    start = 0
    for extent in old:
        cursor, end = extent.offset, extent.offset + extent.length
        while start < len(new) and new[start].offset + new[start].length <= cursor:
            start += 1
        at = start
        while at < len(new) and new[at].offset < end:
            if new[at].offset > cursor:
                pieces.append(cut(extent, cursor, new[at].offset))
            cursor = max(cursor, new[at].offset + new[at].length)
            at += 1
        if cursor < end:
            pieces.append(cut(extent, cursor, end))
    pieces.extend(new)
    pieces.sort(key=_offset)
    return merge(pieces)


def clip(extents: Sequence[Extent], low: int, high: int) -> list[Extent]:
    """The parts of ``extents`` inside [low, high)."""
    parts: list[Extent] = []
    for extent in extents:
        start, end = max(extent.offset, low), min(extent.offset + extent.length, high)
        if start < end:
            parts.append(cut(extent, start, end))
    return parts


def shift(extents: Sequence[Extent], delta: int) -> list[Extent]:
    """Move extents by ``delta`` bytes and split them where they then cross a chunk boundary."""
    moved: list[Extent] = []
    for extent in extents:
        offset, block_offset, left = extent.offset + delta, extent.block_offset, extent.length
        while left:
            length = min(left, CHUNK - offset % CHUNK)
            moved.append(Extent(offset, length, extent.block, block_offset, extent.block_length))
            offset, block_offset, left = offset + length, block_offset + length, left - length
    return moved


def by_chunk(extents: Sequence[Extent]) -> dict[int, list[Extent]]:
    """Group extents by the chunk they lie in, in order."""
    groups: dict[int, list[Extent]] = {}
    for extent in extents:
        chunk = extent.offset // CHUNK
        group = groups.get(chunk)
        if group is None:
            groups[chunk] = [extent]
        else:
            group.append(extent)
    return groups


def covered(extents: Iterable[Extent]) -> int:
    """How many bytes the extents cover."""
    return sum([extent.length for extent in extents])


def _offset(extent: Extent) -> int:
    return extent.offset
