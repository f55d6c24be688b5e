"""Whole groups of members under trouble. Every seed must be clean; a seed that is not prints how to play it again.

``SEED=n`` plays that one seed, ``LONG=1`` ten times as many as usual; ``python -m tests.sim --schedules N`` any number.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.sim.profile import EVENTS, FAULTS, draw
from tests.sim.run import simulate

SEED = os.environ.get("SEED", "")
CHUNK = 25
CHUNKS = 12 * (10 if os.environ.get("LONG") else 1)


@pytest.mark.parametrize("chunk", range(1 if SEED else CHUNKS))
def test_schedules(chunk: int) -> None:
    seeds = [int(SEED)] if SEED else list(range(chunk * CHUNK, (chunk + 1) * CHUNK))
    happened: Counter[str] = Counter()
    for seed in seeds:
        report = simulate(seed)
        happened.update(events=report.events, committed=report.committed, reads=report.reads, terms=report.terms)
        happened.update(report.faults)
        happened.update(report.counts)
        assert report.events >= EVENTS
    print(f"seeds {seeds[0]} to {seeds[-1]}: {dict(sorted(happened.items()))}")
    if not SEED:  # the trouble was real, and so was the work
        assert all(happened[fault] for fault in ("kill", "power", "cut", "partition", "pause", "transfer", "full"))
        assert happened["committed"] > 20 * CHUNK and happened["reads"] > 20 * CHUNK and happened["terms"] > 2 * CHUNK
        assert happened["streams"] and happened["changes"] and happened["repeats"] and happened["disks counted"]


def test_the_seeds_differ_in_kind() -> None:
    profiles = [draw(seed) for seed in range(CHUNK * 12)]
    assert {profile.members for profile in profiles} == {3, 4, 5, 7}
    assert {profile.settings.worker for profile in profiles} == {False, True}
    assert {profile.settings.lease for profile in profiles} == {False, True}
    for fault in FAULTS:
        assert {profile.faults[fault] > 0 for profile in profiles} == {False, True}, fault


def test_a_seed_is_a_schedule() -> None:
    first, again = simulate(7), simulate(7)
    assert first == again
    assert first.fingerprint != simulate(8).fingerprint
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "tests.sim", "--seed", "7"]
    played = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert f"fingerprint={first.fingerprint}" in played.stdout
