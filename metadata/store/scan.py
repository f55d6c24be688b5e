"""Reading segments: which files are in use, and which of their records are legible, torn or lost.

Segments form a chain: each begins with a base that names the offset at which its predecessor ends. A segment gets
its final name only after its first content is durable, so a file with such a name and an illegible beginning is
damaged, not unfinished.

The decision on an illegible record at X of the newest segment (elsewhere it always is loss):

- nothing legible follows: a torn tail, cut;
- a legible record behind it was written when X was already durable: loss;
- otherwise no later write vouches for the one that held X. It is torn, and cut, when a sector in the illegible range
  never arrived (shows zeros); else every sector arrived and one of them lies: loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from metadata.store import record as rec
from metadata.store.disk import Disk
from metadata.store.record import Record, RecordKind

SUFFIX = ".log"
TEMPORARY = ".new"


class Hole(NamedTuple):
    """Something durable is missing at this offset."""

    offset: int


@dataclass(frozen=True)
class Segment:
    """A file in use. ``end``: where it ends for its successor; None for the newest, or where that is not known."""

    number: int
    end: int | None
    newest: bool


def segment_path(path: str, number: int) -> str:
    """Return the file of a segment."""
    return f"{path}/{number:016d}{SUFFIX}"


def segment_numbers(disk: Disk, path: str) -> list[int]:
    """Return the numbers of the finished segments, rising."""
    names = (name.removesuffix(SUFFIX) for name in disk.list(path) if name.endswith(SUFFIX))
    return sorted(int(name) for name in names if name.isdigit())


def read_segment(disk: Disk, path: str, number: int, length: int | None = None) -> memoryview:
    """Return the first ``length`` bytes of a segment, by default all of them."""
    file = disk.open(segment_path(path, number))
    try:
        return memoryview(file.pread(file.size() if length is None else length, 0))
    finally:
        file.close()


def read_chain(disk: Disk, path: str, cluster_id: bytes) -> list[Segment]:
    """Return the segments in use, oldest first. UNSUPPORTED_VERSION or FOREIGN_CLUSTER where one is not for us."""
    present = segment_numbers(disk, path)
    segment = Segment(present[-1], None, True)
    chain: list[Segment] = []
    while True:
        chain.append(segment)
        number = segment.number
        head = read_segment(disk, path, number, rec.BASE_BYTES_MAX)
        rec.check_file_header(bytes(head[: rec.FILE_HEADER_BYTES]), segment_path(path, number), number, cluster_id)
        record = read_base(head, number)
        older = [n for n in present if n < number]
        if record is not None:
            base = rec.base_decoder.decode(record.payload)
            if base.previous not in older:
                return chain[::-1]
            segment = Segment(base.previous, base.previous_end, False)
        elif older:  # the base is lost, and with it the way back: the nearest may be the predecessor
            segment = Segment(older[-1], None, False)
        else:
            return chain[::-1]


def read_base(data: memoryview, number: int) -> Record | None:
    """Return the base, from either of its two copies, ending behind both; None where both are lost."""
    start = rec.FILE_HEADER_BYTES
    record = rec.decode_record(data, start, number, start)
    if record is not None and record.kind == RecordKind.BASE:
        return record._replace(end=2 * record.end - start)
    record = rec.find_record(data, start + 8, number)
    return record if record is not None and record.kind == RecordKind.BASE else None


def stable_end(data: memoryview, number: int) -> int:
    """Return the offset of a segment below which some record in it vouches for everything."""
    stable = at = rec.FILE_HEADER_BYTES
    while True:
        record = rec.decode_record(data, at, number, at) or rec.find_record(data, at + 8, number)
        if record is None:
            return stable
        stable, at = max(stable, record.stable), record.end


def scan(data: memoryview, segment: Segment) -> Iterator[Record | Hole]:
    """Yield what one segment holds, in order, up to its end or, in the newest, up to where it is torn.

    Where the end is not known, everything behind what is vouched for may be void: a hole tells it from the rest.
    """
    number = segment.number
    unknown = segment.end is None and not segment.newest
    limit = len(data) if segment.end is None else segment.end
    vouched = stable_end(data, number) if segment.end is None else limit
    at = rec.FILE_HEADER_BYTES
    base = read_base(data, number)
    if base is not None:
        yield base
        at = base.end
    while at < limit:
        if unknown and at >= vouched:
            yield Hole(at)
            unknown = False
        record = rec.decode_record(data, at, number, at)
        if record is None:
            record = rec.find_record(data, at + 8, number)
            if base is not None and at >= vouched and _is_torn(data, at, record):
                return
            yield Hole(at)
        if record is None or record.offset >= limit:
            return
        yield record
        at = record.end


def _is_torn(data: memoryview, at: int, following: Record | None) -> bool:
    """Decide whether an illegible record for which no later one vouches was never acknowledged."""
    return following is None or rec.has_unwritten_sector(data, at, following.offset)
