"""What records mean: how they change a catalog, and how a start brings the catalog up to date with the segments."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Optional

from msgspec.structs import replace

from storage.catalog import Catalog, ScrubState, Summary
from storage.entry import Entry, State, Usage, counts
from storage.records import (
    FIRST_OF_GROUP, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Damage, Found, Kind, Record, scan
)
from storage.order import bucket_of, key_of
from storage.segments import Segments, segment_name
from storage.tally import Tally

Place = tuple[int, int]  # segment, offset
_CUT_NAMES_MAX = 8
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Position:
    """What the catalog in memory stands for: every record before this place, all of them durable."""

    segment: int = 0
    offset: int = 0
    blocks: int = 0  # LIVE and DAMAGED
    sequence: int = 0
    epoch_max: int = 0
    epoch_floor: int = 0
    usage: Usage = field(default_factory=Usage)
    tally: Tally = field(default_factory=Tally)
    confirmed: Place = (0, 0)  # the volume knows of what was put or touched before it
    purged: Place = (0, 0)  # deletions before it are out of quarantine
    scrub: ScrubState = ScrubState()
    pg_epoch: int = 0  # the highest of the placement table that a leader told of
    removing: frozenset[int] = frozenset()  # segments that no entry needs any more

    def summary(self, segments: Segments) -> Summary:
        """Return the form in which this is committed. Bytes written but not yet durable are not part of it."""
        lengths = {number: length for number, length in segments.lengths().items() if number < self.segment}
        lengths = {number: length for number, length in lengths.items() if number not in self.removing}
        lengths[self.segment] = self.offset
        return Summary(
            store=segments.store, segment=self.segment, offset=self.offset, segments=lengths, blocks=self.blocks,
            sequence=self.sequence, epoch_max=self.epoch_max, epoch_floor=self.epoch_floor,
            usage=self.usage.snapshot(), confirmed=self.confirmed, purged=self.purged,
            scrub=self.scrub, pg_epoch=self.pg_epoch, removing=tuple(sorted(self.removing)),
        )

    def change(self, catalog: Catalog, block: bytes, old: Optional[Entry], new: Optional[Entry]) -> None:
        """Set a block's entry in the catalog, and count it; ``old`` is what the catalog has."""
        catalog.set(block, new)
        self.blocks += counts(new) - counts(old)
        self.usage.change(old, new)
        self.tally.change(block, bucket_of(key_of(block)), old, new)


def transition(entry: Optional[Entry], record: Record, segment: int, offset: int, good: bool = True) -> Optional[Entry]:
    """Return a block's entry after a record; ``offset`` is where the record's payload begins.

    The one place that says what records mean, for the running store and for a start alike.
    """
    kind = record.kind
    if kind in (Kind.DATA, Kind.MOVE):
        if not good:
            state = State.DAMAGED
            return entry or Entry(segment, offset, record.stored, record.plain, record.epoch, record.time_s, state)
        whole = Entry(segment, offset, record.stored, record.plain, record.epoch, record.time_s, State.LIVE)
        if entry is None:
            return whole
        if kind == Kind.MOVE:
            state = State.QUARANTINED if entry.state == State.QUARANTINED else State.LIVE
            whole = whole._replace(state=state, time_s=entry.time_s)
        return whole._replace(epoch=max(record.epoch, entry.epoch))
    if entry is None or kind == Kind.PURGE:
        return None
    if kind == Kind.TOUCH:
        state = State.DAMAGED if entry.state == State.DAMAGED else State.LIVE
        time_s = record.time_s if entry.state == State.QUARANTINED else entry.time_s
        return entry._replace(epoch=max(entry.epoch, record.epoch), state=state, time_s=time_s)
    if kind == Kind.DELETE:
        if entry.state == State.DAMAGED:
            return None  # nothing to bring back: whoever puts the block must store it
        return entry._replace(state=State.QUARANTINED, time_s=record.time_s)
    return entry


@dataclass(slots=True)
class Recovery:
    """What a start found, for the log and for tests."""

    rebuilt: bool = False
    records: int = 0
    scanned_bytes: int = 0
    cut_bytes: int = 0
    unfinished: int = 0  # bad records of the last group, which was probably never acknowledged
    damaged: list[tuple[int, int, int]] = field(default_factory=list)  # segment, offset, length


