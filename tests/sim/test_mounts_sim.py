"""Mounts that change things by themselves are stopped and go on, under one leader after another, and nobody sees what
was before (``tests/sim/mounts_world.py``). Each rule is also taken out once, and the checker must notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable

import pytest
import trio

from fusefs.client.exclusive import Exclusive
from fusefs.client.leases import Leases
from fusefs.client.recalls import Recalls
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from metadata.leases import LeaseTable
from tests.harness import LONG, seed
from tests.sim.checkers import Violation
from tests.sim.mounts_kernel import Kernel
from tests.sim.mounts_world import play

SCHEDULES = 2000 if LONG else 15
SEEDS = 800 if LONG else 200  # for a rule that is missing; most need less than SCHEDULES


@pytest.mark.timeout(7200)
def test_nothing_stale_is_read_where_mounts_change_things_by_themselves() -> None:
    base = seed("mounts")
    counts: Counter[str] = Counter()
    for number in range(base, base + SCHEDULES):
        try:
            counts.update(play(number))
        except BaseException:
            print(f"this schedule alone: SEED={number}")
            raise
    print(dict(counts))
    assert counts["local"] > 100 and counts["crossed"] > 0, counts


def test_a_schedule_is_its_seeds() -> None:
    assert play(1) == play(1) != play(2)


async def nothing(*_: object) -> None:
    await trio.lowlevel.checkpoint()


def without_grace(begin: Callable[[LeaseTable, int, Iterable[int], float], None]) -> Callable[..., None]:
    def begin_at_once(self: LeaseTable, term: int, _sessions: Iterable[int], now_s: float) -> None:
        begin(self, term, [], now_s)

    return begin_at_once


def without_a_look(expire: Callable[..., bool]) -> Callable[..., bool]:
    def shows_nothing(self: Kernel, inos: Collection[int], names: Collection[tuple[int, bytes]] = ()) -> bool:
        expire(self, inos, names)
        return True

    return shows_nothing


def without_a_cover(learn: Callable[..., bool]) -> Callable[..., bool]:
    def learn_any(self: Session, ticket: object, queries: object, reply: object, _held: bool) -> bool:
        return learn(self, ticket, queries, reply, False)

    return learn_any


WEAKENINGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "recall what a journal has made": lambda patch: patch.setattr(LeaseTable, "unleased", lambda *_: ()),
    "bring before the acknowledgement": lambda patch: patch.setattr(Exclusive, "recalled", nothing),
    "forget before the acknowledgement": lambda patch: patch.setattr(Kernel, "forget", nothing),
    "recall before showing": lambda patch: patch.setattr(LeaseTable, "seize", lambda *_, **__: []),
    "wait before proposing": lambda patch: patch.setattr(LeaseTable, "unsaid", lambda *_: set()),
    "grace": lambda patch: patch.setattr(LeaseTable, "begin", without_grace(LeaseTable.begin)),
    "tell a new leader what is kept": lambda patch: patch.setattr(LeaseTable, "reclaim", lambda *_: True),
    "show what is written when it is committed": lambda patch: patch.setattr(WriteBack, "written_through", nothing),
    "late answers": lambda patch: patch.setattr(Leases, "fresh", lambda self, ticket, ino: True),
    "cover what is mapped": lambda patch: patch.setattr(Session, "_learn", without_a_cover(Session._learn)),
}
RARE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "forget before the term is named": lambda patch: patch.setattr(Recalls, "forgotten", nothing),
    "look what the kernel shows": lambda patch: patch.setattr(Kernel, "expire", without_a_look(Kernel.expire)),
    "forget once more what was read meanwhile": lambda patch: patch.setattr(
        Recalls, "passes", lambda self, held: any(ino in self._owing for ino in held)
    ),
    "end by a fence": lambda patch: patch.setattr(LeaseTable, "_silence", LeaseTable.drop),
}


FIRST = {"cover what is mapped": 820, "tell a new leader what is kept": 60}  # where it does not take long


@pytest.mark.timeout(600)
@pytest.mark.parametrize("without", [*WEAKENINGS, *(RARE if LONG else ())])
def test_each_rule_is_needed(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (WEAKENINGS | RARE)[without](monkeypatch)
    first = FIRST.get(without, 0)
    for number in range(first, first + SEEDS):
        try:
            play(number)
        except Violation as violation:
            print(f"seed {number}: {violation}")
            break
    else:
        pytest.fail(f"nothing was noticed in {SEEDS} schedules without: {without}")
    monkeypatch.undo()
    play(number)
