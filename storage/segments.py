"""The append-only files that hold a store's records. One of them, the highest number, is written; the others only read.

A group of records is written at once and may be acknowledged after ``sync``. A group that could not be written whole is
cut off again. Not for several writing threads; ``read`` and ``remove`` may be called from any.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Optional

from node.host.disk import Disk, DiskFile, FatalDiskError
from node.wire.errors import Code, FsError
from node.wire.limits import (
    SEGMENT_AHEAD_BYTES, SEGMENT_AHEAD_SHARE, STORE_OPEN_SEGMENTS_MAX, WRITTEN_CACHED_BYTES, WRITTEN_STEP_BYTES,
)
from node.wire.types import Buffer
from storage.records import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Record, SegmentHeader, unpack_segment_header

_NAME = re.compile(r"[0-9a-f]{8}\.seg")
_log = logging.getLogger(__name__)


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:08x}.seg"


class Segments:
    """The segment files of one store.

    ``random`` gives this many random bytes; ``max_bytes`` is the length at which the next segment is begun (one group
    may go beyond). On an empty disk a store with a new identity begins. Raises FOREIGN_CLUSTER when the segments belong
    to another cluster, UNSUPPORTED_VERSION when their format is newer.
    """

    def __init__(self, disk: Disk, cluster: bytes, *, max_bytes: int, random: Callable[[int], bytes]) -> None:
        self._disk = disk
        self._cluster = cluster
        self._max_bytes = max_bytes
        self._random = random
        self._files: OrderedDict[int, DiskFile] = OrderedDict()  # the least recently read first
        self._files_lock = threading.Lock()
        self._lengths: dict[int, int] = {}
        self._counting = threading.Lock()
        self._asked = 0  # the disk was asked to set space aside in the active segment up to here
        self._ahead = 0  # and did, up to here
        self._written: deque[tuple[int, int, int]] = deque()  # segment, start, end: durable, and in the kernel's memory
        self._written_bytes = 0
        self.used_bytes = 0  # the length of all segments together
        self.salts: dict[int, Optional[int]] = {}  # None: the header is damaged, its records cannot be scanned
        self.store = b""
        self._load()
        if not self._lengths:
            self.store = self.store or random(16)
            self._begin(1)
        self.active = max(self._lengths)
        if self.salts[self.active] is None:
            self._begin(self.active + 1)
        else:
            self._writer = self._file(self.active)  # one descriptor for writes and syncs, so that no error is missed
            self._writer.truncate(self._lengths[self.active])  # gives back what a crash left set aside
        self._written.append((self.active, self._lengths[self.active], self._lengths[self.active]))

    def _load(self) -> None:
        names = [name for name in self._disk.list() if _NAME.fullmatch(name)]
        for name in names:
            number = int(name[:8], 16)
            file = self._disk.open(name)
            length = file.size()
            header = unpack_segment_header(file.pread(SEGMENT_HEADER_BYTES, 0), f"segment {name}")
            file.close()
            if header is None:
                if name == names[-1] and length <= SEGMENT_HEADER_BYTES:
                    self._disk.remove(name)  # a crash while it was begun: nothing can be in it
                    self._disk.fsync_directory()
                    continue
                _log.error("segment %s: both headers are damaged; its blocks can be read only while the catalog"
                           " knows them", name)
            else:
                self._check(name, number, header)
            self._lengths[number] = length
            self.used_bytes += length
            self.salts[number] = header.salt if header is not None else None

    def _check(self, name: str, number: int, header: SegmentHeader) -> None:
        if header.cluster != self._cluster:
            detail = f"segment {name} belongs to cluster {header.cluster.hex()}, not to {self._cluster.hex()}"
            raise FsError(Code.FOREIGN_CLUSTER, detail)
        if self.store not in (b"", header.store):
            raise FsError(Code.FOREIGN_CLUSTER, f"segment {name} belongs to another store ({header.store.hex()})")
        if header.number != number:
            raise FsError(Code.INVALID, f"segment {name} was written as {segment_name(header.number)}")
        self.store = header.store

    @property
    def numbers(self) -> list[int]:
        """The numbers of all segments, rising."""
        return sorted(self._lengths)

    def length(self, number: int) -> int:
        """Return the length of a segment in bytes."""
        return self._lengths[number]

    def lengths(self) -> dict[int, int]:
        """Return all lengths by number."""
        return dict(self._lengths)

    @property
    def whole(self) -> bool:
        """Whether no segment that there ever was is missing."""
        return self.numbers == list(range(1, self.active + 1))

    def free_bytes(self) -> int:
        """Return how much the disk still takes."""
        return self._disk.free_bytes() + max(0, self._ahead - self._lengths[self.active])

    def append(self, group: Sequence[tuple[Record, Buffer]]) -> list[int]:
        """Write records behind the last one of the active segment; return the offsets of their payloads.

        Not durable before ``sync``. When it raises OSError (a full disk), nothing of the group is left.
        """
        total = sum(RECORD_HEADER_BYTES + record.stored for record, _ in group)
        if self._lengths[self.active] > SEGMENT_HEADER_BYTES and self._lengths[self.active] + total > self._max_bytes:
            self._begin(self.active + 1)
        if self._lengths[self.active] + total > self._asked:
            self._reserve(total)
        start = at = self._lengths[self.active]
        salt = self.salts[self.active]
        assert salt is not None
        buffers: list[Buffer] = []
        payloads: list[int] = []
        for record, payload in group:
            buffers.append(record.pack(salt, at))
            at += RECORD_HEADER_BYTES
            payloads.append(at)
            if record.stored:
                buffers.append(payload)
                at += record.stored
        try:
            self._writer.pwrite(buffers, start)
        except OSError as error:
            self._cut(self._writer, start, error)
            raise
        with self._counting:
            self._lengths[self.active] = at
            self.used_bytes += total
        return payloads

    def _reserve(self, size_bytes: int) -> None:
        """Set space aside for the next appends: a sync after a write into it costs a fraction of one that must first
        find room (measured on ext4: 1.9 times the throughput, a fifth of the CPU time)."""
        length = self._lengths[self.active]
        self._asked = length + max(size_bytes, min(SEGMENT_AHEAD_BYTES, self._max_bytes - length))
        if self._disk.free_bytes() > SEGMENT_AHEAD_SHARE * SEGMENT_AHEAD_BYTES:
            self._ahead = self._writer.reserve(self._asked)

    def _release(self) -> None:
        """Give back what was set aside and is not used."""
        if self._ahead:
            try:
                self._writer.truncate(self._lengths[self.active])
            except OSError as error:
                _log.warning("segment %s keeps space that it does not need: %s", segment_name(self.active), error)
        self._asked = self._ahead = 0

    def roll(self) -> None:
        """Begin the next segment, so that the active one can be compacted. Raises OSError on a full disk."""
        self._begin(self.active + 1)

    def sync(self) -> None:
        """Return when all that was appended is durable. FatalDiskError when that failed: nobody knows what is."""
        try:
            self._writer.fdatasync()
        except OSError as error:
            raise FatalDiskError(f"segment {segment_name(self.active)}: fdatasync: {error}") from error
        self._let_go()

    def _let_go(self) -> None:
        """Have the kernel forget what was written a while ago, so that its memory is used again for what is written
        next. Memory that it has to find anew costs more than everything else that a large put does (measured)."""
        number, end = self.active, self._lengths[self.active]
        last = self._written[-1] if self._written else None
        if last is not None and last[0] == number and last[2] - last[1] < WRITTEN_STEP_BYTES:
            start, self._written[-1] = last[2], (number, last[1], end)
        else:
            start = last[2] if last is not None and last[0] == number else SEGMENT_HEADER_BYTES
            self._written.append((number, start, end))
        self._written_bytes += end - start
        while self._written_bytes > WRITTEN_CACHED_BYTES and len(self._written) > 1:
            number, start, end = self._written.popleft()
            self._written_bytes -= end - start
            if end > start:
                with contextlib.suppress(OSError):  # compacted meanwhile, or no file system for such hints
                    self._file(number).let_go(start, end - start)

    def cut(self, number: int, length: int) -> None:
        """Cut a torn tail off, durably."""
        file = self._writer if number == self.active else self._file(number)
        file.truncate(length)
        file.fdatasync()
        with self._counting:
            self.used_bytes -= self._lengths[number] - length
            self._lengths[number] = length

    def read(self, number: int, length: int, offset: int) -> bytes:
        """Return bytes of a segment, fewer where it ends. Raises OSError; FileNotFoundError for a removed segment."""
        return self._file(number).pread(length, offset)

    def fetch(self, number: int, length: int, offset: int) -> None:
        """Bytes of a segment will be read in a moment."""
        with contextlib.suppress(OSError):  # no file system for such hints; the segment is missed when it is read
            self._file(number).fetch(offset, length)

    def remove(self, number: int) -> None:
        """Remove a segment that is not the active one, durably. Reads that have begun still finish."""
        assert number != self.active
        with self._files_lock:
            self._files.pop(number, None)
        self._disk.remove(segment_name(number))
        self._disk.fsync_directory()
        with self._counting:
            self.used_bytes -= self._lengths.pop(number)
            del self.salts[number]

    def close(self) -> None:
        """Close all files; nothing is synced."""
        self._release()
        with self._files_lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _begin(self, number: int) -> None:
        """Begin a segment. It is durable, name and header, before a record is written to it."""
        self._release()
        salt = int.from_bytes(self._random(8), "little")
        name = segment_name(number)
        file = self._disk.open(name, create=True)
        try:
            file.pwrite([SegmentHeader(number, salt, self._cluster, self.store).pack()], 0)
            file.fdatasync()
            self._disk.fsync_directory()
        except OSError:
            file.close()
            self._disk.remove(name)  # nothing was written to it that anybody knows of
            raise
        self._keep(number, file)
        with self._counting:
            self._lengths[number] = SEGMENT_HEADER_BYTES
            self.used_bytes += SEGMENT_HEADER_BYTES
            self.salts[number] = salt
        self.active, self._writer = number, file

    def _cut(self, file: DiskFile, length: int, cause: OSError) -> None:
        try:
            file.truncate(length)
        except OSError as error:
            what = f"segment {segment_name(self.active)}: could not cut a group that failed ({cause}): {error}"
            raise FatalDiskError(what) from error

    def _file(self, number: int) -> DiskFile:
        with self._files_lock:
            file = self._files.get(number)
            if file is not None:
                self._files.move_to_end(number)
                return file
        file = self._disk.open(segment_name(number))
        self._keep(number, file)
        return file

    def _keep(self, number: int, file: DiskFile) -> None:
        """Remember an open file and forget the one unused for longest; it closes when the last reader lets it go."""
        with self._files_lock:
            self._files[number] = file
            self._files.move_to_end(number)
            while len(self._files) > STORE_OPEN_SEGMENTS_MAX:
                self._files.popitem(last=False)
