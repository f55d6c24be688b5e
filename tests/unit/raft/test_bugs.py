"""Bugs that other Raft implementations had, each played against this core.

Some belong to the log store, the state machine or the driver as much as to the core. Here they are shown against the
core with storage that loses what was not synced; their docstrings name what else covers them.
"""

from __future__ import annotations

import random

import pytest

from metadata.raft.core import Config, ConfChangeRefused, RawNode, ReadMode, Role
from metadata.raft.log import LogDamaged
from metadata.raft.membership import encode_change
from metadata.raft.messages import (
    ConfChange,
    ConfChangeItem,
    ConfChangeKind,
    ConfState,
    ConfTransition,
    Entry,
    EntryKind,
    HardState,
    Kind,
    Message,
    SnapshotMeta,
)
from metadata.raft.storage import MemoryStorage
from tests.unit.raft.group import Group, Member

ADD, LEARN, REMOVE = ConfChangeKind.ADD_VOTER, ConfChangeKind.ADD_LEARNER, ConfChangeKind.REMOVE


def change(*items: tuple[ConfChangeKind, int], transition: ConfTransition = ConfTransition.AUTO) -> ConfChange:
    return ConfChange(tuple(ConfChangeItem(kind, member) for kind, member in items), transition)


def entries(first: int, *terms: int) -> tuple[Entry, ...]:
    return tuple(Entry(first + offset, term, 0, b"%d.%d" % (term, first + offset)) for offset, term in enumerate(terms))


def member(
    *terms: int, hard: HardState | None = None, conf: ConfState | None = None, id: int = 1, **options: object
) -> Member:
    """One member whose log holds entries of these terms, with synchronous storage, no pre-vote and no stickiness."""
    storage = MemoryStorage(conf or ConfState((1, 2, 3)))
    storage.append(list(entries(1, *terms)))
    storage.set_hard_state(hard or HardState(terms[-1] if terms else 0, 0, 0))
    config = Config(id, pre_vote=False, check_quorum=False, coalesce=False)
    for name, value in options.items():
        setattr(config, name, value)
    return Member(config, storage, lambda n: 0)


def lead(one: Member, *granting: int) -> list[Message]:
    """Make the member leader of the next term by these votes. Returns what it then sends."""
    node = one.node
    node.campaign()
    one.settle()
    for voter in granting:
        node.step(granted(node, voter))
    assert role(node) == Role.LEADER
    return one.settle()


def granted(node: RawNode, voter: int) -> Message:
    return Message(Kind.VOTE_REPLY, node.id, voter, node.term, node.log.last_term(), node.log.last)


def role(node: RawNode) -> Role:
    return node.role


def acked(node: RawNode, sender: int, index: int) -> Message:
    session = node.progress[sender].session if sender in node.progress else 0
    return Message(Kind.APPEND_REPLY, node.id, sender, node.term, index=index, session=session)


def append(
    to: int, term: int, index: int, log_term: int, new: tuple[Entry, ...], commit: int = 0, sender: int = 2
) -> Message:
    return Message(Kind.APPEND, to, sender, term, log_term, index, commit, new, session=1)


def terms(one: Member) -> list[int]:
    log = one.node.log
    return [log.term(index) for index in range(log.first_index(), log.last + 1)]


# --- commit and log -----------------------------------------------------------------------------------------------


def test_bug_01_entries_of_earlier_terms_are_not_committed_by_counting() -> None:
    one = member(1, 2)
    lead(one, 2)
    assert terms(one) == [1, 2, 3]
    one.node.step(acked(one.node, 2, 2))
    one.node.step(acked(one.node, 3, 2))
    assert one.node.log.committed == 0, "a majority has entry 2, but it is of an earlier term"
    one.node.step(acked(one.node, 2, 3))
    assert one.node.log.committed == 3


def test_bug_02_late_duplicate_append_deletes_nothing() -> None:
    one = member()
    one.node.step(append(1, 1, 0, 0, entries(1, 1, 1, 1, 1)))
    first = one.settle()
    assert [m.index for m in first] == [4]
    for late in (append(1, 1, 0, 0, entries(1, 1, 1)), append(1, 1, 1, 1, ()), append(1, 1, 1, 1, entries(2, 1))):
        one.node.step(late)
        one.settle()
        assert terms(one) == [1, 1, 1, 1] and len(one.storage.log) == 4


def test_bug_03_the_entry_s_term_is_compared_not_the_message_s() -> None:
    one = member(1, 1, 1)
    one.node.step(append(1, 7, 0, 0, entries(1, 1, 1)))
    one.settle()
    assert terms(one) == [1, 1, 1], "a leader of term 7 sends entries of term 1: they are ours"


