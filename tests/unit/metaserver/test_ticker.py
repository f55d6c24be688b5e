"""Ticks: the time that a process did not run is not held against its peers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metadata.server.ticker import Ticker

TICK_S = 0.05


def test_ticks_come_at_the_interval() -> None:
    ticker = Ticker(TICK_S, 100.0)
    times = [100.0 + 0.01 * step for step in range(1, 101)]
    assert sum(ticker.due(now_s) for now_s in times) in (19, 20)
    assert ticker.stalls == 0


def test_a_stopped_process_has_no_tick_on_its_first_turn() -> None:
    ticker = Ticker(TICK_S, 0.0)
    assert not ticker.due(60.0)
    assert not ticker.due(60.0 + TICK_S / 2)
    assert ticker.due(60.0 + TICK_S)
    assert ticker.stalls == 1
    assert ticker.ticks == 1


def test_a_busy_process_ticks_slowly_but_ticks() -> None:
    ticker = Ticker(TICK_S, 0.0)
    assert [ticker.due(0.2 * turn) for turn in range(1, 6)] == [False, True, True, True, True]
    assert ticker.stalls == 1


def test_lost_time_does_not_count_as_running() -> None:
    ticker = Ticker(TICK_S, 0.0)
    ticker.due(1000.0)
    assert ticker.running_s(1000.0) <= TICK_S


@given(st.lists(st.floats(0.0, 1.0), max_size=200))
def test_running_time_is_monotone_and_never_ahead_of_the_clock(steps: list[float]) -> None:
    ticker, now_s, before_s = Ticker(TICK_S, 0.0), 0.0, 0.0
    for step_s in steps:
        now_s += step_s
        ticker.due(now_s)
        running_s = ticker.running_s(now_s)
        assert before_s - 1e-9 <= running_s <= now_s + 1e-9
        before_s = running_s
