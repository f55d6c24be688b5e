"""What the paper does not say: bounds, incarnations, transfer, reads, snapshots and bad input."""

from __future__ import annotations

import random

import pytest

from metadata.raft.core import Config, ConfChangeRefused, MalformedMessage, ProposalDropped, ReadMode, Role
from metadata.raft.membership import encode_change
from metadata.raft.messages import (
    ConfChange,
    ConfChangeItem,
    ConfChangeKind,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Kind,
    Message,
    SnapshotMeta,
)
from metadata.raft.progress import State
from metadata.raft.storage import MemoryStorage
from node.wire import limits
from tests.unit.raft.group import Group, Member
from tests.unit.raft.test_bugs import acked, append, change, entries, granted, lead, member, role, terms

ADD, LEARN, REMOVE = ConfChangeKind.ADD_VOTER, ConfChangeKind.ADD_LEARNER, ConfChangeKind.REMOVE


def state(one: Member, other: int) -> State:
    return one.node.progress[other].state


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0},
        {"election_ticks": 2, "heartbeat_ticks": 2},
        {"heartbeat_ticks": 0},
        {"max_inflight_messages": 0},
        {"max_inflight_bytes": 10},
        {"read_mode": ReadMode.LEASE, "check_quorum": False},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Config(**{"id": 1, **wrong})  # type: ignore[arg-type]


# --- incarnations -------------------------------------------------------------------------------------------------


def test_replies_to_an_earlier_incarnation_move_nothing() -> None:
    """Member 3 is removed and added again, with an empty disk. What its former self acknowledged does not count."""
    one = member()
    lead(one, 2)
    one.node.step(acked(one.node, 2, 1))
    one.settle()
    one.node.propose(b"x")
    one.settle()
    old = acked(one.node, 3, 2)
    for kind in (REMOVE, ADD):
        one.node.propose_conf(change((kind, 3)))
        one.settle()
        one.node.step(acked(one.node, 2, one.node.log.last))
        one.settle()
    assert one.node.progress[3].match == 0
    one.node.step(old)
    assert one.node.progress[3].match == 0 and one.node.progress[3].state == State.PROBE
    one.node.step(acked(one.node, 3, 2))
    assert one.node.progress[3].match == 2


def test_nobody_proves_entries_that_do_not_exist() -> None:
    one = member()
    lead(one, 2)
    one.node.step(acked(one.node, 2, 99))
    assert one.node.log.committed == 0 and one.node.progress[2].match == 0


# --- bounds -------------------------------------------------------------------------------------------------------


def test_uncommitted_bytes_are_bounded_and_freed_when_applied() -> None:
    one = member(max_uncommitted_bytes=100)
    lead(one, 2)
    one.node.step(acked(one.node, 2, 1))
    one.settle()
    one.node.propose(bytes(150))  # one alone always passes
    with pytest.raises(ProposalDropped):
        one.node.propose(b"x")
    one.node.propose(b"")
    one.settle()
    one.node.step(acked(one.node, 2, one.node.log.last))
    one.settle()
    assert one.node.uncommitted_bytes == 0
    one.node.propose(bytes(60))
    one.node.propose(bytes(40))
    with pytest.raises(ProposalDropped):
        one.node.propose(b"x")


def test_leaving_a_joint_configuration_passes_every_bound() -> None:
    group = Group(1, index=1, max_uncommitted_bytes=10)
    group.elect(1)
    group[1].propose_conf(change((LEARN, 2), (LEARN, 3)))
    group[1].uncommitted_bytes = 1 << 20
    group.stabilize()
    assert not group[1].conf.joint and group[1].conf.learners == {2, 3}


def test_messages_are_bounded_but_carry_at_least_one_entry() -> None:
    group = Group(2, max_message_bytes=100, max_inflight_bytes=0)
    group.elect(1)
    for _ in range(20):
        group.propose(bytes(40))
    group.propose(bytes(500))
    sizes = []

    def measure(message: Message) -> bool:
        if message.kind == Kind.APPEND:
            sizes.append((len(message.entries), sum(len(e.data) + 16 for e in message.entries)))
        return True

    group.stabilize(measure)
    assert all(size <= 100 or count == 1 for count, size in sizes)
    assert terms(group.members[2]) == terms(group.members[1]) and max(count for count, _ in sizes) == 1