def test_bug_04_commit_stops_at_what_the_message_proves() -> None:
    one = member(1, 1, 1)
    one.node.step(append(1, 2, 1, 1, (), commit=3))
    assert one.node.log.committed == 1, "entries 2 and 3 may differ from the leader's"
    one.node.step(append(1, 2, 1, 1, entries(2, 2), commit=9))
    assert one.node.log.committed == 2


def test_bug_05_a_conflict_removes_the_whole_tail() -> None:
    one = member(1, 1, 1, 1)
    one.node.step(append(1, 2, 1, 1, entries(2, 2)))
    one.settle()
    assert terms(one) == [1, 2]
    assert [entry.term for entry in one.storage.log] == [1, 2]


def test_bug_06_a_compacted_previous_entry_is_no_conflict() -> None:
    group = Group(3, coalesce=False)
    group.elect(1)
    for number in range(6):
        group.propose(b"%d" % number)
    group.stabilize()
    follower = group.members[2]
    follower.storage.compact(5, follower.conf)
    before = list(follower.storage.log)
    group[2].step(append(2, 1, 2, 1, entries(3, 1, 1), sender=1))
    (reply,) = follower.settle()
    assert not reply.reject and reply.index == 7, "it answers how far it is"
    assert follower.storage.log == before


def test_bug_31_no_commit_by_a_quorum_that_is_not_in_force() -> None:
    """A change that shrinks the group does not count for the entries behind it before it is applied, and in the joint
    configuration both halves do."""
    one = member()
    lead(one, 2)
    one.node.step(acked(one.node, 2, 1))
    one.settle()
    one.node.propose_conf(change((REMOVE, 2), (REMOVE, 3), transition=ConfTransition.JOINT_EXPLICIT))
    one.node.propose(b"behind")
    one.settle()
    assert one.node.log.committed == 1, "alone, member 1 is no quorum"
    one.node.step(acked(one.node, 2, 2))
    one.settle()
    assert one.node.conf.joint
    assert one.node.log.committed == 2, "entry 3 needs both halves"
    one.node.step(acked(one.node, 3, 3))
    assert one.node.log.committed == 3


def test_bug_39_a_change_of_role_removes_nothing() -> None:
    one = member(1, 1, 2)
    node = one.node
    lead(one, 2)
    node.propose(b"mine")
    one.settle()
    before = terms(one)
    node.step(Message(Kind.HEARTBEAT, 1, 3, node.term + 1))
    assert role(node) == Role.FOLLOWER and terms(one) == before
    node.campaign()
    assert role(node) == Role.CANDIDATE and terms(one) == before
    lead(one, 3)
    assert terms(one)[: len(before)] == before


# --- votes --------------------------------------------------------------------------------------------------------


def vote(to: int, sender: int, term: int, index: int = 9, log_term: int = 9, force: bool = False) -> Message:
    return Message(Kind.VOTE, to, sender, term, log_term, index, force=force)


def test_bug_07_term_and_vote_survive_a_crash() -> None:
    """The log store's tests show the same with real files."""
    one = member()
    one.node.step(vote(1, 2, 5))
    (reply,) = one.settle()
    assert not reply.reject
    one.restart()
    assert (one.node.term, one.node.vote) == (5, 2)
    one.node.step(vote(1, 3, 5))
    (reply,) = one.settle()
    assert reply.reject, "the vote of term 5 is given"


def test_bug_08_term_and_vote_are_one_record() -> None:
    """Wherever the power fails, what is durable is a term together with the vote of that term. The log store's tests
    show that the record itself is never torn in two."""
    for crash_after in range(5):
        one = member(async_storage=True)
        legal = {(0, 0)}
        for term, candidate in ((2, 2), (4, 3), (5, 2)):
            one.node.step(vote(1, candidate, term))
            while one.node.has_ready():
                one.ready()
            legal.add((term, candidate))
        assert len(one.appends) == 3
        for _ in range(min(crash_after, 3)):
            one.append_one()
        one.restart()
        assert (one.node.term, one.node.vote) in legal


def test_bug_09_one_vote_a_term() -> None:
    one = member()
    one.node.step(vote(1, 2, 3))
    one.node.step(vote(1, 3, 3))
    one.node.step(vote(1, 2, 3))
    assert [(m.to, m.reject) for m in one.settle()] == [(2, False), (3, True), (2, False)]


def test_bug_10_vote_of_an_old_term_is_not_counted() -> None:
    one = member()
    one.node.campaign()
    one.settle()
    old = granted(one.node, 2)
    one.node.campaign()
    one.settle()
    one.node.step(old)
    assert role(one.node) == Role.CANDIDATE
    one.node.step(granted(one.node, 2))
    assert role(one.node) == Role.LEADER


