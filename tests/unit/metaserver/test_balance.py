"""Shares of groups: what each strategy gives to whom, and how few moves bring shares close to the weights."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata.balance import ideal, moves, slots, targets
from metadata.placement import RANDOM, ROUND_ROBIN, WEIGHTED, Candidate


def servers(*weights: float, racks: int = 0) -> list[Candidate]:
    return [Candidate(n, w, "", f"r{n % racks}" if racks else "") for n, w in enumerate(weights, 1)]


def test_weighted_gives_everybody_its_share_to_within_a_slot() -> None:
    candidates = servers(1.0, 1.0, 2.0, 0.5, 3.0)
    counts = slots(ideal(candidates, 2, 256, WEIGHTED))
    wanted = targets(candidates, 2, 256, WEIGHTED)
    assert sum(counts.values()) == 512
    assert all(abs(counts[server] - wanted[server]) <= 1 for server in counts)
    assert wanted[3] == pytest.approx(2 * wanted[1]) and wanted[1] == pytest.approx(2 * wanted[4])


def test_round_robin_goes_around_whatever_the_weights() -> None:
    table = ideal(servers(1.0, 5.0, 1.0, 0.0), 2, 64, ROUND_ROBIN)
    assert table[:4] == ((1, 2), (2, 3), (3, 1), (1, 2))
    assert set(slots(table).values()) <= {42, 43}


def test_random_gives_everybody_the_same_chance() -> None:
    count = Counter(row[0] for row in ideal(servers(1.0, 5.0, 1.0, 0.2), 1, 8192, RANDOM))
    assert all(1900 < count[server] < 2200 for server in (1, 2, 3, 4))  # 2048 with a deviation of 39
    assert len(set(count.values())) > 1


def test_no_server_gets_more_than_all_groups() -> None:
    wanted = targets(servers(100.0, 1.0, 1.0), 2, 64)
    assert wanted == {1: 64.0, 2: 32.0, 3: 32.0}


def test_a_new_server_gets_its_share_by_few_moves() -> None:
    table = ideal(servers(1.0, 1.0, 1.0), 3, 64)
    four = servers(1.0, 1.0, 1.0, 1.0)
    found = moves(table, four, targets(four, 3, 64), 1000, range(64))
    assert len(found) == 48 and all(move.target == 4 for move in found)
    assert Counter(move.source for move in found) == {1: 16, 2: 16, 3: 16}


def test_nothing_moves_into_a_more_crowded_rack() -> None:
    candidates = [*servers(1.0, 1.0, 1.0, 1.0, racks=2), Candidate(5, 1.0, "", "r0")]
    table = ideal(candidates[:4], 2, 64)
    racks = {c.server: c.rack for c in candidates}
    for move in moves(table, candidates, targets(candidates, 2, 64), 1000, range(64)):
        row = [move.target if server == move.source else server for server in table[move.group]]
        assert len({racks[server] for server in row}) == 2


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=6), st.integers(1, 3))
def test_moves_end_and_come_close(weights: list[float], replicas: int) -> None:
    candidates = servers(*weights)
    rows = list(ideal(candidates, replicas, 64, RANDOM))
    wanted = targets(candidates, replicas, 64)
    for group, source, target in moves(rows, candidates, wanted, 10_000, range(64)):
        assert target not in rows[group]
        rows[group] = tuple(target if server == source else server for server in rows[group])
    rounds = 0
    while found := moves(rows, candidates, wanted, 10_000, range(64)):
        rounds += 1
        assert rounds < 20
        for group, source, target in found:
            rows[group] = tuple(target if server == source else server for server in rows[group])
    counts = slots(rows)
    assert all(abs(counts.get(server, 0) - wanted[server]) <= 1.5 for server in wanted)
