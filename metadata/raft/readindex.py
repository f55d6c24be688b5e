"""Linearizable reads without a log entry: the leader's book of reads that wait for a quorum.

A read may be answered from state applied up to index i, when i was the commit index after the read arrived and a
quorum has since confirmed that this leader still leads. One round of heartbeats confirms every read that waited
when it began. Rounds carry numbers of the leader's own, which only grow, never a number that a client chose: an old
acknowledgement can then never confirm a newer read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
import msgspec

from metadata.raft.quorum import INFINITY, joint_index


class ReadRequest(msgspec.Struct, frozen=True, gc=False):
    sender: int  # the member that asked, maybe this one
    context: int  # its own number for it


class Round(msgspec.Struct, frozen=True, gc=False):
    number: int
    index: int  # commit index when the round began
    tick: int  # the leader's tick when it began
    requests: tuple[ReadRequest, ...]


class ReadIndex:
    """Reads waiting for a round, and rounds waiting for a quorum. Lives as long as one leadership."""

    __slots__ = ("waiting", "rounds", "number", "confirmed", "confirmed_tick", "_acks", "_own")

    def __init__(self, own: int) -> None:
        self.waiting: list[ReadRequest] = []
        self.rounds: deque[Round] = deque()
        self.number = 0  # of the last round begun
        self.confirmed = 0  # of the last round confirmed
        self.confirmed_tick = -INFINITY  # when that one began: nobody else led at that tick
        self._acks: dict[int, int] = {own: INFINITY}
        self._own = own

    def begin(self, index: int, tick: int) -> int:
        """Start a round for all that wait. Returns its number."""
        self.number += 1
        self.rounds.append(Round(self.number, index, tick, tuple(self.waiting)))
        self.waiting.clear()
        return self.number

    def acknowledge(
        self, member: int, number: int, voters: Collection[int], outgoing: Collection[int]
    ) -> list[Round]:
        """``member`` confirmed round ``number`` and all before. Returns the rounds that a quorum has now confirmed."""
        if number <= self._acks.get(member, 0) or number > self.number:
            return []
        self._acks[member] = number
        return self.settle(voters, outgoing)

    def settle(self, voters: Collection[int], outgoing: Collection[int]) -> list[Round]:
        """The rounds that the acknowledgements so far confirm in this configuration."""
        reached = joint_index(voters, outgoing, self._acks)
        done: list[Round] = []
        while self.rounds and self.rounds[0].number <= reached:
            done.append(self.rounds.popleft())
        if done:
            self.confirmed = done[-1].number
            self.confirmed_tick = max(self.confirmed_tick, done[-1].tick)
        return done

    def forget_lease(self) -> None:
        """What was confirmed so far says nothing about who may be elected from now on."""
        self.confirmed_tick = -INFINITY

    def copy(self) -> ReadIndex:
        other = ReadIndex(self._own)
        other.waiting = self.waiting.copy()
        other.rounds = self.rounds.copy()
        other.number = self.number
        other.confirmed = self.confirmed
        other.confirmed_tick = self.confirmed_tick
        other._acks = self._acks.copy()
        return other

    def key(self) -> tuple[object, ...]:
        return (tuple(self.waiting), tuple(self.rounds), self.number, tuple(sorted(self._acks.items())))
