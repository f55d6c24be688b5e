"""The linearizability checker against brute force over all orders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linear import directory
from tests.linear.checker import NEVER, UNKNOWN, Operation, Step, explain, linearizable


def brute_force(history: Sequence[Operation], initial: object, step: Step) -> bool:
    """Try every subset of unknown operations and every order that real time allows."""
    known = [o for o in history if o.end != NEVER]
    unknown = [o for o in history if o.end == NEVER]
    for count in range(len(unknown) + 1):
        for extra in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *extra]):
                if any(b.end < a.start for a, b in itertools.combinations(order, 2)):
                    continue
                states = {initial}
                for o in order:
                    states = {after for s in states for after in step(s, o.call, o.result)}
                if states:
                    return True
    return False


TIMES = st.tuples(st.integers(0, 12), st.integers(0, 6))


def operations(calls: st.SearchStrategy[tuple[object, object]]) -> st.SearchStrategy[list[Operation]]:
    def build(pair: tuple[tuple[object, object], tuple[int, int], bool]) -> Operation:
        (call, result), (start, length), lost = pair
        if lost:
            return Operation(call, UNKNOWN, start, NEVER)
        return Operation(call, result, start, start + length + 0.5)

    lost = st.sampled_from([False, False, False, True])
    return st.lists(st.tuples(calls, TIMES, lost).map(build), max_size=6)


REGISTER = st.one_of(
    st.tuples(st.tuples(st.just("write"), st.integers(0, 2)), st.just("ok")),
    st.tuples(st.just(("read",)), st.integers(0, 2)),
    st.tuples(st.tuples(st.just("swap"), st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["ok", "no"])),
)
SWAPS = st.one_of(
    st.tuples(
        st.tuples(st.just("swap"), st.integers(0, 2), st.integers(1, 3)), st.sampled_from(["ok", "EEXIST"])
    ),
    st.tuples(st.tuples(st.just("get"), st.integers(0, 2)), st.sampled_from([1, 2, 3, "ENOENT"])),
)
NAME = st.sampled_from("ab")
DIRECTORY = st.one_of(
    st.tuples(st.tuples(st.just("create"), NAME, st.integers(1, 3)), st.sampled_from(["ok", "EEXIST"])),
    st.tuples(st.tuples(st.just("rename"), NAME, NAME), st.sampled_from(["ok", "ENOENT"])),
    st.tuples(st.tuples(st.just("find"), NAME, st.just("#1")), st.sampled_from(["ok", "ENOENT"])),
    st.tuples(st.tuples(st.just("attach"), NAME, st.just("#1")), st.sampled_from(["ok", "ENOENT", "EEXIST"])),
    st.tuples(st.tuples(st.just("unlink"), NAME), st.sampled_from(["ok", "ENOENT"])),
    st.tuples(st.tuples(st.just("read"), NAME), st.sampled_from([1, 2, 3, "ENOENT"])),
    st.tuples(st.just(("list",)), st.sampled_from([frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")])),
)


@settings(max_examples=400, deadline=None)
@given(operations(REGISTER))
def test_register_agrees_with_brute_force(history: list[Operation]) -> None:
    want = brute_force(history, 0, directory.register_step)
    assert linearizable(history, 0, directory.register_step) == want
    assert (explain(history, 0, directory.register_step) == []) == want


@settings(max_examples=400, deadline=None)
@given(operations(DIRECTORY))
def test_directory_agrees_with_brute_force(history: list[Operation]) -> None:
    want = brute_force(history, directory.EMPTY, directory.step)
    assert linearizable(history, directory.EMPTY, directory.step) == want


@settings(max_examples=400, deadline=None)
@given(operations(SWAPS))
def test_swaps_agree_with_brute_force(history: list[Operation]) -> None:
    want = brute_force(history, (), directory.swap_step)
    assert linearizable(history, (), directory.swap_step) == want


def test_two_winners_of_one_version_are_caught() -> None:
    history = [Operation(("swap", 0, 1), "ok", 0, 3), Operation(("swap", 0, 2), "ok", 1, 2)]
    assert not linearizable(history, (), directory.swap_step)
    loser = Operation(("swap", 0, 2), "EEXIST", 1, 2)
    assert linearizable([history[0], loser], (), directory.swap_step)
    assert not linearizable([loser], (), directory.swap_step), "taken by nobody"


def test_a_stale_read_is_caught() -> None:
    history = [Operation(("write", 1), "ok", 0, 1), Operation(("read",), 0, 2, 3)]
    assert not linearizable(history, 0, directory.register_step)
    assert explain(history, 0, directory.register_step) == history


def test_a_lost_append_is_caught() -> None:
    history = [
        Operation(("append", 1), "ok", 0, 1),
        Operation(("append", 2), "ok", 0.5, 2),
        Operation(("read",), (2,), 3, 4),
    ]
    assert not linearizable(history, (), directory.log_step)
    assert linearizable([*history[:2], Operation(("read",), (2, 1), 3, 4)], (), directory.log_step)


def test_a_log_that_is_read_late_is_checked_soon() -> None:
    def append(value: int, start: float) -> Operation:
        return Operation(("append", value), "ok", start, start + 1.5)

    order = list(range(40))
    order[8:10] = 9, 8
    history = [append(value, value / 2) for value in range(40)]
    for answer, want in ((order, True), (order[:-1], False), ([*order[:20], *order[21:], order[20]], False)):
        read = Operation(("read",), answer, 100, 101)
        assert linearizable([*history, read], (), directory.log_step_for([*history, read])) is want, answer
    early = [*history, Operation(("read",), order[:3], 8, 9), Operation(("read",), order, 100, 101)]
    assert not linearizable(early, (), directory.log_step_for(early)), "what was there before it was read"


def test_an_unknown_write_may_have_happened_or_not() -> None:
    lost = Operation(("write", 7), UNKNOWN, 0, NEVER)
    for seen in (0, 7):
        assert linearizable([lost, Operation(("read",), seen, 1, 2)], 0, directory.register_step)
    flicker = [lost, Operation(("read",), 7, 1, 2), Operation(("read",), 0, 3, 4)]
    assert not linearizable(flicker, 0, directory.register_step)
