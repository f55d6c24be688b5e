"""Quorums against an oracle that tries everything."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from metadata.raft.quorum import INFINITY, VoteResult, joint_index, joint_vote, majority_index, majority_vote

members = st.integers(1, 9)
voters = st.frozensets(members, max_size=7)
matches = st.dictionaries(members, st.integers(0, 12))
votes = st.dictionaries(members, st.booleans())


def holds(half: frozenset[int], matched: dict[int, int], index: int) -> bool:
    """Whether more than half of the voters have ``index``."""
    return not half or 2 * sum(matched.get(voter, 0) >= index for voter in half) > len(half)


def outcomes(half: frozenset[int], cast: dict[int, bool]) -> set[bool]:
    """Whether the half is won, for every way in which the missing votes may still go."""
    missing = [voter for voter in half if voter not in cast]
    results = set()
    for rest in itertools.product((False, True), repeat=len(missing)):
        final = {**cast, **dict(zip(missing, rest, strict=True))}
        results.add(not half or 2 * sum(final[voter] for voter in half) > len(half))
    return results


@given(voters, matches)
def test_majority_index_is_the_highest_that_a_majority_has(half: frozenset[int], matched: dict[int, int]) -> None:
    index = majority_index(half, matched)
    if not half:
        assert index == INFINITY
        return
    assert index == max(i for i in range(14) if holds(half, matched, i))


@given(voters, voters, matches)
def test_joint_index_is_the_highest_that_both_majorities_have(
    one: frozenset[int], other: frozenset[int], matched: dict[int, int]
) -> None:
    index = joint_index(one, other, matched)
    if one or other:
        assert index == max(i for i in range(14) if holds(one, matched, i) and holds(other, matched, i))
    else:
        assert index == INFINITY


@given(voters, matches)
def test_joint_with_itself_or_nothing_is_the_majority(half: frozenset[int], matched: dict[int, int]) -> None:
    assert joint_index(half, half, matched) == majority_index(half, matched)
    assert joint_index(half, frozenset(), matched) == joint_index(frozenset(), half, matched)
    assert joint_index(half, frozenset(), matched) == majority_index(half, matched)


@given(voters, votes)
def test_majority_vote_knows_when_it_is_over(half: frozenset[int], cast: dict[int, bool]) -> None:
    expected = {
        (True,): VoteResult.WON, (False,): VoteResult.LOST, (False, True): VoteResult.PENDING,
    }[tuple(sorted(outcomes(half, cast)))]  # fmt: skip
    assert majority_vote(half, cast) == expected


@given(voters, voters, votes)
def test_joint_vote_needs_both_halves(one: frozenset[int], other: frozenset[int], cast: dict[int, bool]) -> None:
    won = majority_vote(one, cast), majority_vote(other, cast)
    result = joint_vote(one, other, cast)
    assert (result == VoteResult.WON) == (won == (VoteResult.WON, VoteResult.WON))
    assert (result == VoteResult.LOST) == (VoteResult.LOST in won)


@given(voters, matches, members, st.integers(0, 12))
def test_index_never_falls_when_a_member_advances(
    half: frozenset[int], matched: dict[int, int], member: int, index: int
) -> None:
    ahead = {**matched, member: max(index, matched.get(member, 0))}
    assert majority_index(half, ahead) >= majority_index(half, matched)