def test_a_silent_follower_fills_its_window_and_no_more() -> None:
    group = Group(3, max_inflight_messages=4, coalesce=False)
    group.elect(1)
    group.isolate(3)
    for number in range(50):
        group.propose(b"%d" % number)
        group.stabilize()
    assert group[1].log.committed == 51
    assert len(group[1].progress[3].inflights) == 4
    appends = [m for m in group.lost if m.kind == Kind.APPEND and m.to == 3 and m.entries]
    assert len(appends) == 4
    group.heal()
    group.tick(4)
    assert group.members[3].data() == group.members[1].data()


def test_coalescing_sends_one_append_for_many_proposals() -> None:
    group = Group(3, coalesce=True)
    group.elect(1)
    for number in range(64):
        group.propose(b"%d" % number)
    group.collect()
    appends = group.take(Kind.APPEND)
    assert [(m.to, len(m.entries)) for m in appends] == [(2, 64), (3, 64)]


def test_waiting_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RAFT_READS_WAITING_MAX", 3)
    group = Group(3)
    group.elect(1)
    group.isolate(2)
    assert [group[1].read_index(n) for n in range(6)] == [True] * 4 + [False] * 2, "one is on its way, three wait"
    for number in range(10):
        assert group[2].read_index(number)
    assert list(group[2].forwarded.values()) == [7, 8, 9], "those asked last"
    group.stabilize()
    assert sorted(r.context for r in group.members[1].reads) == [0, 1, 2, 3]


# --- proposals ----------------------------------------------------------------------------------------------------


def test_proposals_are_refused_where_they_cannot_go() -> None:
    group = Group(3)
    with pytest.raises(ProposalDropped):
        group[1].propose(b"x")
    with pytest.raises(ProposalDropped):
        group[1].forward(EntryKind.NORMAL, b"x")
    group.elect(1)
    with pytest.raises(ProposalDropped):
        group[2].propose(b"x")
    with pytest.raises(ConfChangeRefused):
        group[1].propose_conf(ConfChange())
    with pytest.raises(ProposalDropped):
        group[2].propose_conf(ConfChange())
    group[2].forward(EntryKind.NORMAL, b"x")
    group[1].forward(EntryKind.NORMAL, b"y")
    group.stabilize()
    assert group.members[3].data() == [b"y", b"x"]


def test_a_forwarded_change_is_checked_like_any_other() -> None:
    group = Group(3, index=1)
    group.elect(1)
    group[2].forward(EntryKind.CONF, encode_change(change((LEARN, 7))))
    group[3].forward(EntryKind.CONF, encode_change(change((LEARN, 8))))
    group.stabilize()
    assert group[1].conf.learners == {7} == group[3].conf.learners


# --- transfer -----------------------------------------------------------------------------------------------------


def test_transfer_blocks_proposals_until_it_is_done_or_given_up() -> None:
    group = Group(3)
    group.elect(1)
    group.isolate(2)
    group[1].transfer_leader(2)
    with pytest.raises(ProposalDropped):
        group[1].propose(b"x")
    group.tick(group[1].config.election_ticks)
    assert group[1].propose(b"y")[1] == 1
    group.heal()
    group[1].transfer_leader(3)
    group.stabilize()
    assert group[3].role == Role.LEADER and group[1].role == Role.FOLLOWER


def test_transfer_to_oneself_learners_and_strangers_is_ignored() -> None:
    group = Group((1, 2), learners=(3,))
    group.elect(1)
    for target in (1, 3, 9):
        group[1].transfer_leader(target)
        assert group[1].transferee == 0
    group[1].propose(b"x")


def test_a_second_transfer_replaces_the_first() -> None:
    group = Group(3)
    group.elect(1)
    group.isolate(2)
    group[1].transfer_leader(2)
    group[1].transfer_leader(2)
    group[1].transfer_leader(3)
    group.stabilize()
    assert group[3].role == Role.LEADER


