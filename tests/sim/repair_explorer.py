"""Every interleaving of healing with writers and the collector at small scope: one block, three copies, four disks.

The rule under test (``metadata.healing`` decides by it, ``metadata.state.root`` refuses what breaks its form):

1. A *filling* member of a row takes new writes. It becomes complete by an entry, after it has read from enough members:
   those that are complete and not lost, and of these at least as many as meet every write quorum that there may have
   been: ``complete - WRITE_QUORUM + 1``, where lost members that are still in the row count as complete. A lost disk
   (a wiped server has a new identity) answers nothing, and so does not count as read.
2. A copy that repair makes or finds carries the greatest touch that it read.
3. In the entry that makes a substitute complete the one that it replaces becomes *leaving*: no write counts on it any
   more, and commits that were put before are refused, because the group's epoch changed. It leaves the row when
   WRITE_QUORUM others have read, after that, from it, or where it is lost from a quorum (2). Filling members took
   writes too, so it is not enough that the substitute has read. Only then it drops its data.
4. All these entries are conditional on the epoch of the group, and so is what was read.

The invariant: while the block is referenced, some disk of the row holds it, although one disk after the other may be
lost, each time no earlier than the row is whole again. ``Rules`` can drop each ingredient; then a block gets lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Optional

from tests.sim.gc_explorer import Outcome

ABSENT = -1
DISKS = 4
SPARE = 3
WRITE_QUORUM = 2
DISTANCE = 2

IDLE, TOUCHING, HOLDING = range(3)


@dataclass(frozen=True)
class Rules:
    """The ingredients; each can be taken out."""

    lost_do_not_answer: bool = True
    read_a_quorum: bool = True
    carry_greatest_touch: bool = True
    raise_touches: bool = True
    no_writes_on_leaving: bool = True
    others_read_too: bool = True
    read_from_leaving: bool = True
    enough_read_from_leaving: bool = True
    commit_checks_group: bool = True


@dataclass(frozen=True)
class Scope:
    """How much can happen. Disks are lost one after the other, each when the row is whole."""

    epochs: int = 3
    lost_disks: int = 2
    drains: int = 0
    aged: bool = False  # begin with a block that was removed two epochs ago, everywhere, and deletes on their way


class Session(NamedTuple):
    phase: int
    known: int  # the epoch that it has learnt
    oldest: int  # of its touches under way
    confirmed: int  # mask of disks
    targets: int  # mask
    version: int  # of the group


class Sync(NamedTuple):
    """A repair under way: who reads, whom it has read, the touch it has found."""

    target: int
    asked: int
    touch: int
    version: int


class State(NamedTuple):
    epoch: int
    references: int
    candidate: int
    disks: tuple[int, ...]  # touch epoch, or ABSENT
    row: int  # mask of the members
    filling: int
    going: int  # whom the filling one will replace
    leaving: int
    lost: int  # in the row, but its disk is gone
    noticed: int  # of these, whom the leader knows to be lost
    version: int
    read_from: int  # who has read from the leaving one
    session: Session
    flight: int  # mask of disks: deletes of epoch 0 on their way, delivered any number of times
    sync: Optional[Sync]
    open_loss: bool
    losses: int
    drains: int


def initial(scope: Scope) -> State:
    session = Session(IDLE, 0, 0, 0, 0, 0)
    state = State(
        0, 0, ABSENT, (ABSENT,) * DISKS, 0b111, 0, 0, 0, 0, 0, 0, 0, session, 0, None, False,
        scope.lost_disks, scope.drains,
    )  # fmt: skip
    if not scope.aged:
        return state
    known = session._replace(known=DISTANCE)
    return state._replace(epoch=DISTANCE, candidate=0, disks=(0,) * DISKS, flight=(1 << DISKS) - 1, session=known)


def each(mask: int) -> Iterator[int]:
    for disk in range(DISKS):
        if mask >> disk & 1:
            yield disk


def put(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return values[:index] + (value,) + values[index + 1 :]


def session_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    s = state.session
    if s.known < state.epoch:
        yield "the session learns the epoch", state._replace(session=s._replace(known=state.epoch))
    if s.phase == IDLE:
        targets = state.row & ~state.leaving if rules.no_writes_on_leaving else state.row
        yield "it begins", state._replace(session=Session(TOUCHING, s.known, s.known, 0, targets, state.version))
    elif s.phase == TOUCHING:
        for disk in each(s.targets & ~s.confirmed & ~state.lost):
            disks = put(state.disks, disk, max(state.disks[disk], s.known))
            yield f"it touches disk {disk}", state._replace(
                disks=disks, session=s._replace(confirmed=s.confirmed | 1 << disk)
            )
        if s.confirmed.bit_count() >= WRITE_QUORUM:
            moved = rules.commit_checks_group and s.version != state.version
            if s.oldest < state.epoch - 1 or moved:
                yield "it is refused", state._replace(session=Session(IDLE, s.known, 0, 0, 0, 0))
            else:
                yield "it commits", state._replace(
                    references=1, candidate=ABSENT, session=Session(HOLDING, s.known, 0, 0, 0, 0)
                )
    else:
        yield "it removes", state._replace(
            references=0, candidate=state.epoch, session=Session(IDLE, s.known, 0, 0, 0, 0)
        )


def collector_steps(state: State, scope: Scope) -> Iterator[tuple[str, State]]:
    if state.epoch + 1 < scope.epochs:
        yield "the epoch advances", state._replace(epoch=state.epoch + 1)
    if state.candidate == 0 and state.epoch >= DISTANCE and not state.references:
        sent = state.flight | (state.row & ~state.lost)
        if sent != state.flight:
            yield "deletes are sent", state._replace(flight=sent)
    for disk in each(state.flight):
        if state.disks[disk] == 0:
            yield f"disk {disk} deletes", state._replace(disks=put(state.disks, disk, ABSENT))


def fault_steps(state: State) -> Iterator[tuple[str, State]]:
    if not state.losses or state.open_loss:
        return
    for disk in each(state.row):
        gone = state._replace(
            disks=put(state.disks, disk, ABSENT), open_loss=True, losses=state.losses - 1,
            flight=state.flight & ~(1 << disk),
        )  # fmt: skip
        if state.filling >> disk & 1:  # the fill is given up
            gone = gone._replace(row=state.row & ~(1 << disk), filling=0, going=0, version=state.version + 1, sync=None)
        else:
            gone = gone._replace(lost=state.lost | 1 << disk)
            if state.sync is not None and state.sync.target == disk:
                gone = gone._replace(sync=None)
        yield f"disk {disk} is lost", gone


def notice_steps(state: State) -> Iterator[tuple[str, State]]:
    if state.lost & ~state.noticed:
        yield "the loss is noticed", state._replace(noticed=state.lost)


def membership_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    if not state.filling and not state.leaving and not state.row >> SPARE & 1:
        leaver = state.noticed or (1 if state.drains and not state.lost else 0)
        if leaver:
            yield "the spare joins", state._replace(
                row=state.row | 1 << SPARE, filling=1 << SPARE, going=leaver, version=state.version + 1,
                drains=state.drains - (not state.lost),
            )
    if state.leaving:
        needed = WRITE_QUORUM if rules.enough_read_from_leaving else 1
        if state.read_from.bit_count() >= needed or not rules.read_from_leaving:
            yield from _dropped(state)


def _completed(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """The entry that makes the filling member complete."""
    after = state._replace(filling=0, going=0, version=state.version + 1)
    leaving = state.noticed or state.going  # a drain waits while a loss is made good
    if rules.others_read_too or not state.noticed:
        yield "the spare is complete, another one leaving", after._replace(leaving=leaving, read_from=0, sync=None)
    else:
        yield from _dropped(after._replace(leaving=leaving))


def _dropped(state: State) -> Iterator[tuple[str, State]]:
    (disk,) = each(state.leaving)
    yield f"disk {disk} leaves and drops its data", state._replace(
        disks=put(state.disks, disk, ABSENT), row=state.row & ~state.leaving, leaving=0, read_from=0, sync=None,
        version=state.version + 1, open_loss=state.open_loss and not state.lost & state.leaving,
        lost=state.lost & ~state.leaving, noticed=state.noticed & ~state.leaving,
    )


def sync_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    sync = state.sync
    if sync is None:
        targets = state.filling or (state.row & ~state.leaving & ~state.lost & ~state.read_from if state.leaving else 0)
        for disk in each(targets):
            yield f"disk {disk} begins to read", state._replace(sync=Sync(disk, 0, ABSENT, state.version))
        return
    sources = state.row & ~(1 << sync.target) & ~sync.asked
    if rules.lost_do_not_answer:
        sources &= ~state.lost
    for disk in each(sources):
        found = state.disks[disk]
        first = sync.touch == ABSENT or rules.carry_greatest_touch
        touch = max(sync.touch, found) if first else sync.touch
        yield f"it reads disk {disk}", state._replace(sync=sync._replace(asked=sync.asked | 1 << disk, touch=touch))
    if sync.version != state.version:
        yield "it is told to begin anew", state._replace(sync=None)
        return
    yield from _finish(state, sync, rules)


def _finish(state: State, sync: Sync, rules: Rules) -> Iterator[tuple[str, State]]:
    """It has what it read, and the leader judges whether that was enough."""
    has = state.disks[sync.target]
    wanted = sync.touch > has if rules.raise_touches else has == ABSENT and sync.touch != ABSENT
    after = state._replace(disks=put(state.disks, sync.target, sync.touch)) if wanted else state
    if state.filling >> sync.target & 1:
        if _enough(state, sync, rules):
            for label, done in _completed(after, rules):
                yield label, done
    elif state.leaving and not state.read_from >> sync.target & 1:
        if state.leaving & state.noticed:
            able = _enough(state, sync, rules)
        else:
            able = bool(sync.asked & state.leaving)
        if able:
            yield f"disk {sync.target} has read it all", after._replace(
                read_from=state.read_from | 1 << sync.target, sync=None
            )


def _enough(state: State, sync: Sync, rules: Rules) -> bool:
    complete = state.row & ~state.filling
    able = complete & ~state.noticed if rules.lost_do_not_answer else complete
    asked = sync.asked & able
    if not state.filling >> sync.target & 1:
        asked |= 1 << sync.target
    needed = complete.bit_count() - WRITE_QUORUM + 1 if rules.read_a_quorum else 1
    return asked.bit_count() >= min(needed, able.bit_count())


def successors(state: State, rules: Rules, scope: Scope) -> Iterator[tuple[str, State]]:
    yield from session_steps(state, rules)
    yield from collector_steps(state, scope)
    yield from fault_steps(state)
    yield from notice_steps(state)
    yield from membership_steps(state, rules)
    yield from sync_steps(state, rules)


def is_lost(state: State) -> bool:
    """A referenced block that no disk of the row holds."""
    return state.references > 0 and all(state.disks[disk] == ABSENT for disk in each(state.row))


def explore(rules: Rules, scope: Scope, limit: int = 2_000_000) -> Outcome:
    """Visit all states breadth first, at most ``limit``; stop at the first lost block with the way there."""
    first = initial(scope)
    came_from: dict[State, Optional[tuple[State, str]]] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        for label, after in successors(state, rules, scope):
            if after in came_from:
                continue
            came_from[after] = (state, label)
            if is_lost(after):
                return Outcome(len(came_from), False, _trace(after, came_from))
            if len(came_from) >= limit:
                return Outcome(len(came_from), False, None)
            queue.append(after)
    return Outcome(len(came_from), True, None)


def _trace(state: State, came_from: dict[State, Optional[tuple[State, str]]]) -> list[str]:
    labels = []
    step = came_from[state]
    while step is not None:
        labels.append(step[1])
        step = came_from[step[0]]
    return labels[::-1]
