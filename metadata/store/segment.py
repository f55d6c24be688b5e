"""The segment that is being written: bytes gathered in memory, written in order, made durable together."""

from __future__ import annotations

from metadata.store.disk import Disk, File
from metadata.store.scan import SUFFIX, TEMPORARY, segment_path
from node.wire.limits import LOG_BUFFER_BYTES, LOG_ZERO_BYTES

_ZEROS = bytes(LOG_ZERO_BYTES)


class SegmentWriter:
    """Appends to one new segment. Space ahead is written with zeros, so that a sync need not change the file's size.

    ``append`` only takes memory. What writes may meet a full disk: FsError(NO_SPACE); nothing is lost, the same call
    may be made again.
    """

    def __init__(self, disk: Disk, path: str, number: int, content: bytes, size: int) -> None:
        """Begin with ``content``. The file appears, whole and durable, with the first flush or sync.

        Zeros are not written beyond ``size``, where a segment is meant to end.
        """
        self.number = number
        self.end = len(content)  # behind everything appended
        self.stable = self.end  # durable below, as far as a record can tell that lies in the file
        self._disk = disk
        self._path = path
        self._size = size
        self._file: File | None = None
        self._written = 0  # in the file below
        self._zeroed = 0
        self._zero_ahead = True
        self._pending: list[bytes] = [content]

    def append(self, data: bytes) -> None:
        """Gather bytes; they reach the file with the next flush or sync."""
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
        if self._file is None:
            self._publish()
        else:
            self._write(self._file)

    def _publish(self) -> None:
        """Give the file its name when what it begins with is durable: before, there is no such segment."""
        final = segment_path(self._path, self.number)
        temporary = final.removesuffix(SUFFIX) + TEMPORARY
        self._disk.remove(temporary)
        file = self._disk.open(temporary, create=True)
        try:
            self._write(file)
            file.datasync()
            self._disk.rename(temporary, final)
            self._disk.sync_directory(self._path)
        except BaseException:
            file.close()
            raise
        self._file = file
        self.stable = self._written

    def _write(self, file: File) -> None:
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending = [data]
        if self.end > self._zeroed and self._zero_ahead:
            zeros = _ZEROS[: max(0, self._size - self.end)]
            self._zero_ahead = False  # a full disk: the next attempt is content with the data
            file.pwrite(data + zeros, self._written)
            self._zero_ahead = True
            self._zeroed = self.end + len(zeros)
        else:
            file.pwrite(data, self._written)
        self._written = self.end
        self._pending = []

    def sync(self) -> None:
        """Make everything appended durable."""
        self.flush()
        if self.stable < self._written and self._file is not None:
            self._file.datasync()
            self.stable = self._written

    def read(self, length: int, offset: int) -> bytes:
        """Read back, also what was only appended. What was written before can be read on a full disk too."""
        if self._file is None or offset >= self._written:
            self.flush()
        assert self._file is not None
        return self._file.pread(length, offset)

    def close(self) -> None:
        """Close the file; what was not synced may be lost."""
        if self._file is not None:
            self._file.close()
            self._file = None