def test_bug_11_each_voter_counts_once() -> None:
    one = member(conf=ConfState((1, 2, 3, 4, 5)))
    one.node.campaign()
    one.settle()
    for _ in range(4):
        one.node.step(granted(one.node, 2))
    assert role(one.node) == Role.CANDIDATE, "two of five"
    one.node.step(granted(one.node, 9))
    assert role(one.node) == Role.CANDIDATE, "a stranger does not count"
    one.node.step(granted(one.node, 3))
    assert role(one.node) == Role.LEADER


@pytest.mark.parametrize("seed", range(20))
def test_bug_12_never_two_leaders_in_one_term(seed: int) -> None:
    """Everybody campaigns all the time, messages are lost, repeated and reordered, members crash."""
    rng = random.Random(seed)
    group = Group(5, random=rng.randrange, async_storage=True, pre_vote=bool(seed % 2), check_quorum=bool(seed % 3))
    leaders: dict[int, int] = {}
    for _ in range(1200):
        one = rng.choice(list(group.members.values()))
        kind = rng.random()
        if kind < 0.02:
            one.node.campaign()
        elif kind < 0.025:
            one.restart()
        elif kind < 0.6 and group.network:
            message = rng.choice(group.network[-12:])
            if rng.random() < 0.9:
                group.network.remove(message)
            if rng.random() < 0.97:
                group[message.to].step(message)
        else:
            group.send(one.settle())
        for other in group.members.values():
            if role(other.node) == Role.LEADER:
                assert leaders.setdefault(other.node.term, other.node.id) == other.node.id
    assert leaders


def test_bug_13_hearing_of_a_higher_term_is_not_voting_in_it() -> None:
    one = member(1, 3)
    one.node.step(vote(1, 2, 5, index=9, log_term=1))
    (reply,) = one.settle()
    assert reply.reject and (one.storage.hard.term, one.storage.hard.vote) == (5, 0)
    one.node.step(vote(1, 3, 5, index=2, log_term=3))
    (reply,) = one.settle()
    assert not reply.reject and one.storage.hard.vote == 3


def test_bug_14_a_wiped_member_does_not_lead_and_is_noticed() -> None:
    group = Group(3, pre_vote=False, check_quorum=False)
    group.elect(1)
    group.propose(b"kept")
    group.stabilize()
    group.add(3)  # the same id, an empty disk
    group[3].campaign()
    group.stabilize(lambda m: m.kind in (Kind.VOTE, Kind.VOTE_REPLY))
    assert role(group[3]) != Role.LEADER, "its log is not up to date"
    with pytest.raises(LogDamaged):
        group[3].step(Message(Kind.HEARTBEAT, 3, 1, group[3].term, commit=2))
    learner = Group((1, 2), learners=(3,))
    learner.tick(100, members=(3,))
    assert learner[3].term == 0, "as a learner it cannot even try"


def test_bug_15_a_term_is_written_before_its_entries() -> None:
    rng = random.Random(5)
    group = Group(3, random=rng.randrange, async_storage=True, pre_vote=False, check_quorum=False)
    written = dict.fromkeys(group.members, 0)
    checked = 0
    for round_ in range(40):
        group[rng.choice([1, 2, 3])].campaign()
        for _ in range(30):
            for id_, one in group.members.items():
                while one.node.has_ready():
                    group.send(one.ready())
                while one.appends and rng.random() < 0.7:
                    work = one.appends[0]
                    if work.hard_state is not None:
                        assert work.hard_state.term >= written[id_]
                        written[id_] = work.hard_state.term
                    assert all(entry.term <= written[id_] for entry in work.entries)
                    checked += len(work.entries)
                    group.send(one.append_one())
                while one.applies:
                    group.send(one.apply_one())
            group.deliver(lambda m: rng.random() < 0.9)
        if group.leader():
            group.propose(b"%d" % round_)
    assert checked > 50


def test_bug_16_an_old_completion_marks_no_newer_entry_durable() -> None:
    """Entry 1 of term 1 is being written when terms 2 and 3 replace it, twice; completions arrive late."""
    one = member(async_storage=True)
    node = one.node
    for term, leader in ((1, 2), (2, 3), (3, 2)):
        node.step(append(1, term, 0, 0, entries(1, term), sender=leader))
        one.ready()
    assert len(one.appends) == 3
    for pending in (2, 3):
        one.append_one()
        assert node.log.offset == 1 and terms(one) == [3], "the disk still holds an entry of an older term"
        assert one.storage.log[0].term == pending - 1
    (reply,) = one.append_one()
    assert (reply.to, reply.term, reply.index) == (2, 3, 1)
    assert node.log.offset == 2 and one.storage.log[0].term == 3


