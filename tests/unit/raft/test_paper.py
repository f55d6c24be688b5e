"""The paper's rules (Ongaro, Ousterhout: In Search of an Understandable Consensus Algorithm), section by section."""

from __future__ import annotations

import random

import pytest

from metadata.raft.core import ProposalDropped, Role
from metadata.raft.messages import (
    ConfChange,
    ConfChangeItem,
    ConfChangeKind,
    ConfState,
    Entry,
    HardState,
    Kind,
    Message,
)
from tests.unit.raft.group import Group
from tests.unit.raft.test_bugs import acked, append, entries, granted, lead, member, role, terms, vote

PEER_KINDS = (Kind.APPEND, Kind.HEARTBEAT, Kind.VOTE, Kind.VOTE_REPLY, Kind.APPEND_REPLY, Kind.HEARTBEAT_REPLY)


# --- 5.1 terms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
@pytest.mark.parametrize("kind", PEER_KINDS)
def test_5_1_a_larger_term_makes_a_follower(state: Role, kind: Kind) -> None:
    one = member(1)
    if state == Role.CANDIDATE:
        one.node.campaign()
    elif state == Role.LEADER:
        lead(one, 2)
    one.node.step(Message(kind, 1, 2, 9))
    assert role(one.node) == Role.FOLLOWER and one.node.term == 9


@pytest.mark.parametrize("kind", [Kind.APPEND, Kind.VOTE, Kind.VOTE_REPLY, Kind.APPEND_REPLY, Kind.HEARTBEAT_REPLY])
def test_5_1_messages_of_a_stale_term_are_rejected(kind: Kind) -> None:
    one = member(1, hard=HardState(5, 0, 0))
    before = one.node.snapshot_key()
    one.node.step(Message(kind, 1, 2, 4, index=0))
    assert one.node.snapshot_key() == before


def test_5_1_a_term_never_falls() -> None:
    one = member(1, hard=HardState(5, 0, 0))
    with pytest.raises(AssertionError):
        one.node.become_follower(4, 2)


# --- 5.2 elections ------------------------------------------------------------------------------------------------


def test_5_2_members_start_as_followers() -> None:
    assert all(one.node.role == Role.FOLLOWER for one in Group(3).members.values())


def test_5_2_a_leader_sends_heartbeats() -> None:
    one = member(1)
    lead(one, 2)
    for _ in range(one.config.heartbeat_ticks):
        one.node.tick()
    assert [(m.kind, m.to) for m in one.settle() if m.kind == Kind.HEARTBEAT] == [
        (Kind.HEARTBEAT, 2), (Kind.HEARTBEAT, 3),
    ]  # fmt: skip


def test_5_2_a_follower_without_a_leader_begins_an_election() -> None:
    one = member(1)
    for _ in range(one.config.election_ticks):
        one.node.tick()
    assert (role(one.node), one.node.vote, one.node.term) == (Role.CANDIDATE, 1, 2)
    assert [(m.kind, m.to, m.term) for m in one.settle()] == [(Kind.VOTE, 2, 2), (Kind.VOTE, 3, 2)]


@pytest.mark.parametrize(
    ("size", "grants", "refusals", "expected"),
    [
        (1, (), (), Role.LEADER),
        (3, (2,), (), Role.LEADER),
        (3, (), (), Role.CANDIDATE),
        (3, (), (2,), Role.CANDIDATE),
        (3, (), (2, 3), Role.FOLLOWER),
        (5, (2,), (), Role.CANDIDATE),
        (5, (2, 3), (4, 5), Role.LEADER),
        (5, (2,), (3, 4, 5), Role.FOLLOWER),
    ],
)
def test_5_2_a_majority_elects(size: int, grants: tuple[int, ...], refusals: tuple[int, ...], expected: Role) -> None:
    one = member(conf=ConfState(tuple(range(1, size + 1))))
    one.node.campaign()
    one.settle()
    for voter in grants:
        one.node.step(granted(one.node, voter))
    for voter in refusals:
        one.node.step(Message(Kind.VOTE_REPLY, 1, voter, one.node.term, reject=True))
    assert role(one.node) == expected and one.node.term == 1


@pytest.mark.parametrize(
    ("voted", "candidate", "grant"), [(0, 2, True), (0, 3, True), (2, 2, True), (2, 3, False), (3, 2, False)]
)
def test_5_2_votes_are_first_come_first_served(voted: int, candidate: int, grant: bool) -> None:
    one = member(hard=HardState(4, voted, 0))
    one.node.step(vote(1, candidate, 4))
    (reply,) = one.settle()
    assert reply.reject is not grant


