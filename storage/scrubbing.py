"""Reads everything again and again, so that bytes that went bad are found while there are other copies.

A pass goes through the segments in their order, from the cursor that the catalog keeps. Every block whose record is
found in its place has its payload's checksum, its pieces and its BLAKE3 verified. One that is bad counts as damaged
from then on (it is never served again) and is reported; a bad one in quarantine is forgotten. Where a record's header
is bad or a stretch cannot be read, the blocks that the catalog has there are looked at one by one: what is whole is
written anew, as compaction does, so that the next rebuild of the catalog finds it.

Cursor and marks are committed together with the catalog: after a crash either both are there, or the stretch is read
again. What is written during a pass belongs to the next one; what compaction moves meanwhile was verified by it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Union

from msgspec.structs import replace

from node.wire.errors import Code, FsError
from node.wire.limits import MIB, SCRUB_INTERVAL_S, SCRUB_STEP_BYTES
from node.wire.types import Buffer
from storage import block as blocks
from storage.catalog import ScrubState
from storage.entry import Entry, State
from storage.records import (
    FIRST_OF_GROUP, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Damage, Found, Kind, Record, payload_checksum,
    scan_payloads,
)
from storage.segments import segment_name
from storage.store import BlockStore

_WINDOW_BYTES = 2 * MIB
_IDLE = (0, 0)
_log = logging.getLogger(__name__)

Item = tuple[Union[Found, Damage], Buffer]


class Scrubber:
    """Scrubs one store. ``step`` from one thread at a time; commits, fetches and compaction may run beside it."""

    def __init__(self, store: BlockStore, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._journal = store.journal
        self._segments = store.journal.segments
        self._clock = clock
        self._reading: tuple[int, Iterator[Item]] = (0, iter(()))
        self._restart = False
        self._totals = dict.fromkeys(("verified", "verified_bytes", "damaged", "rewritten", "passes"), 0)

    @property
    def state(self) -> ScrubState:
        """How far the pass is; its place is (0, 0) between passes."""
        return self._journal.at.scrub

    @property
    def total_bytes(self) -> int:
        """How much the pass under way (or the last one) has to read."""
        last = self.state.until[0]
        return sum(length for number, length in self._segments.lengths().items() if number <= last)

    def restart(self) -> None:
        """Have the next step begin a pass over everything. Any thread."""
        self._restart = True

    def step(self) -> int:
        """Verify about SCRUB_STEP_BYTES; return how many bytes were read, 0 when no pass is due yet."""
        state = self.state
        if self._restart or state.place == _IDLE:
            if not self._restart and self._clock() - state.begun_s < SCRUB_INTERVAL_S:
                return 0
            self._restart = False
            state = self._begin(state)
        number, offset = state.place
        if number not in self._segments.lengths():
            return self._next(state)
        try:
            if self._segments.salts[number] is None:  # both its headers are bad: its records cannot be told apart
                damaged = self._one_by_one(number, 0, 1 << 32)
                return self._next(replace(state, damaged=state.damaged + damaged))
            return self._verify(state, number, offset)
        except (FileNotFoundError, KeyError):
            return self._next(state)  # compacted meanwhile
        except OSError as error:
            _log.error("segment %s cannot be read at offset %d: %s", segment_name(number), offset, error)
            damaged = self._one_by_one(number, offset, 1 << 32)
            return self._next(replace(state, damaged=state.damaged + damaged))

    def _begin(self, state: ScrubState) -> ScrubState:
        self._reading = (0, iter(()))
        first = min(self._segments.numbers)
        begun = replace(
            state, place=(first, SEGMENT_HEADER_BYTES), until=self._journal.end(), damaged=0, done_bytes=0,
            begun_s=int(self._clock()),
        )
        self._set(begun)
        return begun

    def _set(self, state: ScrubState) -> None:
        with self._journal.index:
            self._journal.at.scrub = state

    def _next(self, state: ScrubState) -> int:
        """Go on with the next segment, or end the pass."""
        self._reading = (0, iter(()))
        behind = [number for number in self._segments.numbers if state.place[0] < number <= state.until[0]]
        if behind:
            self._set(replace(state, place=(behind[0], SEGMENT_HEADER_BYTES)))
            return 1
        self._set(replace(state, place=_IDLE, passes=state.passes + 1))
        self._totals["passes"] += 1
        what = "scrubbed everything: %d bytes read, %d blocks found damaged"
        _log.info(what, state.done_bytes, state.damaged)
        return 1

    def _verify(self, state: ScrubState, number: int, offset: int) -> int:
        if self._reading[0] != number:
            salt = self._segments.salts[number]
            assert salt is not None
            end = self._segments.length(number) if number != state.until[0] else state.until[1]
            read = partial(self._segments.read, number)
            self._reading = number, scan_payloads(read, salt, offset, end, _WINDOW_BYTES)
        read_bytes = damaged = 0
        for item, payload in self._reading[1]:
            size = item.length if isinstance(item, Damage) else RECORD_HEADER_BYTES + item.record.stored
            offset = item.offset + size
            read_bytes += size
            if isinstance(item, Damage):
                _log.error("segment %s: no record at offset %d", segment_name(number), item.offset)
                damaged += self._one_by_one(number, item.offset, offset)
            elif item.record.stored:
                damaged += not self._good(number, item, payload)
            if read_bytes >= SCRUB_STEP_BYTES:
                break
        state = replace(
            state, place=(number, offset), done_bytes=state.done_bytes + read_bytes, damaged=state.damaged + damaged
        )
        self._totals["verified_bytes"] += read_bytes
        if read_bytes < SCRUB_STEP_BYTES:
            return self._next(state) + read_bytes
        self._set(state)
        return read_bytes

    def _good(self, number: int, item: Found, payload: Buffer) -> bool:
        """Whether a block is as it should be, or is not here (any more) at all."""
        record = item.record
        entry = self._journal.catalog.get(record.block)
        if entry is None or entry[:2] != (number, item.offset + RECORD_HEADER_BYTES):
            return True  # garbage
        if entry.state == State.DAMAGED:
            self._store.report(record.block)
            return True  # known
        self._totals["verified"] += 1
        try:
            if not item.good:
                raise FsError(Code.CORRUPT_BLOCK, "the payload's checksum is wrong")
            blocks.verify(payload, record.block, entry.plain)
        except FsError as error:
            self._bad(record.block, entry, error.detail)
            return False
        return True

    def _bad(self, block: bytes, entry: Entry, detail: str) -> None:
        self._totals["damaged"] += 1
        if entry.state == State.QUARANTINED:
            with self._journal.writing:
                self._journal.forget(block, entry)
        else:
            self._store.damaged(block, entry, f"found by scrubbing: {detail}")

    def _one_by_one(self, number: int, start: int, end: int) -> int:
        """Look at every block that the catalog has in a stretch whose records are not to be read; return how many were
        damaged. Reads the whole catalog."""
        damaged = 0
        for block, entry in self._journal.catalog.scan():
            if entry.segment != number or not start <= entry.offset < end or entry.state == State.DAMAGED:
                continue
            try:
                payload = self._segments.read(number, entry.stored, entry.offset)
                blocks.verify(payload, block, entry.plain)
            except FileNotFoundError:
                return damaged
            except (FsError, OSError) as error:
                self._bad(block, entry, str(error))
                damaged += 1
            else:
                self._rewrite(block, entry, payload)
        return damaged

    def _rewrite(self, block: bytes, entry: Entry, payload: bytes) -> None:
        """Write a block anew whose record is bad though its bytes are not."""
        with self._journal.writing:
            now = self._journal.catalog.get(block)
            if now is None or now[:2] != entry[:2] or now.state != State.LIVE:
                return
            record = Record(
                int(Kind.MOVE), block, now.stored, now.plain, now.epoch, now.time_s, self._journal.at.sequence + 1,
                payload_checksum(payload), FIRST_OF_GROUP,
            )
            self._journal.append([(record, payload)])
        self._totals["rewritten"] += 1

    def statistics(self) -> dict[str, int]:
        """Return counters since the start."""
        return dict(self._totals)
