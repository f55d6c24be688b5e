"""Who the members are: what the log tells over what the configuration says; and whose digest counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metadata.raft.messages import ConfChange, ConfChangeItem, ConfChangeKind, ConfState
from metadata.server.audits import majority
from metadata.server.roster import Directory, MemberRecord, encode_record, following, members_of, roster
from node.host.cluster import Member

CONFIGURED = [Member(id=n, name=f"metadata-{n}", address=f"ipc://m{n}", peer_address=f"ipc://p{n}") for n in (1, 2, 3)]
FOUNDERS = ConfState((1, 2, 3))


def record(number: int, **changes: bytes) -> MemberRecord:
    return MemberRecord(number, f"metadata-{number}", f"ipc://m{number}", f"ipc://p{number}", **changes)  # type: ignore


def change(kind: ConfChangeKind, number: int, context: bytes = b"") -> ConfChange:
    return ConfChange((ConfChangeItem(kind, number),), context=context)


def test_the_founders_are_known_from_the_configuration() -> None:
    assert set(roster(CONFIGURED, Directory(), ConfState())) == {1, 2, 3}
    assert set(roster(CONFIGURED, Directory(), FOUNDERS)) == {1, 2, 3}


def test_a_change_introduces_a_member_and_a_later_one_its_incarnation() -> None:
    added = ConfState((1, 2, 3), (4,))
    directory = following(Directory(), change(ConfChangeKind.ADD_LEARNER, 4, encode_record(record(4))), FOUNDERS, added)
    assert directory == Directory((record(4),), 4)
    assert roster(CONFIGURED, directory, added)[4].peer_address == "ipc://p4"
    voter = record(4, incarnation=b"i" * 16)
    promoted = change(ConfChangeKind.ADD_VOTER, 4, encode_record(voter))
    assert following(directory, promoted, added, ConfState((1, 2, 3, 4))) == Directory((voter,), 4)


def test_who_is_removed_is_forgotten_but_the_number_is_not() -> None:
    before, after = ConfState((1, 2, 3, 4)), ConfState((1, 2, 3))
    directory = following(Directory((record(4),), 4), change(ConfChangeKind.REMOVE, 4), before, after)
    assert directory == Directory((), 4)
    assert set(roster(CONFIGURED, directory, after)) == {1, 2, 3}
    founder = following(Directory(), change(ConfChangeKind.REMOVE, 3), FOUNDERS, ConfState((1, 2)))
    assert founder.highest == 3, "a founder's number counts too"


def test_while_joint_both_halves_stay_known() -> None:
    joint = ConfState((1, 2), (), (1, 2, 4), (), True)
    directory = following(Directory((record(4),), 4), change(ConfChangeKind.REMOVE, 4), ConfState((1, 2, 4)), joint)
    assert directory.members == (record(4),) and members_of(joint) == {1, 2, 4}
    assert following(directory, ConfChange(), joint, ConfState((1, 2))).members == ()


@given(st.binary(max_size=64))
def test_a_context_that_is_no_record_changes_nothing_but_the_highest_number(context: bytes) -> None:
    after = ConfState((1, 2, 3), (7,))
    directory = following(Directory(), change(ConfChangeKind.ADD_LEARNER, 7, context), FOUNDERS, after)
    assert directory.highest == 7 and len(directory.members) <= 1


@given(
    st.dictionaries(st.integers(1, 7), st.sampled_from([b"a", b"b", b"c"])),
    st.sets(st.integers(1, 7), min_size=1),
    st.sets(st.integers(1, 7)),
)
def test_a_verdict_needs_a_majority_of_each_half(got: dict[int, bytes], voters: set[int], outgoing: set[int]) -> None:
    conf = ConfState(tuple(voters), (), tuple(outgoing))
    agreed = [
        digest
        for digest in (b"a", b"b", b"c")
        if all(
            2 * sum(got.get(member) == digest for member in half) > len(half) for half in (voters, outgoing) if half
        )
    ]
    assert majority(got, conf) == (agreed[0] if agreed else b"")
    assert len(agreed) <= 1
