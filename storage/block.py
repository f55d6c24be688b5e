"""The encoded form of a block: how it travels and how it rests. Pure; ``FORMAT.md`` describes every byte.

A block is up to ``BLOCK_BYTES_MAX`` bytes of plaintext, named by its BLAKE3. Encoded, it is a header, a table of
pieces, and the pieces. Each piece holds 64 KiB of plaintext (the last one the rest), lz4 or raw, lz4 only when it saves
a sixteenth. The checksum of the header covers the table and the name of the block, and the table holds that of each
piece. So any run of pieces can be verified without the others (a *partial* block: the same header and table, fewer
pieces), and a frame of one block never passes for another.

Whatever bytes come in, these functions raise FsError (CORRUPT_BLOCK, PROTOCOL or INVALID) or return what was encoded,
and never allocate more than the plaintext that was asked for and one piece. They hold no state and may be called from
any thread; hashing and lz4 release the GIL.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, NoReturn, Optional, TypeVar

import lz4.block
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, BLOCK_STORED_BYTES_MAX, PIECE_BYTES
from node.wire.types import BLOCK_ID_BYTES, BlockId, Buffer

MAGIC = b"fsBk"
VERSION = 1
HASH_BLAKE3 = 1

HEADER = struct.Struct("<4sBBBBIQ")  # magic, version, hash, first piece, pieces here, plaintext length, checksum
ENTRY = struct.Struct("<IQ")  # stored length with LZ4_FLAG, checksum of the stored bytes
LZ4_FLAG = 1 << 31
PIECES_MAX = BLOCK_BYTES_MAX // PIECE_BYTES
TABLE_BYTES_MAX = HEADER.size + PIECES_MAX * ENTRY.size
_TABLES = [struct.Struct("<" + "IQ" * count) for count in range(PIECES_MAX + 1)]

assert TABLE_BYTES_MAX + BLOCK_BYTES_MAX <= BLOCK_STORED_BYTES_MAX


T = TypeVar("T")
# Yields what to read, each (length, offset), side by side where there are several; is sent their bytes in this order.
Steps = Generator[Sequence[tuple[int, int]], Sequence[Buffer], T]


def name(plaintext: Buffer) -> BlockId:
    """Return the name of a block: the BLAKE3 of its plaintext."""
    return BlockId(blake3(plaintext).digest())


def encode(plaintext: Buffer) -> tuple[BlockId, bytes]:
    """Return the block's name and its encoded form. Raises INVALID for an empty or oversized block."""
    length = memoryview(plaintext).nbytes
    if not 0 < length <= BLOCK_BYTES_MAX:
        raise FsError(Code.INVALID, f"a block of {length} bytes, not 1 to {BLOCK_BYTES_MAX}")
    block_id = name(plaintext)
    if length <= PIECE_BYTES:
        pieces = [_pack(plaintext, length)]
    else:
        view = memoryview(plaintext).cast("B")
        starts = range(0, length, PIECE_BYTES)
        pieces = [_pack(view[at : at + PIECE_BYTES], min(PIECE_BYTES, length - at)) for at in starts]
    fields: list[int] = []
    for index, (flag, stored) in enumerate(pieces):
        fields += (len(stored) | flag, xxh3_64_intdigest(stored, index))
    table = _TABLES[len(pieces)].pack(*fields)
    checksum = _checksum(block_id, VERSION, HASH_BLAKE3, length, table)
    header = HEADER.pack(MAGIC, VERSION, HASH_BLAKE3, 0, len(pieces), length, checksum)
    return block_id, b"".join((header, table, *(stored for _, stored in pieces)))


def decode(
    encoded: Buffer, block_id: bytes, offset: int = 0, length: int = 0, raw_length: Optional[int] = None
) -> Buffer:
    """Return plaintext ``offset`` to ``offset + length`` of an encoded (or partial) block; length 0 means to its end.

    Every piece that the range touches is verified, and the BLAKE3 too when the range is the whole block. ``raw_length``
    is the plaintext length that the caller expects of the whole block. Raises CORRUPT_BLOCK when anything does not fit,
    INVALID when the range is not inside the block. Do not modify the result: it may share memory with ``encoded``.
    """
    table = PieceTable(encoded, block_id)
    if raw_length is not None:
        table.expected(raw_length)
    first, count = table.cover(offset, length)
    start, end = table.place(first, count)
    return Pieces(table, first, count, memoryview(encoded).cast("B")[start:end]).plain(offset, length)


