"""The least that a group must do, with synchronous and asynchronous storage."""

from __future__ import annotations

from typing import Any

import pytest

from metadata.raft.core import Role
from metadata.raft.messages import ConfChange, ConfChangeItem, ConfChangeKind, ConfState
from metadata.raft.storage import MemoryStorage
from tests.unit.raft.group import Group

MODES: list[dict[str, Any]] = [{"async_storage": a, "coalesce": c} for a in (False, True) for c in (False, True)]


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_group_elects_replicates_and_reads(size: int, options: dict[str, Any]) -> None:
    group = Group(size, **options)
    group.elect(1)
    proposed = [group.propose(b"%d" % number) for number in range(20)]
    assert [index for index, _ in proposed] == list(range(2, 22))
    group.stabilize()
    for member in group.members.values():
        assert member.data() == [b"%d" % number for number in range(20)]
        assert member.node.log.applied == 21
    assert group[1].read_index(7)
    group.stabilize()
    assert [(r.index, r.context) for r in group.members[1].reads] == [(21, 7)]
    if size > 1:
        assert group[2].read_index(9)
        group.stabilize()
        assert [(r.index, r.context) for r in group.members[2].reads] == [(21, 9)]


@pytest.mark.parametrize("options", MODES)
def test_time_alone_elects_a_leader(options: dict[str, Any]) -> None:
    group = Group(3, random=lambda n: 0, **options)
    group[2].election_timeout = 12
    group[3].election_timeout = 14
    group.tick(11)
    assert group.leader() == 1
    assert [m.node.role for m in group.members.values()] == [Role.LEADER, Role.FOLLOWER, Role.FOLLOWER]
    group.tick(50)
    assert group[1].term == 1


@pytest.mark.parametrize("options", MODES)
def test_member_is_added_and_leader_removed(options: dict[str, Any]) -> None:
    group = Group(3, index=1, **options)
    group.elect(1)
    for number in range(5):
        group.propose(b"%d" % number)
    group.stabilize()
    group.add(4, MemoryStorage())  # knows nothing, not even who the members are
    group[1].propose_conf(ConfChange((ConfChangeItem(ConfChangeKind.ADD_VOTER, 4),)))
    group.stabilize()
    assert group[1].conf.voters == {1, 2, 3, 4} == group[4].conf.voters
    assert group[4].log.applied == group[1].log.applied == group[1].log.last
    items = (ConfChangeItem(ConfChangeKind.REMOVE, 1), ConfChangeItem(ConfChangeKind.ADD_LEARNER, 2))
    group[1].propose_conf(ConfChange(items))
    group.stabilize()
    assert group[1].role == Role.FOLLOWER
    group[4].election_timeout += 3  # so that they do not campaign at once
    group.tick(25)
    assert group.leader() == 3
    assert group[3].conf.state() == ConfState((3, 4), (2,))
