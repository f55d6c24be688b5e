"""Every interleaving of the garbage-collection rule at small scope: one block, a few sessions, disks and epochs.

The rule under test (storage/FORMAT.md and metadata.api.Commit state its parts):

1. Every reference first does a durable put_or_touch(block, epoch) on a write quorum of the placement group.
2. A commit carries the oldest epoch of its touches and is refused when that is older than the current epoch - 1.
3. A count that falls to 0 makes the block a candidate with the current epoch; two epochs later, when it is still 0,
   ``delete if touch <= candidate epoch`` goes to the members. Such a message may arrive late and more than once. The
   condition may as well be ``touch <= current epoch - 2`` (``by_distance``), which is what the collector sends.
4. A commit also carries the placement group's epoch and is refused when the group has changed since.
5. Repair gives the copy the greatest touch that it reads, and a leaving member drops its copy only after repair.
6. Touches are as durable as data.
7. A commit may bring the block's bytes along instead (``log_data``): it needs no touch. They go at once when the count
   falls to 0, or when a mover has put the block like a session and then says so, held to what a commit is held to.

``Rules`` can drop each ingredient; the explorer must then find a lost block. The invariant: while a block is
referenced, some disk of the group (or one that has not been dropped yet) still holds it, although one disk may die, or
its bytes are in the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Optional

ABSENT = -1
DISKS = 4
GROUPS = ((0, 1, 2), (1, 2, 3))  # members before and after the one change of the group
WRITE_QUORUM = 2

IDLE, TOUCHING, HOLDING = range(3)


@dataclass(frozen=True)
class Rules:
    """The ingredients; each can be taken out."""

    refuse_stale_commit: bool = True
    epochs_of_distance: int = 2
    commit_carries_oldest: bool = True
    delete_is_conditional: bool = True
    commit_checks_group: bool = True
    drop_after_repair: bool = True
    touches_are_durable: bool = True
    refuse_stale_move: bool = True
    move_checks_group: bool = True
    move_waits_for_quorum: bool = True
    by_distance: bool = False  # not an ingredient: the laxer condition


@dataclass(frozen=True)
class Scope:
    """How much can happen."""

    sessions: int = 2
    epochs: int = 4
    group_changes: int = 0
    lost_disks: int = 0
    crashes: int = 0  # of a disk's process: forgets touches that are not durable
    log_data: bool = False  # commits may bring the bytes along


class Session(NamedTuple):
    phase: int
    known: int  # the epoch that it has learnt
    oldest: int  # of its touches under way
    newest: int
    confirmed: int  # mask of disks
    group: int


class State(NamedTuple):
    epoch: int
    references: int
    candidate: int
    group: int
    disks: tuple[int, ...]  # touch epoch, or ABSENT
    synced: tuple[int, ...]  # what a crash leaves
    sessions: tuple[Session, ...]
    flight: frozenset[tuple[int, int]]  # deletes: (disk, candidate epoch); delivered any number of times
    repair: int  # touch that a repair under way has collected, or ABSENT
    repaired: bool
    group_changes: int
    lost_disks: int
    crashes: int
    logged: bool  # the bytes are in the log
    mover: Session


def initial(scope: Scope) -> State:
    session = Session(IDLE, 0, 0, 0, 0, 0)
    absent = (ABSENT,) * DISKS
    return State(
        0, 0, ABSENT, 0, absent, absent, (session,) * scope.sessions, frozenset(), ABSENT, False,
        scope.group_changes, scope.lost_disks, scope.crashes, False, session,
    )  # fmt: skip


def put(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return values[:index] + (value,) + values[index + 1 :]


def with_session(state: State, index: int, session: Session, **changes: object) -> State:
    """Sessions are alike, so only one order of them needs a look."""
    others = state.sessions[:index] + state.sessions[index + 1 :]
    return state._replace(sessions=tuple(sorted((session, *others))), **changes)


def session_steps(state: State, index: int, rules: Rules) -> Iterator[tuple[str, State]]:
    s = state.sessions[index]
    if s.known < state.epoch:
        yield f"session {index} learns the epoch", with_session(state, index, s._replace(known=state.epoch))
    if s.phase == IDLE:
        began = s._replace(phase=TOUCHING, oldest=s.known, newest=s.known, confirmed=0, group=state.group)
        yield f"session {index} begins", with_session(state, index, began)
    elif s.phase == TOUCHING:
        for disk in GROUPS[s.group]:
            if not s.confirmed >> disk & 1:
                touch = max(state.disks[disk], s.known)
                durable = rules.touches_are_durable or state.disks[disk] == ABSENT
                touched = s._replace(confirmed=s.confirmed | 1 << disk, newest=s.known)
                yield f"session {index} touches disk {disk}", with_session(
                    state, index, touched, disks=put(state.disks, disk, touch),
                    synced=put(state.synced, disk, touch) if durable else state.synced,
                )
        if s.confirmed.bit_count() >= WRITE_QUORUM:
            carried = s.oldest if rules.commit_carries_oldest else s.known
            stale = rules.refuse_stale_commit and carried < state.epoch - 1
            moved = rules.commit_checks_group and s.group != state.group
            if stale or moved:
                yield f"session {index} is refused", with_session(state, index, s._replace(phase=IDLE, confirmed=0))
            else:
                held = Session(HOLDING, s.known, 0, 0, 0, 0)
                yield f"session {index} commits", with_session(
                    state, index, held, references=state.references + 1, candidate=ABSENT
                )
    else:
        count = state.references - 1
        candidate = state.epoch if count == 0 else state.candidate
        yield f"session {index} removes", with_session(
            state, index, Session(IDLE, s.known, 0, 0, 0, 0), references=count, candidate=candidate,
            logged=state.logged and count > 0,
        )


def log_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    for index, s in enumerate(state.sessions):
        if s.phase == IDLE:
            held = Session(HOLDING, s.known, 0, 0, 0, 0)
            yield f"session {index} commits with the bytes", with_session(
                state, index, held, references=state.references + 1, candidate=ABSENT, logged=True
            )
    m = state.mover
    if m.phase == IDLE:
        if state.logged:  # the leader knows the epoch, or does not yet
            for known in {state.epoch, max(state.epoch - 1, 0)}:
                began = Session(TOUCHING, known, known, known, 0, state.group)
                yield "the mover begins", state._replace(mover=began)
        return
    for disk in GROUPS[m.group]:
        if not m.confirmed >> disk & 1:
            touch = max(state.disks[disk], m.oldest)
            after = state._replace(disks=put(state.disks, disk, touch), synced=put(state.synced, disk, touch))
            yield f"the mover puts on disk {disk}", after._replace(mover=m._replace(confirmed=m.confirmed | 1 << disk))
    idle = state._replace(mover=Session(IDLE, 0, 0, 0, 0, 0))
    if m.confirmed.bit_count() >= WRITE_QUORUM or not rules.move_waits_for_quorum:
        stale = rules.refuse_stale_move and m.oldest < state.epoch - 1
        moved = rules.move_checks_group and m.group != state.group
        if stale or moved:
            yield "the mover is refused", idle
        else:
            yield "the bytes leave the log", idle._replace(logged=False)


def collector_steps(state: State, rules: Rules, scope: Scope) -> Iterator[tuple[str, State]]:
    if state.epoch + 1 < scope.epochs:
        yield "the epoch advances", state._replace(epoch=state.epoch + 1)
    due = state.candidate != ABSENT and state.epoch >= state.candidate + rules.epochs_of_distance
    if due and state.references == 0:
        bound = state.epoch - rules.epochs_of_distance if rules.by_distance else state.candidate
        sent = state.flight | {(disk, bound) for disk in GROUPS[state.group]}
        if sent != state.flight:
            yield "deletes are sent", state._replace(flight=sent)
    for disk, candidate in state.flight:
        touch = state.disks[disk]
        if touch != ABSENT and (touch <= candidate or not rules.delete_is_conditional):
            gone = state._replace(disks=put(state.disks, disk, ABSENT), synced=put(state.synced, disk, ABSENT))
            yield f"disk {disk} deletes", gone


def fault_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    if state.lost_disks:
        for disk in range(DISKS):
            if state.disks[disk] != ABSENT:
                lost = state._replace(disks=put(state.disks, disk, ABSENT), synced=put(state.synced, disk, ABSENT))
                yield f"disk {disk} is lost", lost._replace(lost_disks=state.lost_disks - 1)
    if state.crashes:
        for disk in range(DISKS):
            if state.disks[disk] != state.synced[disk]:
                forgot = state._replace(disks=put(state.disks, disk, state.synced[disk]), crashes=state.crashes - 1)
                yield f"disk {disk} crashes", forgot


def group_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    if state.group == 0:
        if state.group_changes:
            changed = state._replace(group=1, group_changes=state.group_changes - 1)
            yield "the group changes", changed
        return
    if not state.repaired and state.repair == ABSENT:
        old = [d for d in GROUPS[0] if state.disks[d] != ABSENT]
        if not old:
            yield "nothing to repair", state._replace(repaired=True)
        for source in old:
            for other in GROUPS[0]:
                if other != source:
                    touch = max(state.disks[source], state.disks[other])
                    yield f"repair reads disks {source} and {other}", state._replace(repair=touch)
    elif state.repair != ABSENT:
        touch = max(state.disks[3], state.repair)
        copied = state._replace(disks=put(state.disks, 3, touch), synced=put(state.synced, 3, touch))
        yield "repair writes disk 3", copied._replace(repair=ABSENT, repaired=True)
    if state.disks[0] != ABSENT and (state.repaired or not rules.drop_after_repair):
        dropped = state._replace(disks=put(state.disks, 0, ABSENT), synced=put(state.synced, 0, ABSENT))
        yield "disk 0 drops its copy", dropped


def successors(state: State, rules: Rules, scope: Scope) -> Iterator[tuple[str, State]]:
    for index in range(len(state.sessions)):
        yield from session_steps(state, index, rules)
    if scope.log_data:
        yield from log_steps(state, rules)
    yield from collector_steps(state, rules, scope)
    yield from fault_steps(state, rules)
    if scope.group_changes:
        yield from group_steps(state, rules)


def is_lost(state: State) -> bool:
    """A referenced block that no disk holds, nor the log."""
    return state.references > 0 and not state.logged and all(touch == ABSENT for touch in state.disks)


@dataclass(frozen=True)
class Outcome:
    states: int
    complete: bool
    trace: Optional[list[str]]  # how the block was lost, None: it never was


def explore(rules: Rules, scope: Scope, limit: int = 2_000_000) -> Outcome:
    """Visit all states breadth first, at most ``limit``; stop at the first lost block with the way there."""
    first = initial(scope)
    came_from: dict[State, Optional[tuple[State, str]]] = {first: None}
    queue = deque([first])
    visited = 1
    while queue:
        state = queue.popleft()
        for label, after in successors(state, rules, scope):
            came_from.setdefault(after, (state, label))
            if len(came_from) == visited:
                continue
            visited += 1
            if is_lost(after):
                return Outcome(visited, False, _trace(after, came_from))
            if visited >= limit:
                return Outcome(visited, False, None)
            queue.append(after)
    return Outcome(visited, True, None)


def _trace(state: State, came_from: dict[State, Optional[tuple[State, str]]]) -> list[str]:
    labels = []
    step = came_from[state]
    while step is not None:
        labels.append(step[1])
        step = came_from[step[0]]
    return labels[::-1]
