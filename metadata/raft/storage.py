"""The stable log as the core reads it, and a model of it in memory for tests and simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from metadata.raft.messages import ConfState, Entry, HardState, SnapshotMeta

ENTRY_OVERHEAD_BYTES = 16  # what an entry costs in a message beside its data


class Compacted(Exception):
    """The index lies below what the log still holds; only a snapshot can tell."""


class Unavailable(Exception):
    """The index lies above the last entry."""


class SnapshotTemporarilyUnavailable(Exception):
    """No snapshot to offer right now; the core asks again later."""


class Storage(Protocol):
    """What is durable, or will be before anything later is. All calls are synchronous and must be cheap.

    The core reads entries here only after their APPEND_DONE (or ``advance``) has been delivered.
    """

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The durable (term, vote, commit) and the membership as of the *applied* index given in Config."""
        ...

    def first_index(self) -> int:
        """Index of the first entry held; those below went into a snapshot."""
        ...

    def last_index(self) -> int:
        """Index of the last entry held, or of the snapshot when there are none."""
        ...

    def term(self, index: int) -> int:
        """Term of an entry; works for ``first_index() - 1`` too. Raises Compacted, Unavailable."""
        ...

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries [low, high) as far as ``max_bytes`` reach, at least one. Raises Compacted, Unavailable."""
        ...

    def snapshot(self) -> SnapshotMeta:
        """A snapshot that could be sent, the newer the better. One that was taken before a member was added is not
        offered to that member; the core asks again later. Raises SnapshotTemporarilyUnavailable."""
        ...


def entry_bytes(entry: Entry) -> int:
    """What an entry counts for in every bound in bytes."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


def within_bytes(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The longest prefix of ``entries`` within ``max_bytes``, at least one entry where there is any."""
    total = 0
    for position, entry in enumerate(entries):
        total += len(entry.data) + ENTRY_OVERHEAD_BYTES
        if total > max_bytes and position:
            return entries[:position]
    return entries


class MemoryStorage:
    """A Storage in memory: a snapshot and the entries after it, without holes.

    It is the model that a log store is compared with; it forgets nothing (a disk that loses what was not synced is
    made by copying it at each sync).
    """

    __slots__ = ("hard", "conf", "snap", "log", "snapshot_ready", "fresh")

    def __init__(self, conf: ConfState | None = None, index: int = 0, term: int = 0) -> None:
        self.hard = HardState(0, 0, index)
        self.conf = conf or ConfState()
        self.snap = SnapshotMeta(index, term, self.conf)
        self.log: list[Entry] = []
        self.snapshot_ready = True
        self.fresh: Callable[[], SnapshotMeta] | None = None  # the applied state of this moment, where there is one

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self.hard, self.conf

    def first_index(self) -> int:
        return self.snap.index + 1

    def last_index(self) -> int:
        return self.snap.index + len(self.log)

    def term(self, index: int) -> int:
        position = index - self.snap.index
        if position < 0:
            raise Compacted(index)
        if position == 0:
            return self.snap.term
        if position > len(self.log):
            raise Unavailable(index)
        return self.log[position - 1].term

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        if low <= self.snap.index:
            raise Compacted(low)
        if high > self.last_index() + 1:
            raise Unavailable(high)
        base = self.snap.index + 1
        return within_bytes(self.log[low - base : high - base], max_bytes)

    def snapshot(self) -> SnapshotMeta:
        if not self.snapshot_ready:
            raise SnapshotTemporarilyUnavailable
        return self.fresh() if self.fresh is not None else self.snap

    # --- what a log store does with a Ready ---------------------------------------------------------------------

    def append(self, entries: list[Entry]) -> None:
        """Store entries; from the first one's index on, what was there before goes."""
        if not entries:
            return
        position = entries[0].index - self.snap.index - 1
        if position < 0:
            entries = entries[-position:]  # below the snapshot: known to be committed and applied
            position = 0
        assert position <= len(self.log), "a hole in the log"
        self.log[position:] = entries

    def set_hard_state(self, hard: HardState) -> None:
        self.hard = hard

    def install(self, snapshot: SnapshotMeta) -> None:
        """Replace everything by a received snapshot. An older one changes nothing."""
        if snapshot.index <= self.snap.index:
            return
        self.snap = snapshot
        self.conf = snapshot.conf
        self.log = []

    def compact(self, index: int, conf: ConfState) -> None:
        """Take a snapshot at ``index`` (applied), whose membership is ``conf``, and drop the log up to it."""
        if index <= self.snap.index:
            return
        term = self.term(index)
        del self.log[: index - self.snap.index]
        self.snap = SnapshotMeta(index, term, conf)
        self.conf = conf

    def copy(self) -> MemoryStorage:
        other = MemoryStorage.__new__(MemoryStorage)
        other.hard = self.hard
        other.conf = self.conf
        other.snap = self.snap
        other.log = self.log.copy()
        other.snapshot_ready = self.snapshot_ready
        other.fresh = self.fresh
        return other