def test_bug_17_a_single_voter_applies_only_what_it_has_written() -> None:
    one = member(conf=ConfState((1,)), async_storage=True)
    one.node.campaign()
    one.settle()
    one.node.propose(b"x")
    assert one.ready() == []
    assert not one.applies and one.node.log.committed == 1 and not one.node.has_ready()
    one.append_one()
    assert one.node.log.committed == 2 and one.data() == []
    one.settle()
    assert one.data() == [b"x"]


def test_bug_18_entries_are_acknowledged_when_they_are_durable() -> None:
    one = member(async_storage=True)
    for _ in range(2):  # the second is a repetition while the first is still being written
        one.node.step(append(1, 1, 0, 0, entries(1, 1, 1)))
        ready = one.node.ready()
        assert ready.messages == []
        assert ready.append is not None
        one.appends.append(ready.append)
    assert one.appends[1].entries == []
    assert [m.index for m in one.append_one()] == [2]
    assert one.durable.last_index() == 2
    assert [m.index for m in one.append_one()] == [2]


def test_bug_19_after_a_restart_exactly_what_is_missing_is_applied() -> None:
    """State and applied index are one transaction in the state machine, whose tests show it. The core hands out all
    that follows the index it is given, and refuses an index that the log cannot have led to."""
    group = Group(1)
    group.elect(1)
    for number in range(5):
        group.propose(b"%d" % number)
    group.stabilize()
    for applied in range(7):
        one = group.members[1]
        one.restart(applied=applied)
        assert one.node.log.applied == applied
        one.node.campaign()
        one.settle()
        assert one.data() == [b"%d" % number for number in range(5)]
        assert [e.index for e in one.applied][-1] == one.node.log.last
    with pytest.raises(LogDamaged):
        group.members[1].restart(applied=group[1].log.last + 1)


def test_bug_20_what_was_not_synced_was_not_counted() -> None:
    """All followers lose what they had not synced; nothing that was committed or read is contradicted."""
    group = Group(3, async_storage=True)
    group.elect(1)
    group.propose(b"first")
    group.stabilize()
    index, term = group.propose(b"second")
    leader = group.members[1]
    group.send(leader.settle())
    group.deliver()
    for follower in (group.members[2], group.members[3]):
        while follower.node.has_ready():
            group.send(follower.ready())  # written, not synced, not acknowledged
    assert leader.node.log.committed < index
    group.isolate(1)
    group.network.clear()
    leader.node.read_index(1)
    for follower in (group.members[2], group.members[3]):
        follower.restart()
    group[2].campaign()
    group.stabilize()
    assert role(group[2]) == Role.LEADER
    group.propose(b"third")
    group.stabilize()
    assert leader.reads == [], "the isolated leader answers no read"
    group.heal()
    group.tick(30)
    assert [one.data() for one in group.members.values()] == [[b"first", b"third"]] * 3


def test_bug_21_every_crash_between_writes_leaves_a_log_that_starts() -> None:
    """The log store's tests do the same to the bytes of its files."""
    for crash_after in range(4):
        one = member(async_storage=True)
        for message in (
            append(1, 1, 0, 0, entries(1, 1, 1, 1)),
            append(1, 2, 1, 1, entries(2, 2, 2), sender=3),
            append(1, 3, 2, 2, entries(3, 3)),
        ):
            one.node.step(message)
            one.ready()
        for _ in range(crash_after):
            one.append_one()
        one.restart()
        found = terms(one)
        assert found == [[], [1, 1, 1], [1, 2, 2], [1, 2, 3]][crash_after]
        assert one.node.term >= (found or [0])[-1]


# --- reads --------------------------------------------------------------------------------------------------------


def test_bug_22_no_read_before_an_entry_of_the_own_term_is_committed() -> None:
    one = member(1, 1, hard=HardState(1, 0, 1))
    lead(one, 2)
    one.node.read_index(7)
    assert not [m for m in one.settle() if m.kind == Kind.HEARTBEAT], "it does not even ask yet"
    one.node.step(acked(one.node, 2, 3))
    (round_,) = {m.context for m in one.settle() if m.kind == Kind.HEARTBEAT}
    assert not one.reads
    one.node.step(Message(Kind.HEARTBEAT_REPLY, 1, 3, one.node.term, context=round_))
    one.settle()
    assert [(r.index, r.context) for r in one.reads] == [(3, 7)]


