"""What must hold of a group of members, whatever happens to it. Knows nothing of the simulator that feeds it.

``Safety`` is told what members do, and remembers it across their crashes; ``Register`` and ``Counter`` are told what
clients asked and were answered. Each raises Violation where that contradicts a promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from metadata.raft.messages import Entry, HardState, Kind, Message


class Violation(AssertionError):
    """A promise is broken; ``rule`` names it."""

    def __init__(self, rule: str, detail: str) -> None:  # noqa: B042 (never pickled)
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


def require(holds: bool, rule: str, *detail: object) -> None:
    if not holds:
        raise Violation(rule, " ".join(map(str, detail)))


class Fact(NamedTuple):
    """A committed entry."""

    term: int
    data: bytes
    committed_in: int  # the term of whoever was first seen to know it


class Safety:
    """The properties of the Raft paper's figure 3, and what this implementation promises beside."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}  # term -> who led it
        self.committed: dict[int, Fact] = {}
        self.top = 0  # the last index known to be committed
        self._votes: dict[tuple[int, int], int] = {}  # (term, voter) -> candidate
        self._written: dict[tuple[int, int], tuple[int, bytes]] = {}  # (index, term) -> (term before, data)
        self._outcomes: dict[int, bytes] = {}
        self._states: dict[int, bytes] = {}
        self._durable: dict[int, HardState] = {}  # what each member may rely on

    # --- elections --------------------------------------------------------------------------------------------

    def leads(self, member: int, term: int, first: int, term_at: Callable[[int], int]) -> None:
        """A member leads. ``term_at`` tells the term of its entry at an index from ``first`` on, -1: it has none."""
        other = self.leaders.setdefault(term, member)
        require(other == member, "election safety", f"term {term} is led by {other} and {member}")
        for index in range(self.top, first - 1, -1):
            fact = self.committed.get(index)
            if fact is not None and fact.committed_in < term:
                own = term_at(index)
                require(
                    own == fact.term, "leader completeness",
                    f"{member} leads term {term} with {own} at {index}, committed is {fact.term}",
                )  # fmt: skip

    def sends(self, member: int, message: Message) -> None:
        """A member speaks. Who promised a vote may not promise another in that term."""
        if message.kind == Kind.VOTE_REPLY and not message.reject:
            candidate = self._votes.setdefault((message.term, member), message.to)
            require(
                candidate == message.to, "one vote",
                f"{member} votes for {candidate} and {message.to} in term {message.term}",
            )  # fmt: skip
        elif message.kind == Kind.VOTE:
            candidate = self._votes.get((message.term, member), member)
            require(candidate == member, "one vote", f"{member} stands in {message.term} and voted for {candidate}")

    # --- the log ----------------------------------------------------------------------------------------------

    def writes(self, member: int, before: int, entries: Sequence[Entry]) -> None:
        """A member writes entries behind one of term ``before``. Equal (index, term) means equal up to there."""
        for entry in entries:
            known = self._written.setdefault((entry.index, entry.term), (before, entry.data))
            require(
                known == (before, entry.data), "log matching",
                f"{member} writes another entry {entry.index} of term {entry.term}",
            )  # fmt: skip
            before = entry.term
            fact = self.committed.get(entry.index)
            # The leader of a newer term than the commit has it; whoever writes less follows an older one.
            require(
                fact is None or entry.term <= fact.committed_in or entry.term == fact.term, "committed immutable",
                f"{member} writes term {entry.term} at {entry.index}, committed is {fact}",
            )  # fmt: skip

    def synced(self, member: int, hard: HardState) -> None:
        """A member's disk holds this, and whoever was told may rely on it."""
        self._durable[member] = hard

    def restarts(self, member: int, hard: HardState) -> None:
        """A member came back with this."""
        before = self._durable.get(member)
        if before is not None:
            require(hard.term >= before.term, "monotone term", f"{member} came back with {hard}, had {before}")
            if hard.term == before.term:
                require(
                    before.vote in (0, hard.vote), "monotone vote", f"{member} came back with {hard}, had {before}"
                )

    def commits(self, member: int, term: int, leads: bool, entries: Iterable[Entry]) -> None:
        """A member, in ``term``, learnt that entries are committed."""
        last = None
        for entry in entries:
            fact = self.committed.get(entry.index)
            if fact is None:
                self.committed[entry.index] = Fact(entry.term, entry.data, term)
                self.top = max(self.top, entry.index)
                last = entry
            else:
                require(
                    (fact.term, fact.data) == (entry.term, entry.data), "state-machine safety",
                    f"{member} commits another entry {entry.index}: of {entry.term}, not {fact.term}",
                )  # fmt: skip
        if leads and last is not None:
            require(
                last.term == term, "commit by counting", f"{member} leads {term}, commits {last.index} of {last.term}"
            )

    def counted(self, index: int, holders: set[int], groups: Sequence[Iterable[int]]) -> None:
        """Those whose disks hold ``index`` have to be a majority of each of the groups that decide."""
        for group in groups:
            voters = set(group)
            require(
                not voters or 2 * len(voters & holders) > len(voters), "committed on disks",
                f"{index} is committed, but of {sorted(voters)} only {sorted(voters & holders)} have it on disk",
            )  # fmt: skip

    # --- the state --------------------------------------------------------------------------------------------

    def applies(self, member: int, index: int, term: int, data: bytes, outcome: bytes) -> None:
        """A member applied an entry, with an outcome of this digest."""
        fact = self.committed.get(index)
        require(fact is not None, "applied is committed", f"{member} applies {index} of {term}")
        assert fact is not None
        require(
            fact.term == term and data in (b"", fact.data), "state-machine safety",
            f"{member} applies {index} of {term}, committed is {fact.term}",
        )  # fmt: skip
        known = self._outcomes.setdefault(index, outcome)
        require(known == outcome, "same outcome", f"{member} applies {index} otherwise than others")

    def state(self, member: int, index: int, digest: bytes) -> None:
        """A member's whole state after ``index``."""
        if index:
            known = self._states.setdefault(index, digest)
            require(known == digest, "same state", f"{member} differs from others after {index}")

    @staticmethod
    def rises(member: int, what: str, before: int, now: int) -> None:
        require(now >= before, f"monotone {what}", f"{member}: {before} -> {now}")