def test_transfer_is_given_up_when_its_target_is_removed() -> None:
    one = member()
    lead(one, 2)
    one.node.step(acked(one.node, 2, 1))
    one.settle()
    one.node.propose_conf(change((REMOVE, 3)))
    one.settle()
    one.node.transfer_leader(3)
    assert one.node.transferee == 3
    one.node.step(acked(one.node, 2, 2))
    one.settle()
    assert one.node.transferee == 0 and one.node.conf.voters == {1, 2}


def test_a_joint_configuration_is_left_after_a_transfer_came_in_between() -> None:
    one = member()
    lead(one, 2)
    one.node.step(acked(one.node, 2, 1))
    one.settle()
    one.node.propose_conf(change((REMOVE, 3), (LEARN, 4)))
    one.settle()
    one.node.transfer_leader(3)
    one.node.step(acked(one.node, 2, 2))
    one.settle()
    assert one.node.conf.joint and one.node.log.last == 2, "no proposals during a transfer"
    for _ in range(one.config.election_ticks + one.config.heartbeat_ticks):
        one.node.tick()
    assert one.node.transferee == 0 and one.node.log.last == 3
    one.node.tick()
    assert one.node.log.last == 3, "once"


# --- reads --------------------------------------------------------------------------------------------------------


def test_one_round_confirms_all_that_waited() -> None:
    group = Group(3)
    group.elect(1)
    for number in range(100):
        group[1].read_index(number)
        if number % 3 == 0:
            group[2].read_index(number)
    rounds = set()

    def watch(message: Message) -> bool:
        if message.kind == Kind.HEARTBEAT and message.context:
            rounds.add(message.context)
        return True

    group.stabilize(watch)
    assert [r.context for r in group.members[1].reads] == list(range(100))
    assert [r.context for r in group.members[2].reads] == list(range(0, 100, 3))
    assert len(rounds) <= 3


@pytest.mark.parametrize(("rounds", "begun"), [(1, 1), (2, 2), (4, 3)])
def test_rounds_overlap_as_configured(rounds: int, begun: int) -> None:
    """Each has the commit index of its beginning; the answer to a later one stands for those before."""
    group = Group(3, read_rounds=rounds)
    group.elect(1)
    node = group[1]
    for number in range(3):
        assert node.read_index(number)
    book = node.reads
    assert len(book.rounds) == begun and len(book.waiting) == 3 - begun
    assert [[asked.context for asked in one.requests] for one in book.rounds] == [[n] for n in range(begun)]
    group.stabilize(lambda message: message.kind != Kind.HEARTBEAT or message.context in (0, book.number))
    assert [state.context for state in group.members[1].reads][:begun] == list(range(begun))


def test_a_lost_round_is_repeated_by_the_next_heartbeat() -> None:
    group = Group(3)
    group.elect(1)
    group[1].read_index(1)
    group.stabilize(lambda m: m.kind != Kind.HEARTBEAT)
    group[1].read_index(2)
    assert not group.members[1].reads
    group.tick(2, members=(1,))
    assert [r.context for r in group.members[1].reads] == [1, 2]


def test_reads_at_a_follower_end_with_its_leader() -> None:
    group = Group(3)
    assert not group[2].read_index(1)
    group.elect(1)
    group[2].read_index(2)
    group[2].become_follower(9, 0)
    assert not group[2].forwarded and not group[2].read_index(3)


def test_learners_do_not_confirm_reads() -> None:
    group = Group((1, 2), learners=(3,))
    group.elect(1)
    group.isolate(2)
    group[1].read_index(1)
    group.tick(3, members=(1,))
    assert not group.members[1].reads
    group.heal()
    group.tick(3, members=(1,))
    assert group.members[1].reads


# --- snapshots ----------------------------------------------------------------------------------------------------


