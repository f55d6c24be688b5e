"""The algebra of extents against one dictionary cell for each byte."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.api import Extent
from metadata.state import extents as algebra
from node.wire.limits import FILE_BYTES_MAX
from tests.unit.state.support import block

CHUNK = 8
Bytes = dict[int, tuple[bytes, int]]


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(algebra, "CHUNK", CHUNK)
    yield
    patch.undo()


def painted(extents: Sequence[Extent]) -> Bytes:
    return {e.offset + at: (e.block, e.block_offset + at) for e in extents for at in range(e.length)}


@st.composite
def sequences(draw: st.DrawFn) -> list[Extent]:
    """Well-formed sequences: gaps and lengths drawn, cut at chunk boundaries."""
    found: list[Extent] = []
    at = 0
    for gap, length, number, start in draw(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, CHUNK), st.integers(0, 2), st.integers(0, 3)), max_size=8)
    ):
        at += gap
        length = min(length, CHUNK - at % CHUNK, CHUNK - start)
        found.append(Extent(at, length, block(number), start, CHUNK))
        at += length
    return found


def assert_merged(extents: Sequence[Extent]) -> None:
    assert algebra.well_formed(extents) == ""
    assert algebra.merge(extents) == list(extents)


@given(sequences(), sequences())
def test_overlay_is_painting_over(old: list[Extent], new: list[Extent]) -> None:
    result = algebra.overlay(old, new)
    assert painted(result) == {**painted(old), **painted(new)}
    assert_merged(result)


@given(sequences(), st.integers(0, 60), st.integers(0, 60))
def test_erase_and_clip_share_the_bytes(extents: list[Extent], low: int, high: int) -> None:
    left, taken = algebra.erase(extents, low, max(low, high)), algebra.clip(extents, low, high)
    inside = {at: byte for at, byte in painted(extents).items() if low <= at < high}
    assert painted(taken) == inside
    assert painted(left) == {at: byte for at, byte in painted(extents).items() if at not in inside}
    assert algebra.well_formed(left) == algebra.well_formed(taken) == ""


@given(sequences(), st.integers(0, 40))
def test_shift_moves_every_byte_and_splits_at_chunks(extents: list[Extent], delta: int) -> None:
    moved = algebra.shift(extents, delta)
    assert painted(moved) == {at + delta: byte for at, byte in painted(extents).items()}
    assert algebra.well_formed(moved) == ""
    assert algebra.covered(moved) == algebra.covered(extents)
    assert algebra.merge(algebra.shift(moved, -delta)) == algebra.merge(extents)


@given(sequences())
def test_grouping_loses_nothing(extents: list[Extent]) -> None:
    groups = algebra.by_chunk(extents)
    assert [e for group in groups.values() for e in group] == extents
    assert all(e.offset // CHUNK == chunk for chunk, group in groups.items() for e in group)


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(0, 0, block(0), 0, 8)],
        [Extent(0, -1, block(0), 0, 8)],
        [Extent(-1, 1, block(0), 0, 8)],
        [Extent(4, 5, block(0), 0, 8)],
        [Extent(0, 9, block(0), 0, 9)],
        [Extent(4, 2, block(0), 0, 8), Extent(0, 2, block(0), 0, 8)],
        [Extent(0, 3, block(0), 0, 8), Extent(2, 2, block(0), 0, 8)],
        [Extent(0, 4, block(0), 5, 8)],
        [Extent(0, 4, block(0), -1, 8)],
        [Extent(0, 4, block(0), 0, 1 << 40)],
        [Extent(0, 4, block(0), 0, 0)],
        [Extent(0, 4, b"short", 0, 8)],
        [Extent(FILE_BYTES_MAX, 1, block(0), 0, 8)],
        [Extent(1 << 64, 1, block(0), 0, 8)],
    ],
)
def test_what_is_not_well_formed(extents: list[Extent]) -> None:
    assert algebra.well_formed(extents) != ""
