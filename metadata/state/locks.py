"""Locks of files, cluster-wide: part of the state, so they survive a fail-over and travel in snapshots.

A session owns the locks of its programs; when it ends, or its fence is raised, they go in the same entry. Who has to
wait is kept in the state too, in the order of coming, and granted by the entry that makes room; the leader then tells
the session (``Turn.granted``). So a lost message or leader costs a waiter time, never its turn.

All rows are in memory too: there are few, and a search for a cycle of waiting owners looks at many.
"""

from __future__ import annotations

from typing import TypeVar

from metadata.api import CancelLock, Done, GetLock, Lock, Locked, LockState, Unlock
from metadata.state import keys
from metadata.state.inodes import Inodes
from metadata.state.lockset import (
    END,
    Held,
    LockRow,
    Waiter,
    admit,
    blockers,
    covers,
    decode_locks,
    put,
    same_owner,
    take_out,
    without,
)
from metadata.state.records import encode
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from node.wire.errors import Code, FsError
from node.wire.limits import LOCK_CYCLE_STEPS_MAX, LOCKS_PER_INODE_MAX, LOCKS_PER_SESSION_MAX

_NUMBER_MAX = (1 << 64) - 1

Owner = tuple[int, int]  # session, number

K = TypeVar("K")


class Locks:
    """The locks of one shard's inodes."""

    def __init__(self, tables: Tables, inodes: Inodes) -> None:
        self._tables = tables
        self._inodes = inodes
        self._rows: dict[int, LockRow] = {}
        self._of_session: dict[int, set[int]] = {}  # inodes on which it holds or wants something
        self._waits: dict[Owner, set[int]] = {}  # inodes on which this owner waits for a range
        self.reload()

    def reload(self) -> None:
        """Read all locks from the tables."""
        self._rows = {}
        self._of_session = {}
        self._waits = {}
        for key, value in self._tables.range(keys.LOCKS, keys.prefix_end(keys.LOCKS)):
            self._index(keys.first(key), decode_locks(value))

    # --- operations -------------------------------------------------------------------------------------------

    def lock(self, op: Lock, turn: Turn) -> Locked:
        want = _wanted(turn.session, op)
        _check_number(op.ticket)
        self._inodes.load(op.ino)
        row = self._rows.get(op.ino, LockRow())
        held = list(row.held)
        if op.flock:
            mine = next((one for one in held if same_owner(one, want)), None)
            if mine is not None and mine.exclusive == want.exclusive:
                return Locked(True)
            if mine is not None:  # as on Linux: a conversion gives up the old lock first, whatever comes of the new one
                held = take_out(held, want)
        in_the_way = blockers(held, want)
        self._check_room(op.ino, row, turn.session)
        if not in_the_way:
            self._save(op.ino, LockRow(tuple(put(held, want)), row.waiting), turn)
            return Locked(True)
        if op.ticket and not op.flock and self._would_wait_for_itself(want, in_the_way):
            raise FsError(Code.DEADLOCK, f"owners of locks on inode {op.ino} would wait for one another")
        waiting = (*row.waiting, Waiter(want, op.ticket)) if op.ticket else row.waiting
        self._save(op.ino, LockRow(tuple(held), waiting), turn)
        if not op.ticket:
            return Locked(False)
        return Locked(self._waiter(op.ino, turn.session, op.ticket) is None)  # giving up the old one may have helped

    def unlock(self, op: Unlock, turn: Turn) -> Done:
        row = self._rows.get(op.ino)
        if row is not None:
            self._save(op.ino, LockRow(tuple(take_out(row.held, _wanted(turn.session, op))), row.waiting), turn)
        return Done()

    def cancel(self, op: CancelLock, turn: Turn) -> Locked:
        """Stop waiting. Where the ticket waits no more it was granted: the owner has the lock."""
        waiter = self._waiter(op.ino, turn.session, op.ticket)
        if waiter is None:
            return Locked(True)
        row = self._rows[op.ino]
        self._save(op.ino, LockRow(row.held, tuple(one for one in row.waiting if one is not waiter)), turn)
        return Locked(False)

    def get(self, query: GetLock) -> LockState:
        want = _wanted(query.session, query)
        row = self._rows.get(query.ino, LockRow())
        waits = bool(query.ticket) and self._waiter(query.ino, query.session, query.ticket) is not None
        for one in row.held:
            if blockers((one,), want):
                return LockState(waits, True, one.exclusive, one.low, one.high, one.session, one.pid)
        return LockState(waits, held=covers(row.held, want))

    # --- what others cause ------------------------------------------------------------------------------------

    def end(self, session: int, turn: Turn) -> None:
        """All locks of a session go."""
        for ino in sorted(self._of_session.get(session, ())):
            self._save(ino, without(self._rows[ino], session), turn)

    def forget(self, ino: int) -> None:
        """The inode is gone; nobody had it open, so nobody can have meant to keep it locked."""
        if ino in self._rows:
            self._drop(ino)
            self._tables.delete(keys.locks(ino))

    # --- rows -------------------------------------------------------------------------------------------------

    def _waiter(self, ino: int, session: int, ticket: int) -> Waiter | None:
        row = self._rows.get(ino)
        for waiter in row.waiting if row is not None else ():
            if waiter.ticket == ticket and waiter.want.session == session:
                return waiter
        return None

    def _save(self, ino: int, row: LockRow, turn: Turn) -> None:
        """Write a row after whoever can be has been granted what it waits for."""
        if row.waiting:
            held, waiting, granted = admit(row.held, row.waiting)
            turn.granted.extend((waiter.want.session, waiter.ticket) for waiter in granted)
            row = LockRow(tuple(held), tuple(waiting))
        if row == self._rows.get(ino, LockRow()):
            return
        self._drop(ino)
        if row.held or row.waiting:
            self._index(ino, row)
            self._tables.put(keys.locks(ino), encode(row))
        else:
            self._tables.delete(keys.locks(ino))

    def _index(self, ino: int, row: LockRow) -> None:
        self._rows[ino] = row
        for one in (*row.held, *(waiter.want for waiter in row.waiting)):
            self._of_session.setdefault(one.session, set()).add(ino)
        for waiter in row.waiting:
            if not waiter.want.flock:
                self._waits.setdefault((waiter.want.session, waiter.want.owner), set()).add(ino)

    def _drop(self, ino: int) -> None:
        row = self._rows.pop(ino, LockRow())
        for one in (*row.held, *(waiter.want for waiter in row.waiting)):
            _discard(self._of_session, one.session, ino)
        for waiter in row.waiting:
            _discard(self._waits, (waiter.want.session, waiter.want.owner), ino)

    def _check_room(self, ino: int, row: LockRow, session: int) -> None:
        inos = self._of_session.get(session, ())
        if len(row.held) + len(row.waiting) >= LOCKS_PER_INODE_MAX:
            raise FsError(Code.NO_LOCKS, f"{LOCKS_PER_INODE_MAX} locks on inode {ino}")
        if len(inos) >= LOCKS_PER_SESSION_MAX and ino not in inos:
            raise FsError(Code.NO_LOCKS, f"session {session} has locks on {LOCKS_PER_SESSION_MAX} files")

    # --- deadlock ---------------------------------------------------------------------------------------------

    def _would_wait_for_itself(self, want: Held, in_the_way: list[Held]) -> bool:
        """Whether an owner in the way waits, over others perhaps, for the owner of ``want``. A search that takes too
        long ends without an answer: then both wait, as with locks that are no fcntl locks."""
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
            for ino in sorted(self._waits.get(owner, ())):
                row = self._rows[ino]
                for waiter in row.waiting:
                    if (waiter.want.session, waiter.want.owner) != owner or waiter.want.flock:
                        continue
                    steps += len(row.held)
                    if steps > LOCK_CYCLE_STEPS_MAX:
                        return False
                    left.extend((one.session, one.owner) for one in blockers(row.held, waiter.want))
        return False


def _discard(index: dict[K, set[int]], key: K, ino: int) -> None:
    inos = index.get(key)
    if inos is not None:
        inos.discard(ino)
        if not inos:
            del index[key]


def _wanted(session: int, op: Lock | Unlock | GetLock) -> Held:
    _check_number(op.owner)
    low, high = (0, END) if op.flock else (op.low, op.high)
    if not 0 <= low <= high <= END:
        raise FsError(Code.INVALID, f"a lock of [{low}, {high}]")
    exclusive = not isinstance(op, Unlock) and op.exclusive
    pid = op.pid if isinstance(op, Lock) else 0
    if not -(1 << 31) <= pid < 1 << 31:
        raise FsError(Code.INVALID, f"process {pid}")
    return Held(op.flock, session, op.owner, low, high, exclusive, pid)


def _check_number(number: int) -> None:
    if not 0 <= number <= _NUMBER_MAX:
        raise FsError(Code.INVALID, f"number {number}")