def test_bug_23_an_old_acknowledgement_never_confirms_a_newer_read() -> None:
    """The caller repeats the number of its read. The heartbeats carry numbers of the leader's own."""
    one = member()
    lead(one, 2)
    one.node.step(acked(one.node, 2, 1))
    one.settle()
    one.node.read_index(7)
    old = {m.context for m in one.settle() if m.kind == Kind.HEARTBEAT}.pop()
    one.node.step(Message(Kind.HEARTBEAT_REPLY, 1, 2, one.node.term, context=old))
    one.settle()
    assert len(one.reads) == 1
    one.node.read_index(7)
    new = {m.context for m in one.settle() if m.kind == Kind.HEARTBEAT}.pop()
    assert new > old
    for sender in (2, 3):
        one.node.step(Message(Kind.HEARTBEAT_REPLY, 1, sender, one.node.term, context=old))
        one.node.step(Message(Kind.HEARTBEAT_REPLY, 1, sender, one.node.term, context=new + 5))
    one.settle()
    assert len(one.reads) == 1
    one.node.step(Message(Kind.HEARTBEAT_REPLY, 1, 3, one.node.term, context=new))
    one.settle()
    assert len(one.reads) == 2


def test_bug_23_an_answer_to_an_earlier_question_of_a_follower_confirms_nothing() -> None:
    group = Group(3)
    group.elect(1)
    group[2].read_index(7)
    group.collect()
    group.deliver()
    group.collect()
    group.deliver()
    group.collect()
    group.deliver()
    group.collect()
    (answer,) = group.take(Kind.READ_INDEX_REPLY, to=2)
    group.propose(b"newer")
    group.stabilize()
    group[2].read_index(7)  # asked again, after a newer write
    group[2].forwarded = dict(list(group[2].forwarded.items())[1:])  # it gave the first one up
    group[2].step(answer)
    group.collect()
    assert group.members[2].reads == []
    group.stabilize()
    assert [r.index for r in group.members[2].reads] == [group[1].log.committed]


def test_bug_24_no_stale_read_right_after_a_transfer() -> None:
    group = Group(3)
    group.elect(1)
    group.propose(b"x")
    group.stabilize()
    group[1].transfer_leader(2)
    for _ in range(4):
        group.collect()
        group.deliver(lambda m: m.kind != Kind.APPEND)
        if role(group[2]) == Role.LEADER:
            break
    assert role(group[2]) == Role.LEADER and not group[2].committed_in_term()
    group[2].read_index(1)
    group.stabilize(lambda m: m.kind != Kind.APPEND)
    assert group.members[2].reads == []
    group.tick(3)
    assert [r.index for r in group.members[2].reads] == [group[2].log.last]


def test_bug_25_lease_needs_check_quorum_and_ends_in_time() -> None:
    with pytest.raises(ValueError, match="lease"):
        Config(1, read_mode=ReadMode.LEASE, check_quorum=False)
    group = Group(3, read_mode=ReadMode.LEASE)
    group.elect(1)
    group.tick(2)  # a round of heartbeats
    group[1].read_index(1)
    group.collect()
    assert len(group.members[1].reads) == 1, "answered from the lease, without a message"
    group.isolate(1)
    for tick in range(30):
        group[1].tick()
        group[1].read_index(100 + tick)
        group.collect()
    answered = [r.context - 100 for r in group.members[1].reads[1:]]
    assert answered == list(range(len(answered))) and len(answered) < group[1].config.election_ticks
    group.heal()
    group.tick(40)
    leader = group.leader()
    group[leader].transfer_leader(1 + leader % 3)
    group.collect()
    group.network.clear()  # TIMEOUT_NOW may arrive at any time
    group.tick(25, stabilize=True)
    group[leader].read_index(7)
    reads = len(group.members[leader].reads)
    group.collect()
    assert len(group.members[leader].reads) == reads, "no lease after a transfer was begun"


def test_bug_22_a_lease_does_not_answer_before_a_commit_of_the_term() -> None:
    group = Group(3, read_mode=ReadMode.LEASE)
    group.elect(1)
    group.stabilize()
    group.isolate(1)

    def pass_time(ticks: int) -> None:
        for _ in range(ticks):
            group.tick(1, stabilize=False)
            group.stabilize(keep=lambda message: message.kind != Kind.APPEND)

    pass_time(40)
    leader = group.leader()
    assert leader != 1 and not group[leader].committed_in_term()
    group[leader].read_index(1)
    pass_time(4)
    assert role(group[leader]) == Role.LEADER and not group.members[leader].reads
    group.tick(4)
    assert [read.index for read in group.members[leader].reads] == [group[leader].log.last]


