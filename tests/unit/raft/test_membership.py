"""Changes of membership against an oracle, and the property they exist for: deciding quorums always meet."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from metadata.raft import membership
from metadata.raft.membership import Configuration, ConfChangeInvalid
from metadata.raft.messages import ConfChange, ConfChangeItem, ConfChangeKind, ConfState, ConfTransition

ADD, LEARN, REMOVE = ConfChangeKind.ADD_VOTER, ConfChangeKind.ADD_LEARNER, ConfChangeKind.REMOVE
ids = st.integers(1, 5)
items = st.builds(ConfChangeItem, st.sampled_from(ConfChangeKind), ids)
changes = st.builds(
    ConfChange, st.lists(items, max_size=4).map(tuple), st.sampled_from(ConfTransition), st.just(b"")
)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """A configuration without a joint half."""
    voters = draw(st.frozensets(ids, min_size=1))
    return Configuration(voters, learners=draw(st.frozensets(ids)) - voters)


def item(kind: ConfChangeKind, member: int) -> ConfChangeItem:
    return ConfChangeItem(kind, member)


def quorums(configuration: Configuration) -> list[frozenset[int]]:
    """Every set of members that can decide."""
    everyone = sorted(configuration.members())
    found = []
    for size in range(len(everyone) + 1):
        for chosen in map(frozenset, itertools.combinations(everyone, size)):
            halves = (configuration.voters, configuration.outgoing or configuration.voters)
            if all(2 * len(chosen & half) > len(half) for half in halves):
                found.append(chosen)
    return found


def plain(voters: set[int], learners: set[int], wanted: tuple[ConfChangeItem, ...]) -> tuple[set[int], set[int]]:
    """The oracle: one item after the other, on two plain sets."""
    voters, learners = set(voters), set(learners)
    for one in wanted:
        voters.discard(one.member)
        learners.discard(one.member)
        if one.kind == ADD:
            voters.add(one.member)
        elif one.kind == LEARN:
            learners.add(one.member)
    return voters, learners


@given(configurations(), st.lists(items, max_size=5).map(tuple))
def test_joint_and_left_is_what_plain_sets_say(start: Configuration, wanted: tuple[ConfChangeItem, ...]) -> None:
    voters, learners = plain(set(start.voters), set(start.learners), wanted)
    if not voters:
        with pytest.raises(ConfChangeInvalid):
            membership.enter_joint(start, wanted, False)
        return
    joint = membership.enter_joint(start, wanted, False)
    assert joint.outgoing == start.voters and joint.voters == voters
    left = membership.leave_joint(joint)
    assert (set(left.voters), set(left.learners), left.joint) == (voters, learners, False)


@given(configurations(), items)
def test_simple_equals_joint(start: Configuration, one: ConfChangeItem) -> None:
    try:
        simple = membership.simple(start, (one,))
    except ConfChangeInvalid:
        assume(False)
        raise
    assert simple == membership.leave_joint(membership.enter_joint(start, (one,), True))


@given(configurations(), st.lists(changes, max_size=4))
def test_quorums_of_neighbours_always_meet(current: Configuration, wanted: list[ConfChange]) -> None:
    """What one configuration decided, no quorum of the next can fail to see: no split brain across a change."""
    for change in wanted:
        try:
            following = membership.change(current, change)
        except ConfChangeInvalid:
            continue
        membership.check(following)
        for one, other in itertools.product(quorums(current), quorums(following)):
            assert one & other
        current = following


@given(configurations(), changes)
def test_change_leaves_its_argument_alone_and_state_restores(start: Configuration, change: ConfChange) -> None:
    before = start.state()
    try:
        following = membership.change(start, change)
    except ConfChangeInvalid:
        following = start
    assert start.state() == before
    assert membership.restore(following.state()) == following


@given(changes)
def test_changes_survive_encoding(change: ConfChange) -> None:
    decoded = membership.decode_change(membership.encode_change(change))
    assert decoded.items == change.items
    assert not change.items or decoded == change


def test_leaving_takes_no_room() -> None:
    assert membership.encode_change(ConfChange()) == b""


def test_two_voters_need_a_joint_configuration() -> None:
    start = Configuration(frozenset({1}))
    with pytest.raises(ConfChangeInvalid, match="more than one voter"):
        membership.simple(start, (item(ADD, 2), item(ADD, 3)))
    joint = membership.change(start, ConfChange((item(ADD, 2), item(ADD, 3))))
    assert joint.joint and joint.auto_leave


def test_demoted_voter_votes_until_the_joint_configuration_is_left() -> None:
    joint = membership.enter_joint(Configuration(frozenset({1, 2, 3})), (item(LEARN, 3),), False)
    assert joint.state() == ConfState((1, 2), (), (1, 2, 3), (3,))
    assert 3 in joint.deciders()
    assert membership.leave_joint(joint).state() == ConfState((1, 2), (3,))


@pytest.mark.parametrize(
    ("start", "change"),
    [
        (Configuration(frozenset({1})), ConfChange()),
        (Configuration(frozenset({1})), ConfChange((item(REMOVE, 1),))),
        (Configuration(frozenset({1}), frozenset({1, 2})), ConfChange((item(ADD, 3),))),
        (Configuration(frozenset({1}), frozenset({1, 2})), ConfChange((item(ADD, 3), item(ADD, 4)))),
        (Configuration(), ConfChange((item(ADD, 3), item(ADD, 4)))),
        (Configuration(frozenset({1})), ConfChange((item(ADD, 0),))),
        (Configuration(frozenset({1})), ConfChange((ConfChangeItem(9, 2),))),
    ],
)
def test_impossible_changes_are_refused(start: Configuration, change: ConfChange) -> None:
    with pytest.raises(ConfChangeInvalid):
        membership.change(start, change)


@pytest.mark.parametrize(
    "state",
    [
        ConfState((1, 2), (2,)),
        ConfState((1,), (), (2,), (3,)),
        ConfState((1,), (), (), (2,)),
        ConfState((1,), auto_leave=True),
        ConfState((1, 2), (), (1, 2), (2,)),
    ],
)
def test_contradictory_states_are_refused(state: ConfState) -> None:
    with pytest.raises(ConfChangeInvalid):
        membership.restore(state)
