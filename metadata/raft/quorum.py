"""Majorities, alone and joint: how far a quorum has come, and how a vote stands.

A configuration is a set of member ids. The empty one agrees to everything, so that a joint quorum with one empty
half decides like the other half.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

INFINITY = (1 << 63) - 1  # what an empty configuration has committed


class VoteResult(enum.IntEnum):
    PENDING = 0
    LOST = 1
    WON = 2


def majority_index(voters: Collection[int], matched: Mapping[int, int]) -> int:
    """The highest index that a majority of ``voters`` has reached; members without a value count as 0."""
    if not voters:
        return INFINITY
    reached = sorted([matched.get(voter, 0) for voter in voters])
    return reached[(len(reached) - 1) // 2]


def joint_index(incoming: Collection[int], outgoing: Collection[int], matched: Mapping[int, int]) -> int:
    """The highest index that a majority of each half has reached."""
    return min(majority_index(incoming, matched), majority_index(outgoing, matched))


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """How a vote of ``voters`` stands. Votes of others count for nothing."""
    if not voters:
        return VoteResult.WON
    quorum = len(voters) // 2 + 1
    granted = missing = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is None:
            missing += 1
        elif vote:
            granted += 1
    if granted >= quorum:
        return VoteResult.WON
    if granted + missing >= quorum:
        return VoteResult.PENDING
    return VoteResult.LOST


def joint_vote(incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Won when both halves won, lost as soon as one lost."""
    one = majority_vote(incoming, votes)
    other = majority_vote(outgoing, votes)
    if one == other:
        return one
    if VoteResult.LOST in (one, other):
        return VoteResult.LOST
    return VoteResult.PENDING
