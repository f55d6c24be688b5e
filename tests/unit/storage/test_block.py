"""The encoded form of a block: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from random import Random

import lz4.block
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, BLOCK_STORED_BYTES_MAX, PIECE_BYTES
from storage import block

HOSTILE_CODES = {Code.CORRUPT_BLOCK, Code.PROTOCOL, Code.INVALID}


def text(length: int) -> bytes:
    """Return bytes that compress."""
    words = b"the quick brown fox jumps over the lazy dog; "
    return (words * (length // len(words) + 1))[:length]


def noise(length: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(length)


def mixed(length: int) -> bytes:
    """Return bytes of which every other piece compresses."""
    pieces = (text(PIECE_BYTES) if at % 2 else noise(PIECE_BYTES, at) for at in range(-(-length // PIECE_BYTES)))
    return b"".join(pieces)[:length]


SIZES = [1, 2, 15, 16, 17, 4096, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 77, BLOCK_BYTES_MAX]


@pytest.mark.parametrize("make", [text, noise, mixed, bytes])
@pytest.mark.parametrize("size", SIZES)
def test_round_trip(make: object, size: int) -> None:
    plain = make(size)  # type: ignore[operator]
    name, encoded = block.encode(plain)
    assert name == blake3(plain).digest() == block.name(plain)
    assert len(encoded) <= BLOCK_STORED_BYTES_MAX
    block.verify(encoded, name, size)
    assert bytes(block.decode(encoded, name)) == plain
    assert bytes(block.decode(encoded, name, 0, size, size)) == plain


@pytest.mark.parametrize("size", [0, BLOCK_BYTES_MAX + 1])
def test_size_out_of_bounds(size: int) -> None:
    with pytest.raises(FsError) as failure:
        block.encode(bytes(size))
    assert failure.value.code == Code.INVALID


def test_any_buffer_is_accepted() -> None:
    plain = mixed(200_000)
    expected = block.encode(plain)
    for form in (bytearray(plain), memoryview(plain), memoryview(bytearray(plain)).toreadonly()):
        assert block.encode(form) == expected
    name, encoded = expected
    for form in (bytearray(encoded), memoryview(encoded)):
        block.verify(form, name, len(plain))
        assert bytes(block.decode(form, name)) == plain
        assert bytes(block.decode(form, name, 70_000, 90_000)) == plain[70_000:160_000]


def test_lz4_must_save_a_sixteenth() -> None:
    barely = noise(PIECE_BYTES - 3000) + bytes(3000)  # saves about 3000 of 65536: less than a sixteenth
    enough = noise(PIECE_BYTES - 6000) + bytes(6000)
    assert len(block.encode(barely)[1]) == PIECE_BYTES + block.HEADER.size + block.ENTRY.size
    assert len(block.encode(enough)[1]) < PIECE_BYTES - 5000


def ranged(data: st.DataObject) -> tuple[int, bytes, bytes, int, int, bytes]:
    """A block (size, name, encoded), a range of it (offset, length), and the bytes there."""
    size = data.draw(st.sampled_from(SIZES))
    plain = data.draw(st.sampled_from([text, noise, mixed]))(size)
    name, encoded = block.encode(plain)
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(0, size - offset))
    return size, name, encoded, offset, length, plain[offset : offset + length] if length else plain[offset:]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_ranges_and_partials(data: st.DataObject) -> None:
    size, name, encoded, offset, length, expected = ranged(data)
    assert bytes(block.decode(encoded, name, offset, length)) == expected
    part = block.partial(encoded, name, offset, length)
    assert bytes(block.decode(part, name, offset, length, size)) == expected
    pieces = -(-(offset + len(expected)) // PIECE_BYTES) - offset // PIECE_BYTES
    assert len(part) <= pieces * PIECE_BYTES + block.TABLE_BYTES_MAX
    place = block.place_raw(len(encoded), size, offset, len(expected))
    start = block.PieceTable(encoded, name).start
    assert (place is None) == (len(encoded) != start + size)
    assert place is None or encoded[slice(*place)] == part[start:]
    inner = data.draw(st.integers(0, len(expected) - 1))
    assert bytes(block.decode(part, name, offset + inner, 1)) == expected[inner : inner + 1]
    assert block.partial(part, name, offset, length) == part


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_reading_only_what_is_needed(data: st.DataObject) -> None:
    size, name, encoded, offset, length, expected = ranged(data)
    table = block.PieceTable(encoded, name) if data.draw(st.booleans()) else None
    asked: list[tuple[int, int]] = []
    hinted: list[tuple[int, int]] = []

    def read(count: int, at: int) -> bytes:
        asked.append((count, at))
        return encoded[at : at + count]

    def hint(count: int, at: int) -> None:
        hinted.append((count, at))

    pieces = block.take(block.read_pieces(name, len(encoded), size, offset, length, table), read, hint)
    assert bytes(pieces.plain(offset, length)) == expected
    assert pieces.encoded() == block.partial(encoded, name, offset, length)
    assert set(hinted) <= set(asked)
    whole = len(encoded) <= 2 * PIECE_BYTES or len(expected) == size
    assert len(asked) == (1 if whole or table is not None else 2)
    covered = -(-(offset + len(expected)) // PIECE_BYTES) - offset // PIECE_BYTES
    assert whole or sum(count for count, _ in asked) <= covered * PIECE_BYTES + block.TABLE_BYTES_MAX
    part = block.read_encoded(read, hint, name, len(encoded), size, offset, length)
    assert bytes(block.decode(part, name, offset, length)) == expected


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("make", [mixed, noise])  # whose place says the table, or the length
def test_what_is_cut_off_while_it_is_read(make: Callable[[int], bytes], known: bool) -> None:
    plain = make(7 * PIECE_BYTES)
    name, encoded = block.encode(plain)
    table = block.PieceTable(encoded, name) if known else None

    def read(count: int, at: int) -> bytes:
        return encoded[at : at + count - bool(at)]

    for length, missing in ((len(plain), read), (len(plain) + 1, lambda count, at: encoded[at : at + count])):
        with pytest.raises(FsError) as failure:
            block.take(block.read_pieces(name, len(encoded), length, 5 * PIECE_BYTES, 10, table), missing, _nothing)
        assert failure.value.code == Code.CORRUPT_BLOCK


def _nothing(count: int, at: int) -> None:
    pass


def test_a_partial_block_is_not_the_whole() -> None:
    plain = noise(3 * PIECE_BYTES)
    name, encoded = block.encode(plain)
    part = block.partial(encoded, name, PIECE_BYTES, 10)
    for offset, length in ((0, 10), (0, 0), (2 * PIECE_BYTES - 1, 2)):
        with pytest.raises(FsError) as failure:
            block.decode(part, name, offset, length)
        assert failure.value.code == Code.CORRUPT_BLOCK
    with pytest.raises(FsError, match="not whole"):
        block.verify(part, name, len(plain))


@pytest.mark.parametrize("offset,length", [(-1, 1), (10, 0), (11, 0), (0, 11), (10, 1), (5, -1), (3, 1 << 70)])
def test_ranges_outside(offset: int, length: int) -> None:
    name, encoded = block.encode(b"0123456789")
    with pytest.raises(FsError) as failure:
        block.decode(encoded, name, offset, length)
    assert failure.value.code == Code.INVALID


def test_unexpected_length() -> None:
    name, encoded = block.encode(b"0123456789")
    with pytest.raises(FsError) as failure:
        block.decode(encoded, name, raw_length=11)
    assert failure.value.code == Code.CORRUPT_BLOCK
    with pytest.raises(FsError):
        block.verify(encoded, name, 11)


def test_another_block_never_passes() -> None:
    """The same length and the same number of pieces: only the name differs, and even a range read notices."""
    (one, _), (two, encoded) = block.encode(noise(100_000, 1)), block.encode(noise(100_000, 2))
    for offset, length in ((0, 0), (70_000, 10)):
        with pytest.raises(FsError) as failure:
            block.decode(encoded, one, offset, length)
        assert failure.value.code == Code.CORRUPT_BLOCK
    with pytest.raises(FsError):
        block.verify(encoded, one, 100_000)
    block.verify(encoded, two, 100_000)


def test_swapped_pieces_are_noticed() -> None:
    name, encoded = block.encode(noise(2 * PIECE_BYTES))
    body = block.HEADER.size + 2 * block.ENTRY.size
    swapped = encoded[:body] + encoded[body + PIECE_BYTES :] + encoded[body : body + PIECE_BYTES]
    with pytest.raises(FsError):
        block.decode(swapped, name, 5, 5)


@pytest.mark.parametrize("size", [1, 100, 40_000, 150_000])
@pytest.mark.parametrize("make", [text, noise])
def test_every_truncation_and_extension(make: object, size: int) -> None:
    plain = make(size)  # type: ignore[operator]
    name, encoded = block.encode(plain)
    cuts = {*range(300), *range(300, len(encoded), 997), len(encoded) - 1}
    for cut in sorted(cut for cut in cuts if cut < len(encoded)):
        for check in (lambda frame: block.decode(frame, name), lambda frame: block.verify(frame, name, size)):
            with pytest.raises(FsError) as failure:
                check(encoded[:cut])
            assert failure.value.code == Code.CORRUPT_BLOCK
    with pytest.raises(FsError):
        block.verify(encoded + b"\0", name, size)


@pytest.mark.parametrize("plain", [b"x", noise(60), text(3000), text(PIECE_BYTES + 50)])
def test_every_flipped_bit(plain: bytes) -> None:
    name, encoded = block.encode(plain)
    for bit in range(8 * len(encoded)):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(FsError) as failure:
            block.verify(damaged, name, len(plain))
        assert failure.value.code == Code.CORRUPT_BLOCK
        try:  # the choice of pieces is not under the header's checksum; it may only be refused or right
            got = bytes(block.decode(damaged, name))
        except FsError:
            continue
        assert got == plain


def forge(plain_length: int, pieces: list[tuple[bytes, bool]], name: bytes) -> bytes:
    """Return an encoded block whose checksums are right but whose contents are the attacker's."""
    fields = []
    for index, (stored, packed) in enumerate(pieces):
        flag = block.LZ4_FLAG if packed else 0
        fields.append(block.ENTRY.pack(len(stored) | flag, xxh3_64_intdigest(stored, index)))
    table = b"".join(fields)
    covered = name + block.MAGIC + bytes((block.VERSION, block.HASH_BLAKE3)) + struct.pack("<I", plain_length) + table
    head = block.HEADER.pack(
        block.MAGIC, block.VERSION, block.HASH_BLAKE3, 0, len(pieces), plain_length, xxh3_64_intdigest(covered)
    )
    return head + table + b"".join(stored for stored, _ in pieces)


