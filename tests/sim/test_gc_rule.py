"""The garbage-collection rule loses no referenced block in any interleaving, and needs each of its ingredients."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import LONG
from tests.sim.gc_explorer import Rules, Scope, explore

LOG_DATA = Scope(log_data=True, sessions=1, epochs=4)
LOG_DATA_MEMBERSHIP = Scope(log_data=True, group_changes=1, lost_disks=1, epochs=3, sessions=1)
MEMBERSHIP = Scope(group_changes=1, lost_disks=1, epochs=3, sessions=1)
FEW = Scope(sessions=2 if LONG else 1)  # one that writes, removes and writes again is enough to lose a block


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("by_distance", [True, False] if LONG else [True])  # what it allows includes the other
@pytest.mark.parametrize(
    ("scope", "whole"),
    [
        (Scope(), False),
        (Scope(lost_disks=1, epochs=3), LONG),
        (Scope(crashes=2, epochs=3), True),
        (MEMBERSHIP, True),
        (LOG_DATA, LONG),
        (LOG_DATA_MEMBERSHIP, False),
    ],
    ids=["plain", "lost disk", "crashes", "membership", "log data", "log data and membership"],
)
def test_no_interleaving_loses_a_referenced_block(scope: Scope, whole: bool, by_distance: bool) -> None:
    outcome = explore(Rules(by_distance=by_distance), scope, limit=4_000_000 if LONG else 300_000)
    print(f"{outcome.states} states, {'all' if outcome.complete else 'as far as the limit'}")
    assert outcome.trace is None, outcome.trace
    assert outcome.complete or not whole
    assert outcome.states > 100_000


@pytest.mark.parametrize(
    ("rules", "scope"),
    [
        (Rules(refuse_stale_commit=False), FEW),
        (Rules(epochs_of_distance=1), FEW),
        (Rules(commit_carries_oldest=False), FEW),
        (Rules(delete_is_conditional=False), FEW),
        (Rules(touches_are_durable=False), replace(FEW, crashes=2, epochs=3)),
        (Rules(commit_checks_group=False), MEMBERSHIP),
        (Rules(drop_after_repair=False), MEMBERSHIP),
        (Rules(refuse_stale_move=False), LOG_DATA),
        (Rules(move_waits_for_quorum=False), LOG_DATA),
        (Rules(move_checks_group=False), LOG_DATA_MEMBERSHIP),
    ],
    ids=[
        "stale commit", "one epoch", "newest epoch", "unconditional", "forgotten touch", "old group", "early drop",
        "stale move", "early move", "move to an old group",
    ],
)
def test_each_ingredient_is_needed(rules: Rules, scope: Scope) -> None:
    outcome = explore(rules, scope, limit=1_500_000)
    assert outcome.trace is not None, f"{outcome.states} states and no loss"
    print(" / ".join(outcome.trace))
