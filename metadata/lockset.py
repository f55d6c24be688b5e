"""The locks of one inode: pure functions over what is held and who waits.

Two kinds live side by side and do not see each other: fcntl(2) locks cover ranges of bytes and split and merge within
one owner; flock(2) locks cover the file. An owner is (session, number given by the kernel): a process for the first, an
open file description for the second.

Held locks are ordered and, within one owner and kind, do not overlap; neighbours of the same strength are one. Nobody
waits who could be granted (``admit`` sees to that after each change).

The service decides with this (``metadata.state.locks``), and so does a mount that has an inode exclusively.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from metadata.operations import GetLock, Lock, LockState, Unlock
from node.wire.errors import Code, FsError
from node.wire.limits import LOCK_CYCLE_STEPS_MAX

END = (1 << 63) - 1  # the last byte that a lock can cover, included
NUMBER_MAX = (1 << 64) - 1

Owner = tuple[int, int]  # session, number


class Held(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """Bytes [low, high] are locked. The order of the fields is the order that held locks are kept in."""

    flock: bool
    session: int
    owner: int
    low: int
    high: int
    exclusive: bool
    pid: int


class Waiter(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A lock that is wanted; the session knows it by ``ticket``."""

    want: Held
    ticket: int


class LockRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is held of an inode, and who waits in the order of coming."""

    held: tuple[Held, ...] = ()
    waiting: tuple[Waiter, ...] = ()


decode_locks = msgspec.msgpack.Decoder(LockRow).decode


def same_owner(one: Held, other: Held) -> bool:
    return one.owner == other.owner and one.session == other.session and one.flock == other.flock


def conflict(one: Held, other: Held) -> bool:
    """Whether two locks exclude each other."""
    return (
        (one.exclusive or other.exclusive)
        and one.low <= other.high
        and other.low <= one.high
        and one.flock == other.flock
        and (one.owner != other.owner or one.session != other.session)
    )


def blockers(held: Iterable[Held], want: Held) -> list[Held]:
    """Held locks that ``want`` has to wait for."""
    return [one for one in held if conflict(one, want)]


def covers(held: Iterable[Held], want: Held) -> bool:
    """Whether the owner of ``want`` holds all of it, or more. Held locks are in order."""
    at = want.low
    for one in held:
        if same_owner(one, want) and one.low <= at <= one.high and (one.exclusive or not want.exclusive):
            at = one.high + 1
    return at > want.high


def take_out(held: Sequence[Held], want: Held) -> list[Held]:
    """What is held when the owner of ``want`` has nothing in its range any more."""
    left: list[Held] = []
    for one in held:
        if not same_owner(one, want) or one.high < want.low or one.low > want.high:
            left.append(one)
            continue
        if one.low < want.low:
            left.append(msgspec.structs.replace(one, high=want.low - 1))
        if one.high > want.high:
            left.append(msgspec.structs.replace(one, low=want.high + 1))
    return left


def put(held: Sequence[Held], want: Held) -> list[Held]:
    """What is held when ``want`` is granted: it replaces what its owner had there, and joins its neighbours."""
    left = take_out(held, want)
    low, high = want.low, want.high
    kept: list[Held] = []
    for one in left:
        if same_owner(one, want) and one.exclusive == want.exclusive and one.high + 1 >= low and one.low <= high + 1:
            low, high = min(low, one.low), max(high, one.high)
        else:
            kept.append(one)
    kept.append(msgspec.structs.replace(want, low=low, high=high))
    kept.sort()
    return kept


def admit(held: Sequence[Held], waiting: Sequence[Waiter]) -> tuple[list[Held], list[Waiter], list[Waiter]]:
    """Grant whoever need not wait any more, the longest waiting first; return held, waiting and granted.

    Granting may weaken what its owner held and so let others in that came before, hence the rounds.
    """
    now, left, granted = list(held), list(waiting), []
    moved = True
    while moved:
        moved = False
        still: list[Waiter] = []
        for waiter in left:
            if blockers(now, waiter.want):
                still.append(waiter)
            else:
                now = put(now, waiter.want)
                granted.append(waiter)
                moved = True
        left = still
    return now, left, granted


def settled(row: LockRow) -> tuple[LockRow, list[Waiter]]:
    """The row when whoever can be has been granted what it waits for, and who that was."""
    if not row.waiting:
        return row, []
    held, waiting, granted = admit(row.held, row.waiting)
    return LockRow(tuple(held), tuple(waiting)), granted


def request(row: LockRow, want: Held, ticket: int, circular: Callable[[list[Held]], bool]) -> LockRow:
    """The row when ``want`` was asked for, before it is settled; the same object where nothing changes. Where it is not
    to be had it is among those that wait, under ``ticket``, or with none (0) nothing is left of it.

    Raises DEADLOCK where an fcntl owner would wait for ever: ``circular`` judges what is in its way.
    """
    held: Sequence[Held] = row.held
    if want.flock:
        mine = next((one for one in held if same_owner(one, want)), None)
        if mine is not None and mine.exclusive == want.exclusive:
            return row
        if mine is not None:  # as on Linux: a conversion gives up the old lock first, whatever comes of the new one
            held = take_out(held, want)
    in_the_way = blockers(held, want)
    if not in_the_way:
        return LockRow(tuple(put(held, want)), row.waiting)
    if ticket and not want.flock and circular(in_the_way):
        raise FsError(Code.DEADLOCK, "owners of locks would wait for one another")
    return LockRow(tuple(held), (*row.waiting, Waiter(want, ticket)) if ticket else row.waiting)


def waiter(row: LockRow, session: int, ticket: int) -> Waiter | None:
    """Who waits under a ticket of a session."""
    return next((one for one in row.waiting if one.ticket == ticket and one.want.session == session), None)


def look(row: LockRow, want: Held, ticket: int) -> LockState:
    """What is in the way of a lock, and whether a ticket of its session still waits."""
    waits = bool(ticket) and waiter(row, want.session, ticket) is not None
    for one in row.held:
        if conflict(one, want):
            return LockState(waits, True, one.exclusive, one.low, one.high, one.session, one.pid)
    return LockState(waits, held=covers(row.held, want))


def circle(want: Held, in_the_way: Iterable[Held], waits_on: Callable[[Owner], Iterable[LockRow]]) -> bool:
    """Whether an owner in the way waits, over others perhaps, for the owner of ``want``.

    ``waits_on``: the rows in which an owner waits for a range. A search that takes too long ends without an answer:
    then both wait, as with locks that are no fcntl locks.
    """
    seeker = want.session, want.owner
    seen: set[Owner] = set()
    left = [(one.session, one.owner) for one in in_the_way]
    steps = 0
    while left:
        owner = left.pop()
        if owner == seeker:
            return True
        if owner in seen:
            continue
        seen.add(owner)
        for row in waits_on(owner):
            for one in row.waiting:
                if (one.want.session, one.want.owner) != owner or one.want.flock:
                    continue
                steps += len(row.held)
                if steps > LOCK_CYCLE_STEPS_MAX:
                    return False
                left.extend((other.session, other.owner) for other in blockers(row.held, one.want))
    return False


def wanted(session: int, op: Lock | Unlock | GetLock) -> Held:
    """What an operation is about. INVALID for what cannot be."""
    check_number(op.owner)
    low, high = (0, END) if op.flock else (op.low, op.high)
    if not 0 <= low <= high <= END:
        raise FsError(Code.INVALID, f"a lock of [{low}, {high}]")
    exclusive = not isinstance(op, Unlock) and op.exclusive
    pid = op.pid if isinstance(op, Lock) else 0
    if not -(1 << 31) <= pid < 1 << 31:
        raise FsError(Code.INVALID, f"process {pid}")
    return Held(op.flock, session, op.owner, low, high, exclusive, pid)


def check_number(number: int) -> None:
    """An owner or a ticket. INVALID."""
    if not 0 <= number <= NUMBER_MAX:
        raise FsError(Code.INVALID, f"number {number}")


def without(row: LockRow, session: int) -> LockRow:
    """The row when a session has ended. Others may be granted then (``admit``)."""
    return LockRow(
        tuple(one for one in row.held if one.session != session),
        tuple(one for one in row.waiting if one.want.session != session),
    )


def faults(row: LockRow) -> list[str]:
    """What contradicts the invariants; nothing where a row is sound."""
    found: list[str] = []
    if list(row.held) != sorted(row.held):
        found.append("held locks are out of order")
    for index, one in enumerate(row.held):
        if not 0 <= one.low <= one.high <= END:
            found.append(f"a lock of [{one.low}, {one.high}]")
        for other in row.held[index + 1 :]:
            if conflict(one, other):
                found.append(f"{one} and {other} exclude each other")
            if same_owner(one, other) and one.low <= other.high and other.low <= one.high:
                found.append(f"{one} and {other} overlap")
    found.extend(f"{one} waits for nothing" for one in row.waiting if not blockers(row.held, one.want))
    return found