def partial(encoded: Buffer, block_id: bytes, offset: int, length: int) -> bytes:
    """Return the partial block that covers the range: ``decode`` accepts it for any range inside these pieces."""
    table = PieceTable(encoded, block_id)
    first, count = table.cover(offset, length)
    start, end = table.place(first, count)
    return b"".join((table.head(first, count), memoryview(encoded).cast("B")[start:end]))


def place_raw(stored: int, length: int, offset: int, count: int) -> Optional[tuple[int, int]]:
    """Return the byte range in the encoded form of the pieces that cover ``count`` bytes from ``offset`` of a block of
    this length, where its stored length alone says that all pieces are raw; None where the table has to be asked."""
    start = HEADER.size + _TABLES[-(-length // PIECE_BYTES)].size
    if stored != start + length:
        return None
    return start + offset - offset % PIECE_BYTES, start + min(length, -(-(offset + count) // PIECE_BYTES) * PIECE_BYTES)


def as_a_whole(stored: int, length: int, offset: int, count: int) -> bool:
    """Whether an encoded block is read as a whole for a part: all of it is wanted, or it is small."""
    return stored <= 2 * PIECE_BYTES or (offset == 0 and count in (0, length))


def read_pieces(
    block_id: bytes, stored: int, length: int, offset: int, count: int, table: Optional[PieceTable] = None
) -> Steps[Pieces]:
    """Find the pieces that cover ``count`` bytes from ``offset`` (0: to its end) of a block of this length, whose
    encoded form has ``stored`` bytes, and whose ``table`` may be known. The table is verified, pieces are not."""
    if as_a_whole(stored, length, offset, count):
        (encoded,) = yield [(stored, 0)]
        table = PieceTable(encoded, block_id).expected(length)
        first, covered = table.cover(offset, count)
        start, end = table.place(first, covered)
        return Pieces(table, first, covered, memoryview(encoded)[start:end])
    found: Optional[Buffer] = None
    if table is None:
        head = min(TABLE_BYTES_MAX, stored), 0
        raw = place_raw(stored, length, offset, count or length - offset)
        if raw is not None:
            beginning, found = yield [head, (raw[1] - raw[0], raw[0])]
        else:
            (beginning,) = yield [head]
        table = PieceTable(beginning, block_id, prefix=True)
    first, covered = table.expected(length).cover(offset, count)
    start, end = table.place(first, covered)
    if found is None:
        (found,) = yield [(end - start, start)]
    if len(found) != end - start:
        _corrupt(block_id, f"is cut off in its pieces {first}+{covered}")
    return Pieces(table, first, covered, found)


def read_encoded(
    read: Callable[[int, int], bytes], hint: Callable[[int, int], None], block_id: bytes, stored: int, length: int,
    offset: int, count: int,
) -> bytes:
    """Return the encoded block, or the encoded partial block that covers ``count`` bytes from ``offset`` (0: to its
    end) of a block of this length, of which ``read`` gives (length, offset) of the encoded form. ``hint`` is told, in
    the same way, what will be read in a moment. The table is verified where not all is read, pieces are not."""
    if as_a_whole(stored, length, offset, count):
        return read(stored, 0)
    return take(read_pieces(block_id, stored, length, offset, count), read, hint).encoded()


def take(steps: Steps[T], read: Callable[[int, int], bytes], hint: Callable[[int, int], None]) -> T:
    """Have the steps read one after the other."""
    try:
        wanted = next(steps)
        while True:
            for one in wanted[1:]:  # the disk works on them while the first is waited for
                hint(*one)
            wanted = steps.send([read(*one) for one in wanted])
    except StopIteration as end:
        result: T = end.value
        return result


def verify(encoded: Buffer, block_id: bytes, raw_length: int) -> None:
    """Check a whole encoded block from a stranger: bounds before anything is decompressed, pieces, length and BLAKE3.

    Raises PROTOCOL for an impossible name or length, CORRUPT_BLOCK for everything else that does not fit.
    """
    if len(block_id) != BLOCK_ID_BYTES:
        raise FsError(Code.PROTOCOL, f"a block name of {len(block_id)} bytes")
    if not 0 < raw_length <= BLOCK_BYTES_MAX:
        raise FsError(Code.PROTOCOL, f"a block of {raw_length} bytes")
    if memoryview(encoded).nbytes > BLOCK_STORED_BYTES_MAX:
        raise FsError(Code.PROTOCOL, f"an encoded block of {memoryview(encoded).nbytes} bytes")
    table = PieceTable(encoded, block_id)
    if table.length != raw_length:
        _corrupt(block_id, f"has {table.length} bytes, announced were {raw_length}")
    if table.first or table.count != table.pieces:
        _corrupt(block_id, "is not whole")
    view = memoryview(encoded).cast("B")
    if table.pieces == 1:
        digest = blake3(table.plain(view, 0)).digest()
    else:
        hasher = blake3()
        for index in range(table.pieces):
            hasher.update(table.plain(view, index))
        digest = hasher.digest()
    if digest != block_id:
        _corrupt(block_id, "does not hash to its name")


class PieceTable:
    """The verified header and piece table of an encoded block, and where the pieces that are here lie.

    ``encoded`` may also be only the beginning of an encoded block (at least ``TABLE_BYTES_MAX`` bytes of it or all of
    it); then say so with ``prefix``, and the bytes of the pieces are not asked for.
    """

    __slots__ = (
        "block_id", "length", "first", "count", "pieces", "start", "_checksum", "_fields", "_offsets", "_table"
    )

    def __init__(self, encoded: Buffer, block_id: bytes, *, prefix: bool = False) -> None:
        size = memoryview(encoded).nbytes
        if size < HEADER.size:
            _corrupt(block_id, f"is cut off after {size} bytes")
        magic, version, algorithm, first, count, length, checksum = HEADER.unpack_from(encoded)
        if magic != MAGIC:
            _corrupt(block_id, "does not begin like a block")
        if version != VERSION:
            _corrupt(block_id, f"has format version {version}, this program reads {VERSION}")
        if algorithm != HASH_BLAKE3:
            _corrupt(block_id, f"is named by an unknown hash ({algorithm})")
        if not 0 < length <= BLOCK_BYTES_MAX:
            _corrupt(block_id, f"claims {length} bytes")
        pieces = -(-length // PIECE_BYTES)
        if not 0 < count <= pieces - first:
            _corrupt(block_id, f"claims pieces {first}+{count} of {pieces}")
        layout = _TABLES[pieces]
        start = HEADER.size + layout.size
        if size < start:
            _corrupt(block_id, f"is cut off after {size} bytes")
        table = bytes(memoryview(encoded)[HEADER.size : start])
        if _checksum(block_id, version, algorithm, length, table) != checksum:
            _corrupt(block_id, "has a damaged header, or is another block")
        self.block_id = block_id
        self.length: int = length
        self.first: int = first
        self.count: int = count
        self.pieces: int = pieces
        self.start: int = start  # where the pieces begin
        self._checksum: int = checksum
        self._table: bytes = table
        self._fields: tuple[int, ...] = layout.unpack(table)
        self._offsets: list[int] = [start]
        for index in range(first, first + count):
            self._offsets.append(self._offsets[-1] + self._check(index))
        if not prefix and size != self._offsets[-1]:
            _corrupt(block_id, f"has {size} bytes encoded, its table says {self._offsets[-1]}")

    def _check(self, index: int) -> int:
        """Return the stored length of a piece, having checked it against the plaintext length."""
        stored, full = self._fields[2 * index] & ~LZ4_FLAG, self.piece_length(index)
        if (stored != full) if self.raw(index) else not 0 < stored < full:
            _corrupt(self.block_id, f"piece {index} claims {stored} stored bytes for {full}")
        return stored

    def expected(self, length: int) -> PieceTable:
        """Return this table, having checked it against the plaintext length that it should be of."""
        if self.length != length:
            _corrupt(self.block_id, f"has {self.length} bytes, expected {length}")
        return self

    @property
    def size(self) -> int:
        """The length of the whole encoded form, of the pieces that the header announces."""
        return self._offsets[-1]

    def piece_length(self, index: int) -> int:
        """Return the plaintext length of a piece."""
        return min(PIECE_BYTES, self.length - index * PIECE_BYTES)

    def raw(self, index: int) -> bool:
        """Whether a piece is stored as it is."""
        return not self._fields[2 * index] & LZ4_FLAG

    def cover(self, offset: int, length: int) -> tuple[int, int]:
        """Return (first, count) of the pieces that cover a range; length 0 means to the end. INVALID when outside."""
        end = offset + length if length else self.length
        if not 0 <= offset < end <= self.length:
            here = f"block {self.block_id.hex()} of {self.length} bytes"
            raise FsError(Code.INVALID, f"range {offset}+{length} is not inside {here}")
        first = offset // PIECE_BYTES
        return first, -(-end // PIECE_BYTES) - first

    def place(self, first: int, count: int) -> tuple[int, int]:
        """Return the byte range of these pieces in the encoded form; CORRUPT_BLOCK when they are not all here."""
        if first < self.first or first + count > self.first + self.count:
            _corrupt(self.block_id, f"lacks pieces {first}+{count}, it has {self.first}+{self.count}")
        return self._offsets[first - self.first], self._offsets[first - self.first + count]

    def head(self, first: int, count: int) -> bytes:
        """Return the header and table of a partial block with these pieces."""
        return HEADER.pack(MAGIC, VERSION, HASH_BLAKE3, first, count, self.length, self._checksum) + self._table

    def stored(self, view: memoryview, index: int, base: int = 0) -> memoryview:
        """Return the verified stored bytes of a piece that is here. ``view`` begins ``base`` bytes into the encoded
        form."""
        at = index - self.first
        stored = view[self._offsets[at] - base : self._offsets[at + 1] - base]
        if xxh3_64_intdigest(stored, index) != self._fields[2 * index + 1]:
            _corrupt(self.block_id, f"piece {index} is damaged")
        return stored

    def plain(self, view: memoryview, index: int, base: int = 0) -> Buffer:
        """Return the plaintext of a piece that is here; ``base`` as in ``stored``."""
        stored = self.stored(view, index, base)
        if self.raw(index):
            return stored
        length = self.piece_length(index)
        try:
            plain: bytes = lz4.block.decompress(stored, uncompressed_size=length)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            _corrupt(self.block_id, f"piece {index} does not decompress: {error}")
        if len(plain) != length:
            _corrupt(self.block_id, f"piece {index} decompresses to {len(plain)} bytes of {length}")
        return plain


class Pieces(NamedTuple):
    """Neighbouring pieces of an encoded block, as they are stored, not yet verified."""

    table: PieceTable
    first: int
    number: int
    stored: Buffer

    def encoded(self) -> bytes:
        """Return the partial block that consists of them."""
        return b"".join((self.table.head(self.first, self.number), self.stored))

    def plain(self, offset: int, length: int) -> Buffer:
        """Return what ``decode`` does of the block that they belong to, having verified all of them."""
        table, first, count = self.table, self.first, self.number
        length = length or table.length - offset
        skip = offset - first * PIECE_BYTES
        view = memoryview(self.stored).cast("B")
        base = table.place(first, count)[0]
        plain: Buffer
        if all(table.raw(index) for index in range(first, first + count)):  # plaintext lies there: no copy
            for index in range(first, first + count):
                table.stored(view, index, base)
            plain = view[skip : skip + length].toreadonly()
        elif count == 1:
            piece = table.plain(view, first, base)
            plain = piece if len(piece) == length else memoryview(piece)[skip : skip + length]
        else:
            plain = self._gather(view, base, skip, length)
        if length == table.length and name(plain) != table.block_id:
            _corrupt(table.block_id, "does not hash to its name")
        return plain

    def _gather(self, view: memoryview, base: int, skip: int, length: int) -> bytearray:
        """Decode the pieces into one buffer that begins ``skip`` bytes into the first."""
        plain = bytearray(length)
        room = memoryview(plain)
        at = -skip
        for index in range(self.first, self.first + self.number):
            piece = memoryview(self.table.plain(view, index, base))
            begin, end = max(at, 0), min(at + len(piece), length)
            room[begin:end] = piece[begin - at : end - at]
            at += len(piece)
        return plain


def _pack(piece: Buffer, length: int) -> tuple[int, Buffer]:
    """Return (flag, stored bytes) of a piece: raw unless lz4 saves a sixteenth."""
    packed: bytes = lz4.block.compress(piece, store_size=False)
    return (LZ4_FLAG, packed) if len(packed) <= length - max(1, length // 16) else (0, piece)


def _checksum(block_id: bytes, version: int, algorithm: int, length: int, table: bytes) -> int:
    """The checksum of what must not change: everything but the choice of pieces, which their own checksums guard."""
    fixed = MAGIC + bytes((version, algorithm)) + length.to_bytes(4, "little")
    checksum: int = xxh3_64_intdigest(b"".join((block_id, fixed, table)))
    return checksum


def _corrupt(block_id: bytes, what: str) -> NoReturn:
    raise FsError(Code.CORRUPT_BLOCK, f"block {block_id.hex()} {what}")
