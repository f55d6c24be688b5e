"""The locks of one inode: pure functions over what is held and who waits.

Two kinds live side by side and do not see each other: fcntl(2) locks cover ranges of bytes and split and merge within
one owner; flock(2) locks cover the file. An owner is (session, number given by the kernel): a process for the first, an
open file description for the second.

Held locks are ordered and, within one owner and kind, do not overlap; neighbours of the same strength are one. Nobody
waits who could be granted (``admit`` sees to that after each change).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

END = (1 << 63) - 1  # the last byte that a lock can cover, included


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
