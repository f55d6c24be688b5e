"""From the records on disk to the log's state, and to what has to be written before it may be relied on.

Records behind the last one that a later record vouches for are legible but perhaps only in the page cache, which after
a failed sync shows what the disk never got. So they are not trusted where they are: the next segment repeats them and
cuts its predecessor before them. That also cuts a torn tail, and nothing is ever changed in place.

Loss does not matter where the log behind it stands on its own, because it begins behind the loss (compaction,
snapshot). Otherwise the state before the loss is kept, with a mark of what may have been acknowledged beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from metadata.raft.messages import HardState
from metadata.store import record as rec
from metadata.store.disk import Disk
from metadata.store.index import LogIndex
from metadata.store.record import Base, Mark, Record, RecordKind
from metadata.store.scan import Hole, Segment, read_chain, read_segment, scan, segment_numbers, segment_path, stable_end
from node.wire.errors import Code, FsError


class Damaged(FsError):
    """A file of the log lost, from ``offset`` on, what had been durable. ``first_lost_index``: the first entry of the
    log that cannot be told any more."""

    def __init__(self, file: str, offset: int, first_lost_index: int) -> None:  # noqa: B042 (never pickled)
        super().__init__(
            Code.IO, f"{file}: damaged at offset {offset}: the log is lost from entry {first_lost_index} on"
        )
        self.file = file
        self.offset = offset
        self.first_lost_index = first_lost_index


class State:
    """What the records so far amount to. ``mark`` is None while no record told where the log begins."""

    def __init__(self) -> None:
        self.mark: Mark | None = None
        self.index: LogIndex | None = None
        self.hard = HardState()

    def apply(self, record: Record, position: int) -> bool:
        """Take in one record; False, and nothing changes, where it does not continue this state."""
        if record.kind == RecordKind.APPEND:
            continues = self._append(record, position)
        else:
            continues = self._mark(record)
        if continues:
            self.hard = record.hard
        return continues

    def _append(self, record: Record, position: int) -> bool:
        entries = rec.entries_decoder.decode(record.payload) if record.payload else []
        end = (record.last, record.last_term)
        if not entries:
            self.index = self.index or LogIndex(*end)
            return (self.index.last, self.index.last_term) == end
        first = entries[0].index
        if (entries[-1].index, entries[-1].term) != end or self.index is not None and first > self.index.last + 1:
            return False
        self.index = self.index or LogIndex(first - 1, 0)
        self.index.append(entries, position)
        return True

    def _mark(self, record: Record) -> bool:
        end = (record.last, record.last_term)
        base = record.kind == RecordKind.BASE
        mark = rec.base_decoder.decode(record.payload).mark if base else rec.mark_decoder.decode(record.payload)
        if mark.reset and not base:
            self.index = LogIndex(*end)
        self.index = self.index or LogIndex(*end)
        if (self.index.last, self.index.last_term) != end:
            return False
        self.mark = mark
        return True

    def covers(self) -> bool:
        """Return whether every entry from the log's beginning to its end is here."""
        mark, index = self.mark, self.index
        return mark is not None and index is not None and index.first <= mark.first_index <= index.last + 1


@dataclass(frozen=True)
class Cut:
    """Where a segment ends for its successor, and the state there, which the successor's base repeats."""

    number: int  # 0: nothing before it counts
    end: int
    mark: Mark
    last: int
    last_term: int
    hard: HardState


@dataclass
class Replay:
    """The outcome. ``tail`` is counted in, at the places it takes in segment ``next_number`` behind ``cut``."""

    cut: Cut
    tail: list[Record]
    next_number: int
    chain: list[int]  # the segments in use, oldest first
    mark: Mark
    index: LogIndex
    hard: HardState
    damage: Damaged | None = None


def encode_segment(number: int, cluster_id: bytes, cut: Cut, tail: list[Record]) -> bytes:
    """Return what segment ``number`` begins with: file header, two copies of the base, and the repeated tail."""
    payload = msgspec.msgpack.encode(Base(cut.number, cut.end, replace_reset(cut.mark)))
    base = Record(0, 0, RecordKind.BASE, 0, cut.last, cut.last_term, cut.hard, memoryview(payload))
    records = [base, base, *tail]
    end = rec.FILE_HEADER_BYTES + sum(rec.record_bytes(len(record.payload)) for record in records)
    parts = [rec.encode_file_header(number, cluster_id)]
    offset = rec.FILE_HEADER_BYTES
    for record in records:
        parts.append(
            rec.encode_record(
                number, offset, record.kind, end, record.last, record.last_term, record.hard, bytes(record.payload)
            )
        )
        offset += len(parts[-1])
    return b"".join(parts)


def replace_reset(mark: Mark) -> Mark:
    """Return the mark as a statement on the state, not as an event in it."""
    return msgspec.structs.replace(mark, reset=False)