# --- clients ------------------------------------------------------------------------------------------------------


@dataclass
class Register:
    """One name that only one client changes, one change after the other; anybody reads. ``values[0]`` is the first
    value; every change has a place in it from when it was first asked for. None: the name does not exist."""

    name: bytes
    values: list[int | None] = field(default_factory=lambda: [None])
    done: int = 0  # the last change that was acknowledged
    seen: int = 0  # the latest change that a finished read has shown

    def begin(self, value: int | None) -> None:
        assert self.done == len(self.values) - 1, "one change at a time"
        self.values.append(value)

    def end(self) -> None:
        self.done = len(self.values) - 1

    def reading(self) -> int:
        """The oldest change that a read which begins now may show."""
        return max(self.done, self.seen)

    def read(self, oldest: int, value: int | None) -> None:
        """A read that began when ``reading`` was ``oldest`` ended now with ``value``."""
        for place in range(oldest, len(self.values)):
            if self.values[place] == value:
                self.seen = max(self.seen, place)
                return
        raise Violation("fresh reads", f"{self.name!r} reads {value}, may be {self.values[oldest:]}")


@dataclass
class Counter:
    """A file to which every client appends, one byte at a time."""

    asked: int = 0
    places: set[int] = field(default_factory=set)  # where acknowledged appends landed
    seen: int = 0

    def begin(self) -> None:
        self.asked += 1

    def end(self, place: int) -> None:
        require(place not in self.places, "exactly once", f"two appends at {place}")
        self.places.add(place)
        self.seen = max(self.seen, place + 1)

    def read(self, oldest: int, size: int) -> None:
        require(oldest <= size <= self.asked, "fresh reads", f"size {size} is not in {oldest}..{self.asked}")
        self.seen = max(self.seen, size)

    def settled(self, size: int) -> None:
        """Every append was acknowledged: each happened once."""
        require(size == self.asked == len(self.places), "exactly once", f"{self.asked} appends made {size} bytes")


class Answers:
    """Whoever asks the same twice is answered the same twice."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], bytes] = {}

    def answered(self, session: int, sequence: int, answer: bytes) -> None:
        known = self._known.setdefault((session, sequence), answer)
        require(known == answer, "exactly once", f"session {session} was answered twice to {sequence}, differently")