def test_bug_25_a_lease_ends_with_its_configuration() -> None:
    group = Group(3, read_mode=ReadMode.LEASE, index=1)
    group.elect(1)
    group.tick(2)
    group[1].propose_conf(change((LEARN, 9)))
    group.stabilize()
    group.isolate(1)
    group[1].read_index(1)
    group.stabilize()
    assert not group.members[1].reads
    group.heal()
    group.tick(2)
    assert group.members[1].reads


def test_bug_25_a_restarted_member_still_honours_the_lease() -> None:
    group = Group(3, read_mode=ReadMode.LEASE)
    group.elect(1)
    group.members[2].restart()
    group[2].step(vote(2, 3, 5))
    assert group[2].term == 1, "the leader may be answering reads on the strength of this member's promise"
    group.tick(10, members=(2,), stabilize=False)
    group[2].step(vote(2, 3, 5))
    assert group[2].term == 5


def test_bug_26_a_deposed_leader_answers_no_read() -> None:
    group = Group(3, check_quorum=False, pre_vote=False)
    group.elect(1)
    group.isolate(1)
    group[2].campaign()
    group.stabilize()
    group[2].propose(b"new")
    group.stabilize()
    group[1].read_index(5)
    group.tick(5)
    assert role(group[1]) == Role.LEADER and group.members[1].reads == []
    group[2].read_index(6)
    group.stabilize()
    assert [r.index for r in group.members[2].reads] == [group[2].log.last]
    group.heal()
    group.tick(20)
    assert group.members[1].reads == []


# --- membership ---------------------------------------------------------------------------------------------------


def test_bug_27_joint_consensus_counts_each_half() -> None:
    one = member(conf=ConfState((3, 4, 5), (), (1, 2, 3)), pre_vote=False)
    node = one.node
    node.campaign()
    one.settle()
    for voter in (2, 4):
        node.step(granted(node, voter))
    assert role(node) == Role.CANDIDATE, "three of five, but only one of 3, 4, 5"
    node.step(granted(node, 5))
    assert role(node) == Role.LEADER
    one.settle()
    for sender in (4, 5):
        node.step(acked(node, sender, 1))
    assert node.log.committed == 0, "three have it, but only one of 1, 2, 3"
    node.step(acked(node, 2, 1))
    assert node.log.committed == 1


def test_bug_28_no_change_of_membership_before_the_own_term_is_applied() -> None:
    one = member(1, 1, hard=HardState(1, 0, 1))
    lead(one, 2)
    with pytest.raises(ConfChangeRefused):
        one.node.propose_conf(change((ADD, 4)))
    last = one.node.log.last
    one.node.forward(EntryKind.CONF, encode_change(change((ADD, 4))))
    assert one.node.log.entries(last + 1, last + 2, 1)[0].kind == EntryKind.NORMAL, "passed on, it becomes empty"
    one.node.step(acked(one.node, 2, one.node.log.last))
    one.settle()
    one.node.propose_conf(change((ADD, 4)))
    with pytest.raises(ConfChangeRefused):
        one.node.propose_conf(change((ADD, 5)))


@pytest.mark.parametrize("async_storage", [False, True])
def test_bug_29_a_joint_configuration_is_left_after_a_crash(async_storage: bool) -> None:
    group = Group(3, index=1, async_storage=async_storage, pre_vote=False, check_quorum=False)
    group.elect(1)
    group[1].propose_conf(change((REMOVE, 3), (LEARN, 2)))
    leader = group.members[1]
    for _ in range(50):
        group.collect_one(1)
        if leader.node.conf.joint:
            break
        group.send(group.members[2].settle())
        group.send(group.members[3].settle())
        group.deliver()
    assert leader.node.conf.joint
    group.network.clear()
    applied = leader.node.log.applied
    leader.restart(applied=applied)  # before anybody heard of the proposal to leave
    leader.storage.conf = leader.conf
    leader.node = RawNode(leader.config, leader.storage, lambda n: 0)
    assert leader.node.conf.joint
    leader.node.campaign()
    group.stabilize()
    assert role(leader.node) == Role.LEADER
    assert leader.node.conf.state() == ConfState((1,), (2,))


def test_bug_30_no_campaign_with_an_unapplied_change() -> None:
    one = member(async_storage=True)
    conf_entry = Entry(1, 1, EntryKind.CONF, encode_change(change((ADD, 4))))
    one.node.step(append(1, 1, 0, 0, (conf_entry,), commit=1))
    one.ready()
    one.append_one()
    assert one.node.log.committed == 1 and one.node.log.applied == 0
    one.node.campaign()
    one.node.step(Message(Kind.TIMEOUT_NOW, 1, 2, 1))
    assert role(one.node) == Role.FOLLOWER
    one.settle()
    one.node.campaign()
    assert role(one.node) == Role.CANDIDATE