def test_no_snapshot_is_offered_to_the_silent_nor_before_there_is_one() -> None:
    one = member(1, 1)
    lead(one, 2)
    one.node.step(acked(one.node, 2, 3))
    one.settle()
    one.storage.compact(3, one.conf)
    one.storage.snapshot_ready = False
    rejection = Message(Kind.APPEND_REPLY, 1, 3, 2, index=2, reject=True, session=one.node.progress[3].session)
    one.node.step(rejection)
    assert not [m for m in one.settle() if m.kind == Kind.SNAPSHOT]
    assert state(one, 3) == State.PROBE
    one.storage.snapshot_ready = True
    one.node.step(Message(Kind.HEARTBEAT_REPLY, 1, 3, 2))
    (offer,) = [m for m in one.settle() if m.kind == Kind.SNAPSHOT]
    assert offer.to == 3 and state(one, 3) == State.SNAPSHOT
    one.node.propose(b"x")
    assert not [m for m in one.settle() if m.to == 3], "a slow newcomer costs nothing meanwhile"
    one.node.step(Message(Kind.APPEND_REPLY, 1, 3, 2, index=3, session=offer.session))
    assert [len(m.entries) for m in one.settle() if m.to == 3] == [1]
    assert state(one, 3) == State.REPLICATE


def test_a_snapshot_is_not_offered_to_a_member_that_it_does_not_know() -> None:
    group = Group(3, index=1)
    group.elect(1)
    group.stabilize()
    one = group.members[1]
    one.storage.fresh = None
    one.storage.compact(2, one.conf)
    group.add(4, MemoryStorage())
    group[1].propose_conf(change((LEARN, 4)))
    group.stabilize()
    group.tick(4)
    assert group[4].log.last == 0 and state(one, 4) == State.PROBE
    one.storage.compact(3, one.conf)
    group.tick(4)
    assert group[4].conf.learners == {4} and state(one, 4) == State.REPLICATE


def test_a_newcomer_waits_for_the_first_snapshot() -> None:
    group = Group(3)
    group.elect(1)
    group.stabilize()
    one = group.members[1]
    one.storage.fresh = None  # nothing was applied durably yet: what could be offered is the state at index 0
    group.add(4, MemoryStorage())
    group[1].propose_conf(change((LEARN, 4)))
    group.stabilize()
    group.tick(4)
    assert group[4].log.last == 0 and state(one, 4) == State.PROBE
    one.storage.compact(2, one.conf)
    group.tick(4)
    assert group[4].conf.learners == {4} and state(one, 4) == State.REPLICATE


def test_a_snapshot_brings_the_membership() -> None:
    group = Group(3, index=1)
    group.elect(1)
    for number in range(5):
        group.propose(b"%d" % number)
    group.stabilize()
    group.add(4, MemoryStorage())
    group[1].propose_conf(change((LEARN, 4)))
    group.stabilize()
    assert group[4].conf.state() == ConfState((1, 2, 3), (4,))
    group.members[4].restart(applied=group[4].log.applied)
    assert group[4].conf.state() == ConfState((1, 2, 3), (4,))


def test_a_newcomer_takes_no_entries_before_it_knows_the_membership() -> None:
    """The log goes back to the founding, and yet no entry names the founders: replaying it would make the newcomer the
    only voter it knows, and leader of a group of its own."""
    group = Group(3)
    group.elect(1)
    group.conf = ConfState()
    group.add(4)
    group.members[1].storage.snapshot_ready = False
    group[1].propose_conf(change((ADD, 4)))
    group.stabilize()
    group.tick(6)
    assert (group[4].log.last, group[4].conf.state()) == (0, ConfState())
    group.tick(50, members=(4,))
    assert group[4].term == 1
    group.members[1].storage.snapshot_ready = True
    group.tick(6)
    assert group[4].conf.voters == {1, 2, 3, 4}
    assert group[4].log.applied == group[1].log.last and terms(group.members[1]) == [1, 1]


def test_no_campaign_while_a_snapshot_is_being_installed() -> None:
    one = member(async_storage=True)
    one.node.step(Message(Kind.SNAPSHOT, 1, 2, 3, snapshot=SnapshotMeta(9, 2, ConfState((1, 2, 3)))))
    one.ready()
    one.node.campaign()
    assert role(one.node) == Role.FOLLOWER
    one.append_one()
    one.node.campaign()
    assert role(one.node) == Role.CANDIDATE


def test_an_install_that_a_new_term_overtakes_still_counts() -> None:
    """The completion carries an old term; the snapshot is committed state all the same."""
    one = member(async_storage=True)
    one.node.step(Message(Kind.SNAPSHOT, 1, 2, 3, snapshot=SnapshotMeta(9, 2, ConfState((1, 2, 3)))))
    one.ready()
    one.node.step(Message(Kind.HEARTBEAT, 1, 3, 4))
    one.append_one()
    assert one.node.log.applied == 9 and one.node.log.next_snapshot() is None


