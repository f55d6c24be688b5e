"""Where a file's bytes are: extents in the inode or in rows, one for each chunk, and exact block references.

A change is planned wholly (``plan_overlay``, ``plan_erase``) before anything is written, so what can be refused is
refused without a trace; ``carry_out`` then cannot fail.

A small file's extents are in its inode. Above INLINE_EXTENTS_MAX they move to rows, and stay there until no row is
left. Removing very many rows at once would hold up everybody, so two shortcuts leave them to paced jobs:

- the whole content goes: the inode takes a new generation, the rows of the old one belong to a job;
- a range goes: a *purge* notes the chunks and the data version. A row in them that is older is dead: it reads as a
  hole and is dropped when its chunk is written again, or by the job. ``stored`` falls as the job proceeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metadata.api import Extent
from metadata.state import extents as algebra
from metadata.state import keys
from metadata.state.blocks import Blocks
from metadata.state.extents import CHUNK
from metadata.state.inodes import Inodes
from metadata.state.records import Inode, Purge, Row, decode_row, encode
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from node.wire.errors import Code, FsError
from node.wire.limits import (
    CHUNK_EXTENTS_MAX,
    ERASE_EXTENTS_MAX,
    ERASE_ROWS_MAX,
    FILE_BYTES_MAX,
    INLINE_EXTENTS_MAX,
    PURGES_MAX,
    SUBMIT_WORK_MAX,
)

CHUNKS_END = FILE_BYTES_MAX // CHUNK + 1
_PAGE = 128  # rows read at a time, because a row may be 20 KiB


class Change:
    """What is to become of an inode's extents; nothing is written yet."""

    __slots__ = ("inode", "references", "stored", "work", "inline", "rows", "purge", "detach")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.references: dict[bytes, int] = {}
        self.stored = 0
        self.work = 0  # extents that come and go
        self.inline: tuple[Extent, ...] = ()
        self.rows: dict[int, tuple[bool, list[Extent]]] = {}  # chunk -> whether there is a row now, what it becomes
        self.purge: tuple[int, int] | None = None
        self.detach = False

    def drop(self, extents: Sequence[Extent]) -> None:
        """These records go."""
        references = self.references
        for extent in extents:
            references[extent.block] = references.get(extent.block, 0) - 1
            self.stored -= extent.length
        self.work += len(extents)

    def add(self, extents: Sequence[Extent]) -> None:
        """These records come."""
        references = self.references
        for extent in extents:
            references[extent.block] = references.get(extent.block, 0) + 1
            self.stored += extent.length
        self.work += len(extents)

    def set_row(self, chunk: int, row: Row | None, extents: list[Extent]) -> None:
        """A chunk's row becomes ``extents``; an empty one goes. TOO_BIG when they are too many."""
        if len(extents) > CHUNK_EXTENTS_MAX:
            raise FsError(Code.TOO_BIG, f"{len(extents)} extents in the chunk at {chunk * CHUNK}: rewrite it")
        if row is not None:
            self.drop(row.extents)
        elif not extents:
            return
        self.add(extents)
        self.rows[chunk] = (row is not None, extents)