def test_bug_32_a_voter_of_the_old_half_only_votes_for_itself() -> None:
    one = member(conf=ConfState((2, 3), (), (1, 2, 3)), pre_vote=True)
    one.node.campaign()
    one.settle()
    assert one.node.votes == {1: True}
    asked = [Message(Kind.PRE_VOTE_REPLY, 1, 2, 1), Message(Kind.PRE_VOTE_REPLY, 1, 3, 1)]
    for message in asked:
        one.node.step(message)
    one.settle()
    for voter in (2, 3):
        one.node.step(granted(one.node, voter))
    assert role(one.node) == Role.LEADER
    # Leaving out the outgoing half's own vote would have needed both others twice.
    assert one.node.conf.deciders() == {1, 2, 3}


def test_bug_33_a_change_in_a_minority_loses_nothing() -> None:
    group = Group(5, index=1)
    group.elect(1)
    group.propose(b"a")
    group.stabilize()
    for minority in (1, 2):
        group.cut |= {(minority, other) for other in (3, 4, 5)} | {(other, minority) for other in (3, 4, 5)}
    group[1].propose_conf(change((REMOVE, 3), (REMOVE, 4), (REMOVE, 5)))
    group[1].propose(b"lost, and never acknowledged")
    group.stabilize()
    assert group[1].conf.voters == {1, 2, 3, 4, 5}, "not committed, so not in force"
    group.tick(25)
    leader = group.leader()
    assert leader in (3, 4, 5) and role(group[1]) == Role.FOLLOWER
    group.propose(b"b")
    group.stabilize()
    group.heal()
    group.tick(25)
    assert [one.data() for one in group.members.values()] == [[b"a", b"b"]] * 5
    assert all(one.node.conf.voters == {1, 2, 3, 4, 5} for one in group.members.values())


def test_bug_34_a_replaced_change_needs_no_rollback() -> None:
    """Changes take effect when they are applied, so one that is replaced never was in force."""
    one = member()
    added = Entry(3, 1, EntryKind.CONF, encode_change(change((ADD, 9))))
    one.node.step(append(1, 1, 0, 0, (*entries(1, 1, 1), added)))
    one.node.step(append(1, 1, 2, 1, (), commit=2))
    one.settle()
    one.storage.compact(2, one.conf)
    one.node.step(append(1, 2, 2, 1, entries(3, 2), commit=3, sender=3))
    one.settle()
    assert one.node.conf.voters == {1, 2, 3} and one.node.log.applied == 3
    one.restart(applied=3)
    assert one.node.conf.voters == {1, 2, 3}


# --- snapshots and damage -----------------------------------------------------------------------------------------


def test_bug_35_a_gap_between_snapshot_and_log_is_refused() -> None:
    """The driver's tests crash between every step of an install."""
    storage = MemoryStorage(ConfState((1, 2, 3)), index=10, term=2)
    with pytest.raises(LogDamaged):
        RawNode(Config(1, applied=7), storage, lambda n: 0)
    one = member(1, 1, async_storage=True)
    snapshot = SnapshotMeta(9, 2, ConfState((1, 2, 3)))
    one.node.step(Message(Kind.SNAPSHOT, 1, 2, 2, snapshot=snapshot))
    one.node.step(append(1, 2, 9, 2, entries(10, 2, 2), commit=11))
    one.ready()
    assert not one.applies, "nothing is applied on top of a snapshot that is not installed"
    one.restart()
    assert terms(one) == [1, 1], "crashed before the install: all is as before"
    one.node.step(Message(Kind.SNAPSHOT, 1, 2, 2, snapshot=snapshot))
    one.node.step(append(1, 2, 9, 2, entries(10, 2, 2), commit=11))
    one.settle()
    one.restart(applied=9)
    assert one.node.log.first_index() == 10 and terms(one) == [2, 2]


def test_bug_36_a_bad_or_old_snapshot_removes_nothing() -> None:
    """Bytes that do not verify are never stepped (the driver's tests); what the core refuses on its own is here."""
    one = member(1, 1, 1, hard=HardState(1, 0, 3))
    for snapshot in (
        SnapshotMeta(3, 1, ConfState((1, 2, 3))),  # nothing new
        SnapshotMeta(2, 1, ConfState((1, 2, 3))),  # older than what is committed
        SnapshotMeta(9, 1, ConfState((2, 3))),  # of a group that this member does not belong to
    ):
        one.node.step(Message(Kind.SNAPSHOT, 1, 2, 1, snapshot=snapshot))
        (reply,) = one.settle()
        assert (reply.index, reply.reject) == (3, False), "it tells where it is"
        assert terms(one) == [1, 1, 1] and len(one.storage.log) == 3
    with_tail = member(1, 1, 1)
    with_tail.node.step(Message(Kind.SNAPSHOT, 1, 2, 1, snapshot=SnapshotMeta(2, 1, ConfState((1, 2, 3)))))
    with_tail.settle()
    assert terms(with_tail) == [1, 1, 1] and with_tail.node.log.committed == 2, "it has these entries"