@pytest.mark.parametrize("term", [1, 5])
def test_5_2_a_candidate_yields_to_a_leader_of_its_term_or_later(term: int) -> None:
    one = member()
    one.node.campaign()
    one.settle()
    one.node.step(append(1, term, 0, 0, ()))
    assert (role(one.node), one.node.leader, one.node.term) == (Role.FOLLOWER, 2, term)


def test_5_2_a_candidate_starts_over_when_nobody_wins() -> None:
    one = member()
    one.node.campaign()
    for _ in range(one.config.election_ticks):
        one.node.tick()
    assert role(one.node) == Role.CANDIDATE and one.node.term == 2


def test_5_2_time_outs_are_random_and_redrawn() -> None:
    rng = random.Random(3)
    one = member()
    one.node.random = rng.randrange
    seen = set()
    for _ in range(200):
        one.node.campaign()
        seen.add(one.node.election_timeout)
    ticks = one.config.election_ticks
    assert seen == set(range(ticks, 2 * ticks))


def test_5_2_random_time_outs_make_split_votes_rare() -> None:
    rng = random.Random(11)
    terms_used = []
    for _ in range(20):
        group = Group(5, random=rng.randrange, pre_vote=False)
        group.tick(60)
        assert group.leader()
        terms_used.append(group[group.leader()].term)
    assert sum(terms_used) / len(terms_used) < 2


# --- 5.3 replication ----------------------------------------------------------------------------------------------


def test_5_3_a_leader_appends_and_sends_in_parallel() -> None:
    one = member()
    lead(one, 2)
    for sender in (2, 3):
        one.node.step(acked(one.node, sender, 1))
    one.settle()
    assert one.node.propose(b"x") == (2, 1)
    ready = one.node.ready()
    assert [(e.index, e.term, e.data) for e in ready.entries] == [(2, 1, b"x")]
    sent = [(m.to, m.index, m.log_term, m.entries) for m in ready.messages]
    assert sent == [(to, 1, 1, tuple(ready.entries)) for to in (2, 3)]


@pytest.mark.parametrize(
    ("size", "acceptors", "committed"),
    [(1, (), True), (3, (), False), (3, (2,), True), (5, (2,), False), (5, (2, 3), True), (4, (2,), False)],
)
def test_5_3_an_entry_is_committed_when_a_majority_has_it(
    size: int, acceptors: tuple[int, ...], committed: bool
) -> None:
    one = member(conf=ConfState(tuple(range(1, size + 1))))
    lead(one, *range(2, size + 1))
    for sender in acceptors:
        one.node.step(acked(one.node, sender, 1))
    assert (one.node.log.committed == 1) is committed


def test_5_3_committing_commits_everything_before() -> None:
    one = member(1, 1, 2)
    lead(one, 2)
    one.node.step(acked(one.node, 2, 4))
    one.settle()
    assert [e.index for e in one.applied] == [1, 2, 3, 4]


def test_5_3_a_follower_learns_what_is_committed_and_applies_in_order() -> None:
    one = member()
    one.node.step(append(1, 1, 0, 0, entries(1, 1, 1), commit=1))
    one.settle()
    assert [e.index for e in one.applied] == [1]
    one.node.step(append(1, 1, 2, 1, entries(3, 1), commit=3))
    one.settle()
    assert [e.index for e in one.applied] == [1, 2, 3]


@pytest.mark.parametrize(
    ("index", "term", "hint"), [(1, 1, None), (2, 2, None), (1, 2, (1, 1)), (3, 3, (2, 2)), (3, 1, (1, 1))]
)
def test_5_3_a_follower_checks_what_comes_before(index: int, term: int, hint: tuple[int, int] | None) -> None:
    one = member(1, 2)
    one.node.step(append(1, 3, index, term, ()))
    (reply,) = one.settle()
    assert reply.reject is (hint is not None)
    if hint is not None:
        assert (reply.index, reply.hint_index, reply.hint_term) == (index, *hint)


@pytest.mark.parametrize(
    ("index", "term", "new", "expected"),
    [
        (2, 2, entries(3, 3), [1, 2, 3]),
        (1, 1, entries(2, 3, 4), [1, 3, 4]),
        (0, 0, entries(1, 1), [1, 2]),
        (0, 0, entries(1, 3), [3]),
    ],
)
def test_5_3_a_follower_replaces_what_conflicts(
    index: int, term: int, new: tuple[Entry, ...], expected: list[int]
) -> None:
    one = member(1, 2)
    one.node.step(append(1, 9, index, term, new))
    one.settle()
    assert terms(one) == expected == [e.term for e in one.storage.log]


