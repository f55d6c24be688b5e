"""What is remembered of names that the kernel was told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.mount.names import COOL_S_MAX, COOL_S_MIN, NAME_BYTES, Arriving, Busy, Cooling, ToldNames

LIFE_S = 10.0


@given(st.lists(st.tuples(st.floats(0, 4), st.sampled_from("tk"), st.integers(1, 3), st.integers(0, 5))))
def test_what_may_be_believed_is_taken(steps: list[tuple[float, str, int, int]]) -> None:
    """A name that was told less than a life ago and not taken since is always among those taken; weight follows."""
    told = ToldNames(LIFE_S, 1 << 20)
    believed: dict[tuple[int, bytes], float] = {}
    now_s = 0.0
    for pause_s, what, parent, number in steps:
        now_s += pause_s
        name = b"n%d" % number
        if what == "t":
            told.tell(parent, name, now_s)
            believed[parent, name] = now_s
            continue
        taken = told.take([parent], now_s).get(parent, [])
        assert len(set(taken)) == len(taken)
        for (directory, child), at_s in list(believed.items()):
            if directory == parent:
                assert child in taken or now_s >= at_s + LIFE_S
                del believed[directory, child]
    told.take_all(now_s)
    assert len(told) == told.weight == 0


def test_names_are_bounded_and_end_by_themselves() -> None:
    told = ToldNames(LIFE_S, 10 * (NAME_BYTES + 1))
    count = 0
    while told.room(0.0):
        told.tell(1, b"%c" % count, 0.0)
        count += 1
    assert count == 10
    assert not told.room(LIFE_S + 1), "in the older generation now"
    assert told.room(2 * LIFE_S + 1) and len(told) == 0


def test_a_directory_cools_for_longer_each_time() -> None:
    cooling = Cooling()
    assert cooling.hot(1, 0.0)
    now_s, span_s = 0.0, COOL_S_MIN
    for _ in range(10):
        cooling.cool(1, now_s)
        assert not cooling.hot(1, now_s + span_s - 0.1)
        now_s += span_s
        assert cooling.hot(1, now_s)
        span_s = min(2 * span_s, COOL_S_MAX)
    cooling.cool(1, now_s + 3 * COOL_S_MAX)
    assert cooling.hot(1, now_s + 3 * COOL_S_MAX + COOL_S_MIN), "long ago does not count"


def test_busy_counts() -> None:
    busy = Busy()
    busy.enter(1)
    busy.enter(1)
    busy.leave(1)
    assert busy.any_of([2, 1]) and not busy.any_of([2])
    busy.leave(1)
    assert not busy.any_of([1])


def test_a_reply_has_arrived_when_its_thread_goes_on() -> None:
    arriving = Arriving(0.05)
    arriving.sent(7, 1, 0.0)
    arriving.sent(8, 2, 0.0)
    assert arriving.left_s([1], 0.01) > 0.03 and not arriving.left_s([3], 0.01)
    arriving.proven(7)
    assert not arriving.left_s([1], 0.01) and arriving.left_s([1, 2], 0.01)
    assert arriving.left_s([2], 0.06) <= 0
    arriving.sent(0, 1, 1.0)
    arriving.proven(0)
    assert arriving.left_s([1], 1.0) > 0, "a thread without a number proves nothing"