def test_forge_makes_what_encode_makes() -> None:
    plain = text(1000)
    name, encoded = block.encode(plain)
    assert forge(1000, [(lz4.block.compress(plain, store_size=False), True)], name) == encoded


@pytest.mark.parametrize(
    "length,pieces",
    [
        (1000, [(b"\xff" * 900, True)]),  # no lz4 at all
        (1000, [(b"\x00", True)]),
        (1000, [(lz4.block.compress(bytes(1001), store_size=False), True)]),  # one byte too many
        (1000, [(lz4.block.compress(bytes(999), store_size=False), True)]),  # one too few
        (1000, [(lz4.block.compress(bytes(1 << 28), store_size=False)[:900], True)]),  # a bomb
        (PIECE_BYTES, [(lz4.block.compress(bytes(PIECE_BYTES * 1000), store_size=False)[: PIECE_BYTES - 1], True)]),
        (1000, [(bytes(1000), False)]),  # all in order, but it does not hash to the name
        (1000, [(bytes(999), False)]),
        (1000, [(b"", True)]),
        (1000, [(bytes(1001), True)]),
    ],
)
def test_hostile_frames(length: int, pieces: list[tuple[bytes, bool]]) -> None:
    name = b"n" * 32
    frame = forge(length, pieces, name)
    for check in (lambda: block.decode(frame, name), lambda: block.verify(frame, name, length)):
        with pytest.raises(FsError) as failure:
            check()
        assert failure.value.code == Code.CORRUPT_BLOCK