def recover(segments: Segments, catalog: Catalog, *, commit_entries: int) -> tuple[Position, Recovery]:
    """Bring the catalog up to the end of the segments, and cut a torn tail from the last one.

    Reads only what is behind the catalog's position when the catalog fits the segments, otherwise everything. Damaged
    records are named in the log and skipped; the others stay readable. Holds at most ``commit_entries`` updates.
    """
    summary = catalog.summary()
    found = Recovery()
    if not _fits(summary, segments):
        found.rebuilt = summary != Summary() or segments.used_bytes > SEGMENT_HEADER_BYTES
        if found.rebuilt:
            _log.warning("the catalog does not fit the segments: reading all %d of them", len(segments.numbers))
        catalog.clear()
        summary = Summary()
    for number in summary.removing:
        if number in segments.numbers:
            segments.remove(number)  # a crash came before this could be done
    at = Position(
        segments.active, SEGMENT_HEADER_BYTES, summary.blocks, summary.sequence, summary.epoch_max,
        summary.epoch_floor, Usage(summary.usage), catalog.tally(), summary.confirmed, summary.purged,
        summary.scrub, summary.pg_epoch,
    )
    for number in segments.numbers:
        if number >= summary.segment:
            start = summary.offset if number == summary.segment else SEGMENT_HEADER_BYTES
            for _ in _read_segment(segments, number, start, catalog, at, found):
                if catalog.pending() >= commit_entries:
                    # The old position stays: reading the same records again changes nothing.
                    _flush(catalog, replace(summary, blocks=at.blocks, usage=at.usage.snapshot()))
    if found.damaged or found.unfinished or (found.rebuilt and not segments.whole):
        # A lost record may have been a touch, and compaction copies none (but for the highest epoch of all): until
        # epochs have moved on, no block counts as older than what was seen.
        at.epoch_floor = at.epoch_max + 1
    at.offset = segments.length(segments.active)
    _flush(catalog, at.summary(segments))
    return at, found


def _flush(catalog: Catalog, summary: Summary) -> None:
    """Commit the catalog if the disk has room; a full one must not keep a server from serving what it has."""
    catalog.freeze(summary)
    try:
        catalog.flush()
    except OSError as error:
        _log.warning("catalog not committed, it stays in memory: %s", error)


def _fits(summary: Summary, segments: Segments) -> bool:
    """Whether every segment that the catalog stands for is there, whole, and no other up to its position."""
    if summary.store != segments.store:
        return False
    known = [number for number in segments.numbers if number <= summary.segment and number not in summary.removing]
    return known == sorted(summary.segments) and all(
        segments.length(number) >= length for number, length in summary.segments.items()
    )


def _read_segment(
    segments: Segments, number: int, start: int, catalog: Catalog, at: Position, found: Recovery
) -> Iterator[None]:
    """Apply a segment's records to the catalog, yielding after each."""
    salt = segments.salts[number]
    if salt is None:
        return  # said when it was opened
    end = segments.length(number)
    doubtful: list[Found | Damage] = []  # bad, and nothing yet proves that they were ever durable
    good_end = start
    for item in scan(partial(segments.read, number), salt, start, end):
        found.scanned_bytes += item.length if isinstance(item, Damage) else RECORD_HEADER_BYTES + item.record.stored
        if isinstance(item, Damage) or not item.good:
            doubtful.append(item)
            continue
        if item.record.flags & FIRST_OF_GROUP:  # written after everything before it was durable
            for bad in doubtful:
                _damaged(number, bad, catalog, at, found)
            doubtful.clear()
        _apply(number, item, catalog, at)
        found.records += 1
        good_end = item.offset + RECORD_HEADER_BYTES + item.record.stored
        yield
    if number != segments.active:
        for bad in doubtful:
            _damaged(number, bad, catalog, at, found)
    elif doubtful:
        _unfinished(segments, number, doubtful, good_end, found)


def _unfinished(
    segments: Segments, number: int, doubtful: list[Found | Damage], good_end: int, found: Recovery
) -> None:
    """The last group has bad records: almost always it was being written when the machine stopped. Cut what can be."""
    blocks = [item.record.block.hex() for item in doubtful if isinstance(item, Found)]
    shown = ", ".join(blocks[:_CUT_NAMES_MAX]) or "unknown"
    more = f" and {len(blocks) - _CUT_NAMES_MAX} more" if len(blocks) > _CUT_NAMES_MAX else ""
    what = "segment %s: the last group was not finished: %d records skipped, %d bytes cut at offset %d (blocks %s%s)"
    cut_bytes = segments.length(number) - good_end
    _log.warning(what, segment_name(number), len(doubtful), cut_bytes, good_end, shown, more)
    found.unfinished += len(doubtful)
    if cut_bytes:
        segments.cut(number, good_end)
        found.cut_bytes += cut_bytes


def _apply(number: int, item: Found, catalog: Catalog, at: Position) -> None:
    record = item.record
    old = catalog.get(record.block)
    new = transition(old, record, number, item.offset + RECORD_HEADER_BYTES, item.good)
    at.change(catalog, record.block, old, new)
    at.sequence = max(at.sequence, record.sequence)
    at.epoch_max = max(at.epoch_max, record.epoch)


def _damaged(number: int, item: Found | Damage, catalog: Catalog, at: Position, found: Recovery) -> None:
    name = segment_name(number)
    if isinstance(item, Damage):
        what = "segment %s: damaged record at offset %d: %d bytes skipped, block unknown"
        _log.error(what, name, item.offset, item.length)
        found.damaged.append((number, item.offset, item.length))
        return
    _log.error("segment %s: damaged record at offset %d: block %s", name, item.offset, item.record.block.hex())
    found.damaged.append((number, item.offset, RECORD_HEADER_BYTES + item.record.stored))
    _apply(number, item, catalog, at)
