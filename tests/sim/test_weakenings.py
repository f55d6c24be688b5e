"""The simulator notices what it is for: each weakening is caught, and only by being there."""

from __future__ import annotations

import pytest

from tests.sim.checkers import Violation
from tests.sim.profile import draw
from tests.sim.run import simulate
from tests.sim.weakenings import WEAKENINGS, Weakening

SEEDS = 150  # most need a few, the rarest about thirty
FIRST = {"a_joint_configuration_asks_one_half": 75}  # where it does not take long


@pytest.mark.parametrize("weakening", WEAKENINGS, ids=lambda weakening: weakening.name)
def test_a_weakening_is_caught(weakening: Weakening) -> None:
    first = FIRST.get(weakening.name, 1)
    for seed in range(first, first + SEEDS):
        profile = weakening.tune(draw(seed))
        try:
            with weakening.applied():
                simulate(seed, profile=profile)
        except Violation as violation:
            print(f"{weakening.name}: seed {seed}: {violation.rule}")
            break
    else:
        pytest.fail(f"{weakening.name} is not noticed in {SEEDS} schedules")
    simulate(seed, profile=weakening.tune(draw(seed)))