@pytest.mark.parametrize(
    "log",
    [
        (1, 1, 1, 4, 4, 5, 5, 6, 6),
        (1, 1, 1, 4),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
        (1, 1, 1, 4, 4, 4, 4),
        (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
    ],
)
def test_5_3_figure_7_a_leader_makes_every_log_like_its_own(log: tuple[int, ...]) -> None:
    group = Group(3, pre_vote=False, check_quorum=False)
    for id_, held in ((1, (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)), (2, log)):
        one = group.members[id_]
        one.storage.append(list(entries(1, *held)))
        one.storage.set_hard_state(HardState(held[-1], 0, 0))
        one.durable = one.storage.copy()
        one.restart()
    group[3].campaign()
    group.stabilize(lambda m: m.kind in (Kind.VOTE, Kind.VOTE_REPLY) and 3 in (m.to, m.sender))
    group[1].become_follower(8, 0)
    group[1].campaign()
    messages = 0

    def count(message: Message) -> bool:
        nonlocal messages
        messages += message.kind == Kind.APPEND and message.to == 2
        return True

    group.stabilize(count)
    assert group[1].role == Role.LEADER
    assert terms(group.members[2]) == terms(group.members[1])
    assert messages <= 6, "found by term, not entry by entry"


# --- 5.4 safety ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "index", "term", "grant"),
    [
        ((1,), 1, 1, True), ((1,), 2, 1, True), ((1, 1), 1, 1, False), ((1,), 1, 2, True), ((1, 1), 1, 2, True),
        ((2,), 1, 1, False), ((2,), 2, 1, False), ((1, 1), 2, 1, True),
    ],
)  # fmt: skip
def test_5_4_1_a_voter_refuses_a_log_behind_its_own(own: tuple[int, ...], index: int, term: int, grant: bool) -> None:
    one = member(*own, hard=HardState(5, 0, 0))
    one.node.step(vote(1, 2, 6, index, term))
    (reply,) = one.settle()
    assert reply.reject is not grant


@pytest.mark.parametrize(("index", "committed"), [(1, 0), (2, 0), (3, 3)])
def test_5_4_2_only_entries_of_the_own_term_are_committed_by_counting(index: int, committed: int) -> None:
    one = member(1, 2)
    lead(one, 2)
    one.node.step(acked(one.node, 2, index))
    assert one.node.log.committed == committed


def test_5_4_3_a_new_leader_has_everything_that_was_committed() -> None:
    rng = random.Random(1)
    group = Group(5, random=rng.randrange)
    group.tick(30)
    acknowledged: list[bytes] = []
    for round_ in range(25):
        leader = group.leader()
        data = b"%d" % round_
        try:
            index, term = group[leader].propose(data)
        except ProposalDropped:
            continue
        group.cut = {
            (a, b) for a in range(1, 6) for b in range(1, 6) if rng.random() < 0.15
        }
        group.stabilize()
        log = group[leader].log
        if log.committed >= index and log.term(index) == term:
            acknowledged.append(data)
        group.isolate(leader)
        group.tick(35)
        group.heal()
        group.tick(10)
        assert [d for d in group.members[group.leader()].data() if d in acknowledged] == acknowledged
    assert len(acknowledged) > 5


# --- 6 membership, and reads ----------------------------------------------------------------------------------------


def test_6_a_removed_member_does_not_disturb() -> None:
    """It does not know that it is removed, times out and asks for votes; the others heard from their leader."""
    group = Group(4, index=1)
    group.elect(1)
    group.isolate(4)
    group[1].propose_conf(ConfChange((ConfChangeItem(ConfChangeKind.REMOVE, 4),)))
    group.stabilize()
    assert group[1].conf.voters == {1, 2, 3}
    group.heal()
    term = group[1].term
    for _ in range(60):
        group[4].tick()
        group.tick(1, members=(1, 2, 3))
    assert group.leader() == 1 and group[1].term == term


def test_8_a_leader_begins_its_term_with_an_empty_entry() -> None:
    one = member(1, 1)
    lead(one, 2)
    log = one.node.log
    entry = log.entries(log.last, log.last + 1, 1)[0]
    assert (entry.term, entry.data) == (one.node.term, b"")
