"""From the records on disk to the log's state, and to what has to be written before it may be relied on.

Records behind the last one that a later record vouches for are legible but perhaps only in the page cache, which after
a failed sync shows what the disk never got. So they are not trusted where they are: the next segment repeats them and
cuts its predecessor before them. That also cuts a torn tail, and nothing is ever changed in place.

Loss does not matter where the log behind it stands on its own, because it begins behind the loss (compaction,
snapshot). Otherwise the state before the loss is kept, with a mark of what may have been acknowledged beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    publish: bool  # the next segment has to be on disk before any of this is relied on
    damage: Damaged | None = None


def encode_segment(number: int, cluster_id: bytes, cut: Cut, tail: list[Record]) -> bytes:
    """Return what segment ``number`` begins with: file header, two copies of the base, and the repeated tail."""
    end = tail[-1] if tail else cut
    ending = rec.ENDING.pack(end.last, end.last_term, end.hard.term, end.hard.vote)
    mark = msgspec.structs.replace(cut.mark, reset=False)  # a statement on the state, not an event in it
    payload = msgspec.msgpack.encode(Base(cut.number, cut.end, mark, ending))
    base = Record(0, 0, RecordKind.BASE, 0, cut.last, cut.last_term, cut.hard, memoryview(payload))
    records = [base, base, *tail]
    stable = rec.FILE_HEADER_BYTES + sum(rec.record_bytes(len(record.payload)) for record in records)
    parts = [rec.encode_file_header(number, cluster_id)]
    offset = rec.FILE_HEADER_BYTES
    for record in records:
        parts.append(
            rec.encode_record(
                number, offset, record.kind, stable, record.last, record.last_term, record.hard, bytes(record.payload)
            )
        )
        offset += len(parts[-1])
    return b"".join(parts)


def _at_publication(record: Record) -> Record:
    """Return a base with the end of the log as it was behind all that the segment began with."""
    last, last_term, term, vote = rec.ENDING.unpack(rec.base_decoder.decode(record.payload).ending)
    return record._replace(last=last, last_term=last_term, hard=HardState(term, vote, record.hard.commit))


@dataclass
class _Whole:
    """A state known from the log's beginning on, and the hole behind it. ``end``: where it is cut if that is loss."""

    state: State
    first_lost: int
    end: tuple[int, int]
    hole: tuple[int, int]


class _Walk:
    """One pass over the chain. Places are (segment, offset)."""

    def __init__(self, next_number: int, cluster_id: bytes) -> None:
        self.next_number = next_number
        self.cluster_id = cluster_id
        self.state = State()
        self.cut: Cut | None = None  # set where the tail begins
        self.tail: list[Record] = []
        self.tail_offset = 0
        self.place = (0, 0)  # behind the last record taken in
        self.newest: Record | None = None  # what tells how the log ended
        self.newest_mark: Mark | None = None
        self.published = (0, 0)  # the current segment's base tells more than a record before this place
        self.whole: _Whole | None = None  # the latest whole state before a hole

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
        if record.kind == RecordKind.BASE:
            self.newest, self.published = _at_publication(record), (number, record.stable)
        elif (number, record.offset) >= self.published:
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
        if self.state.covers() and self.state.index is not None:
            end = self.place if self.cut is None else (self.cut.number, self.cut.end)
            self.whole = _Whole(self.state, self.state.index.last + 1, end, (number, offset))
        self.state = State()

    def over(self, disk: Disk, path: str, chain: list[Segment], until: tuple[int, int] | None = None) -> None:
        """Walk, by default to the end."""
        for segment in chain:
            number, at = segment.number, rec.FILE_HEADER_BYTES
            data = read_segment(disk, path, number)
            stable = stable_end(data, number) if segment.newest and until is None else len(data)
            for item in scan(data, segment):
                if until is not None and (number, item.offset) >= until:
                    return
                if self.cut is None and item.offset >= stable:
                    self.begin_tail(number, item.offset)
                if isinstance(item, Hole):
                    self.hole(number, item.offset)
                else:
                    self.record(item, number)
                    at = item.end
            if segment.end is not None and at < segment.end:
                self.hole(number, at)
            if segment.newest and self.cut is None:
                self.begin_tail(number, at)


