"""Placement: weighted rendezvous hashing over failure domains."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from metadata.placement import Candidate, choose, group_count, group_of, plan


def servers(count: int, *, hosts: int = 0, racks: int = 0) -> list[Candidate]:
    return [
        Candidate(
            number,
            1.0,
            f"h{number % hosts}" if hosts else "",
            f"r{number % racks}" if racks else "",
        )
        for number in range(1, count + 1)
    ]


def test_group_count_is_a_power_of_two_and_grows_with_the_cluster() -> None:
    assert group_count(0) == group_count(1) == group_count(8) == 64
    assert group_count(9) == 128
    assert group_count(10**6) == 1 << 16


def test_group_of_takes_the_first_bytes() -> None:
    assert group_of(bytes(7) + b"\x41" + b"\xff" * 24, 64) == 1


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 4), st.integers(0, 3))
def test_every_group_has_as_many_different_servers_as_possible(
    count: int, replicas: int, hosts: int, racks: int
) -> None:
    for row in plan(servers(count, hosts=hosts, racks=racks), replicas, 64):
        assert len(set(row)) == len(row) == min(count, replicas)


def test_copies_go_to_different_racks_then_hosts() -> None:
    candidates = servers(12, hosts=6, racks=2)
    rack = {c.server: c.rack for c in candidates}
    host = {c.server: c.host for c in candidates}
    for row in plan(candidates, 4, 64):
        assert Counter(rack[server] for server in row) == {"r0": 2, "r1": 2}
        assert len({host[server] for server in row}) == 4


def test_two_replicas_of_three_racks_never_share_one() -> None:
    candidates = servers(9, racks=3)
    rack = {c.server: c.rack for c in candidates}
    assert all(rack[row[0]] != rack[row[1]] for row in plan(candidates, 2, 256))


def test_share_follows_weight() -> None:
    candidates = [Candidate(1, 1.0), Candidate(2, 1.0), Candidate(3, 2.0)]
    count = Counter(row[0] for row in plan(candidates, 1, 4096))
    assert 0.9 < count[1] / count[2] < 1.1
    assert 1.8 < count[3] / count[1] < 2.2


def test_weight_zero_takes_nothing() -> None:
    assert choose(0, [Candidate(1, 0.0), Candidate(2, 1.0)], 2) == (2,)


def test_a_leaving_server_moves_only_its_own_groups() -> None:
    before = plan(servers(10), 3, 256)
    after = plan(servers(9), 3, 256)
    for old, new in zip(before, after):
        if 10 not in old:
            assert old == new
        else:
            assert set(old) - {10} <= set(new)


def test_a_joining_server_takes_its_share_and_nothing_else_moves() -> None:
    before, after = plan(servers(9), 1, 1024), plan(servers(10), 1, 1024)
    moved = [(old, new) for old, new in zip(before, after) if old != new]
    assert all(new == (10,) for _, new in moved)
    assert 60 < len(moved) < 150
