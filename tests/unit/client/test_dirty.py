"""The dirty buffer against a bytearray: same bytes, same holes, nothing forgotten that was written meanwhile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.client.dirty import SLAB_BYTES, Dirty

SIZE = 120


class Model:
    """What each byte of the file is: None where not dirty, else (value, generation, the oldest one that it has
    replaced and that was not committed)."""

    def __init__(self) -> None:
        self.cells: list[tuple[int, int, int] | None] = [None] * (SIZE * 2)
        self.generation = 1

    def content(self) -> list[int | None]:
        return [cell[0] if cell else None for cell in self.cells]


def content(dirty: Dirty) -> list[int | None]:
    cells: list[int | None] = [None] * (SIZE * 2)
    last = -1
    total = 0
    for piece in dirty.pieces():
        assert piece.offset >= last and len(piece.data) > 0
        last = piece.end
        total += len(piece.data)
        cells[piece.offset : piece.end] = bytes(piece.data)
    assert total == dirty.bytes
    return cells


offsets = st.integers(0, SIZE)
steps = st.one_of(
    st.tuples(st.just("write"), offsets, st.integers(1, 40), st.integers(0, 255)),
    st.tuples(st.just("append"), st.just(0), st.integers(1, 5), st.integers(0, 255)),
    st.tuples(st.just("clean"), offsets, st.integers(0, 80), st.integers(0, 3)),
    st.tuples(st.just("cut"), offsets, st.just(0), st.integers(0, 3)),
    st.tuples(st.just("seal"), st.just(0), st.just(0), st.just(0)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=30))
def test_same_as_an_array(plan: list[tuple[str, int, int, int]]) -> None:
    dirty, model = Dirty(), Model()
    for kind, offset, length, value in plan:
        if kind == "append":
            kind, offset = "write", min(dirty.end, SIZE)
        if kind == "write":
            data = bytes((value + index) % 256 for index in range(length))
            dirty.write(offset, data)
            for index, byte in enumerate(data, offset):
                cell = model.cells[index]
                model.cells[index] = byte, model.generation, cell[2] if cell else model.generation
        elif kind == "seal":
            assert dirty.seal() == model.generation
            model.generation += 1
        else:
            end = len(model.cells) if kind == "cut" else offset + length
            generation = model.generation - value
            dirty.clean(offset, None if kind == "cut" else end, generation)
            for index in range(offset, end):
                cell = model.cells[index]
                if cell:
                    model.cells[index] = None if cell[1] <= generation else (*cell[:2], max(cell[2], generation + 1))
        assert content(dirty) == model.content()
        written = [index for index, cell in enumerate(model.cells) if cell]
        assert (dirty.start, dirty.end) == ((written[0], written[-1] + 1) if written else (0, 0))
        for generation in range(model.generation):
            listed = {at for piece in dirty.pieces(generation=generation) for at in range(piece.offset, piece.end)}
            owed = {index for index, cell in enumerate(model.cells) if cell and cell[2] <= generation}
            assert owed <= listed, "a hole where bytes of that generation were"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(offsets, st.integers(1, 40)), max_size=12), offsets, st.integers(0, 80))
def test_pieces_of_a_range_are_clipped_and_stay_as_they_were(
    writes: list[tuple[int, int]], start: int, length: int
) -> None:
    dirty = Dirty()
    for offset, size in writes:
        dirty.write(offset, bytes([size]) * size)
    before = content(dirty)
    pieces = dirty.pieces(start, start + length)
    for piece in pieces:
        assert start <= piece.offset < piece.end <= start + length
    for offset, size in writes:
        dirty.write(offset, b"\xff" * size)
        dirty.write(dirty.end, b"\xfe")
    found: list[int | None] = [None] * len(before)
    for piece in pieces:
        found[piece.offset : piece.end] = bytes(piece.data)
    expected = [cell if start <= index < start + length else None for index, cell in enumerate(before)]
    assert found == expected


def test_keeps_the_object_it_was_given() -> None:
    dirty = Dirty()
    data = b"x" * 100_000
    dirty.write(5, data)
    assert dirty.pieces()[0].data is data


def test_single_bytes_share_a_slab() -> None:
    dirty = Dirty()
    for index in range(2 * SLAB_BYTES):
        dirty.write(index, b"%c" % (index % 256))
    assert len(dirty) <= 3
    assert b"".join(piece.data for piece in dirty.pieces()) == bytes(index % 256 for index in range(2 * SLAB_BYTES))


def test_a_sealed_piece_is_not_extended() -> None:
    dirty = Dirty()
    dirty.write(0, b"old")
    generation = dirty.seal()
    dirty.write(3, b"new")
    dirty.clean(0, 6, generation)
    assert [(piece.offset, bytes(piece.data)) for piece in dirty.pieces()] == [(3, b"new")]


def test_a_remnant_does_not_keep_a_large_object_alive() -> None:
    dirty = Dirty()
    large = b"x" * 100_000
    dirty.write(0, large)
    dirty.write(10, b"y" * 99_990)
    remnant = dirty.pieces()[0].data
    assert bytes(remnant) == b"x" * 10 and remnant is not large
    assert isinstance(remnant, bytes)


def test_only_older_generations_are_listed_when_asked_and_what_has_replaced_them() -> None:
    dirty = Dirty()
    dirty.write(0, b"aaaa")
    generation = dirty.seal()
    dirty.write(4, b"cc")
    dirty.write(1, b"b")
    listed = [(piece.offset, bytes(piece.data)) for piece in dirty.pieces(generation=generation)]
    assert listed == [(0, b"a"), (1, b"b"), (2, b"aa")], "no hole where bytes were"
    dirty.clean(0, 4, generation)
    assert [(piece.offset, bytes(piece.data)) for piece in dirty.pieces()] == [(1, b"b"), (4, b"cc")]
    newer = dirty.seal()
    dirty.write(0, b"dd")
    dirty.write(5, b"e")
    assert [piece.offset for piece in dirty.pieces(generation=newer)] == [0, 4, 5]


def test_shift_moves_everything() -> None:
    dirty = Dirty()
    dirty.write(10, b"abc")
    dirty.write(100, b"d" * 5000)
    dirty.shift(-4)
    assert [(piece.offset, len(piece.data)) for piece in dirty.pieces()] == [(6, 3), (96, 5000)]
    dirty.write(9, b"!")
    assert [(piece.offset, len(piece.data)) for piece in dirty.pieces()][0] == (6, 3)
