"""Locks that this mount decides about by itself: those of inodes that it has exclusively and nobody else has locks on.

Pure, and the same code as the service's. A table is made when the first lock is taken here, and goes with the last one,
or when the locks are handed over to the service (``take``).
"""

from __future__ import annotations

from collections.abc import Collection

from metadata import api
from metadata.api import Held, LockRow, lockset
from node.wire.limits import LOCAL_LOCKED_FILES_MAX, LOCAL_LOCKS_MAX


class LockTables:
    """One row for each inode on which somebody here holds or wants a lock."""

    def __init__(self) -> None:
        self._rows: dict[int, LockRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, ino: int) -> bool:
        return ino in self._rows

    def full(self, ino: int) -> bool:
        """Whether the service has to take it from here."""
        row = self._rows.get(ino)
        if row is None:
            return len(self._rows) >= LOCAL_LOCKED_FILES_MAX
        return len(row.held) + len(row.waiting) >= LOCAL_LOCKS_MAX - 2  # one more may split one that is held

    def blocked(self, ino: int, want: Held) -> bool:
        """Whether something is in the way of a lock."""
        return bool(lockset.blockers(self._rows.get(ino, LockRow()).held, want))

    def request(self, ino: int, want: Held, ticket: int) -> tuple[bool, list[int]]:
        """Lock, or wait; return whether it is held, and whose turn has come by that. Raises DEADLOCK."""
        row = self._rows.get(ino, LockRow())
        asked = lockset.request(row, want, ticket, lambda blocking: lockset.circle(want, blocking, self._waits_on))
        granted = self._settle(ino, asked)
        if ticket in granted:
            return True, [other for other in granted if other != ticket]
        return lockset.covers(self._rows.get(ino, LockRow()).held, want), granted

    def unlock(self, ino: int, want: Held) -> list[int]:
        """An owner holds nothing in a range any more; return whose turn has come."""
        row = self._rows.get(ino, LockRow())
        return self._settle(ino, LockRow(tuple(lockset.take_out(row.held, want)), row.waiting))

    def cancel(self, ino: int, ticket: int) -> bool:
        """Stop waiting; False where nobody waits under this ticket here."""
        row = self._rows.get(ino, LockRow())
        waiting = tuple(one for one in row.waiting if one.ticket != ticket)
        if len(waiting) == len(row.waiting):
            return False
        self._settle(ino, LockRow(row.held, waiting))
        return True

    def waits(self, ino: int, ticket: int) -> bool:
        """Whether somebody waits under this ticket here."""
        return any(one.ticket == ticket for one in self._rows.get(ino, LockRow()).waiting)

    def look(self, ino: int, want: Held) -> api.LockState:
        """What is in the way of a lock."""
        return lockset.look(self._rows.get(ino, LockRow()), want, 0)

    def ranged_waits(self) -> list[int]:
        """The inodes on which somebody waits for a range here: a circle may lead over them."""
        return [ino for ino, row in self._rows.items() if any(not one.want.flock for one in row.waiting)]

    def all(self) -> Collection[int]:
        """The inodes that there are tables of."""
        return list(self._rows)

    def take(self, ino: int) -> tuple[api.Lock, ...]:
        """Take a table away, as the service wants it."""
        row = self._rows.pop(ino)
        held = [(one, 0) for one in row.held]
        return tuple([_lock(ino, *one) for one in (*held, *((one.want, one.ticket) for one in row.waiting))])

    def clear(self) -> None:
        self._rows.clear()

    def _settle(self, ino: int, row: LockRow) -> list[int]:
        row, granted = lockset.settled(row)
        if row.held or row.waiting:
            self._rows[ino] = row
        else:
            self._rows.pop(ino, None)
        return [one.ticket for one in granted]

    def _waits_on(self, owner: lockset.Owner) -> list[LockRow]:
        return [
            row
            for row in self._rows.values()
            if any((one.want.session, one.want.owner) == owner and not one.want.flock for one in row.waiting)
        ]


def _lock(ino: int, want: Held, ticket: int) -> api.Lock:
    return api.Lock(ino, want.owner, want.flock, want.low, want.high, want.exclusive, want.pid, ticket)
