"""Reading entries back: the newest from memory, within a bound of bytes, older ones from their segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metadata.raft.messages import Entry
from metadata.store import record as rec
from metadata.store.disk import Disk, File
from metadata.store.scan import segment_path
from node.wire.limits import LOG_OPEN_FILES_MAX

_GUESS_BYTES = 4096
_BATCH_BYTES = 240  # what a batch takes in memory beside its entries
_ENTRY_BYTES = 120  # what an entry takes beside its data

Read = Callable[[int, int], bytes]
"""(length, offset) to bytes, of one segment."""


class Batches:
    """The batches of entries by position (``record.position_of``)."""

    def __init__(self, disk: Disk, path: str, cache_bytes: int) -> None:
        self._disk = disk
        self._path = path
        self._bytes_max = cache_bytes
        self._cache: dict[int, tuple[Sequence[Entry], int]] = {}  # oldest first; each with the bytes it counts for
        self._files: dict[int, File] = {}
        self.cached_bytes = 0

    def remember(self, position: int, entries: Sequence[Entry], size: int) -> None:
        """Keep a batch that was just written; at least the newest one stays."""
        size += _BATCH_BYTES + len(entries) * _ENTRY_BYTES
        self._cache[position] = (entries, size)
        self.cached_bytes += size
        while self.cached_bytes > self._bytes_max and len(self._cache) > 1:
            _, size = self._cache.pop(next(iter(self._cache)))
            self.cached_bytes -= size

    def get(self, position: int, current: int, read_current: Read) -> Sequence[Entry] | None:
        """Return the batch at a position, read by ``read_current`` where it lies in segment ``current``.

        None where the disk does not hold it any more.
        """
        cached = self._cache.get(position)
        if cached is not None:
            return cached[0]
        number, offset = position >> 32, position & 0xFFFFFFFF
        read = read_current if number == current else self._file(number).pread
        data = read(_GUESS_BYTES, offset)
        size = rec.RECORD_HEADER_BYTES + rec.payload_length(data)
        if size > len(data):
            data = read(size, offset)
        record = rec.decode_record(memoryview(data), 0, number, offset)
        return rec.entries_decoder.decode(record.payload) if record is not None else None

    def _file(self, number: int) -> File:
        file = self._files.get(number)
        if file is None:
            if len(self._files) >= LOG_OPEN_FILES_MAX:
                self._files.pop(next(iter(self._files))).close()
            file = self._files[number] = self._disk.open(segment_path(self._path, number))
        return file

    def forget_segment(self, number: int) -> None:
        """Close the file of a segment that is removed."""
        file = self._files.pop(number, None)
        if file is not None:
            file.close()

    def clear(self) -> None:
        """Forget the entries in memory."""
        self._cache.clear()
        self.cached_bytes = 0

    def close(self) -> None:
        """Close the files."""
        for number in list(self._files):
            self.forget_segment(number)
