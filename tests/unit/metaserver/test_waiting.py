"""Waiting proposals and reads: everybody is told once, and only the truth."""

from __future__ import annotations

from typing import Optional

from metadata.server.waiting import Proposals, Reads
from node.wire.errors import Code, FsError

LOST = FsError(Code.NOT_LEADER, "", hint=2)


class Told:
    def __init__(self) -> None:
        self.results: list[Optional[str]] = []
        self.errors: list[Optional[FsError]] = []

    def __call__(self, result: Optional[str], error: Optional[FsError]) -> None:
        self.results.append(result)
        self.errors.append(error)

    def read(self, error: Optional[FsError]) -> None:
        self.errors.append(error)

    @property
    def code(self) -> Code:
        assert len(self.errors) == 1 and self.errors[0] is not None
        return self.errors[0].code


def test_a_proposal_gets_the_result_of_its_own_entry() -> None:
    proposals: Proposals[str] = Proposals()
    told = Told()
    proposals.add(7, 3, told)
    proposals.applied(6, 3, "other")
    assert told.results == []
    proposals.applied(7, 3, "mine")
    proposals.applied(7, 3, "again")
    assert told.results == ["mine"] and told.errors == [None]


def test_another_leaders_entry_at_that_index_is_no_result() -> None:
    proposals: Proposals[str] = Proposals()
    told = Told()
    proposals.add(7, 3, told)
    proposals.applied(7, 4, "theirs")
    assert told.results == [None] and told.code is Code.RETRY


def test_an_index_reached_again_fails_the_older_waiter() -> None:
    proposals: Proposals[str] = Proposals()
    old, new = Told(), Told()
    proposals.add(7, 3, old)
    proposals.add(7, 5, new)
    assert old.code is Code.RETRY
    proposals.applied(7, 5, "new")
    assert new.results == ["new"] and len(old.errors) == 1


def test_leadership_loss_fails_all_proposals_once() -> None:
    proposals: Proposals[str] = Proposals()
    told = [Told(), Told()]
    for index, done in enumerate(told):
        proposals.add(index, 1, done)
    proposals.fail(LOST)
    proposals.applied(0, 1, "late")
    assert [t.code for t in told] == [Code.NOT_LEADER] * 2
    assert len(proposals) == 0


def test_one_round_confirms_all_that_waited_and_the_rest_gather() -> None:
    reads = Reads(patience_s=1.0)
    first, second, third = Told(), Told(), Told()
    reads.add(first.read)
    reads.add(second.read)
    context = reads.begin(0.0)
    assert context is not None
    reads.add(third.read)
    assert reads.begin(0.1) is None
    reads.confirmed(context, 10)
    reads.applied(9)
    assert not first.errors
    reads.applied(10)
    assert first.errors == second.errors == [None] and not third.errors
    after = reads.begin(0.2)
    assert after is not None and after > context


def test_rounds_overlap_up_to_a_bound_and_none_confirms_what_came_after_it_began() -> None:
    reads = Reads(patience_s=1.0, rounds_max=2)
    told = [Told() for _ in range(4)]
    contexts = []
    for one in told[:3]:
        reads.add(one.read)
        contexts.append(reads.begin(0.0))
    one, two, none = contexts
    assert one is not None and two is not None and none is None, "the third waits"
    reads.add(told[3].read)
    reads.confirmed(one, 5)
    reads.applied(5)
    assert [len(t.errors) for t in told] == [1, 0, 0, 0]
    three = reads.begin(0.1)
    assert three is not None and reads.begin(0.1) is None
    reads.confirmed(two, 5)
    reads.applied(5)
    assert [len(t.errors) for t in told] == [1, 1, 0, 0]
    reads.confirmed(three, 5)
    reads.applied(5)
    assert [t.errors for t in told] == [[None]] * 4


def test_a_lost_round_is_asked_again_and_the_later_one_answers_both() -> None:
    reads = Reads(patience_s=1.0)
    first, second = Told(), Told()
    reads.add(first.read)
    one = reads.begin(0.0)
    reads.add(second.read)
    assert reads.begin(0.9) is None
    two = reads.begin(1.0)
    assert one is not None and two is not None
    reads.applied(5)
    reads.confirmed(two, 5)
    reads.applied(5)
    assert first.errors == second.errors == [None]
    reads.confirmed(one, 5)
    reads.applied(6)
    assert len(reads) == 0 and len(first.errors) == 1


def test_an_earlier_round_does_not_confirm_a_later_read() -> None:
    reads = Reads(patience_s=1.0)
    first, second = Told(), Told()
    reads.add(first.read)
    one = reads.begin(0.0)
    reads.add(second.read)
    reads.begin(1.0)
    assert one is not None
    reads.confirmed(one, 5)
    reads.applied(5)
    assert first.errors == [None] and not second.errors


def test_a_lost_round_without_new_reads_is_asked_again_too() -> None:
    reads = Reads(patience_s=1.0)
    told = Told()
    reads.add(told.read)
    reads.begin(0.0)
    again = reads.begin(2.0)
    assert again is not None
    reads.confirmed(again, 1)
    reads.applied(1)
    assert told.errors == [None]


def test_leadership_loss_fails_reads_in_every_stage() -> None:
    reads = Reads(patience_s=1.0)
    told = [Told(), Told(), Told()]
    reads.add(told[0].read)
    context = reads.begin(0.0)
    assert context is not None
    reads.confirmed(context, 10)
    reads.add(told[1].read)
    reads.begin(0.0)
    reads.add(told[2].read)
    assert len(reads) == 3
    reads.fail(LOST)
    reads.applied(10)
    assert [t.code for t in told] == [Code.NOT_LEADER] * 3
    assert len(reads) == 0
