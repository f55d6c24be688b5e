"""A whole state on its way from one member to another: cut into chunks, kept beside the old state, then installed.

Each chunk carries a digest that covers it and, through its predecessor's digest, every chunk before it, back to the
name of the snapshot. So a legible last chunk that continues its predecessors is the whole state, in order, unaltered.
Chunks are numbered and cut the same way each time, so a receiver asks for the first one that it has not got.

Installation: all chunks in the spool, then ``engine.replace(spool.items())``, which verifies them once more while
reading, then the log's ``install`` and ``sync``, then ``spool.discard()``. Whatever fails before the engine's switch
leaves the old state; after it ``log.reconcile`` completes the rest at the next start.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec
from xxhash import xxh3_128_digest

from metadata.raft.messages import SnapshotMeta
from metadata.state.tables import SnapshotView
from metadata.store.disk import Disk, File
from node.wire.errors import Code, FsError
from node.wire.limits import SNAPSHOT_CHUNK_BYTES

FORMAT_VERSION = 1
_LENGTH = struct.Struct("<I")
_ITEM_BYTES = 10  # what an item takes beside key and value
_CHUNK_BYTES_MAX = 4 * SNAPSHOT_CHUNK_BYTES


class SnapshotName(msgspec.Struct, frozen=True, array_like=True):
    """Which snapshot: no two different states share a name. ``nonce``: 16 random bytes of the sender."""

    meta: SnapshotMeta
    nonce: bytes
    format: int = FORMAT_VERSION


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One piece. ``payload`` is an encoded list of (key, value), rising across all chunks."""

    number: int
    last: bool
    digest: bytes
    payload: bytes


_items_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])
_chunk_decoder = msgspec.msgpack.Decoder(Chunk)


def _first_digest(name: SnapshotName) -> bytes:
    return xxh3_128_digest(msgspec.msgpack.encode(name))


def _next_digest(before: bytes, number: int, last: bool, payload: bytes) -> bytes:
    return xxh3_128_digest(b"%s%d%d" % (before, number, last) + payload)


def _item_bytes(item: tuple[bytes, bytes]) -> int:
    return len(item[0]) + len(item[1]) + _ITEM_BYTES


def decode_chunk(data: bytes) -> Chunk:
    """Decode a chunk; PROTOCOL where it is none."""
    try:
        return _chunk_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FsError(Code.PROTOCOL, f"not a snapshot chunk: {error}") from error


class SnapshotSource:
    """Cuts one state, seen through a view that stays open meanwhile, into chunks, lazily and as often as asked."""

    def __init__(self, view: SnapshotView, name: SnapshotName, *, chunk_bytes: int = SNAPSHOT_CHUNK_BYTES) -> None:
        self.name = name
        self._view = view
        self._chunk_bytes = chunk_bytes
        self._starts = [b""]  # first key of each chunk known so far
        self._digests = [_first_digest(name)]  # before each chunk known so far
        self._items = view.items()
        self._next = 0  # the chunk that _items continues with
        self._held: tuple[bytes, bytes] | None = None  # read from _items, not yet in a chunk
        self.chunks: int | None = None  # how many, once known

    def chunk(self, number: int) -> bytes:
        """Return chunk ``number``, encoded. Any that was cut before, or the next one; else INVALID."""
        if number >= len(self._starts) or self.chunks is not None and number >= self.chunks:
            raise FsError(Code.INVALID, f"snapshot chunk {number} of {self.chunks or len(self._starts)}")
        if number != self._next:
            self._items, self._held, self._next = self._view.items(self._starts[number]), None, number
        items: list[tuple[bytes, bytes]] = [self._held] if self._held is not None else []
        self._held = None
        size = sum(_item_bytes(item) for item in items)
        for item in self._items:
            size += _item_bytes(item)
            if size > self._chunk_bytes and items:
                self._held = item
                break
            items.append(item)
        last = self._held is None
        payload = msgspec.msgpack.encode(items)
        digest = _next_digest(self._digests[number], number, last, payload)
        self._next = number + 1
        if last:
            self.chunks = number + 1
        elif number + 1 == len(self._starts):
            assert self._held is not None
            self._starts.append(self._held[0])
            self._digests.append(digest)
        return msgspec.msgpack.encode(Chunk(number, last, digest, payload))


class SnapshotSpool:
    """Collects the chunks of one snapshot in a file, across lost connections and restarts of this member."""

    def __init__(self, disk: Disk, path: str, name: SnapshotName) -> None:
        """Open the spool file ``path``: what it has of this snapshot is kept, another one's is dropped."""
        if name.format != FORMAT_VERSION:
            raise FsError(
                Code.UNSUPPORTED_VERSION, f"snapshot format {name.format}; this release reads {FORMAT_VERSION}"
            )
        self.name = name
        self._disk = disk
        self._path = path
        self._file: File = disk.open(path, create=True)
        self._end = 0
        self._digest = _first_digest(name)
        self.next_chunk = 0
        self.complete = False
        for chunk, end in self._chunks():
            self._take(chunk, end)
        self._file.truncate(self._end)

    def _take(self, chunk: Chunk, end: int) -> None:
        self._digest, self._end = chunk.digest, end
        self.next_chunk = chunk.number + 1
        self.complete = chunk.last

    def add(self, data: bytes) -> int:
        """Keep an encoded chunk; return the number of the next one wanted.

        One that is not the next changes nothing. CORRUPT_BLOCK where it is damaged or of another snapshot: ask again.
        NO_SPACE: nothing changed.
        """
        chunk = decode_chunk(data)
        if chunk.number == self.next_chunk and not self.complete:
            if _next_digest(self._digest, chunk.number, chunk.last, chunk.payload) != chunk.digest:
                raise FsError(Code.CORRUPT_BLOCK, f"snapshot chunk {chunk.number} does not continue its predecessors")
            self._file.pwrite(_LENGTH.pack(len(data)) + data, self._end)
            self._take(chunk, self._end + _LENGTH.size + len(data))
        return self.next_chunk

    def _chunks(self) -> Iterator[tuple[Chunk, int]]:
        """Walk the legible chunks from the first on, each with the offset behind it."""
        digest, at, number, last = _first_digest(self.name), 0, 0, False
        while not last:
            head = self._file.pread(_LENGTH.size, at)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            if not 0 < length <= _CHUNK_BYTES_MAX:
                return
            at += _LENGTH.size
            try:
                chunk = decode_chunk(self._file.pread(length, at))
            except FsError:
                return
            if chunk.number != number or _next_digest(digest, number, chunk.last, chunk.payload) != chunk.digest:
                return
            digest, at, number, last = chunk.digest, at + length, number + 1, chunk.last
            yield chunk, at

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Walk the whole state in key order, verifying it again; IO where the file does not hold it any more."""
        assert self.complete
        number = 0
        for chunk, _ in self._chunks():
            yield from _items_decoder.decode(chunk.payload)
            number += 1
        if number != self.next_chunk:
            raise FsError(Code.IO, f"{self._path}: damaged after snapshot chunk {number}")

    def close(self) -> None:
        """Close the file; a later spool for the same snapshot continues it."""
        self._file.close()

    def discard(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self._disk.remove(self._path)
