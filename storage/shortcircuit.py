"""Short-circuit reads: a process on the chunk server's host reads the server's files without the server.

The name is HDFS's. Blocks never change and everything is verified here as if it had come by request, so a place that
was true once gives the right bytes or none: compaction removes whole files, and a file that is open stays readable.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from node.host.disk import SystemFile
from node.wire.errors import Code, FsError
from node.wire.limits import PIECE_TABLES_MAX, SHORT_CIRCUIT_FILES_MAX
from node.wire.types import Buffer
from storage.block import PieceTable, Steps, as_a_whole, read_pieces, take
from storage.records import SEGMENT_HEADER_BYTES, unpack_segment_header
from storage.segments import segment_name

if TYPE_CHECKING:
    from storage.api import Located


class SegmentReader:
    """The segment files of one store, opened by another process than its server. Any thread; every method may wait for
    the disk."""

    def __init__(self, directory: str, store: bytes) -> None:
        """Read the store of this identity in a directory. Raises INVALID when that is no absolute path."""
        if not os.path.isabs(directory):
            raise FsError(Code.INVALID, f"{directory!r} is no absolute path")
        self.directory = directory
        self.store = store
        self._lock = threading.Lock()
        self._files: OrderedDict[int, SystemFile] = OrderedDict()  # the least recently read first
        self._read: set[int] = set()  # since the last ``tidy``
        self._tables: OrderedDict[tuple[int, int], PieceTable] = OrderedDict()  # of blocks that were read in part

    def read(self, place: Located, block: bytes, offset: int, length: int) -> Buffer:
        """Return verified plaintext of a block that lies there.

        Raises OSError where the file cannot be read, FileNotFoundError when it is gone; CORRUPT_BLOCK for bytes that
        are not the block's, FOREIGN_CLUSTER for a file of another store.
        """
        file = self._file(place.segment)

        def read(count: int, at: int) -> bytes:
            return file.pread(count, place.offset + at)

        def hint(count: int, at: int) -> None:
            file.fetch(place.offset + at, count)

        return take(self._steps(place, block, offset, length), read, hint)

    def steps(
        self, place: Located, block: bytes, offset: int, length: int
    ) -> Optional[tuple[SystemFile, Steps[Buffer]]]:
        """Return what ``read`` would do, for a caller who reads by himself: the file, and the steps that end in the
        plaintext; offsets count from the block's place. They raise the same. None where the file is not open, because
        opening it may wait."""
        with self._lock:
            file = self._files.get(place.segment)
            if file is None:
                return None
            self._read.add(place.segment)
        return file, self._steps(place, block, offset, length)

    def _steps(self, place: Located, block: bytes, offset: int, length: int) -> Steps[Buffer]:
        key = place.segment, place.offset
        with self._lock:
            table = self._tables.pop(key, None)  # not put back where what follows fails
        pieces = yield from read_pieces(block, place.stored, place.length, offset, length, table)
        plain = pieces.plain(offset, length)
        if not as_a_whole(place.stored, place.length, offset, length):
            with self._lock:
                self._tables[key] = pieces.table
                if len(self._tables) > PIECE_TABLES_MAX:
                    self._tables.popitem(last=False)
        return plain

    @property
    def tables(self) -> int:
        """How many tables of pieces are remembered."""
        return len(self._tables)

    def check(self, place: Located) -> None:
        """Raise what ``read`` would where this file is not the store's, or not for this process to read."""
        self._file(place.segment)

    def tidy(self) -> int:
        """Let go of files that were removed, so that their space comes back, and of those that nobody has read since
        the last call. Return how many are left."""
        with self._lock:
            idle = [number for number, file in self._files.items() if number not in self._read or file.removed()]
            for number in idle:
                del self._files[number]  # it closes when the last reader lets it go
            self._read.clear()
            return len(self._files)

    def _file(self, number: int) -> SystemFile:
        with self._lock:
            file = self._files.get(number)
            if file is not None:
                self._files.move_to_end(number)
                self._read.add(number)
                return file
        name = segment_name(number)
        file = SystemFile(Path(self.directory) / name, foreign=True)
        header = unpack_segment_header(file.pread(SEGMENT_HEADER_BYTES, 0), name)
        if header is None or (header.number, header.store) != (number, self.store):
            raise FsError(Code.FOREIGN_CLUSTER, f"{name} in {self.directory} is not of store {self.store.hex()}")
        with self._lock:
            self._files[number] = file
            self._read.add(number)
            while len(self._files) > SHORT_CIRCUIT_FILES_MAX:
                self._files.popitem(last=False)
        return file
