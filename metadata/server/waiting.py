"""Who waits for what inside a member: proposals for their entry, reads for their index. Pure bookkeeping.

Whoever waits is told exactly once, by ``done``. A proposal whose leader lost its place has an unknown outcome: the
answer says NOT_LEADER, the session repeats the same sequence at the next leader, and that executes it at most once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Optional, TypeVar

from node.wire.errors import Code, FsError

T = TypeVar("T")

Done = Callable[[Optional[T], Optional[FsError]], None]
"""Called once, with a result or with an error."""


class Proposals(Generic[T]):
    """Proposals by the (index, term) they were given; answered in apply."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, Done[T]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, index: int, term: int, done: Done[T]) -> None:
        overwritten = self._waiting.get(index)
        self._waiting[index] = (term, done)
        if overwritten is not None:  # a newer leadership of ours reached the same index: the old entry is gone
            overwritten[1](None, _outrun())

    def applied(self, index: int, term: int, result: T) -> None:
        """The entry at ``index`` is of ``term`` and was applied with ``result``."""
        waiter = self._waiting.pop(index, None)
        if waiter is None:
            return
        if waiter[0] == term:
            waiter[1](result, None)
        else:
            waiter[1](None, _outrun())

    def fail(self, error: FsError) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, done in waiting.values():
            done(None, error)


class Reads:
    """Reads on their way through: waiting -> asked in a round -> confirmed at an index -> applied, answered.

    One round confirms everything that waited when it began, never what arrived later, and at most ``rounds_max`` are
    under way, so that reads gather into the next one by themselves while those before them travel. A round that got no
    answer within ``patience_s`` is followed by a fresh one; whichever is confirmed answers, because a later round
    confirms the reads of an earlier one too.
    """

    def __init__(self, patience_s: float, rounds_max: int = 1) -> None:
        self.patience_s = patience_s
        self.rounds_max = rounds_max
        self.rounds = 0
        self._waiting: list[Callable[[Optional[FsError]], None]] = []
        self._asked: deque[tuple[int, list[Callable[[Optional[FsError]], None]]]] = deque()
        self._asked_s = 0.0
        self._confirmed: deque[tuple[int, list[Callable[[Optional[FsError]], None]]]] = deque()

    def __len__(self) -> int:
        asked = sum(len(batch) for _, batch in self._asked)
        return len(self._waiting) + asked + sum(len(batch) for _, batch in self._confirmed)

    def add(self, done: Callable[[Optional[FsError]], None]) -> None:
        self._waiting.append(done)

    def begin(self, now_s: float) -> Optional[int]:
        """Return the context of a round to ask for now, None when nothing is to be asked."""
        overdue = bool(self._asked) and now_s - self._asked_s >= self.patience_s
        if not overdue and (len(self._asked) >= self.rounds_max or not self._waiting):
            return None
        self.rounds += 1
        self._asked.append((self.rounds, self._waiting))
        self._asked_s = now_s
        self._waiting = []
        return self.rounds

    def confirmed(self, context: int, index: int) -> None:
        """The round of ``context`` is confirmed at ``index``, and with it all that were asked before."""
        batch: list[Callable[[Optional[FsError]], None]] = []
        while self._asked and self._asked[0][0] <= context:
            batch.extend(self._asked.popleft()[1])
        if batch:
            self._confirmed.append((index, batch))

    def applied(self, index: int) -> None:
        """State is applied up to ``index``: answer what waited for that."""
        while self._confirmed and self._confirmed[0][0] <= index:
            for done in self._confirmed.popleft()[1]:
                done(None)

    def fail(self, error: FsError) -> None:
        """Leadership is gone. Confirmed reads too: what they wait for may take long to be applied here."""
        batches = [batch for _, batch in self._confirmed] + [batch for _, batch in self._asked] + [self._waiting]
        self._confirmed.clear()
        self._asked.clear()
        self._waiting = []
        for batch in batches:
            for done in batch:
                done(error)


def _outrun() -> FsError:
    return FsError(Code.RETRY, "another leader's entry took this place in the log")
