"""The block store of one chunk server: segments are the truth, the catalog finds blocks in them.

All of it is synchronous, for the caller to run where it likes. One thread at a time may ``commit``; ``fetch`` and
``checkpoint`` may run beside it in any threads.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Optional

from node.host.disk import Disk
from node.wire.errors import Code, FsError
from node.wire.limits import (
    BLOCK_STORED_BYTES_MAX, CATALOG_LAG_BYTES_MAX, CATALOG_PENDING_MAX, QUARANTINE_S,
    SEGMENT_BYTES_MAX, STORE_RESERVE_BYTES, SUSPECTS_KEPT_MAX,
)
from node.wire.types import BLOCK_ID_BYTES, Buffer
from storage import block as blocks
from storage.catalog import Catalog
from storage.entry import Entry, State
from storage.journal import Journal
from storage.order import buckets_of
from storage.records import (
    FIRST_OF_GROUP, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Kind, Record, payload_checksum
)
from storage.recover import Place, transition
from storage.segments import Segments, segment_name
from storage.tally import Sum
from storage.walk import settle, walk

EPOCH_MAX = (1 << 32) - 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_BRINGS = frozenset({Kind.DATA, Kind.TOUCH, Kind.MOVE})
_WALK_RECORDS_MAX = 16_384
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Operation:
    """One change to one block, to be committed together with others. ``code`` is the outcome: 0 or an errors.Code.

    DATA is put_or_touch: ``payload`` must have been verified (``storage.block.verify``) by the caller. TOUCH answers
    MISSING_BLOCK where the block is not here whole. DELETE answers 0 when the block is deleted now, MISSING_BLOCK when
    it was not here, STALE_EPOCH when it was touched after ``epoch``.
    """

    kind: Kind
    block: bytes
    epoch: int
    plain: int = 0
    payload: Buffer = b""
    code: int = 0
    outright: bool = False  # DELETE whatever the touch epoch: the server is no longer in the group's row


@dataclass(slots=True)
class StoreOptions:
    """``capacity_bytes`` 0: whatever the disk has."""

    capacity_bytes: int = 0
    segment_bytes: int = SEGMENT_BYTES_MAX
    reserve_bytes: int = STORE_RESERVE_BYTES
    commit_entries: int = CATALOG_PENDING_MAX
    compaction_bytes: int = 0  # of the disk, kept free of data beyond the reserve so that segments can be compacted
    quarantine_s: float = QUARANTINE_S  # how long a deleted block can be brought back, when there is room for it
    deletion: bool = True


class BlockStore:
    """Blocks on one disk.

    ``clock`` gives seconds since the Unix epoch, ``random`` that many random bytes. Opening recovers: when it returns,
    everything that was ever acknowledged is readable, or named as damaged in the log. Raises FOREIGN_CLUSTER and
    UNSUPPORTED_VERSION for data that is not ours to read.
    """

    def __init__(
        self, disk: Disk, catalog: Catalog, cluster: bytes, *, clock: Callable[[], float],
        random: Callable[[int], bytes], options: Optional[StoreOptions] = None,
    ) -> None:
        self.options = options or StoreOptions()
        self._clock = clock
        self._catalog = catalog
        self._segments = Segments(disk, cluster, max_bytes=self.options.segment_bytes, random=random)
        self.journal = Journal(self._segments, catalog, commit_entries=self.options.commit_entries)
        self._at, self.recovery = self.journal.at, self.journal.recovery
        self._listed: Place = (0, 0)  # up to where unconfirmed blocks were listed since this was opened
        self._bad: dict[bytes, None] = {}  # found damaged and not yet reported, in the order found
        self.on_damage: Callable[[bytes], None] = lambda block: None  # called in any thread, when a block turns out bad
        for bucket in self._at.tally.with_damage():  # perhaps nobody was told
            for block, entry in catalog.scan(buckets=range(bucket, bucket + 1)):
                if entry.state == State.DAMAGED:
                    self._bad[block] = None
        self._totals = dict.fromkeys(("stored", "touched", "deleted", "commits", "fetched", "corrupt", "refused"), 0)

    @property
    def identity(self) -> bytes:
        """What this store on this disk is called, 16 bytes. A wiped disk has another one."""
        return self._segments.store

    @property
    def block_count(self) -> int:
        """How many blocks are here, without those in quarantine."""
        return self._at.blocks

    @property
    def used_bytes(self) -> int:
        """How much the segments take on the disk."""
        return self._segments.used_bytes

    @property
    def stored_bytes(self) -> int:
        """How much blocks take that nobody deleted. The rest of ``used_bytes`` comes back when it is needed."""
        return self._at.usage.live_bytes + SEGMENT_HEADER_BYTES * len(self._segments.lengths())

    @property
    def capacity_bytes(self) -> int:
        """How much the segments may take: what is configured, but never more than the disk has for them."""
        disk = self.used_bytes + max(0, self._free_bytes())
        return min(self.options.capacity_bytes, disk) if self.options.capacity_bytes else disk

    @property
    def full(self) -> bool:
        """Whether a block of full size would be refused."""
        return self._room() < BLOCK_STORED_BYTES_MAX + RECORD_HEADER_BYTES

    @property
    def corrupt_count(self) -> int:
        """How many times a block was found damaged since the start."""
        return self._totals["corrupt"]

    # -- writing

    def commit(self, operations: Sequence[Operation]) -> None:
        """Do all operations whose code is 0 and set their codes. Those still 0 are durable when this returns.

        A full disk (or the configured capacity) gives NO_SPACE to data and leaves everything else as it was. Raises
        FatalDiskError, OSError when the disk fails otherwise: then no operation may be acknowledged and the process
        must end.
        """
        with self.journal.writing:
            rest = [operation for operation in operations if not operation.code]
            while rest:
                group = self._plan(rest)
                try:
                    self._write(group)
                    return
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                rest = self._refuse(rest, group)

    def _plan(self, operations: Iterable[Operation]) -> list[tuple[Operation, Record]]:
        """Decide what each operation writes, and the codes of those that write nothing."""
        group: list[tuple[Operation, Record]] = []
        planned: dict[bytes, Optional[Entry]] = {}  # as it will be when the group is written
        room: Optional[int] = None
        sequence, time_s = self._at.sequence, int(self._clock())
        for operation in operations:
            name = operation.block
            entry = planned[name] if name in planned else self._catalog.get(name)
            kind, operation.code = self._decide(operation, entry)
            if kind is None:
                continue
            payload: Buffer = b""
            if kind == Kind.DATA:
                payload = operation.payload
                cost = memoryview(payload).nbytes + RECORD_HEADER_BYTES
                room = self._room() if room is None else room
                if room < cost:
                    self._totals["refused"] += 1
                    operation.code = Code.NO_SPACE
                    continue
                room -= cost
            sequence += 1
            stored, plain = memoryview(payload).nbytes, operation.plain if kind == Kind.DATA else 0
            checksum = payload_checksum(payload)
            flags = 0 if group else FIRST_OF_GROUP
            epoch = operation.epoch
            if kind != Kind.DELETE and entry is not None:
                epoch = max(epoch, entry.epoch)  # so that the last record of a block carries its touch epoch
            record = Record(kind, name, stored, plain, epoch, time_s, sequence, checksum, flags)
            planned[name] = transition(entry, record, 0, 0)
            group.append((operation, record))
        return group

    def _decide(self, operation: Operation, entry: Optional[Entry]) -> tuple[Optional[Kind], int]:
        """Return which record an operation needs (None: none) and its code should that be written."""
        whole = entry is not None and entry.state != State.DAMAGED
        if operation.kind == Kind.DELETE:
            return self._decide_delete(operation, entry)
        if operation.kind == Kind.DATA and not whole:
            return Kind.DATA, 0
        if entry is None or not whole:
            return None, Code.MISSING_BLOCK
        assert operation.kind in (Kind.DATA, Kind.TOUCH), operation.kind
        durable = entry.epoch >= operation.epoch and entry.state == State.LIVE
        return (None if durable else Kind.TOUCH), 0

    def _decide_delete(self, operation: Operation, entry: Optional[Entry]) -> tuple[Optional[Kind], int]:
        if not self.options.deletion:
            return None, Code.NOT_SUPPORTED
        if entry is None or entry.state == State.QUARANTINED:
            return None, Code.MISSING_BLOCK
        if not operation.outright and max(entry.epoch, self._at.epoch_floor) > operation.epoch:
            return None, Code.STALE_EPOCH
        return Kind.DELETE, 0

    def _room(self) -> int:
        """Return how many bytes of data the store still takes."""
        free, capacity = self._free_bytes(), self.options.capacity_bytes
        return min(free, capacity - self.used_bytes) if capacity else free

    def _free_bytes(self) -> int:
        """Return how much of the disk data may still take."""
        return self._segments.free_bytes() - self.options.reserve_bytes - self.options.compaction_bytes

    def _write(self, group: list[tuple[Operation, Record]]) -> None:
        """Write and sync; only then does the catalog, and so anybody, see it."""
        if not group:
            return
        self.journal.append([(record, operation.payload) for operation, record in group])
        self._totals["commits"] += 1
        for _, record in group:
            if record.kind != Kind.TOUCH and self._bad:
                self._bad.pop(record.block, None)  # stored anew, or nobody needs it here
            self._totals[{Kind.DATA: "stored", Kind.TOUCH: "touched"}.get(Kind(record.kind), "deleted")] += 1

    def _refuse(self, operations: list[Operation], group: list[tuple[Operation, Record]]) -> list[Operation]:
        """A full disk refused the group: give up its data, or all of it when there was none; return what may go on."""
        data = {id(operation) for operation, record in group if record.kind == Kind.DATA}
        refused = data or {id(operation) for operation, _ in group}
        for operation in operations:
            if id(operation) in refused:
                operation.code = Code.NO_SPACE
        self._totals["refused"] += len(refused)
        done = refused | {id(operation) for operation in operations if operation.code == Code.NO_SPACE}
        return [operation for operation in operations if id(operation) not in done]

    # -- reading

    def locate(self, block: bytes) -> Entry:
        """Return where a block is. Raises MISSING_BLOCK, or CORRUPT_BLOCK when it is known to be damaged."""
        entry = self._catalog.get(block) if len(block) == BLOCK_ID_BYTES else None
        if entry is None:
            raise FsError(Code.MISSING_BLOCK, f"block {block.hex()} is not here")
        if entry.state == State.DAMAGED:
            raise FsError(Code.CORRUPT_BLOCK, f"block {block.hex()} is damaged here")
        return entry

    def fetch(self, block: bytes, offset: int = 0, length: int = 0) -> bytes:
        """Return an encoded block, or the encoded partial block that covers a range; length 0 means to its end.

        Every piece in it was verified. Raises MISSING_BLOCK, CORRUPT_BLOCK (then the log names the block and it counts
        as damaged from now on), INVALID for a range outside.
        """
        while True:
            entry = self.locate(block)
            try:
                frame = self._read(block, entry, offset, length)
                self._totals["fetched"] += 1
                return frame
            except FsError as error:
                if error.code == Code.CORRUPT_BLOCK:
                    self.damaged(block, entry, error.detail)
                raise
            except FileNotFoundError:
                if self._catalog.get(block) == entry:
                    self.damaged(block, entry, "segment file is missing")
                    raise FsError(Code.CORRUPT_BLOCK, f"block {block.hex()} was in a segment that is missing") from None
            except OSError as error:
                self.damaged(block, entry, f"read failed: {error}")
                raise FsError(Code.CORRUPT_BLOCK, f"block {block.hex()} cannot be read: {error}") from error

    def _read(self, block: bytes, entry: Entry, offset: int, length: int) -> bytes:
        def read(count: int, at: int) -> bytes:
            return self._segments.read(entry.segment, count, entry.offset + at)

        def hint(count: int, at: int) -> None:
            self._segments.fetch(entry.segment, count, entry.offset + at)

        encoded = blocks.read_encoded(read, hint, block, entry.stored, entry.plain, offset, length)
        return _choose(encoded, blocks.PieceTable(encoded, block), offset, length)

    def intact(self, block: bytes) -> bool:
        """Read a block whole, down to its hash. Where it is missing or damaged it is one of ``bad_blocks`` from then
        on, reported to the metadata service."""
        try:
            entry = self.locate(block)
        except FsError:
            if len(self._bad) < SUSPECTS_KEPT_MAX:
                self._bad[block] = None
            return False
        try:
            blocks.verify(self.fetch(block), block, entry.plain)
        except FsError as error:
            if block not in self._bad:
                self.damaged(block, entry, error.detail)
            return False
        return True

    def damaged(self, block: bytes, entry: Entry, detail: str) -> None:
        """Remember that a block's bytes are bad, so that the next put stores it anew, and say so in the log."""
        now: Optional[Entry] = entry
        while now is not None and now[:2] == entry[:2] and now.state == State.LIVE:  # it may be touched meanwhile
            if self.journal.replace(block, now, now._replace(state=int(State.DAMAGED))):
                break
            now = self._catalog.get(block)
        self._totals["corrupt"] += 1
        self._bad[block] = None
        self.on_damage(block)
        where = f"{segment_name(entry.segment)} at offset {entry.offset}"
        _log.error("corrupt block %s in segment %s: %s", block.hex(), where, detail)

    def current(self, pg_epoch: int) -> bool:
        """Note the epoch of a leader's placement table; whether no leader told of a later one. Remembered lazily."""
        with self.journal.index:
            self._at.pg_epoch = max(self._at.pg_epoch, pg_epoch)
            return self._at.pg_epoch == pg_epoch

    # -- what the volume does not know of

    @property
    def quarantined_bytes(self) -> int:
        """How much deleted blocks take that can still be brought back."""
        return self._at.usage.quarantined_bytes

    @property
    def unconfirmed_bytes(self) -> int:
        """About how much was written since the last confirmed place; 0 exactly where ``unconfirmed`` has no more."""
        end = self.journal.end()
        at = settle(self._segments, self._at.confirmed, end)
        if at[0] >= end[0]:
            return max(0, end[1] - at[1])
        return sum(length for number, length in self._segments.lengths().items() if number >= at[0])

    def unconfirmed(self, epoch: int, limit: int) -> tuple[list[bytes], Place, bool]:
        """Return blocks that were put, touched or brought back since the last ``confirm``, oldest first (rule 17).

        Only those that nobody touched after ``epoch``: at the first younger one the list ends. With it comes the place
        to confirm, and whether there is more now. At most ``limit`` blocks, and a bounded stretch of the segments.
        """
        end = self.journal.end()
        place = settle(self._segments, self._at.confirmed, end)
        found: dict[bytes, None] = {}
        for seen, (record, behind) in enumerate(walk(self._segments, place, end)):
            if len(found) >= limit or seen >= _WALK_RECORDS_MAX:
                return list(found), self._list(place), True
            entry = self._catalog.get(record.block) if record.kind in _BRINGS else None
            if entry is not None and entry.state != State.QUARANTINED and record.epoch >= entry.epoch:
                if entry.epoch > epoch:
                    return list(found), self._list(place), False
                found[record.block] = None
            place = behind
        return list(found), self._list(end), False

    def _list(self, place: Place) -> Place:
        self._listed = max(self._listed, place)
        return place

    def confirm(self, place: Place) -> None:
        """The volume knows of every block that ``unconfirmed`` listed before this place, since this store was
        opened: where its catalog was lost, blocks have come back that were listed to nobody since."""
        with self.journal.index:
            end = self._at.segment, self._at.offset
            if self._at.confirmed < place <= min(end, self._listed):
                self._at.confirmed = place

    def listed(self, after: bytes, limit: int) -> list[tuple[bytes, Entry]]:
        """Return the blocks behind ``after`` in the order of ``storage.order``, in whatever state."""
        return list(islice(self._catalog.scan(after), limit))

    def find(self, block: bytes) -> Optional[Entry]:
        """Return what is known of a block, None when it is not here."""
        return self._catalog.get(block)

    # -- groups

    def group_sum(self, group: int, groups: int) -> Sum:
        """Return what the blocks of a group add up to."""
        with self.journal.index:
            return self._at.tally.sum(buckets_of(group, groups))

    def group_blocks(
        self, group: int, groups: int, after: bytes, limit: int, states: Collection[int] = (State.LIVE,)
    ) -> list[tuple[bytes, Entry]]:
        """Return the blocks of a group that live (or have one of these states), behind ``after`` in the order of
        ``storage.order``. Any thread."""
        found = self._catalog.scan(after, buckets_of(group, groups))
        return list(islice((item for item in found if item[1].state in states), limit))

    # -- damage

    def bad_blocks(self, limit: int) -> tuple[bytes, ...]:
        """Return blocks found damaged and not yet ``reported``."""
        return tuple(list(self._bad)[:limit])

    def report(self, block: bytes) -> None:
        """A block that is known to be damaged was met again: say so once more."""
        self._bad.setdefault(block)

    def reported(self, bad: Iterable[bytes]) -> None:
        """Forget bad blocks that the metadata service knows about now."""
        for block in bad:
            self._bad.pop(block, None)

    # -- the catalog's commits

    @property
    def checkpoint_due(self) -> bool:
        """Whether so much has collected that a start would take long or memory be full."""
        lag_bytes = self.journal.lag_bytes()
        return lag_bytes >= CATALOG_LAG_BYTES_MAX or self._catalog.pending() >= self.options.commit_entries

    @property
    def checkpoint_wanted(self) -> bool:
        """Whether anything has collected."""
        at, flushed = self._at, self._catalog.summary()
        return self._catalog.pending() > 0 or (at.scrub, at.pg_epoch) != (flushed.scrub, flushed.pg_epoch)

    def checkpoint(self) -> None:
        """Commit the catalog. Nothing depends on it but the length of the next start; a full disk is only logged."""
        self.journal.checkpoint()

    def close(self) -> None:
        """Commit the catalog and release everything. No commit or fetch may be running."""
        self.journal.close()

    def statistics(self) -> dict[str, int]:
        """Return counters since the start and the present sizes."""
        return {
            **self._totals, "blocks": self._at.blocks, "used_bytes": self.used_bytes, "stored_bytes": self.stored_bytes,
            "quarantined_bytes": self.quarantined_bytes, "unconfirmed_bytes": self.unconfirmed_bytes,
            "segments": len(self._segments.numbers), "catalog_pending": self._catalog.pending(),
        }


def _choose(encoded: bytes, table: blocks.PieceTable, offset: int, length: int) -> bytes:
    """Return what of an encoded (or already partial) block covers the range, every piece verified."""
    first, count = table.cover(offset, length)
    start, end = table.place(first, count)
    view = memoryview(encoded)
    for index in range(first, first + count):
        table.stored(view, index)
    if (first, count) == (table.first, table.count):
        return encoded
    return b"".join((table.head(first, count), view[start:end]))
