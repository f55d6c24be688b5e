"""The segment that is being written: bytes gathered in memory, written in order, made durable together."""

from __future__ import annotations

from metadata.store.disk import Disk, File
from metadata.store.scan import SUFFIX, TEMPORARY, segment_path
from node.wire.limits import LOG_BUFFER_BYTES, LOG_ZERO_BYTES

_ZEROS = bytes(LOG_ZERO_BYTES)


class SegmentWriter:
    """Appends to one segment. Space ahead is written with zeros, so that a sync need not change the file's size.

    Where a write meets a full disk, FsError(NO_SPACE): nothing is lost, the same call may be made again.
    """

    def __init__(self, disk: Disk, path: str, number: int, content: bytes, size: int) -> None:
        """Create the segment with its first ``content``, durably: after this it exists, before it does not.

        Zeros are not written beyond ``size``, where a segment is meant to end.
        """
        self.number = number
        final = segment_path(path, number)
        temporary = final.removesuffix(SUFFIX) + TEMPORARY
        disk.remove(temporary)
        self._file: File = disk.open(temporary, create=True)
        try:
            self._file.pwrite(content, 0)
            self._file.datasync()
            disk.rename(temporary, final)
            disk.sync_directory(path)
        except BaseException:
            self._file.close()
            raise
        self.end = len(content)  # behind everything appended
        self.stable = self.end  # durable below
        self._written = self.end  # in the file below
        self._zeroed = self.end
        self._zero_ahead = True
        self._size = size
        self._pending: list[bytes] = []

    def append(self, data: bytes) -> None:
        """Gather bytes; they reach the file with the next flush or sync, or when many are waiting."""
        self._pending.append(data)
        self.end += len(data)

    @property
    def crowded(self) -> bool:
        """Whether so many bytes wait in memory that they should be flushed."""
        return self.end - self._written >= LOG_BUFFER_BYTES

    def flush(self) -> None:
        """Write what was gathered to the file, without making it durable."""
        if not self._pending:
            return
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        if self.end > self._zeroed and self._zero_ahead:
            self._zero_ahead = False  # a full disk: the next attempt is content with the data
            zeros = _ZEROS[: max(0, self._size - self.end)]
            self._file.pwrite(data + zeros, self._written)
            self._zero_ahead = True
            self._zeroed = self.end + len(zeros)
        else:
            self._file.pwrite(data, self._written)
        self._written = self.end
        self._pending.clear()

    def sync(self) -> None:
        """Make everything appended durable."""
        self.flush()
        if self.stable < self._written:
            self._file.datasync()
            self.stable = self._written

    def read(self, length: int, offset: int) -> bytes:
        """Read back, also what was only appended."""
        if offset + length > self._written:
            self.flush()
        return self._file.pread(length, offset)

    def close(self) -> None:
        """Close the file; what was not synced may be lost."""
        self._file.close()