class _Walk:
    """One pass over the chain."""

    def __init__(self, next_number: int, cluster_id: bytes) -> None:
        self.next_number = next_number
        self.cluster_id = cluster_id
        self.state = State()
        self.cut: Cut | None = None  # set where the tail begins
        self.tail: list[Record] = []
        self.tail_offset = 0
        self.place = (0, 0)  # behind the last record taken in
        self.newest: Record | None = None
        self.newest_mark: Mark | None = None
        self.whole: tuple[State, Cut, list[Record], int, int] | None = None  # the latest whole state before a hole

    def cut_here(self, number: int, end: int) -> Cut:
        """Describe the state so far, which begins where the log begins."""
        mark, index = self.state.mark, self.state.index
        assert mark is not None and index is not None
        return Cut(number, end, mark, index.last, index.last_term, self.state.hard)

    def begin_tail(self, number: int, end: int) -> None:
        """What follows is counted in at the place where it will be repeated."""
        if self.state.mark is not None:
            self.cut = self.cut_here(number, end)
            self.tail_offset = len(encode_segment(self.next_number, self.cluster_id, self.cut, []))

    def record(self, record: Record, number: int) -> None:
        """Take in a legible record."""
        self.newest = record
        position = rec.position_of(number, record.offset)
        if self.cut is not None:
            position = rec.position_of(self.next_number, self.tail_offset)
        if not self.state.apply(record, position):
            self.hole(number, record.offset)
            self.state.apply(record, position)
        self.place = (number, record.end)
        self.newest_mark = self.state.mark or self.newest_mark
        if self.cut is not None:
            self.tail.append(record)
            self.tail_offset += rec.record_bytes(len(record.payload))

    def hole(self, number: int, offset: int) -> None:
        """Something durable is missing here: begin again behind it."""
        if self.state.covers():
            self.whole = (self.state, self.cut or self.cut_here(*self.place), list(self.tail), number, offset)
        self.state = State()


def _walk_newest(walk: _Walk, data: memoryview, segment: Segment) -> None:
    stable = stable_end(data, segment.number)
    at = rec.FILE_HEADER_BYTES
    for item in scan(data, segment):
        if walk.cut is None and item.offset >= stable:
            walk.begin_tail(segment.number, item.offset)
        if isinstance(item, Hole):
            walk.hole(segment.number, item.offset)
        else:
            walk.record(item, segment.number)
            at = item.end
    if walk.cut is None:
        walk.begin_tail(segment.number, at)


def replay(disk: Disk, path: str, cluster_id: bytes) -> Replay:
    """Read the log; nothing on disk is changed.

    NOT_FOUND where there is no log; Damaged where not even its beginning can be told; ``Replay.damage`` where
    something is lost, and the outcome then is the state before.
    """
    if not disk.exists(path) or not segment_numbers(disk, path):
        raise FsError(Code.NOT_FOUND, f"{path}: no log here")
    chain = read_chain(disk, path, cluster_id)
    walk = _Walk(chain[-1].number + 1, cluster_id)
    for segment in chain:
        data = read_segment(disk, path, segment.number)
        if segment.newest:
            _walk_newest(walk, data, segment)
            continue
        at = rec.FILE_HEADER_BYTES
        for item in scan(data, segment):
            if isinstance(item, Hole):
                walk.hole(segment.number, item.offset)
            else:
                walk.record(item, segment.number)
                at = item.end
        if segment.end is not None and at < segment.end:
            walk.hole(segment.number, at)
    numbers = [segment.number for segment in chain]
    if walk.state.covers() and walk.cut is not None:
        return _outcome(walk, numbers)
    return _damaged(walk, numbers, path)


def _outcome(walk: _Walk, numbers: list[int]) -> Replay:
    state, cut = walk.state, walk.cut
    assert state.mark is not None and state.index is not None and cut is not None
    state.index.drop_before(state.mark.first_index, state.mark.before_term)
    tail = walk.tail
    if all(record.kind == RecordKind.APPEND and not record.payload and record.hard == cut.hard for record in tail):
        tail = []  # what a clean end leaves, to vouch for the rest
    # A torn write may have left a hard state whose commit counts in entries of the same write.
    hard = msgspec.structs.replace(state.hard, commit=min(state.hard.commit, state.index.last))
    return Replay(cut, tail, walk.next_number, numbers, state.mark, state.index, hard)


def _damaged(walk: _Walk, numbers: list[int], path: str) -> Replay:
    """Keep what was there before the loss and a mark of what may have been acknowledged; go on in a new term."""
    newest, mark = walk.newest, walk.newest_mark
    if newest is None or mark is None:
        raise Damaged(segment_path(path, numbers[0]), 0, 0)
    if walk.whole is not None:
        state, cut, tail, number, offset = walk.whole
        assert state.mark is not None and state.index is not None
        index, kept = state.index, state.mark
        damage = Damaged(segment_path(path, number), offset, index.last + 1)
        index.drop_before(kept.first_index, kept.before_term)
        commit = min(state.hard.commit, index.last)
    else:
        # Not even the beginning is left. The state outside the log goes at least through the snapshot.
        index = LogIndex(mark.snapshot.index, mark.snapshot.term)
        kept = Mark(mark.snapshot, index.first, mark.snapshot.term)
        damage = Damaged(segment_path(path, numbers[0]), 0, mark.first_index)
        commit = mark.snapshot.index
        cut, tail = Cut(0, 0, kept, index.last, index.last_term, newest.hard), []
    lost = max((mark.lost_term, mark.lost_index), (newest.last_term, newest.last))
    nothing = (index.last_term, index.last) >= lost  # what is lost added nothing to what was kept
    hard = HardState(newest.hard.term, newest.hard.vote, commit)
    if nothing:
        lost = (0, 0)
    else:
        # A leader of this term believes that it knows this log, and would never send again what was acknowledged.
        # A member in a newer term makes it step down; the next leader finds out anew.
        hard = HardState(newest.hard.term + 1, 0, commit)
    kept = msgspec.structs.replace(kept, reset=False, lost_term=lost[0], lost_index=lost[1])
    tail = [record._replace(hard=hard) for record in tail]
    payload = memoryview(msgspec.msgpack.encode(kept))
    tail.append(Record(0, 0, RecordKind.MARK, 0, index.last, index.last_term, hard, payload))
    chain = [number for number in numbers if number <= cut.number]
    cut = replace(cut, hard=hard)
    return Replay(cut, tail, walk.next_number, chain, kept, index, hard, None if nothing else damage)
