"""What a leader knows of one member's log, and how much it may have in flight to it.

PROBE       one append at a time, until the follower's log is known
REPLICATE   optimistic pipelining: ``next`` moves when entries are sent, not when they are acknowledged
SNAPSHOT    the follower needs what the log no longer holds; nothing is sent until a snapshot has arrived
"""

from __future__ import annotations

import enum
from collections import deque


class State(enum.IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Inflights:
    """Appends sent and not acknowledged, bounded in messages and in bytes of data."""

    __slots__ = ("_queue", "bytes", "messages_max", "bytes_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self._queue: deque[tuple[int, int]] = deque()  # (last index, bytes) of each message, ascending
        self.bytes = 0
        self.messages_max = messages_max
        self.bytes_max = bytes_max  # 0: no bound

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, index: int, size: int) -> None:
        self._queue.append((index, size))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Forget the messages whose last entry is at or below ``index``."""
        queue = self._queue
        while queue and queue[0][0] <= index:
            self.bytes -= queue.popleft()[1]

    def full(self) -> bool:
        return len(self._queue) >= self.messages_max or (self.bytes_max > 0 and self.bytes >= self.bytes_max)

    def clear(self) -> None:
        self._queue.clear()
        self.bytes = 0

    def copy(self) -> Inflights:
        other = Inflights(self.messages_max, self.bytes_max)
        other._queue = self._queue.copy()
        other.bytes = self.bytes
        return other

    def key(self) -> tuple[tuple[int, int], ...]:
        return tuple(self._queue)


class Progress:
    """Invariants: match < next; in PROBE and REPLICATE every entry below ``match`` + 1 is known durable there.

    ``session`` names this incarnation of the member in this leadership. Replies that carry another one were not
    caused by what this object knows, and must not move it.
    """

    __slots__ = (
        "match", "next", "state", "pending_snapshot", "recent_active", "paused", "inflights", "sent_commit", "session",
    )  # fmt: skip

    def __init__(self, next_index: int, session: int, inflights: Inflights) -> None:
        self.match = 0
        self.next = next_index
        self.state = State.PROBE
        self.pending_snapshot = 0  # index of the snapshot on its way, in SNAPSHOT
        self.recent_active = False  # heard from since the last check of the quorum
        self.paused = False  # a probe is under way, or the in-flight window is full
        self.inflights = inflights
        self.sent_commit = 0  # highest commit index sent that the member cannot have missed for lack of entries
        self.session = session

    def _reset(self, state: State) -> None:
        self.paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.clear()

    def become_probe(self) -> None:
        # Coming from SNAPSHOT, the snapshot is assumed to have arrived; a rejection tells otherwise.
        pending = self.pending_snapshot if self.state == State.SNAPSHOT else 0
        self._reset(State.PROBE)
        self.next = max(self.match, pending) + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        self._reset(State.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._reset(State.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def sent_entries(self, count: int, size: int) -> None:
        """Account for an append that was just sent."""
        if self.state == State.REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, size)
            # A message that fills the window is a probe: nothing follows until something comes back.
            self.paused = self.inflights.full()
        elif count:
            assert self.state == State.PROBE
            self.paused = True

    def can_bump_commit(self, commit: int) -> bool:
        """Whether sending ``commit`` could tell the member something new."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def update(self, index: int) -> bool:
        """The member proved its log up to ``index``. False when that was known."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        self.paused = False
        return True

    def decrease(self, rejected: int, hint: int) -> bool:
        """The member refused entries after ``rejected`` and may match at ``hint``. False when that is stale."""
        if self.state == State.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.match)
            return True
        if self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    def is_paused(self) -> bool:
        return self.paused or self.state == State.SNAPSHOT

    def copy(self) -> Progress:
        other = Progress(self.next, self.session, self.inflights.copy())
        other.match = self.match
        other.state = self.state
        other.pending_snapshot = self.pending_snapshot
        other.recent_active = self.recent_active
        other.paused = self.paused
        other.sent_commit = self.sent_commit
        return other

    def key(self) -> tuple[object, ...]:
        return (
            self.match, self.next, int(self.state), self.pending_snapshot, self.recent_active, self.paused,
            self.inflights.key(), self.sent_commit, self.session,
        )  # fmt: skip
