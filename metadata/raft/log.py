"""The log as the core sees it: what storage holds, and after it what storage has not yet acknowledged.

    first ... applied ... applying ... committed ... last
    |---------- stable, in storage ----------|-- unstable: entries[0] has index ``offset`` --|
                                              |-- handed out, below ``writing`` --|

Invariants: applied <= applying <= committed <= last; offset <= writing <= last + 1. Entries at or below
``committed`` never change.
"""

from __future__ import annotations

from collections.abc import Sequence

from metadata.raft.messages import Entry, EntryKind, SnapshotMeta
from metadata.raft.storage import Compacted, Storage, Unavailable, entry_bytes, within_bytes


class LogDamaged(AssertionError):
    """The log contradicts what this member, or its leader, knows to be committed. The member must stop."""


class RaftLog:
    __slots__ = (
        "storage", "unstable", "offset", "writing", "snapshot", "snapshot_writing", "last", "committed", "applying",
        "applied", "applying_bytes", "applying_bytes_max",
    )  # fmt: skip

    def __init__(self, storage: Storage, applied: int, committed: int, applying_bytes_max: int) -> None:
        self.storage = storage
        self.unstable: list[Entry] = []
        self.last = storage.last_index()
        self.offset = self.last + 1
        self.writing = self.offset
        self.snapshot: SnapshotMeta | None = None  # received, not yet durable
        self.snapshot_writing = False  # handed out
        base = storage.first_index() - 1
        if applied < base:
            raise LogDamaged(f"state is applied up to {applied}, but the log begins after {base}")
        self.applied = applied
        self.applying = self.applied
        self.committed = max(committed, self.applied)
        self.applying_bytes = 0
        self.applying_bytes_max = applying_bytes_max
        if self.committed > self.last:
            raise LogDamaged(f"committed {self.committed} beyond the last entry {self.last}: the log lost entries")

    # --- reading ------------------------------------------------------------------------------------------------

    def first_index(self) -> int:
        return self.snapshot.index + 1 if self.snapshot is not None else self.storage.first_index()

    def term(self, index: int) -> int:
        """Term of an entry, or of the snapshot the log begins after. Raises Compacted, Unavailable."""
        if index >= self.offset:
            if index > self.last:
                raise Unavailable(index)
            return self.unstable[index - self.offset].term
        snapshot = self.snapshot
        if snapshot is not None:
            if index == snapshot.index:
                return snapshot.term
            raise Compacted(index)
        return self.storage.term(index)

    def last_term(self) -> int:
        return self.unstable[-1].term if self.unstable else self.term(self.last)

    def matches(self, index: int, term: int) -> bool:
        if index > self.last:
            return False
        try:
            return self.term(index) == term
        except Compacted:
            return False

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries [low, high) within ``max_bytes``, at least one. Raises Compacted; anything else is a defect."""
        if low >= high:
            return []
        assert high <= self.last + 1, (low, high, self.last)
        offset = self.offset
        if low >= offset:
            return within_bytes(self.unstable[low - offset : high - offset], max_bytes)
        if self.snapshot is not None:
            raise Compacted(low)
        end = min(high, offset)
        stable = self.storage.entries(low, end, max_bytes)
        assert stable and stable[0].index == low, "storage answered with other entries"
        if high <= offset or len(stable) < end - low:
            return stable
        size = sum(map(entry_bytes, stable))
        rest = self.unstable[: high - offset]
        taken = within_bytes(rest, max(max_bytes - size, 0))
        if len(taken) == 1 and size + entry_bytes(taken[0]) > max_bytes:
            return stable
        return stable + taken

    def up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends with (index, term) holds all that this one may have committed (section 5.4.1)."""
        own = self.last_term()
        return term > own or (term == own and index >= self.last)

    def find_by_term(self, index: int, term: int) -> tuple[int, int]:
        """The last entry at or below ``index`` whose term is at most ``term``: (its index, its term).

        Where the log no longer tells, the term is 0: the caller takes the index as a guess.
        """
        index = min(index, self.last)
        while index > 0:
            try:
                own = self.term(index)
            except (Compacted, Unavailable):
                return index, 0
            if own <= term:
                return index, own
            index -= 1
        return 0, 0

    def has_unapplied_conf(self) -> bool:
        """Whether a committed change of membership waits to be applied."""
        index = self.applied + 1
        while index <= self.committed:
            try:
                page = self.entries(index, self.committed + 1, 1 << 20)
            except Compacted:  # a snapshot is being installed
                return True
            if any(entry.kind == EntryKind.CONF for entry in page):
                return True
            index += len(page)
        return False

    # --- writing ------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries after ``entries[0].index - 1``, dropping what this log has from there on."""
        first = entries[0].index
        if first <= self.committed:
            raise LogDamaged(f"entry {first} would replace a committed one (committed {self.committed})")
        if first == self.last + 1:
            self.unstable.extend(entries)
        elif first <= self.offset:
            self.unstable = list(entries)
            self.offset = self.writing = first
        else:
            self.unstable = self.unstable[: first - self.offset]  # a new list: the old one may have been handed out
            self.unstable.extend(entries)
            self.writing = min(self.writing, first)
        self.last = self.unstable[-1].index

    def try_append(self, index: int, term: int, commit: int, entries: Sequence[Entry]) -> int:
        """Follower: append what follows (index, term), where this log has that entry. Returns the last index proved
        to match the leader's, or -1.

        Only an entry whose term differs from ours at the same index proves a conflict; a late or repeated message
        that ends before our last entry proves nothing about what follows, and removes nothing.
        """
        if not self.matches(index, term):
            return -1
        proved = index + len(entries)
        if entries:
            if index == self.last:
                self.append(entries)
            else:
                for position, entry in enumerate(entries):
                    if entry.index > self.last or not self.matches(entry.index, entry.term):
                        self.append(entries[position:])
                        break
        self.commit_to(min(commit, proved))
        return proved

    def commit_to(self, index: int) -> None:
        if index > self.committed:
            if index > self.last:
                raise LogDamaged(f"told to commit {index}, but the last entry is {self.last}: the log lost entries")
            self.committed = index

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Replace the whole log by a snapshot that is newer than anything committed here."""
        assert snapshot.index > self.committed
        self.unstable = []
        self.offset = self.writing = snapshot.index + 1
        self.last = snapshot.index
        self.snapshot = snapshot
        self.snapshot_writing = False
        self.committed = snapshot.index

    # --- what is on its way to storage and to the state machine -----------------------------------------------

    def next_unstable(self) -> list[Entry]:
        """Entries that storage has not been given yet."""
        return self.unstable[self.writing - self.offset :]

    def next_snapshot(self) -> SnapshotMeta | None:
        return None if self.snapshot_writing else self.snapshot

    def accept_unstable(self) -> None:
        """All that is unstable has been handed out."""
        self.writing = self.last + 1
        if self.snapshot is not None:
            self.snapshot_writing = True

    def stable_to(self, index: int, term: int) -> None:
        """Storage holds (index, term) and everything before. Ignored where that entry has been replaced since."""
        position = index - self.offset
        if position < 0 or index > self.last or self.unstable[position].term != term:
            return
        # Handing out makes a new list, so the old one may be cut in place.
        del self.unstable[: position + 1]
        self.offset = index + 1
        if self.writing < self.offset:
            self.writing = self.offset

    def stable_snapshot(self, index: int) -> None:
        if self.snapshot is not None and self.snapshot.index == index:
            self.snapshot = None
            self.snapshot_writing = False

    def appliable(self, allow_unstable: bool) -> int:
        """The last index that may be given to the state machine."""
        return self.committed if allow_unstable else min(self.committed, self.offset - 1)

    def has_next_committed(self, allow_unstable: bool) -> bool:
        if self.snapshot is not None or self.applying_bytes >= self.applying_bytes_max:
            return False
        return self.applying < self.appliable(allow_unstable)

    def next_committed(self, allow_unstable: bool) -> list[Entry]:
        """Entries to apply: committed, not handed out, and durable unless ``allow_unstable``."""
        if not self.has_next_committed(allow_unstable):
            return []
        room = self.applying_bytes_max - self.applying_bytes
        return self.entries(self.applying + 1, self.appliable(allow_unstable) + 1, room)

    def accept_applying(self, index: int, size: int) -> None:
        assert self.applying < index <= self.committed
        self.applying = index
        self.applying_bytes += size

    def applied_to(self, index: int, size: int) -> None:
        if index > self.committed or index < self.applied:
            raise LogDamaged(f"applied {index} is outside [{self.applied}, {self.committed}]")
        self.applied = index
        self.applying = max(self.applying, index)
        self.applying_bytes = max(self.applying_bytes - size, 0)

    def copy(self, storage: Storage) -> RaftLog:
        other = RaftLog.__new__(RaftLog)
        for name in RaftLog.__slots__:
            setattr(other, name, getattr(self, name))
        other.storage = storage
        other.unstable = self.unstable.copy()
        return other

    def key(self) -> tuple[object, ...]:
        return (
            tuple(self.unstable), self.offset, self.writing, self.snapshot, self.snapshot_writing, self.last,
            self.committed, self.applying, self.applied, self.applying_bytes,
        )  # fmt: skip
