"""Gives space back: takes blocks out of quarantine and compacts segments that hold little else than garbage.

One step at a time, each bounded, so that commits and reads go on in between. What a power cut leaves after any step is
a store that lacks nothing: a segment is removed only when all that lives in it is durable elsewhere and the catalog
durably says so.

Compaction copies blocks that live, and those in quarantine with a DELETE behind them. It copies no touches, deletions
and purges. What that costs when the catalog is lost as well: some deleted blocks come back, are listed as unconfirmed
and so collected again; and no block counts as touched before the highest epoch of all, for which a TOUCH of the name
of zeros is written, plus one.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from functools import partial

from node.wire.limits import (
    COMPACTION_DEAD, COMPACTION_DEAD_PRESSED, COMPACTION_STEP_BYTES, MIB, STORE_PRESSURE,
)
from node.wire.types import BLOCK_ID_BYTES, Buffer
from storage.entry import Entry, State
from storage.records import (
    FIRST_OF_GROUP, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Kind, Record, headers, payload_checksum, unpack_record,
)
from storage.segments import segment_name
from storage.store import BlockStore
from storage.walk import settle, walk

NO_BLOCK = bytes(BLOCK_ID_BYTES)
_ROLL_BYTES_MIN = MIB  # a shorter active segment is not worth beginning another
_PURGE_MAX = 256  # with the lock held
_WALK_RECORDS_MAX = 16_384
_STEP_RECORDS_MAX = 512
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_log = logging.getLogger(__name__)


class Cleaner:
    """Cleans one store. ``step`` from one thread at a time; commits and fetches may run beside it."""

    def __init__(self, store: BlockStore, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._journal = store.journal
        self._segments = store.journal.segments
        self._clock = clock
        self._left_alone: set[int] = set()  # segments with entries that no record leads to
        self._looked_at: object = None  # how things were when there was nothing to compact
        self._stuck = False  # space is short, and the garbage there is lies behind deletions still in quarantine
        self._moving: tuple[int, Iterator[tuple[int, Record]]] = (0, iter(()))
        self._totals = dict.fromkeys(("purged", "moved", "moved_bytes", "compacted", "freed_bytes"), 0)

    def step(self) -> int:
        """Do a bounded piece of what is due. Return 0 when nothing is, else about how many bytes it wrote, plus one.

        Raises FatalDiskError and OSError where the disk is broken; a full one only stops the compaction.
        """
        was_stuck, purged = self._stuck, self._purge()
        try:
            return self._compact() or purged or int(self._stuck and not was_stuck)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return purged

    @property
    def _capacity(self) -> int:
        return max(1, self._store.capacity_bytes)

    def _pressed(self, used_bytes: int) -> bool:
        return used_bytes > STORE_PRESSURE * self._capacity

    # -- quarantine

    def _purge(self) -> int:
        """Forget deleted blocks whose time is over, oldest deletion first, or before it where space is short."""
        journal, store = self._journal, self._store
        end = journal.end()
        place = settle(self._segments, journal.at.purged, end)
        young_s = self._clock() - store.options.quarantine_s
        held_bytes = store.stored_bytes + store.quarantined_bytes
        enough_bytes = STORE_PRESSURE * self._capacity
        if self._stuck:
            enough_bytes = min(enough_bytes, held_bytes - min(COMPACTION_STEP_BYTES, store.options.segment_bytes))
        over: list[tuple[bytes, Entry]] = []
        for seen, (record, behind) in enumerate(walk(self._segments, place, end)):
            if len(over) == _PURGE_MAX or seen == _WALK_RECORDS_MAX:
                break
            entry = journal.catalog.get(record.block) if record.kind == Kind.DELETE else None
            if entry is not None and entry.state == State.QUARANTINED and entry.time_s == record.time_s:
                if record.time_s > young_s and held_bytes <= enough_bytes:
                    break
                over.append((record.block, entry))
                held_bytes -= RECORD_HEADER_BYTES + entry.stored
            place = behind
        else:
            place = end
        with journal.writing:  # nobody may be about to bring one of them back
            purged = sum([journal.forget(block, entry) for block, entry in over])
            journal.at.purged = place
        self._totals["purged"] += purged
        return purged

    # -- compaction

    def _compact(self) -> int:
        number, records = self._moving
        if not number:
            number = self._choose()
            if not number:
                return 0
            salt = self._segments.salts[number]
            assert salt is not None
            read = partial(self._segments.read, number)
            records = headers(read, salt, SEGMENT_HEADER_BYTES, self._segments.length(number))
            self._moving = number, records
        try:
            batch, more = self._batch(number, records)
            written = self._move(batch) if batch else 1
        except OSError:
            self._moving = (0, iter(()))
            raise
        if not more:
            self._moving = (0, iter(()))
            self._finish(number)
        return written

    def _choose(self) -> int:
        """Return the segment to compact next, 0 for none. Begins another active one when the present one is garbage."""
        journal, segments = self._journal, self._segments
        usage = journal.at.usage
        pressed = self._pressed(segments.used_bytes)
        places = journal.at.purged, journal.at.confirmed
        seen = pressed, segments.used_bytes, usage.live_bytes, usage.quarantined_bytes, places
        if seen == self._looked_at:
            return 0  # there may be very many segments
        self._stuck = False
        least = COMPACTION_DEAD_PRESSED if pressed else COMPACTION_DEAD
        if segments.length(segments.active) >= min(_ROLL_BYTES_MIN, self._store.options.segment_bytes // 2):
            if self._dead_share(segments.active) >= least:
                with journal.writing:
                    journal.roll()
        end = journal.end()
        purged, confirmed = settle(segments, journal.at.purged, end), settle(segments, journal.at.confirmed, end)
        bound = min(purged[0], confirmed[0])
        able = [
            (self._dead_share(number), number)
            for number in segments.numbers
            if number < bound and number not in self._left_alone and segments.salts[number] is not None
        ]
        share, number = max(able, default=(0.0, 0))
        if share < least:
            self._looked_at = seen
            self._stuck = pressed and purged < confirmed
            return 0
        return number

    def _dead_share(self, number: int) -> float:
        length = self._segments.length(number) - SEGMENT_HEADER_BYTES
        return (self._journal.dead(number) - SEGMENT_HEADER_BYTES) / length if length > 0 else 1.0

    def _batch(
        self, number: int, records: Iterator[tuple[int, Record]]
    ) -> tuple[list[tuple[Record, Entry, bytes]], bool]:
        """Read the next blocks that are in the segment; return them and whether there may be more."""
        batch: list[tuple[Record, Entry, bytes]] = []
        size_bytes = seen = 0
        for at, record in records:
            payload_at = at + RECORD_HEADER_BYTES
            entry = self._journal.catalog.get(record.block) if record.stored else None
            if entry is not None and entry.state != State.DAMAGED and entry[:2] == (number, payload_at):
                payload = self._payload(number, at, record, entry)
                if payload is not None:
                    batch.append((record, entry, payload))
                    size_bytes += len(payload)
            seen += 1
            if size_bytes >= COMPACTION_STEP_BYTES or len(batch) >= _STEP_RECORDS_MAX or seen >= _WALK_RECORDS_MAX:
                return batch, True
        return batch, False

    def _payload(self, number: int, at: int, record: Record, entry: Entry) -> bytes | None:
        """Return a block's bytes; bad ones are not copied, but remembered as damaged."""
        salt = self._segments.salts[number]
        assert salt is not None
        data = self._segments.read(number, RECORD_HEADER_BYTES + record.stored, at)
        payload = data[RECORD_HEADER_BYTES:]
        good = unpack_record(data[:RECORD_HEADER_BYTES], salt, at) == record
        if good and len(payload) == record.stored and payload_checksum(payload) == record.checksum:
            return payload
        if entry.state == State.QUARANTINED:
            with self._journal.writing:
                self._journal.forget(record.block, entry)
        else:
            self._store.damaged(record.block, entry, "found by compaction")
        return None

    def _move(self, batch: list[tuple[Record, Entry, bytes]]) -> int:
        """Write blocks anew unless they have changed since they were read; return how many bytes that took."""
        journal = self._journal
        with journal.writing:
            group: list[tuple[Record, Buffer]] = []
            sequence = journal.at.sequence
            moved = 0
            for old, entry, payload in batch:
                now = journal.catalog.get(old.block)
                if now is None or now[:2] != entry[:2] or now.state == State.DAMAGED:
                    continue
                sequence += 1
                flags = 0 if group else FIRST_OF_GROUP
                move = old._replace(kind=int(Kind.MOVE), epoch=now.epoch, sequence=sequence, flags=flags)
                group.append((move._replace(time_s=now.time_s), payload))
                moved += 1
                if now.state == State.QUARANTINED:
                    sequence += 1
                    group.append((_bare(Kind.DELETE, old.block, now.epoch, now.time_s, sequence), b""))
            if group:
                journal.append(group)
        size_bytes = sum(RECORD_HEADER_BYTES + record.stored for record, _ in group)
        self._totals["moved"] += moved
        self._totals["moved_bytes"] += size_bytes
        return size_bytes + 1

    def _finish(self, number: int) -> None:
        """Remove a segment in which nothing is needed any more."""
        journal, usage = self._journal, self._journal.at.usage
        if usage.live(number) or usage.quarantined(number):
            _log.error("segment %s: not all of its blocks are found in it; it stays", segment_name(number))
            self._left_alone.add(number)
            return
        with journal.writing:
            epoch, sequence = journal.at.epoch_max, journal.at.sequence + 1
            mark = _bare(Kind.TOUCH, NO_BLOCK, epoch, int(self._clock()), sequence)
            journal.append([(mark._replace(flags=FIRST_OF_GROUP), b"")])
        length = self._segments.length(number)
        if journal.remove(number):
            self._totals["compacted"] += 1
            self._totals["freed_bytes"] += length
        # otherwise the catalog has no room: the segment is chosen again

    def statistics(self) -> dict[str, int]:
        """Return counters since the start."""
        return dict(self._totals)


def _bare(kind: Kind, block: bytes, epoch: int, time_s: int, sequence: int) -> Record:
    return Record(int(kind), block, 0, 0, epoch, time_s, sequence, payload_checksum(b""))
