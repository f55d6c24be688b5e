"""Exclusive leases in the leader's table: who gets one, what it takes to end one, who waits for that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from metadata import api
from metadata.leases import LeaseTable
from metadata.server.leasing import NOTHING, Concerned, Leasing, concerned

A, B, C = 1, 2, 3
INO = 7


@pytest.fixture
def table() -> LeaseTable:
    made = LeaseTable(10.0, 0.5, 100, fencing=True, cool_s=1.0)
    made.begin(1, [], 0.0)
    return made


def give(table: LeaseTable, session: int, now_s: float = 0.0) -> bool:
    """Grant INO; return whether exclusively."""
    assert table.grant(session, [INO], now_s)
    return table.own(session, [INO], now_s) == ()


def test_only_who_is_alone_has_it_exclusively(table: LeaseTable) -> None:
    assert give(table, A)
    assert not table.grant(B, [INO], 0.0), "whoever asks has it recalled first"
    ((session, number, inos),) = table.seize([INO], B, 0.0)
    assert (session, inos) == (A, (INO,))
    assert table.unsaid([INO], B) == {(A, number)} and not table.unsaid([INO], A)
    assert not table.grant(B, [INO], 0.0)
    table.acknowledge(A, number)
    assert not table.unsaid([INO], B)
    assert not give(table, B), "an inode that two want cools down"
    assert give(table, B, 1.5)


def test_what_is_given_back_is_recalled_until_it_was_brought(table: LeaseTable) -> None:
    assert give(table, A)
    (_, before, _) = table.recall(A, (INO,))  # on its way when A gave it back by itself
    (_, other, _) = table.recall(A, (INO, 8))
    fired: list[int] = []
    session, number, inos = table.give(A, (INO,), 0.0)
    table.wait(table.debts([INO], B), lambda: fired.append(1))
    assert not table.grant(B, [INO], 0.0) and not table.grant(A, [INO], 0.0)
    table.given(session, number, inos)
    assert not fired and table.outstanding(A) == [(A, other, (INO, 8))], "of 8 nothing was said"
    table.acknowledge(A, other)
    assert fired and before != number


def test_who_owes_what_it_gave_back_does_not_owe_it_for_ever(table: LeaseTable) -> None:
    assert not table.may_hold(A)
    assert give(table, A)
    assert table.may_hold(A)
    table.give(A, (INO,), 0.0)
    assert table.lapse(100.0) == [A] and table.unfenced() == [A] and table.may_hold(A)
    table.fenced(A)
    assert not table.debts([INO], B) and not table.may_hold(A)


def test_who_gave_it_back_may_have_it_again_and_others_share_it(table: LeaseTable) -> None:
    assert give(table, A)
    table.given(*table.give(A, (INO,), 0.0))
    assert not give(table, B, 0.01)
    table.drop(B)
    assert give(table, A, 0.02)
    (recall,) = table.seize([INO], B, 0.03)
    table.acknowledge(*recall[:2])
    assert not give(table, A, 0.04), "by now two want it"


def test_a_shared_lease_becomes_exclusive_when_the_others_are_gone(table: LeaseTable) -> None:
    assert table.grant(A, [INO], 0.0) and table.grant(B, [INO], 0.0)
    assert table.own(A, [INO], 0.0) == (INO,)
    table.drop(B)
    assert table.own(A, [INO], 0.0) == ()


def test_nothing_is_given_while_a_mutation_is_under_way(table: LeaseTable) -> None:
    table.pend(B, [INO])
    assert not give(table, A)
    table.unpend(B, [INO])
    assert give(table, A)
    table.pend(A, [INO])
    assert give(table, A), "its own does not matter"


def test_who_waits_for_a_mutation_is_called_when_it_is_applied(table: LeaseTable) -> None:
    fired: list[int] = []
    table.pend(A, [INO])
    table.pend(B, [INO])
    assert table.applying([5, INO]) == INO
    table.wait_applied(INO, lambda: fired.append(1))
    table.unpend(A, [INO])
    assert not fired
    table.unpend(B, [INO])
    assert fired and not table.applying([INO])


def test_time_alone_does_not_end_it(table: LeaseTable) -> None:
    give(table, A)
    table.grant(A, [8], 0.0)
    assert table.lapse(11.0) == [] and table.unfenced() == []
    ((_, number, _),) = table.seize([INO], B, 11.0)
    table.wait({(A, number)}, lambda: fired.append(1))
    fired: list[int] = []
    assert table.unfenced() == [A], "somebody wants it: it has to be fenced"
    table.lapse(12.0)
    assert not fired and table.unsaid([INO], B)
    table.fenced(A)
    assert fired and not table.unsaid([INO], B) and table.unfenced() == []


def test_who_comes_back_in_time_is_not_fenced(table: LeaseTable) -> None:
    give(table, A)
    table.lapse(11.0)
    table.prolong(A, 12.0)
    ((_, number, _),) = table.seize([INO], B, 12.0)
    table.lapse(13.0)
    assert table.unfenced() == []
    table.acknowledge(A, number)
    assert not table.unsaid([INO], B)


def test_a_debt_that_outlives_the_lease_leads_to_a_fence(table: LeaseTable) -> None:
    give(table, A)
    table.seize([INO], B, 1.0)
    table.lapse(11.0)
    assert table.unfenced() == [A] and table.unsaid([INO], B)


def test_grace_ends_with_a_fence_for_who_did_not_come(table: LeaseTable) -> None:
    table.end()
    table.begin(2, [A, B], 100.0)
    table.clear(B)
    table.lapse(110.0)
    assert table.in_grace and table.unfenced() == []
    table.lapse(110.6)
    assert table.in_grace and table.unfenced() == [A]
    table.fenced(A)
    assert not table.in_grace


def test_others_own(table: LeaseTable) -> None:
    assert not table.others_own(A)
    give(table, A)
    assert not table.others_own(A) and table.others_own(B)
    table.seize([INO], B, 0.0)
    assert table.others_own(B), "it has not said yet what it changed"


def test_what_a_mutation_is_about() -> None:
    names = {(1, b"a"): 10, (1, b"b"): 11}

    def child(parent: int, name: bytes) -> int:
        return names.get((parent, name), 0)

    assert concerned([api.Make(1, b"a", 0o100644, 0, 0)], child) == Concerned((1,), ())
    assert concerned([api.Make(1, b"a", 0o100644, 0, 0, exclusive=False)], child) == Concerned((1, 10), (1,))
    assert concerned([api.Remove(1, b"b")], child) == Concerned((1, 11), (1,))
    assert concerned([api.Rename(1, b"a", 2, b"c")], child) == Concerned((1, 10, 2), (1, 2))
    moved = [api.Rename(1, b"a", 2, b"c"), api.Remove(2, b"c")]
    assert concerned(moved, child) == Concerned((1, 10, 2), (1, 2)), "names are as the operation before left them"
    assert concerned([api.Link(12, 1, b"z"), api.SetAttr(13, mode=0)], child) == Concerned((12, 1, 13), ())
    assert concerned([api.CloneRange(1, 0, 2, 0, 5)], child) == Concerned((1, 2), (), (1, 2))
    written = [api.Commit(1, (), 0, 0, 0), api.PunchHole(2, 0, 1), api.SetAttr(3, size=0), api.SetAttr(4, mtime_ns=1)]
    assert concerned(written, child) == Concerned((1, 2, 3, 4), (), (1, 2, 3, 4))


def test_who_changes_bytes_waits_for_those_that_others_are_giving_back() -> None:
    """Once: what they are asked for meanwhile is of the same time."""
    node: Any = SimpleNamespace(core=SimpleNamespace(term=1), running_s=0.0, full=False)
    leasing = Leasing(node, SimpleNamespace(sessions=list), lambda *_: True)  # type: ignore[arg-type]
    leasing.begin()
    table = leasing.table
    calls: list[tuple[Any, bool]] = []

    def again(call: Any, *, told: bool = False) -> None:
        calls.append((call, told))

    def withheld(op: api.Op, session: int) -> bool:
        call: Any = SimpleNamespace()
        return leasing.withholds(call, concerned([op], lambda *_: 0), session, again)

    for session in (A, B, C):
        assert table.grant(session, [INO], 0.0)
    recall = table.recall(A, (INO,))
    assert not withheld(api.SetAttr(INO, mode=0), B), "bytes have nothing to do with it"
    assert not withheld(api.SetAttr(INO, size=0), A), "its own come in order"
    assert withheld(api.SetAttr(INO, size=0), B)
    table.recall(C, (INO,))
    assert not calls
    table.acknowledge(*recall[:2])
    assert [told for _, told in calls] == [True]


def test_what_a_journal_has_made_is_recalled_where_it_cannot_be_leased() -> None:
    """A has made 8 in 7, which is being recalled, and its kernel believes in 8: nobody may change that before."""
    sent: list[api.Recall] = []
    node: Any = SimpleNamespace(core=SimpleNamespace(term=1), running_s=0.0, full=False)
    machine: Any = SimpleNamespace(sessions=list, locked=lambda inos: ())

    def notify(peer: bytes, message: Any) -> bool:
        sent.append(message)
        return True

    leasing = Leasing(node, machine, notify)
    leasing.begin()
    leasing._peers[A] = b"A"
    table = leasing.table
    assert leasing.grant(A, [7, 9]).shared == ()
    _, first, _ = table.recall(A, (7,))
    assert leasing.grant(A, [7, 8, 9]) == NOTHING and not sent, "what was not changed there is not believed"
    assert leasing.grant(A, [7, 8, 9], journal=True) == NOTHING
    (second,) = sent
    assert (second.session, second.inos) == (A, (8,)), "of 9 it has a lease, which stands"
    assert table.debts([8], B) == {(A, second.number)} and not table.debts([9], B)
    table.acknowledge(A, first)
    assert table.debts([7, 8], B) == {(A, second.number)}
    table.acknowledge(A, second.number)
    assert not table.debts([7, 8], B)
    assert leasing.grant(A, [7, 8], journal=True).term
