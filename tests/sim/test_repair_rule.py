"""Healing loses no referenced block in any interleaving, and needs each of its ingredients."""

from __future__ import annotations

import pytest

from tests.harness import LONG
from tests.sim.repair_explorer import Rules, Scope, explore

PLAIN = Scope()
AGED = Scope(aged=True)
DRAIN = Scope(epochs=1, drains=1)
AGED_DRAIN = Scope(drains=1, aged=True)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("scope", "limit"),
    [(PLAIN, 80_000), (AGED, 150_000), (DRAIN, 80_000), (AGED_DRAIN, 60_000)],
    ids=["losses", "losses and late deletes", "drain", "drain and late deletes"],
)
def test_no_interleaving_loses_a_referenced_block(scope: Scope, limit: int) -> None:
    outcome = explore(Rules(), scope, 2_000_000 if LONG else limit)
    print(f"{outcome.states} states, {'all' if outcome.complete else 'as far as the limit'}")
    assert outcome.trace is None, outcome.trace
    assert outcome.complete or scope is not AGED


@pytest.mark.parametrize(
    ("rules", "scope"),
    [
        (Rules(lost_do_not_answer=False), DRAIN),
        (Rules(read_a_quorum=False), DRAIN),
        (Rules(carry_greatest_touch=False), AGED),
        (Rules(raise_touches=False), AGED),
        (Rules(no_writes_on_leaving=False), DRAIN),
        (Rules(others_read_too=False), DRAIN),
        (Rules(read_from_leaving=False), DRAIN),
        (Rules(enough_read_from_leaving=False), DRAIN),
        (Rules(commit_checks_group=False), DRAIN),
    ],
    ids=[
        "a lost disk counts as read", "one source is enough", "the first touch found", "touches not raised",
        "writes count on the leaving one", "only the substitute reads", "nobody reads from the leaving one",
        "one reads from the leaving one", "old group",
    ],
)  # fmt: skip
def test_each_ingredient_is_needed(rules: Rules, scope: Scope) -> None:
    outcome = explore(rules, scope, limit=500_000)
    assert outcome.trace is not None, f"{outcome.states} states and no loss"
    print(" / ".join(outcome.trace))