@given(st.binary(max_size=300), st.binary(min_size=32, max_size=32))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, name: bytes) -> None:
    for prefix in (b"", block.MAGIC, block.MAGIC + bytes((block.VERSION, block.HASH_BLAKE3))):
        with pytest.raises(FsError) as failure:
            block.decode(prefix + data, name)
        assert failure.value.code in HOSTILE_CODES
        with pytest.raises(FsError):
            block.verify(prefix + data, name, 10)


@pytest.mark.parametrize("name,length", [(b"n" * 31, 10), (b"", 10), (b"n" * 33, 10), (b"n" * 32, 0), (b"n" * 32, -5),
                                         (b"n" * 32, BLOCK_BYTES_MAX + 1)])
def test_impossible_claims(name: bytes, length: int) -> None:
    with pytest.raises(FsError) as failure:
        block.verify(block.encode(b"0123456789")[1], name, length)
    assert failure.value.code == Code.PROTOCOL


def test_oversized_frame() -> None:
    with pytest.raises(FsError) as failure:
        block.verify(bytes(BLOCK_STORED_BYTES_MAX + 1), b"n" * 32, 10)
    assert failure.value.code == Code.PROTOCOL


@pytest.mark.parametrize("offset,value", [(4, block.VERSION + 1), (5, 9)])
def test_unknown_version_or_hash(offset: int, value: int) -> None:
    name, encoded = block.encode(b"0123456789")
    other = bytearray(encoded)
    other[offset] = value
    with pytest.raises(FsError) as failure:
        block.verify(other, name, 10)
    assert failure.value.code == Code.CORRUPT_BLOCK


def test_from_many_threads() -> None:
    plains = [mixed(300_000 + at) for at in range(8)]
    wrong: list[int] = []

    def work(at: int) -> None:
        for _ in range(5):
            name, encoded = block.encode(plains[at])
            if bytes(block.decode(encoded, name)) != plains[at]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
