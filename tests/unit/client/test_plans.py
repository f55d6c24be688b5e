"""Read plans and chunk arithmetic against plain byte arrays."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.client import chunking
from fusefs.client.dirty import Dirty
from fusefs.client.ledger import Ledger
from fusefs.client.readplan import plan
from metadata.api import Extent
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX

SIZE = 200
writes = st.lists(st.tuples(st.integers(0, SIZE), st.integers(1, 50)), max_size=10)


def disjoint(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut ranges (offset, length) so that none overlaps an earlier one; in order, (start, end)."""
    taken: set[int] = set()
    out = []
    for offset, length in ranges:
        cells = [index for index in range(offset, offset + length) if index not in taken]
        taken.update(cells)
        if cells:
            start = cells[0]
            for index, cell in enumerate(cells):
                if index + 1 == len(cells) or cells[index + 1] != cell + 1:
                    out.append((start, cell + 1))
                    start = cells[index + 1] if index + 1 < len(cells) else 0
    return sorted(out)


@settings(max_examples=150, deadline=None)
@given(writes, writes, st.integers(0, SIZE), st.integers(0, 100))
def test_plan_shows_dirty_over_extents_over_zeros(
    stored: list[tuple[int, int]], dirty_writes: list[tuple[int, int]], offset: int, length: int
) -> None:
    file = bytearray(SIZE * 2)
    blocks: dict[bytes, bytes] = {}
    extents = []
    for start, end in disjoint(stored):
        block = bytes((start * 7 + index) % 251 for index in range(end - start + 9))
        name = start.to_bytes(32, "big")
        blocks[name] = block
        extents.append(Extent(start, end - start, name, 4, len(block)))
        file[start:end] = block[4 : 4 + end - start]
    dirty = Dirty()
    for start, size in dirty_writes:
        dirty.write(start, b"\xff" * size)
        file[start : start + size] = b"\xff" * size
    end = offset + length
    met = [extent for extent in extents if extent.offset < end and extent.offset + extent.length > offset]
    found = bytearray()
    for segment in plan(dirty.pieces(offset, end), met, offset, end):
        assert segment.offset == offset + len(found) and segment.length > 0
        if segment.data is not None:
            found += segment.data
        elif segment.extent is not None:
            found += blocks[segment.extent.block][segment.block_offset : segment.block_offset + segment.length]
        else:
            found += bytes(segment.length)
    assert found == file[offset:end]


@settings(max_examples=100, deadline=None)
@given(writes, writes)
def test_extents_after_counts_what_a_commit_leaves(stored: list[tuple[int, int]], new: list[tuple[int, int]]) -> None:
    old, runs = disjoint(stored), disjoint(new)
    cells: list[tuple[str, int] | None] = [None] * (SIZE * 2)
    for number, (start, end) in enumerate(old):
        cells[start:end] = [("old", number)] * (end - start)
    for number, (start, end) in enumerate(runs):
        cells[start:end] = [("new", number)] * (end - start)
    count = sum(1 for index, cell in enumerate(cells) if cell and (index == 0 or cells[index - 1] != cell))
    extents = [Extent(start, end - start, b"", 0, end - start) for start, end in old]
    assert chunking.extents_after(extents, runs) == count


@given(st.integers(0, 5 * BLOCK_BYTES_MAX), st.integers(0, 3 * BLOCK_BYTES_MAX))
def test_spans_cover_a_range_and_cross_no_cut(offset: int, length: int) -> None:
    at = offset
    for start, end in chunking.spans(offset, length):
        assert start == at < end
        assert chunking.chunk_of(start) == chunking.chunk_of(end - 1)
        at = end
    assert at == offset + length


def test_a_block_across_a_cut_becomes_two_extents() -> None:
    parts = chunking.extents_of(BLOCK_BYTES_MAX - 10, b"n" * 32, 30)
    assert [(part.offset, part.length, part.block_offset, part.block_length) for part in parts] == [
        (BLOCK_BYTES_MAX - 10, 10, 0, 30),
        (BLOCK_BYTES_MAX, 20, 10, 30),
    ]


def test_each_handle_hears_of_an_error_once() -> None:
    ledger = Ledger()
    first = second = ledger.mark()
    error = FsError(Code.NO_SPACE)
    ledger.record(error)
    assert ledger.pending(first) is error
    first = ledger.mark()
    assert ledger.pending(first) is None
    assert ledger.pending(second) is error
    assert ledger.pending(ledger.mark()) is None


def test_an_error_made_good_is_withdrawn_and_a_loss_is_not() -> None:
    ledger = Ledger()
    seen = ledger.mark()
    ledger.record(FsError(Code.NO_SPACE))
    ledger.resolve()
    assert ledger.pending(seen) is None
    lost = FsError(Code.IO)
    ledger.record(lost, lost=True)
    ledger.record(FsError(Code.TIMEOUT))
    ledger.resolve()
    assert ledger.pending(seen) is lost
