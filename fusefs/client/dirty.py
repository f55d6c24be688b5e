"""Bytes written and not yet committed: a map of disjoint pieces of one file. Pure.

A write keeps the object it was given; overlapping older bytes are trimmed away, never the other way round. Small
writes that continue one another share a slab, so that a byte at a time costs no object each.

Generations say what a write-back may forget: ``seal`` ends the current one, and after a commit of bytes that were
read at generation g, ``clean`` drops only bytes of generation g and older. What was written meanwhile stays. Who asks
for what was written up to g is also given what has replaced such bytes since: they are gone, and without it there would
be a hole where g had bytes that somebody was promised, or that come before what is committed next.

Invariants: pieces are disjoint, in order and not empty; ``bytes`` is the sum of their lengths; memory kept alive is
at most twice ``bytes`` plus the slabs.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Optional

from node.wire.limits import BLOCK_BYTES_MAX
from node.wire.types import Buffer

SLAB_BYTES = 64 * 1024
SLAB_WRITE_BYTES_MAX = 4096  # larger writes keep their own object
PIECE_COST = 200  # bytes of bookkeeping for each piece, counted against the dirty bound


class Piece:
    """Dirty bytes at ``offset``. ``data`` never changes its content (a slab only grows behind it)."""

    __slots__ = ("offset", "data", "generation", "since")

    def __init__(self, offset: int, data: Buffer, generation: int, since: Optional[int] = None) -> None:
        self.offset = offset
        self.data = data
        self.generation = generation
        self.since = generation if since is None else since  # the oldest generation of what it has replaced

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class Dirty:
    """The dirty bytes of one file."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Piece] = []
        self._generation = 1
        self._slab = bytearray()
        self._slab_used = 0
        self._slab_piece: Optional[Piece] = None  # the piece that ends where the slab is filled to
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def cost(self) -> int:
        """What this holds of the dirty bound."""
        return self.bytes + PIECE_COST * len(self._pieces)

    @property
    def start(self) -> int:
        """Offset of the first dirty byte; 0 when there is none."""
        return self._starts[0] if self._starts else 0

    @property
    def end(self) -> int:
        """Offset after the last dirty byte; 0 when there is none."""
        return self._pieces[-1].end if self._pieces else 0

    def write(self, offset: int, data: bytes) -> None:
        """Overlay bytes. ``data`` must not change afterwards."""
        length = len(data)
        if not length:
            return
        if length < SLAB_WRITE_BYTES_MAX and self._extend(offset, data):
            return
        end = offset + length
        since = self._generation
        if self._starts and offset < self.end:
            since = self._remove(offset, end, self._generation)
        buffer: Buffer = data
        if length < SLAB_WRITE_BYTES_MAX:
            buffer = self._into_slab(data)
        piece = Piece(offset, buffer, self._generation, since)
        if length < SLAB_WRITE_BYTES_MAX:
            self._slab_piece = piece
        index = bisect_right(self._starts, offset)
        self._starts.insert(index, offset)
        self._pieces.insert(index, piece)
        self.bytes += length

    def seal(self) -> int:
        """End the current generation and return it: all that was written so far is of it or older."""
        self._generation += 1
        self._slab_piece = None
        return self._generation - 1

    def pieces(self, start: int = 0, end: Optional[int] = None, generation: Optional[int] = None) -> list[Piece]:
        """Return the pieces in [start, end), clipped, in order; with ``generation`` only those of it or older, and
        those that have replaced such."""
        found: list[Piece] = []
        if end is not None and end <= start:
            return found
        for index in range(self._first(start), len(self._pieces)):
            piece = self._pieces[index]
            if end is not None and piece.offset >= end:
                break
            if generation is not None and piece.since > generation:
                continue
            found.append(_clip(piece, start, piece.end if end is None else end))
        return found

    def run(self, start: int) -> tuple[int, int]:
        """Return where the first dirty bytes at or after ``start`` begin, and where they end: at a gap or a chunk's
        end. (start, start) when there are none."""
        index = self._first(start)
        if index == len(self._pieces):
            return start, start
        begin = end = max(start, self._starts[index])
        stop = (begin // BLOCK_BYTES_MAX + 1) * BLOCK_BYTES_MAX
        while index < len(self._pieces) and self._starts[index] <= end < stop:
            end = self._pieces[index].end
            index += 1
        return begin, min(end, stop)

    def clean(self, start: int, end: Optional[int], generation: int) -> None:
        """Forget bytes in [start, end) of this generation and older; ``end`` None: to the last."""
        self._remove(start, max(self.end, start) if end is None else end, generation)

    def shift(self, delta: int) -> None:
        """Move everything: the file's end, which it counts from, is elsewhere."""
        for piece in self._pieces:
            piece.offset += delta
        self._starts = [piece.offset for piece in self._pieces]

    def _first(self, start: int) -> int:
        """Index of the first piece that ends after ``start``."""
        index = bisect_right(self._starts, start) - 1
        if index >= 0 and self._pieces[index].end > start:
            return index
        return index + 1

    def _remove(self, start: int, end: int, generation: int) -> int:
        """Take what lies in [start, end) away; return the oldest generation that was replaced there."""
        since = generation
        first = last = self._first(start)
        kept: list[Piece] = []
        removed = 0
        while last < len(self._pieces) and self._pieces[last].offset < end:
            piece = self._pieces[last]
            last += 1
            if piece.generation > generation:
                kept.append(piece)
                continue
            since = min(since, piece.since)
            if piece is self._slab_piece:
                self._slab_piece = None
            if piece.offset < start:
                kept.append(_trim(piece, piece.offset, start))
            if piece.end > end:
                kept.append(_trim(piece, end, piece.end))
            removed += min(piece.end, end) - max(piece.offset, start)
        if last > first:
            self._pieces[first:last] = kept
            self._starts[first:last] = [piece.offset for piece in kept]
            self.bytes -= removed
        return since

    def _extend(self, offset: int, data: bytes) -> bool:
        """Continue the piece that was written last, where nothing lies behind it and its slab has room."""
        piece = self._slab_piece
        used = self._slab_used + len(data)
        if piece is None or piece.end != offset or piece is not self._pieces[-1] or used > SLAB_BYTES:
            return False
        self._slab[self._slab_used : used] = data
        piece.data = memoryview(self._slab)[self._slab_used - len(piece.data) : used].toreadonly()
        self._slab_used = used
        self.bytes += len(data)
        return True

    def _into_slab(self, data: bytes) -> memoryview:
        if self._slab_used + len(data) > len(self._slab):
            self._slab = bytearray(SLAB_BYTES)
            self._slab_used = 0
        start, self._slab_used = self._slab_used, self._slab_used + len(data)
        self._slab[start : self._slab_used] = data
        return memoryview(self._slab)[start : self._slab_used].toreadonly()


def _clip(piece: Piece, start: int, end: int) -> Piece:
    """A copy of the piece, cut to [start, end), that later changes of the buffer do not touch."""
    if start <= piece.offset and piece.end <= end:
        return Piece(piece.offset, piece.data, piece.generation, piece.since)
    start, end = max(start, piece.offset), min(end, piece.end)
    view = memoryview(piece.data)[start - piece.offset : end - piece.offset]
    return Piece(start, view, piece.generation, piece.since)


def _trim(piece: Piece, start: int, end: int) -> Piece:
    """What is kept of a piece; copied where it would keep much more than itself alive."""
    view = memoryview(piece.data)[start - piece.offset : end - piece.offset]
    whole = memoryview(view.obj).nbytes
    return Piece(start, bytes(view) if 2 * len(view) < whole else view, piece.generation, piece.since)