# --- membership ---------------------------------------------------------------------------------------------------


def test_a_newcomer_gets_an_election_time_out_before_it_counts_as_silent() -> None:
    group = Group(1, index=1)
    group.elect(1)
    group[1].propose_conf(change((ADD, 2)))
    group.stabilize()
    assert group[1].conf.voters == {1, 2}
    group.tick(group[1].config.election_ticks, members=(1,))
    assert role(group[1]) == Role.LEADER
    group.tick(group[1].config.election_ticks, members=(1,))
    assert role(group[1]) == Role.FOLLOWER


def test_removing_a_member_commits_what_waited_for_it() -> None:
    one = member()
    lead(one, 2, 3)
    for sender in (2, 3):
        one.node.step(acked(one.node, sender, 1))
    one.settle()
    one.node.propose_conf(change((REMOVE, 3)))
    one.settle()
    one.node.propose(b"waits")
    one.settle()
    one.node.step(acked(one.node, 2, 2))
    one.settle()
    assert one.node.log.committed == 2 and one.node.conf.voters == {1, 2}
    one.node.propose_conf(change((REMOVE, 2)))
    one.settle()
    one.node.step(acked(one.node, 2, 4))
    one.settle()
    assert one.node.conf.voters == {1} and one.node.log.committed == 4
    one.node.propose(b"alone")
    one.settle()
    assert one.data()[-1] == b"alone"


@pytest.mark.parametrize("seed", range(6))
def test_groups_survive_churn(seed: int) -> None:
    """Members come and go, leaders change, messages are lost; in the end all members hold the same."""
    rng = random.Random(seed)
    group = Group(3, index=1, random=rng.randrange, async_storage=bool(seed % 2), coalesce=bool(seed % 3))
    group.tick(30)
    following = 4
    for _ in range(60):
        for _ in range(20):
            if group.leader():
                break
            group.tick(10)
        leader = group.leader()
        kind = rng.random()
        try:
            if kind < 0.5:
                group[leader].propose(b"%d" % rng.randrange(1000))
            elif kind < 0.6 and len(group[leader].conf.members()) < 6:
                group.add(following, MemoryStorage())
                group[leader].propose_conf(change((rng.choice([ADD, LEARN]), following)))
                following += 1
            elif kind < 0.75 and len(group[leader].conf.voters) > 2:
                gone = rng.choice(sorted(group[leader].conf.members()))
                group[leader].propose_conf(change((REMOVE, gone)))
            elif kind < 0.85:
                moved = rng.sample(sorted(group[leader].conf.members()), 2)
                group[leader].propose_conf(change((ADD, moved[0]), (LEARN, moved[1])))
            else:
                group[leader].transfer_leader(rng.choice(sorted(group[leader].conf.voters)))
        except ProposalDropped:
            pass
        loss = rng.choice([0, 0, 0.1, 0.3])
        group.stabilize(lambda m, loss=loss: rng.random() >= loss)  # type: ignore[misc]
        group.tick(rng.randrange(4))
    group.tick(80)
    leader = group.leader()
    final = group[leader]
    assert final.log.applied == final.log.last and not final.conf.joint
    for id_ in final.conf.members():
        other = group[id_]
        assert (other.conf, other.log.applied) == (final.conf, final.log.applied)
        low, end = max(other.log.first_index(), final.log.first_index()), final.log.last + 1
        assert other.log.entries(low, end, 1 << 30) == final.log.entries(low, end, 1 << 30)


# --- input --------------------------------------------------------------------------------------------------------


def test_impossible_changes_never_enter_the_log() -> None:
    group = Group(1, index=1)
    group.elect(1)
    for bad in (change((REMOVE, 1)), change((ADD, -3)), change((LEARN, 1))):
        with pytest.raises(ConfChangeRefused):
            group[1].propose_conf(bad)
    assert group[1].log.last == 2
    with pytest.raises(MalformedMessage):
        group[1].step(Message(Kind.FORWARD_PROPOSAL, 1, 2, entries=(Entry(0, 0, EntryKind.CONF, b"\xc1"),)))