def test_bug_37_a_log_that_lost_its_middle_does_not_start() -> None:
    """The log store tells damage from a torn tail (its tests flip bits). A store that silently ends before what this
    member knows to be committed is refused here."""
    storage = MemoryStorage(ConfState((1, 2, 3)))
    storage.append(list(entries(1, 1, 1, 1)))
    storage.set_hard_state(HardState(1, 2, 3))
    del storage.log[1:]
    with pytest.raises(LogDamaged):
        RawNode(Config(1), storage, lambda n: 0)
    with pytest.raises(LogDamaged):
        RawNode(Config(1, applied=3), storage, lambda n: 0)


class BrokenStorage(MemoryStorage):
    """A disk that cannot be read, or that returns something else."""

    __slots__ = ("answer",)

    def __init__(self, whole: MemoryStorage, answer: list[Entry] | OSError) -> None:
        super().__init__(whole.conf)
        self.log, self.hard, self.answer = whole.log, whole.hard, answer

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("answer", [OSError(5, "input/output error"), [], list(entries(3, 1))])
def test_bug_38_a_failed_read_sends_nothing(answer: list[Entry] | OSError) -> None:
    one = member(1, 1)
    lead(one, 2)
    one.node.log.storage = BrokenStorage(one.storage, answer)
    rejection = Message(
        Kind.APPEND_REPLY, 1, 3, one.node.term, index=2, reject=True, session=one.node.progress[3].session
    )
    with pytest.raises((OSError, AssertionError)):
        one.node.step(rejection)
    assert one.node.messages == []


# --- availability -------------------------------------------------------------------------------------------------


def test_bug_40_pre_vote_and_a_member_with_a_higher_term_do_not_deadlock() -> None:
    """3 has a higher term and a shorter log, 2 a lower term and the longer log; 1 is gone."""
    group = Group(3, check_quorum=True, pre_vote=True)
    group.elect(1)
    group.isolate(3)
    group.propose(b"x")
    group.stabilize()
    group[3].become_follower(7, 0)  # it once campaigned without pre-vote
    group.members[3].settle()
    group.heal()
    group.isolate(1)
    group[3].election_timeout, group[2].election_timeout = 11, 13
    group.tick(60, members=(2, 3))
    assert group.leader() == 2 and group[2].term > 7
    assert group.members[3].data() == [b"x"]


def test_bug_41_a_leader_behind_a_bridge_gives_way() -> None:
    """1 leads and reaches only 2, which keeps hearing its heartbeats; 2 to 5 all reach each other."""
    group = Group(5)
    group.elect(1)
    for other in (3, 4, 5):
        group.cut |= {(1, other), (other, 1)}
    for id_, one in group.members.items():
        one.node.election_timeout = 10 + id_
    group.tick(60)
    leader = group.leader()
    assert leader in (2, 3, 4, 5) and role(group[1]) != Role.LEADER
    group.propose(b"x")
    group.stabilize()
    assert all(group.members[id_].data() == [b"x"] for id_ in (2, 3, 4, 5))


def test_bug_42_a_repeated_command_finds_its_first_result_after_fail_over() -> None:
    """The core may commit a command twice, when a client that heard nothing repeats it. The table of results is state,
    made by the log, so every successor has it. The state machine's tests cover sessions; this is the principle."""
    group = Group(3)
    group.elect(1)
    group.propose(b"7:rename")  # the answer is lost together with the leader
    group.stabilize()
    group.isolate(1)
    group.tick(40, members=(2, 3))
    leader = group.leader()
    assert leader in (2, 3)
    group.propose(b"7:rename")
    group.stabilize()
    for id_ in (2, 3):
        seen: dict[bytes, int] = {}
        executed = 0
        for entry in group.members[id_].applied:
            if entry.data and entry.data not in seen:
                seen[entry.data] = entry.index
                executed += 1
        assert group.members[id_].data() == [b"7:rename"] * 2 and executed == 1


def test_every_bug_has_a_test() -> None:
    numbers = {int(name.split("_")[2]) for name in globals() if name.startswith("test_bug_")}
    assert numbers == set(range(1, 43))
