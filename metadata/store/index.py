"""Where in the log's files each entry is, and its term: 16 bytes a batch and 16 a term, not an entry. Pure.

Entries are found by the batch that wrote them. Batches and runs of equal terms are both sorted by first index, and a
later append that replaces entries cuts both.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from metadata.raft.messages import Entry


class LogIndex:
    """The entries ``first`` to ``last`` without gaps; none while last == first - 1."""

    def __init__(self, before: int, before_term: int) -> None:
        """Begin empty, after the entry ``before`` of ``before_term``."""
        self.first = before + 1
        self.last = before
        self.before_term = before_term
        self.last_term = before_term
        self._batch_first = array("Q")
        self._batch_position = array("Q")
        self._run_first = array("Q")
        self._run_term = array("Q")

    def append(self, entries: Sequence[Entry], position: int) -> None:
        """Add a batch at ``position``; entries from its first index on are replaced. Gaps are a programming error."""
        first = entries[0].index
        if first <= self.last:
            self._truncate(first - 1)
        assert first == self.last + 1, (first, self.last)
        self._batch_first.append(first)
        self._batch_position.append(position)
        self.last = entries[-1].index
        assert self.last == first + len(entries) - 1, "entries must be consecutive"
        term = self.last_term
        if entries[0].term != term or entries[-1].term != term or not self._run_first:
            for entry in entries:
                if entry.term != term or not self._run_first:
                    assert entry.term >= term, (entry.term, term)
                    term = entry.term
                    self._run_first.append(entry.index)
                    self._run_term.append(term)
            self.last_term = term

    def _truncate(self, to: int) -> None:
        """Forget entries behind ``to``."""
        if to < self.first - 1:  # while replaying a log whose older part was compacted away
            self.first = to + 1
            self.before_term = 0
        while self._batch_first and self._batch_first[-1] > to:
            self._batch_first.pop()
            self._batch_position.pop()
        while self._run_first and self._run_first[-1] > to:
            self._run_first.pop()
            self._run_term.pop()
        self.last = to
        self.last_term = self._run_term[-1] if self._run_term else self.before_term

    def drop_before(self, first: int, before_term: int) -> None:
        """Let the log begin at ``first``, which is at most last + 1."""
        assert self.first <= first <= self.last + 1, (self.first, first, self.last)
        self.first = first
        self.before_term = before_term
        keep = max(0, bisect_right(self._batch_first, first) - 1) if first <= self.last else len(self._batch_first)
        del self._batch_first[:keep], self._batch_position[:keep]
        keep = max(0, bisect_right(self._run_first, first) - 1) if first <= self.last else len(self._run_first)
        del self._run_first[:keep], self._run_term[:keep]
        if not self._run_first:
            self.last_term = before_term

    def term(self, index: int) -> int:
        """Return the term of an entry in [first - 1, last]."""
        if index == self.first - 1:
            return self.before_term
        assert self.first <= index <= self.last, index
        if index >= self._run_first[-1]:
            return self._run_term[-1]
        return self._run_term[bisect_right(self._run_first, index) - 1]

    def locate(self, index: int) -> tuple[int, int, int]:
        """Return (position, first, last) of the batch that holds an entry in [first, last].

        The batch's bytes may hold more entries, before or behind; they are void.
        """
        assert self.first <= index <= self.last, index
        batch = bisect_right(self._batch_first, index) - 1
        following = batch + 1
        last = self._batch_first[following] - 1 if following < len(self._batch_first) else self.last
        return self._batch_position[batch], self._batch_first[batch], last

    def first_at(self, position: int) -> int:
        """Return the first entry of the batch at a position; 0 where none is there any more."""
        batch = bisect_left(self._batch_position, position)
        found = batch < len(self._batch_position) and self._batch_position[batch] == position
        return self._batch_first[batch] if found else 0

    def oldest_position(self) -> int | None:
        """Return the position of the oldest batch still needed, None where the log is empty."""
        return self._batch_position[0] if self._batch_position else None

    def batches(self) -> int:
        """Return the number of batches."""
        return len(self._batch_first)