class Data:
    """Plans and carries out changes of extents, and reads them."""

    def __init__(self, tables: Tables, inodes: Inodes, blocks: Blocks) -> None:
        self._tables = tables
        self._inodes = inodes
        self._blocks = blocks

    # --- planning: nothing is written -------------------------------------------------------------------------

    def plan_overlay(self, inode: Inode, new: Sequence[Extent]) -> Change:
        """``new`` replaces what it covers."""
        if not inode.rows:
            return self._plan_whole(inode, algebra.overlay(inode.extents, new))
        change = Change(inode)
        for chunk, pieces in algebra.by_chunk(new).items():
            row = self._row(inode, chunk)
            change.set_row(chunk, row, algebra.overlay(alive(inode, chunk, row), pieces))
        return change

    def plan_erase(self, inode: Inode, low: int, high: int, turn: Turn, new: Sequence[Extent] = ()) -> Change:
        """[low, high) becomes a hole but for ``new``, which lies within it. BUSY when too much is being purged."""
        if not inode.rows:
            return self._plan_whole(inode, algebra.overlay(algebra.erase(inode.extents, low, high), new))
        change = Change(inode)
        first, last = low // CHUNK, (high - 1) // CHUNK
        pieces = algebra.by_chunk(new)
        rows = self._few_rows(inode, first, last + 1, turn)
        if rows is None and low == 0 and high >= inode.size and not new:
            change.detach = True
            change.stored = -inode.stored
            return change
        if rows is None:
            rows = {chunk: self._row(inode, chunk) for chunk in {first, last, *pieces}}
            change.purge = (first + 1, last)
            if len(self._purges(inode, *change.purge)) >= PURGES_MAX:
                raise FsError(Code.BUSY, "too many large ranges of this file are being removed")
        for chunk in sorted({*rows, *pieces}):
            row = rows.get(chunk)
            left = algebra.erase(alive(inode, chunk, row), low, high)
            change.set_row(chunk, row, algebra.overlay(left, pieces.get(chunk, ())))
        return change

    def _plan_whole(self, inode: Inode, extents: list[Extent]) -> Change:
        """The inode has no rows; its extents become ``extents``, in rows where they are many."""
        change = Change(inode)
        change.drop(inode.extents)
        if len(extents) <= INLINE_EXTENTS_MAX:
            change.inline = tuple(extents)
            change.add(extents)
        else:
            for chunk, pieces in algebra.by_chunk(extents).items():
                change.set_row(chunk, None, pieces)
        return change

    def _few_rows(self, inode: Inode, first: int, end: int, turn: Turn) -> dict[int, Row | None] | None:
        """The rows of chunks [first, end), or None where they are too many to remove at once, in this entry."""
        rows: dict[int, Row | None] = {}
        extents = 0 if turn.work < SUBMIT_WORK_MAX // 2 else ERASE_EXTENTS_MAX - INLINE_EXTENTS_MAX
        for chunk, row in self._rows(inode, first, end):
            rows[chunk] = row
            extents += len(row.extents)
            if len(rows) > ERASE_ROWS_MAX or extents > ERASE_EXTENTS_MAX:
                return None
        return rows

    @staticmethod
    def _purges(inode: Inode, low: int, high: int) -> list[Purge]:
        """The purges that stay beside a new one of [low, high): those inside it are part of it."""
        return [purge for purge in inode.purges if not (low <= purge.low and purge.high <= high)]

    # --- writing ----------------------------------------------------------------------------------------------

    def carry_out(self, change: Change, turn: Turn) -> None:
        """Write a plan, for the inode's data version as it is now (the caller raised it). Cannot fail."""
        inode = change.inode
        turn.work += change.work
        if change.detach:
            self._tables.put(keys.job(keys.JOB_DATA, inode.ino, inode.generation), b"")
            inode.generation += 1
            inode.rows = 0
            inode.purges = ()
        if change.purge is not None:
            low, high = change.purge
            inode.purges = (*self._purges(inode, low, high), Purge(low, high, inode.data_version))
            self._tables.put(keys.job(keys.JOB_PURGE, inode.ino), b"")
        for chunk, (exists, extents) in change.rows.items():
            key = keys.extents(inode.ino, inode.generation, chunk)
            if extents:
                self._tables.put(key, encode(Row(inode.data_version, tuple(extents))))
                inode.rows += not exists
            else:
                self._tables.delete(key)
                inode.rows -= 1
        if not inode.rows:
            inode.purges = ()
        inode.extents = change.inline
        inode.stored += change.stored
        self._inodes.bytes += change.stored
        self._inodes.save(inode)
        if change.references:
            self._blocks.adjust(change.references, turn.gc_epoch)

    # --- reading ----------------------------------------------------------------------------------------------

    def read(self, inode: Inode, low: int, high: int, limit: int) -> tuple[list[Extent], bool]:
        """Return at most ``limit`` extents that meet [low, high), whole and in order, and whether there are more."""
        found: list[Extent] = []
        for extent in self._each(inode, low, high):
            if extent.offset < high and extent.offset + extent.length > low:
                if len(found) == limit:
                    return found, True
                found.append(extent)
        return found, False

    def _each(self, inode: Inode, low: int, high: int) -> Iterator[Extent]:
        if not inode.rows:
            yield from inode.extents
            return
        for chunk, row in self._rows(inode, low // CHUNK, (high - 1) // CHUNK + 1):
            yield from alive(inode, chunk, row)

    def _row(self, inode: Inode, chunk: int) -> Row | None:
        value = self._tables.get(keys.extents(inode.ino, inode.generation, chunk))
        return None if value is None else decode_row(value)

    def _rows(self, inode: Inode, first: int, end: int) -> Iterator[tuple[int, Row]]:
        """Walk the rows of chunks [first, end), dead ones included, a page at a time."""
        high = keys.extents(inode.ino, inode.generation, end)
        while True:
            page = self._tables.range(keys.extents(inode.ino, inode.generation, first), high, _PAGE)
            for key, value in page:
                chunk = keys.NUMBER.unpack_from(key, keys.EXTENTS_CHUNK_AT)[0]
                yield chunk, decode_row(value)
            if len(page) < _PAGE:
                return
            first = chunk + 1

    # --- paced removal ----------------------------------------------------------------------------------------

    def purge_step(self, inode: Inode, budget: int, turn: Turn) -> int:
        """Look at no more than ``budget`` rows inside the inode's first purge; return at how many."""
        purge = inode.purges[0]
        change = Change(inode)
        seen = 0
        for chunk, row in self._rows(inode, purge.low, purge.high):
            if seen == budget:
                rest = Purge(chunk, purge.high, purge.version)
                inode.purges = (rest, *inode.purges[1:])
                break
            seen += 1
            if row.version < purge.version:
                change.set_row(chunk, row, [])
        else:
            inode.purges = inode.purges[1:]
        change.inline = inode.extents
        if change.stored:
            inode.version += 1
        self.carry_out(change, turn)
        return seen

    def drop_rows(self, ino: int, generation: int, budget: int, turn: Turn) -> int:
        """Remove no more than ``budget`` rows of a generation that no inode has; return how many there were."""
        low, high = keys.extents(ino, generation, 0), keys.extents(ino, generation, CHUNKS_END)
        deltas: dict[bytes, int] = {}
        dropped = 0
        while dropped < budget:
            page = self._tables.range(low, high, min(_PAGE, budget - dropped))
            for key, value in page:
                for extent in decode_row(value).extents:
                    deltas[extent.block] = deltas.get(extent.block, 0) - 1
                self._tables.delete(key)
            dropped += len(page)
            if not page:
                break
        self._blocks.adjust(deltas, turn.gc_epoch)
        return dropped


def alive(inode: Inode, chunk: int, row: Row | None) -> tuple[Extent, ...]:
    """The extents of a row that are there for a reader: none where a purge came after it."""
    if row is None:
        return ()
    for purge in inode.purges:
        if purge.low <= chunk < purge.high and row.version < purge.version:
            return ()
    return row.extents
