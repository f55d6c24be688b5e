"""The log against a plain list, and the rules that keep it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.raft.log import LogDamaged, RaftLog
from metadata.raft.messages import ConfState, Entry, SnapshotMeta
from metadata.raft.storage import Compacted, MemoryStorage, Unavailable

BIG = 1 << 40


def entries(first: int, *terms: int) -> list[Entry]:
    return [Entry(first + offset, term, 0, b"%d" % term) for offset, term in enumerate(terms)]


def log_of(*terms: int, stable: int | None = None, base: int = 0, committed: int = 0) -> RaftLog:
    storage = MemoryStorage(index=base, term=1 if base else 0)
    all_entries = entries(base + 1, *terms)
    count = len(terms) if stable is None else stable
    storage.append(all_entries[:count])
    log = RaftLog(storage, base, max(committed, base), BIG)
    if all_entries[count:]:
        log.append(all_entries[count:])
    return log


def terms(log: RaftLog) -> list[int]:
    return [entry.term for entry in log.entries(log.first_index(), log.last + 1, BIG)]


def flush(log: RaftLog) -> None:
    """The disk writes all that is unstable and says so."""
    assert isinstance(log.storage, MemoryStorage)
    log.storage.append(log.next_unstable())
    log.accept_unstable()
    log.stable_to(log.last, log.last_term())


operation = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 6), st.integers(1, 4)),
    st.tuples(st.just("write"), st.just(0), st.just(0)),
    st.tuples(st.just("done"), st.integers(0, 5), st.just(0)),
)


@given(st.lists(operation, max_size=40))
def test_log_reads_like_a_list_whatever_is_durable(operations: list[tuple[str, int, int]]) -> None:
    """Appends that replace the tail, writes handed out, and completions that arrive late and out of date: the log
    always reads like the list that only the appends made, also when the disk is behind."""
    storage = MemoryStorage()
    log = RaftLog(storage, 0, 0, BIG)
    model: list[Entry] = []
    writes: list[tuple[list[Entry], int, int]] = []  # handed out, and what its completion will claim
    claims: list[tuple[int, int]] = []
    term = 1
    for kind, back, count in operations:
        if kind == "append":
            term += back > 0  # only a new leader replaces what there is
            first = max(len(model) - back, 0) + 1
            added = entries(first, *[term] * count)
            model = model[: first - 1] + added
            claims = [] if back else claims  # a completion of an older term is not delivered
            log.append(added)
        elif kind == "write" and log.last:
            writes.append((log.next_unstable(), log.last, log.last_term()))
            log.accept_unstable()
        elif kind == "done":
            for written, index, entry_term in writes:
                storage.append(written)
                claims.append((index, entry_term))
            writes = []
            if claims and storage.log == model:
                log.stable_to(*claims.pop(min(back, len(claims) - 1)))
        assert log.last == len(model)
        assert log.entries(1, log.last + 1, BIG) == model
        assert [log.term(entry.index) for entry in model] == [entry.term for entry in model]
        assert log.offset <= log.writing <= log.last + 1


def test_completion_of_replaced_entries_is_ignored() -> None:
    log = log_of(1, 1, 1, stable=1)
    log.accept_unstable()
    log.append(entries(2, 2, 2))
    log.stable_to(3, 1)
    assert log.offset == 2 and terms(log) == [1, 2, 2]
    log.stable_to(3, 2)
    assert log.offset == 4


@pytest.mark.parametrize("stable", [0, 2, 5])
def test_reading_joins_both_halves_within_the_bound(stable: int) -> None:
    log = log_of(1, 1, 2, 2, 3, stable=stable)
    assert [e.index for e in log.entries(1, 6, BIG)] == [1, 2, 3, 4, 5]
    assert [e.index for e in log.entries(1, 6, 0)] == [1]
    assert [e.index for e in log.entries(1, 6, 17 * 3)] == [1, 2, 3]
    assert [e.index for e in log.entries(2, 5, 17 * 2)] == [2, 3]
    assert log.entries(4, 4, BIG) == []


def test_terms_below_and_above_are_told_apart() -> None:
    log = log_of(2, 2, base=5, stable=1)
    assert [log.term(index) for index in (5, 6, 7)] == [1, 2, 2]
    with pytest.raises(Compacted):
        log.term(4)
    with pytest.raises(Unavailable):
        log.term(8)
    assert not log.matches(4, 1) and not log.matches(8, 2) and log.matches(5, 1)


@pytest.mark.parametrize(
    ("index", "term", "newer"), [(3, 2, True), (4, 2, True), (2, 2, False), (1, 3, True), (9, 1, False)]
)
def test_up_to_date_compares_terms_first(index: int, term: int, newer: bool) -> None:
    assert log_of(1, 1, 2).up_to_date(index, term) is newer


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [(7, 4, (7, 4)), (7, 3, (5, 3)), (7, 2, (3, 1)), (7, 9, (7, 4)), (99, 9, (7, 4)), (4, 3, (4, 3)), (7, 0, (0, 0))],
)
def test_find_by_term_skips_whole_terms(index: int, term: int, expected: tuple[int, int]) -> None:
    assert log_of(1, 1, 1, 3, 3, 4, 4, stable=4).find_by_term(index, term) == expected


def test_find_by_term_stops_where_the_log_begins() -> None:
    assert log_of(5, 5, base=10).find_by_term(12, 0) == (9, 0)


def test_snapshot_replaces_everything() -> None:
    log = log_of(1, 1, 1, stable=2, committed=1)
    snapshot = SnapshotMeta(9, 3, ConfState((1,)))
    log.restore(snapshot)
    assert (log.last, log.first_index(), log.committed, log.last_term()) == (9, 10, 9, 3)
    assert not log.has_next_committed(True) and log.next_snapshot() is snapshot
    log.accept_unstable()
    assert log.next_snapshot() is None
    assert isinstance(log.storage, MemoryStorage)
    log.storage.install(snapshot)
    log.stable_snapshot(8)
    assert log.snapshot is snapshot
    log.stable_snapshot(9)
    log.applied_to(9, 0)
    assert (log.next_snapshot(), log.applied, log.term(9), log.has_next_committed(True)) == (None, 9, 3, False)


def test_nothing_is_applied_before_it_is_durable() -> None:
    log = log_of(1, 1, 1, stable=1)
    log.commit_to(3)
    assert [e.index for e in log.next_committed(False)] == [1]
    assert [e.index for e in log.next_committed(True)] == [1, 2, 3]
    flush(log)
    assert [e.index for e in log.next_committed(False)] == [1, 2, 3]


def test_what_is_handed_out_to_be_applied_is_bounded() -> None:
    log = log_of(1, 1, 1)
    log.applying_bytes_max = 20
    log.commit_to(3)
    assert [e.index for e in log.next_committed(True)] == [1]
    log.accept_applying(1, 17)
    assert [e.index for e in log.next_committed(True)] == [2], "there is room for a little"
    log.accept_applying(2, 17)
    assert log.next_committed(True) == []
    log.applied_to(2, 34)
    assert [e.index for e in log.next_committed(True)] == [3]


def test_committed_entries_are_never_replaced() -> None:
    log = log_of(1, 1, 1, committed=2)
    with pytest.raises(LogDamaged):
        log.append(entries(2, 5))
    with pytest.raises(LogDamaged):
        log.try_append(1, 1, 0, entries(2, 5))
    assert terms(log) == [1, 1, 1]


def test_lost_entries_are_noticed() -> None:
    with pytest.raises(LogDamaged):
        log_of(1, 1).commit_to(3)
    storage = MemoryStorage()
    storage.append(entries(1, 1, 1))
    with pytest.raises(LogDamaged):
        RaftLog(storage, 0, 3, BIG)
    with pytest.raises(LogDamaged):
        RaftLog(storage, 3, 0, BIG)
    with pytest.raises(LogDamaged):
        RaftLog(MemoryStorage(index=5, term=1), 4, 5, BIG)
    with pytest.raises(LogDamaged):
        log_of(1, 1, committed=1).applied_to(2, 0)