def test_a_term_found_in_the_log_only_is_taken_over_without_a_vote() -> None:
    one = member(1, 3, hard=HardState(2, 2, 1))
    assert (one.node.term, one.node.vote) == (3, 0)
    one.settle()
    assert one.durable.hard == HardState(3, 0, 1)
    assert member(1, 3, hard=HardState(3, 2, 1)).node.ready().hard_state is None


def test_malformed_messages_are_refused_without_effect() -> None:
    one = member(1)
    before = one.node.snapshot_key()
    for bad in (
        append(1, 5, 1, 1, entries(3, 5)),
        append(1, 5, 1, 1, (Entry(2, 5), Entry(4, 5))),
        Message(Kind.SNAPSHOT, 1, 2, 5),
    ):
        with pytest.raises(MalformedMessage):
            one.node.step(bad)
    one.node.step(append(7, 5, 0, 0, ()))  # for somebody else
    one.node.step(Message(Kind.APPEND_DONE, 1, 2, 1, 1, 1))  # a stranger speaks for our disk
    one.node.step(Message(99, 1, 2, 1))
    assert one.node.snapshot_key() == before


def test_a_granted_pre_vote_of_another_round_does_not_count() -> None:
    one = member(1, 1, pre_vote=True)
    one.node.campaign()
    one.settle()
    for stale in (
        Message(Kind.PRE_VOTE_REPLY, 1, 2, 1, 1, 2),  # for the current term, not the next
        Message(Kind.PRE_VOTE_REPLY, 1, 2, 7, 1, 2),
        Message(Kind.PRE_VOTE_REPLY, 1, 2, 2, 1, 1),  # for a log that we do not have
    ):
        one.node.step(stale)
        assert role(one.node) == Role.PRECANDIDATE
    one.node.step(Message(Kind.PRE_VOTE_REPLY, 1, 2, 2, 1, 2))
    assert role(one.node) == Role.CANDIDATE


def test_grants_name_the_log_they_were_given_for() -> None:
    one = member(1, 1)
    one.node.campaign()
    one.settle()
    grant = granted(one.node, 2)
    one.node.step(Message(grant.kind, 1, 2, grant.term, grant.log_term, grant.index + 1))
    assert role(one.node) == Role.CANDIDATE
    one.node.step(grant)
    assert role(one.node) == Role.LEADER


def test_ready_comes_in_pairs_with_advance() -> None:
    one = member()
    one.node.campaign()
    one.node.ready()
    with pytest.raises(AssertionError):
        one.node.ready()
    one.node.advance()
    with pytest.raises(AssertionError):
        one.node.advance()


def test_unreachable_and_forgotten() -> None:
    group = Group(3)
    group.elect(1)
    group[1].report_unreachable(2)
    assert group[1].progress[2].state == State.PROBE
    group[1].report_unreachable(9)
    group[1].report_snapshot(2, True)
    group[1].forget_leader()
    assert group[1].role == Role.LEADER
    group[2].forget_leader()
    assert group[2].leader == 0
    group.tick(2)
    assert group[2].leader == 1


def test_a_clone_lives_its_own_life() -> None:
    one = member(1, 1)
    lead(one, 2)
    node = one.node
    node.read_index(1)
    node.propose(b"x")
    storage = one.storage.copy()
    other = node.clone(storage)
    assert other.snapshot_key() == node.snapshot_key()
    before = node.snapshot_key()
    other.propose(b"y")
    other.step(acked(other, 2, 3))
    other.ready()
    other.tick()
    assert node.snapshot_key() == before != other.snapshot_key()


def test_conf_change_items_of_one_member_follow_each_other() -> None:
    one = member(conf=ConfState((1, 2, 3)))
    lead(one, 2)
    one.node.step(acked(one.node, 2, 1))
    one.settle()
    one.node.propose_conf(ConfChange((ConfChangeItem(REMOVE, 3), ConfChangeItem(LEARN, 3))))
    one.settle()
    one.node.step(acked(one.node, 2, 2))
    one.settle()
    assert one.node.conf.learners_next == {3} and 3 in one.node.progress
