"""The Raft log of a member on disk: one ordered stream of (term, vote), entries and marks.

``append``, ``install`` and ``compact`` write; nothing of that may be acknowledged before ``sync`` returned, and one
``sync`` makes everything before it durable (group commit). The newest record of an index wins. ``record.py`` tells the
bytes, ``scan.py`` and ``replay.py`` what a start does with them.

Order with the state that the log feeds (kept in an engine of its own): a snapshot is durable there before ``install``
or ``compact`` names it here, so the state never is behind the log's beginning. ``reconcile`` brings both together
after a start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from metadata.raft.messages import ConfState, Entry, HardState, SnapshotMeta
from metadata.raft.storage import ENTRY_OVERHEAD_BYTES, Compacted, Unavailable
from metadata.store import record as rec
from metadata.store.batches import Batches
from metadata.store.disk import Disk, FatalDiskError
from metadata.store.index import LogIndex
from metadata.store.record import Mark, RecordKind
from metadata.store.replay import Cut, Damaged, Replay, encode_segment, replay
from metadata.store.reserve import Reserve
from metadata.store.scan import TEMPORARY, segment_numbers, segment_path
from metadata.store.segment import SegmentWriter
from node.wire.errors import Code, FsError
from node.wire.limits import (
    LOG_CACHE_BYTES,
    LOG_RECORD_BYTES,
    LOG_RESERVE_BYTES,
    LOG_SEGMENT_BYTES,
    LOG_TRAILING_ENTRIES,
)

_T = TypeVar("_T")


class LogStore:
    """The log; also the core's ``Storage``. One thread uses it.

    FatalDiskError from any method: the process has to end. ``append`` and ``install`` only take memory. FsError
    (NO_SPACE) from ``sync``: the disk is full and the reserve used up; nothing is lost, nothing new is durable, and
    ``sync`` may be repeated until there is room.
    """

    def __init__(
        self, disk: Disk, path: str, cluster_id: bytes, found: Replay, segment_bytes: int, cache_bytes: int
    ) -> None:
        self._disk = disk
        self.path = path
        self._cluster_id = cluster_id
        self._segment_bytes = segment_bytes
        self._batches = Batches(disk, path, cache_bytes)
        self._mark = found.mark
        self._index = found.index
        self._hard = found.hard
        self._conf = found.mark.snapshot.conf
        self._chain = found.chain  # the segments in use that are on disk
        self._cut = found.cut
        self._next_number = found.next_number
        self._writer: SegmentWriter | None = None
        self._broken = False
        self._obsolete = False  # a mark that frees segments waits for its sync
        self._lost = (found.mark.lost_term, found.mark.lost_index)
        self._syncs = self._records = 0
        self.damage = found.damage
        self.snapshot_source: Callable[[], SnapshotMeta] | None = None
        self._reserve = Reserve(disk, f"{path}/reserve", LOG_RESERVE_BYTES)

    # --- life -------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, disk: Disk, path: str, *, cluster_id: bytes, conf: ConfState | None = None) -> None:
        """Create an empty log with its first membership, durably; EXISTS where there is one."""
        disk.make_directory(path)
        disk.sync_directory(path.rpartition("/")[0])
        if segment_numbers(disk, path):
            raise FsError(Code.EXISTS, f"{path}: there is a log already")
        mark = Mark(SnapshotMeta(0, 0, conf or ConfState()), 1, 0)
        cut = Cut(0, 0, mark, 0, 0, HardState())
        writer = SegmentWriter(disk, path, 1, encode_segment(1, cluster_id, cut, []), 0)
        writer.sync()
        writer.close()

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        cluster_id: bytes,
        sole_voter: bool,
        segment_bytes: int = LOG_SEGMENT_BYTES,
        cache_bytes: int = LOG_CACHE_BYTES,
    ) -> LogStore:
        """Open the log and bring it to a state in which everything it shows is durable.

        A torn tail is cut. Where something durable is lost: Damaged for a sole voter; a member of a larger group
        keeps what came before, and ``damaged`` holds until the rest was fetched again. NOT_FOUND where there is no
        log, UNSUPPORTED_VERSION and FOREIGN_CLUSTER where it is not for us.
        """
        if disk.exists(path):
            disk.sync_directory(path)  # a name may be there only until the next loss of power
        found = replay(disk, path, cluster_id)
        if found.damage is not None and sole_voter:
            raise found.damage
        log = cls(disk, path, cluster_id, found, segment_bytes, cache_bytes)
        try:
            for name in disk.list(path):
                if name.endswith(TEMPORARY):
                    disk.remove(f"{path}/{name}")
            if found.publish:
                log._begin(encode_segment(found.next_number, cluster_id, found.cut, found.tail))
                log.sync()
            log._remove_unused()
        except BaseException:
            log._close_files()
            raise
        return log

    def close(self) -> None:
        """Make everything durable and close the files."""
        try:
            if self._writer is not None and not self._broken:
                self.sync()
                self._put(self._writer, RecordKind.APPEND, b"")  # vouches for everything before it
                self._writer.flush()
        finally:
            self._close_files()

    def _close_files(self) -> None:
        self._batches.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._broken = True

    # --- the core's Storage -----------------------------------------------------------------------------------

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Return the hard state and the membership: that of the snapshot, unless ``set_conf`` told a later one."""
        return self._hard, self._conf

    def set_conf(self, conf: ConfState) -> None:
        """Tell the membership as of the applied state, which is kept with that state. In memory only."""
        self._conf = conf

    def first_index(self) -> int:
        """Return the index of the first entry held."""
        return self._index.first

    def last_index(self) -> int:
        """Return the index of the last entry, also of one not yet synced."""
        return self._index.last

    def term(self, index: int) -> int:
        """Return the term of an entry, or of the one before the first. Compacted, Unavailable."""
        if index < self._index.first - 1:
            raise Compacted(index)
        if index > self._index.last:
            raise Unavailable(index)
        return self._index.term(index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Return entries [low, high) as far as ``max_bytes`` reach, at least one. Compacted, Unavailable.

        Damaged where the disk no longer holds what it held at the start: the process has to end, the next start
        decides.
        """
        if low < self._index.first:
            raise Compacted(low)
        if high > self._index.last + 1:
            raise Unavailable(high)
        result: list[Entry] = []
        total, index = 0, low
        while index < high:
            position, first, last = self._index.locate(index)
            batch = self._batch(position)
            for entry in batch[index - first:min(last + 1, high) - first]:
                total += len(entry.data) + ENTRY_OVERHEAD_BYTES
                if total > max_bytes and result:
                    return result
                result.append(entry)
            index = last + 1
        return result

    def _batch(self, position: int) -> Sequence[Entry]:
        number = self._writer.number if self._writer is not None else 0
        batch = self._batches.get(position, number, self._read_current)
        if batch is None:
            file, offset = segment_path(self.path, position >> 32), position & 0xFFFFFFFF
            raise Damaged(file, offset, self._index.first_at(position))
        return batch

    def _read_current(self, length: int, offset: int) -> bytes:
        writer = self._writer
        assert writer is not None
        return self._guarded(lambda: writer.read(length, offset))

    def snapshot(self) -> SnapshotMeta:
        """Return the newest snapshot that could be sent: what ``snapshot_source`` says, where one is set."""
        return self.snapshot_source() if self.snapshot_source is not None else self._mark.snapshot

    # --- writing ----------------------------------------------------------------------------------------------

    @property
    def damaged(self) -> bool:
        """Whether entries that this member may have acknowledged are lost and not yet durable again.

        Then it must not vote and not campaign, even after a restart.
        """
        return self._lost != (0, 0)

    @property
    def full(self) -> bool:
        """Whether the disk ran full and the reserve is in use: take nothing new, compact, ``regain``."""
        return not self._reserve.held

    def regain(self) -> bool:
        """Try to take the reserve back; return whether it is held."""
        return self._reserve.regain()

    def append(self, hard: HardState | None, entries: Sequence[Entry]) -> None:
        """Write a new hard state and entries, as one. From the first index on older entries are replaced.

        Entries below the log's beginning are skipped: they are in the snapshot. A hard state that only raises
        ``commit`` needs no sync.
        """
        if hard is not None:
            assert hard.term > self._hard.term or (
                hard.term == self._hard.term and self._hard.vote in (0, hard.vote)
            ), (hard, self._hard)
        if entries and entries[0].index < self._index.first:
            entries = entries[self._index.first - entries[0].index:]
        if entries:
            first = entries[0].index
            assert first <= self._index.last + 1, "a gap in the log"
            assert first > self._hard.commit, ("a committed entry would be replaced", first, self._hard.commit)
        writer = self._ready()
        if hard is not None:
            self._hard = hard
        if entries:
            self._append(writer, entries)
            if self._mark.lost_index and self._reaches_lost():
                mark = msgspec.structs.replace(self._mark, reset=False, lost_index=0, lost_term=0)
                self._put_mark(writer, mark)
        elif hard is not None:
            self._put(writer, RecordKind.APPEND, b"")

    def _append(self, writer: SegmentWriter, entries: Sequence[Entry]) -> None:
        payload = rec.entries_encoder.encode(entries)
        if len(payload) > LOG_RECORD_BYTES and len(entries) > 1:
            half = len(entries) // 2
            self._append(writer, entries[:half])
            self._append(writer, entries[half:])
            return
        position = rec.position_of(writer.number, writer.end)
        self._index.append(entries, position)
        self._put(writer, RecordKind.APPEND, payload)
        self._batches.remember(position, entries, len(payload))

    def install(self, snapshot: SnapshotMeta) -> None:
        """Let the log begin anew behind a snapshot that is durable elsewhere; every entry goes.

        An older snapshot than the log knows changes nothing. To be followed by ``sync``.
        """
        if snapshot.index > self._mark.snapshot.index:
            self.restart_behind(snapshot)

    def restart_behind(self, snapshot: SnapshotMeta) -> None:
        """Like ``install``, whatever the log knows; for a start that finds state and log apart."""
        writer = self._ready()
        hard, mark = self._hard, self._mark
        self._index = LogIndex(snapshot.index, snapshot.term)
        self._batches.clear()
        term = max(hard.term, snapshot.term)
        self._hard = HardState(term, hard.vote if term == hard.term else 0, max(hard.commit, snapshot.index))
        self._conf = snapshot.conf
        lost = (0, 0) if self._reaches_lost() else (mark.lost_index, mark.lost_term)
        self._put_mark(writer, Mark(snapshot, snapshot.index + 1, snapshot.term, True, *lost))
        self._obsolete = True

    def compact(self, snapshot: SnapshotMeta, trailing: int = LOG_TRAILING_ENTRIES) -> None:
        """Let the log begin ``trailing`` entries before what a snapshot, durable elsewhere, holds. Durable on return.

        ``snapshot`` names an applied index of this log. Whole segments are removed.
        """
        if snapshot.index <= self._mark.snapshot.index:
            return
        index, mark = self._index, self._mark
        assert index.first - 1 <= snapshot.index <= index.last, (snapshot.index, index.last)
        writer = self._ready()
        first = max(index.first, snapshot.index + 1 - trailing)
        before_term = index.term(first - 1)
        self._put_mark(writer, Mark(snapshot, first, before_term, False, mark.lost_index, mark.lost_term))
        index.drop_before(first, before_term)
        self._obsolete = True
        self.sync()

    def sync(self) -> None:
        """Make everything written so far durable, with one sync of one file. NO_SPACE: may be repeated."""
        writer = self._writer
        if self._broken:
            raise FatalDiskError(f"{self.path}: the log is closed, or its disk has failed")
        if writer is None:
            return  # nothing was written since the start, which left everything durable
        self._guarded(writer.sync)
        self._syncs += 1
        if writer.number not in self._chain[-1:]:
            self._chain.append(writer.number)
        self._lost = (self._mark.lost_term, self._mark.lost_index)
        if self._obsolete:
            self._obsolete = False
            self._remove_unused()
            self._reserve.regain()
        if writer.end >= self._segment_bytes:
            self._roll(writer)

    # --- segments ---------------------------------------------------------------------------------------------

    def _ready(self) -> SegmentWriter:
        """Return the segment to write to, created where this is the first write since the start."""
        if self._broken:
            raise FatalDiskError(f"{self.path}: the log is closed, or its disk has failed")
        return self._writer or self._begin(encode_segment(self._next_number, self._cluster_id, self._cut, []))

    def _begin(self, content: bytes) -> SegmentWriter:
        """Go on in a new segment; where there is a current one, everything in it is durable."""
        if self._writer is not None:
            self._writer.close()
        writer = SegmentWriter(self._disk, self.path, self._next_number, content, self._segment_bytes)
        self._writer = writer
        self._next_number += 1
        return writer

    def _roll(self, writer: SegmentWriter) -> None:
        index = self._index
        cut = Cut(writer.number, writer.end, self._mark, index.last, index.last_term, self._hard)
        self._begin(encode_segment(self._next_number, self._cluster_id, cut, []))

    def _put(self, writer: SegmentWriter, kind: int, payload: bytes) -> None:
        index = self._index
        writer.append(
            rec.encode_record(
                writer.number, writer.end, kind, writer.stable, index.last, index.last_term, self._hard, payload
            )
        )
        self._records += 1
        if writer.crowded:
            try:
                self._guarded(writer.flush)
            except FsError as error:
                if error.code != Code.NO_SPACE:  # sync will say it
                    raise

    def _put_mark(self, writer: SegmentWriter, mark: Mark) -> None:
        self._mark = mark
        self._put(writer, RecordKind.MARK, msgspec.msgpack.encode(mark))

    def _guarded(self, action: Callable[[], _T]) -> _T:
        """Run; on a full disk once more, without the reserve and without zeros ahead. Remember a disk that failed."""
        try:
            try:
                return action()
            except FsError as error:
                if error.code != Code.NO_SPACE:
                    raise
                self._reserve.release()
                return action()
        except FatalDiskError:
            self._broken = True
            raise

    def _remove_unused(self) -> None:
        """Remove the files that no entry held, and no start, needs any more."""
        oldest = self._index.oldest_position()
        needed = self._chain[-1] if oldest is None else min(oldest >> 32, self._chain[-1])
        self._chain = [number for number in self._chain if number >= needed]
        unused = [number for number in segment_numbers(self._disk, self.path) if number not in self._chain]
        for number in unused:
            self._batches.forget_segment(number)
            self._disk.remove(segment_path(self.path, number))
        if unused:
            self._disk.sync_directory(self.path)

    def _reaches_lost(self) -> bool:
        index, mark = self._index, self._mark
        return (index.last_term, index.last) >= (mark.lost_term, mark.lost_index)

    def statistics(self) -> dict[str, int]:
        """Return sizes and counters, in bytes and counts."""
        writer = self._writer
        return {
            "first_index": self._index.first,
            "last_index": self._index.last,
            "segments": len(self._chain),
            "batches": self._index.batches(),
            "cached_bytes": self._batches.cached_bytes,
            "unsynced_bytes": writer.end - writer.stable if writer is not None else 0,
            "records": self._records,
            "syncs": self._syncs,
            "full": int(self.full),
            "damaged": int(self.damaged),
        }


def reconcile(log: LogStore, applied: SnapshotMeta) -> None:
    """Bring the log in line with the applied state, after a start and before the core reads either. Durable.

    A state ahead of the log, or of another term at its index, came from a snapshot whose installation was cut short,
    or replaces what a damaged log lost: the log begins anew behind it. A state behind the log's beginning is
    FsError(IO): it cannot be completed from here.
    """
    if applied.index < log.first_index() - 1:
        raise FsError(
            Code.IO, f"{log.path}: the log begins at {log.first_index()}, the state ends at {applied.index}"
        )
    if applied.index > log.last_index() or log.term(applied.index) != applied.term:
        log.restart_behind(applied)
    else:
        hard, _ = log.initial_state()
        if hard.commit < applied.index:
            log.append(HardState(hard.term, hard.vote, applied.index), [])
    log.sync()
