"""A leader's view of one member."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metadata.raft.progress import Inflights, Progress, State


def progress(match: int = 0, following: int = 1, state: State = State.PROBE) -> Progress:
    made = Progress(following, 1, Inflights(3, 100))
    made.match, made.state = match, state
    return made


@given(st.lists(st.one_of(st.integers(1, 60), st.just(None)), max_size=60), st.integers(1, 5), st.integers(0, 120))
def test_inflights_count_what_is_not_acknowledged(steps: list[int | None], messages: int, size: int) -> None:
    flight = Inflights(messages, size)
    model: list[tuple[int, int]] = []
    index = 0
    for step in steps:
        if step is None:
            acknowledged = index - len(model) // 2
            flight.free_to(acknowledged)
            model = [one for one in model if one[0] > acknowledged]
        else:
            index += 1
            flight.add(index, step)
            model.append((index, step))
        assert len(flight) == len(model)
        assert flight.bytes == sum(one[1] for one in model)
        assert flight.full() == (len(model) >= messages or (size > 0 and flight.bytes >= size))
        assert flight.copy().key() == tuple(model)


def test_pipeline_moves_when_entries_are_sent_and_stops_when_full() -> None:
    made = progress(match=10, following=11, state=State.REPLICATE)
    made.sent_entries(2, 10)
    made.sent_entries(1, 10)
    assert made.next == 14 and not made.is_paused()
    made.sent_entries(1, 10)
    assert made.is_paused()
    assert made.update(12) and made.match == 12
    made.inflights.free_to(12)
    assert not made.is_paused() and not made.inflights.full()


def test_pipeline_stops_at_the_bound_of_bytes() -> None:
    made = progress(match=10, following=11, state=State.REPLICATE)
    made.sent_entries(1, 100)
    assert made.is_paused()


def test_probe_waits_for_an_answer() -> None:
    made = progress(match=3, following=9)
    made.sent_entries(1, 5)
    assert made.is_paused() and made.next == 9
    assert made.decrease(8, 5) and made.next == 6 and not made.is_paused()


def test_stale_rejections_change_nothing() -> None:
    made = progress(match=3, following=9)
    assert not made.decrease(5, 4) and made.next == 9
    made.become_replicate()
    assert not made.decrease(2, 1)
    assert made.decrease(7, 6) and made.next == 4


def test_rejection_never_goes_below_what_is_matched() -> None:
    made = progress(match=7, following=9)
    assert made.decrease(8, 0) and made.next == 8


def test_old_acknowledgements_change_nothing() -> None:
    made = progress(match=7, following=9, state=State.REPLICATE)
    assert not made.update(7) and not made.update(3)
    assert (made.match, made.next) == (7, 9)


def test_snapshot_pauses_until_it_is_reported() -> None:
    made = progress(match=2, following=5)
    made.become_snapshot(20)
    assert made.is_paused() and made.pending_snapshot == 20
    made.become_probe()
    assert made.next == 21 and not made.is_paused()
    made.become_snapshot(30)
    made.pending_snapshot = 0  # it failed
    made.become_probe()
    assert made.next == 3


def test_commit_is_sent_again_only_where_it_can_tell_something() -> None:
    made = progress(match=5, following=8, state=State.REPLICATE)
    assert made.can_bump_commit(6)
    made.sent_commit = 6
    assert not made.can_bump_commit(6) and made.can_bump_commit(7)
    made.sent_commit = 9  # more than all that was sent: the member commits all it has
    assert not made.can_bump_commit(12)
    made.decrease(7, 6)
    assert made.sent_commit == 5