def replay(disk: Disk, path: str, cluster_id: bytes) -> Replay:
    """Read the log; nothing on disk is changed.

    NOT_FOUND where there is no log; Damaged where not even its beginning can be told; ``Replay.damage`` where
    something is lost, and the outcome then is the state before.
    """
    if not disk.exists(path) or not segment_numbers(disk, path):
        raise FsError(Code.NOT_FOUND, f"{path}: no log here")
    chain = read_chain(disk, path, cluster_id)
    walk = _Walk(chain[-1].number + 1, cluster_id)
    walk.over(disk, path, chain)
    if not walk.state.covers() or walk.cut is None:
        return _damaged(disk, path, walk, chain)
    state, cut, tail = walk.state, walk.cut, walk.tail
    assert state.mark is not None and state.index is not None
    state.index.drop_before(state.mark.first_index, state.mark.before_term)
    if all(record.kind == RecordKind.APPEND and not record.payload and record.hard == cut.hard for record in tail):
        tail = []  # what a clean end leaves, to vouch for the rest
    # A torn write may have left a hard state whose commit counts in entries of the same write.
    hard = msgspec.structs.replace(state.hard, commit=min(state.hard.commit, state.index.last))
    numbers = [segment.number for segment in chain]
    return Replay(cut, tail, walk.next_number, numbers, state.mark, state.index, hard, publish=bool(tail))


def _before_loss(disk: Disk, path: str, walk: _Walk, chain: list[Segment]) -> State | None:
    """Return the state before the loss, None where it is not known from the log's beginning on."""
    if walk.whole is None or walk.cut is None:
        return walk.whole.state if walk.whole is not None else None
    # That state may count in records of the tail, which a damaged log does without.
    again = _Walk(walk.next_number, walk.cluster_id)
    again.over(disk, path, chain, walk.whole.end)
    return again.state if again.state.covers() else None


def _damaged(disk: Disk, path: str, walk: _Walk, chain: list[Segment]) -> Replay:
    """Keep what was there before the loss, with a mark of what may have been acknowledged; go on in a new term."""
    newest, newest_mark = walk.newest, walk.newest_mark
    if newest is None or newest_mark is None:
        raise Damaged(segment_path(path, chain[0].number), 0, 0)
    state = _before_loss(disk, path, walk, chain)
    if state is not None and walk.whole is not None:
        assert state.mark is not None and state.index is not None
        mark, index, end, hole = state.mark, state.index, walk.whole.end, walk.whole.hole
        index.drop_before(mark.first_index, mark.before_term)
        commit = min(state.hard.commit, index.last)
        damage = Damaged(segment_path(path, hole[0]), hole[1], walk.whole.first_lost)
    else:  # not even the beginning is left; the state outside the log goes at least through the snapshot
        index, end = LogIndex(newest_mark.snapshot.index, newest_mark.snapshot.term), (0, 0)
        commit = index.last
        mark = Mark(newest_mark.snapshot, index.first, newest_mark.snapshot.term)
        damage = Damaged(segment_path(path, chain[0].number), 0, newest_mark.first_index)
    lost = max((newest_mark.lost_term, newest_mark.lost_index), (newest.last_term, newest.last))
    hard = HardState(newest.hard.term, newest.hard.vote, commit)
    nothing = (index.last_term, index.last) >= lost  # what is lost added nothing to what was kept
    if nothing:
        lost = (0, 0)
    else:
        # A leader of this term believes that it knows this log, and would never send again what was acknowledged.
        # A member in a newer term makes it step down; the next leader finds out anew.
        hard = HardState(newest.hard.term + 1, 0, commit)
    mark = msgspec.structs.replace(mark, reset=False, lost_term=lost[0], lost_index=lost[1])
    numbers = [segment.number for segment in chain if segment.number <= end[0]]
    cut = Cut(*end, mark, index.last, index.last_term, hard)
    shown = None if nothing else damage
    return Replay(cut, [], walk.next_number, numbers, mark, index, hard, publish=True, damage=shown)
